//! When the worker or the broker is gone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::Connection;
use sluice_tests::scenario::scenario_with;

use super::{Held, NOT_WEB, Stage};

#[test]
fn a_killed_worker_disturbs_nothing_and_its_successor_judges() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let vip = stage.vip()?;
        let mut held = stage.straight(&stage.web, vip)?;
        let mut other = stage.straight(&stage.batch, stage.direct())?;
        let killed = stage.ztunnel().kill_worker()?;
        // The kernel needs no worker.
        let mut between = Held::open(&stage.web, vip)?;
        between.is_alive()?;
        stage.s.mesh.ztunnel_mut("a").wait_for_successor(killed)?;
        for held in [&mut held, &mut other, &mut between] {
            held.is_alive()?;
        }
        stage.policy(NOT_WEB)?;
        held.is_cut()?;
        between.is_cut()?;
        other.is_alive()
    });
}

/// What nobody has judged for 10 s is cut, and comes again when somebody does.
#[test]
fn without_a_worker_nothing_goes_straight_for_long() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let held = stage.straight(&stage.web, stage.direct())?;
        // No worker lives long enough to say anything.
        let begin = Instant::now();
        while held.connection.event(Duration::from_millis(1))?.is_none() {
            let _ = stage.ztunnel().kill_worker();
            ensure!(begin.elapsed() < PATIENCE, "it is not cut");
        }
        ensure!(begin.elapsed() > Duration::from_secs(9), "cut too soon");
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        drop(stage.straight(&stage.web, stage.direct())?);
        Ok(())
    });
}

/// Nobody is let go straight on the word of a broker that is gone, and the next one ends what it
/// has not judged.
#[test]
fn a_broker_that_is_gone_vouches_for_nobody() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let held = stage.straight(&stage.web, stage.direct())?;
        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.kill_broker()?;
        ztunnel.broker().wait(PATIENCE)?;
        eventually(|| {
            let greeted = Connection::open(&stage.web, &stage.direct().to_string());
            ensure!(greeted.is_err(), "still let go");
            Ok(())
        })?;
        stage.s.mesh.ztunnel_mut("a").restart()?;
        held.is_cut()?;
        drop(stage.straight(&stage.web, stage.direct())?);
        // One that is stopped takes them along.
        let held = stage.straight(&stage.web, stage.direct())?;
        stage.s.mesh.ztunnel_mut("a").stop(PATIENCE)?;
        held.is_cut()
    });
}
