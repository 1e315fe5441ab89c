//! What the model has words for and the nodes do not do yet. Accepting it would lose traffic, or
//! let it out, in silence; each refusal goes when the nodes learn the thing.

use model::spec::{NetworkSpec, Protocol, ServiceSpec};

use crate::error::ApiError;

/// # Errors
/// 501 naming the first field of a service that the data plane does not serve.
pub(crate) fn check_service(spec: &ServiceSpec) -> Result<(), ApiError> {
    for (at, port) in spec.endpoint.ports.iter().enumerate() {
        if port.protocol == Protocol::Sctp {
            return Err(ApiError::unsupported(format!(
                "EndpointSpec.Ports[{at}].Protocol `sctp`"
            )));
        }
    }
    Ok(())
}

/// # Errors
/// 501 naming the first field of a network that the data plane does not serve.
pub(crate) fn check_network(spec: &NetworkSpec) -> Result<(), ApiError> {
    if spec.internal {
        return Err(ApiError::unsupported(
            "Internal: a network without a way out",
        ));
    }
    Ok(())
}
