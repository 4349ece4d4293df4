//! Who may call whom.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::place::Place;
use sluice_tests::{eventually, objects};

use super::claims::Claims;
use super::servers::{CurlError, REDIS_PORT, curl, get};
use super::shop::{CATALOG_VIP, SHOP, Shop};

pub(crate) fn prove(shop: &mut Shop, claims: &mut Claims) -> Result<()> {
    let url = format!("http://{CATALOG_VIP}/");
    get(&shop.intruder, &url, "before").context("intruder, before there is a policy")?;
    let principal = shop.web.spiffe_id().replace("spiffe://", "");
    let policy = objects::allow_principals(SHOP, "catalog", &[&principal]);
    shop.mesh.config().apply("policy", &policy)?;
    claims.observe(
        "A principal that the policy does not name is cut off",
        || {
            let error = eventually(|| refused(&shop.intruder, &url))?;
            let intruder = shop.intruder.spiffe_id();
            let denied = [("direction", "inbound"), ("src.identity", &*intruder)];
            let line = eventually(|| {
                let mut log = shop.mesh.ztunnel("b").access_log()?;
                log.retain(|line| line.has(&denied) && !line.get("error").is_empty());
                log.pop().context("node b's access log does not say why")
            })?;
            Ok(format!(
                "intruder: curl exit {}; log of b: \"{}\"",
                error.code,
                line.get("error")
            ))
        },
    );
    claims.observe("The principal that it names is not", || {
        let answer = get(&shop.web, &url, "allowed")?;
        Ok(format!(
            "web GET {url} → {}, under the same policy",
            answer.status
        ))
    });
    shop.mesh.config().delete("policy")?;
    eventually(|| get(&shop.intruder, &url, "after")).context("without the policy")?;

    let strict = objects::peer_authentication(SHOP, "STRICT");
    shop.mesh.config().apply("peer-authentication", &strict)?;
    claims.observe("STRICT refuses a plaintext client", || {
        let error = eventually(|| match ping(&shop.legacy_web, shop)? {
            Ok(answer) => bail!("the plaintext client is still answered: {answer}"),
            Err(error) => Ok(error),
        })?;
        let meshed = ping(&shop.web, shop)?;
        ensure!(
            meshed.as_deref() == Ok("PONG"),
            "the client in the mesh got {meshed:?}"
        );
        Ok(format!(
            "legacy/web PING → \"{error}\"; shop/web PING → PONG"
        ))
    });
    let permissive = objects::peer_authentication(SHOP, "PERMISSIVE");
    shop.mesh
        .config()
        .apply("peer-authentication", &permissive)?;
    claims.observe("PERMISSIVE serves it", || {
        let answer = eventually(|| match ping(&shop.legacy_web, shop)? {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("the plaintext client is still refused: {error}"),
        })?;
        Ok(format!("legacy/web PING → {answer}"))
    });
    shop.mesh.config().delete("peer-authentication")
}

/// A request that must be refused or cut off, rather than answered or left hanging.
fn refused(place: &Place, url: &str) -> Result<CurlError> {
    match curl(place, url, "denied")? {
        Ok(answer) => bail!("GET {url} is still answered: {}", answer.status),
        Err(error) if error.is_cut_off() => Ok(error),
        Err(error) => bail!("GET {url}: {} (exit {})", error.message, error.code),
    }
}

/// Asks the shop's Redis directly. The outer error is ours, the inner one what redis-cli said.
fn ping(place: &Place, shop: &Shop) -> Result<std::result::Result<String, String>> {
    let (ip, port) = (shop.cart.v4().to_string(), REDIS_PORT.to_string());
    let arguments = ["-h", &ip, "-p", &port, "PING"];
    let finished = place.run(Duration::from_secs(10), "redis-cli", arguments)?;
    let (said, complained) = (finished.stdout.trim(), finished.stderr.trim());
    Ok(if finished.status.success() && said == "PONG" {
        Ok(said.to_owned())
    } else {
        Err(format!("{said}{complained}"))
    })
}
