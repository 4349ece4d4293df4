//! A control plane that breaks the rules of the protocol beneath: half messages, bytes that are no
//! message, promises of too much. Each time the mesh stays as it was, and the next stream goes on.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason, SendStream};
use prost::Message as _;
use sluice_proto::discovery::{DeltaDiscoveryResponse, Resource};
use sluice_xds::View;
use tokio::{net::TcpListener, sync::mpsc};

use super::{has_pod, node_of, soon, start_at};
use crate::server::{deny_all, pod};
use sluice_proto::{security, workload};

/// A server of which the test writes every byte after the headers of the answer.
struct Raw {
    address: SocketAddr,
    streams: mpsc::Receiver<SendStream<Bytes>>,
}

impl Raw {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(connection(tcp, sender.clone()));
            }
        });
        Self { address, streams }
    }

    async fn stream(&mut self) -> Stream {
        Stream(soon("a stream", self.streams.recv()).await.unwrap())
    }
}

async fn connection(tcp: tokio::net::TcpStream, streams: mpsc::Sender<SendStream<Bytes>>) {
    let builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else {
        return;
    };
    // What the client says is read and thrown away.
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mut body = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
        });
        let answer = http::Response::builder().header("content-type", "application/grpc");
        let sent = respond.send_response(answer.body(()).unwrap(), false);
        let _ = streams.send(sent.unwrap()).await;
    }
}

struct Stream(SendStream<Bytes>);

impl Stream {
    fn send(&mut self, bytes: impl Into<Bytes>) {
        self.0.send_data(bytes.into(), false).unwrap();
    }

    fn respond(&mut self, type_url: &str, resources: Vec<Resource>) {
        self.send(frame(&response(type_url, resources)));
    }

    fn reset(mut self) {
        self.0.send_reset(Reason::INTERNAL_ERROR);
    }
}

fn response(type_url: &str, resources: Vec<Resource>) -> Vec<u8> {
    let response = DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: "n".to_owned(),
        resources,
        ..Default::default()
    };
    response.encode_to_vec()
}

/// A message as gRPC frames it: a flag, its length, its bytes.
fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// A client that knows the pod `a` on node `n1`, and a policy.
async fn synced() -> (Raw, Stream, View) {
    let mut server = Raw::start().await;
    let view = start_at(format!("http://{}", server.address));
    let mut stream = server.stream().await;
    stream.respond(workload::TYPE_URL, vec![pod("a", "n1", "v1")]);
    stream.respond(security::TYPE_URL, vec![deny_all("v1")]);
    soon("sync", view.synced()).await;
    (server, stream, view)
}

/// The mesh is still that of [`synced`], and another stream brings news.
async fn goes_on(server: &mut Raw, view: &View) {
    let mut stream = server.stream().await;
    let mesh = view.snapshot();
    assert_eq!(node_of(&mesh, "a"), "n1");
    assert_eq!((mesh.workload_count(), mesh.policies().len()), (1, 1));
    assert!(view.is_synced());
    let seen = view.status().version;
    stream.respond(workload::TYPE_URL, vec![pod("a", "n2", "v2")]);
    soon("news", view.changed(seen)).await;
    assert_eq!(node_of(&view.load(), "a"), "n2");
}

#[tokio::test]
async fn half_a_message_changes_nothing() {
    let whole = frame(&response(
        workload::TYPE_URL,
        vec![pod("b", "n1", "v1"), pod("a", "n9", "v9")],
    ));
    for length in [1, 4, 5, 20, whole.len() / 2, whole.len() - 1] {
        let (mut server, mut stream, view) = synced().await;
        stream.send(whole.slice(..length));
        stream.reset();
        goes_on(&mut server, &view).await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_change_nothing() {
    let mut too_long = BytesMut::new();
    too_long.put_u8(0);
    too_long.put_u32(u32::MAX);
    too_long.put_bytes(0x41, 1000);
    let rows: [(&str, Bytes); 4] = [
        ("no protobuf", frame(&[0xff; 64])),
        (
            "a flag that is none",
            Bytes::from_static(&[7, 0, 0, 0, 1, 0]),
        ),
        (
            "compressed, which nobody asked for",
            Bytes::from_static(&[1, 0, 0, 0, 1, 0]),
        ),
        ("longer than any message may be", too_long.freeze()),
    ];
    for (what, bytes) in rows {
        println!("{what}");
        let (mut server, mut stream, view) = synced().await;
        stream.send(bytes);
        goes_on(&mut server, &view).await;
    }
}

/// As large as a message may be nearly, and nothing in it that means anything.
#[tokio::test]
async fn a_resource_of_many_megabytes_of_nonsense_is_refused_alone() {
    let (_server, mut stream, view) = synced().await;
    let mut nonsense = pod("b", "n1", "v1");
    nonsense.resource.as_mut().unwrap().value = vec![0; 190 << 20];
    let seen = view.status().version;
    stream.respond(workload::TYPE_URL, vec![nonsense, pod("c", "n1", "v1")]);
    soon("the rest", view.changed(seen)).await;
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && has_pod(&mesh, "c") && !has_pod(&mesh, "b"));
}

/// Of a resource that a response holds twice, the last counts; a response that comes twice changes
/// nothing the second time; what is older by its version is news all the same, since only the
/// server knows the order of versions.
#[tokio::test]
async fn repetitions_and_old_versions_are_taken_as_they_come() {
    let (_server, mut stream, view) = synced().await;
    let seen = view.status().version;
    let twice = vec![pod("a", "n2", "v2"), pod("a", "n3", "v3")];
    stream.respond(workload::TYPE_URL, twice.clone());
    let seen = soon("the last of them", view.changed(seen)).await;
    assert_eq!(node_of(&view.load(), "a"), "n3");
    stream.respond(workload::TYPE_URL, vec![pod("a", "n3", "v3")]);
    stream.respond(workload::TYPE_URL, vec![pod("a", "n1", "v1")]);
    let now = soon("the old one", view.changed(seen)).await;
    assert_eq!(now, seen + 1, "a repetition counted as a change");
    assert_eq!(node_of(&view.load(), "a"), "n1");
}
