//! A node of one's own for a test: a network namespace, a pin directory, a view.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, links::PinnedLink, tc::TcAttachType},
};
use model::{
    ClusterId, EndpointId, NetworkId, NodeId, ServiceId, TaskId, Vni,
    feed::{
        BackendState, ClusterView, EndpointView, NetworkView, NodeView, PeerView, PublishedPort,
        ServiceNetwork, ServiceView, ViewObject,
    },
    object::{Attachment, DataPathConfig},
    spec::{EndpointMode, Protocol},
};
use nix::sched::{CloneFlags, unshare};
use swarmnet_datapath::{
    Datapath, DatapathConfig, Ingress, LocalState, LocalTask, LocalVeth, UplinkMode,
};

/// Runs a test on a thread in a network namespace of its own. Without root it is skipped, but in
/// CI it fails.
pub fn in_namespace(test: impl FnOnce(&Pins) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "the tests need root");
        eprintln!("skipped: needs root");
        return;
    }
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        test(&Pins::new());
    };
    let outcome = thread::spawn(run).join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// As [`in_namespace`], once for each way onto an interface's ingress that the kernel has.
pub fn by_each_ingress(test: impl Fn(&Pins) + Copy + Send + 'static) {
    by_tcx(test);
    by_filters(test);
}

/// As [`in_namespace`], if the kernel has tcx.
pub fn by_tcx(test: impl Fn(&Pins) + Send + 'static) {
    in_namespace(move |_| {
        if query_tcx("lo").is_some() {
            test(&Pins::by(Ingress::Tcx));
        }
    });
}

/// As [`in_namespace`], with filters even where there is tcx.
pub fn by_filters(test: impl Fn(&Pins) + Send + 'static) {
    in_namespace(move |_| test(&Pins::by(Ingress::Clsact)));
}

/// A pin directory that goes with this value.
pub struct Pins {
    root: PathBuf,
    ingress: Option<Ingress>,
}

impl Pins {
    /// For a second node in one test.
    pub fn another() -> Self {
        Self::new()
    }

    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("swarmnet-test-{}-{count}", std::process::id());
        Self {
            root: Path::new("/sys/fs/bpf").join(name),
            ingress: None,
        }
    }

    fn by(ingress: Ingress) -> Self {
        let mut pins = Self::new();
        pins.ingress = Some(ingress);
        pins
    }

    /// Whether tc programs attach by links, which have pins.
    pub fn has_tc_links(&self) -> bool {
        self.ingress != Some(Ingress::Clsact)
    }

    pub fn config(&self, uplink_mode: UplinkMode) -> DatapathConfig {
        let cgroups = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let cgroup = cgroups
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists());
        DatapathConfig {
            pin_dir: self.root.clone(),
            cgroup: cgroup.expect("cgroup2 is mounted"),
            uplink_mode,
            ingress: self.ingress,
        }
    }

    pub fn open(&self) -> Datapath {
        Datapath::open(&self.config(UplinkMode::Auto)).expect("the data plane opens")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn layout(&self) -> PathBuf {
        self.root
            .join(format!("v{}", dataplane_abi::LAYOUT_VERSION))
    }

    pub fn map(&self, name: &str) -> Map {
        let data = MapData::from_pin(self.layout().join("maps").join(name)).expect("a pinned map");
        Map::from_map_data(data).expect("of a known type")
    }

    pub fn table<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        HashMap::try_from(self.map(name)).expect("of these types")
    }

    /// Kernel's ids of the pinned links, by name of the pin.
    pub fn links(&self) -> Vec<(String, u32)> {
        let entries = fs::read_dir(self.layout().join("links")).expect("a directory of links");
        let mut links: Vec<_> = entries
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let link = PinnedLink::from_pin(&path).expect("a link");
                let link = aya::programs::links::FdLink::from(link);
                let name = path.file_name().expect("a name").to_string_lossy();
                (name.into_owned(), link.info().expect("its info").id())
            })
            .collect();
        links.sort();
        links
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let mut ip = Command::new("ip");
    let status = ip.args(arguments.split_whitespace()).status();
    assert!(status.expect("ip runs").success(), "ip {arguments}");
}

/// Makes a veth and returns the index of its first end.
pub fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ifindex(name)
}

pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface exists")
}

/// Names and ids of the programs on an interface's ingress, in the order in which they run.
pub fn on_ingress(name: &str) -> Vec<(String, u32)> {
    let mut programs = query_tcx(name).unwrap_or_default();
    programs.extend(filters(name));
    programs
}

