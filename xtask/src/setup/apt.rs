//! Debian packages, without the services that some of them would start.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sluice_tests::process::tail;

use crate::cargo;

const APT: &str = "/usr/bin/apt-get";
/// A package's own scripts ask this program whether they may start its service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Packages of ours that bring a service, and the service.
const SERVICES: [(&str, &str); 3] = [
    ("nginx-light", "nginx.service"),
    ("prometheus", "prometheus.service"),
    ("redis-server", "redis-server.service"),
];

pub(crate) fn is_there() -> bool {
    Path::new(APT).exists()
}

/// Installs packages that are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let begin = Instant::now();
    println!("… apt-get install {}", packages.join(" "));
    let policy = Policy::deny()?;
    let log = cargo::target_directory()?.join("setup.log");
    fs::write(&log, "").with_context(|| format!("creating {}", log.display()))?;
    apt_get(&log, &["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&log, &arguments)?;
    drop(policy);
    disable_services(packages)?;
    println!("✓ installed ({} s)", begin.elapsed().as_secs());
    Ok(())
}

fn apt_get(log: &Path, arguments: &[&str]) -> Result<()> {
    let open = || {
        let file = OpenOptions::new().append(true).open(log);
        file.with_context(|| format!("opening {}", log.display()))
    };
    let status = Command::new(APT)
        // Another apt-get or the nightly upgrade may be running.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .status()
        .with_context(|| format!("running {APT}"))?;
    ensure!(
        status.success(),
        "apt-get {} failed (all of it is in {}):\n{}",
        arguments.join(" "),
        log.display(),
        tail(log, 8)
    );
    Ok(())
}

/// The demo runs its own servers in its own namespaces: those of the system that have just come
/// with a package are not to start at the next boot either.
fn disable_services(packages: &[&str]) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    for (_, service) in SERVICES
        .iter()
        .filter(|(package, _)| packages.contains(package))
    {
        println!("  {service}: installed for the demo, not started; enable it if you want it");
        let status = Command::new("systemctl")
            .args(["--quiet", "disable", "--now", service])
            .status()
            .context("running systemctl")?;
        ensure!(
            status.success(),
            "systemctl disable --now {service}: {status}"
        );
    }
    Ok(())
}

/// Forbids packages to start services as long as this value lives. A policy of the system's own
/// is left as it is.
struct Policy {
    ours: bool,
}

impl Policy {
    fn deny() -> Result<Self> {
        let open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        let Ok(mut file) = open else {
            return Ok(Self { ours: false });
        };
        // Should we be killed before removing it, it forbids nothing any more.
        write!(
            file,
            "#!/bin/sh\n# Put here by `cargo xtask setup` for as long as it installs packages.\n\
             [ -d /proc/{} ] && exit 101\nexit 0\n",
            std::process::id()
        )
        .with_context(|| format!("writing {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("removing {POLICY}: {error}");
        }
    }
}
