//! What tests of the tunnel stand on: its two sides, and applications.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustls::ServerConfig;
use sluice_hbone::{
    Baggage, CarryError, ConnectRequest, Dialled, Engine, ForwardedFor, Incoming, Meter, OpenError,
    Opened, Pool, ServeError, Session, Stream, Traceparent, TunnelKey,
};
use sluice_identity::Svid;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Mutex, mpsc, watch},
    task::{JoinHandle, LocalSet, spawn_local},
    time::timeout,
};

use crate::authority::{DB, Root, WEB, id};

/// How long a thing may take that should take milliseconds, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// What the kernel may buffer in each socket of an application or towards one, before it doubles
/// the number for its own bookkeeping.
pub(crate) const SOCKET_BUFFER: u32 = 128 << 10;

/// Runs a test as a worker thread runs tunnels: one current-thread runtime for both sides.
pub(crate) fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let begin = std::time::Instant::now();
    // The runtime's time may be paused, and so cannot be what limits the test. It then jumps
    // whenever no task can go on, were it only for a socket that is about to be ready; so it does
    // in small steps.
    let watch = async {
        while begin.elapsed() < 2 * PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            () = test => {}
            () = watch => panic!("not done within {:?}", begin.elapsed()),
        }
    });
}

/// Waits for something that nothing announces.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let poll = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, poll)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// `web` on one side and `db` on the other, with nothing between them but loopback.
pub(crate) struct World {
    pub(crate) root: Root,
    pub(crate) source: Rc<Source>,
    pub(crate) destination: Destination,
}

impl World {
    /// Streams are carried to the application that their authority names.
    pub(crate) async fn new() -> Self {
        Self::serving(to_application).await
    }

    pub(crate) async fn serving<F>(on_stream: impl Fn(Incoming) -> F + Clone + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let root = Root::new();
        let destination = Destination::start(&root.svid(DB), on_stream).await;
        let source = Source::new(root.svid(WEB), destination.addr).await;
        Self {
            root,
            source,
            destination,
        }
    }
}

/// As the inbound side of a ztunnel does: connects to the application and carries.
pub(crate) async fn to_application(incoming: Incoming) {
    let application = incoming
        .authority()
        .and_then(|authority| authority.as_str().parse().ok());
    let Some(application) = application else {
        return incoming.refuse(http::StatusCode::BAD_REQUEST);
    };
    let Ok(tcp) = connect(application).await else {
        return incoming.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
    };
    if let Ok(stream) = incoming.accept(&Baggage::default()) {
        // How it ends is seen by the applications.
        let tcp = tcp.into_std().unwrap();
        let _ = stream.carry(tcp, &Rc::new(Meter::default())).await;
    }
}

/// Where tunnels end: a listener that serves every connection as one.
pub(crate) struct Destination {
    pub(crate) addr: SocketAddr,
    pub(crate) engine: Engine,
    accepted: Rc<Cell<usize>>,
    tunnels: Rc<RefCell<Vec<Serving>>>,
    ended: Mutex<mpsc::UnboundedReceiver<Result<(), ServeError>>>,
}

struct Serving {
    drain: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Destination {
    pub(crate) async fn start<F>(
        svid: &Arc<Svid>,
        on_stream: impl Fn(Incoming) -> F + Clone + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ends, ended) = mpsc::unbounded_channel();
        let engine = Engine::start().unwrap();
        let destination = Self {
            addr: listener.local_addr().unwrap(),
            engine: engine.clone(),
            accepted: Rc::default(),
            tunnels: Rc::default(),
            ended: Mutex::new(ended),
        };
        let svid = svid.clone();
        let (accepted, tunnels) = (destination.accepted.clone(), destination.tunnels.clone());
        spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                accepted.set(accepted.get() + 1);
                let (drain, drained) = watch::channel(false);
                let (ends, on_stream, svid) = (ends.clone(), on_stream.clone(), svid.clone());
                let engine = engine.clone();
                let task = spawn_local(async move {
                    let result = match Session::accept(&engine, tcp, &svid, Arc::new([])).await {
                        Ok(session) => session.serve(drained, on_stream).await,
                        Err(error) => Err(error),
                    };
                    // The test may be over.
                    let _ = ends.send(result);
                });
                tunnels.borrow_mut().push(Serving { drain, task });
            }
        });
        destination
    }

    /// How many TCP connections arrived so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.get()
    }

    /// How many tunnels are being served.
    pub(crate) fn serving(&self) -> usize {
        let tunnels = self.tunnels.borrow();
        tunnels.iter().filter(|t| !t.task.is_finished()).count()
    }

    /// Lets no more streams into the tunnels that there are.
    pub(crate) fn drain(&self) {
        for tunnel in &*self.tunnels.borrow() {
            tunnel.drain.send_replace(true);
        }
    }

    /// Breaks the tunnels that there are, as the death of a process does.
    pub(crate) fn kill(&self) {
        for tunnel in self.tunnels.borrow_mut().drain(..) {
            tunnel.task.abort();
        }
    }

    /// How the next tunnel to end ended.
    pub(crate) async fn ended(&self) -> Result<(), ServeError> {
        let mut ended = self.ended.lock().await;
        let next = timeout(PATIENCE, ended.recv()).await;
        next.expect("a tunnel ends").unwrap()
    }
}

