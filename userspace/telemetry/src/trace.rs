//! What is told to whoever traces: the steps of connections, a JSON object a line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One step of a connection's way. What it does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Step {
    /// Nanoseconds since the epoch.
    pub time: u64,
    /// What the steps of one connection have in common; 0 for what belongs to none.
    pub connection: u64,
    pub step: Kind,
    /// The pod that it was seen at, `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `outbound` or `inbound`, as that pod sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// How a decision came out: the kernel's reason, or `allowed`, `denied`, `failed`, `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// Where it goes: what was dialled at first, and what was chosen for it later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// The host name of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The other end's pod or workload, `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What is asked for through a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Whom the client proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    /// Whom the server proved to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_identity: Option<String>,
    /// The policy that decided, `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its rule, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// `new` or `reused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// The group of the key exchange.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// From the client to the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Of a socket that was closed, in place of `bytes_sent`: what its peer has acknowledged, with a
    /// client's SYN and with a FIN, which TCP counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_acked: Option<u64>,
    /// From the server to the client; of a socket that was closed, what has come to it, with a FIN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Smoothed round-trip time in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many steps were lost here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The kernel judged a `connect`.
    Connect,
    /// The kernel judged what came for a pod.
    Arrive,
    /// The worker has it: from an application, from a tunnel, or in plaintext.
    #[default]
    Accept,
    /// Where it goes was chosen.
    Destination,
    /// A tunnel was made or found for it.
    Tunnel,
    /// Policies decided.
    Policy,
    /// Bytes may flow.
    Open,
    /// It has ended, as the ztunnel sees it.
    End,
    /// Its socket was closed, as the kernel sees it.
    Close,
    /// Steps were lost.
    Lost,
    /// An event of the kernel, as it is.
    Kernel,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Arrive => "arrive",
            Self::Accept => "accept",
            Self::Destination => "destination",
            Self::Tunnel => "tunnel",
            Self::Policy => "policy",
            Self::Open => "open",
            Self::End => "end",
            Self::Close => "close",
            Self::Lost => "lost",
            Self::Kernel => "kernel",
        }
    }
}
