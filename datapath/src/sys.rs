//! The `bpf(2)` commands that aya 0.14 does not offer, or not for every kind of link: batches of map
//! entries; creating, updating and asking links. (aya's XDP attachment falls back to one that
//! cannot be pinned, and its cgroup links cannot be updated.) Numbers and layouts are those of
//! `linux/bpf.h`.

use std::{
    ffi::CString,
    io,
    mem::{size_of, size_of_val},
    ops::Deref,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::{NonNull, null_mut},
    sync::atomic::AtomicU32,
    time::Duration,
};

use aya::Pod;
use nix::time::{ClockId, clock_gettime};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// First try at the number of entries of a batch. A hash map refuses a batch that is smaller than
/// its fullest bucket.
const BATCH_ENTRIES: usize = 4096;
const BATCH_ENTRIES_MAX: usize = 1 << 20;

/// The bytes of plain values, as the kernel sees them.
pub(crate) fn bytes_of<T: Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` values have no padding with undefined bytes (the ABI crate names its padding),
    // the pointer is valid for the slice's size, and the result borrows the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// One `bpf(2)` call.
///
/// # Safety
/// `attr` must be the command's part of `union bpf_attr`, each pointer in it valid for what the
/// command reads and writes.
pub(crate) unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the caller vouches for `attr`; its size is passed along, so the kernel reads no
    // further.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[repr(C)]
#[derive(Default)]
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

/// Bytes of one entry of a map, as system calls carry it: for per-CPU maps, a value is those of all
/// CPUs, each rounded up to 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntrySize {
    pub key: usize,
    pub value: usize,
}

/// Every entry of a hash map, or every element of an array. Entries that come and go meanwhile may
/// be missed; none is torn but by a writer of the same entry.
pub(crate) fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let size = EntrySize {
        key: size_of::<K>(),
        value: size_of::<V>(),
    };
    let mut entries = Vec::new();
    for_each_entry(map, size, |key, value| {
        // SAFETY: both slices have the types' sizes, and every bit pattern is a value of a `Pod`
        // type; alignment does not matter to `read_unaligned`.
        let entry = unsafe {
            (
                key.as_ptr().cast::<K>().read_unaligned(),
                value.as_ptr().cast::<V>().read_unaligned(),
            )
        };
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

/// As [`read_all`], for a map whose type is not known here. `size` must be the map's.
pub(crate) fn for_each_entry(
    map: BorrowedFd<'_>,
    size: EntrySize,
    mut take: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut room = BATCH_ENTRIES;
    // Opaque to us; a bucket number (hash) or an index (array), four bytes in either case. Room for
    // a key of any of our maps is given, since the kernel copies as much for some map types.
    let mut position = [0u8; 64];
    let mut begun = false;
    loop {
        let mut next = [0u8; 64];
        let mut keys = vec![0u8; room * size.key];
        let mut values = vec![0u8; room * size.value];
        let mut attr = BatchAttr {
            in_batch: if begun { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: keys and values have room for `count` entries of the map's sizes (the typed maps
        // check the sizes against the kernel's), positions for the largest key.
        let outcome = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let ended = match outcome {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && attr.count == 0 => {
                room *= 2;
                if room > BATCH_ENTRIES_MAX {
                    return Err(error);
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let entries = keys
            .chunks_exact(size.key)
            .zip(values.chunks_exact(size.value));
        for (key, value) in entries.take(attr.count as usize) {
            take(key, value)?;
        }
        if ended {
            return Ok(());
        }
        position = next;
        begun = true;
    }
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Whether an entry that is there already is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Replace = 0,
    /// `EEXIST` for one that is there.
    Keep = 1,
}

/// Writes one entry. Key and value must have the map's sizes.
pub(crate) fn write_entry(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    existing: Existing,
) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: existing as u64,
        ..ElemAttr::default()
    };
    // SAFETY: the caller gives key and value in the map's sizes, which is what the kernel reads.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr)? };
    Ok(())
}

/// Writes elements of an array from `first` on, in one call.
pub(crate) fn write_run<V: Pod>(map: BorrowedFd<'_>, first: u32, values: &[V]) -> io::Result<()> {
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    let mut done = 0;
    while done < values.len() {
        let mut attr = BatchAttr {
            keys: keys[done..].as_ptr() as u64,
            values: values[done..].as_ptr() as u64,
            count: (values.len() - done) as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: keys and values hold `count` entries of the map's sizes, which the typed maps
        // checked.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr)? };
        if attr.count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += attr.count as usize;
    }
    Ok(())
}

/// Reads elements `first..first + count` of an array, in one call.
pub(crate) fn read_run<V: Pod>(map: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<Vec<V>> {
    let mut values: Vec<V> = Vec::with_capacity(count as usize);
    let mut keys: Vec<u32> = Vec::with_capacity(count as usize);
    // The batch begins after the element that `in_batch` names.
    let before = first.wrapping_sub(1);
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: if first == 0 {
            0
        } else {
            &raw const before as u64
        },
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: keys and values have room for `count` entries of the map's sizes, positions for an
    // array's key.
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => {}
        // The end of the array came with the last element.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && attr.count == count => {}
        Err(error) => return Err(error),
    }
    // SAFETY: the kernel wrote `count` values, and every bit pattern is one.
    unsafe { values.set_len(attr.count as usize) };
    Ok(values)
}

/// An array map of 32-bit words, made with `BPF_F_MMAPABLE`, in our memory: a store is one word in
/// one go for whoever reads, and no system call.
#[derive(Debug)]
pub(crate) struct MappedWords {
    start: NonNull<MappedWord>,
    len: usize,
}

/// The kernel gives each element of an array eight bytes or a multiple.
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct MappedWord {
    pub word: AtomicU32,
    _pad: u32,
}

impl MappedWords {
    /// Of `map`, with `len` elements.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        // SAFETY: a new mapping at a place that the kernel chooses; it refuses a length beyond the
        // map's, and a map that is no such array.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                len * size_of::<MappedWord>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }
}

impl Deref for MappedWords {
    type Target = [MappedWord];

    fn deref(&self) -> &[MappedWord] {
        // SAFETY: the mapping has `len` elements of this layout and lives as long as `self`; others
        // write only the words, which are atomic here.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it outlives `self`.
        unsafe {
            libc::munmap(
                self.start.as_ptr().cast(),
                self.len * size_of::<MappedWord>(),
            )
        };
    }
}

// SAFETY: memory that is no thread's own, and atomic.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr)? };
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins a link or program at `path`, which must be on a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        ..ObjAttr::default()
    };
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr)? };
    Ok(())
}

/// Where a new link goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attach<'a> {
    /// Ingress of an interface, before all other programs there.
    TcxIngress(u32),
    /// An interface; `XDP_FLAGS_*`.
    Xdp(u32, u32),
    /// A cgroup and everything below; one of the `BPF_CGROUP_*` attach types.
    Cgroup(BorrowedFd<'a>, u32),
}

const BPF_XDP: u32 = 37;
pub(crate) const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;

pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

pub(crate) const BPF_CGROUP_INET4_CONNECT: u32 = 10;
pub(crate) const BPF_CGROUP_UDP4_SENDMSG: u32 = 14;
pub(crate) const BPF_CGROUP_UDP4_RECVMSG: u32 = 19;
pub(crate) const BPF_CGROUP_INET4_GETPEERNAME: u32 = 29;

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// tcx: the program or link that the order refers to; zero is all.
    relative: u32,
    _pad: u32,
    expected_revision: u64,
}

/// Attaches a program; the link lives as long as its descriptor or a pin.
pub(crate) fn create_link(program: BorrowedFd<'_>, to: Attach<'_>) -> io::Result<OwnedFd> {
    let (target, attach_type, flags) = match to {
        Attach::TcxIngress(ifindex) => (ifindex, BPF_TCX_INGRESS, BPF_F_BEFORE),
        Attach::Xdp(ifindex, flags) => (ifindex, BPF_XDP, flags),
        Attach::Cgroup(cgroup, attach_type) => (cgroup.as_raw_fd() as u32, attach_type, 0),
    };
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags,
        ..LinkCreateAttr::default()
    };
    // SAFETY: no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr)? };
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link; no packet or call sees neither or both.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdateAttr::default()
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr)? };
    Ok(())
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// Takes the link's program off its hook, now. (When merely the last reference to a link goes, the
/// kernel detaches it a little later.)
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr {
        link_fd: link.as_raw_fd() as u32,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr)? };
    Ok(())
}

/// Where a link is attached, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    pub target: LinkTarget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// Interface index; zero when the device is gone.
    Tcx(u32),
    /// As for tcx.
    Xdp(u32),
    /// Cgroup id; zero when the cgroup is gone.
    Cgroup(u64),
    Other(u32),
}

/// The head of `struct bpf_link_info`, with room for the union's largest member.
#[repr(C, align(8))]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    /// Begins with the interface index (tcx, XDP) or the cgroup id.
    target: u64,
    _rest: [u64; 6],
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<RawLinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: `info` is valid for writes of `info_len` bytes, and integers all.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    // The first four bytes in memory, on either endianness.
    let bytes = info.target.to_ne_bytes();
    let ifindex = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let target = match info.kind {
        BPF_LINK_TYPE_TCX => LinkTarget::Tcx(ifindex),
        BPF_LINK_TYPE_XDP => LinkTarget::Xdp(ifindex),
        BPF_LINK_TYPE_CGROUP => LinkTarget::Cgroup(info.target),
        kind => LinkTarget::Other(kind),
    };
    Ok(LinkInfo {
        id: info.id,
        program_id: info.prog_id,
        target,
    })
}

/// The clock of the programs' `bpf_ktime_get_coarse_ns`.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits until every program has ended that runs now: the kernel implements the global memory
/// barrier as an RCU grace period. 10 to 50 ms.
pub(crate) fn await_running_programs() -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
