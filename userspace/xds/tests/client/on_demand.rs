//! A client that asks for what is needed, when it is needed.

use std::time::Duration;

use sluice_model::{Name, NetworkAddress, ServiceKey, Uid};
use sluice_proto::{
    discovery::{DeltaDiscoveryRequest, Resource},
    security, workload,
};
use sluice_xds::{Client, Config, Key, Needed, OnDemand, Unanswered, View};
use tokio::task::JoinHandle;
use tonic::Status;

use super::{config, has_pod, run, soon};
use crate::server::{ControlPlane, Session, edit, pod, service};

const A: &str = "c//Pod/shop/a";
const CATALOG: &str = "shop/catalog.shop.svc";
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(10);

fn start(server: &ControlPlane, on_demand: OnDemand) -> View {
    run(Client::new(Config {
        on_demand: Some(on_demand),
        ..config(server.address())
    }))
}

/// What has this address, in the network without a name.
fn at(ip: [u8; 4]) -> Key {
    Key::Address(NetworkAddress::new(Name::default(), ip.into()))
}

fn of(name: &str) -> Key {
    Key::Workload(Uid::pod("c", "shop", name))
}

fn catalog() -> Key {
    Key::Service(ServiceKey {
        namespace: "shop".into(),
        hostname: "catalog.shop.svc".into(),
    })
}

fn with_alias(mut resource: Resource, alias: &str) -> Resource {
    resource.aliases.push(alias.to_owned());
    resource
}

type Learning = JoinHandle<Result<Needed, Unanswered>>;

fn learn(view: &View, key: Key) -> Learning {
    let view = view.clone();
    tokio::spawn(async move { view.learn(&key, LONG).await })
}

/// Both first requests of a stream; the one for addresses.
async fn first(session: &mut Session) -> DeltaDiscoveryRequest {
    let addresses = session.request().await;
    assert_eq!(addresses.type_url, workload::TYPE_URL);
    assert_eq!(addresses.resource_names_subscribe, ["*"]);
    assert_eq!(addresses.resource_names_unsubscribe, ["*"]);
    let policies = session.request().await;
    assert_eq!(policies.type_url, security::TYPE_URL);
    assert_eq!(policies.resource_names_subscribe, [""; 0], "all of them");
    assert_eq!(policies.resource_names_unsubscribe, [""; 0]);
    addresses
}

/// A client in step with a control plane of which it has asked nothing.
async fn synced(on_demand: OnDemand) -> (ControlPlane, Session, View) {
    let mut server = ControlPlane::start().await;
    let view = start(&server, on_demand);
    let mut session = server.session().await;
    let addresses = first(&mut session).await;
    assert!(addresses.initial_resource_versions.is_empty());
    // Addresses are not waited for: of these there is nothing to tell.
    session.send_policies("1", [], &[]).await;
    session.request().await;
    soon("sync", view.synced()).await;
    (server, session, view)
}

/// The names of the next request, which asks for more.
async fn subscribed(session: &mut Session) -> Vec<String> {
    let request = session.request().await;
    assert_eq!(request.type_url, workload::TYPE_URL);
    assert_eq!(request.resource_names_unsubscribe, [""; 0]);
    request.resource_names_subscribe
}

/// The names of the next request, which takes them back. It asks for the address of nobody: to one that
/// asks for nothing, istiod answers that everything is gone.
async fn unsubscribed(session: &mut Session) -> Vec<String> {
    let request = session.request().await;
    assert_eq!(request.type_url, workload::TYPE_URL);
    assert_eq!(request.resource_names_subscribe, ["/0.0.0.0"]);
    request.resource_names_unsubscribe
}

async fn acknowledged(session: &mut Session, nonce: &str) {
    let ack = session.request().await;
    assert_eq!((&*ack.response_nonce, ack.error_detail), (nonce, None));
}

async fn done(learning: Learning) -> Result<(), Unanswered> {
    soon("an answer", learning).await.unwrap().map(drop)
}

