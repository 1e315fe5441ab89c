//! What is attached to an interface's tcx ingress, whoever attached it; `linux/bpf.h` has the
//! numbers and layouts.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
};

use aya::{maps::MapData, programs::loaded_programs};

use crate::sys::{self, BPF_TCX_INGRESS};

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;

/// The kernel takes no more programs on one hook (`BPF_MPROG_MAX`).
const PROGRAMS_MAX: usize = 64;

/// A program on the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attached {
    pub program_id: u32,
    /// Zero for one that is attached without a link.
    pub link_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    _pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Whether the kernel has tcx (Linux 6.6 and later).
pub(crate) fn has_tcx() -> bool {
    // In every network namespace it is the loopback device.
    const LOOPBACK: u32 = 1;
    // Kernels without it do not know the type of attachment.
    !tcx_ingress(LOOPBACK).is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// The programs on an interface's tcx ingress, in the order in which they run.
pub(crate) fn tcx_ingress(ifindex: u32) -> io::Result<Vec<Attached>> {
    let (mut programs, mut links) = ([0u32; PROGRAMS_MAX], [0u32; PROGRAMS_MAX]);
    let mut attr = QueryAttr {
        target: ifindex,
        attach_type: BPF_TCX_INGRESS,
        program_ids: programs.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        link_ids: links.as_mut_ptr() as u64,
        ..QueryAttr::default()
    };
    // SAFETY: both arrays have room for `count` ids.
    unsafe { sys::bpf(BPF_PROG_QUERY, &mut attr)? };
    let both = programs.into_iter().zip(links).take(attr.count as usize);
    let attached = both.map(|(program_id, link_id)| Attached {
        program_id,
        link_id,
    });
    Ok(attached.collect())
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

pub(crate) fn open_link(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        ..IdAttr::default()
    };
    // SAFETY: no pointers.
    let fd = unsafe { sys::bpf(BPF_LINK_GET_FD_BY_ID, &mut attr)? };
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether a program is `name` of this node's data plane, of whatever build: it works on the map
/// pinned at `map`. Other nodes of the machine run programs of the same name on maps of their own.
pub(crate) fn is_ours(program_id: u32, name: &str, map: &Path) -> bool {
    let map_id = MapData::from_pin(map).and_then(|map| map.info().map(|info| info.id()));
    let Ok(map_id) = map_id else {
        return false;
    };
    let mut programs = loaded_programs().filter_map(Result::ok);
    let program = programs.find(|program| program.id() == program_id);
    program.is_some_and(|program| {
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        program.name_as_str() == Some(name) && maps.contains(&map_id)
    })
}
