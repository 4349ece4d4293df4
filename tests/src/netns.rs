//! Network namespaces.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cleanup;
use crate::run::{Resource, Run};

/// A network namespace that exists as long as this value.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes `sluice-<run>-<suffix>` with the loopback interface up, and IPv6 without duplicate
    /// address detection, so that an address is usable as soon as it is set.
    pub fn create(run: &Arc<Run>, suffix: &str) -> Result<Self> {
        let name = format!("sluice-{}-{suffix}", run.id());
        let netns = run.make(&Resource::Netns(name.clone()), || {
            ip(&["netns", "add", &name])?;
            Ok(Self { name })
        })?;
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.ip_batch("link set lo up")?;
        Ok(netns)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs lines of `ip` commands inside, all by one process.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("running ip (package iproute2)")?;
        child
            .stdin
            .take()
            .context("ip has no standard input")?
            .write_all(lines.as_bytes())
            .context("writing commands to ip")?;
        let output = child.wait_with_output().context("waiting for ip")?;
        ensure!(
            output.status.success(),
            "in the namespace {}: {}\n{lines}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Sets a value below `/proc/sys`, as this namespace sees it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| {
            fs::write(&path, value)
                .with_context(|| format!("writing {value} to {}", path.display()))
        })?
    }

    /// Calls `act` inside, on a thread made for it. Sockets it opens belong to this namespace
    /// for ever. The thread stays in the caller's cgroup: traffic that has to be captured must
    /// come from a process (`Pod::command`).
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("entering the namespace {}", path.display()))?;
                    Ok(act())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether something inside listens on this TCP port, on any address.
    pub fn has_listener(&self, port: u16) -> Result<bool> {
        let suffix = format!(":{port:04X}");
        // 0A is TCP_LISTEN in include/net/tcp_states.h.
        let found = |(local, state): (&str, &str)| local.ends_with(&suffix) && state == "0A";
        Ok(sockets(&self.tcp_tables()?).any(found))
    }

    /// How many TCP sockets inside have got the peer's end and not been closed themselves.
    pub fn close_waits(&self) -> Result<usize> {
        // 08 is TCP_CLOSE_WAIT.
        Ok(sockets(&self.tcp_tables()?)
            .filter(|(_, state)| *state == "08")
            .count())
    }

    /// How many established TCP connections inside have this local port.
    pub fn established(&self, port: u16) -> Result<usize> {
        let suffix = format!(":{port:04X}");
        // 01 is TCP_ESTABLISHED.
        let found = |(local, state): &(&str, &str)| local.ends_with(&suffix) && *state == "01";
        Ok(sockets(&self.tcp_tables()?).filter(found).count())
    }

    fn tcp_tables(&self) -> Result<String> {
        // `/proc/self/net` would be the main thread's namespace.
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        self.enter(|| read("tcp").and_then(|v4| Ok(v4 + &read("tcp6")?)))?
            .map_err(|error| anyhow!(error).context("reading /proc/net/tcp"))
    }
}

/// Local address and state of the sockets in `/proc/net/tcp`, both in hexadecimal.
fn sockets(tables: &str) -> impl Iterator<Item = (&str, &str)> {
    tables.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        Some((local, state))
    })
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = cleanup::remove_netns(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("running ip (package iproute2): cargo xtask setup installs it")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
