//! The managers: allocator, scheduler, orchestrator, node liveness, dispatcher.

mod access;
pub mod allocator;
mod authority;
mod bootstrap;
pub mod constraint;
mod dispatcher;
mod drain;
mod external;
#[cfg(any(test, fuzzing))]
mod fixture;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod liveness;
mod lock;
mod manager;
mod members;
mod membership;
mod office;
pub mod ops;
pub mod orchestrator;
mod presence;
mod probe_keys;
mod projection;
mod raft;
mod rotation;
pub mod scheduler;
#[cfg(any(test, fuzzing))]
mod sim;
#[cfg(test)]
mod sim_agents;
#[cfg(test)]
mod sim_tests;
pub mod stage;
mod tunnel;

pub use bootstrap::{BootstrapError, InitOptions, NodeCredentials};
pub use external::ExternalCaError;
pub use forward::{ApiHandler, Forwarded};
pub use manager::{Candidate, Manager, ManagerConfig, ManagerError, Reach};
