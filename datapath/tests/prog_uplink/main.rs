//! `sn_tc_uplink` and `sn_xdp_uplink`: the mesh's entry. A table per topic, each row through both
//! programs.

#[path = "../common/mod.rs"]
mod common;
mod fate;
mod pair;
mod setup;

// The tables.
mod affinity;
mod doubted;
mod host;
mod local;
mod lookup;
mod moved;
mod next_hop;
mod refused;
mod remote;
mod shape;
mod socket;
mod source_port;
