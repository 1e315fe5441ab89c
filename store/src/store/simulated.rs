//! Stores for the simulation, with nothing left to chance but what it gives them.

use std::{net::SocketAddr, sync::Arc};

use openraft::ServerState;
use rand::{RngExt, rngs::StdRng};
use vault::DataKey;

use super::{Disk, RaftId, Store, StoreConfig, StoreError, election, make_alone, read_disk};
use crate::disk::failing::Failing;

/// What a store has instead of a directory and of chance.
pub(crate) struct Simulated {
    pub(crate) disk: Failing,
    pub(crate) key: DataKey,
    pub(crate) random: StdRng,
    /// Entries kept behind a snapshot.
    pub(crate) log_kept: u64,
}

impl Simulated {
    /// # Errors
    /// As [`Store::open`].
    pub(crate) async fn open(mut self, config: StoreConfig) -> Result<Store, StoreError> {
        let disk = Disk::open_on("simulated".into(), self.key, self.disk)?;
        let id = RaftId(self.random.random());
        let opened = read_disk(Arc::new(disk), id)?;
        let draw = move || election::patience(&mut self.random);
        Store::start(opened, config, self.log_kept, draw).await
    }

    /// # Errors
    /// As [`Store::force_new`].
    pub(crate) fn force_new(mut self, addr: SocketAddr) -> Result<(), StoreError> {
        let disk = Disk::open_on("simulated".into(), self.key, self.disk)?;
        make_alone(&Arc::new(disk), RaftId(self.random.random()), addr)
    }
}

impl Store {
    /// The term that this manager leads, in Raft's eyes.
    pub(crate) fn term_led(&self) -> Option<u64> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }
}
