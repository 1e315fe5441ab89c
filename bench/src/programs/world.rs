//! A node with services whose backends are all elsewhere, in the kernel: the agent's own data plane
//! over a view made up here.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{ProgramInfo, Xdp},
};
use datapath::{Datapath, DatapathConfig, LocalState, UplinkMode};
use model::{
    ClusterId, EndpointId, NodeId, ServiceId, TaskId,
    feed::{
        BackendState, ClusterView, EndpointView, NodeView, PeerView, PublishedPort, ServiceView,
        ViewObject,
    },
    object::DataPathConfig,
    spec::{EndpointMode, Protocol},
};
use nix::net::if_::if_nametoindex;

use super::{
    driver::Subject,
    packet::{Target, UPLINK_MAC},
};

/// Services, each published for TCP and UDP.
pub const SERVICES: u32 = 100;
/// Backends of each, one a node.
pub const BACKENDS: u32 = 100;
/// Of the first service; the next one's is the next.
const PORT: u16 = 8_000;
/// Where nothing is published.
const CLOSED_PORT: u16 = 22;
const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SELF: NodeId = NodeId::from_raw(1);

/// Its namespace is the calling thread's.
pub struct World {
    pub view: NodeView,
    datapath: Option<Datapath>,
    pub uplink: u32,
    pins: PathBuf,
}

impl World {
    /// Enters a new network namespace with an uplink, and loads the data plane there.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses.
    pub fn enter(pins: &Path) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "test runs of programs need root"
        );
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        wire()?;
        let uplink = if_nametoindex("up0")?;
        let view = view();
        // What a run before left when it was killed.
        let _ = fs::remove_dir_all(pins);
        let mut datapath = Datapath::open(&DatapathConfig {
            pin_dir: pins.to_owned(),
            cgroup: cgroup()?,
            uplink_mode: UplinkMode::Xdp,
            ingress: None,
        })?;
        // A veth has its queue ready for XDP once a program is attached.
        datapath.attach_uplink(uplink)?;
        datapath.sync(&view, &local(uplink))?;
        Ok(Self {
            view,
            datapath: Some(datapath),
            uplink,
            pins: pins.to_owned(),
        })
    }

    pub fn datapath(&self) -> &Datapath {
        self.datapath.as_ref().expect("there until it is dropped")
    }

    /// Our own program for the driver.
    ///
    /// # Errors
    /// When it is not pinned.
    pub fn subject(&self) -> Result<Subject> {
        let path = self.programs()?.join("sn_xdp_uplink");
        let program = ProgramInfo::from_pin(path)?.fd()?;
        Ok(Subject {
            program,
            frags: true,
        })
    }

    /// The program of another build, on the same maps.
    ///
    /// # Errors
    /// When its maps have another layout, or it does not load.
    pub fn subject_of(&self, object: &Path) -> Result<Subject> {
        let maps = self.layout().join("maps");
        let names = fs::read_dir(&maps)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for name in &names {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut object = loader.load_file(object)?;
        let program: &mut Xdp = object
            .program_mut("sn_xdp_uplink")
            .context("it has no sn_xdp_uplink")?
            .try_into()?;
        program.load()?;
        let program = program.fd()?.try_clone()?;
        Ok(Subject {
            program,
            frags: true,
        })
    }

    fn layout(&self) -> PathBuf {
        let layout = format!("v{}", dataplane_abi::LAYOUT_VERSION);
        self.pins.join(layout)
    }

    fn programs(&self) -> Result<PathBuf> {
        let mut builds = fs::read_dir(self.layout().join("programs"))?;
        Ok(builds.next().context("programs are pinned")??.path())
    }

    /// Name, instructions that the verifier followed, and bytes of translated code of each program.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn instruction_counts(&self) -> Result<Vec<(String, u32, u32)>> {
        let mut counts = Vec::new();
        for entry in fs::read_dir(self.programs()?)? {
            let path = entry?.path();
            let info = ProgramInfo::from_pin(&path)?;
            let name = path
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned();
            let verified = info.verified_instruction_count().unwrap_or(0);
            counts.push((name, verified, info.size_translated().unwrap_or(0)));
        }
        counts.sort();
        Ok(counts)
    }

    /// Packets that all services have counted.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn counted(&self) -> Result<u64> {
        let rows = self.datapath().inspect_services(&self.view)?;
        Ok(rows.iter().map(|row| row.packets).sum())
    }

    /// Packets dropped so far, by reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn dropped(&self) -> Result<Vec<(String, u64)>> {
        let rows = self.datapath().inspect_drops()?;
        Ok(rows
            .into_iter()
            .map(|row| (row.reason, row.packets))
            .collect())
    }

    /// Another veth pair in the calling thread's namespace; gives the names of its ends.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn nop_pair() -> Result<(String, String)> {
        ip("link add nop0 type veth peer name nop1\nlink set nop0 up\nlink set nop1 up\n")?;
        Ok(("nop0".to_owned(), "nop1".to_owned()))
    }

    pub const fn services() -> Target {
        Target {
            addr: OWN,
            addr_step: 0,
            port: PORT,
            port_step: 1,
        }
    }

    /// The same node, where no service answers.
    pub const fn nothing() -> Target {
        Target {
            addr: OWN,
            addr_step: 0,
            port: CLOSED_PORT,
            port_step: 0,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(datapath) = self.datapath.take()
            && let Err(error) = datapath.detach_all()
        {
            eprintln!("{}: {error}", self.pins.display());
        }
    }
}

