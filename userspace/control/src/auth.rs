//! Who calls, and from which node: by a token, or by what the kernel says of a local process.

mod join_tokens;
mod peer_credentials;
pub mod service_accounts;

use std::{fmt, net::SocketAddr};

use serde::{Serialize, Serializer};
use sluice_model::Name;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::server::UdsConnectInfo,
};

pub use join_tokens::JoinTokens;
pub use peer_credentials::PeerCredentials;
pub use service_accounts::ServiceAccounts;

/// A caller that has proven itself.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The node on which it runs.
    pub node: Name,
    pub peer: Peer,
    pub credential: Credential,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A process of this host, as the kernel knows it from the moment when it connected.
    Unix {
        uid: u32,
        pid: Option<i32>,
    },
    /// The transport does not say.
    Unknown,
}

/// By what a caller has proven itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Credential {
    JoinToken,
    PeerCredentials,
    ServiceAccount,
}

/// What a request says of its caller, to be proven.
#[derive(Clone)]
pub struct Claim {
    peer: Peer,
    authorization: Option<MetadataValue<Ascii>>,
}

/// Everything by which callers may prove themselves.
#[derive(Debug, Default)]
pub struct Authenticator {
    pub join_tokens: Option<JoinTokens>,
    pub service_accounts: Option<ServiceAccounts>,
    /// For the callers of a Unix socket, and only for them.
    pub peer_credentials: Option<PeerCredentials>,
}

/// Why a claim does not hold, for the log only. It never holds a token.
struct Refusal(String);

/// Why nobody knows who calls.
enum Failure {
    /// The caller has not proven itself.
    Refused(Refusal),
    /// Whoever could tell cannot be asked now.
    Unavailable(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Authenticator {
    /// Who has sent a request.
    ///
    /// # Errors
    /// `Unauthenticated`, which tells the caller nothing, or `Unavailable` when it should try again;
    /// the log says who it was and why.
    pub async fn authenticate(&self, claim: &Claim) -> Result<Caller, Status> {
        let peer = claim.peer;
        let proven = match peer {
            Peer::Unix { uid, .. } => match &self.peer_credentials {
                Some(allowed) => allowed
                    .node_of(uid)
                    .map(|node| (node, Credential::PeerCredentials))
                    .map_err(Failure::from),
                None => Err(Refusal("no local process is admitted".to_owned()).into()),
            },
            Peer::Tcp(_) | Peer::Unknown => self.by_token(claim).await,
        };
        match proven {
            Ok((node, credential)) => Ok(Caller {
                node,
                peer,
                credential,
            }),
            Err(Failure::Refused(Refusal(why))) => Err(refuse(peer, &why)),
            Err(Failure::Unavailable(why)) => {
                tracing::warn!(
                    peer = peer.to_string(),
                    "caller cannot be authenticated: {why}"
                );
                Err(Status::unavailable("authentication is not available"))
            }
        }
    }

    async fn by_token(&self, claim: &Claim) -> Result<(Name, Credential), Failure> {
        let token = claim.token()?;
        if let Some(tokens) = &self.join_tokens
            && let Some(node) = tokens.node_of(token)?
        {
            return Ok((node, Credential::JoinToken));
        }
        let Some(accounts) = &self.service_accounts else {
            return Err(Refusal("its token is not a join token".to_owned()).into());
        };
        let node = accounts.node_of(token).await?;
        Ok((node, Credential::ServiceAccount))
    }
}

impl Claim {
    pub fn of<T>(request: &Request<T>) -> Self {
        let local = request.extensions().get::<UdsConnectInfo>();
        let peer = match (local, request.remote_addr()) {
            (Some(local), _) => match local.peer_cred {
                Some(process) => Peer::Unix {
                    uid: process.uid(),
                    pid: process.pid(),
                },
                None => Peer::Unknown,
            },
            (None, Some(address)) => Peer::Tcp(address),
            (None, None) => Peer::Unknown,
        };
        Self {
            peer,
            authorization: request.metadata().get("authorization").cloned(),
        }
    }

    fn token(&self) -> Result<&str, Refusal> {
        let refusal = |why: &str| Refusal(why.to_owned());
        let header = self.authorization.as_ref();
        let header = header.ok_or_else(|| refusal("it sent no authorization header"))?;
        let header = header
            .to_str()
            .map_err(|_| refusal("its authorization header is not ASCII"))?;
        bearer(header).ok_or_else(|| refusal("its authorization header holds no bearer token"))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the token.
        f.debug_struct("Claim")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix {
                uid,
                pid: Some(pid),
            } => write!(f, "process {pid} of uid {uid}"),
            Self::Unix { uid, pid: None } => write!(f, "a process of uid {uid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The credentials of an `Authorization: Bearer TOKEN` header (RFC 6750 §2.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Refuses a call: the caller learns nothing, the log everything.
pub(crate) fn refuse(peer: Peer, why: &str) -> Status {
    tracing::warn!(peer = peer.to_string(), "call refused: {why}");
    Status::unauthenticated("authentication failure")
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn only_bearer_tokens_count() {
        assert_eq!(bearer("Bearer x"), Some("x"));
        assert_eq!(bearer("bearer  x "), Some("x"));
        for header in ["", "Bearer", "Bearer ", "Basic x", "x"] {
            assert_eq!(bearer(header), None, "{header:?}");
        }
    }
}
