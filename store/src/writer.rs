//! The leader's queue of transactions. Each is computed on the outcome of those before it, though
//! they are not committed yet; while one log entry is on its way to disk, the transactions for the
//! next one gather. So many writers share an fsync, and none sees a state that skips a write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use model::Version;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    ChangeSet, Standing, State, Superseded, Transaction, WriteError,
    disk::Disk,
    error::StoreError,
    raft::{Batch, Outcome, Raft},
};

/// Transactions in one log entry.
const BATCH_MAX: usize = 256;

/// Takes transactions and commits them in order.
#[derive(Debug)]
pub(crate) struct Writer {
    disk: Arc<Disk>,
    applied: watch::Receiver<Arc<State>>,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// The applied state with everything in flight and waiting on top; `None` when nothing is.
    tip: Option<Arc<State>>,
    waiting: Vec<Pending>,
    stopped: bool,
}

/// A transaction whose writer waits to hear of its fate.
#[derive(Debug)]
struct Pending {
    /// `None` for one that only read, but read what is not committed yet.
    set: Option<ChangeSet>,
    done: oneshot::Sender<Result<(), Failure>>,
}

/// Why a log entry did not come through.
#[derive(Debug, Clone)]
enum Failure {
    Superseded(Superseded),
    /// Leadership or the quorum was lost, and the entry may still come through.
    InDoubt,
    Stopped(String),
}

impl Writer {
    pub(crate) fn new(disk: Arc<Disk>, applied: watch::Receiver<Arc<State>>) -> Self {
        Self {
            disk,
            applied,
            queue: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// See [`Store::write`](crate::Store::write). Once `f` has run, dropping the future does not
    /// undo the write.
    pub(crate) async fn write<T, E>(
        &self,
        f: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<(T, Version), WriteError<E>> {
        let (value, version, done) = self.compute(f)?;
        if let Some(done) = done {
            let fate = done.await;
            let fate = fate.unwrap_or_else(|_| Err(Failure::Stopped(STOPPED.to_owned())));
            fate.map_err(|failure| self.write_error(failure))?;
        }
        Ok((value, version))
    }

    #[expect(clippy::type_complexity, reason = "used once, and plain to read")]
    fn compute<T, E>(
        &self,
        f: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<(T, Version, Option<oneshot::Receiver<Result<(), Failure>>>), WriteError<E>> {
        let mut queue = self.lock();
        if queue.stopped {
            return Err(self.write_error(Failure::Stopped(STOPPED.to_owned())));
        }
        let uncommitted = queue.tip.is_some();
        let base = queue.tip.clone();
        let base = base.unwrap_or_else(|| Arc::clone(&self.applied.borrow()));
        let mut tx = Transaction::new(Arc::clone(&base), Timestamp::now());
        let value = f(&mut tx).map_err(WriteError::Refused)?;
        let set = tx.finish()?;
        if !set.changes.is_empty() {
            let version = base.version().next();
            return Ok((value, version, Some(self.enqueue(queue, base, set)?)));
        }
        let done = uncommitted.then(|| {
            let (done, fate) = oneshot::channel();
            queue.waiting.push(Pending { set: None, done });
            self.filled.notify_one();
            fate
        });
        Ok((value, base.version(), done))
    }

    fn enqueue(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        base: Arc<State>,
        set: ChangeSet,
    ) -> Result<oneshot::Receiver<Result<(), Failure>>, Superseded> {
        let mut tip = Arc::unwrap_or_clone(base);
        tip.apply(set.clone())?;
        queue.tip = Some(Arc::new(tip));
        let (done, fate) = oneshot::channel();
        queue.waiting.push(Pending {
            set: Some(set),
            done,
        });
        self.filled.notify_one();
        Ok(fate)
    }

    /// Commits what writers enqueue, until `stop`. What is under way when this manager no longer
    /// leads fails.
    pub(crate) async fn run(
        self: Arc<Self>,
        raft: Raft,
        mut standing: watch::Receiver<Standing>,
        stop: CancellationToken,
    ) {
        let work = async {
            loop {
                let batch = self.next_batch();
                if batch.is_empty() {
                    self.filled.notified().await;
                } else {
                    self.commit(&raft, &mut standing, batch).await;
                }
            }
        };
        stop.run_until_cancelled(work).await;
        let mut queue = self.lock();
        queue.stopped = true;
        fail(
            queue.waiting.drain(..),
            &Failure::Stopped(STOPPED.to_owned()),
        );
    }

    fn next_batch(&self) -> Vec<Pending> {
        let mut queue = self.lock();
        let len = queue.waiting.len().min(BATCH_MAX);
        queue.waiting.drain(..len).collect()
    }

    async fn commit(
        &self,
        raft: &Raft,
        standing: &mut watch::Receiver<Standing>,
        mut batch: Vec<Pending>,
    ) {
        let sets: Vec<_> = batch.iter_mut().filter_map(|p| p.set.take()).collect();
        let fate = if sets.is_empty() {
            Ok(())
        } else {
            tokio::select! {
                fate = propose(raft, sets) => fate,
                _ = standing.wait_for(|standing| !standing.leads()) => Err(Failure::InDoubt),
            }
        };
        let mut queue = self.lock();
        match fate {
            Ok(()) => {
                if queue.waiting.is_empty() {
                    queue.tip = None;
                }
                for pending in batch {
                    // Fails when the writer has gone: nobody to tell.
                    let _ = pending.done.send(Ok(()));
                }
            }
            Err(failure) => {
                // What waits was computed on top of what failed.
                queue.tip = None;
                fail(batch.into_iter().chain(queue.waiting.drain(..)), &failure);
            }
        }
    }

    fn write_error<E>(&self, failure: Failure) -> WriteError<E> {
        match failure {
            Failure::Superseded(superseded) => WriteError::Superseded(superseded),
            Failure::InDoubt => WriteError::InDoubt {
                missing: Vec::new(),
            },
            Failure::Stopped(reason) => WriteError::Store(StoreError::Stopped {
                path: self.disk.path().to_owned(),
                reason: self.disk.failure_seen().map_or(reason, str::to_owned),
            }),
        }
    }

    /// A panic in a caller's function leaves the queue as it was.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const STOPPED: &str = "it was shut down";

fn fail(pending: impl Iterator<Item = Pending>, failure: &Failure) {
    for pending in pending {
        // Fails when the writer has gone: nobody to tell.
        let _ = pending.done.send(Err(failure.clone()));
    }
}

async fn propose(raft: &Raft, sets: Vec<ChangeSet>) -> Result<(), Failure> {
    match raft.client_write(Batch(sets)).await {
        Ok(response) => match response.data {
            Outcome::Applied => Ok(()),
            Outcome::Superseded(superseded) => Err(Failure::Superseded(superseded)),
        },
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Failure::InDoubt),
        Err(error) => Err(Failure::Stopped(error.to_string())),
    }
}