/// `None` when the kernel has no tcx.
fn query_tcx(name: &str) -> Option<Vec<(String, u32)>> {
    let (_, programs) = SchedClassifier::query_tcx(name, TcAttachType::Ingress).ok()?;
    let programs = programs.iter();
    let named = programs
        .map(|program| {
            (
                program.name_as_str().unwrap_or("?").to_owned(),
                program.id(),
            )
        })
        .collect();
    Some(named)
}

/// BPF filters, as iproute2 sees them.
fn filters(name: &str) -> Vec<(String, u32)> {
    let shown = tc(&format!("filter show dev {name} ingress"));
    let filters = shown.lines().filter(|line| line.contains(" handle "));
    filters
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let after = |word| words.iter().skip_while(move |at| **at != word).nth(1);
            let name = words.iter().find(|word| word.starts_with("sn_"));
            let id = after("id").and_then(|id| id.parse().ok());
            let name = name.map_or("?", |name| name);
            (name.to_owned(), id.unwrap_or_else(|| panic!("{line}")))
        })
        .collect()
}

/// Runs `tc` in the calling thread's namespace.
pub fn tc(arguments: &str) -> String {
    let mut tc = Command::new("tc");
    let output = tc.args(arguments.split_whitespace()).output();
    let output = output.expect("tc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "tc {arguments}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub const SELF: NodeId = NodeId::from_raw(1);
pub const OTHER: NodeId = NodeId::from_raw(2);
pub const NETWORK: NetworkId = NetworkId::from_raw(1);
pub const SERVICE: ServiceId = ServiceId::from_raw(1);
pub const VNI: u32 = 5001;

pub fn vtep(node: NodeId) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 0, node.raw() as u8)
}

/// Two nodes, a network, a service `web` with VIP 10.0.1.2 that publishes 8080 (TCP, to 80), and no
/// endpoint yet.
pub fn view() -> NodeView {
    let mut view = NodeView::default();
    view.put(ViewObject::Cluster(ClusterView {
        id: ClusterId::from_raw(1),
        data_path: DataPathConfig::default(),
        managers: Vec::new(),
        role: None,
        probe_keys: Default::default(),
    }));
    for node in [SELF, OTHER] {
        view.put(ViewObject::Peer(PeerView {
            node,
            hostname: format!("n{}", node.raw()),
            vtep: vtep(node),
            up: true,
        }));
    }
    view.put(ViewObject::Network(NetworkView {
        id: NETWORK,
        name: "net".to_owned(),
        vni: Vni::new(VNI).expect("24 bits"),
        subnet: "10.0.0.0/16".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 0, 1, 1),
        internal: false,
    }));
    view.put(ViewObject::Service(ServiceView {
        id: SERVICE,
        name: "web".to_owned(),
        mode: EndpointMode::Vip,
        networks: vec![ServiceNetwork {
            network: NETWORK,
            vip: Some(Ipv4Addr::new(10, 0, 1, 2)),
            aliases: Vec::new(),
        }],
        ports: vec![PublishedPort {
            protocol: Protocol::Tcp,
            published: 8080,
            target: 80,
            addresses: Vec::new(),
        }],
        policy: Default::default(),
    }));
    view
}

pub fn endpoint_addr(id: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_010a + id)
}

/// An endpoint of the service.
pub fn endpoint(id: u32, node: NodeId, state: BackendState) -> ViewObject {
    ViewObject::Endpoint(EndpointView {
        id: EndpointId(id),
        task: TaskId::from_raw(id.into()),
        task_name: format!("web.{id}"),
        service: SERVICE,
        slot: Some(id.into()),
        node,
        addresses: vec![Attachment {
            network: NETWORK,
            addr: endpoint_addr(id),
            prefix_len: 24,
        }],
        state,
        weight: 1,
    })
}

