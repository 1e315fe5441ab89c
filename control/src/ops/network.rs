//! Networks: see the functions of the same names in [`super`].

use model::{NetworkId, spec::NetworkSpec};
use store::{Key, Transaction};

use super::{OpError, validate};
use crate::allocator;

pub fn create(tx: &mut Transaction, spec: NetworkSpec) -> Result<NetworkId, OpError> {
    validate::name(&spec.name)?;
    if spec.ipv6 {
        let text = "IPv6 subnets are not supported yet; leave out --ipv6";
        return Err(OpError::Unimplemented(text.to_owned()));
    }
    if let Some(taken) = tx.state().network_by_name(&spec.name) {
        return Err(OpError::AlreadyExists(format!(
            "network with name {} already exists",
            taken.spec.name
        )));
    }
    if let Some(ingress) = allocator::ingress(tx.state()).filter(|_| spec.ingress) {
        return Err(OpError::AlreadyExists(format!(
            "ingress network ({}) is already present",
            ingress.id
        )));
    }
    Ok(allocator::create_network(tx, spec)?)
}

pub fn remove(tx: &mut Transaction, id: NetworkId) -> Result<(), OpError> {
    let state = tx.state();
    let network = state
        .network(id)
        .ok_or_else(|| OpError::not_found("network", id))?;
    if network.spec.ingress {
        return Err(OpError::FailedPrecondition(format!(
            "network {} carries the published ports of all services and cannot be removed",
            network.spec.name
        )));
    }
    let user = state.services().find(|service| {
        let mut networks = service.spec.task.networks.iter();
        networks.any(|attachment| attachment.network == id)
    });
    if let Some(service) = user {
        return Err(OpError::FailedPrecondition(format!(
            "network {id} is in use by service {}",
            service.id
        )));
    }
    tx.remove(Key::Network(id));
    Ok(())
}
