//! The application in a pod, as tests need it: small clients and servers that tell what they
//! saw, one line per event. Blocking and without a runtime, so that they behave like any program.

mod arguments;
mod client;
mod datagram;
mod dial;
mod events;
mod flood;
mod names;
mod server;

use std::io;
use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
Clients and servers that tell what they saw.

usage: podtool VERB ADDRESS [--option VALUE]...
  connect ADDRESS            one connection: sends the lines of standard input, prints what
                             comes as `line …`, then `eof` or `broken …`; the end of
                             standard input ends the sending side only.
                             --bind IP:PORT     connects from there
                             --wait poll        by a socket that does not block
                             --end reset        a reset at the end of standard input
                             --eof hold         after `eof` it stays until the end of standard input
  half-close ADDRESS         sends --bytes N, ends the sending side, reads to the end; prints
                             JSON with lengths and checksums
  flood ADDRESS              many connections, each with one echoed line; prints JSON.
                             --count N or --seconds S, --rate PER_SECOND (default: as fast as
                             it can), --concurrency N, --timeout-ms MS
  hold ADDRESS               --count N connections, each with one echoed line; prints `holding`, and
                             keeps them until it is ended
  knock ADDRESS              --count N connects that find no route, by one socket; prints
                             `nanoseconds EACH`
  serve ADDRESS              --mode echo     sends back what it gets (default)
                             --mode greet    speaks first: `220 …`, then answers lines
                             --mode sum      answers length and checksum after the end
                             --mode push     sends --bytes N at once, then ends; reads nothing
                             --mode hangup   ends its sending side at once, reads to the end
                             --mode reset    reads a line, then resets
  ask ADDRESS                sends the datagram --text TEXT or --hex BYTES, prints the answer alike.
                             --socket connected (default) or unconnected; the latter may send
                             to a second address, --also ADDRESS
                             --bind IP:PORT     sends from there
  answer ADDRESS             sends datagrams back
  names ADDRESS              a nameserver that answers every question with --ip IP
An ADDRESS is IP:PORT; [::ffff:10.0.0.1]:80 connects by an IPv6 socket to an IPv4 address.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    if matches!(verb.as_str(), "" | "help" | "--help" | "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let arguments = Arguments::parse(words)?;
    match verb.as_str() {
        "connect" => client::connect(&arguments),
        "half-close" => client::half_close(&arguments),
        "flood" => flood::flood(&arguments),
        "hold" => flood::hold(&arguments),
        "knock" => dial::knock(&arguments),
        "serve" => server::serve(&arguments),
        "ask" => datagram::ask(&arguments),
        "answer" => datagram::serve(&arguments),
        "names" => names::serve(&arguments),
        _ => Err(io::Error::other(format!("no verb {verb}\n{USAGE}"))),
    }
}
