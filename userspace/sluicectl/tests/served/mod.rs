//! A ztunnel or a control plane, as far as `sluicectl` can tell.

use std::net::SocketAddr;

use sluice_telemetry::serve::{Router, serve};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

/// Serves pages on loopback for as long as the runtime lives.
pub(crate) fn served(pages: Router) -> (Runtime, SocketAddr) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { match serve(listener, pages).await {} });
    (runtime, address)
}
