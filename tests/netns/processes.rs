//! The broker and its worker: what they may do, and what happens when they die.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Flood, Serve};
use sluice_tests::process::Process;
use sluice_tests::run::ProcessId;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::topology::WIRE_V4;
use sluice_tests::ztunnel::BPFFS;
use sluice_tests::{Pod, eventually, objects};

fn at(pod: &Pod, port: u16) -> String {
    SocketAddr::from((pod.v4(), port)).to_string()
}

/// A client on node `a`, a server on node `b`, both in the mesh, and one outside it on node `b`.
struct Pods {
    client: Pod,
    server: Pod,
    stranger: Pod,
}

fn pods(s: &Scenario) -> Result<Pods> {
    s.mesh.apply_namespace("shop", Some("ambient"))?;
    s.mesh.apply_namespace("legacy", None)?;
    let client = s.pod("a", "shop", "client")?;
    let server = s.enrolled_pod("b", "shop", "server")?;
    s.mesh.wait_until_enrolled(&client)?;
    let stranger = s.pod("b", "legacy", "stranger")?;
    Ok(Pods {
        client,
        server,
        stranger,
    })
}

/// One line there and back, on a new connection; returns the client's own address.
fn echo(client: &Pod, server: &str) -> Result<String> {
    let mut connection = Connection::open(client, server)?;
    ensure!(connection.exchange("hello")? == "hello");
    Ok(connection.local)
}

fn start_flood(client: &Pod, name: &str, to: &str, seconds: &str) -> Result<Process> {
    let options = ["--seconds", seconds, "--rate", "200", "--concurrency", "32"];
    let flood = podtool::start_flood(client, name, to, &options)?;
    eventually(|| {
        ensure!(flood.log()?.contains("begin"), "{name} has not begun");
        Ok(())
    })?;
    Ok(flood)
}

fn outcome(flood: &Process) -> Result<Flood> {
    eventually(|| {
        let log = flood.log()?;
        ensure!(log.contains('}'), "{} has not ended", flood.name());
        Flood::parse(&log)
    })
}

fn send_signal(process: ProcessId, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(process.pid)?);
    kill(pid, signal).with_context(|| format!("sending {signal} to {pid}"))
}

/// The fields of a `/proc/…/status` file.
fn status(path: &Path) -> Result<impl Fn(&str) -> String + use<>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(move |field: &str| {
        let line = text.lines().find(|line| line.starts_with(field));
        let words = line.unwrap_or_default().split_whitespace().skip(1);
        words.collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn the_worker_has_no_privilege_and_the_broker_what_it_needs() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        // What is true of it before traffic must be true while it carries some.
        echo(&client, &at(&server, 80))?;
        let worker = s.mesh.ztunnel("a").worker()?;
        let tasks = fs::read_dir(format!("/proc/{}/task", worker.pid))?;
        let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
        ensure!(tasks.len() > 1, "threads carry the traffic");
        for task in tasks {
            let field = status(&task.path().join("status"))?;
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                ensure!(
                    u64::from_str_radix(&field(set), 16)? == 0,
                    "the worker has {set} {}",
                    field(set)
                );
            }
            let nobody = "65532 65532 65532 65532";
            ensure!(field("Uid:") == nobody && field("Gid:") == nobody);
            ensure!(field("Groups:").is_empty());
            ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2");
        }
        // Such a user can open none of the pinned maps, programs and links.
        let mut pins = vec![s.mesh.ztunnel("a").pins()];
        let mut seen = 0;
        while let Some(path) = pins.pop() {
            let metadata = fs::metadata(&path)?;
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    pins.push(entry?.path());
                }
            } else {
                seen += 1;
                let mode = metadata.permissions().mode();
                ensure!(mode & 0o077 == 0, "{}: {mode:o}", path.display());
            }
        }
        ensure!(seen > 10, "only {seen} pins");

        let broker = s.mesh.ztunnel_mut("a").broker().pid();
        let field = status(Path::new(&format!("/proc/{broker}/status")))?;
        let effective = u64::from_str_radix(&field("CapEff"), 16)?;
        // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF of linux/capability.h.
        for capability in [12, 21, 39] {
            ensure!(effective & (1 << capability) != 0, "{capability}");
        }
        Ok(())
    });
}

