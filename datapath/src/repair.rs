//! What was not as it should be, for the log of a repair; and the pins, which others may delete.

use std::{
    fmt, fs,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use dataplane_abi::PortWord;
use tracing::debug;

use crate::{
    attach::Hook,
    bpffs::PinDir,
    error::DatapathError,
    load,
    maps::MAP_NAMES,
    plan::Op,
    sys,
    tables::{Frontend, Tables},
};

/// One thing that was found other than it should be, and was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Such as `map entry PEERS 192.0.2.2`.
    pub what: String,
    /// Such as `missing`.
    pub found: String,
}

impl Deviation {
    pub(crate) fn new(what: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            found: found.to_string(),
        }
    }
}

/// What the operations of a plan put right, when nothing but the maps themselves changed since the
/// last one.
pub(crate) fn deviations(ops: &[Op], present: &Tables) -> Vec<Deviation> {
    ops.iter().filter_map(|op| deviation(op, present)).collect()
}

fn deviation(op: &Op, present: &Tables) -> Option<Deviation> {
    let put = |map, key: String, is_there: bool| {
        let found = if is_there { "altered" } else { "missing" };
        Some(Deviation::new(format_args!("map entry {map} {key}"), found))
    };
    let removed = |map, key: String| {
        let what = format_args!("map entry {map} {key}");
        Some(Deviation::new(what, "there and nobody's"))
    };
    match op {
        Op::PutEndpoint(at, _) => {
            let is_there = present.endpoints.contains_key(at);
            put("ENDPOINTS", format!("{at:?}"), is_there)
        }
        Op::PutVeth(index, _) => put(
            "VETHS",
            index.to_string(),
            present.veths.contains_key(index),
        ),
        Op::PutLocal(id, _) => put("LOCAL", id.to_string(), present.locals.contains_key(id)),
        Op::PutNetns(cookie, _) => put(
            "NETNS",
            cookie.to_string(),
            present.netns.contains_key(cookie),
        ),
        Op::PutTarget(at, _) => put(
            "TARGETS",
            format!("{at:?}"),
            present.targets.contains_key(at),
        ),
        Op::PutPeer(addr, _) => put("PEERS", addr.to_string(), present.peers.contains_key(addr)),
        Op::PutNodeAddr(addr) => put("NODE_ADDRS", addr.to_string(), false),
        Op::PutVip(at, _) => {
            let vip = Frontend::Vip(*at);
            put("VIPS", vip.to_string(), present.services.contains_key(&vip))
        }
        Op::PutAddressed(at, _) => {
            let is_there = present.addressed.contains_key(at);
            put("ADDRESSED", Frontend::Published(*at).to_string(), is_there)
        }
        Op::SetPort(port, word) if *word == PortWord::default() => {
            removed("PORTS", port.to_string())
        }
        // The word, or the frontend that it leads to.
        Op::SetPort(port, _) => put("PORTS", port.to_string(), present.ports.contains_key(port)),
        Op::PutConfig(_) => put("CONFIG", "0".to_owned(), present.config.generation != 0),
        Op::RemoveVip(at) => removed("VIPS", Frontend::Vip(*at).to_string()),
        Op::RemoveAddressed(at) => removed("ADDRESSED", Frontend::Published(*at).to_string()),
        Op::RemoveEndpoint(at) => removed("ENDPOINTS", format!("{at:?}")),
        Op::RemoveVeth(index) => removed("VETHS", index.to_string()),
        Op::RemoveLocal(id) => removed("LOCAL", id.to_string()),
        Op::RemoveNetns(cookie) => removed("NETNS", cookie.to_string()),
        Op::RemoveTarget(at) => removed("TARGETS", format!("{at:?}")),
        Op::RemovePeer(addr) => removed("PEERS", addr.to_string()),
        Op::RemoveNodeAddr(addr) => removed("NODE_ADDRS", addr.to_string()),
        // Each comes with the entry that names it, or follows from another one.
        Op::WriteFrontend(..)
        | Op::WriteRing(..)
        | Op::WriteBackends(..)
        | Op::ResetStats(_)
        | Op::DropFlows(_)
        | Op::DropVipFlows(_) => None,
    }
}

/// Every pinned map and program, held open, so that a pin that is deleted can be made again: the
/// next agent would find no map, and begin with empty ones.
#[derive(Debug)]
pub(crate) struct Anchors {
    pinned: Vec<(PathBuf, OwnedFd)>,
    links: PathBuf,
}

impl Anchors {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        let programs = load::directory(pins);
        let maps = MAP_NAMES.iter().map(|name| pins.maps().join(name));
        let programs = Hook::ALL.iter().map(|hook| programs.join(hook.program()));
        let open = |path: PathBuf| match sys::open_pin(&path) {
            Ok(fd) => Ok((path, fd)),
            Err(source) => Err(DatapathError::Pin {
                action: "open",
                path,
                source,
            }),
        };
        let pinned: Result<_, DatapathError> = maps.chain(programs).map(open).collect();
        Ok(Self {
            pinned: pinned?,
            links: pins.links(),
        })
    }

    /// Makes the pins that are gone, those of links apart, and the links' directory.
    pub fn ensure(&self) -> Result<Vec<Deviation>, DatapathError> {
        let mut found = Vec::new();
        fs::create_dir_all(&self.links).map_err(|source| DatapathError::Pin {
            action: "make",
            path: self.links.clone(),
            source,
        })?;
        for (path, fd) in self.pinned.iter().filter(|(path, _)| !path.exists()) {
            let fail = |source| DatapathError::Pin {
                action: "make",
                path: path.clone(),
                source,
            };
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(fail)?;
            }
            sys::pin(fd.as_fd(), path).map_err(fail)?;
            debug!(pin.path = %path.display(), "pin made again");
            let what = format_args!("pin {}", path.display());
            found.push(Deviation::new(what, "missing"));
        }
        Ok(found)
    }
}
