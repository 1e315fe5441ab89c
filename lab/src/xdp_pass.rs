//! An XDP program that passes everything. What XDP sends back out of a veth waits in the peer's ring
//! until that polls, and the kernel (6.18, `veth_xdp_flush`) wakes only a peer that runs an XDP program
//! itself: GRO alone gives it the ring, but nobody who looks into it.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`, as `struct bpf_insn`s.
const PASS: [u64; 2] = [2 << 32 | 0xb7, 0x95];

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instructions: u32,
    first: u64,
    license: u64,
    _log: [u32; 6],
}

#[repr(C)]
struct LinkAttr {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
}

/// Attaches the program to an interface of the calling thread's namespace, for as long as the value
/// lives.
///
/// # Errors
/// What the kernel said.
pub(crate) fn attach(interface: &str) -> io::Result<OwnedFd> {
    let mut load = LoadAttr {
        kind: BPF_PROG_TYPE_XDP,
        instructions: PASS.len() as u32,
        first: PASS.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        ..LoadAttr::default()
    };
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    let mut link = LinkAttr {
        program: program.as_raw_fd() as u32,
        ifindex: nix::net::if_::if_nametoindex(interface)?,
        kind: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &mut link)
}

/// A command that makes something.
fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<OwnedFd> {
    let attr: *mut A = attr;
    // SAFETY: the command's part of `union bpf_attr` with its size; what it points to is constant.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
