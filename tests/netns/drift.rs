//! What somebody changes in the kernel behind the mesh's back: it is told, and put right.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::ztunnel::Ztunnel;
use sluice_tests::{Pod, eventually, eventually_within};

/// The time in which drift must be told.
const SOON: Duration = Duration::from_secs(5);

/// A client on node `a`, and a server on node `b`.
struct Stage<'a> {
    s: &'a Scenario,
    client: Pod,
    server: Pod,
}

impl Stage<'_> {
    fn ztunnel(&self) -> &Ztunnel {
        self.s.mesh.ztunnel("a")
    }

    /// Of the client, that it is enrolled.
    fn ledger(&self) -> Result<Value> {
        ledger(self.ztunnel())
    }

    /// The kernel's view of the client: its cookie and what is expected of it.
    fn pod(&self) -> Result<(u64, Value)> {
        let ledger = self.ledger()?;
        let pods = ledger["pods"].as_array().context("no pods")?;
        let own = pods.iter().find(|pod| pod["name"] == "client");
        let cookie = own
            .and_then(|pod| pod["cookie"].as_u64())
            .context("no client")?;
        Ok((
            cookie,
            ledger["expected"]["pods"][cookie.to_string()].clone(),
        ))
    }

    fn map(&self, name: &str) -> Result<PathBuf> {
        let ledger = self.ledger()?;
        let maps = ledger["expected"]["maps"].as_array().context("no maps")?;
        let mut paths = maps.iter().filter_map(|map| map["path"].as_str());
        let path = paths.find(|path| path.ends_with(&format!("/{name}")));
        Ok(path.context("no such map")?.into())
    }

    fn link(&self, program: &str) -> Result<PathBuf> {
        link(self.ztunnel(), program)
    }

    fn netns_link(&self) -> Result<PathBuf> {
        let (_, pod) = self.pod()?;
        Ok(pod["link"].as_str().context("no link")?.into())
    }

    /// The exit status of `trace verify`, and what it tells.
    fn verify(&self) -> Result<(Option<i32>, String)> {
        let finished = self.ztunnel().trace("verify", &[])?;
        Ok((finished.status.code(), finished.stdout + &finished.stderr))
    }

    fn is_clean(&self) -> Result<()> {
        let (status, text) = self.verify()?;
        ensure!(
            status == Some(0) && !text.contains("DRIFT"),
            "{status:?}\n{text}"
        );
        Ok(())
    }

    fn healed(&self, check: &str) -> Result<f64> {
        self.ztunnel()
            .metric("sluice_drift_healed_total", &[("check", check)])
    }

    fn captured(&self) -> Result<f64> {
        self.ztunnel()
            .metric("sluice_kernel_verdicts_total", &[("reason", "captured")])
    }

    /// A connection of the client is captured, and answered.
    fn is_captured(&self) -> Result<()> {
        let before = self.captured()?;
        let to = SocketAddr::from((self.server.v4(), 8080));
        Connection::open(&self.client, &to.to_string())?.line()?;
        let after = self.captured()?;
        ensure!(after == before + 1.0, "not captured: {before}, {after}");
        Ok(())
    }

    /// Breaks something while nobody heals, and expects `verify` to name it; then lets the broker go
    /// on, and expects it to be counted and put right.
    fn breaks(&self, check: &str, words: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let healed = self.healed(check)?;
        {
            let _held = Held::hold(self.ztunnel().broker_pid())?;
            act()?;
            let (status, text) = self.verify()?;
            let line = text.lines().find(|line| {
                line.starts_with("DRIFT") && line.contains(check) && line.contains(words)
            });
            ensure!(status == Some(1), "exit status {status:?}\n{text}");
            line.with_context(|| format!("verify does not say {check}, {words:?}:\n{text}"))?;
            let (well, drifted) = (text.rfind("\nok "), text.find("DRIFT"));
            ensure!(
                well < drifted,
                "what is well stands below what is not:\n{text}"
            );
            let last = text.lines().last().unwrap_or_default();
            ensure!(last.contains(" checks found a drift"), "{text}");
        }
        self.heals(check, healed)
    }

    fn heals(&self, check: &str, healed: f64) -> Result<()> {
        eventually_within(SOON, || {
            let now = self.healed(check)?;
            ensure!(
                now > healed,
                "sluice_drift_healed_total{{{check}}} is still {now}"
            );
            self.is_clean()
        })?;
        let told = format!("check={check}");
        self.ztunnel().wait_for_line(&["healed", &told])?;
        self.is_captured()
    }
}

