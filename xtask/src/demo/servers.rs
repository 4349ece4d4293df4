//! Real servers for pods, and curl, the client.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::eventually;
use sluice_tests::place::Place;
use sluice_tests::process::Process;

pub(crate) const HTTP_PORT: u16 = 8080;
/// The same server, spoken to in HTTP/2 from the first byte.
pub(crate) const HTTP2_PORT: u16 = 8082;
pub(crate) const REDIS_PORT: u16 = 6379;
pub(crate) const SMTP_PORT: u16 = 2525;
/// The request header whose value the HTTP server repeats in its answer.
pub(crate) const MARKER_HEADER: &str = "x-marker";

const LIMIT: Duration = Duration::from_secs(15);

/// nginx, which answers with its own name, whom it sees, and the marker.
pub(crate) fn nginx(place: &Place, name: &str) -> Result<Process> {
    let directory = place.run.dir().join(format!("nginx-{name}"));
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let file = directory.join("nginx.conf");
    // A worker as another user could not open what belongs to the run.
    let text = format!(
        "daemon off;\n\
         user root;\n\
         pid {directory}/nginx.pid;\n\
         error_log stderr;\n\
         worker_processes 1;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         \x20 access_log off;\n\
         \x20 keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {directory}/body;\n\
         \x20 proxy_temp_path {directory}/proxy;\n\
         \x20 fastcgi_temp_path {directory}/fastcgi;\n\
         \x20 uwsgi_temp_path {directory}/uwsgi;\n\
         \x20 scgi_temp_path {directory}/scgi;\n\
         \x20 server {{\n\
         \x20   listen [::]:{HTTP_PORT} ipv6only=off;\n\
         \x20   listen [::]:{HTTP2_PORT} http2 ipv6only=off;\n\
         \x20   default_type text/plain;\n\
         \x20   return 200 \"{name} sees $remote_addr $remote_port, marker $http_x_marker\\n\";\n\
         \x20 }}\n\
         }}\n",
        directory = directory.display(),
    );
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let mut command = place.command("nginx");
    command.arg("-p").arg(&directory).arg("-c").arg(&file);
    listening(
        place,
        HTTP_PORT,
        Process::start(&place.run, &format!("nginx-{name}"), command)?,
    )
}

pub(crate) fn redis(place: &Place) -> Result<Process> {
    let port = REDIS_PORT.to_string();
    let arguments = [
        "--port",
        &port,
        "--bind",
        "*",
        "--protected-mode",
        "no",
        "--save",
        "",
    ];
    listening(
        place,
        REDIS_PORT,
        place.start("redis", "redis-server", arguments)?,
    )
}

/// An SMTP server: the protocol in which the server speaks first. It prints what it gets.
pub(crate) fn smtp(place: &Place) -> Result<Process> {
    let address = format!("0.0.0.0:{SMTP_PORT}");
    // Debian's python, whatever else is first in PATH: that is where the package is.
    let arguments = ["-u", "-m", "aiosmtpd", "--nosetuid", "--listen", &address];
    let handler = ["--class", "aiosmtpd.handlers.Debugging", "stdout"];
    let all = arguments.into_iter().chain(handler);
    listening(
        place,
        SMTP_PORT,
        place.start("smtp", "/usr/bin/python3", all)?,
    )
}

fn listening(place: &Place, port: u16, mut server: Process) -> Result<Process> {
    eventually(|| {
        server.check()?;
        ensure!(
            place.netns.has_listener(port)?,
            "{} does not listen on {port}",
            server.name()
        );
        Ok(())
    })?;
    Ok(server)
}

/// What curl got, and how it saw its own connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) local_port: u16,
    pub(crate) took: Duration,
}

impl Answer {
    /// Whom the server saw: `ADDRESS PORT` in nginx's answer.
    pub(crate) fn client_as_seen(&self) -> Result<SocketAddr> {
        let words: Vec<_> = self.body.split([' ', ',']).collect();
        let at = words
            .iter()
            .position(|word| *word == "sees")
            .context("not our server")?;
        let (ip, port) = (words.get(at + 1), words.get(at + 2));
        let ip = ip.and_then(|ip| ip.parse::<std::net::IpAddr>().ok());
        let port = port.and_then(|port| port.parse().ok());
        let (ip, port) = ip
            .zip(port)
            .with_context(|| format!("no address in {}", self.body))?;
        // A server on an IPv6 socket sees an IPv4 client in the mapped form.
        Ok(SocketAddr::new(ip.to_canonical(), port))
    }
}

/// How curl failed: its exit code and what it said.
#[derive(Debug)]
pub(crate) struct CurlError {
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl CurlError {
    /// Whether the connection was refused or cut off, rather than timed out or answered.
    pub(crate) fn is_cut_off(&self) -> bool {
        // 7: could not connect, 52: empty reply, 56: reset while receiving.
        matches!(self.code, 7 | 52 | 56)
    }
}

/// A request from a pod. The outer error is ours, the inner one the connection's.
pub(crate) fn curl(
    place: &Place,
    url: &str,
    marker: &str,
) -> Result<std::result::Result<Answer, CurlError>> {
    let header = format!("{MARKER_HEADER}: {marker}");
    let begin = Instant::now();
    let finished = place.run(
        LIMIT,
        "curl",
        [
            "--silent",
            "--show-error",
            "--globoff",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "--header",
            &header,
            "--write-out",
            "\n%{http_code} %{local_port}",
            url,
        ],
    )?;
    let took = begin.elapsed();
    if !finished.status.success() {
        let code = finished.status.code().unwrap_or(-1);
        return Ok(Err(CurlError {
            code,
            message: finished.stderr.trim().to_owned(),
        }));
    }
    let (body, report) = finished
        .stdout
        .rsplit_once('\n')
        .context("curl wrote no report")?;
    let (status, port) = report.split_once(' ').context("curl wrote half a report")?;
    Ok(Ok(Answer {
        status: status.parse().context("curl's http_code")?,
        body: body.trim().to_owned(),
        local_port: port.parse().context("curl's local_port")?,
        took,
    }))
}

/// A request that has to be answered with 200.
pub(crate) fn get(place: &Place, url: &str, marker: &str) -> Result<Answer> {
    let answer = curl(place, url, marker)?
        .map_err(|error| anyhow::anyhow!("GET {url}: {} (exit {})", error.message, error.code))?;
    ensure!(
        answer.status == 200,
        "GET {url}: {} {}",
        answer.status,
        answer.body
    );
    Ok(answer)
}
