//! The data plane of one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dataplane_abi::{SERVICE_AFFINITY, SERVICE_NEAR, ServiceValue};
use model::{NodeId, feed::NodeView};
use tracing::{debug, info};

use crate::{
    attach::{Hook, Ingress, Links, UplinkMode},
    bpffs::{PinDir, raise_memlock},
    desired::{Desired, Skipped, Wanted},
    error::DatapathError,
    extent::Moment,
    inherit::Heritage,
    load::{self, Programs},
    local::{Doubt, LocalState},
    look::{Look, Pinned, Sight},
    maps::Maps,
    plan::{Full, Op, Planner},
    recorded::Recorded,
    repair::{self, Anchors, Deviation},
    sys,
    tables::{Frontend, Published, Tables},
};

/// For the managers to hear from all nodes which flows a change displaced. Should that take longer,
/// connections that nobody has end by a RST all the same.
const UNSETTLED_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatapathConfig {
    /// Where maps, programs and links are pinned; each node of a machine has its own.
    pub pin_dir: PathBuf,
    /// Root of cgroup2: the socket programs see every process of the machine, and tell nodes apart
    /// by network namespace.
    pub cgroup: PathBuf,
    pub uplink_mode: UplinkMode,
    /// How tc programs attach; the better way that the kernel has when absent.
    pub ingress: Option<Ingress>,
}

/// The programs and maps in the kernel, and the way to change them. They stay and work when this is
/// dropped; [`Datapath::detach_all`] ends them.
///
/// Interface indexes are of the network namespace of the calling thread.
pub struct Datapath {
    pins: PinDir,
    uplink_mode: UplinkMode,
    programs: Programs,
    anchors: Anchors,
    links: Links,
    cgroup: PathBuf,
    /// The interface that has the mesh's entry, once this process knows it.
    uplink: Option<u32>,
    /// Until this build's programs are on the hooks.
    handover: Option<Handover>,
    pub(crate) maps: Maps,
    /// The same, for other threads.
    pub(crate) maps_to_look_at: Arc<Maps>,
    desired: Desired,
    /// Absent before the first sync, and after one that failed.
    pub(crate) recorded: Option<Recorded>,
    /// Absent until they are written, and when that failed.
    pub(crate) pinned: Option<Pinned>,
    planner: Planner,
    opened: Instant,
    syncs: u64,
}

/// How long packets of unknown flows are dropped in silence, if nobody ends that time before.
const HANDOVER_TIME_MAX: Duration = Duration::from_secs(5);

/// While a former build's programs are on the hooks.
struct Handover {
    heritage: Heritage,
    ingress: Ingress,
    /// What the agent wants attached, once the hooks are this build's.
    wanted: BTreeSet<(Hook, u32)>,
}

impl Handover {
    fn new(heritage: Heritage, ingress: Ingress) -> Self {
        Self {
            heritage,
            ingress,
            wanted: BTreeSet::new(),
        }
    }

    fn attach_later(&mut self, hook: Hook, ifindex: u32) {
        self.wanted.insert((hook, ifindex));
    }

    fn detach(&mut self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        self.wanted.remove(&(hook, ifindex));
        self.former_links().detach(hook, ifindex)
    }