/// This node with the tasks of these endpoints.
pub fn local(endpoints: &[u32]) -> LocalState {
    let task = |id: u32| LocalTask {
        endpoint: EndpointId(id),
        netns_cookie: 1000 + u64::from(id),
        netns_id: id,
        gateway: LocalVeth {
            ifindex: 100 + id,
            addr: Ipv4Addr::new(172, 18, 0, 10 + id as u8),
            mac: [2, 0x42, 172, 18, 0, 10 + id as u8],
        },
        overlays: vec![(
            NETWORK,
            LocalVeth {
                ifindex: 200 + id,
                addr: endpoint_addr(id),
                mac: [2, 0x42, 10, 0, 1, 10 + id as u8],
            },
        )],
        host_ports: Vec::new(),
    };
    LocalState {
        node: SELF,
        vxlan_ifindex: 2,
        uplink_ifindex: 3,
        underlay_mtu: 1500,
        reassembly_ifindex: 0,
        gateway_ifindex: 4,
        gateway_addr: Ipv4Addr::new(172, 18, 0, 1),
        node_addrs: vec![vtep(SELF)],
        netns_cookie: 999,
        doubts: Default::default(),
        tasks: endpoints
            .iter()
            .map(|id| (TaskId::from_raw((*id).into()), task(*id)))
            .collect(),
    }
}

impl Pins {
    /// Pin of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        let mut builds = fs::read_dir(self.layout().join("programs")).expect("programs");
        let build = builds.next().expect("a build").expect("an entry");
        build.path().join(name)
    }

    pub fn map_id(&self, name: &str) -> u32 {
        let map = MapData::from_pin(self.layout().join("maps").join(name)).expect("a pinned map");
        map.info().expect("its info").id()
    }
}

/// What others may do to our links, by `bpf(2)`.
fn bpf(command: libc::c_long, attr: &mut [u32]) -> i64 {
    let len = size_of_val(attr);
    // SAFETY: the command's part of `union bpf_attr` holds plain numbers, or pointers that the
    // caller keeps alive.
    unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), len) }
}

/// Keeps the pinned object open.
pub fn hold(pin: &Path) -> OwnedFd {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes()).expect("no NUL");
    let at = path.as_ptr() as u64;
    let fd = bpf(BPF_OBJ_GET, &mut [at as u32, (at >> 32) as u32, 0, 0]);
    assert!(
        fd >= 0,
        "{}: {}",
        pin.display(),
        std::io::Error::last_os_error()
    );
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// As `bpftool link detach`.
pub fn detach_link(pin: &Path) {
    const BPF_LINK_DETACH: libc::c_long = 34;
    let link = hold(pin);
    assert_eq!(bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd() as u32]), 0);
}

/// Makes a link run another program.
pub fn update_link(pin: &Path, program: &Path) {
    const BPF_LINK_UPDATE: libc::c_long = 29;
    let (link, program) = (hold(pin), hold(program));
    let fds = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    assert_eq!(bpf(BPF_LINK_UPDATE, &mut fds.clone()), 0);
}

/// Loads and attaches one of the programs as another build of this node would: on the same maps.
/// It stays attached as long as the value lives.
pub fn attach_of_another_build(pins: &Pins, name: &str, interface: &str) -> aya::Ebpf {
    const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SWARMNET_EBPF_OBJECT"));
    let maps = pins.layout().join("maps");
    let names = fs::read_dir(&maps).expect("pinned maps");
    let names: Vec<String> = names
        .map(|map| map.expect("an entry").file_name())
        .map(|name| name.into_string().expect("a name"))
        .collect();
    let paths: Vec<_> = names.iter().map(|name| maps.join(name)).collect();
    let mut loader = aya::EbpfLoader::new();
    for (name, path) in names.iter().zip(&paths) {
        loader.map_pin_path(name, path);
    }
    let mut object = loader.load(OBJECT).expect("the object loads");
    let program = object.program_mut(name).expect("the program");
    let program: &mut SchedClassifier = program.try_into().expect("of tc");
    program.load().expect("it loads");
    program
        .attach(interface, TcAttachType::Ingress)
        .expect("it attaches");
    object
}

/// Sends frames as they are out of an interface of the calling thread's namespace.
pub fn raw_socket(interface: &str) -> OwnedFd {
    // SAFETY: no pointers; zero is a value of the address, which lives until the calls return.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let mut at: libc::sockaddr_ll = std::mem::zeroed();
        at.sll_family = libc::AF_PACKET as u16;
        at.sll_ifindex = ifindex(interface) as i32;
        let bound = libc::bind(fd, (&raw const at).cast(), size_of_val(&at) as u32);
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

/// Whether the kernel took the frame.
pub fn send(socket: &OwnedFd, frame: &[u8]) -> bool {
    // SAFETY: the frame lives until the call returns, and its length is passed.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    sent == frame.len() as isize
}
