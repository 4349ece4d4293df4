//! The ztunnel's sockets are counted by purpose and state.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::scenario_with;

use super::{GREET, Stage, options};

/// Of a server that says nothing and ends at once, for its part.
const HANGUP: u16 = 84;

impl Stage<'_> {
    /// So many sockets of a node are in these states.
    fn sockets(&self, node: &str, wanted: &[(&str, &str, f64)]) -> Result<()> {
        for &(purpose, state, count) in wanted {
            let labels = [("purpose", purpose), ("state", state)];
            self.counts(node, "sluice_sockets", &labels, count)?;
        }
        Ok(())
    }
}

#[test]
fn sockets_are_counted_by_purpose_and_state() {
    scenario_with(&["a", "b"], options(&[]), |s| {
        let stage = Stage::build(s)?;
        let address = format!("[::]:{HANGUP}");
        let _server = podtool::serve(&stage.catalog, "hangup", Serve::Hangup, &address)?;
        // Each of two threads has listeners for what the pod dials, of both families; and for the rest, of
        // both in one.
        let listeners = [
            ("outbound", "LISTEN", 4.0),
            ("plaintext", "LISTEN", 2.0),
            ("tunnel-in", "LISTEN", 2.0),
        ];
        stage.sockets("a", &listeners)?;
        stage.sockets("b", &listeners)?;

        // Two connections; one of them is closed by its server, and not by its client.
        let mut whole = Connection::open(&stage.web, &stage.to(GREET).to_string())?;
        whole.line()?;
        let mut half = Connection::open_with(
            &stage.web,
            &stage.to(HANGUP).to_string(),
            &["--eof", "hold"],
        )?;
        ensure!(half.event(PATIENCE)? == Some(Event::Eof));
        stage.sockets(
            "a",
            &[("outbound", "ESTAB", 1.0), ("outbound", "FIN-WAIT-2", 1.0)],
        )?;
        stage.sockets(
            "b",
            &[("dialled", "ESTAB", 1.0), ("dialled", "CLOSE-WAIT", 1.0)],
        )?;
        // In one tunnel, or each thread's own.
        let tunnels = stage.s.mesh.ztunnel("a").metric("sluice_tunnels", &[])?;
        ensure!(tunnels >= 1.0, "no tunnel");
        stage.sockets("a", &[("tunnel-out", "ESTAB", tunnels)])?;
        stage.sockets("b", &[("tunnel-in", "ESTAB", tunnels)])?;

        half.finish_sending();
        whole.finish_sending();
        ensure!(whole.event(PATIENCE)? == Some(Event::Eof));
        for state in ["ESTAB", "FIN-WAIT-2", "CLOSE-WAIT"] {
            stage.sockets("a", &[("outbound", state, 0.0)])?;
            stage.sockets("b", &[("dialled", state, 0.0)])?;
        }

        // A connection without a tunnel, from outside the mesh.
        let to = SocketAddr::new(stage.catalog.v6().into(), GREET).to_string();
        let plain = Connection::open(&stage.old, &to)?;
        plain.line()?;
        stage.sockets(
            "b",
            &[("plaintext", "ESTAB", 1.0), ("dialled", "ESTAB", 1.0)],
        )
    });
}