    fn former_links(&self) -> Links {
        let former = self.heritage.former();
        let config_map = former.maps().join("CONFIG");
        Links::new(former.links(), config_map, self.ingress)
    }
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath")
            .field("pins", &self.pins)
            .field("syncs", &self.syncs)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// Takes over what is pinned, with this build's programs in place of another's; loads what is
    /// not there. Traffic goes on meanwhile. Where a build with another map layout was at work, its
    /// programs stay until the first [`Self::sync`] has filled this build's maps.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        raise_memlock();
        let pins = PinDir::open(&config.pin_dir)?;
        let ingress = config.ingress.unwrap_or_else(Ingress::of_kernel);
        let heritage = Heritage::share(&pins)?;
        let programs = load::programs(&pins)?;
        let maps = Maps::open(&pins.maps())?;
        let maps_to_look_at = Arc::new(Maps::open(&pins.maps())?);
        let mut datapath = Self {
            planner: Planner::new(maps.capacities()),
            links: Links::new(pins.links(), pins.maps().join("CONFIG"), ingress),
            anchors: Anchors::open(&pins)?,
            handover: None,
            pins,
            cgroup: config.cgroup.clone(),
            uplink: None,
            uplink_mode: config.uplink_mode,
            programs,
            maps,
            maps_to_look_at,
            desired: Desired::default(),
            recorded: None,
            pinned: None,
            opened: Instant::now(),
            syncs: 0,
        };
        match heritage {
            Some(mut heritage) => {
                heritage.copy(&datapath.pins)?;
                datapath.handover = Some(Handover::new(heritage, ingress));
            }
            None => datapath.take_hooks()?,
        }
        Ok(datapath)
    }

    /// Gives every link this build's program.
    fn take_hooks(&self) -> Result<(), DatapathError> {
        self.links.adopt(&self.programs)?;
        self.links.attach_cgroup(&self.cgroup, &self.programs)?;
        load::forget_other_builds(&self.pins)?;
        self.pins.forget_other_layouts()?;
        // Ranges that a former process of ours freed are not known; after this nobody reads them.
        if let Err(error) = sys::await_running_programs() {
            debug!(%error, "cannot wait for running programs");
        }
        Ok(())
    }

    /// Puts the mesh's entry on the interface that faces the other nodes and the clients, and takes it
    /// off any other that this agent or one before it had put it on. Like its siblings, it changes
    /// nothing that is as it should be, and tells what it changed.
    pub fn attach_uplink(&mut self, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        self.attach(Hook::UplinkTc, ifindex)
    }

    pub fn attach_vxlan(&mut self, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        self.attach(Hook::Vxlan, ifindex)
    }

    /// Host side of a task's veth of an overlay network.
    pub fn attach_task(&mut self, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        self.attach(Hook::Task, ifindex)
    }

    /// Host side of a task's veth of the gateway bridge.
    pub fn attach_gateway(&mut self, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        self.attach(Hook::Gateway, ifindex)
    }

    /// Node's side of the veth behind which fragments are put in order.
    pub fn attach_reassembly(&mut self, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        self.attach(Hook::Ordered, ifindex)
    }

    fn attach(&mut self, hook: Hook, ifindex: u32) -> Result<Vec<Deviation>, DatapathError> {
        if let Some(handover) = &mut self.handover {
            handover.attach_later(hook, ifindex);
            return Ok(Vec::new());
        }
        match hook {
            Hook::UplinkTc => {
                let mode = self.uplink_mode;
                let found = self.links.attach_uplink(ifindex, mode, &self.programs)?;
                if self.uplink.replace(ifindex) != Some(ifindex) {
                    self.links.leave_other_uplinks(ifindex)?;
                }
                Ok(found)
            }
            Hook::Vxlan => self
                .links
                .attach_vxlan(ifindex, self.uplink_mode, &self.programs),
            hook => {
                let found = self.links.attach_tc(hook, ifindex, &self.programs)?;
                Ok(found.into_iter().collect())
            }
        }
    }

    /// The socket programs on the cgroup, where [`Datapath::open`] put them.
    pub fn attach_sockets(&mut self) -> Result<Vec<Deviation>, DatapathError> {
        if self.handover.is_some() {
            return Ok(Vec::new());
        }
        self.links.attach_cgroup(&self.cgroup, &self.programs)
    }

    pub(crate) fn map_pins(&self) -> PathBuf {
        self.pins.maps()
    }

    /// The pins of maps and programs, as [`Datapath::open`] found or made them.
    pub fn ensure_pins(&mut self) -> Result<Vec<Deviation>, DatapathError> {
        self.anchors.ensure()
    }

    /// Takes off what is on a veth. The interface may be gone already, or never have been.
    pub fn detach_veth(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        for hook in [Hook::Task, Hook::Gateway, Hook::Ordered] {
            if let Some(handover) = &mut self.handover {
                handover.detach(hook, ifindex)?;
            }
            self.links.detach(hook, ifindex)?;
        }
        Ok(())
    }

    /// What the agent before doubted, as the programs do until the first [`Self::sync`] says otherwise.
    pub fn doubts(&self, view: &NodeView) -> Result<BTreeMap<NodeId, Doubt>, DatapathError> {
        let flagged = self.maps.flagged_peers()?.into_iter();
        let doubt = |(addr, flags)| {
            let peer = view.peers.values().find(|peer| peer.vtep == addr)?;
            Some((peer.node, Doubt::of(flags)?))
        };
        Ok(flagged.filter_map(doubt).collect())
    }

    /// Makes the kernel's maps hold what `view` and `local` say, in the time of what is new in them. The
    /// programs see no moment in which a packet has nowhere to go that had before and has after.
    ///
    /// On an error, what was done stays, and the next sync goes on from there, with a look at all
    /// maps. What others altered is left to [`Self::repair`].
    #[tracing::instrument(level = "debug", skip_all, fields(view.version = view.version.0))]
    pub fn sync(
        &mut self,
        view: &NodeView,
        local: &LocalState,
    ) -> Result<SyncReport, DatapathError> {
        let begun = Instant::now();
        let touched = self.desired.update(view, local)?;
        let course = match self.recorded.take() {
            Some(recorded) => Course {
                wanted: self.desired.part(&touched),
                from: recorded,
                is_observed: false,
            },
            None => {
                let observed = self.maps.observe()?;
                Course {
                    wanted: self.desired.whole(&observed),
                    from: Recorded::new(observed),
                    is_observed: true,
                }
            }
        };
        let (report, _) = self.follow(course, begun)?;
        Ok(report)
    }

    /// A look at all maps, which may be taken on another thread while syncs go on here. `None` before
    /// the first sync, and after one that failed: the next one looks at everything itself.
    pub fn look(&self) -> Option<Look> {
        let recorded = self.recorded.as_ref()?;
        Some(Look {
            maps: Arc::clone(&self.maps_to_look_at),
            recorded: recorded.tables().clone(),
            pinned: self.pinned.clone(),
        })
    }

    /// Whether a look saw that others altered the maps: that is for [`Self::repair`]. Pins that others
    /// altered are written anew by the next [`Self::pin`].
    pub fn is_altered(&mut self, sight: &Sight) -> bool {
        self.pinned
            .take_if(|pinned| sight.is_pin_alteration(pinned));
        let recorded = self.recorded.as_ref();
        recorded.is_some_and(|recorded| sight.is_alteration(recorded.tables()))
    }

    /// A sync to what the last one brought about already, and with a look at all maps: whatever it
    /// changes, others had changed.
    pub fn repair(
        &mut self,
        view: &NodeView,
        local: &LocalState,
    ) -> Result<(SyncReport, Vec<Deviation>), DatapathError> {
        let begun = Instant::now();
        let mut touched = self.desired.update(view, local)?;
        let recorded = self.recorded.take();
        let observed = self.maps.observe()?;
        let wanted = match recorded {
            Some(recorded) => {
                touched.extend(recorded.differences(&observed));
                self.desired.close(&mut touched);
                self.desired.part(&touched)
            }
            None => self.desired.whole(&observed),
        };
        let course = Course {
            wanted,
            from: Recorded::new(observed),
            is_observed: true,
        };
        self.follow(course, begun)
    }

    /// From a plan to the maps. What it changes in the maps as they were is told apart.
    fn follow(
        &mut self,
        course: Course,
        begun: Instant,
    ) -> Result<(SyncReport, Vec<Deviation>), DatapathError> {
        self.syncs += 1;
        let Course {
            wanted,
            from: mut recorded,
            is_observed,
        } = course;
        if is_observed {
            self.planner.settle(recorded.tables(), self.moment());
        }
        let mut report = SyncReport::default();
        let ops = self.plan(&wanted, recorded.tables(), &mut report)?;
        let deviations = match is_observed {
            true => repair::deviations(&ops, recorded.tables()),
            false => Vec::new(),
        };
        let moves_flows = moves_flows(&ops, recorded.tables());
        if moves_flows {
            // Before the first of them: other nodes may have flows that nobody has told of.
            self.settle_in(UNSETTLED_MAX)?;
        }
        for op in &ops {
            debug!(map.op = %op, "applied");
            report.flows_dropped += self.maps.apply(op)?;
            recorded.note(op);
            report.count(op);
        }
        let released = recorded.release();
        match is_observed {
            // What others wrote may have named what is ours.
            true => self.planner.settle(recorded.tables(), self.moment()),
            false => self.planner.release(released, self.moment()),
        }
        self.recorded = Some(recorded);
        report.skipped = self.desired.skipped();
        report.duration = begun.elapsed();
        report.log();
        self.end_handover()?;
        if moves_flows {
            self.settle_in(UNSETTLED_MAX)?;
        }
        Ok((report, deviations))
    }

    /// The maps hold all that the node needs: from the former build's programs to this one's.
    fn end_handover(&mut self) -> Result<(), DatapathError> {
        let Some(Handover { heritage, .. }) = &mut self.handover else {
            return Ok(());
        };
        // The first may take long; what changes meanwhile does not.
        heritage.copy_flows(&self.pins)?;
        heritage.copy_flows(&self.pins)?;
        // A flow that begins now, and is answered before it is copied, waits.
        self.maps.set_unsettled(HANDOVER_TIME_MAX)?;
        self.links.take_over(heritage.former())?;
        self.links.adopt(&self.programs)?;
        heritage.copy_last_flows(&self.pins)?;
        self.maps.set_unsettled(Duration::ZERO)?;
        self.take_hooks()?;
        let handover = self.handover.take().expect("it was just there");
        for (hook, ifindex) in handover.wanted {
            self.attach(hook, ifindex)?;
        }
        info!("hooks taken over from a build with another map layout");
        Ok(())
    }

    fn moment(&self) -> Moment {
        Moment {
            sync: self.syncs,
            at: self.opened.elapsed(),
        }
    }

    fn plan(
        &mut self,
        wanted: &Wanted,
        present: &Tables,
        report: &mut SyncReport,
    ) -> Result<Vec<Op>, Full> {
        let plan = self.planner.plan(wanted, present, self.moment());
        let Err(full) = plan else { return plan };
        // What rests may suffice. To wait until its readers are gone is dear, so only now.
        info!(%full, "waits for running programs, to reuse what they may still read");
        if sys::await_running_programs().is_err() {
            return Err(full);
        }
        report.rcu_waits += 1;
        self.planner.readers_are_gone();
        self.planner.plan(wanted, present, self.moment())
    }

    /// Unpins everything: the programs are off their hooks and the maps gone when this returns, unless a
    /// look at them is being taken.
    pub fn detach_all(self) -> Result<(), DatapathError> {
        // Links go first, so that no program runs on maps that are gone from view.
        self.links.detach_all()?;
        if let Some(handover) = &self.handover {
            handover.former_links().detach_all()?;
        }
        self.pins.forget_other_layouts()?;
        let Self {
            pins,
            programs,
            anchors,
            maps,
            maps_to_look_at,
            ..
        } = self;
        drop((programs, anchors, maps, maps_to_look_at));
        pins.remove()?;
        info!("data plane detached");
        Ok(())
    }
}