#[test]
fn a_killed_worker_is_replaced_and_refuses_nobody() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let to = at(&server, 80);
        eventually(|| echo(&client, &to))?;
        let flood = start_flood(&client, "flood", &to, "8")?;
        for node in ["a", "b"] {
            let ztunnel = s.mesh.ztunnel_mut(node);
            let begin = Instant::now();
            let killed = ztunnel.kill_worker()?;
            ztunnel.wait_for_successor(killed)?;
            let took = begin.elapsed();
            // Without the pause for those that die again and again.
            ensure!(took < Duration::from_secs(5), "{node}: {took:?}");
            // And it serves.
            eventually(|| echo(&client, &to))?;
        }
        let report = outcome(&flood)?;
        ensure!(report.not_connected() == 0, "{report:?}");
        // Only what was in flight when the workers died may be lost.
        ensure!(
            report.attempted > 200 && report.ok * 100 >= report.attempted * 90,
            "{report:?}"
        );
        Ok(())
    });
}

#[test]
fn a_worker_that_dies_again_and_again_is_replaced_with_patience() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let to = at(&server, 80);
        eventually(|| echo(&client, &to))?;
        let ztunnel = s.mesh.ztunnel_mut("a");
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            let begin = Instant::now();
            let killed = ztunnel.kill_worker()?;
            ztunnel.wait_for_successor(killed)?;
            last = begin.elapsed();
        }
        ensure!(
            last > Duration::from_millis(300),
            "the fifth was replaced after {last:?} already"
        );
        // Whoever connects meanwhile waits.
        let killed = ztunnel.kill_worker()?;
        let mut waiting = Connection::open(&client, &to)?;
        ensure!(waiting.exchange("hello")? == "hello");
        ztunnel.wait_for_successor(killed)?;
        ztunnel.wait_until_ready()
    });
}

#[test]
fn a_worker_that_hangs_does_not_hang_its_broker() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let to = at(&server, 80);
        eventually(|| echo(&client, &to))?;
        let worker = s.mesh.ztunnel("a").worker()?;
        send_signal(worker, Signal::SIGSTOP)?;

        let joins = s.enrolled_pod("a", "shop", "joins")?;
        s.mesh
            .apply_pod(&client, &[("istio.io/dataplane-mode", "none")])?;
        s.mesh.wait_until_released(&client)?;
        // The kernel knows: one is captured, and waits; the other goes its own way.
        let mut waiting = Connection::open(&joins, &to)?;
        ensure!(waiting.local.starts_with("127.0.0.1:"), "{}", waiting.local);
        let own = echo(&client, &to)?;
        ensure!(own.starts_with(&client.v4().to_string()), "{own}");

        send_signal(worker, Signal::SIGCONT)?;
        ensure!(waiting.exchange("hello")? == "hello");
        echo(&joins, &to)?;
        ensure!(s.mesh.ztunnel("a").worker()? == worker);
        Ok(())
    });
}

#[test]
fn a_broker_that_is_stopped_leaves_nothing() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let to = at(&server, 80);
        eventually(|| echo(&client, &to))?;
        let workers = ["a", "b"].map(|node| s.mesh.ztunnel(node).worker());
        for node in ["a", "b"] {
            // Checks the exit status and the pins.
            s.mesh.ztunnel_mut(node).stop(PATIENCE)?;
        }
        for worker in workers {
            ensure!(!worker?.is_alive(), "a worker outlived its broker");
        }
        // Captured by what is left, it would have nowhere to go; and no other would be seen.
        let own = echo(&client, &to)?;
        ensure!(own.starts_with(&client.v4().to_string()), "{own}");
        for pod in [&client, &server] {
            for port in [15001, 15006, 15008] {
                ensure!(!pod.netns.has_listener(port)?, "{port} still listens");
            }
        }
        // And it can come back.
        for node in ["a", "b"] {
            s.mesh.ztunnel_mut(node).restart()?;
        }
        s.mesh.wait_until_enrolled(&client)?;
        s.mesh.wait_until_enrolled(&server)?;
        let own = eventually(|| echo(&client, &to))?;
        ensure!(own.starts_with("127.0.0.1:"), "{own}");
        Ok(())
    });
}

/// The links of each generation, by their names.
fn links(pins: &Path) -> Result<Vec<BTreeSet<String>>> {
    let names = |path: PathBuf| -> Result<BTreeSet<String>> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let mut generations = Vec::new();
    for version in fs::read_dir(pins)? {
        let all = version?.path().join("links");
        for generation in names(all.clone())? {
            generations.push(names(all.join(generation))?);
        }
    }
    Ok(generations)
}

