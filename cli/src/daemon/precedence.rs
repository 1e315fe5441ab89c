//! The daemon goes before the tasks of its node: they may keep every CPU busy, and while it waits
//! for one, its node's rings stay behind those of others, and nobody can be told of its flows.

use std::io;

use nix::libc::{PRIO_PROCESS, setpriority};
use tracing::warn;

/// Weighs about nine times what a task's thread does. Tasks get the usual one back from their shims.
const NICENESS: i32 = -10;

/// Takes effect for this thread and those that it starts from now on.
pub(super) fn take() {
    // SAFETY: takes numbers only; 0 is the calling thread.
    if unsafe { setpriority(PRIO_PROCESS, 0, NICENESS) } != 0 {
        warn!(
            "cannot go before busy tasks (needs CAP_SYS_NICE): {}",
            io::Error::last_os_error()
        );
    }
}
