//! Calls of `bpf(2)` that the loader's library does not offer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// # Safety
/// `attr` is what the command wants, with pointers that are valid.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i64> {
    // SAFETY: as the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

pub fn create_lru_hash(key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type: BPF_MAP_TYPE_LRU_HASH,
        key_size,
        value_size,
        max_entries,
        ..CreateAttr::default()
    };
    // SAFETY: no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr)? };
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Writes many entries of an array of 32-bit values at once.
pub fn update_batch(map: impl AsFd, entries: &[(u32, u32)]) -> io::Result<()> {
    let (keys, values): (Vec<u32>, Vec<u32>) = entries.iter().copied().unzip();
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: entries.len() as u32,
        map_fd: map.as_fd().as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: both arrays hold `count` values of four bytes, and live on.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop) }
}
