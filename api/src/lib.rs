//! The Docker Engine API on a unix socket, so that the stock `docker` client and every SDK drive
//! this cluster; what Docker lacks stands beside it under `/swarmnet/`.
//!
//! * [`router`] has the routes, over a [`LocalNode`] that the daemon implements; [`serve`] puts
//!   them on a socket.
//! * [`convert`] goes between Docker's JSON types and the model, losing nothing: a field that is
//!   set and not supported is an error that names it.

pub mod convert;
mod error;
mod filters;
mod folding;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod local_node;
mod lossless;
mod reference;
mod request;
mod routes;
mod server;
mod version;

pub use error::ApiError;
pub use local_node::{
    Host, HostPort, InitRequest, JoinParams, LocalNode, LocalStatus, MemberState, ParseHostError,
    PortUser, PublishedPorts, Remote, RemoteManager,
};
pub use routes::{Answers, WRONG_KEY, router};
pub use server::serve;
pub use version::{ApiVersion, MAX as API_VERSION_MAX, MIN as API_VERSION_MIN};