#[tokio::test]
async fn names_are_asked_for_when_they_are_needed() {
    let (_server, mut session, view) = synced(OnDemand::default()).await;
    let keys = [
        (at([10, 0, 0, 1]), "/10.0.0.1"),
        (of("b"), "c//Pod/shop/b"),
        (catalog(), CATALOG),
    ];
    let answers = [
        with_alias(pod("a", "n1", "v1"), "/10.0.0.1"),
        pod("b", "n1", "v1"),
        service("v1"),
    ];
    for ((key, name), answer) in keys.iter().zip(answers) {
        let learning = learn(&view, key.clone());
        assert_eq!(subscribed(&mut session).await, [*name]);
        assert!(!learning.is_finished());
        session.send(name, [answer], &[]).await;
        acknowledged(&mut session, name).await;
        done(learning).await.unwrap();
    }
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && has_pod(&mesh, "b"));
    assert_eq!(mesh.services().len(), 1);
    // What is known is not asked for again.
    for (key, _) in &keys {
        done(learn(&view, key.clone())).await.unwrap();
    }
    done(learn(&view, of("b"))).await.unwrap();
    let other = learn(&view, of("c"));
    assert_eq!(subscribed(&mut session).await, ["c//Pod/shop/c"]);
    other.abort();
}

#[tokio::test]
async fn what_does_not_exist_is_an_answer_until_it_does() {
    let (_server, mut session, view) = synced(OnDemand::default()).await;
    let learning = learn(&view, at([10, 0, 0, 1]));
    assert_eq!(subscribed(&mut session).await, ["/10.0.0.1"]);
    session.send("2", [], &["/10.0.0.1"]).await;
    acknowledged(&mut session, "2").await;
    done(learning).await.unwrap();
    assert!(!has_pod(&view.load(), "a"));
    // That is believed, and not asked for again: the next request is for something else.
    done(learn(&view, at([10, 0, 0, 1]))).await.unwrap();
    let other = learn(&view, of("b"));
    assert_eq!(subscribed(&mut session).await, ["c//Pod/shop/b"]);
    let comes = with_alias(pod("a", "n1", "v1"), "/10.0.0.1");
    session.send("3", [comes], &["c//Pod/shop/b"]).await;
    acknowledged(&mut session, "3").await;
    done(other).await.unwrap();
    assert!(has_pod(&view.load(), "a"));
    // It is removed by its own name alone; whether something else has the address must be asked.
    session.send("4", [], &[A]).await;
    acknowledged(&mut session, "4").await;
    // A control plane that was asked before answers only who takes that back first.
    let again = learn(&view, at([10, 0, 0, 1]));
    assert_eq!(unsubscribed(&mut session).await, ["/10.0.0.1"]);
    assert_eq!(subscribed(&mut session).await, ["/10.0.0.1"]);
    assert!(!again.is_finished());
    session.send("5", [], &["/10.0.0.1"]).await;
    done(again).await.unwrap();
}

#[tokio::test]
async fn nothing_is_assumed_of_what_was_not_answered() {
    let (_server, mut session, view) = synced(OnDemand::default()).await;
    let short = Duration::from_millis(50);
    let silent = soon("patience", view.learn(&of("a"), short)).await;
    let name = A.to_owned();
    assert_eq!(silent.unwrap_err(), Unanswered::Silent(name, short));
    assert_eq!(subscribed(&mut session).await, [A]);
    // An answer that is not understood is none.
    let mut bad = pod("a", "n1", "v1");
    edit(&mut bad, |workload| workload.addresses = vec![vec![1]]);
    session.send("2", [bad], &[]).await;
    assert!(session.request().await.error_detail.is_some());
    let silent = view.learn(&of("a"), short).await;
    assert!(matches!(silent, Err(Unanswered::Silent(..))), "{silent:?}");
    // And neither is one that does not lead to where it was asked for.
    let learning = learn(&view, at([10, 0, 0, 7]));
    assert_eq!(subscribed(&mut session).await, ["/10.0.0.7"]);
    let other = with_alias(pod("b", "n1", "v1"), "/10.0.0.7");
    session.send("3", [other], &[]).await;
    let elsewhere = done(learning).await.unwrap_err();
    assert_eq!(elsewhere, Unanswered::Elsewhere("/10.0.0.7".to_owned()));
}

