//! The listener for processes of the own host: no TLS and no tokens, since the kernel vouches for
//! both ends.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use super::grpc;
use crate::{Error, ca::Certificates, xds::Discovery};

/// Where processes of this host connect.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// A group whose members may open the socket beside its owner. Whether they are admitted is
    /// another question: see [`PeerCredentials`](crate::auth::PeerCredentials).
    pub group: Option<u32>,
}

/// The socket, bound but not served yet; its file goes when this does.
#[derive(Debug)]
pub struct UnixServer {
    listener: UnixListener,
    file: SocketFile,
}

impl UnixServer {
    /// Binds the path. What a crashed process left there is replaced; a socket that somebody
    /// serves is not.
    ///
    /// # Errors
    /// When somebody serves there, the path is something else than a socket, or the directory
    /// cannot be written.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        bind(config).map_err(Error::file("listen on", &config.path))
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// When the transport fails for good.
    pub async fn serve(
        self,
        discovery: Discovery,
        certificates: Certificates,
    ) -> Result<(), Error> {
        let Self { listener, file } = self;
        let served = grpc(discovery, certificates)
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await;
        drop(file);
        served.map_err(|error| Error::crypto("serve")(error.into()))
    }
}

fn bind(config: &Config) -> io::Result<UnixServer> {
    let path = &config.path;
    refuse_occupied(path)?;
    // Whoever sees the path shall see its final mode, so it appears when it has one.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = SocketFile(path.with_file_name(name));
    match fs::remove_file(&temporary.0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary.0)?;
    let mode = if config.group.is_some() { 0o660 } else { 0o600 };
    chown(&temporary.0, None, config.group)?;
    fs::set_permissions(&temporary.0, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary.0, path)?;
    Ok(UnixServer {
        listener,
        file: SocketFile(path.clone()),
    })
}

fn refuse_occupied(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let message = "there is something else than a socket; remove it, or choose another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match UnixStream::connect(path) {
        Ok(_) => {
            let message = "another process serves there";
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
        // Nobody listens: it was left behind.
        Err(_) => Ok(()),
    }
}

/// Removes the file of a socket.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It is gone already when it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}
