//! What the kernel counts of the TCP connections that carry everybody else's: tunnels.

use anyhow::ensure;
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{Connection, Event};
use sluice_tests::scenario::scenario_with;

use super::{GREET, Stage, options};

/// What goes each way, in lines.
const LINES: usize = 200;
const LINE: usize = 1000;
/// What a tunnel adds to that: TLS, HTTP/2, and what both say to begin with.
const MOST: f64 = 1.3;

#[test]
fn tunnels_are_counted_at_both_ends_when_they_end() {
    scenario_with(&["a", "b"], options(&[]), |s| {
        let stage = Stage::build(s)?;
        let mut talk = Connection::open(&stage.web, &stage.to(GREET).to_string())?;
        talk.line()?;
        let line = "x".repeat(LINE);
        for _ in 0..LINES {
            talk.exchange(&line)?;
        }
        talk.finish_sending();
        ensure!(talk.event(PATIENCE)? == Some(Event::Eof));
        let read = |node: &str, name: &str| {
            let ztunnel = stage.s.mesh.ztunnel(node);
            ztunnel.metric(&format!("sluice_flow_{name}"), &[("path", "tunnel")])
        };
        for node in ["a", "b"] {
            let ended = read(node, "connections_total")?;
            ensure!(ended == 0.0, "{ended} tunnels of {node} have ended already");
        }

        // It is one that goes on without streams, until its worker ends.
        stage.s.mesh.ztunnel("a").quit_worker()?;
        let least = (LINES * LINE) as f64;
        for node in ["a", "b"] {
            // The next worker of `a` has what was counted before it.
            eventually(|| {
                let ended = read(node, "connections_total")?;
                ensure!(ended == 1.0, "{ended} tunnels of {node} have ended");
                for name in ["sent_bytes_total", "received_bytes_total"] {
                    let bytes = read(node, name)?;
                    ensure!(
                        bytes >= least && bytes < least * MOST,
                        "{name} of {node} is {bytes}, for {least} of an application"
                    );
                }
                let (times, sum) = (
                    read(node, "rtt_seconds_count")?,
                    read(node, "rtt_seconds_sum")?,
                );
                ensure!(times == 1.0, "{times} round-trip times of one tunnel");
                ensure!(sum > 0.0 && sum < 1.0, "a round trip took {sum} s");
                Ok(())
            })?;
        }
        Ok(())
    });
}
