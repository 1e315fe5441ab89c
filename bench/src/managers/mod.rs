//! What the managers do by themselves: how much they commit, and how long a cluster is without a leader.
//!
//! * [`writes`]: committed writes, against [`etcd`].
//! * [`failover`]: from the last acknowledged write of a leader to the next of another.
//! * [`door`]: nodes whose objects both write to.

pub mod door;
mod etcd;
pub mod failover;
mod labels;
pub mod writes;
