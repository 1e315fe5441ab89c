//! Disk calls off the threads that run tasks.

use std::{sync::Arc, time::Duration};

use crate::disk::{Disk, DiskError};

/// That a simulated disk is waited for: about as long as for a message.
pub(crate) const DISK_TAKES: Duration = Duration::from_millis(1);

/// Runs `f` where it may block, and notes why it failed: Raft ends with it. Not cancelled once begun.
pub(super) async fn blocking<T: Send + 'static>(
    disk: &Arc<Disk>,
    f: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    if cfg!(test) {
        // In the simulation, whose history must not depend on how threads are scheduled. Meanwhile messages
        // come and go.
        tokio::time::sleep(DISK_TAKES).await;
        return f(disk);
    }
    let disk = Arc::clone(disk);
    let done = tokio::task::spawn_blocking({
        let disk = Arc::clone(&disk);
        move || f(&disk)
    });
    let outcome = done.await.unwrap_or(Err(DiskError::Panicked));
    outcome.inspect_err(|error| disk.note_failure(error))
}
