//! A look at all maps beside the changes that go on: it is taken on another thread, as it takes long
//! where services are many, and no change waits for it.
//!
//! So it may see half of a change, or a part of the maps from before and another from after. What it
//! finds is therefore held against the record of before and that of after: where they differ, a change
//! of ours went meanwhile, and the next look tells. Where they do not, others altered what was found
//! otherwise, and [`Datapath::repair`](crate::Datapath::repair) puts it right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dataplane_abi::{NodeConfig, PinValue};

use crate::{
    error::DatapathError,
    maps::Maps,
    pins::PinOrder,
    recorded::{frontends, is_endpoint_alike, is_frontend_alike},
    tables::{Frontend, OverlayAddr, Tables},
};

/// What PINS was last made to hold.
pub(crate) type Pinned = Arc<BTreeMap<PinOrder, PinValue>>;

/// A look that is to be taken.
pub struct Look {
    pub(crate) maps: Arc<Maps>,
    /// As it begins.
    pub(crate) recorded: Tables,
    pub(crate) pinned: Option<Pinned>,
}

impl Look {
    /// Reads all maps.
    pub fn take(self) -> Result<Sight, DatapathError> {
        let Self {
            maps,
            recorded,
            pinned,
        } = self;
        let found = maps.observe()?;
        let pinned = match pinned {
            Some(pinned) if maps.pins()? != *pinned => Some(pinned),
            _ => None,
        };
        Ok(Sight {
            differing: differing(&recorded, &found),
            recorded,
            pinned,
        })
    }
}

/// Where a look found the maps other than they were recorded when it began.
pub struct Sight {
    recorded: Tables,
    differing: BTreeSet<Place>,
    /// What PINS should have held, if it did not.
    pinned: Option<Pinned>,
}

impl Sight {
    /// Whether it is others who altered the maps, by the record of now.
    pub(crate) fn is_alteration(&self, now: &Tables) -> bool {
        let mut differing = self.differing.iter();
        differing.any(|place| place.is_alike(&self.recorded, now))
    }

    /// Whether it is others who altered PINS, which should hold `now`.
    pub(crate) fn is_pin_alteration(&self, now: &Pinned) -> bool {
        let was = self.pinned.as_ref();
        was.is_some_and(|was| Arc::ptr_eq(was, now))
    }
}

/// What has to be alike for the maps to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Config,
    Veths,
    Locals,
    Netns,
    Targets,
    Peers,
    NodeAddrs,
    Endpoint(OverlayAddr),
    Frontend(Frontend),
}

impl Place {
    /// Little each.
    const WHOLE: [Self; 7] = [
        Self::Config,
        Self::Veths,
        Self::Locals,
        Self::Netns,
        Self::Targets,
        Self::Peers,
        Self::NodeAddrs,
    ];

    fn is_alike(&self, one: &Tables, other: &Tables) -> bool {
        match self {
            Self::Config => settled(one) == settled(other),
            Self::Veths => one.veths == other.veths,
            Self::Locals => one.locals == other.locals,
            Self::Netns => one.netns == other.netns,
            Self::Targets => one.targets == other.targets,
            Self::Peers => one.peers == other.peers,
            Self::NodeAddrs => one.node_addrs == other.node_addrs,
            Self::Endpoint(at) => is_endpoint_alike(one, other, at),
            Self::Frontend(at) => is_frontend_alike(one, other, at),
        }
    }
}

/// What the view says; when changes are over is no business of it.
fn settled(tables: &Tables) -> NodeConfig {
    NodeConfig {
        unsettled_until: 0,
        ..tables.config
    }
}

fn differing(one: &Tables, other: &Tables) -> BTreeSet<Place> {
    let both = || [one, other].into_iter();
    let endpoints = both().flat_map(|tables| tables.endpoints.keys());
    let frontends = both().flat_map(frontends).map(Place::Frontend);
    let endpoints = endpoints.copied().map(Place::Endpoint);
    let places: BTreeSet<_> = Place::WHOLE
        .into_iter()
        .chain(endpoints)
        .chain(frontends)
        .collect();
    let differs = |place: &Place| !place.is_alike(one, other);
    places.into_iter().filter(differs).collect()
}

#[cfg(test)]
impl Sight {
    /// What a look would see of `found`.
    pub(crate) fn of(recorded: &Tables, found: &Tables) -> Self {
        Self {
            recorded: recorded.clone(),
            differing: differing(recorded, found),
            pinned: None,
        }
    }
}