fn wire() -> Result<()> {
    let mac = UPLINK_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let mut batch = format!(
        "link set lo up\n\
         link add up0 address {mac} type veth peer name up1\n\
         link set up0 up\n\
         link set up1 up\n\
         addr add {OWN}/16 dev up0\n"
    );
    for number in 2..=BACKENDS + 1 {
        let mac = node_mac(number).map(|byte| format!("{byte:02x}")).join(":");
        batch += &format!(
            "neigh add {} lladdr {mac} dev up0 nud permanent\n",
            vtep(number)
        );
    }
    ip(&batch)?;
    // The FIB answers programs on interfaces that forward.
    fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "1").context("forwarding")
}

/// Commands of `ip`, one a line.
fn ip(batch: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    ip.stdin
        .take()
        .context("stdin is piped")?
        .write_all(batch.as_bytes())?;
    ensure!(ip.wait()?.success(), "`ip` could not wire the namespace");
    Ok(())
}

/// Root of cgroup2.
///
/// # Errors
/// When it is not mounted.
pub fn cgroup() -> Result<PathBuf> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())
        .context("cgroup2 is not mounted at /sys/fs/cgroup")
}

/// Tunnel address of a node; this one's number is 1.
pub fn vtep(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(OWN.to_bits() - 1 + number)
}

pub fn node_mac(number: u32) -> [u8; 6] {
    [2, 0, 0, 1, (number >> 8) as u8, number as u8]
}

/// The endpoint of a service (from 0) at a node (from 2).
pub const fn endpoint(service: u32, node: u32) -> u32 {
    service * 1_000 + node
}

/// This node, as the agent would describe it.
pub fn local(uplink: u32) -> LocalState {
    LocalState {
        node: SELF,
        vxlan_ifindex: uplink,
        uplink_ifindex: uplink,
        underlay_mtu: 1_500,
        reassembly_ifindex: 0,
        gateway_ifindex: uplink,
        gateway_addr: Ipv4Addr::new(172, 18, 0, 1),
        node_addrs: vec![OWN],
        netns_cookie: u64::MAX,
        tasks: Default::default(),
        doubts: Default::default(),
    }
}

/// A cluster of nodes without services.
pub fn cluster(nodes: u32) -> NodeView {
    let mut view = NodeView::default();
    view.put(ViewObject::Cluster(ClusterView {
        id: ClusterId::from_raw(1),
        data_path: DataPathConfig::default(),
        managers: Vec::new(),
        role: None,
        probe_keys: Default::default(),
    }));
    for number in 1..=nodes {
        view.put(ViewObject::Peer(PeerView {
            node: NodeId::from_raw(number.into()),
            hostname: format!("n{number}"),
            vtep: vtep(number),
            up: true,
        }));
    }
    view
}

fn view() -> NodeView {
    let mut view = cluster(BACKENDS + 1);
    for number in 0..SERVICES {
        let id = ServiceId::from_raw(u128::from(number) + 1);
        let port = PORT + number as u16;
        let publish = |protocol| PublishedPort {
            protocol,
            published: port,
            target: 80,
            addresses: Vec::new(),
        };
        view.put(ViewObject::Service(service(
            id,
            [Protocol::Tcp, Protocol::Udp].map(publish),
        )));
        for node in 2..=BACKENDS + 1 {
            view.put(ViewObject::Endpoint(backend(
                id,
                endpoint(number, node),
                node,
            )));
        }
    }
    view
}

/// A service that publishes these ports and is in no network.
pub fn service(id: ServiceId, ports: impl Into<Vec<PublishedPort>>) -> ServiceView {
    ServiceView {
        id,
        name: format!("s{}", id.raw()),
        mode: EndpointMode::Vip,
        networks: Vec::new(),
        ports: ports.into(),
        policy: Default::default(),
    }
}

/// An endpoint that serves, at a node.
pub fn backend(service: ServiceId, id: u32, node: u32) -> EndpointView {
    EndpointView {
        id: EndpointId(id),
        task: TaskId::from_raw(id.into()),
        task_name: format!("t{id}"),
        service,
        slot: Some(id.into()),
        node: NodeId::from_raw(node.into()),
        addresses: Vec::new(),
        state: BackendState::Active,
        weight: 1,
    }
}
