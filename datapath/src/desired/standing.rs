//! The desired state as it stands, and how a change of the view or of the node takes it further, in
//! the time of what changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dataplane_abi::EndpointValue;
use imbl::{OrdMap, ordmap::DiffItem};
use model::{
    EndpointId, ServiceId,
    feed::{EndpointView, NodeView},
};

use super::{Asked, DesiredError, FrontendSpec, NodeTables, Projection, Skipped, lost};
use crate::{
    local::LocalState,
    tables::{Frontend, OverlayAddr, Port, Published, Tables},
};

/// What the maps shall hold, and by whom it is asked for. Made only by [`Desired::update`], and the
/// same by whatever steps.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// What all else is made from.
    view: NodeView,
    local: Option<LocalState>,
    node: Arc<NodeTables>,
    by_service: BTreeSet<(ServiceId, EndpointId)>,
    /// Of several endpoints with one address, the last has it.
    endpoints: BTreeMap<(OverlayAddr, EndpointId), EndpointValue>,
    asked: BTreeMap<Claimant, Asked>,
    /// Of several that ask for one frontend, the first has it.
    claims: BTreeSet<(Frontend, Claimant)>,
    /// A port's word depends on all that ask for the port, on whatever address.
    port_claims: BTreeSet<(Port, Claimant)>,
    /// Of those that cannot have all that they ask for.
    skipped: BTreeMap<Claimant, Vec<Skipped>>,
}

/// Who asks for frontends. What the whole cluster serves has the port, should both want one for a
/// moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claimant {
    Service(ServiceId),
    /// The task here of this endpoint, for ports of this node alone.
    Task(EndpointId),
}

/// Where the desired state became another, or the maps are to be looked at for another reason.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    pub endpoints: BTreeSet<OverlayAddr>,
    pub frontends: BTreeSet<Frontend>,
}

impl Touched {
    pub fn extend(&mut self, other: Self) {
        self.endpoints.extend(other.endpoints);
        self.frontends.extend(other.frontends);
    }
}

/// What the maps shall hold at the keys in question: `None` for nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Whole in any case.
    pub node: Arc<NodeTables>,
    pub endpoints: BTreeMap<OverlayAddr, Option<EndpointValue>>,
    /// Where one of a port's frontends is in question, all of them are; likewise those of who asks.
    pub frontends: BTreeMap<Frontend, Option<FrontendSpec>>,
}

/// What to make anew.
#[derive(Default)]
struct Stale {
    endpoints: BTreeSet<EndpointId>,
    claimants: BTreeSet<Claimant>,
}

impl Desired {
    /// Takes the state to `view` and `local`, and tells where it became another. On an error it stays
    /// as it was.
    pub fn update(&mut self, view: &NodeView, local: &LocalState) -> Result<Touched, DesiredError> {
        let node = Projection::new(view, local, &self.by_service).node()?;
        let stale = self.stale(view, local);
        let gone = self.addresses(&stale.endpoints);
        for id in &stale.endpoints {
            let service = |view: &NodeView| Some((view.endpoints.get(id)?.service, *id));
            service(&self.view).map(|had| self.by_service.remove(&had));
            service(view).map(|has| self.by_service.insert(has));
        }
        self.node = Arc::new(node);
        self.view = view.clone();
        self.local = Some(local.clone());

        let mut touched = Touched {
            endpoints: self.move_addresses(gone, &stale.endpoints),
            ..Touched::default()
        };
        for (claimant, asked) in self.ask(&stale.claimants) {
            touched.frontends.extend(self.replace(claimant, asked));
        }
        self.close(&mut touched);
        self.note_skipped(stale.claimants, &touched);
        Ok(touched)
    }

    fn stale(&self, view: &NodeView, local: &LocalState) -> Stale {
        let mut endpoints = BTreeSet::new();
        let mut services = BTreeSet::new();
        let views = [&self.view, view];
        if self.is_on_same_ground(view, local) {
            endpoints.extend(differing(&self.view.endpoints, &view.endpoints));
            services.extend(differing(&self.view.services, &view.services));
            endpoints.extend(self.rewired(local));
        } else {
            endpoints.extend(views.iter().flat_map(|view| view.endpoints.keys().copied()));
            services.extend(views.iter().flat_map(|view| view.services.keys().copied()));
        }
        for id in &endpoints {
            let both = views.map(|view| view.endpoints.get(id));
            services.extend(both.into_iter().flatten().map(|endpoint| endpoint.service));
        }
        let locals = self.local.iter().chain([local]);
        let tasks = locals.flat_map(|local| local.tasks.values().map(|task| task.endpoint));
        let tasks = tasks.filter(|id| {
            let service = view.endpoints.get(id).map(|endpoint| endpoint.service);
            endpoints.contains(id) || service.is_some_and(|of| services.contains(&of))
        });
        let tasks = tasks.map(Claimant::Task);
        Stale {
            claimants: services
                .iter()
                .copied()
                .map(Claimant::Service)
                .chain(tasks)
                .collect(),
            endpoints,
        }
    }