/// What a broker has written down.
fn ledger(ztunnel: &Ztunnel) -> Result<Value> {
    let path = ztunnel.run_dir().join("ledger.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The pin of the link of a program on the pods' cgroup.
pub(crate) fn link(ztunnel: &Ztunnel, program: &str) -> Result<PathBuf> {
    let ledger = ledger(ztunnel)?;
    let hooks = ledger["expected"]["hooks"].as_array().context("no hooks")?;
    let mut links = hooks.iter().filter_map(|hook| hook["link"].as_str());
    let wanted = format!("{program}-pods");
    let link = links.find(|link| link.ends_with(&wanted));
    Ok(link.context("no such link")?.into())
}

/// A process that is stopped, until this is dropped.
pub(crate) struct Held(Pid);

impl Held {
    pub(crate) fn hold(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn bpftool(arguments: &[&str]) -> Result<()> {
    let output = Command::new("bpftool")
        .args(arguments)
        .output()
        .context("running bpftool")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bpftool {arguments:?}: {said}");
    Ok(())
}

/// Deletes an entry of a pinned map.
fn delete(map: PathBuf, key: &[u8]) -> Result<()> {
    let map = map.display().to_string();
    let key: Vec<String> = key.iter().map(u8::to_string).collect();
    let mut arguments = vec!["map", "delete", "pinned", &map, "key"];
    arguments.extend(key.iter().map(String::as_str));
    bpftool(&arguments)
}

pub(crate) fn detach(link: PathBuf) -> Result<()> {
    bpftool(&["link", "detach", "pinned", &link.display().to_string()])
}

fn on_stage(test: impl FnOnce(&Stage<'_>) -> Result<()>) {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:8080")?;
        s.mesh.settle()?;
        let stage = Stage { s, client, server };
        eventually(|| stage.is_clean())?;
        stage.is_captured()?;
        test(&stage)
    });
}

#[test]
fn detached_and_replaced_programs_are_told_and_put_right() {
    on_stage(|stage| {
        stage.breaks("hook", "sluice_connect4", || {
            detach(stage.link("sluice_connect4")?)
        })?;
        stage.breaks("hook", "pin is gone", || {
            Ok(fs::remove_file(stage.link("sluice_connect4")?)?)
        })?;
        // Another program in its place.
        stage.breaks("hook", "in place of ours", || {
            Ok(fs::rename(
                stage.link("sluice_sendmsg4")?,
                stage.link("sluice_connect4")?,
            )?)
        })?;
        stage.breaks("netns", "detached", || detach(stage.netns_link()?))?;
        stage.breaks("netns", "pin is gone", || {
            Ok(fs::remove_file(stage.netns_link()?)?)
        })?;
        // What the next broker and the next worker will look for.
        stage.breaks("map", "  PODS: not pinned", || {
            Ok(fs::remove_file(stage.map("PODS")?)?)
        })?;
        stage.breaks("map", "  ORIG_DST: not pinned", || {
            Ok(fs::remove_file(stage.map("ORIG_DST")?)?)
        })?;
        Ok(())
    });
}

#[test]
fn deleted_entries_and_closed_listeners_are_told_and_put_right() {
    on_stage(|stage| {
        let (cookie, pod) = stage.pod()?;
        stage.breaks("pod", "missing", || {
            delete(stage.map("PODS")?, &cookie.to_ne_bytes())
        })?;
        let ip = stage.client.v4().to_ipv6_mapped().octets();
        stage.breaks("address", "missing", || delete(stage.map("POD_IPS")?, &ip))?;
        // An entry of nobody's.
        stage.breaks("pod", "no pod of this node", || {
            let map = stage.map("PODS")?.display().to_string();
            let mut update = vec!["map", "update", "pinned", &map, "key"];
            update.extend(["1"; 8]);
            update.push("value");
            update.extend(["0"; 8]);
            bpftool(&update)
        })?;
        stage.breaks("listener", "port 15008", || {
            // One for each thread; a round may miss one of them.
            eventually(|| {
                let kill = ["-K", "-ltn", "sport = :15008"];
                let client = &stage.client;
                client.run(PATIENCE, "ss", kill)?.success()?;
                ensure!(!client.netns.has_listener(15008)?, "it listens still");
                Ok(())
            })
        })?;
        // Nobody can read which socket is in a slot, but the broker finds it empty.
        let healed = stage.healed("slot")?;
        let slot = pod["slot"].as_u64().context("no slot")?;
        delete(stage.map("LISTENERS")?, &u32::try_from(slot)?.to_ne_bytes())?;
        stage.heals("slot", healed)
    });
}

#[test]
fn what_cannot_be_verified_is_no_drift() {
    on_stage(|stage| {
        let nowhere = ["--run-dir", "/nonexistent"];
        let program = stage.s.topology.run().binaries().sluicectl()?;
        let output = Command::new(program)
            .args(["trace", "verify"])
            .args(nowhere)
            .output()?;
        ensure!(output.status.code() == Some(2), "{:?}", output.status);
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("does a ztunnel run here"), "{said}");

        let dump = stage.ztunnel().trace("maps", &[])?.success()?;
        for words in ["PODS (id ", "shop/client  slot ", "outbound ", "captured  "] {
            ensure!(
                dump.contains(words),
                "trace maps does not say {words:?}:\n{dump}"
            );
        }
        let sockets = stage
            .ztunnel()
            .trace("sockets", &["-o", "json"])?
            .success()?;
        let sockets: Value = serde_json::from_str(&sockets)?;
        let has = |purpose: &str, state: &str| {
            let all = sockets.as_array().map(Vec::as_slice).unwrap_or_default();
            all.iter().any(|socket| {
                socket["pod"] == "shop/client"
                    && socket["purpose"] == purpose
                    && socket["state"] == state
            })
        };
        for (purpose, state) in [
            ("outbound", "LISTEN"),
            ("plaintext", "LISTEN"),
            ("tunnel-out", "ESTAB"),
        ] {
            ensure!(
                has(purpose, state),
                "no {purpose} in state {state}: {sockets:#}"
            );
        }
        Ok(())
    });
}
