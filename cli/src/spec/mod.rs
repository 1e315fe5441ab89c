//! From flags to specs: what `service create` and `service update` share.

mod external_ca;
mod list;
mod network;
mod placement;
mod task;
mod traffic;

pub use self::{
    external_ca::external_ca,
    list::{edit_by_key, edit_list, edit_map, parse_env, parse_map, sorted},
    network::{attachment, edit_networks},
    placement::{extra_host, preference},
    task::{TaskFlags, words},
    traffic::TrafficFlags,
};
