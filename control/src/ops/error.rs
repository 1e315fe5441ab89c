//! Why a user's wish is refused.

use model::{Version, object::Meta};
use store::WriteError;

use crate::allocator::AllocateError;

/// Nothing has changed. The text is what the user reads: Docker's sentence where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error("{kind} {name} not found")]
    NotFound { kind: &'static str, name: String },
    #[error("{0}")]
    AlreadyExists(String),
    #[error("rpc error: code = InvalidArgument desc = {0}")]
    InvalidArgument(String),
    #[error("rpc error: code = FailedPrecondition desc = {0}")]
    FailedPrecondition(String),
    /// The object has changed since the user read it.
    #[error("rpc error: code = Unknown desc = update out of sequence")]
    OutOfSequence,
    #[error("rpc error: code = Unimplemented desc = {0}")]
    Unimplemented(String),
    /// The managers cannot write now.
    #[error("{0}")]
    Unavailable(String),
    /// The store has stopped.
    #[error("{0}")]
    Internal(String),
}

impl OpError {
    pub(super) fn not_found(kind: &'static str, name: impl ToString) -> Self {
        Self::NotFound {
            kind,
            name: name.to_string(),
        }
    }

    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::InvalidArgument(text.into())
    }
}

/// Whether the object's spec is still as the user read it.
pub(super) fn check_version(stored: &Meta, given: Version) -> Result<(), OpError> {
    if (stored.edited..=stored.version).contains(&given) {
        Ok(())
    } else {
        Err(OpError::OutOfSequence)
    }
}

impl From<AllocateError> for OpError {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::UnknownNetwork(id) => Self::not_found("network", id),
            AllocateError::NetworkFull { .. }
            | AllocateError::PortsExhausted { .. }
            | AllocateError::PoolsExhausted { .. }
            | AllocateError::VnisExhausted => Self::FailedPrecondition(error.to_string()),
            AllocateError::PortTaken(_)
            | AllocateError::DataPathPort(_)
            | AllocateError::ProbesPort
            | AllocateError::SubnetOverlaps { .. }
            | AllocateError::GatewayBridge { .. }
            | AllocateError::SubnetTooSmall(_)
            | AllocateError::RangeEmpty { .. }
            | AllocateError::OutsideSubnet { .. } => Self::InvalidArgument(error.to_string()),
        }
    }
}

impl From<WriteError<OpError>> for OpError {
    fn from(error: WriteError<OpError>) -> Self {
        match error {
            WriteError::Refused(refused) => refused,
            WriteError::Stale(_) => Self::OutOfSequence,
            error @ (WriteError::NotLeader { .. }
            | WriteError::NoQuorum { .. }
            | WriteError::InDoubt { .. }) => Self::Unavailable(error.to_string()),
            other => Self::Internal(other.to_string()),
        }
    }
}
