//! Why a stream ended, by whose fault.

/// An error of this crate. None of them ends the client: it tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operator's fault.
    #[error(transparent)]
    Configuration(#[from] sluice_identity::Error),
    #[error("the control plane cannot be reached; check its address and trust anchors")]
    Connect(#[source] tonic::transport::Error),
    #[error("the control plane refuses this node; check its token: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    #[error("the stream from the control plane broke: {}", .0.message())]
    Broken(#[source] Box<tonic::Status>),
    #[error("the control plane says nothing for {0:?}, and there is another address")]
    Silent(std::time::Duration),
    /// The fault of the control plane, or of what is between.
    #[error("the control plane sends nonsense: {0}")]
    Malformed(#[from] crate::Malformed),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code::{PermissionDenied, Unauthenticated};
        match status.code() {
            Unauthenticated | PermissionDenied => Self::Refused(Box::new(status)),
            _ => Self::Broken(Box::new(status)),
        }
    }
}
