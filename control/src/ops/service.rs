//! Services: see the functions of the same names in [`super`].

use std::{mem, sync::Arc};

use model::{
    ServiceId, Version,
    object::{Meta, Service, UpdateState, UpdateStatus},
    spec::{ServiceMode, ServiceSpec},
};
use store::{Key, State, Transaction};

use super::{OpError, error::check_version, validate};
use crate::allocator;

pub fn create(tx: &mut Transaction, spec: ServiceSpec) -> Result<ServiceId, OpError> {
    validate::service(&spec)?;
    check_networks(tx.state(), &spec)?;
    let mut service = Service {
        id: ServiceId::generate(),
        meta: Meta::new(tx.now()),
        spec,
        previous_spec: None,
        // The store fills it in.
        spec_version: Version::default(),
        endpoint: Default::default(),
        update_status: None,
    };
    let id = service.id;
    // Docker names a taken port before a taken name.
    allocator::allocate_service(tx, &mut service)?;
    check_name(tx.state(), &service.spec.name)?;
    put(tx, service)?;
    Ok(id)
}

pub fn update(
    tx: &mut Transaction,
    id: ServiceId,
    version: Version,
    spec: ServiceSpec,
) -> Result<(), OpError> {
    let mut service = find(tx.state(), id, version)?;
    validate::service(&spec)?;
    check_unchanging(&service.spec, &spec)?;
    check_networks(tx.state(), &spec)?;
    if service.spec != spec {
        service.previous_spec = Some(mem::replace(&mut service.spec, spec));
    }
    allocator::allocate_service(tx, &mut service)?;
    // A paused update goes on, a running one begins anew with the new spec.
    service.update_status = None;
    put(tx, service)
}

pub fn rollback(tx: &mut Transaction, id: ServiceId, version: Version) -> Result<(), OpError> {
    let mut service = find(tx.state(), id, version)?;
    let Some(previous) = service.previous_spec.take() else {
        return Err(OpError::FailedPrecondition(format!(
            "service {id} does not have a previous spec"
        )));
    };
    check_networks(tx.state(), &previous)?;
    service.previous_spec = Some(mem::replace(&mut service.spec, previous));
    allocator::allocate_service(tx, &mut service)?;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        since: tx.version(),
        started_at: tx.now(),
        completed_at: None,
        message: "manually requested rollback".to_owned(),
    });
    put(tx, service)
}

pub fn remove(tx: &mut Transaction, id: ServiceId) -> Result<(), OpError> {
    if tx.state().service(id).is_none() {
        return Err(OpError::not_found("service", id));
    }
    tx.remove(Key::Service(id));
    Ok(())
}

fn find(state: &State, id: ServiceId, version: Version) -> Result<Service, OpError> {
    let service = state
        .service(id)
        .ok_or_else(|| OpError::not_found("service", id))?;
    check_version(&service.meta, version)?;
    Ok(Arc::unwrap_or_clone(Arc::clone(service)))
}

fn put(tx: &mut Transaction, service: Service) -> Result<(), OpError> {
    tx.put(service).map_err(|_| OpError::OutOfSequence)
}

fn check_name(state: &State, name: &str) -> Result<(), OpError> {
    match state.service_by_name(name) {
        None => Ok(()),
        Some(_) => Err(OpError::AlreadyExists(format!(
            "rpc error: code = AlreadyExists desc = name conflicts with an existing object: \
             service {name} already exists"
        ))),
    }
}

fn check_unchanging(old: &ServiceSpec, new: &ServiceSpec) -> Result<(), OpError> {
    if old.name != new.name {
        let text = "renaming services is not supported";
        return Err(OpError::Unimplemented(text.to_owned()));
    }
    let same_mode = matches!(
        (old.mode, new.mode),
        (
            ServiceMode::Replicated { .. },
            ServiceMode::Replicated { .. }
        ) | (ServiceMode::Global, ServiceMode::Global)
    );
    if same_mode {
        Ok(())
    } else {
        let text = "service mode change is not allowed";
        Err(OpError::Unimplemented(text.to_owned()))
    }
}

fn check_networks(state: &State, spec: &ServiceSpec) -> Result<(), OpError> {
    for attachment in &spec.task.networks {
        let id = attachment.network;
        let network = state
            .network(id)
            .ok_or_else(|| OpError::not_found("network", id))?;
        if network.spec.ingress {
            return Err(OpError::InvalidArgument(format!(
                "Service cannot be explicitly attached to the ingress network \"{}\"",
                network.spec.name
            )));
        }
    }
    Ok(())
}