/// STRICT on both sides makes every connection that gets around the ztunnel visible: into the
/// client's node it would succeed, out of it the server's node would log that it has no identity.
#[test]
fn a_killed_broker_lets_nothing_through_until_it_is_back() {
    scenario(|s| {
        let Pods {
            client,
            server,
            stranger,
        } = pods(s)?;
        let strict = objects::peer_authentication("shop", "STRICT");
        s.mesh.config().apply("strict", &strict)?;
        let _server = podtool::serve(&server, "server", Serve::Echo, "[::]:80")?;
        let _client = podtool::serve(&client, "client", Serve::Echo, "[::]:80")?;
        let world = podtool::serve(s.topology.wire(), "world", Serve::Echo, "[::]:80")?;
        let (out, into) = (at(&server, 80), at(&client, 80));
        let outside = SocketAddr::from((WIRE_V4, 80)).to_string();
        eventually(|| echo(&client, &out))?;
        eventually(|| echo(&client, &outside))?;
        eventually(|| {
            ensure!(echo(&stranger, &into).is_err(), "STRICT has no effect yet");
            Ok(())
        })?;
        let before = links(&s.mesh.ztunnel("a").pins())?;
        ensure!(before.len() == 1, "{before:?}");

        let flood_in = start_flood(&stranger, "flood-in", &into, "20")?;
        let flood_out = start_flood(&client, "flood-out", &out, "20")?;
        let worker = s.mesh.ztunnel("a").worker()?;
        s.mesh.ztunnel("a").kill_broker()?;
        eventually(|| {
            ensure!(!worker.is_alive(), "the worker outlives its broker");
            Ok(())
        })?;
        // It closes what it holds one after the other: its links to the worker may go before its
        // listeners.
        s.mesh.ztunnel_mut("a").broker().wait(PATIENCE)?;
        let service = "10.96.0.99:80".to_owned();
        for to in [&out, &outside, &service] {
            // The kernel closes listeners some time after their last process has ended. Until then
            // a connection is taken, and nobody serves it. What the mesh knows nothing of is let out
            // for a while yet.
            eventually(|| {
                let refused = Connection::open(&client, to);
                ensure!(
                    refused
                        .as_ref()
                        .is_err_and(|error| error.to_string().contains("refused")),
                    "{to}: {refused:?}"
                );
                Ok(())
            })?;
        }
        ensure!(echo(&stranger, &into).is_err());
        let arrived = world.log()?.matches("accepted").count();

        s.mesh.ztunnel_mut("a").restart()?;
        s.mesh.wait_until_enrolled(&client)?;
        eventually(|| echo(&client, &out))?;
        ensure!(
            world.log()?.matches("accepted").count() == arrived,
            "something got out"
        );
        eventually(|| {
            let after = links(&s.mesh.ztunnel("a").pins())?;
            ensure!(after == before, "{after:?} instead of {before:?}");
            Ok(())
        })?;
        let came_in = outcome(&flood_in)?;
        ensure!(
            came_in.attempted > 1000 && came_in.ok == 0,
            "plaintext came in: {came_in:?}"
        );
        let went_out = outcome(&flood_out)?;
        ensure!(
            went_out.ok > 100 && went_out.ok < went_out.attempted,
            "{went_out:?}"
        );
        for line in s.mesh.ztunnel("b").access_log()? {
            // A tunnel that broke has its own port here.
            let plaintext = line.get("dst.addr") == out && line.get("src.identity").is_empty();
            ensure!(
                !(plaintext && line.get("src.addr").starts_with(&client.v4().to_string())),
                "plaintext got out: {}",
                line.text()
            );
        }
        Ok(())
    });
}

