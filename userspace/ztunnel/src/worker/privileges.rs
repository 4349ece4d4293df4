//! Giving up every privilege, before a single byte from a network is read.

use anyhow::{Context as _, Result};
use caps::CapSet;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Becomes `uid` without any capability, without a way to gain one, and with few system calls.
///
/// Must run while the process has one thread, since credentials belong to threads.
///
/// # Errors
/// When the kernel refuses a step; the process must then not go on.
pub(super) fn drop_all(uid: u32) -> Result<()> {
    // The bounding set needs a capability to change, so it goes first.
    for cap in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, cap)
                .with_context(|| format!("drop {cap} from the bounding set"))?;
        }
    }
    setgroups(&[]).context("drop supplementary groups")?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group).context("change the group")?;
    setresuid(user, user, user).context("change the user")?;
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).with_context(|| format!("clear the {set:?} set"))?;
    }
    nix::sys::prctl::set_no_new_privs().context("set no_new_privs")?;
    // Memory that holds private keys belongs in no core file and to no debugger.
    nix::sys::prctl::set_dumpable(false).context("make the process undumpable")?;
    let filter = filter().context("build the seccomp filter")?;
    seccompiler::apply_filter_all_threads(&filter).context("install the seccomp filter")?;
    Ok(())
}

/// The timer of `setitimer(2)` that counts processor time.
const ITIMER_PROF: u64 = 2;

/// `bpf(2)` commands on map descriptors: lookup, update, delete, and asking what a map is.
const BPF_COMMANDS: [u64; 4] = [1, 2, 3, 15];

/// What a worker needs: sockets, memory, threads, time. Anything else fails with `EPERM`.
fn filter() -> Result<BpfProgram> {
    use nix::libc as c;
    let free = [
        // sockets and files
        c::SYS_read,
        c::SYS_pread64,
        c::SYS_write,
        c::SYS_readv,
        c::SYS_writev,
        c::SYS_recvfrom,
        c::SYS_sendto,
        c::SYS_recvmsg,
        c::SYS_sendmsg,
        c::SYS_sendmmsg,
        c::SYS_recvmmsg,
        c::SYS_accept4,
        c::SYS_connect,
        c::SYS_bind,
        c::SYS_listen,
        c::SYS_socket,
        c::SYS_socketpair,
        c::SYS_setsockopt,
        c::SYS_getsockopt,
        c::SYS_getsockname,
        c::SYS_getpeername,
        c::SYS_shutdown,
        c::SYS_close,
        c::SYS_dup,
        c::SYS_dup3,
        c::SYS_fcntl,
        c::SYS_ioctl,
        c::SYS_splice,
        c::SYS_pipe2,
        c::SYS_openat,
        c::SYS_fstat,
        c::SYS_newfstatat,
        c::SYS_statx,
        c::SYS_lseek,
        c::SYS_getdents64,
        c::SYS_readlink,
        c::SYS_readlinkat,
        // events
        c::SYS_epoll_create1,
        c::SYS_epoll_ctl,
        c::SYS_epoll_wait,
        c::SYS_epoll_pwait,
        c::SYS_epoll_pwait2,
        c::SYS_eventfd2,
        c::SYS_poll,
        c::SYS_ppoll,
        // memory
        c::SYS_memfd_create,
        c::SYS_mmap,
        c::SYS_munmap,
        c::SYS_mremap,
        c::SYS_mprotect,
        c::SYS_madvise,
        c::SYS_brk,
        // threads
        c::SYS_futex,
        c::SYS_clone,
        c::SYS_clone3,
        c::SYS_set_robust_list,
        c::SYS_rseq,
        c::SYS_exit,
        c::SYS_exit_group,
        c::SYS_sched_yield,
        c::SYS_sched_getaffinity,
        c::SYS_gettid,
        c::SYS_getpid,
        c::SYS_tgkill,
        c::SYS_prctl,
        c::SYS_rt_sigaction,
        c::SYS_rt_sigprocmask,
        c::SYS_rt_sigreturn,
        c::SYS_sigaltstack,
        c::SYS_membarrier,
        // time and chance
        c::SYS_clock_gettime,
        c::SYS_clock_nanosleep,
        c::SYS_nanosleep,
        c::SYS_gettimeofday,
        c::SYS_getrandom,
        c::SYS_restart_syscall,
        // asking about itself
        c::SYS_getuid,
        c::SYS_geteuid,
        c::SYS_getgid,
        c::SYS_getegid,
        c::SYS_uname,
        c::SYS_prlimit64,
        c::SYS_getrusage,
        c::SYS_sysinfo,
    ];
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        free.into_iter().map(|call| (call, Vec::new())).collect();
    let command = |number| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    // Samples for profiles; no other timer.
    rules.insert(c::SYS_setitimer, vec![command(ITIMER_PROF)?]);
    rules.insert(
        c::SYS_bpf,
        BPF_COMMANDS
            .into_iter()
            .map(command)
            .collect::<Result<_, _>>()?,
    );
    let eperm = SeccompAction::Errno(c::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, eperm, SeccompAction::Allow, arch)?.try_into()?)
}
