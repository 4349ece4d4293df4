//! Requests between the nodes succeed, and the servers see the clients themselves.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::eventually;

use super::claims::Claims;
use super::servers::{HTTP_PORT, REDIS_PORT, get};
use super::shop::{CART_VIP, CATALOG_VIP, MAIL_PORT, MAIL_VIP, Shop};

pub(crate) fn prove(shop: &Shop, claims: &mut Claims) {
    claims.observe(
        "A request from node a to a service on node b is answered",
        || {
            // The first one may come before the services are known on this node.
            let answer = eventually(|| get(&shop.web, &format!("http://{CATALOG_VIP}/"), "first"))?;
            Ok(format!(
                "web GET http://{CATALOG_VIP}/ → {} in {} ms",
                answer.status,
                answer.took.as_millis()
            ))
        },
    );
    for ip in shop.catalog.ips() {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        claims.observe(
            &format!("The server sees the client's own address and port ({family})"),
            || client_is_seen(shop, ip),
        );
    }
    claims.observe("Redis works through its service", || {
        let port = REDIS_PORT.to_string();
        let redis = |words: &[&str]| {
            let arguments = ["-h", CART_VIP, "-p", &port]
                .into_iter()
                .chain(words.iter().copied());
            shop.web
                .run(Duration::from_secs(15), "redis-cli", arguments)?
                .success()
        };
        redis(&["SET", "basket", "three apples"])?;
        let value = redis(&["GET", "basket"])?;
        ensure!(value.trim() == "three apples", "GET basket → {value}");
        Ok(format!("web SET basket, GET basket → {:?}", value.trim()))
    });
    claims.observe(
        "A protocol in which the server speaks first works (SMTP)",
        || send_mail(shop),
    );
}

fn client_is_seen(shop: &Shop, server: IpAddr) -> Result<String> {
    let url = format!("http://{}/", std::net::SocketAddr::new(server, HTTP_PORT));
    let answer = get(&shop.web, &url, "address")?;
    let seen = answer.client_as_seen()?;
    ensure!(
        shop.web.ips().contains(&seen.ip()) && seen.is_ipv4() == server.is_ipv4(),
        "the server sees {seen}, web is {:?}",
        shop.web.ips()
    );
    ensure!(
        seen.port() == answer.local_port,
        "the server sees {seen}, web's socket has port {}",
        answer.local_port
    );
    // Without the mesh that would be no surprise.
    let source = seen.to_string();
    let carried = [("direction", "outbound"), ("src.addr", source.as_str())];
    shop.mesh.ztunnel("a").wait_for_access(&carried)?;
    Ok(format!(
        "catalog sees {seen}; web is {}, its socket has that port; the log of a has it",
        seen.ip()
    ))
}

fn send_mail(shop: &Shop) -> Result<String> {
    const SUBJECT: &str = "order 4711";
    let letter = shop.web.run.dir().join("letter");
    std::fs::write(
        &letter,
        format!("Subject: {SUBJECT}\r\n\r\nThree apples, please.\r\n"),
    )?;
    let url = format!("smtp://{MAIL_VIP}:{MAIL_PORT}");
    let letter = letter.display().to_string();
    let from_to = [
        "--mail-from",
        "web@shop.example",
        "--mail-rcpt",
        "orders@shop.example",
    ];
    let finished = shop.web.run(
        Duration::from_secs(20),
        "curl",
        [
            "--silent",
            "--show-error",
            "--verbose",
            "--max-time",
            "15",
            "--upload-file",
            &letter,
        ]
        .into_iter()
        .chain(from_to)
        .chain([url.as_str()]),
    )?;
    // curl marks what the server says in its verbose output.
    let greeting = finished
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("< 220"));
    let greeting = greeting.unwrap_or_default().trim().to_owned();
    let complaint = finished.stderr.lines().last().unwrap_or_default();
    ensure!(finished.status.success(), "{complaint}");
    ensure!(!greeting.is_empty(), "no greeting from the server");
    eventually(|| {
        ensure!(
            shop.mail_server.log()?.contains(SUBJECT),
            "the server has not got the mail"
        );
        Ok(())
    })?;
    Ok(format!(
        "greeting \"220 {greeting}\", then the server got \"{SUBJECT}\""
    ))
}
