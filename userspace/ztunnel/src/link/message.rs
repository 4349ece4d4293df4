//! What broker and worker say to each other.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_abi::event;
use sluice_kernel::{Reason, verify::Check};
use sluice_model::Name;

/// A pod, for as long as it is in the mesh; a pod that leaves and comes back gets another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId(pub u32);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What the broker knows of a pod, from its own sources. The worker takes the pod's identity from
/// here and never from a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    pub id: PodId,
    pub namespace: Name,
    pub name: Name,
    pub service_account: Name,
    /// The cookie of its network namespace.
    pub netns: u64,
    /// Its addresses, without loopback and link-local ones.
    pub ips: Vec<IpAddr>,
}

/// A listener's job. The descriptors of [`ToWorker::AddPod`] come in the order of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listener {
    Outbound,
    Plaintext,
    Hbone,
    /// A UDP socket.
    Dns,
    DnsByTcp,
}

/// What a worker needs to know at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub node: String,
    pub cluster: String,
    pub network: String,
    pub trust_domain: String,
    /// The DNS domain of the cluster's services.
    pub cluster_domain: Name,
    /// The control plane's URLs, the preferred one first; at least one.
    pub control: Vec<String>,
    pub log: String,
    pub log_json: bool,
    pub access_log: AccessLog,
    /// Where spans go, if anywhere.
    pub traces: Option<Traces>,
    /// The user that the worker becomes.
    pub uid: u32,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
    pub readiness: SocketAddr,
    /// Whom to ask for the addresses of host names.
    pub nameservers: Vec<SocketAddr>,
    /// Whether what the mesh does not know is not captured, of pods that do not opt out.
    pub bypass: bool,
    /// Requested validity of certificates, in seconds.
    pub certificate_ttl: u64,
    /// Ask the control plane for what connections need, in place of everything.
    pub on_demand: bool,
}

/// Which connections have a line in the access log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccessLog {
    pub lines: Lines,
    /// Of those that went well, from 0 to 1.
    pub sample: f64,
    /// Those with an end in one of these, unless there are none.
    pub namespaces: Vec<String>,
    /// Those to one of these, unless there are none.
    pub ports: Vec<u16>,
    /// Of those that went well, those that lasted so long, in milliseconds.
    pub min_duration: u64,
}

/// Which connections there are lines about at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lines {
    All,
    Errors,
    Off,
}

/// Where spans of connections go, by OTLP over gRPC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traces {
    /// `http://HOST:PORT`, or `https`: then [`ToWorker::ReceiverRoots`] says who may answer.
    pub endpoint: String,
    /// Of the traces that begin here, from 0 to 1.
    pub sample: f64,
}

impl Traces {
    pub fn is_encrypted(&self) -> bool {
        let scheme = self.endpoint.split_once(':').map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
    }
}

/// From broker to worker. The first message on the worker's own link is `Start`, and on a thread's
/// link `Maps`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// With the descriptors of the kernel's counters, of verdicts and of connections, and then the links
    /// of the worker's threads.
    Start(Box<Settings>),
    /// With the descriptors of the kernel's socket maps.
    Maps,
    /// What authenticates the node to the control plane, and the control plane to it; sent again
    /// when it changes.
    Credentials {
        token: String,
        control_root: String,
    },
    /// What the workers before left. The last message on the worker's own link before those of
    /// pods. The descriptors come in the order of the list.
    Memories(Vec<Memory>),
    /// With a descriptor of all revocation lists; sent again when they change.
    Revocations,
    /// With a descriptor of the certificates, in PEM, by which the receiver of spans is known.
    ReceiverRoots,
    /// With listeners on thread links, without on the worker's.
    AddPod {
        pod: PodInfo,
        listeners: Vec<Listener>,
    },
    RemovePod(PodId),
    /// What the worker before allowed, after all pods: it stays in force, and the worker judges it
    /// as soon as it can. The last is `Complete`.
    Neighbours(Neighbours),
    /// What became of connections that went straight, from pod to pod or out of the mesh, in order.
    Flows(Vec<Flow>),
    /// What the kernel has seen and logged, while somebody traces, and how many events are lost between these and
    /// those before.
    KernelEvents {
        events: Vec<KernelEvent>,
        log: Vec<String>,
        lost: u64,
    },
    /// What was found in the kernel that was not as it must be: all of it, whenever that changes.
    Drift(Vec<Deviation>),
    /// Answers [`ToBroker::CountSockets`].
    SocketCounts(Vec<SocketCount>),
    /// Answers [`ToBroker::NeedControl`], in the order of the questions: with a connected socket, or
    /// with the reason why there is none.
    Control(Result<(), String>),
    /// With unconnected sockets in the pod's network namespace.
    Sockets {
        pod: PodId,
        transport: Transport,
        family: Family,
    },
}

