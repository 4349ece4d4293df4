//! Bytes are counted, and shown, while their connections live.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::access_log::AccessLine;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::scenario_with;
use sluice_tests::{Pod, eventually, http};

use super::{GREET, OUTSIDE, Stage, options};

/// A connection that lives, and whose bytes are known.
struct Talk<'a> {
    stage: &'a Stage<'a>,
    connection: Connection,
    /// The nodes that count it, and as what.
    counted: &'a [(&'a str, &'a str)],
    /// By the client, and by the server.
    said: (u64, u64),
}

impl<'a> Talk<'a> {
    /// A connection to a server that greets. The server ends lines as mail does, the client with less.
    fn begin(
        stage: &'a Stage<'a>,
        client: &Pod,
        to: &str,
        counted: &'a [(&'a str, &'a str)],
    ) -> Result<Self> {
        let connection = Connection::open(client, to)?;
        let greeting = connection.line()?.len() as u64 + 2;
        Ok(Self {
            stage,
            connection,
            counted,
            said: (0, greeting),
        })
    }

    fn exchange(&mut self, line: &str) -> Result<()> {
        let answer = self.connection.exchange(line)?;
        self.said.0 += line.len() as u64 + 1;
        self.said.1 += answer.len() as u64 + 2;
        Ok(())
    }

    /// Metrics have exactly what was said, and so many connections that have ended.
    fn is_counted(&self, closed: f64) -> Result<()> {
        for &(node, reporter) in self.counted {
            let labels = [("reporter", reporter)];
            for (name, wanted) in [("received", self.said.0), ("sent", self.said.1)] {
                let name = format!("istio_tcp_{name}_bytes_total");
                self.stage.counts(node, &name, &labels, wanted as f64)?;
            }
            let name = "istio_tcp_connections_closed_total";
            self.stage.counts(node, name, &labels, closed)?;
        }
        Ok(())
    }

    /// And so has the list of connections, for the client's end or for the server's.
    fn is_shown(&self) -> Result<()> {
        for &(node, reporter) in self.counted {
            let list = match reporter {
                "source" => "outbound",
                _ => "inbound",
            };
            eventually(|| {
                let node = &self.stage.s.mesh.ztunnel(node);
                let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
                let text = http::get_ok(&node.node().netns, admin, "/connections")?;
                let all: Value = serde_json::from_str(&text)?;
                let pods = all.as_object().context("no pods")?.values();
                let mut shown = pods.filter_map(|pod| pod[list].as_array()).flatten();
                let one = shown.next().context("no connection")?;
                ensure!(shown.next().is_none(), "several connections: {all:#}");
                let bytes = (one["bytesSent"].as_u64(), one["bytesReceived"].as_u64());
                let wanted = (Some(self.said.0), Some(self.said.1));
                ensure!(bytes == wanted, "{bytes:?}, and not {wanted:?}: {all:#}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Says something, twice, and ends; returns the line of the first who counts it.
    fn run(mut self, field: &str, to: &str) -> Result<AccessLine> {
        self.exchange("hello")?;
        self.is_counted(0.0)?;
        self.is_shown()?;
        self.exchange(&"and-more-".repeat(1000))?;
        self.is_counted(0.0)?;
        self.is_shown()?;
        self.connection.finish_sending();
        ensure!(self.connection.event(PATIENCE)? == Some(Event::Eof));
        self.is_counted(1.0)?;
        let (sent, received) = (self.said.0.to_string(), self.said.1.to_string());
        let fields = [
            (field, to),
            ("bytes_sent", &sent),
            ("bytes_recv", &received),
        ];
        let ztunnel = self.stage.s.mesh.ztunnel(self.counted[0].0);
        ztunnel.wait_for_access(&fields)
    }
}

#[test]
fn bytes_of_a_tunnel_are_counted_while_connections_live() {
    scenario_with(&["a", "b"], options(&[]), |s| {
        let stage = Stage::build(s)?;
        let to = stage.to(GREET).to_string();
        let counted = [("a", "source"), ("b", "destination")];
        let talk = Talk::begin(&stage, &stage.web, &to, &counted)?;
        talk.run("dst.hbone_addr", &to)?;
        Ok(())
    });
}

#[test]
fn bytes_in_plaintext_are_counted_while_connections_live() {
    scenario_with(&["a", "b"], options(&[]), |s| {
        let stage = Stage::build(s)?;
        // From the mesh to a pod outside of it.
        let port = format!("[::]:{OUTSIDE}");
        let _server = podtool::serve(&stage.old, "old", Serve::Greet, &port)?;
        let outside = SocketAddr::new(stage.old.v4().into(), OUTSIDE).to_string();
        let counted = [("a", "source")];
        let talk = Talk::begin(&stage, &stage.web, &outside, &counted)?;
        talk.run("dst.addr", &outside)?;
        // And from there to a pod of the mesh.
        let to = stage.to(GREET).to_string();
        let counted = [("b", "destination")];
        let talk = Talk::begin(&stage, &stage.old, &to, &counted)?;
        talk.run("dst.addr", &to)?;
        Ok(())
    });
}
