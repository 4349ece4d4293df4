//! What is needed for what.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Where eBPF programs are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// What a verb needs, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// To build the eBPF programs.
    Bpf,
    /// To build nodes and pods, and to run the servers in them.
    Run,
    /// To test with what others wrote: as a peer, and as an oracle.
    Peers,
    /// To measure.
    Bench,
    /// To see where processors spend their time.
    Profile,
}

impl Group {
    pub(crate) const ALL: [Self; 5] = [
        Self::Bpf,
        Self::Run,
        Self::Peers,
        Self::Bench,
        Self::Profile,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Bpf => "to build the eBPF programs",
            Self::Run => "to run nodes and pods (demo, netns tests)",
            Self::Peers => {
                "to test with Envoy, as peer and as oracle, and Prometheus (direct and netns tests)"
            }
            Self::Bench => "to measure (bench)",
            Self::Profile => "to see where the time goes (profile)",
        }
    }
}

/// A Debian package, and how to see that what it brings is there, wherever it came from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Need {
    group: Group,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
    check: Check,
}

#[derive(Debug, PartialEq, Eq)]
enum Check {
    Program(&'static str),
    Path(&'static str),
}

const fn program(
    group: Group,
    package: &'static str,
    name: &'static str,
    purpose: &'static str,
) -> Need {
    Need {
        group,
        package,
        purpose,
        check: Check::Program(name),
    }
}

const fn path(
    group: Group,
    package: &'static str,
    path: &'static str,
    purpose: &'static str,
) -> Need {
    Need {
        group,
        package,
        purpose,
        check: Check::Path(path),
    }
}

const NEEDS: &[Need] = &[
    path(
        Group::Bpf,
        "rustc-web",
        "/usr/bin/rustc",
        "a Rust compiler over LLVM 22",
    ),
    path(Group::Bpf, "cargo-web", "/usr/bin/cargo", "its cargo"),
    path(
        Group::Bpf,
        "libstd-rust-web-dev-bpf",
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
        "the core library for eBPF",
    ),
    path(
        Group::Bpf,
        "llvm-22-dev",
        "/usr/lib/llvm-22/bin/llvm-config",
        "bpf-linker's LLVM",
    ),
    path(
        Group::Bpf,
        "libpolly-22-dev",
        "/usr/lib/llvm-22/lib/libPolly.a",
        "a part of LLVM",
    ),
    path(
        Group::Bpf,
        "libzstd-dev",
        "/usr/include/zstd.h",
        "a library that LLVM uses",
    ),
    path(
        Group::Bpf,
        "zlib1g-dev",
        "/usr/include/zlib.h",
        "a library that LLVM uses",
    ),
    program(
        Group::Run,
        "iproute2",
        "ip",
        "makes network namespaces and links",
    ),
    program(
        Group::Run,
        "util-linux",
        "nsenter",
        "enters network namespaces",
    ),
    program(
        Group::Run,
        "bpftool",
        "bpftool",
        "shows eBPF programs and maps",
    ),
    program(Group::Run, "tcpdump", "tcpdump", "captures the wire"),
    program(Group::Run, "curl", "curl", "the client in pods"),
    program(
        Group::Run,
        "nginx-light",
        "nginx",
        "the HTTP server in pods",
    ),
    program(
        Group::Run,
        "redis-server",
        "redis-server",
        "the key-value server in pods",
    ),
    program(Group::Run, "redis-tools", "redis-cli", "its client"),
    path(
        Group::Run,
        "python3-aiosmtpd",
        "/usr/lib/python3/dist-packages/aiosmtpd",
        "the SMTP server in pods (it speaks first)",
    ),
    program(Group::Peers, "python3-pip", "pip3", "brings Envoy"),
    program(
        Group::Peers,
        "prometheus",
        "promtool",
        "the judge of metrics and alerts",
    ),
    program(Group::Peers, "prometheus", "prometheus", "scrapes the mesh"),
    program(Group::Bench, "iperf3", "iperf3", "throughput"),
    program(Group::Bench, "sockperf", "sockperf", "latency"),
    program(Group::Bench, "wrk", "wrk", "requests per second"),
    program(
        Group::Bench,
        "nghttp2-client",
        "h2load",
        "requests per second by HTTP/2",
    ),
    program(
        Group::Bench,
        "ethtool",
        "ethtool",
        "tells which offloads the links have",
    ),
    program(
        Group::Profile,
        "linux-perf",
        "perf",
        "samples where processors are",
    ),
];

pub(crate) fn of(group: Group) -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(move |need| need.group == group)
}

impl Need {
    pub(crate) fn is_there(&self) -> bool {
        match self.check {
            Check::Program(name) => program_is_there(name),
            Check::Path(path) => Path::new(path).exists(),
        }
    }
}

/// Looks beyond PATH: a user's own often lacks the sbin directories.
fn program_is_there(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

pub(crate) fn bpffs_is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next(), fields.next()) == (Some(BPFFS), Some("bpf"))
    }))
}

/// It stays mounted, as systemd would have it.
pub(crate) fn mount_bpffs() -> Result<()> {
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount -t bpf bpf {BPFFS}: does the kernel have CONFIG_BPF_SYSCALL?"))
}
