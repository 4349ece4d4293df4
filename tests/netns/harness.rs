//! The harness itself: it leaves nothing behind, not even when it is killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::binaries::Binaries;
use sluice_tests::podtool::{self, Serve};
use sluice_tests::run::ProcessId;
use sluice_tests::{PodSpec, Run, Topology, cleanup, eventually};

/// Set in the process that is going to be killed.
const VICTIM: &str = "SLUICE_HARNESS_VICTIM";

/// What a run leaves to be seen: its directory, namespaces and cgroup, and a process.
struct Traces {
    paths: Vec<PathBuf>,
    process: ProcessId,
}

impl Traces {
    fn of(topology: &Topology, pid: u32) -> Result<Self> {
        let mut paths = vec![topology.run().dir().into(), topology.cgroup().path().into()];
        paths.push(topology.wire().netns.path());
        paths.extend(topology.nodes().iter().map(|node| node.netns.path()));
        Ok(Self {
            paths,
            process: ProcessId::of(pid).context("the server is running")?,
        })
    }

    fn all_there(&self) -> bool {
        self.process.is_alive() && self.paths.iter().all(|path| path.exists())
    }

    fn left(&self) -> Vec<&Path> {
        self.paths
            .iter()
            .map(PathBuf::as_path)
            .filter(|path| path.exists())
            .collect()
    }
}

fn build() -> Result<(Topology, sluice_tests::Pod, sluice_tests::process::Process)> {
    let topology = Topology::new(&Run::start(Binaries::locate()?)?, &["a"])?;
    let spec = PodSpec {
        namespace: "shop",
        name: "server",
        service_account: "server",
    };
    let pod = topology.node("a").pod(spec)?;
    let server = podtool::serve(&pod, "server", Serve::Echo, "0.0.0.0:80")?;
    Ok((topology, pod, server))
}

#[test]
fn a_run_leaves_nothing_behind() -> Result<()> {
    let (topology, pod, server) = build()?;
    let mut traces = Traces::of(&topology, server.pid())?;
    traces.paths.push(pod.netns.path());
    ensure!(traces.all_there());
    drop((topology, pod, server));
    ensure!(
        traces.left().is_empty() && !traces.process.is_alive(),
        "left: {:?}",
        traces.left()
    );
    Ok(())
}

#[test]
fn tearing_down_from_another_thread_stops_the_making() -> Result<()> {
    let (topology, pod, server) = build()?;
    let traces = Traces::of(&topology, server.pid())?;
    topology.run().tear_down()?;
    ensure!(
        traces.left().is_empty() && !traces.process.is_alive(),
        "left: {:?}",
        traces.left()
    );
    let spec = PodSpec {
        namespace: "shop",
        name: "late",
        service_account: "late",
    };
    let error = topology
        .node("a")
        .pod(spec)
        .err()
        .context("a pod was made after the end")?;
    ensure!(format!("{error:#}").contains("interrupted"), "{error:#}");
    drop(pod);
    Ok(())
}

#[test]
fn what_a_killed_run_left_is_swept_and_nothing_else() -> Result<()> {
    let (alive, _pod, server) = build()?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "harness::victim", "--ignored", "--nocapture"])
        .env(VICTIM, alive.run().dir())
        .stdout(Stdio::null())
        .spawn()?;
    let note = alive.run().dir().join("victim");
    let text = eventually(|| {
        ensure!(victim.try_wait()?.is_none(), "the victim ended by itself");
        std::fs::read_to_string(&note).context("the victim has not built its nodes")
    })?;
    let mut words = text.split_whitespace();
    let pid = words.next().context("a pid")?.parse()?;
    let traces = Traces {
        paths: words.map(PathBuf::from).collect(),
        process: ProcessId::of(pid).context("the victim's server")?,
    };
    ensure!(traces.all_there());
    victim.kill()?;
    victim.wait()?;
    ensure!(
        traces.process.is_alive(),
        "the server has to outlive its maker for this test"
    );
    // Any other test that starts may be the one that sweeps.
    cleanup::sweep()?;
    eventually(|| {
        ensure!(traces.left().is_empty(), "left: {:?}", traces.left());
        ensure!(!traces.process.is_alive(), "the server is still running");
        Ok(())
    })?;
    ensure!(
        Traces::of(&alive, server.pid())?.all_there(),
        "a living run lost something"
    );
    Ok(())
}

#[test]
#[ignore = "the process that the test above starts and kills"]
fn victim() -> Result<()> {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return Ok(());
    };
    let (topology, _pod, server) = build()?;
    let traces = Traces::of(&topology, server.pid())?;
    let mut text = server.pid().to_string();
    for path in &traces.paths {
        text += &format!(" {}", path.display());
    }
    let draft = topology.run().dir().join("draft");
    std::fs::write(&draft, text)?;
    std::fs::rename(draft, Path::new(&directory).join("victim"))?;
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}
