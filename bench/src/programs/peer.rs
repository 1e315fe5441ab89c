//! Another balancer's object, given by whoever runs the benchmark: loaded, filled by the published
//! shapes of Katran's maps (`vip_map`, `ch_rings`, `reals`, `ctl_array`, `lru_mapping`), and called by
//! the same driver with the same packets.

use std::{
    net::Ipv4Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, MapData},
    programs::{Program, ProgramFd, Xdp},
};

use super::{
    driver::{Driver, Subject},
    packet::{ACK, Kind, Shape, TCP, Target, UDP, drive},
    rows::Row,
};
use crate::sys;

/// Slots of each VIP's ring.
const RING: u32 = 65_537;
/// Backends of each VIP, drawn from a common pool.
const BACKENDS: u32 = 100;
const POOL: u32 = 3_900;
/// Entries of this CPU's connection table.
const TABLE: u32 = 4_000_000;
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const FIRST_VIP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const FIRST_BACKEND: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
const PORT: u16 = 80;
/// Katran inserts no more than 125 000 new connections within a second and CPU.
const INSERTS_A_SECOND: u32 = 100_000;

pub struct Peer {
    _object: Ebpf,
    program: ProgramFd,
    has_table: bool,
}

impl Peer {
    /// # Errors
    /// Names the map or program that is not as expected.
    pub fn load(path: &Path, program: Option<&str>, vips: u32) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .load_file(path)
            .context("it does not load")?;
        fill(&mut object, vips)?;
        let has_table = fill_table(&mut object)?;
        let name = match program {
            Some(name) => name.to_owned(),
            None => only_xdp(&object)?,
        };
        let program = object
            .program_mut(&name)
            .with_context(|| format!("no program `{name}`"))?;
        let program: &mut Xdp = program.try_into()?;
        program
            .load()
            .with_context(|| format!("program `{name}`"))?;
        let program = program.fd()?.try_clone()?;
        Ok(Self {
            _object: object,
            program,
            has_table,
        })
    }

    pub fn subject(&self) -> Result<Subject> {
        Ok(Subject {
            program: self.program.try_clone()?,
            frags: false,
        })
    }

    pub const fn services(&self) -> Target {
        Target {
            addr: FIRST_VIP,
            addr_step: 1,
            port: PORT,
            port_step: 0,
        }
    }

    pub fn is_backend(&self, addr: Ipv4Addr) -> bool {
        (backend(1)..=backend(POOL)).contains(&addr)
    }

    /// Has the peer note all flows of the row in order, below its guard against floods.
    ///
    /// # Errors
    /// As a run's.
    pub fn establish(
        &self,
        row: &Row,
        driver: &mut Driver,
        subject: &Subject,
        to: Target,
    ) -> Result<()> {
        let opens = matches!(row.shape.kind, Kind::Tcp(ACK) | Kind::Udp);
        if !self.has_table || !opens {
            return Ok(());
        }
        let mut in_order = drive(Shape { ..row.shape }, to);
        in_order.stride = 1;
        let mut left = row.shape.flows;
        while left > 0 {
            let started = Instant::now();
            let now = left.min(INSERTS_A_SECOND);
            driver.run(subject, &mut in_order, now)?;
            left -= now;
            if left > 0 || now == INSERTS_A_SECOND {
                thread::sleep(Duration::from_millis(1_050).saturating_sub(started.elapsed()));
            }
        }
        Ok(())
    }
}

fn only_xdp(object: &Ebpf) -> Result<String> {
    let xdp: Vec<_> = object
        .programs()
        .filter(|(_, program)| matches!(program, Program::Xdp(_)))
        .map(|(name, _)| name.to_owned())
        .collect();
    ensure!(
        xdp.len() == 1,
        "it has the XDP programs {xdp:?}: name one by --peer-program"
    );
    Ok(xdp.into_iter().next().expect("one"))
}

