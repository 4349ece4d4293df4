//! The socket of a control plane on this machine, which the broker opens: the worker may not.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix},
    sync::{Arc, Mutex, PoisonError},
};

use sluice_identity::{Dial, Dialling, socket_path};
use tokio::{net::UnixStream, sync::oneshot};

use crate::link::{AsyncLink, ToBroker};

/// Asks the broker for sockets.
#[derive(Debug)]
pub(super) struct ByBroker {
    link: Arc<AsyncLink>,
    addresses: Vec<String>,
    /// Who has asked, in order: held while one asks, so that the order is the broker's.
    waiting: Mutex<VecDeque<oneshot::Sender<io::Result<OwnedFd>>>>,
}

impl ByBroker {
    pub(super) fn new(link: Arc<AsyncLink>, addresses: Vec<String>) -> Self {
        Self {
            link,
            addresses,
            waiting: Mutex::default(),
        }
    }

    /// The broker's answer to the oldest question.
    pub(super) fn answer(&self, result: Result<(), String>, fds: Vec<OwnedFd>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(asker) = waiting.pop_front() else {
            return;
        };
        let missing = || io::Error::other("the broker sent no socket");
        let socket = result
            .map_err(io::Error::other)
            .and_then(|()| fds.into_iter().next().ok_or_else(missing));
        // Who asked may have lost patience.
        let _ = asker.send(socket);
    }

    async fn ask(&self, path: &str) -> io::Result<UnixStream> {
        let mut addresses = self.addresses.iter();
        let place = addresses.position(|address| socket_path(address) == Some(path));
        let place = place.ok_or_else(|| io::Error::other("no address of the control plane"))?;
        let (asker, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.link.send(&ToBroker::NeedControl(place), &[])?;
            waiting.push_back(asker);
        }
        let socket = answer.await.map_err(io::Error::other)??;
        let socket = unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    }
}

impl Dial for ByBroker {
    fn dial<'a>(&'a self, path: &'a str) -> Dialling<'a> {
        Box::pin(self.ask(path))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsFd as _};

    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::link::{Link, ToWorker};

    #[tokio::test(flavor = "current_thread")]
    async fn each_who_asks_gets_the_answer_to_his_question() {
        let (broker, worker) = Link::pair().unwrap();
        let link = Arc::new(AsyncLink::new(worker).unwrap());
        let addresses = ["https://a:1", "unix:///b", "unix:///c"].map(str::to_owned);
        let dial = ByBroker::new(link.clone(), addresses.to_vec());
        let (ours, mut theirs) = unix::net::UnixStream::pair().unwrap();
        theirs.write_all(b"hello").unwrap();
        drop(theirs);
        let answers = async {
            for place in [2, 1] {
                let asked = broker.recv::<ToBroker>().unwrap().unwrap().message;
                assert!(matches!(asked, ToBroker::NeedControl(asked) if asked == place));
            }
            broker
                .send(&ToWorker::Control(Err("nobody listens".to_owned())), &[])
                .unwrap();
            broker
                .send(&ToWorker::Control(Ok(())), &[ours.as_fd()])
                .unwrap();
            for _ in 0..2 {
                let received = link.recv::<ToWorker>().await.unwrap().unwrap();
                if let ToWorker::Control(result) = received.message {
                    dial.answer(result, received.fds);
                }
            }
        };
        let (refused, opened, ()) = tokio::join!(dial.dial("/c"), dial.dial("/b"), answers);
        assert_eq!(refused.unwrap_err().to_string(), "nobody listens");
        let mut text = String::new();
        opened.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        assert!(dial.dial("/etc/passwd").await.is_err());
    }
}
