//! The feed: each agent holds one session, over which it hears what its node needs and says what
//! became of it.
//!
//! * [`hub`]: who is connected, and what each session has yet to look at. [`reach`]: what each node
//!   acknowledged.
//! * [`rounds`]: the loop that follows the store, decides on drains, and hands the outcome to the
//!   sessions. [`pace`]: how fast.
//! * [`session`]: one agent's session. [`feed`]: what it sends; [`ledger`]: what that agent holds;
//!   [`flight`]: what it has yet to acknowledge.
//! * [`statuses`]: the loop that commits what agents report of their tasks.
//! * [`service`]: the gRPC service.

mod feed;
mod flight;
mod hub;
mod ledger;
mod pace;
mod reach;
mod rounds;
mod service;
mod session;
mod statuses;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::{
    feed::Feed,
    flight::Flight,
    hub::{Round, Work},
};
pub(crate) use hub::Hub;
pub(crate) use rounds::run as run_rounds;
pub(crate) use service::DispatcherService;
#[cfg(any(test, fuzzing))]
pub(crate) use statuses::apply as apply_statuses;
pub(crate) use statuses::{StatusSink, StatusSource, run as run_statuses, sink as status_sink};
