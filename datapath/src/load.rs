//! Programs and maps into the kernel, or back from their pins.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{Program, ProgramError, ProgramInfo},
};
use tracing::{debug, info};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    attach::Hook,
    bpffs::{PinDir, names, remove_dir},
    error::DatapathError,
    maps::MAP_NAMES,
    sys,
};

/// The eBPF object of this build.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SWARMNET_EBPF_OBJECT"));

/// As libbpf's.
const VERIFY_ATTEMPTS: usize = 5;

/// A program in the kernel.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub fd: OwnedFd,
    pub id: u32,
}

/// The program of each hook.
pub(crate) type Programs = BTreeMap<Hook, Loaded>;

/// Opens this build's programs from their pins; loads and pins them, and the maps, when they are
/// not all there. Maps that are pinned are kept in either case.
pub(crate) fn programs(pins: &PinDir) -> Result<Programs, DatapathError> {
    let directory = directory(pins);
    let digest = digest();
    if let Some(programs) = adopt(pins, &directory) {
        info!(ebpf.digest = digest, "programs adopted");
        return Ok(programs);
    }
    load(pins, &directory)?;
    info!(ebpf.digest = digest, "programs loaded");
    let opened = Hook::ALL
        .iter()
        .map(|hook| Ok((*hook, open(&directory, *hook)?)));
    opened
        .collect::<io::Result<_>>()
        .map_err(|source| DatapathError::Pin {
            action: "open",
            path: directory.clone(),
            source,
        })
}

/// Where this build's programs are pinned.
pub(crate) fn directory(pins: &PinDir) -> PathBuf {
    pins.programs().join(digest())
}

fn digest() -> String {
    format!("{:016x}", xxh3_64(OBJECT))
}

/// Unpins the programs of other builds. Links that ran them run this build's by now.
pub(crate) fn forget_other_builds(pins: &PinDir) -> Result<(), DatapathError> {
    let ours = digest();
    for name in names(&pins.programs())? {
        if name != ours {
            remove_dir(&pins.programs().join(name))?;
        }
    }
    Ok(())
}

/// The pinned programs, if they are complete and work on the pinned maps.
fn adopt(pins: &PinDir, directory: &Path) -> Option<Programs> {
    if !directory.exists() {
        return None;
    }
    let maps = pins.maps();
    let pinned = MAP_NAMES.iter().map(|name| map_id(&maps.join(name)));
    let pinned: Option<BTreeSet<u32>> = pinned.collect();
    let Some(pinned) = pinned else {
        info!("a pinned map is missing: programs are loaded anew");
        return None;
    };
    let mut programs = Programs::new();
    for hook in Hook::ALL {
        match open(directory, hook) {
            Ok(program) => programs.insert(hook, program),
            Err(error) => {
                info!(program.name = hook.program(), %error, "a pinned program is missing: programs are loaded anew");
                return None;
            }
        };
        let info = ProgramInfo::from_pin(directory.join(hook.program())).ok()?;
        for id in info.map_ids().ok()?? {
            let map = MapInfo::from_id(id).ok()?;
            let ours = map
                .name_as_str()
                .is_some_and(|name| MAP_NAMES.contains(&name));
            if ours && !pinned.contains(&id) {
                info!(
                    program.name = hook.program(),
                    "a pinned program works on other maps: programs are loaded anew"
                );
                return None;
            }
        }
    }
    Some(programs)
}

fn map_id(path: &Path) -> Option<u32> {
    Some(MapData::from_pin(path).ok()?.info().ok()?.id())
}

fn open(directory: &Path, hook: Hook) -> io::Result<Loaded> {
    let path = directory.join(hook.program());
    let fd = sys::open_pin(&path)?;
    let info = ProgramInfo::from_pin(&path).map_err(io::Error::other)?;
    Ok(Loaded { fd, id: info.id() })
}

/// Loads the object on the pinned maps, making those that are missing, and pins the programs in
/// `directory`: all of them or, seen from a later start, none.
fn load(pins: &PinDir, directory: &Path) -> Result<(), DatapathError> {
    let maps = pins.maps();
    let mut loader = EbpfLoader::new();
    // Rust programs carry no relocations against the kernel's types, so its BTF is not read.
    loader.btf(None);
    for name in MAP_NAMES {
        loader.map_pin_path(name, maps.join(name));
    }
    let mut object = loader.load(OBJECT).map_err(|source| DatapathError::Load {
        source: Box::new(source),
    })?;
    for name in MAP_NAMES {
        if object.map(name).is_none() {
            return Err(DatapathError::Missing { kind: "map", name });
        }
    }
    let draft = pins.programs().join("draft");
    let pin_error = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| DatapathError::Pin {
            action,
            path,
            source,
        }
    };
    remove_dir(&draft)?;
    fs::create_dir(&draft).map_err(pin_error("make", &draft))?;
    for hook in Hook::ALL {
        let name = hook.program();
        let program = object.program_mut(name).ok_or(DatapathError::Missing {
            kind: "program",
            name,
        })?;
        let fail = |source| DatapathError::Program {
            program: name,
            source: Box::new(source),
        };
        verify(program).map_err(fail)?;
        let path = draft.join(name);
        program
            .pin(&path)
            .map_err(|error| pin_error("make", &path)(io::Error::other(error)))?;
        debug!(program.name = name, "program loaded");
    }
    remove_dir(directory)?;
    fs::rename(&draft, directory).map_err(pin_error("rename", &draft))
}

/// Through the verifier, which gives up (EAGAIN) when a signal waits for its thread.
fn verify(program: &mut Program) -> Result<(), ProgramError> {
    let mut verify = || match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    for _ in 1..VERIFY_ATTEMPTS {
        match verify() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    verify()
}
