//! The server's side of a tunnel, after a proper TLS handshake: whatever a client says, the tunnel
//! ends when the client does, and leaves nothing behind.
#![no_main]

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::ServerName;
use sluice_hbone::{Baggage, Engine, Incoming, Meter, Session};
use sluice_identity::Svid;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    task::{LocalSet, spawn_local, yield_now},
    time::timeout,
};
use tokio_rustls::TlsConnector;

#[path = "../../direct/authority.rs"]
mod authority;

use authority::{DB, Root, WEB, id};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a client may do next.
#[derive(Debug, Arbitrary)]
enum Step {
    Bytes(Vec<u8>),
    Frame {
        kind: u8,
        flags: u8,
        stream: u8,
        payload: Vec<u8>,
    },
    /// A request, which is refused or accepted.
    Connect {
        stream: u8,
        accepted: bool,
        end: bool,
    },
    Data {
        stream: u8,
        end: bool,
        bytes: u16,
    },
    Credit {
        stream: u8,
        bytes: u32,
    },
    Window(u32),
    Reset(u8),
    /// What was said leaves, and others do something.
    Pause,
    NewKeys,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

impl Step {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Frame {
                kind,
                flags,
                stream,
                payload,
            } => frame(kind % 12, *flags, (stream % 16).into(), payload),
            Self::Connect {
                stream,
                accepted,
                end,
            } => {
                let authority = if *accepted {
                    "10.0.0.1:1"
                } else {
                    "10.0.0.1:2"
                };
                let block = [&[2, 7][..], b"CONNECT", &[1, 10], authority.as_bytes()].concat();
                frame(1, 4 | u8::from(*end), (stream % 16).into(), &block)
            }
            Self::Data { stream, end, bytes } => {
                let bytes = vec![b'x'; usize::from(bytes % (16 << 10) + 1)];
                frame(0, u8::from(*end), (stream % 16).into(), &bytes)
            }
            Self::Credit { stream, bytes } => {
                frame(8, 0, (stream % 16).into(), &bytes.to_be_bytes())
            }
            Self::Window(bytes) => frame(4, 0, 0, &[&[0, 4], &bytes.to_be_bytes()[..]].concat()),
            Self::Reset(stream) => frame(3, 0, (stream % 16).into(), &[0, 0, 0, 8]),
            Self::Pause | Self::NewKeys => Vec::new(),
        }
    }
}

/// What all runs share: making it takes longer than a run.
struct World {
    runtime: Runtime,
    local: LocalSet,
    engine: Engine,
    listener: TcpListener,
    echo: Rc<TcpListener>,
    server: Arc<Svid>,
    connector: TlsConnector,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let local = LocalSet::new();
        let (engine, listener, echo) = local.block_on(&runtime, async {
            let bind = || TcpListener::bind("127.0.0.1:0");
            (
                Engine::start().unwrap(),
                bind().await.unwrap(),
                bind().await.unwrap(),
            )
        });
        let root = Root::new();
        let server = root.svid(DB);
        let client = root.svid(WEB).client_config([id(DB)].as_slice());
        Self {
            runtime,
            local,
            engine,
            listener,
            echo: Rc::new(echo),
            server,
            connector: TlsConnector::from(client),
        }
    }

    fn run(&self, steps: &[Step]) {
        self.local.block_on(&self.runtime, async {
            let served = async {
                let (tcp, _) = self.listener.accept().await.unwrap();
                let (_drain, drain) = watch::channel(false);
                let session = Session::accept(&self.engine, tcp, &self.server, Arc::new([])).await;
                if let Ok(session) = session {
                    let echo = self.echo.clone();
                    let _ = session.serve(drain, move |i| serve(echo.clone(), i)).await;
                }
            };
            let both = async { tokio::join!(served, self.client(steps)) };
            timeout(PATIENCE, both).await.expect("the tunnel ends");
            let gone = async {
                while self.engine.streams() + self.engine.tunnels() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(PATIENCE, gone).await.expect("nothing is left");
        });
    }

    async fn client(&self, steps: &[Step]) {
        let to = self.listener.local_addr().unwrap();
        let tcp = TcpStream::connect(to).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::from(to.ip());
        let mut tls = self.connector.connect(name, tcp).await.unwrap();
        let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        said.extend(frame(4, 0, 0, &[]));
        let mut heard = vec![0; 64 << 10];
        for step in steps {
            said.extend(step.encode());
            match step {
                Step::NewKeys => {
                    let _ = tls.get_mut().1.refresh_traffic_keys();
                }
                Step::Pause => {}
                _ => continue,
            }
            if tls.write_all(&said).await.is_err() || tls.flush().await.is_err() {
                return;
            }
            said.clear();
            for _ in 0..4 {
                yield_now().await;
            }
            tokio::select! {
                biased;
                read = tls.read(&mut heard) => if matches!(read, Ok(0) | Err(_)) { return },
                () = yield_now() => {}
            }
        }
        let _ = tls.write_all(&said).await;
        let _ = tls.shutdown().await;
        while !matches!(tls.read(&mut heard).await, Ok(0) | Err(_)) {}
    }
}

async fn serve(echo: Rc<TcpListener>, incoming: Incoming) {
    if incoming.authority().is_none_or(|a| a.port_u16() == Some(2)) {
        return incoming.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
    }
    let to = echo.local_addr().unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(to), echo.accept());
    let (one, mut other) = (one.unwrap(), other.unwrap().0);
    spawn_local(async move {
        let (mut from, mut to) = other.split();
        // It may be reset at any time.
        if tokio::io::copy(&mut from, &mut to).await.is_ok() {
            let _ = to.shutdown().await;
        }
    });
    if let Ok(stream) = incoming.accept(&Baggage::default()) {
        let _ = stream
            .carry(one.into_std().unwrap(), &Rc::new(Meter::default()))
            .await;
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|steps: Vec<Step>| {
    WORLD.with_borrow(|world| world.run(&steps));
});
