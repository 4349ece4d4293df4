//! A control plane with several addresses.

use std::time::Duration;

use sluice_identity::Addresses;
use sluice_xds::View;
use tokio::net::TcpListener;
use tonic::Status;

use super::{client, has_pod, run, soon};
use crate::server::{ControlPlane, Session, pod};

fn addresses<const N: usize>(all: [String; N]) -> Addresses {
    Addresses::new(all).unwrap()
}

/// Answers the first requests of a stream with a pod of this name.
async fn answer(session: &mut Session, name: &str) {
    session.send("1", [pod(name, "n1", "v1")], &[]).await;
    session.send_policies("2", [], &[]).await;
}

async fn learns(view: &View, name: &str) {
    let learnt = async {
        let mut seen = 0;
        while !has_pod(&view.load(), name) {
            seen = view.changed(seen).await;
        }
    };
    soon(name, learnt).await;
}

#[tokio::test]
async fn one_that_refuses_is_passed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut server = ControlPlane::start().await;
    let all = addresses([refusing, server.address()]);
    let view = run(client(all.clone()));
    let mut session = server.session().await;
    answer(&mut session, "a").await;
    soon("sync", view.synced()).await;
    assert_eq!(all.current(), server.address());
}

#[tokio::test]
async fn one_that_accepts_and_says_nothing_is_given_up() {
    // Its backlog takes connections, and nobody speaks on them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let mut server = ControlPlane::start().await;
    let view = run(client(addresses([address, server.address()])));
    let mut session = server.session().await;
    answer(&mut session, "a").await;
    soon("sync", view.synced()).await;
}

#[tokio::test]
async fn one_that_opens_a_stream_and_sends_no_mesh_is_given_up() {
    let (mut silent, mut server) = (ControlPlane::start().await, ControlPlane::start().await);
    let all = addresses([silent.address(), server.address()]);
    let view = run(client(all));
    let _held = silent.session().await;
    answer(&mut server.session().await, "a").await;
    soon("sync", view.synced()).await;
}

#[tokio::test]
async fn after_one_that_breaks_the_next_takes_over_and_stays() {
    let (mut first, mut second) = (ControlPlane::start().await, ControlPlane::start().await);
    let all = addresses([first.address(), second.address()]);
    let view = run(client(all.clone()));
    let mut session = first.session().await;
    answer(&mut session, "a").await;
    learns(&view, "a").await;
    session.fail(Status::unavailable("broken by test")).await;

    let mut session = second.session().await;
    let request = session.request().await;
    assert_eq!(request.initial_resource_versions["c//Pod/shop/a"], "v1");
    answer(&mut session, "b").await;
    learns(&view, "b").await;
    assert!(has_pod(&view.load(), "a"), "nothing was forgotten");

    // It closes in good order, and is asked again, not the first one; though that is back.
    drop(session);
    let mut session = second.session().await;
    answer(&mut session, "c").await;
    learns(&view, "c").await;
    assert_eq!(all.current(), second.address());
}

/// A control plane that has nothing new may be silent for long.
#[tokio::test]
async fn once_the_mesh_is_whole_silence_is_no_failure() {
    let (mut first, mut second) = (ControlPlane::start().await, ControlPlane::start().await);
    let view = run(client(addresses([first.address(), second.address()])));
    let mut session = first.session().await;
    answer(&mut session, "a").await;
    learns(&view, "a").await;
    let elsewhere = tokio::time::timeout(Duration::from_secs(3), second.next_session());
    assert!(elsewhere.await.is_err(), "it went on to the next address");
    session.send("3", [pod("b", "n1", "v1")], &[]).await;
    learns(&view, "b").await;
}
