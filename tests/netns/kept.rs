//! `cargo xtask trace`: what the nodes of a mesh that is kept tell, all at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::binaries::Binaries;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::{self, Finished, Process};
use sluice_tests::run::REGISTRY;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually, kept};

use crate::drift::{self, Held};

/// A client on node `a` and a server on node `b`, of a mesh that is listed as a kept demo is, where nobody
/// who looks for one comes upon it.
struct Stage<'a> {
    s: &'a mut Scenario,
    client: Pod,
    server: Pod,
    demo: PathBuf,
    _server: Process,
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let greets = podtool::serve(&server, "catalog", Serve::Greet, "[::]:8080")?;
        s.mesh.settle()?;
        let demo = s.topology.run().dir().join("demo");
        fs::create_dir(&demo).with_context(|| format!("creating {}", demo.display()))?;
        kept::list(&s.mesh, &demo)?;
        Ok(Self {
            s,
            client,
            server,
            demo,
            _server: greets,
        })
    }

    fn command(&self, demo: &Path, arguments: &[&str]) -> Result<Command> {
        let wire = self.s.topology.wire();
        let mut command = wire.command(wire.run.binaries().xtask()?);
        command.args(["trace", "--demo"]).arg(demo).args(arguments);
        Ok(command)
    }

    /// Traces the nodes of a demo, until all have told what they know.
    fn trace(&self, demo: &Path, arguments: &[&str]) -> Result<Finished> {
        let command = self.command(demo, arguments)?;
        process::finish_within(self.s.topology.run(), command, PATIENCE)
    }

    /// The same demo, where the namespace of `b` has gone.
    fn without_b(&self) -> Result<PathBuf> {
        let gone = self.demo.join("gone");
        fs::create_dir(&gone)?;
        let mut nodes = kept::read(&self.demo)?;
        nodes[1].netns = "/run/netns/nowhere".into();
        kept::write(&nodes, &gone)?;
        Ok(gone)
    }

    /// What `verify` says of the nodes, which must end with this status.
    fn verify(&self, demo: &Path, wanted: i32) -> Result<Finished> {
        let told = self.trace(demo, &["verify"])?;
        ensure!(told.status.code() == Some(wanted), "{told:?}");
        Ok(told)
    }

    /// A connection from the one node to the other.
    fn greeted(&self) -> Result<()> {
        let mut connection = Connection::open(&self.client, &self.address())?;
        connection.line()?;
        connection.exchange("hello")?;
        connection.exchange("QUIT")?;
        ensure!(connection.event(PATIENCE)? == Some(Event::Eof));
        Ok(())
    }

    fn address(&self) -> String {
        format!("{}:8080", self.server.v4())
    }
}

/// The steps of this kind that a node tells, of the one connection of the test.
fn steps<'a>(all: &'a [Value], node: &str, kind: &str) -> Vec<&'a Value> {
    let wanted = |step: &&Value| step["node"] == node && step["step"] == kind;
    all.iter().filter(wanted).collect()
}

/// The only one of them.
fn one<'a>(all: &'a [Value], node: &str, kind: &str) -> Result<&'a Value> {
    match steps(all, node, kind)[..] {
        [one] => Ok(one),
        _ => anyhow::bail!("not one step {kind} of node {node}: {all:#?}"),
    }
}

#[test]
fn both_nodes_of_a_connection_tell_of_it_at_once() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let follow = stage.command(&stage.demo, &["flows", "--json"])?;
        let tracer = Process::start(stage.s.topology.run(), "trace-all", follow)?;
        eventually(|| {
            let log = tracer.log()?;
            let follows = |node| log.contains(&format!("{node}  following"));
            ensure!(follows("a") && follows("b"), "not both follow: {log}");
            Ok(())
        })?;
        stage.greeted()?;
        eventually(|| {
            let log = tracer.log()?;
            let lines = log.lines().filter(|line| line.starts_with('{'));
            let told = lines.map(serde_json::from_str);
            let told: Vec<Value> = told.collect::<Result<_, _>>()?;
            let (sent, received) = (one(&told, "a", "end")?, one(&told, "b", "end")?);
            ensure!(sent["pod"] == "shop/web" && sent["direction"] == "outbound");
            ensure!(received["pod"] == "shop/catalog" && received["direction"] == "inbound");
            ensure!(sent["authority"] == stage.address(), "{sent}");
            for same in [
                "authority",
                "sourceIdentity",
                "destinationIdentity",
                "bytesSent",
                "bytesReceived",
            ] {
                ensure!(!sent[same].is_null(), "no {same}: {sent}");
                ensure!(sent[same] == received[same], "{same}: {sent} {received}");
            }
            // Each tells what only it can know.
            one(&told, "a", "tunnel")?;
            one(&told, "b", "policy")?;
            ensure!(steps(&told, "a", "policy").is_empty(), "{told:#?}");
            ensure!(steps(&told, "b", "tunnel").is_empty(), "{told:#?}");
            Ok(())
        })
    });
}

#[test]
fn lines_for_people_begin_with_the_name_of_the_node() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.greeted()?;
        eventually(|| {
            let past = ["flows", "--since", "5m", "--no-follow"];
            let text = stage.trace(&stage.demo, &past)?.success()?;
            let has = |node: &str, pod: &str| {
                let prefix = format!("{node}  ");
                let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
                lines.any(|line| line.contains(pod) && line.contains(" end "))
            };
            ensure!(has("a", "shop/web") && has("b", "shop/catalog"), "{text}");
            ensure!(text.lines().count() == 2, "{text}");
            Ok(())
        })
    });
}

