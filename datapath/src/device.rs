//! What kind of device an interface is.

use std::{
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const ETHTOOL_GDRVINFO: u32 = 3;

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

fn driver_info(interface: &str) -> Option<DriverInfo> {
    // SAFETY: makes a socket of this namespace; no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return None;
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: both are made of integers and pointers, for which zero is a value.
    let (mut info, mut request): (DriverInfo, libc::ifreq) = unsafe { (zeroed(), zeroed()) };
    info.cmd = ETHTOOL_GDRVINFO;
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the name is NUL-terminated (it is shorter than its place, which was zero), and the
    // data points to a structure of the command's layout that outlives the call.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then_some(info)
}
