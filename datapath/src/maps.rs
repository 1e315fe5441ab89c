//! The kernel's maps, typed: read as [`Tables`], written by [`Op`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    ops::Range,
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use dataplane_abi::{
    BackendValue, Be32, DropCounter, DropReason, EndpointKey, EndpointValue, FLOW_ACKED, FlowKey,
    FlowValue, LocalEndpoint, NetnsValue, NodeConfig, PeerValue, PinKey, PinValue, ProgramId,
    PublishedKey, RING_LEN_MAX, RingChunk, RingPlace, RingSlot, ServiceValue, Stats, TargetKey,
    TargetValue, VethValue, VipFlowKey, VipFlowValue, VipKey, drops::drop_index,
};

use crate::{
    error::{DatapathError, io_error},
    pins::{PinOrder, pin_key, pin_order},
    plan::{Capacities, Op},
    ports::PortMap,
    sys,
    tables::{Frontend, OverlayAddr, Published, Tables, backend_range, ring_chunks, ring_slots},
};

type Result<T> = std::result::Result<T, DatapathError>;

/// Maps that are pinned, by their names in the object.
pub(crate) const MAP_NAMES: [&str; 24] = [
    "CONFIG",
    "ENDPOINTS",
    "VETHS",
    "LOCAL",
    "TARGETS",
    "VIPS",
    "PORTS",
    "ADDRESSED",
    "FRONTENDS",
    "RINGS",
    "BACKENDS",
    "PEERS",
    "NODE_ADDRS",
    "NETNS",
    "SOCK_ORIGINS",
    "FLOWS",
    "SYN_FLOWS",
    "UDP_FLOWS",
    "PINS",
    "CLIENTS",
    "FRAGMENTS",
    "VIP_FLOWS",
    "STATS",
    "DROPS",
];

/// A hash map, LRU or not.
struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn open(dir: &Path, name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            map: open(dir, name)?,
        })
    }

    fn read(&self) -> Result<Vec<(K, V)>> {
        sys::read_all(self.map.map().fd().as_fd()).map_err(DatapathError::map_io(self.name, "read"))
    }

    fn put(&mut self, key: K, value: V) -> Result<()> {
        self.map
            .insert(key, value, 0)
            .map_err(DatapathError::map(self.name, "write to"))
    }

    /// Absence is the goal, so a missing entry is no error. Tells whether there was one.
    fn remove(&mut self, key: &K) -> Result<bool> {
        match self.map.remove(key).map_err(io_error) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(DatapathError::map_io(self.name, "remove from")(error)),
        }
    }

    /// Removes what `unwanted` picks; returns how many.
    fn sweep(&mut self, unwanted: impl Fn(&K, &V) -> bool) -> Result<usize> {
        let mut removed = 0;
        for (key, _) in self
            .read()?
            .iter()
            .filter(|(key, value)| unwanted(key, value))
        {
            removed += usize::from(self.remove(key)?);
        }
        Ok(removed)
    }
}

/// Opens a pinned map as a type, which checks that the sizes of its key and value are the type's.
pub(crate) fn open<T: TryFrom<Map, Error = MapError>>(dir: &Path, name: &'static str) -> Result<T> {
    let path = dir.join(name);
    let data = MapData::from_pin(&path).map_err(|error| DatapathError::Pin {
        action: "open",
        path: path.clone(),
        source: io_error(error),
    })?;
    let map = Map::from_map_data(data).and_then(T::try_from);
    map.map_err(|source| DatapathError::MapShape {
        map: name,
        dir: dir.to_owned(),
        source: Box::new(source),
    })
}

/// All maps that user space reads or writes.
pub(crate) struct Maps {
    config: Array<MapData, NodeConfig>,
    endpoints: Table<EndpointKey, EndpointValue>,
    veths: Table<u32, VethValue>,
    locals: Table<u32, LocalEndpoint>,
    targets: Table<TargetKey, TargetValue>,
    vips: Table<VipKey, ServiceValue>,
    ports: PortMap,
    addressed: Table<PublishedKey, u32>,
    frontends: Array<MapData, ServiceValue>,
    rings: Array<MapData, RingChunk>,
    backends: Array<MapData, BackendValue>,
    peers: Table<Be32, PeerValue>,
    node_addrs: Table<Be32, u32>,
    netns: Table<u64, NetnsValue>,
    /// Established TCP, TCP that begins, UDP.
    flows: [Table<FlowKey, FlowValue>; 3],
    pins: Table<PinKey, PinValue>,
    vip_flows: Table<VipFlowKey, VipFlowValue>,
    stats: PerCpuArray<MapData, Stats>,
    drops: PerCpuArray<MapData, DropCounter>,
    cpus: usize,
}