#[test]
fn the_worst_of_the_nodes_decides_how_verify_ends() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let well = |text: &str, node: &str| {
            text.contains(&format!("{node}  node {node}: all is as it must be"))
        };
        let all_well = || -> Result<()> {
            let text = stage.verify(&stage.demo, 0)?.stdout;
            ensure!(well(&text, "a") && well(&text, "b"), "{text}");
            Ok(())
        };
        eventually(all_well)?;

        // One has drift, and nobody there who would put it right.
        let ztunnel = stage.s.mesh.ztunnel("b");
        let held = Held::hold(ztunnel.broker_pid())?;
        drift::detach(drift::link(ztunnel, "sluice_connect4")?)?;
        let text = stage.verify(&stage.demo, 1)?.stdout;
        ensure!(well(&text, "a") && text.contains("\nb  DRIFT"), "{text}");
        drop(held);
        eventually(all_well)?;

        // The namespace of one has gone.
        let gone = stage.without_b()?;
        let told = stage.verify(&gone, 2)?;
        ensure!(well(&told.stdout, "a"), "{told:?}");
        let why = "b  error: its network namespace /run/netns/nowhere is gone";
        ensure!(told.stderr.contains(why), "{told:?}");

        // The ztunnel of one has ended.
        stage.s.mesh.ztunnel_mut("b").stop(PATIENCE)?;
        let told = stage.verify(&stage.demo, 2)?;
        ensure!(well(&told.stdout, "a"), "{told:?}");
        let why = told.stderr.lines().find(|line| line.starts_with("b  "));
        let why = why.with_context(|| format!("nothing is said of b: {told:?}"))?;
        ensure!(why.contains("does a ztunnel run here"), "{why}");
        Ok(())
    });
}

#[test]
fn all_nodes_answer_in_one_json_object() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let ask = |demo: &Path, verb, status| -> Result<Value> {
            let told = stage.trace(demo, &[verb, "-o", "json"])?;
            ensure!(told.status.code() == Some(status), "{told:?}");
            serde_json::from_str(&told.stdout).with_context(|| format!("no JSON: {told:?}"))
        };
        let sockets = ask(&stage.demo, "sockets", 0)?;
        for (node, pod) in [("a", "shop/web"), ("b", "shop/catalog")] {
            let mut all = sockets[node].as_array().into_iter().flatten();
            ensure!(all.any(|one| one["pod"] == pod), "{node}: {sockets:#}");
        }
        let gone = stage.without_b()?;
        let maps = ask(&gone, "maps", 2)?;
        ensure!(!maps["a"].is_null() && maps["b"].is_null(), "{maps:#}");
        Ok(())
    });
}

#[test]
fn it_says_how_it_is_called_without_a_demo() -> Result<()> {
    for asked in ["--help", "-h"] {
        let (status, said) = trace_among("true", &[asked])?;
        ensure!(status == Some(0) && said.contains("--demo <DIR>"), "{said}");
        let (status, said) = trace_among("true", &["flows", asked])?;
        ensure!(status == Some(0) && said.contains("--verdict"), "{said}");
    }
    Ok(())
}

/// Traces where no runs are listed but those that a script makes, in the directory that it is told.
fn trace_among(script: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let among = format!("mount -t tmpfs none {REGISTRY} && {{ {script}; }} && exec \"$@\"");
    fs::create_dir_all(REGISTRY)?;
    let output = Command::new("unshare")
        .args(["--mount", "--", "sh", "-c", &among, "sh"])
        .arg(Binaries::locate()?.xtask()?)
        .arg("trace")
        .args(arguments)
        .output()
        .context("running unshare")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn without_a_kept_demo_one_is_told_how_to_start_it() -> Result<()> {
    let start = "start one with `cargo xtask demo --keep`";
    let (status, said) = trace_among("true", &["flows"])?;
    ensure!(status != Some(0), "{status:?}: {said}");
    ensure!(
        said.contains("no demo is kept; ") && said.contains(start),
        "{said}"
    );
    let (status, said) = trace_among("true", &["--demo", "/nonexistent", "flows"])?;
    ensure!(status != Some(0), "{status:?}: {said}");
    ensure!(
        said.contains("no demo is kept in /nonexistent; ") && said.contains(start),
        "{said}"
    );
    Ok(())
}

/// A run that is kept by nobody, and one that was kept earlier, are passed over.
#[test]
fn of_several_demos_the_newest_is_traced() -> Result<()> {
    let list = |node: &str| {
        format!(
            r#"echo '[{{"name": "{node}", "netns": "/run/netns/nowhere", "run_dir": "", "sluicectl": ""}}]'"#
        )
    };
    let (old, new, file) = (list("old"), list("new"), kept::FILE);
    let script = format!(
        "cd {REGISTRY}; mkdir 1 2 3 4; {new} > 2/{file}; {old} > 1/{file}; {old} > 3/{file}; \
         touch -d yesterday 1/{file} 3/{file}"
    );
    let (status, said) = trace_among(&script, &["flows"])?;
    ensure!(status == Some(2), "{status:?}: {said}");
    ensure!(
        said.contains("new  error: ") && !said.contains("old  "),
        "{said}"
    );
    Ok(())
}
