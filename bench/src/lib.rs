//! Figures as ratios against peers of the same run. `cargo xtask bench` builds what it needs and
//! runs it.
//!
//! Timings inform, they fail nothing; but a program, a path or a peer that does not do what its row
//! says ends its part.

mod api;
mod change;
mod feed;
mod live;
mod machine;
mod managers;
mod mesh;
mod overlay;
pub mod part;
pub mod programs;
mod programs_part;
pub mod record;
pub mod report;
mod scale;
mod sys;
mod wait;
mod way;

use std::path::PathBuf;

/// What is measured.
pub struct Objects {
    /// Folder of the eBPF objects.
    pub programs: PathBuf,
    pub swarmnet: PathBuf,
    /// The far end of measurements.
    pub meter: PathBuf,
    /// A task that listens, and ends at once when told to.
    pub whoami: PathBuf,
}

/// What every part needs to know.
pub struct Parts {
    pub quick: bool,
    pub objects: Objects,
    /// Objects of other balancers.
    pub peers: Vec<PathBuf>,
    pub peer_program: Option<String>,
    /// Our own object of other builds.
    pub before: Vec<PathBuf>,
    /// etcd's binary, if the machine has it.
    pub etcd: Option<PathBuf>,
}
