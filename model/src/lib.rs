//! The cluster's vocabulary: ids, specs, objects and their states, what a manager feeds an agent,
//! and the calls between nodes. No I/O.
//!
//! * [`id`]: 128-bit identifiers, shown as 25 base36 characters as Swarm does.
//! * [`spec`]: what a user asks for.
//! * [`object`]: what the store keeps.
//! * [`state`]: the life of a task.
//! * [`feed`]: what an agent is told, and what it says back.
//! * [`token`]: join tokens.
//! * [`probe`]: what agents tell each other by single packets.
//! * [`rpc`]: the gRPC services between nodes; [`codec`]: their encoding.
//! * [`inspect`]: rows of `swarmnet inspect`.

pub mod codec;
pub mod feed;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod id;
pub mod inspect;
pub mod object;
pub mod probe;
pub mod rpc;
pub mod spec;
pub mod state;
pub mod token;
pub mod traffic;

pub use id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
pub use object::{EndpointId, Version, Vni};
pub use state::TaskState;
