//! The cluster's settings, join tokens and unlock key.

use std::time::Duration;

use model::{Version, id::base36, object::Cluster, spec::ClusterSpec};
use store::Transaction;
use vault::UnlockKey;

use super::{OpError, error::check_version};
use crate::{external, rotation};

const CERT_EXPIRY_MIN: Duration = Duration::from_secs(3600);

/// Secrets to be replaced. The old ones stop working at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotate {
    pub worker_token: bool,
    pub manager_token: bool,
    /// Nothing is replaced where managers are not to be locked.
    pub unlock_key: bool,
}

/// See [`super::update_cluster`].
pub fn update(
    tx: &mut Transaction,
    version: Version,
    spec: ClusterSpec,
    rotate: Rotate,
) -> Result<(), OpError> {
    let cluster = tx.state().cluster();
    let cluster = cluster.ok_or_else(|| OpError::not_found("cluster", "default"))?;
    check_version(&cluster.meta, version)?;
    validate(&spec)?;
    external::check(cluster, &spec).map_err(|error| OpError::invalid(error.to_string()))?;
    let mut cluster = Cluster::clone(cluster);
    if spec.force_rotate != cluster.spec.force_rotate {
        rotation::begin(&mut cluster, tx.now())
            .map_err(|error| OpError::invalid(format!("cannot make a root: {error}")))?;
    }
    cluster.spec = spec;
    if rotate.worker_token {
        cluster.tokens.worker = rotated(&cluster.tokens.worker);
    }
    if rotate.manager_token {
        cluster.tokens.manager = rotated(&cluster.tokens.manager);
    }
    cluster.unlock_key = match cluster.unlock_key.take() {
        _ if !cluster.spec.autolock => None,
        Some(key) if !rotate.unlock_key => Some(key),
        _ => Some(UnlockKey::generate()),
    };
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
