//! Which connections have a line in the access log, by the ztunnel's flags.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice_tests::access_log::AccessLine;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::scenario_with;
use sluice_tests::{Pod, eventually};

use super::{GREET, NOBODY, SUM, Stage, options};

#[test]
fn the_access_log_is_filtered_and_sampled_and_metrics_are_not() {
    let flags = [
        "--access-log-sample",
        "0.25",
        "--access-log-port",
        "80",
        "--access-log-port",
        "83",
    ];
    scenario_with(&["a", "b"], options(&flags), |s| {
        let stage = Stage::build(s)?;
        for _ in 0..8 {
            ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Served);
        }
        podtool::half_close(&stage.web, &stage.to(SUM).to_string(), 10)?;
        // Failures are always told; when they are, all else has been.
        for _ in 0..2 {
            ensure!(attempt(&stage.web, stage.to(NOBODY))? == Outcome::Reset);
        }
        for (node, reporter) in [("a", "source"), ("b", "destination")] {
            let all = [("reporter", reporter)];
            stage.counts(node, "istio_tcp_connections_closed_total", &all, 11.0)?;
            eventually(|| {
                let lines = stage.s.mesh.ztunnel(node).access_log()?;
                let found = [GREET, SUM, NOBODY].map(|port| {
                    let to = stage.to(port).to_string();
                    let of = |line: &&AccessLine| line.get("dst.hbone_addr") == to;
                    lines.iter().filter(of).count()
                });
                ensure!(found == [2, 0, 2], "{found:?} lines of node {node}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// Long enough that what is meant to be short is shorter on a busy machine as well.
const LONG: Duration = Duration::from_secs(2);

/// Connections that last so long, each between its own two ends.
fn hold(ends: &[(&Pod, SocketAddr)]) -> Result<()> {
    let open = ends.iter().map(|(from, to)| {
        let connection = Connection::open(from, &to.to_string())?;
        connection.line()?;
        Ok(connection)
    });
    let mut open = open.collect::<Result<Vec<_>>>()?;
    // By now both ztunnels have them.
    let since = Instant::now();
    eventually(|| {
        let lasted = since.elapsed();
        ensure!(lasted >= LONG, "they have lasted {lasted:?} so far");
        Ok(())
    })?;
    for connection in &mut open {
        connection.exchange("QUIT")?;
        ensure!(connection.event(PATIENCE)? == Some(Event::Eof));
    }
    Ok(())
}

/// Lines about connections through a tunnel to this address: how many are of failures, and of others.
fn lines_to(log: &[AccessLine], to: SocketAddr) -> (usize, usize) {
    let to = to.to_string();
    let lines = log.iter().filter(|line| line.get("dst.hbone_addr") == to);
    let (failed, well): (Vec<_>, Vec<_>) = lines.partition(|line| !line.get("error").is_empty());
    (failed.len(), well.len())
}

fn lasted(line: &AccessLine) -> Result<Duration> {
    let text = line.get("duration");
    let millis = text.strip_suffix("ms").unwrap_or(text).parse()?;
    Ok(Duration::from_millis(millis))
}

#[test]
fn the_access_log_is_of_a_namespace_and_of_what_lasted() {
    let millis = LONG.as_millis().to_string();
    let flags = [
        "--access-log-namespace",
        "shop",
        "--access-log-min-duration",
        &millis,
    ];
    scenario_with(&["a", "b"], options(&flags), |s| {
        s.mesh.apply_namespace("library", Some("ambient"))?;
        let reader = s.enrolled_pod("a", "library", "reader")?;
        let books = s.enrolled_pod("b", "library", "books")?;
        let _books = podtool::serve(&books, "books", Serve::Greet, &format!("[::]:{GREET}"))?;
        let stage = Stage::build(s)?;
        let to_books = |port| SocketAddr::new(books.v4().into(), port);
        let within = (stage.to(GREET), stage.to(NOBODY));
        let without = (to_books(GREET), to_books(NOBODY));

        // Short ones that went well: no line, in whichever namespace.
        for (from, to) in [(&stage.web, within.0), (&reader, without.0)] {
            ensure!(attempt(from, to)? == Outcome::Served);
        }
        // Long ones: a line, where one end at least is in the namespace.
        hold(&[
            (&stage.web, within.0),
            (&stage.web, without.0),
            (&reader, without.0),
        ])?;
        // Short ones that failed: a line, in the namespace. When the last is told, all else has been.
        for (from, to) in [(&reader, without.1), (&stage.web, within.1)] {
            ensure!(attempt(from, to)? == Outcome::Reset);
        }
        for (node, reporter) in [("a", "source"), ("b", "destination")] {
            let all = [("reporter", reporter)];
            stage.counts(node, "istio_tcp_connections_closed_total", &all, 7.0)?;
            let log = eventually(|| {
                let log = stage.s.mesh.ztunnel(node).access_log()?;
                let (failed, _) = lines_to(&log, within.1);
                ensure!(failed == 1, "{failed} failures are told by node {node}");
                Ok(log)
            })?;
            let told = [within.0, without.0, without.1].map(|to| lines_to(&log, to));
            ensure!(told == [(0, 1), (0, 1), (0, 0)], "{told:?} of node {node}");
            for line in &log {
                let namespaces = [line.get("src.namespace"), line.get("dst.namespace")];
                ensure!(namespaces.contains(&"shop"), "{}", line.text());
                let excused = !line.get("error").is_empty();
                ensure!(excused || lasted(line)? >= LONG, "{}", line.text());
            }
        }
        Ok(())
    });
}
