//! The resolver in each task's namespace, on 127.0.0.11:53.
//!
//! Names on the task's networks come from the node's view, looked up at each query, so a change of
//! the view holds from the next query on:
//!
//! | name | answer |
//! |---|---|
//! | `service`, alias | its VIP; with DNS round robin as `tasks.service` |
//! | `tasks.service` | the addresses of its ACTIVE tasks, shuffled |
//! | `service.slot.task`, first 12 characters of the task's id | the task's address |
//! | any of these, `.network` | the same, on that network only |
//! | an address, in reverse | `service.slot.task.network` or `service.network` |
//!
//! Every other name is forwarded, byte for byte, to the upstreams: what the upstream can do, the
//! task can ask for.

mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod names;
mod query;
mod resolver;
mod rows;

pub use resolver::TaskResolver;
pub use rows::rows;
