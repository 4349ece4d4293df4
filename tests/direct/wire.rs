//! A wire between a peer and a tunnel, which can be held up, and shows the TLS records that pass.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::spawn_local,
};

use crate::fixtures::SOCKET_BUFFER;

/// The length of a TLS record's header (RFC 8446 §5.1).
const HEADER: usize = 5;

/// A wire for one connection.
pub(crate) struct Wire {
    /// Where its client dials.
    pub(crate) addr: SocketAddr,
    pub(crate) to_client: Lane,
    pub(crate) to_server: Lane,
}

impl Wire {
    /// A wire to a server.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(1).unwrap();
        let wire = Self {
            addr: listener.local_addr().unwrap(),
            to_client: Lane::new(),
            to_server: Lane::new(),
        };
        let (to_client, to_server) = (wire.to_client.clone(), wire.to_server.clone());
        spawn_local(async move {
            let (client, _) = listener.accept().await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
            let server = socket.connect(server).await.unwrap();
            for tcp in [&client, &server] {
                tcp.set_nodelay(true).unwrap();
            }
            let (from_client, client) = client.into_split();
            let (from_server, server) = server.into_split();
            spawn_local(to_server.carry(from_client, server));
            to_client.carry(from_server, client).await;
        });
        wire
    }
}

/// One direction of a wire.
#[derive(Clone)]
pub(crate) struct Lane {
    open: Rc<watch::Sender<bool>>,
    /// The lengths of what the records hold, and the header of the next one as far as it has passed.
    records: Rc<RefCell<(Vec<usize>, Vec<u8>)>>,
}

impl Lane {
    fn new() -> Self {
        Self {
            open: Rc::new(watch::Sender::new(true)),
            records: Rc::default(),
        }
    }

    /// Lets nothing more through, or all that has waited.
    pub(crate) fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// The lengths of the records that have begun to pass, without their headers.
    pub(crate) fn records(&self) -> Vec<usize> {
        self.records.borrow().0.clone()
    }

    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 << 10];
        let mut left = 0;
        let mut opened = self.open.subscribe();
        loop {
            // Each of these fails when the test is over, or an end of the wire is.
            if opened.wait_for(|open| *open).await.is_err() {
                return;
            }
            let Ok(read @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            self.note(&buffer[..read], &mut left);
        }
    }

    /// Finds the records in what passes, of whose last one so many bytes are left.
    fn note(&self, mut bytes: &[u8], left: &mut usize) {
        let (lengths, header) = &mut *self.records.borrow_mut();
        loop {
            let here = bytes.len().min(*left);
            bytes = &bytes[here..];
            *left -= here;
            let here = bytes.len().min(HEADER - header.len());
            header.extend(&bytes[..here]);
            bytes = &bytes[here..];
            if header.len() < HEADER {
                return;
            }
            *left = usize::from(u16::from_be_bytes([header[3], header[4]]));
            lengths.push(*left);
            header.clear();
        }
    }
}