    /// Whether what each endpoint and service depends on is as it was.
    fn is_on_same_ground(&self, view: &NodeView, local: &LocalState) -> bool {
        self.local.as_ref().is_some_and(|had| {
            // Of other doubts nothing but the node's own entries knows.
            let (tasks, doubts) = (local.tasks.clone(), local.doubts.clone());
            let same_node = *local
                == LocalState {
                    tasks,
                    doubts,
                    ..had.clone()
                };
            same_node
                && self.view.networks == view.networks
                && self.view.peers == view.peers
                && lost(view, had) == lost(view, local)
        })
    }

    /// Endpoints whose tasks here came, went, or have other interfaces.
    fn rewired(&self, local: &LocalState) -> BTreeSet<EndpointId> {
        let none = BTreeMap::new();
        let had = self.local.as_ref().map_or(&none, |had| &had.tasks);
        let gone = had
            .iter()
            .filter(|(id, task)| local.tasks.get(id) != Some(task));
        let come = local
            .tasks
            .iter()
            .filter(|(id, task)| had.get(id) != Some(task));
        gone.chain(come).map(|(_, task)| task.endpoint).collect()
    }

    /// The entries that these endpoints ask for.
    fn addresses(
        &self,
        of: &BTreeSet<EndpointId>,
    ) -> BTreeMap<(OverlayAddr, EndpointId), EndpointValue> {
        let Some(local) = &self.local else {
            return BTreeMap::new();
        };
        let projection = Projection::new(&self.view, local, &self.by_service);
        let endpoints = of.iter().filter_map(|id| self.view.endpoints.get(id));
        let entries = |endpoint: &EndpointView| {
            let id = endpoint.id;
            let addresses = projection.addresses(endpoint).into_iter();
            addresses.map(move |(at, value)| ((at, id), value))
        };
        endpoints.flat_map(entries).collect()
    }

    /// Puts what the endpoints ask for now in place of what they asked for, and tells where that is
    /// something else.
    fn move_addresses(
        &mut self,
        gone: BTreeMap<(OverlayAddr, EndpointId), EndpointValue>,
        endpoints: &BTreeSet<EndpointId>,
    ) -> BTreeSet<OverlayAddr> {
        let come = self.addresses(endpoints);
        let lost = gone
            .iter()
            .filter(|(key, value)| come.get(key) != Some(value));
        let won = come
            .iter()
            .filter(|(key, value)| gone.get(key) != Some(value));
        let touched = lost.chain(won).map(|((at, _), _)| *at).collect();
        for key in gone.keys() {
            self.endpoints.remove(key);
        }
        self.endpoints.extend(come);
        touched
    }

    /// What these ask for now.
    fn ask(&self, claimants: &BTreeSet<Claimant>) -> Vec<(Claimant, Option<Asked>)> {
        let local = self.local.as_ref().expect("the update set it");
        let projection = Projection::new(&self.view, local, &self.by_service);
        let ask = |claimant| match claimant {
            Claimant::Service(id) => {
                let service = self.view.services.get(&id);
                service.map(|service| projection.service(service))
            }
            Claimant::Task(endpoint) => projection.host_ports(endpoint),
        };
        claimants.iter().map(|one| (*one, ask(*one))).collect()
    }

    /// Puts what a claimant asks for in place of what it asked for. Tells its frontends, those it had
    /// included, if that is something else.
    fn replace(&mut self, claimant: Claimant, asked: Option<Asked>) -> BTreeSet<Frontend> {
        if self.asked.get(&claimant) == asked.as_ref() {
            return BTreeSet::new();
        }
        let had = self.asked.remove(&claimant).unwrap_or_default();
        for frontend in had.frontends.keys() {
            self.claims.remove(&(*frontend, claimant));
            port_of(frontend).map(|port| self.port_claims.remove(&(port, claimant)));
        }
        let mut touched: BTreeSet<Frontend> = had.frontends.into_keys().collect();
        if let Some(asked) = asked {
            for frontend in asked.frontends.keys() {
                self.claims.insert((*frontend, claimant));
                port_of(frontend).map(|port| self.port_claims.insert((port, claimant)));
                touched.insert(*frontend);
            }
            self.asked.insert(claimant, asked);
        }
        touched
    }

    /// Adds the frontends that are decided together with those that are touched.
    pub fn close(&self, touched: &mut Touched) {
        let mut seen = BTreeSet::new();
        let mut open: Vec<Frontend> = touched.frontends.iter().copied().collect();
        while let Some(frontend) = open.pop() {
            for claimant in self.rivals(frontend) {
                if !seen.insert(claimant) {
                    continue;
                }
                let all = self.asked[&claimant].frontends.keys();
                open.extend(all.filter(|one| touched.frontends.insert(**one)));
            }
        }
    }

