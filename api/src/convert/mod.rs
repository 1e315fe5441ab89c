//! Between Docker's JSON types and ours, in both directions.
//!
//! Reading ends with a comparison: what is written out again must hold everything that was read,
//! so a field that we do not support is an error and never ignored.

mod cluster;
mod network;
mod node;
mod not_yet;
mod service;
mod task;
mod tls;

use std::{collections::HashMap, time::Duration};

use bollard_stubs::models as docker;
use jiff::Timestamp;
use model::{Version, spec::Labels};
use serde::Serialize;

use crate::{error::ApiError, lossless};

pub use cluster::{cluster_info, cluster_spec_from_docker, cluster_spec_to_docker, swarm};
pub use network::{network, network_spec_from_docker};
pub use node::{node, node_spec_from_docker};
pub(crate) use not_yet::{check_network, check_service};
pub use service::{ServiceObject, service, service_spec_from_docker, service_spec_to_docker};
pub(crate) use service::{resolve_networks, tag_image};
pub use task::{TaskObject, task};

/// RFC 3339 in UTC with as many digits as the time has, as Go writes it.
pub(crate) fn date(at: Timestamp) -> String {
    at.to_string()
}

pub(crate) fn version(version: Version) -> Option<docker::ObjectVersion> {
    Some(docker::ObjectVersion {
        index: Some(version.0),
    })
}

fn labels_from_docker(labels: &Option<HashMap<String, String>>) -> Labels {
    labels.clone().unwrap_or_default().into_iter().collect()
}

fn labels_to_docker(labels: &Labels) -> Option<HashMap<String, String>> {
    Some(labels.clone().into_iter().collect())
}

/// `None` for an empty list, which Docker leaves out.
fn list(items: &[String]) -> Option<Vec<String>> {
    (!items.is_empty()).then(|| items.to_vec())
}

/// `None` for empty text, which stands for "not set".
fn text(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// Nanoseconds, as Go's `time.Duration` is written.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn duration(field: &str, nanos: i64) -> Result<Duration, ApiError> {
    unsigned(field, nanos).map(Duration::from_nanos)
}

fn unsigned(field: &str, value: i64) -> Result<u64, ApiError> {
    u64::try_from(value)
        .map_err(|_| ApiError::invalid_argument(format!("{field}: {value} must not be negative")))
}

/// Refuses a request of which `kept`, our reading written out again, lost something.
fn nothing_lost<A: Serialize, B: Serialize>(read: &A, kept: &B) -> Result<(), ApiError> {
    let value = |result: serde_json::Result<_>| {
        result.map_err(|err| ApiError::internal(format!("cannot encode a spec: {err}")))
    };
    let read = value(serde_json::to_value(read))?;
    let kept = value(serde_json::to_value(kept))?;
    match lossless::first_lost(&read, &kept) {
        Some(path) => Err(ApiError::unsupported(path)),
        None => Ok(()),
    }
}
