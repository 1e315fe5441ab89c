//! A transaction: reads of one state, and the writes made so far on top.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use model::{EndpointId, Version};

use crate::{
    State,
    object::{Change, ChangeSet, Key, Object, Stamp},
};

/// An update of an object that has changed since it was read. The transaction is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("update out of sequence: {key} is at version {stored}, the update is of {given}")]
pub struct StaleObject {
    pub key: Key,
    pub stored: Version,
    pub given: Version,
}

/// Changes to be applied whole or not at all. What it reads includes what it wrote.
#[derive(Debug, Clone)]
pub struct Transaction {
    base: Arc<State>,
    /// `base` and `changes`.
    state: State,
    changes: BTreeMap<Key, Change>,
    now: Timestamp,
    stale: Option<StaleObject>,
}

impl Transaction {
    /// Over `base`, at the time `now`.
    pub fn new(base: Arc<State>, now: Timestamp) -> Self {
        Self {
            state: State::clone(&base),
            base,
            changes: BTreeMap::new(),
            now,
            stale: None,
        }
    }

    /// The state with this transaction's writes. Its version is still the base's.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The time of the whole transaction.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The version that the store, and every object written, will have after this.
    pub fn version(&self) -> Version {
        self.base.version().next()
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Creates or replaces an object. The store fills in versions and times, and a service's
    /// `spec_version`. One written earlier in this transaction may be written again.
    ///
    /// # Errors
    /// [`StaleObject`] when the object exists and `meta.version` is not the stored one. The
    /// transaction is void from then on, even if the caller goes on.
    pub fn put(&mut self, object: impl Into<Object>) -> Result<(), StaleObject> {
        let mut object = object.into();
        let key = object.key();
        self.check(&object)
            .inspect_err(|stale| self.stale = self.stale.or(Some(*stale)))?;
        let stamp = Stamp {
            version: self.version(),
            at: self.now,
        };
        object.stamp(&self.base, stamp);
        self.record(key, Change::Put(object));
        Ok(())
    }

    /// Removes an object, whatever its version. Nothing happens when there is none.
    pub fn remove(&mut self, key: Key) {
        if !self.state.contains(key) {
            return;
        }
        if self.base.contains(key) {
            self.record(key, Change::Remove(key));
        } else {
            self.state.change(&Change::Remove(key));
            self.changes.remove(&key);
        }
    }

    /// A number that no task of this cluster has had. Given back only if the transaction is not
    /// committed.
    ///
    /// # Panics
    /// After 2^32 - 1 of them: 13 years at ten new tasks a second.
    pub fn allocate_endpoint_id(&mut self) -> EndpointId {
        let mut counters = self.state.counters();
        let id = counters.next_endpoint();
        self.record(Key::Counters, Change::Put(counters.into()));
        id
    }

    /// What is to be applied, each object at most once and in the order of keys.
    ///
    /// # Errors
    /// The first [`StaleObject`] that was refused, if any.
    pub fn finish(self) -> Result<ChangeSet, StaleObject> {
        match self.stale {
            Some(stale) => Err(stale),
            None => Ok(ChangeSet {
                base: self.base.version(),
                at: self.now,
                changes: self.changes.into_values().collect(),
            }),
        }
    }

    fn check(&self, object: &Object) -> Result<(), StaleObject> {
        let key = object.key();
        let (Some(given), Some(stored)) = (object.meta(), self.base.meta(key)) else {
            return Ok(());
        };
        if self.changes.contains_key(&key) || given.version == stored.version {
            return Ok(());
        }
        Err(StaleObject {
            key,
            stored: stored.version,
            given: given.version,
        })
    }

    fn record(&mut self, key: Key, change: Change) {
        self.state.change(&change);
        self.changes.insert(key, change);
    }
}