/// Where tunnels begin: a pool, and applications whose connections it takes.
pub(crate) struct Source {
    pub(crate) svid: Arc<Svid>,
    pub(crate) engine: Engine,
    pub(crate) pool: Pool,
    pub(crate) key: TunnelKey,
    dialled: Cell<usize>,
    /// Locked while an application connects, so that everybody gets their own connection.
    captured: Mutex<TcpListener>,
    captured_at: SocketAddr,
}

/// A source whose peer the test itself plays: where its tunnels are dialled to, and what proves the peer
/// to be the one that is expected.
pub(crate) async fn source_alone() -> (Rc<Source>, TcpListener, Arc<ServerConfig>) {
    let root = Root::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
    (source, listener, root.svid(DB).server_config())
}

/// How a connection failed that was taken from an application.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub(crate) enum Failure {
    Open(OpenError),
    Carry(CarryError),
}

/// An application's connection through a tunnel.
pub(crate) struct Connection {
    /// The application's end.
    pub(crate) app: TcpStream,
    /// The tunnel's, with the bytes that it counted.
    pub(crate) proxy: JoinHandle<Result<Rc<Meter>, Failure>>,
}

impl Source {
    pub(crate) async fn new(svid: Arc<Svid>, destination: SocketAddr) -> Rc<Self> {
        Self::driven_by(Engine::start().unwrap(), svid, destination).await
    }

    pub(crate) async fn driven_by(
        engine: Engine,
        svid: Arc<Svid>,
        destination: SocketAddr,
    ) -> Rc<Self> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let captured = socket.listen(64).unwrap();
        Rc::new(Self {
            captured_at: captured.local_addr().unwrap(),
            captured: Mutex::new(captured),
            key: TunnelKey {
                source: svid.identity().clone(),
                source_ip: [127, 0, 0, 1].into(),
                expected: vec![id(DB)],
                destination,
            },
            svid,
            pool: Pool::new(engine.clone()),
            engine,
            dialled: Cell::new(0),
        })
    }

    /// How many times the pool dialled.
    pub(crate) fn dialled(&self) -> usize {
        self.dialled.get()
    }

    pub(crate) async fn dial(&self, key: &TunnelKey) -> Result<Dialled, OpenError> {
        self.dialled.set(self.dialled.get() + 1);
        let tcp = TcpStream::connect(key.destination).await;
        Ok(Dialled {
            tcp: tcp.map_err(|error| OpenError::Connect(Rc::new(error)))?,
            tls: self.svid.client_config(key.expected.as_slice()),
            trust: self.svid.trust().clone(),
            expires: self.svid.not_after(),
        })
    }

    pub(crate) async fn open(&self, authority: &str) -> Result<Opened, OpenError> {
        self.open_with(&self.key, &request(authority)).await
    }

    pub(crate) async fn open_with(
        &self,
        key: &TunnelKey,
        request: &ConnectRequest,
    ) -> Result<Opened, OpenError> {
        self.open_for(key, request, None).await
    }

    /// As [`Self::open_with`], for the other end of an application's connection.
    pub(crate) async fn open_for(
        &self,
        key: &TunnelKey,
        request: &ConnectRequest,
        application: Option<&std::net::TcpStream>,
    ) -> Result<Opened, OpenError> {
        let dial = || self.dial(key);
        let opening = self.pool.open(key, request, application, dial);
        timeout(PATIENCE, opening)
            .await
            .expect("an answer in bounded time")
    }

    /// An application's connection, and its other end.
    pub(crate) async fn application(&self) -> (TcpStream, std::net::TcpStream) {
        let listener = self.captured.lock().await;
        let (app, captured) = tokio::join!(connect(self.captured_at), listener.accept());
        (app.unwrap(), captured.unwrap().0.into_std().unwrap())
    }

    /// Connects an application with another one, through a tunnel.
    pub(crate) async fn connect(self: &Rc<Self>, application: SocketAddr) -> Connection {
        self.connect_with(&self.key, application).await
    }

    /// As [`Self::connect`], through a tunnel of this key.
    pub(crate) async fn connect_with(
        self: &Rc<Self>,
        key: &TunnelKey,
        application: SocketAddr,
    ) -> Connection {
        let (app, captured) = self.application().await;
        let (source, key) = (self.clone(), key.clone());
        let proxy = spawn_local(async move {
            let meter = Rc::new(Meter::default());
            let wanted = request(&application.to_string());
            let opened = source.open_for(&key, &wanted, Some(&captured)).await;
            let stream = opened.map_err(Failure::Open)?.stream;
            let carried = stream.carry(captured, &meter).await;
            carried.map_err(Failure::Carry).map(|()| meter)
        });
        Connection { app, proxy }
    }
}

