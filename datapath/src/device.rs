//! What kind of device an interface is, and what it does to packets by itself.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const ETHTOOL_GDRVINFO: u32 = 3;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved2: [u8; 12],
    n_priv_flags: u32,
    n_stats: u32,
    testinfo_len: u32,
    eedump_len: u32,
    regdump_len: u32,
}

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// Whether hardware (or a hypervisor's) is behind the interface, going by the bus that its driver
/// names: veth, bridge and the like name none. An interface that does not answer is held for
/// virtual. sysfs would tell too, but shows the namespace in which it was mounted.
pub(crate) fn is_physical(interface: &str) -> bool {
    driver_info(interface).is_some_and(|info| {
        let end = info.bus_info.iter().position(|byte| *byte == 0);
        let bus = &info.bus_info[..end.unwrap_or(info.bus_info.len())];
        !matches!(bus, b"" | b"N/A")
    })
}

/// Whether the interface puts packets that it receives together (generic receive offload).
///
/// # Errors
/// Of the ioctl: `ENODEV` for an interface that is not there.
pub(crate) fn merges(interface: &str) -> io::Result<bool> {
    let mut value = Value {
        cmd: ETHTOOL_GGRO,
        data: 0,
    };
    ethtool(interface, &mut value).map(|()| value.data != 0)
}

/// Has the interface leave the packets that it receives as they are.
///
/// # Errors
/// Of the ioctl: `EPERM` without `CAP_NET_ADMIN`, `ENODEV` for an interface that is not there.
pub(crate) fn merge_no_more(interface: &str) -> io::Result<()> {
    let mut value = Value {
        cmd: ETHTOOL_SGRO,
        data: 0,
    };
    ethtool(interface, &mut value)
}

fn driver_info(interface: &str) -> Option<DriverInfo> {
    // SAFETY: it is made of integers, for which zero is a value.
    let mut info: DriverInfo = unsafe { zeroed() };
    info.cmd = ETHTOOL_GDRVINFO;
    ethtool(interface, &mut info).ok().map(|()| info)
}

/// The structures of `linux/ethtool.h`, which begin with a command and hold nothing but integers.
///
/// # Safety
/// A type's layout is that of the structure which its commands take.
unsafe trait Command {}

// SAFETY: field by field that of the header, for `ETHTOOL_GDRVINFO`.
unsafe impl Command for DriverInfo {}
// SAFETY: field by field that of the header, for `ETHTOOL_GGRO` and `ETHTOOL_SGRO`.
unsafe impl Command for Value {}

fn ethtool<T: Command>(interface: &str, command: &mut T) -> io::Result<()> {
    // SAFETY: makes a socket of this namespace; no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: it is made of integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *command).cast();
    // SAFETY: the name is NUL-terminated (it is shorter than its place, which was zero), and the
    // data points to a structure of the command's layout that outlives the call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
