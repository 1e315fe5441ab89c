//! The node agent: it follows the managers' feed and makes it true on its node.
//!
//! [`Agent`] is the handle; its one actor (`core`) owns the view, the data plane and the runners.
//! `session` talks with a manager, a `runner` lives as long as its task, `links` and `nat` make what
//! the kernel needs besides programs, `network` puts a task's namespace together, `pulse` asks other nodes
//! whether they are there. What a restart
//! needs is on disk (`view`, `networks/`, `tasks/`) and in the kernel (pins, namespaces, shims).

mod agent;
mod config;
mod core;
mod disk;
mod gateway;
mod links;
mod nat;
mod netns;
mod network;
mod nft;
mod nft_generation;
mod ports;
mod pulse;
mod reassembly;
mod repair;
mod runner;
mod serving;
mod session;
mod status;
mod view_file;

pub use agent::Agent;
pub use config::{AgentConfig, Credentials};
pub use session::{Applied, Session, SessionEvent};
pub use status::StatusBook;