/// istiod has the address of a node for another name of each pod of the host's network there.
#[tokio::test]
async fn an_address_that_pods_share_with_their_node_is_an_address_of_nobody() {
    let (_server, mut session, view) = synced(OnDemand::default()).await;
    let learning = learn(&view, at([10, 0, 0, 1]));
    assert_eq!(subscribed(&mut session).await, ["/10.0.0.1"]);
    let agents = ["a", "b"].map(|name| {
        let mut agent = with_alias(pod(name, "n1", "v1"), "/10.0.0.1");
        edit(&mut agent, |workload| {
            workload.network_mode = workload::NetworkMode::HostNetwork.into();
        });
        agent
    });
    session.send("2", agents.clone(), &[]).await;
    acknowledged(&mut session, "2").await;
    done(learning).await.unwrap();
    assert!(has_pod(&view.snapshot(), "a") && has_pod(&view.snapshot(), "b"));
    // A pod that has the address for itself is whom it names, whoever else is told of with it.
    let learning = learn(&view, at([10, 0, 0, 1]));
    done(learning).await.unwrap();
    let [agent, _] = agents;
    let own = with_alias(pod("c", "n1", "v1"), "/10.0.0.1");
    session.send("3", [own, agent], &[]).await;
    acknowledged(&mut session, "3").await;
    let mesh = view.snapshot();
    let found = mesh.workload_at(&Name::default(), [10, 0, 0, 1].into());
    assert_eq!(&*found.unwrap().uid.0, "c//Pod/shop/c");
    done(learn(&view, at([10, 0, 0, 1]))).await.unwrap();
    // Nobody is asked about a pod by its own name twice, though its address is not its own.
    done(learn(&view, of("a"))).await.unwrap();
}

#[tokio::test]
async fn a_new_stream_is_told_what_is_here_and_what_is_waited_for() {
    let (mut server, mut session, view) = synced(OnDemand::default()).await;
    let _a = view.want(&at([10, 0, 0, 1])).unwrap();
    assert_eq!(subscribed(&mut session).await, ["/10.0.0.1"]);
    let found = with_alias(pod("a", "n1", "v7"), "/10.0.0.1");
    session.send("2", [found], &[]).await;
    acknowledged(&mut session, "2").await;
    let learning = learn(&view, of("b"));
    assert_eq!(subscribed(&mut session).await, ["c//Pod/shop/b"]);
    session.fail(Status::unavailable("broken by test")).await;

    let mut session = server.session().await;
    let versions = first(&mut session).await.initial_resource_versions;
    let expected = [(A, "v7"), ("c//Pod/shop/b", "")];
    let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
    assert_eq!(versions, expected.into_iter().collect());
    assert!(!learning.is_finished(), "it waits on");
    session.send("1", [pod("b", "n1", "v1")], &[]).await;
    done(learning).await.unwrap();
}

#[tokio::test]
async fn what_is_asked_for_without_a_control_plane_waits_for_one() {
    let mut server = ControlPlane::start().await;
    let view = start(&server, OnDemand::default());
    let learning = learn(&view, of("a"));
    let mut session = server.session().await;
    let request = first(&mut session).await;
    let waits = request.initial_resource_versions.contains_key(A);
    assert!(waits || subscribed(&mut session).await == [A]);
    session.send("1", [pod("a", "n1", "v1")], &[]).await;
    done(learning).await.unwrap();
}

#[tokio::test]
async fn what_nobody_uses_is_given_up() {
    let unused = Duration::from_millis(200);
    let (_server, mut session, view) = synced(OnDemand { unused }).await;
    let held = view.want(&of("a")).unwrap();
    let service_held = view.want(&catalog()).unwrap();
    let asked = |names: &mut Vec<String>| {
        names.sort();
        names.len() == 2
    };
    let mut names = subscribed(&mut session).await;
    while !asked(&mut names) {
        names.extend(subscribed(&mut session).await);
    }
    assert_eq!(names, [A, CATALOG]);
    let mut endpoint = pod("endpoint", "n1", "v1");
    edit(&mut endpoint, |workload| {
        let ports = workload::PortList::default();
        workload.services = [(CATALOG.to_owned(), ports)].into();
    });
    let stray = pod("stray", "n1", "v1");
    let all = [pod("a", "n1", "v1"), service("v1"), endpoint, stray];
    session.send("2", all, &[]).await;
    acknowledged(&mut session, "2").await;
    // Only what nobody holds, and what no service that is held leads to.
    let given_up = session.request().await;
    assert_eq!(
        given_up.resource_names_unsubscribe,
        ["c//Pod/shop/stray"],
        "{given_up:?}"
    );
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && has_pod(&mesh, "endpoint") && !has_pod(&mesh, "stray"));
    drop(service_held);
    let given_up = session.request().await;
    assert_eq!(
        given_up.resource_names_unsubscribe,
        ["c//Pod/shop/endpoint", CATALOG]
    );
    let mesh = view.snapshot();
    assert!(has_pod(&mesh, "a") && mesh.services().len() == 0);
    drop(held);
    assert_eq!(unsubscribed(&mut session).await, [A]);
    // Needed again, it is asked for again.
    let learning = learn(&view, of("a"));
    assert_eq!(subscribed(&mut session).await, [A]);
    session.send("3", [pod("a", "n1", "v1")], &[]).await;
    done(learning).await.unwrap();
}