    /// All that ask for the frontend, or for another on the same port.
    fn rivals(&self, frontend: Frontend) -> Vec<Claimant> {
        match port_of(&frontend) {
            Some(port) => claimed_by(&self.port_claims, port).collect(),
            None => claimed_by(&self.claims, frontend).collect(),
        }
    }

    fn note_skipped(&mut self, mut claimants: BTreeSet<Claimant>, touched: &Touched) {
        let frontends = touched.frontends.iter();
        claimants.extend(frontends.flat_map(|one| self.rivals(*one)));
        for claimant in claimants {
            let skipped = self.skipped_of(claimant);
            match skipped.is_empty() {
                true => self.skipped.remove(&claimant),
                false => self.skipped.insert(claimant, skipped),
            };
        }
    }

    fn skipped_of(&self, claimant: Claimant) -> Vec<Skipped> {
        let Some(asked) = self.asked.get(&claimant) else {
            return Vec::new();
        };
        let lost = asked.frontends.iter().filter_map(|(frontend, spec)| {
            let owner = self.owner(*frontend)?;
            (owner != claimant).then(|| Skipped::FrontendTaken {
                service: spec.service,
                frontend: *frontend,
                owner: self.asked[&owner].frontends[frontend].service,
            })
        });
        asked.skipped.iter().cloned().chain(lost).collect()
    }

    fn owner(&self, frontend: Frontend) -> Option<Claimant> {
        claimed_by(&self.claims, frontend).next()
    }

    fn frontend(&self, frontend: Frontend) -> Option<FrontendSpec> {
        let owner = self.owner(frontend)?;
        self.asked[&owner].frontends.get(&frontend).cloned()
    }

    fn endpoint(&self, at: OverlayAddr) -> Option<EndpointValue> {
        let entries = self
            .endpoints
            .range((at, EndpointId(0))..=(at, EndpointId(u32::MAX)));
        entries.last().map(|(_, value)| *value)
    }

    /// Parts of the view that the maps cannot hold.
    pub fn skipped(&self) -> Vec<Skipped> {
        let of_others = self.skipped.values().flatten();
        self.node.skipped.iter().chain(of_others).cloned().collect()
    }

    /// What is wanted where it was touched, which [`Self::close`] has completed.
    pub fn part(&self, touched: &Touched) -> Wanted {
        let endpoints = touched.endpoints.iter();
        let frontends = touched.frontends.iter();
        Wanted {
            node: Arc::clone(&self.node),
            endpoints: endpoints.map(|at| (*at, self.endpoint(*at))).collect(),
            frontends: frontends.map(|at| (*at, self.frontend(*at))).collect(),
        }
    }

    /// All that is wanted, and that all else is not which the maps hold.
    pub fn whole(&self, present: &Tables) -> Wanted {
        let addresses = self.endpoints.keys().map(|(at, _)| *at);
        let frontends = self.claims.iter().map(|(frontend, _)| *frontend);
        let ports = present.ports.keys().copied().map(Published::everywhere);
        let published = ports.chain(present.addressed.keys().copied());
        let published = published.map(Frontend::Published);
        let present_frontends = present.services.keys().copied().chain(published);
        self.part(&Touched {
            endpoints: addresses.chain(present.endpoints.keys().copied()).collect(),
            frontends: frontends.chain(present_frontends).collect(),
        })
    }
}

fn port_of(frontend: &Frontend) -> Option<Port> {
    match frontend {
        Frontend::Vip(_) => None,
        Frontend::Published(at) => Some(at.port),
    }
}

/// The second parts of all pairs with this first part, in order.
pub(super) fn claimed_by<K: Ord + Copy, C: Id>(
    pairs: &BTreeSet<(K, C)>,
    key: K,
) -> impl Iterator<Item = C> {
    let range = (key, C::FIRST)..=(key, C::LAST);
    pairs.range(range).map(|(_, claimant)| *claimant)
}

/// An id with known bounds.
pub(super) trait Id: Ord + Copy {
    const FIRST: Self;
    const LAST: Self;
}

impl Id for Claimant {
    const FIRST: Self = Self::Service(ServiceId::from_raw(0));
    const LAST: Self = Self::Task(EndpointId(u32::MAX));
}

impl Id for EndpointId {
    const FIRST: Self = Self(0);
    const LAST: Self = Self(u32::MAX);
}

/// Keys whose values differ, in the time of the differences where the maps share the rest.
fn differing<K: Ord + Copy, V: PartialEq>(
    one: &OrdMap<K, V>,
    other: &OrdMap<K, V>,
) -> impl Iterator<Item = K> {
    one.diff(other).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => *key,
        DiffItem::Update { old: (key, _), .. } => *key,
    })
}