impl Connection {
    /// The bytes that the tunnel counted, once it is done: from the application, and to it.
    pub(crate) async fn carried(self) -> (u64, u64) {
        drop(self.app);
        let meter = ended(self.proxy).await.expect("an orderly end");
        (meter.received.get(), meter.sent.get())
    }
}

/// A task's result, which must come.
pub(crate) async fn ended<T>(task: JoinHandle<T>) -> T {
    let ended = timeout(PATIENCE, task).await;
    ended.expect("an end in bounded time").unwrap()
}

pub(crate) fn request(authority: &str) -> ConnectRequest {
    ConnectRequest {
        authority: authority.parse().unwrap(),
        forwarded: ForwardedFor {
            client: "10.0.0.1:4000".parse().unwrap(),
            host: None,
        },
        baggage: Baggage::default(),
        trace: Traceparent::begin(false),
    }
}

/// Connects with little buffer.
async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.connect(to).await
}

/// An application that serves every connection in this way.
pub(crate) async fn application<F>(serve: impl Fn(TcpStream) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let addr = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            spawn_local(serve(tcp));
        }
    });
    addr
}

/// A connection between two applications through a tunnel: the client's, and the server's end.
pub(crate) async fn pair(source: &Rc<Source>) -> (Connection, TcpStream) {
    let mut server = Acceptor::start().await;
    let connection = source.connect(server.addr).await;
    (connection, server.next().await)
}

/// An application that leaves its connections to the test.
pub(crate) struct Acceptor {
    pub(crate) addr: SocketAddr,
    accepted: mpsc::UnboundedReceiver<TcpStream>,
}

impl Acceptor {
    pub(crate) async fn start() -> Self {
        let (sender, accepted) = mpsc::unbounded_channel();
        let addr = application(move |tcp| {
            // The test may be over.
            let _ = sender.send(tcp);
            async {}
        })
        .await;
        Self { addr, accepted }
    }

    pub(crate) async fn next(&mut self) -> TcpStream {
        let next = timeout(PATIENCE, self.accepted.recv()).await;
        next.expect("a connection").unwrap()
    }
}

/// The two ends of a connection over loopback.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

/// A stream to an application, and a connection of another one that it may carry.
pub(crate) struct Begun {
    pub(crate) world: World,
    pub(crate) server: Acceptor,
    pub(crate) stream: Stream,
    pub(crate) app: TcpStream,
    /// The other end of `app`.
    pub(crate) captured: std::net::TcpStream,
}

impl Begun {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        let server = Acceptor::start().await;
        let authority = server.addr.to_string();
        let stream = world.source.open(&authority).await.unwrap().stream;
        let (app, captured) = world.source.application().await;
        Self {
            world,
            server,
            stream,
            app,
            captured,
        }
    }
}