impl Maps {
    /// Opens the maps pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let cpus = nr_cpus().map_err(|(path, source)| DatapathError::PinDir {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            config: open(dir, "CONFIG")?,
            endpoints: Table::open(dir, "ENDPOINTS")?,
            veths: Table::open(dir, "VETHS")?,
            locals: Table::open(dir, "LOCAL")?,
            targets: Table::open(dir, "TARGETS")?,
            vips: Table::open(dir, "VIPS")?,
            ports: PortMap::open(dir)?,
            addressed: Table::open(dir, "ADDRESSED")?,
            frontends: open(dir, "FRONTENDS")?,
            rings: open(dir, "RINGS")?,
            backends: open(dir, "BACKENDS")?,
            peers: Table::open(dir, "PEERS")?,
            node_addrs: Table::open(dir, "NODE_ADDRS")?,
            netns: Table::open(dir, "NETNS")?,
            flows: [
                Table::open(dir, "FLOWS")?,
                Table::open(dir, "SYN_FLOWS")?,
                Table::open(dir, "UDP_FLOWS")?,
            ],
            pins: Table::open(dir, "PINS")?,
            vip_flows: Table::open(dir, "VIP_FLOWS")?,
            stats: open(dir, "STATS")?,
            drops: open(dir, "DROPS")?,
            cpus,
        })
    }

    pub fn capacities(&self) -> Capacities {
        Capacities {
            ring_chunks: self.rings.len(),
            backends: self.backends.len(),
            frontends: self.frontends.len(),
            stats: self.stats.len(),
        }
    }

    /// What the kernel holds now.
    pub fn observe(&self) -> Result<Tables> {
        let vips = self.vips.read()?.into_iter();
        let vips = vips.map(|(key, value)| (Frontend::Vip(key.into()), value));
        let mut tables = Tables {
            config: self
                .config
                .get(&0, 0)
                .map_err(DatapathError::map("CONFIG", "read"))?,
            endpoints: self
                .endpoints
                .read()?
                .into_iter()
                .map(|(k, v)| (OverlayAddr::from(k), v))
                .collect(),
            veths: self.veths.read()?.into_iter().collect(),
            locals: self.locals.read()?.into_iter().collect(),
            netns: self.netns.read()?.into_iter().collect(),
            targets: self
                .targets
                .read()?
                .into_iter()
                .map(|(k, v)| (k.into(), v))
                .collect(),
            peers: self
                .peers
                .read()?
                .into_iter()
                .map(|(k, v)| (k.into(), v))
                .collect(),
            node_addrs: self
                .node_addrs
                .read()?
                .into_iter()
                .map(|(k, _)| k.into())
                .collect(),
            ports: self.ports.read(),
            addressed: self
                .addressed
                .read()?
                .into_iter()
                .map(|(k, v)| (Published::from(k), v))
                .collect(),
            services: vips.collect(),
            ..Tables::default()
        };
        self.observe_frontends(&mut tables)?;
        self.observe_ranges(&mut tables)?;
        Ok(tables)
    }

    /// Reads what published ports lead to, as far as it exists.
    fn observe_frontends(&self, tables: &mut Tables) -> Result<()> {
        let exists = |(_, index): &(Published, u32)| *index < self.frontends.len();
        let published: Vec<_> = tables.published().filter(exists).collect();
        let places = published.iter().map(|(_, index)| *index..*index + 1);
        let values = Window::read("FRONTENDS", &self.frontends, places)?;
        let services = published
            .into_iter()
            .map(|(at, index)| (Frontend::Published(at), values.get(index..index + 1)[0]));
        tables.services.extend(services);
        Ok(())
    }

    /// Reads what the services name, as far as it exists.
    fn observe_ranges(&self, tables: &mut Tables) -> Result<()> {
        let services = || tables.services.values();
        let rings = services()
            .filter(|service| (2..=RING_LEN_MAX).contains(&service.ring_len))
            .filter(|service| ring_chunks(service).end <= self.rings.len());
        let rings: BTreeSet<(RingPlace, u32)> = rings.map(|s| (s.ring, ring_slots(s))).collect();
        let places = rings.iter().map(|(place, len)| place.chunks(*len));
        let chunks = Window::read("RINGS", &self.rings, places)?;
        let backends = services()
            .map(backend_range)
            .filter(|range| !range.is_empty() && range.end <= self.backends.len());
        let backends: BTreeSet<(u32, u32)> = backends
            .map(|range| (range.start, range.end - range.start))
            .collect();
        let values = Window::read(
            "BACKENDS",
            &self.backends,
            backends.iter().map(|(base, count)| *base..*base + count),
        )?;

        for (place, len) in rings {
            let chunks = chunks.get(place.chunks(len)).iter();
            let slots = chunks.flat_map(|chunk| place.slots(chunk));
            let slots: Vec<u32> = slots.map(RingSlot::to_raw).take(len as usize).collect();
            tables.rings.insert((place, len), slots.into());
        }
        for (base, count) in backends {
            let values = Arc::from(values.get(base..base + count));
            tables.backends.insert((base, count), values);
        }
        Ok(())
    }

    /// Tunnel addresses of other nodes that are flagged, with their flags.
    pub fn flagged_peers(&self) -> Result<Vec<(Ipv4Addr, u32)>> {
        let peers = self.peers.read()?.into_iter();
        let peers = peers.map(|(addr, value)| (addr.into(), value.flags));
        Ok(peers.filter(|(_, flags)| *flags != 0).collect())
    }

    /// Carries out one operation. Returns how many flows it removed.
    pub fn apply(&mut self, op: &Op) -> Result<usize> {
        match op {
            Op::ResetStats(index) => self.reset_stats(*index)?,
            Op::PutEndpoint(at, value) => self.endpoints.put((*at).into(), *value)?,
            Op::PutVeth(ifindex, value) => self.veths.put(*ifindex, *value)?,
            Op::PutLocal(endpoint, value) => self.locals.put(*endpoint, *value)?,
            Op::PutNetns(cookie, value) => self.netns.put(*cookie, *value)?,
            Op::PutTarget(at, value) => self.targets.put((*at).into(), *value)?,
            Op::PutPeer(addr, value) => self.peers.put((*addr).into(), *value)?,
            Op::PutNodeAddr(addr) => self.node_addrs.put((*addr).into(), 1)?,
            Op::WriteBackends(base, values) => {
                sys::write_run(self.backends.map().fd().as_fd(), *base, values)
                    .map_err(DatapathError::map_io("BACKENDS", "write to"))?;
            }
            Op::WriteRing(place, slots) => self.write_ring(*place, slots)?,
            Op::WriteFrontend(index, value) => self
                .frontends
                .set(*index, value, 0)
                .map_err(DatapathError::map("FRONTENDS", "write to"))?,
            Op::PutVip(at, value) => self.vips.put((*at).into(), *value)?,
            Op::PutAddressed(at, index) => self.addressed.put((*at).into(), *index)?,
            Op::SetPort(port, word) => self.ports.set(*port, *word),
            Op::RemoveVip(at) => drop(self.vips.remove(&(*at).into())?),
            Op::RemoveAddressed(at) => drop(self.addressed.remove(&(*at).into())?),
            Op::RemoveEndpoint(at) => drop(self.endpoints.remove(&(*at).into())?),
            Op::RemoveVeth(ifindex) => drop(self.veths.remove(ifindex)?),
            Op::RemoveLocal(endpoint) => drop(self.locals.remove(endpoint)?),
            Op::RemoveNetns(cookie) => drop(self.netns.remove(cookie)?),
            Op::RemoveTarget(at) => drop(self.targets.remove(&(*at).into())?),
            Op::RemovePeer(addr) => drop(self.peers.remove(&(*addr).into())?),
            Op::RemoveNodeAddr(addr) => drop(self.node_addrs.remove(&(*addr).into())?),
            Op::DropFlows(endpoints) => {
                let sweeps = self.flows.iter_mut();
                let sweeps =
                    sweeps.map(|table| table.sweep(|_, flow| endpoints.contains(&flow.endpoint)));
                return sweeps.sum();
            }
            Op::DropVipFlows(backends) => {
                return self.vip_flows.sweep(|key, _| {
                    let addr = Ipv4Addr::from(key.backend);
                    backends.contains(&OverlayAddr { vni: key.vni, addr })
                });
            }
            Op::PutConfig(value) => self.write_config(|config| NodeConfig {
                unsettled_until: config.unsettled_until,
                ..*value
            })?,
        }
        Ok(0)
    }

    /// For so long from now on, packets of flows that nobody here knows are dropped in silence, to be
    /// sent again: what is known of them is on its way. Zero ends an earlier such time.
    pub fn set_unsettled(&mut self, time: Duration) -> Result<()> {
        let unsettled_until = match time {
            Duration::ZERO => 0,
            time => u64::try_from((sys::monotonic() + time).as_nanos()).unwrap_or(u64::MAX),
        };
        self.write_config(|config| NodeConfig {
            unsettled_until,
            ..config
        })
    }

    fn write_ring(&self, place: RingPlace, slots: &[u32]) -> Result<()> {
        let form = place.form();
        let runs = slots.chunks(form.slots_per_chunk() as usize);
        let chunks: Vec<RingChunk> = runs.map(|run| form.pack(run)).collect();
        sys::write_run(self.rings.map().fd().as_fd(), place.first_chunk(), &chunks)
            .map_err(DatapathError::map_io("RINGS", "write to"))
    }

    fn reset_stats(&mut self, index: u32) -> Result<()> {
        let zeroes = PerCpuValues::try_from(vec![Stats::default(); self.cpus])
            .map_err(DatapathError::map_io("STATS", "write to"))?;
        self.stats
            .set(index, zeroes, 0)
            .map_err(DatapathError::map("STATS", "write to"))
    }

    /// The counters at `index`, summed over the CPUs; zeroes when there are none.
    pub fn stats(&self, index: u32) -> Result<Stats> {
        if index >= self.stats.len() {
            return Ok(Stats::default());
        }
        let values = self
            .stats
            .get(&index, 0)
            .map_err(DatapathError::map("STATS", "read"))?;
        let sum = |sum: Stats, one: &Stats| Stats {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            new_flows: sum.new_flows + one.new_flows,
        };
        Ok(values.iter().fold(Stats::default(), sum))
    }

    /// What `program` dropped for `reason`, summed over the CPUs.
    pub fn drops(&self, program: ProgramId, reason: DropReason) -> Result<DropCounter> {
        let values = self
            .drops
            .get(&drop_index(program, reason), 0)
            .map_err(DatapathError::map("DROPS", "read"))?;
        let sum = |sum: DropCounter, one: &DropCounter| DropCounter {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
        };
        Ok(values.iter().fold(DropCounter::default(), sum))
    }

    pub fn flows(&self) -> Result<Vec<(FlowKey, FlowValue)>> {
        let mut flows = Vec::new();
        for table in &self.flows {
            flows.extend(table.read()?);
        }
        Ok(flows)
    }

    /// TCP flows whose client has answered the task. One that goes from one table to the other meanwhile
    /// may be there twice.
    pub fn connections(&self) -> Result<Vec<(FlowKey, FlowValue)>> {
        let [established, beginning, _] = &self.flows;
        // First: it is in the other table before it leaves this one.
        let mut flows = beginning.read()?;
        flows.retain(|(_, flow)| flow.flags & FLOW_ACKED != 0);
        flows.extend(established.read()?);
        Ok(flows)
    }

    pub fn pins(&self) -> Result<BTreeMap<PinOrder, PinValue>> {
        let pins = self.pins.read()?.into_iter();
        Ok(pins.map(|(key, value)| (pin_order(&key), value)).collect())
    }

    /// From `present` to `wanted`.
    pub fn set_pins(
        &mut self,
        present: &BTreeMap<PinOrder, PinValue>,
        wanted: &BTreeMap<PinOrder, PinValue>,
    ) -> Result<()> {
        for order in present.keys().filter(|order| !wanted.contains_key(order)) {
            self.pins.remove(&pin_key(*order))?;
        }
        let news = wanted.iter();
        for (order, value) in news.filter(|(order, value)| present.get(order) != Some(value)) {
            self.pins.put(pin_key(*order), *value)?;
        }
        Ok(())
    }

    fn write_config(&mut self, change: impl FnOnce(NodeConfig) -> NodeConfig) -> Result<()> {
        let config = self.config.get(&0, 0);
        let config = config.map_err(DatapathError::map("CONFIG", "read"))?;
        let written = self.config.set(0, change(config), 0);
        written.map_err(DatapathError::map("CONFIG", "write to"))
    }

    pub fn vip_flows(&self) -> Result<Vec<(VipFlowKey, VipFlowValue)>> {
        self.vip_flows.read()
    }
}

/// A run of an array that covers the ranges of interest, read in one call: new ranges go to the
/// lowest free places, so there is little in between.
struct Window<V> {
    first: u32,
    values: Vec<V>,
}

impl<V: Pod> Window<V> {
    fn read(
        name: &'static str,
        map: &Array<MapData, V>,
        ranges: impl Iterator<Item = Range<u32>>,
    ) -> Result<Self> {
        let hull = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let Some(hull) = hull else {
            return Ok(Self {
                first: 0,
                values: Vec::new(),
            });
        };
        let count = hull.end - hull.start;
        let values = sys::read_run(map.map().fd().as_fd(), hull.start, count)
            .and_then(|values: Vec<V>| match values.len() == count as usize {
                true => Ok(values),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            })
            .map_err(DatapathError::map_io(name, "read"))?;
        Ok(Self {
            first: hull.start,
            values,
        })
    }

    /// A range that was among those asked for.
    fn get(&self, range: Range<u32>) -> &[V] {
        let place = |index: u32| (index - self.first) as usize;
        &self.values[place(range.start)..place(range.end)]
    }
}