#[test]
fn cleanup_frees_the_pods_of_a_killed_broker() {
    scenario(|s| {
        let Pods {
            client, stranger, ..
        } = pods(s)?;
        let _client = podtool::serve(&client, "client", Serve::Echo, "[::]:80")?;
        let _world = podtool::serve(s.topology.wire(), "world", Serve::Echo, "[::]:80")?;
        let outside = SocketAddr::from((WIRE_V4, 80)).to_string();
        let worker = s.mesh.ztunnel("a").worker()?;
        s.mesh.ztunnel("a").kill_broker()?;
        eventually(|| {
            ensure!(!worker.is_alive(), "the worker outlives its broker");
            Ok(())
        })?;
        // It closes what it holds one after the other: its links to the worker may go before its
        // listeners.
        s.mesh.ztunnel_mut("a").broker().wait(PATIENCE)?;
        ensure!(echo(&stranger, &at(&client, 80)).is_err());
        // What the mesh knows nothing of is let out for a while yet.
        eventually(|| {
            ensure!(echo(&client, &outside).is_err(), "{outside} is reached");
            Ok(())
        })?;

        s.mesh.ztunnel("a").clean_up()?;
        ensure!(!s.mesh.ztunnel("a").pins().exists());
        // The kernel detaches programs some time after their last pin is gone.
        let own = eventually(|| echo(&client, &outside))?;
        ensure!(own.starts_with(&client.v4().to_string()), "{own}");
        echo(&stranger, &at(&client, 80))?;
        // Nothing to do is fine.
        s.mesh.ztunnel("a").clean_up()
    });
}

#[test]
fn what_is_wrong_with_the_flags_is_said_in_one_line() {
    scenario(|s| {
        let Pods { client, server, .. } = pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let run = s.topology.run();
        let scratch = run.dir().join("scratch").display().to_string();
        fs::create_dir(&scratch)?;
        let nowhere = format!("{scratch}/nowhere");
        let instance = format!("{}-spare", run.id());
        let ztunnel = s.mesh.ztunnel("a");
        let own_instance = ztunnel.pins();
        let own_instance = own_instance.file_name().context("pins have a name")?;
        let own_instance = own_instance.to_string_lossy().into_owned();
        for (flag, value, wanted) in [
            (
                "--run-dir",
                ztunnel.run_dir().display().to_string(),
                "another broker runs with --run-dir",
            ),
            (
                "--instance",
                own_instance,
                "another ztunnel runs as this instance",
            ),
            ("--bpffs", scratch.clone(), "is not a BPF file system"),
            ("--pods-cgroup", nowhere.clone(), "the cgroup of the pods"),
            ("--pods-cgroup", scratch.clone(), "the cgroup of the pods"),
            ("--instance", "a/b".to_owned(), "instance name"),
            ("--config-dir", nowhere.clone(), "nowhere"),
            ("--token-file", nowhere.clone(), "(--token-file)"),
            ("--control-root", nowhere.clone(), "(--control-root)"),
            ("--state-dir", "/proc/nowhere".to_owned(), "(--state-dir)"),
            ("--log", "in:fo=what".to_owned(), "in:fo=what"),
            ("--trust-domain", "no domain".to_owned(), "--trust-domain"),
            ("--control", "nonsense".to_owned(), "--control"),
        ] {
            let spare_dir = format!("{scratch}/run");
            let mut changes = vec![(flag, Some(value.as_str()))];
            for (other, value) in [("--run-dir", &spare_dir), ("--instance", &instance)] {
                if other != flag {
                    changes.push((other, Some(value)));
                }
            }
            let finished = ztunnel
                .attempt(&changes)
                .with_context(|| format!("{flag} {value}"))?;
            let errors: Vec<_> = finished
                .stderr
                .lines()
                .filter(|line| line.starts_with("ztunnel: ") || line.starts_with("error: "))
                .collect();
            ensure!(
                finished.status.code().is_some_and(|code| code != 0)
                    && errors.len() == 1
                    && errors[0].contains(wanted)
                    && errors[0].matches("os error").count() <= 1,
                "{flag} {value}: {finished:?}"
            );
            let pins = Path::new(BPFFS).join(&instance);
            ensure!(!pins.exists(), "{flag} {value} left {}", pins.display());
        }
        for flag in ["--node", "--config-dir", "--control", "--pods-cgroup"] {
            let finished = ztunnel.attempt(&[(flag, None)])?;
            let first = finished.stderr.lines().next().unwrap_or_default();
            ensure!(
                finished.status.code() == Some(2) && finished.stderr.contains(flag),
                "without {flag}: {first}"
            );
        }
        // Nor are the pods of a broker that runs freed by mistake.
        let refused = ztunnel.clean_up();
        ensure!(
            refused
                .as_ref()
                .is_err_and(|error| error.to_string().contains("another ztunnel runs")),
            "{refused:?}"
        );
        // The one that runs has taken no harm.
        eventually(|| echo(&client, &at(&server, 80))).map(drop)
    });
}
