//! What can go wrong between us and the kernel, and what a person does about it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::{desired::DesiredError, plan::Full};

#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(
        "cannot mount a bpffs at {}: mount it by hand (`mount -t bpf bpf {}`) or set another pin \
         directory", .path.display(), .path.display()
    )]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot use the pin directory {}: run as root, or set another one", .path.display())]
    PinDir { path: PathBuf, source: io::Error },
    #[error(
        "another process uses the pin directory {}: stop that agent, or give this one its own",
        .path.display()
    )]
    Busy { path: PathBuf },
    #[error(
        "the kernel does not take the data plane's maps: {}", hint(.source)
    )]
    Load { source: Box<EbpfError> },
    #[error("the kernel does not take program {program}: {}", program_hint(.source))]
    Program {
        program: &'static str,
        source: Box<ProgramError>,
    },
    #[error(
        "this build's eBPF object has no {kind} {name}: run `cargo xtask build-ebpf` and build again"
    )]
    Missing {
        kind: &'static str,
        name: &'static str,
    },
    #[error(
        "map {map} under {} does not have this build's shape: stop the agent, delete that \
         directory and start again", .dir.display()
    )]
    MapShape {
        map: &'static str,
        dir: PathBuf,
        source: Box<MapError>,
    },
    #[error("cannot {action} map {map}")]
    Map {
        map: &'static str,
        action: &'static str,
        source: io::Error,
    },
    #[error("cannot {action} the pin {}", .path.display())]
    Pin {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "cannot open the cgroup {}: set the mount point of cgroup2 (see `findmnt -t cgroup2`)",
        .path.display()
    )]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("cannot attach {program} to {target}: {}", attach_hint(.source))]
    Attach {
        program: &'static str,
        target: String,
        source: io::Error,
    },
    #[error(
        "cannot turn off GRO of {interface}, which generic XDP on the uplink asks for: try `ethtool -K {interface} gro off`, or `--uplink-mode tc`"
    )]
    Offload {
        interface: String,
        source: io::Error,
    },
    #[error("cannot attach {program} to {target} as a tc filter: {}", filter_hint(.source))]
    Filter {
        program: &'static str,
        target: String,
        source: io::Error,
    },
    #[error("cannot look through the tc filters of this network namespace")]
    Filters { source: io::Error },
    #[error("there is no interface with index {ifindex} in this network namespace")]
    NoInterface { ifindex: u32 },
    #[error(transparent)]
    Desired(#[from] DesiredError),
    #[error(transparent)]
    Full(#[from] Full),
}

impl DatapathError {
    pub(crate) fn filters(source: io::Error) -> Self {
        Self::Filters { source }
    }

    pub(crate) fn map(map: &'static str, action: &'static str) -> impl Fn(MapError) -> Self {
        move |error| Self::Map {
            map,
            action,
            source: io_error(error),
        }
    }

    pub(crate) fn map_io(map: &'static str, action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Map {
            map,
            action,
            source,
        }
    }
}

/// The system's error when there is one below.
pub(crate) fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound => io::ErrorKind::NotFound.into(),
        other => io::Error::other(other),
    }
}

fn hint(error: &EbpfError) -> &'static str {
    let EbpfError::MapError(MapError::CreateError { io_error, .. }) = error else {
        return "is the object of this build whole?";
    };
    match io_error.raw_os_error() {
        Some(libc::EPERM) => "run as root (CAP_BPF and CAP_NET_ADMIN)",
        Some(libc::ENOMEM) => "free some memory: they take about 80 MiB",
        Some(libc::EINVAL) => "swarmnet needs Linux 6.1 or later",
        _ => "is bpf(2) allowed here?",
    }
}

fn program_hint(error: &ProgramError) -> &'static str {
    match error {
        ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            "run as root (CAP_BPF and CAP_NET_ADMIN)"
        }
        ProgramError::LoadError { .. } => "its verifier's log follows",
        _ => "is bpf(2) allowed here?",
    }
}

fn attach_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another program owns that hook; detach it (`ip link set … xdp off`)",
        Some(libc::EOPNOTSUPP) => "the driver lacks it; use `--uplink-mode tc`",
        Some(libc::EPERM) => "run as root (CAP_BPF and CAP_NET_ADMIN)",
        Some(libc::E2BIG) => "64 programs are there already; are agents of former runs left over?",
        _ => "the kernel refused",
    }
}

fn filter_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EEXIST) => {
            "another program's filter has priority 1 and our handle there; delete it (`tc filter \
             del dev … ingress`)"
        }
        Some(libc::EINVAL) => {
            "filters of another kind have priority 1 there; move them (`tc filter show dev … \
             ingress`)"
        }
        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
            "the kernel lacks the clsact qdisc or BPF filters (CONFIG_NET_SCH_INGRESS, \
             CONFIG_NET_CLS_BPF)"
        }
        Some(libc::EPERM) => "run as root (CAP_BPF and CAP_NET_ADMIN)",
        _ => "the kernel refused",
    }
}
