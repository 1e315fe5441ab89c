//! The managers: allocator, scheduler, orchestrator, node liveness, dispatcher.

mod access;
pub mod allocator;
mod authority;
mod bootstrap;
pub mod constraint;
mod dispatcher;
mod drain;
#[cfg(test)]
mod fixture;
mod liveness;
mod lock;
mod manager;
mod membership;
pub mod ops;
pub mod orchestrator;
mod projection;
mod rotation;
pub mod scheduler;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod sim_tests;
pub mod stage;

pub use bootstrap::{BootstrapError, InitOptions, NodeCredentials};
pub use manager::{Manager, ManagerConfig, ManagerError};