/// Where a sync goes, and from where.
struct Course {
    wanted: Wanted,
    from: Recorded,
    /// `from` was just read.
    is_observed: bool,
}

/// Whether flows that exist may lose the owner that their ring names.
fn moves_flows(ops: &[Op], present: &Tables) -> bool {
    let written = ops.iter().filter_map(|op| match op {
        Op::WriteFrontend(index, value) => Some((*index, value)),
        _ => None,
    });
    let written: BTreeMap<u32, &ServiceValue> = written.collect();
    let turned = ops.iter().filter_map(|op| match op {
        Op::SetPort(port, word) => Some((Published::everywhere(*port), word.frontend()?)),
        Op::PutAddressed(at, index) => Some((*at, *index)),
        _ => None,
    });
    let ring = |of: &ServiceValue| {
        let choice = of.flags & (SERVICE_AFFINITY | SERVICE_NEAR);
        let (place, len) = (of.ring, of.ring_len);
        let keeps_clients = of.affinity_secs != 0;
        (
            place,
            len,
            of.single,
            of.backend_count,
            choice,
            keeps_clients,
        )
    };
    let mut turned = turned;
    turned.any(|(at, index)| {
        let had = present.services.get(&Frontend::Published(at));
        let gets = written.get(&index);
        had.zip(gets)
            .is_some_and(|(had, gets)| ring(had) != ring(gets))
    })
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncReport {
    /// Entries of maps written: endpoints, interfaces, namespaces, nodes, configuration.
    pub entries_written: usize,
    /// New entries of VIPs and of runs of published ports.
    pub services_written: usize,
    /// Published ports that lead to another entry, or to none.
    pub ports_turned: usize,
    pub rings_written: usize,
    pub backends_written: usize,
    /// Entries removed, frontends included.
    pub entries_removed: usize,
    /// Flows removed because their endpoint is gone.
    pub flows_dropped: usize,
    /// How often it waited until no program ran that might still read what is to be written anew. No
    /// other step of a sync waits for RCU: there is no map in a map, and no element is replaced that
    /// programs hold.
    pub rcu_waits: usize,
    /// Parts of the view that could not be had.
    pub skipped: Vec<Skipped>,
    pub duration: Duration,
}

impl SyncReport {
    /// Whether all was as it should be already.
    pub fn is_unchanged(&self) -> bool {
        let Self {
            entries_written,
            services_written,
            ports_turned,
            rings_written,
            backends_written,
            entries_removed,
            flows_dropped,
            rcu_waits: _,
            skipped: _,
            duration: _,
        } = self;
        [
            entries_written,
            services_written,
            ports_turned,
            rings_written,
            backends_written,
            entries_removed,
            flows_dropped,
        ]
        .into_iter()
        .all(|count| *count == 0)
    }

    fn count(&mut self, op: &Op) {
        match op {
            Op::ResetStats(_) | Op::DropFlows(_) | Op::DropVipFlows(_) => {}
            Op::WriteFrontend(..) | Op::PutVip(..) => self.services_written += 1,
            Op::SetPort(..) | Op::PutAddressed(..) => self.ports_turned += 1,
            Op::WriteRing(..) => self.rings_written += 1,
            Op::WriteBackends(_, values) => self.backends_written += values.len(),
            Op::PutEndpoint(..)
            | Op::PutVeth(..)
            | Op::PutLocal(..)
            | Op::PutNetns(..)
            | Op::PutTarget(..)
            | Op::PutPeer(..)
            | Op::PutNodeAddr(_)
            | Op::PutConfig(_) => self.entries_written += 1,
            Op::RemoveVip(_)
            | Op::RemoveAddressed(_)
            | Op::RemoveEndpoint(_)
            | Op::RemoveVeth(_)
            | Op::RemoveLocal(_)
            | Op::RemoveNetns(_)
            | Op::RemoveTarget(_)
            | Op::RemovePeer(_)
            | Op::RemoveNodeAddr(_) => self.entries_removed += 1,
        }
    }

    fn log(&self) {
        for skipped in &self.skipped {
            debug!(%skipped, "left out of the data plane");
        }
        debug!(
            duration_us = self.duration.as_micros() as u64,
            written.entries = self.entries_written,
            written.services = self.services_written,
            written.ports = self.ports_turned,
            written.rings = self.rings_written,
            written.backends = self.backends_written,
            removed.entries = self.entries_removed,
            removed.flows = self.flows_dropped,
            rcu.waits = self.rcu_waits,
            "data plane synced"
        );
    }
}

// The agent keeps it on a task of its runtime.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Datapath>();
};
