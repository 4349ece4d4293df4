//! Envoy as an oracle for L4 authorization: for generated policy sets, its network RBAC filter and
//! our engine must reach the same verdict about the same connections.
//!
//! Envoy gets every policy set as filters of a filter chain of its own, in its own terms
//! ([`translate`]). A connection names the chain and the addresses it pretends to come from and go
//! to in a PROXY header, so that they need not exist on this machine; who it is, it proves by mutual
//! TLS, or it does not. If it is let through, a byte comes back.
//!
//! Everything follows from a seed: `SLUICE_SEED=7 cargo test -p sluice-tests --test rbac`.

mod client;
mod credentials;
mod envoy;
mod generate;
mod translate;

use std::{env, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use sluice_model::authz::{AllowReason, Applicable, Connection, Decision, DenyReason};
use tokio::task::JoinSet;

use client::Client;
use credentials::Authority;
use envoy::{Addresses, Envoy};
use generate::{Attempt, Case};

/// Replaces [`SEED`].
const SEED_VARIABLE: &str = "SLUICE_SEED";
const SEED: u64 = 1;

const SETS: usize = 600;
/// For each of the sets.
const ATTEMPTS: usize = 12;
/// How many connections there are at a time.
const AT_ONCE: usize = 32;
/// How many disagreements are shown in full.
const SHOWN: usize = 3;

#[test]
fn envoy_reaches_the_same_verdicts() -> Result<()> {
    let seed = match env::var(SEED_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SEED_VARIABLE}={text}: give a number"))?,
        Err(_) => SEED,
    };
    println!("{SEED_VARIABLE}={seed}");
    let cases = generate::cases(seed, SETS, ATTEMPTS);
    let decisions: Vec<Vec<Decision>> = cases.iter().map(decide).collect();
    every_way_is_taken(decisions.iter().flatten())?;

    let authority = Authority::new()?;
    let mut envoy = Envoy::start(&cases, &authority)?;
    let mut compare = || {
        let verdicts = ask(&envoy.addresses()?, &cases, &authority)?;
        // A connection may also end because something is broken; none did.
        let refused = verdicts.iter().flatten().filter(|allowed| !*allowed);
        ensure!(
            envoy.refused()? == refused.count(),
            "connections ended that the RBAC filters did not refuse"
        );
        agree(&cases, &decisions, &verdicts)
    };
    let compared = compare();
    compared.with_context(|| format!("{SEED_VARIABLE}={seed}\nEnvoy's log:\n{}", envoy.log()))
}

/// What our engine says of the connections of a case.
fn decide(case: &Case) -> Vec<Decision> {
    let sets = case.scopes.each_ref().map(|policies| {
        let set = policies.iter().cloned().collect();
        (!policies.is_empty()).then(|| Arc::new(set))
    });
    let policies = Applicable::new(sets);
    let decide = |attempt: &Attempt| {
        let connection = Connection {
            source_identity: attempt.identity.as_ref(),
            source_ip: attempt.source,
            destination: attempt.destination,
            equivalent: attempt.equivalent(),
        };
        policies.judge(&connection).decision
    };
    case.attempts.iter().map(decide).collect()
}

/// Fails unless each way to a verdict is taken by a good part of the connections: what is never
/// decided is not compared.
fn every_way_is_taken<'a>(decisions: impl Iterator<Item = &'a Decision>) -> Result<()> {
    let (mut ways, mut all) = ([0; 4], 0);
    for decision in decisions {
        all += 1;
        ways[match decision {
            Decision::Deny(DenyReason::Rule(_)) => 0,
            Decision::Deny(DenyReason::NoAllowMatched) => 1,
            Decision::Allow(AllowReason::Rule(_)) => 2,
            Decision::Allow(AllowReason::NoAllowPolicy) => 3,
        }] += 1;
    }
    println!("{all} connections: denied, not allowed, allowed, no ALLOW policy: {ways:?}");
    ensure!(
        ways.iter().all(|way| way * 20 >= all),
        "what is generated does not exercise the engine"
    );
    Ok(())
}

/// What Envoy makes of the connections of each case: whether it lets them through.
fn ask(addresses: &Addresses, cases: &[Case], authority: &Authority) -> Result<Vec<Vec<bool>>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut verdicts: Vec<_> = cases
        .iter()
        .map(|c| vec![false; c.attempts.len()])
        .collect();
    let mut client = Client::new(addresses, authority);
    runtime.block_on(async {
        let mut running = JoinSet::new();
        let places = cases.iter().enumerate().flat_map(|(set, case)| {
            let attempts = case.attempts.iter().enumerate();
            attempts.map(move |(i, attempt)| (set, i, attempt))
        });
        for (set, i, attempt) in places {
            if running.len() == AT_ONCE
                && let Some(done) = running.join_next().await
            {
                let (set, i, allowed): (usize, usize, Result<bool>) = done?;
                verdicts[set][i] = allowed?;
            }
            let exchange = client.exchange(set, attempt)?;
            let shown = format!("set {set}: {attempt}");
            running.spawn(async move { (set, i, exchange.await.context(shown)) });
        }
        while let Some(done) = running.join_next().await {
            let (set, i, allowed) = done?;
            verdicts[set][i] = allowed?;
        }
        Ok(verdicts)
    })
}

fn agree(cases: &[Case], decisions: &[Vec<Decision>], verdicts: &[Vec<bool>]) -> Result<()> {
    let mut disagreements = 0;
    for (set, case) in cases.iter().enumerate() {
        for (i, attempt) in case.attempts.iter().enumerate() {
            let (ours, envoys) = (&decisions[set][i], verdicts[set][i]);
            if ours.is_allowed() == envoys {
                continue;
            }
            disagreements += 1;
            if disagreements <= SHOWN {
                println!(
                    "set {set}: {attempt}\n  our engine: {ours}\n  Envoy: {}\n{:#?}",
                    if envoys { "allowed" } else { "denied" },
                    case.scopes
                );
            }
        }
    }
    if disagreements > 0 {
        bail!("{disagreements} connections were judged otherwise by Envoy");
    }
    Ok(())
}
