//! The cluster's settings and join tokens.

use std::time::Duration;

use model::{Version, id::base36, object::Cluster, spec::ClusterSpec};
use store::Transaction;

use super::{OpError, error::check_version};

const CERT_EXPIRY_MIN: Duration = Duration::from_secs(3600);

/// Tokens to be replaced. The old ones stop working at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RotateTokens {
    pub worker: bool,
    pub manager: bool,
}

/// See [`super::update_cluster`].
pub fn update(
    tx: &mut Transaction,
    version: Version,
    spec: ClusterSpec,
    rotate: RotateTokens,
) -> Result<(), OpError> {
    let cluster = tx.state().cluster();
    let cluster = cluster.ok_or_else(|| OpError::not_found("cluster", "default"))?;
    check_version(cluster.meta.version, version)?;
    validate(&spec)?;
    let mut cluster = Cluster::clone(cluster);
    cluster.spec = spec;
    if rotate.worker {
        cluster.tokens.worker = rotated(&cluster.tokens.worker);
    }
    if rotate.manager {
        cluster.tokens.manager = rotated(&cluster.tokens.manager);
    }
    tx.put(cluster).map_err(|_| OpError::OutOfSequence)
}

fn validate(spec: &ClusterSpec) -> Result<(), OpError> {
    if spec.cert_expiry < CERT_EXPIRY_MIN {
        let text = "minimum certificate expiry time is: 1h0m0s";
        return Err(OpError::invalid(text));
    }
    if spec.dispatcher_heartbeat.is_zero() {
        let text = "dispatcher heartbeat must be more than 0s";
        return Err(OpError::invalid(text));
    }
    Ok(())
}

/// The token with a new secret; the part before it names the root certificate and stays.
fn rotated(token: &str) -> String {
    let root = token.rsplit_once('-').map_or(token, |(root, _)| root);
    format!("{root}-{}", base36(rand::random()))
}