/// VIPs with their rings, backends, the next hop.
fn fill(object: &mut Ebpf, vips: u32) -> Result<()> {
    let missing = |name: &str| format!("it has no map `{name}`, which Katran's layout has");
    {
        let map = object
            .map_mut("vip_map")
            .with_context(|| missing("vip_map"))?;
        let mut map: HashMap<_, [u8; 20], [u8; 8]> = HashMap::try_from(map)?;
        for number in 0..vips {
            for proto in [TCP, UDP] {
                map.insert(vip_key(number, proto), vip_meta(number), 0)?;
            }
        }
    }
    {
        let map = object.map_mut("reals").with_context(|| missing("reals"))?;
        let mut map: Array<_, [u8; 20]> = Array::try_from(map)?;
        for index in 1..=POOL {
            let mut real = [0; 20];
            real[..4].copy_from_slice(&backend(index).octets());
            map.set(index, real, 0)?;
        }
    }
    {
        let map = object
            .map_mut("ctl_array")
            .with_context(|| missing("ctl_array"))?;
        let mut map: Array<_, [u8; 8]> = Array::try_from(map)?;
        let mut value = [0; 8];
        value[..6].copy_from_slice(&NEXT_HOP);
        map.set(0, value, 0)?;
    }
    let map = object
        .map("ch_rings")
        .with_context(|| missing("ch_rings"))?;
    let map: Array<_, u32> = Array::try_from(map)?;
    let slots: Vec<(u32, u32)> = (0..vips).flat_map(ring).collect();
    sys::update_batch(map.map().fd(), &slots).context("map `ch_rings`")
}

/// Slots and what they hold: backends in a scattered order, with equal shares. The data path cannot
/// tell it from any other consistent ring.
fn ring(vip: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..RING).map(move |slot| {
        let mixed = (slot ^ vip << 17).wrapping_mul(0x9e37_79b1) >> 12;
        let real = 1 + (vip * 37 + mixed % BACKENDS) % POOL;
        (vip * RING + slot, real)
    })
}

/// Gives this CPU a connection table of its own. Whether the balancer keeps one.
fn fill_table(object: &mut Ebpf) -> Result<bool> {
    let Some(map) = object.map_mut("lru_mapping") else {
        return Ok(false);
    };
    let mut outer: ArrayOfMaps<_, MapData> = ArrayOfMaps::try_from(map)?;
    /// Flow: two addresses with room for IPv6, ports, protocol; and a backend with a time.
    const FLOW_KEY: u32 = 40;
    const FLOW_VALUE: u32 = 16;
    let table = sys::create_lru_hash(FLOW_KEY, FLOW_VALUE, TABLE).context("a connection table")?;
    let table = MapData::from_fd(table)?;
    let cpus = std::thread::available_parallelism()?.get() as u32;
    for cpu in 0..cpus {
        outer.set(cpu, &table, 0).context("map `lru_mapping`")?;
    }
    Ok(true)
}

/// Address with room for IPv6, port, protocol.
fn vip_key(number: u32, proto: u8) -> [u8; 20] {
    let mut key = [0; 20];
    let addr = Ipv4Addr::from_bits(FIRST_VIP.to_bits() + number);
    key[..4].copy_from_slice(&addr.octets());
    key[16..18].copy_from_slice(&PORT.to_be_bytes());
    key[18] = proto;
    key
}

/// Flags, number.
fn vip_meta(number: u32) -> [u8; 8] {
    let mut meta = [0; 8];
    meta[4..].copy_from_slice(&number.to_ne_bytes());
    meta
}

fn backend(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_BACKEND.to_bits() - 1 + index)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_peers_ring_names_its_backends_about_equally() {
        let mut shares = BTreeMap::new();
        for (slot, real) in ring(7) {
            assert_eq!(slot / RING, 7);
            *shares.entry(real).or_insert(0u32) += 1;
        }
        assert_eq!(shares.len(), BACKENDS as usize);
        assert!(
            shares.values().all(|count| (500..820).contains(count)),
            "{shares:?}"
        );
    }
}