/// From worker to broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToBroker {
    /// The worker serves.
    Ready,
    /// Wants unconnected sockets.
    NeedSockets {
        pod: PodId,
        transport: Transport,
        family: Family,
        count: u8,
    },
    /// Wants a connection to the socket of the control plane at this place of
    /// [`Settings::control`], which is on this machine.
    NeedControl(usize),
    /// Wants to know how many sockets the ztunnel has.
    CountSockets,
    Egress(Egress),
    Neighbours(Neighbours),
    /// Whether somebody traces, and wants to be told of the kernel's events.
    Trace(bool),
    /// With the descriptor of what is kept for the next worker, as [`super::memory`] makes it.
    Keep(Memory),
}

/// What a worker leaves to the next one. The broker keeps it without looking into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// The mesh as the control plane described it.
    Mesh,
    /// Certificates with their private keys.
    Certificates,
}

/// The most addresses, or ranges of them, in one message.
pub const MAX_ADDRESSES: usize = 1024;

/// A pod may dial an address of another one of the node without the ztunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    pub client: PodId,
    pub to: SocketAddr,
    pub server: PodId,
}

/// A pod that dials an address of a service is led to the one pod behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub client: PodId,
    pub dialled: SocketAddr,
    pub to: SocketAddr,
}

/// What may go straight from pod to pod, told as differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Neighbours {
    Allow(Vec<Permission>),
    /// Connections that stand are cut.
    Disallow(Vec<(PodId, SocketAddr)>),
    Route(Vec<Route>),
    /// Connections that stand go on.
    Unroute(Vec<(PodId, SocketAddr)>),
    /// From the broker: this is all that the worker before allowed. From the worker: it has been
    /// judged.
    Complete,
}

/// A connection that goes straight, from pod to pod or out of the mesh, was established, or has ended;
/// of a short one, only its end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The cookie of the client's socket.
    pub socket: u64,
    /// The cookie of the client's network namespace.
    pub netns: u64,
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// What the application dialled: the server, or a service.
    pub dialled: SocketAddr,
    /// It leaves the mesh.
    pub outside: bool,
    /// Nanoseconds since boot.
    pub time: u64,
    /// When it was established, if that is told with its end.
    pub since: Option<u64>,
    pub end: Option<FlowEnd>,
}

/// An event of the eBPF programs: [`sluice_abi::event::Event`], for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvent {
    /// Nanoseconds since boot.
    pub time: u64,
    pub netns: u64,
    pub socket: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    kind: u32,
    reason: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// In microseconds.
    pub srtt: u32,
    pub retransmits: u32,
}

impl KernelEvent {
    pub fn kind(&self) -> Option<event::Kind> {
        event::Kind::from_u32(self.kind)
    }

    /// The reason of a verdict.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_u32(self.reason)
    }
}

impl From<&event::Event> for KernelEvent {
    fn from(event: &event::Event) -> Self {
        Self {
            time: event.time,
            netns: event.netns,
            socket: event.socket,
            local: event.local.into(),
            remote: event.remote.into(),
            kind: event.kind,
            reason: event.reason,
            bytes_acked: event.bytes_acked,
            bytes_received: event.bytes_received,
            srtt: event.srtt,
            retransmits: event.retransmits,
        }
    }
}

/// How many TCP sockets the ztunnel has of a kind, those that the kernel still closes among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketCount {
    /// See [`sluice_kernel::TcpSocket::purpose`].
    pub purpose: String,
    /// As `ss` names it.
    pub state: String,
    pub count: u64,
}

/// What has come of a check of the kernel's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    pub check: Check,
    /// How many there were when it was made the last time.
    pub found: u32,
    /// How many were put right since the broker started.
    pub healed: u64,
}

/// How such a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEnd {
    /// From the client to the server, in bytes.
    pub sent: u64,
    /// From the server to the client, in bytes.
    pub received: u64,
    pub how: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    Orderly,
    Reset,
    /// It never came to be.
    NotConnected,
}

/// The most flows in one message.
pub const MAX_FLOWS: usize = 256;

/// Which pods may go only to what the mesh knows, and what that is.
///
/// A worker begins with a whole list, if anybody needs one: `Begin`, any number of `Known`, and
/// `Outbound`. Later it tells differences in the same order, with `Forgotten` last, so that a restricted
/// pod is never refused what is known, and what is known is always captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    /// A new list begins; what the one before said stays in force until it is complete.
    Begin,
    /// These addresses, single ones and ranges, are known too.
    Known(Vec<IpNet>),
    /// From now on these pods are restricted, and those are not. A pod of which the worker knows
    /// nothing yet, it does not name: it stays as it is.
    Outbound {
        /// All addresses have been told: what is none of them need not be captured. Otherwise there
        /// is no list.
        listed: bool,
        restricted: Vec<PodId>,
        free: Vec<PodId>,
    },
    /// These addresses are known no more.
    Forgotten(Vec<IpNet>),
}
