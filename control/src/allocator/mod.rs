//! Hands out the cluster's numbers: subnets and VNIs to networks, virtual addresses and published
//! ports to services, addresses and endpoint ids to tasks.
//!
//! What is in use is what the objects in the store hold, nothing else: an object that goes gives
//! back what it had, and nothing can leak or be handed out twice. A number given back is used
//! again as late as possible: every search begins after the one handed out last
//! ([`model::object::AllocationCursor`]).

mod addresses;
mod error;
mod network;
mod ports;
mod service;
mod task;
#[cfg(test)]
mod tests;

pub use addresses::{AddressBook, holds_addresses};
pub use error::AllocateError;
pub use network::{GATEWAY_BRIDGE, INGRESS_NAME, create_ingress, create_network, ingress};
pub use ports::{DYNAMIC_PORTS, PortConflict};
pub use service::allocate_service;
pub use task::step;
