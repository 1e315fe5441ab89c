//! What root in a task may do: Docker's default set. Without it a task's root could leave its
//! namespaces (`CAP_SYS_ADMIN`) or take another's addresses (`CAP_NET_ADMIN`).

use nix::errno::Errno;

use super::sys::{Failure, OrFail};

/// Numbers of `capabilities(7)`.
const KEPT: [i32; 14] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    13, // NET_RAW
    18, // SYS_CHROOT
    27, // MKNOD
    29, // AUDIT_WRITE
    31, // SETFCAP
];

/// The kernel keeps capabilities in 64 bits.
const CAPABILITIES_MAX: i32 = 64;

/// Takes the others out of the bounding set: no program executed from here on can have them.
pub(super) fn drop_all_but_default() -> Result<(), Failure> {
    for capability in (0..CAPABILITIES_MAX).filter(|number| !KEPT.contains(number)) {
        // SAFETY: this prctl takes integers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(dropped) {
            Err(Errno::EINVAL) => break, // above the last one of this kernel
            done => drop(done.or_fail(|| format!("drop capability {capability}"))?),
        }
    }
    Ok(())
}
