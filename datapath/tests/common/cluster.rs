//! Nodes, tasks and a client as network namespaces on one switch, wired as the agent wires them,
//! with real devices and attached programs. The maps are filled by the test.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, SchedClassifier, TcAttachType, Xdp, XdpMode,
    tc::qdisc_add_clsact,
};
use dataplane_abi::{Be16, Be32, NETNS_NODE, NETNS_TASK, NETNS_VNIS_MAX, NetnsValue, NodeConfig};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use super::{
    GATEWAY_ADDR, GATEWAY_MASK, MESH_VNI, Namespace, Node, Place, RING_SEED, SOCKET_PROGRAMS,
    TUNNEL_MTU, ip, program, run_inside,
};

/// No exchange here takes longer unless it is broken.
pub fn patience() -> Duration {
    lab::patience(Duration::from_secs(5))
}

pub const VNI: u32 = 4097;

/// The link that all nodes and the client share.
pub struct Switch {
    namespace: Namespace,
}

impl Switch {
    pub fn new() -> Self {
        let namespace = Namespace::new("switch");
        namespace.ip("link add br0 type bridge");
        namespace.ip("link set br0 up");
        Self { namespace }
    }

    /// Plugs `namespace` in: its side is `up0` with `addr`/24.
    fn plug(&self, namespace: &Namespace, addr: Be32) {
        let last = addr.to_host() & 0xff;
        self.namespace.ip(&format!(
            "link add port{last} type veth peer name up0 netns {}",
            namespace.name
        ));
        self.namespace
            .ip(&format!("link set port{last} master br0 up"));
        namespace.ip(&format!("addr add {}/24 dev up0", show(addr)));
        namespace.ip("link set up0 up");
    }

    /// Makes the switch's side of a link receive through NAPI: frames that an XDP program at the
    /// other side sends back are lost without. A program without maps' contents passes all.
    pub fn enable_napi(&self, addr: Be32) -> Node {
        let mut node = Node::load();
        let program: &mut Xdp = program(&mut node.ebpf, "sn_xdp_uplink");
        let port = format!("port{}", addr.to_host() & 0xff);
        self.namespace
            .run(|| program.attach(&port, XdpMode::Driver).map(drop))
            .unwrap();
        node
    }

    pub fn client(&self, addr: Be32) -> Namespace {
        let namespace = Namespace::new("client");
        self.plug(&namespace, addr);
        namespace
    }

    /// The devices of a node at `addr`, with no programs.
    pub fn machine(&self, addr: Be32) -> Namespace {
        let namespace = Namespace::new("node");
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        namespace.sysctl("net/ipv4/conf/all/forwarding", "1");
        self.plug(&namespace, addr);
        namespace.ip("link add vx0 type vxlan external dstport 4789 nolearning");
        namespace.ip("link set vx0 up");
        namespace.ip("link add sn_gwbridge address 02:42:ac:12:00:01 type bridge");
        namespace.ip("addr add 172.18.0.1/16 dev sn_gwbridge");
        namespace.ip("link set sn_gwbridge up");
        namespace
    }

    /// A node at `addr`, configured, programs attached, with no tasks.
    pub fn node(&self, addr: Be32) -> Host {
        self.node_of(Node::load(), addr)
    }

    /// As [`Self::node`], of programs and maps that are loaded.
    pub fn node_of(&self, mut node: Node, addr: Be32) -> Host {
        let namespace = self.machine(addr);
        node.configure(NodeConfig {
            vxlan_ifindex: namespace.ifindex("vx0"),
            uplink_ifindex: namespace.ifindex("up0"),
            gateway_ifindex: namespace.ifindex("sn_gwbridge"),
            mesh_vni: MESH_VNI,
            vtep: addr,
            gateway_addr: GATEWAY_ADDR,
            ring_seed: RING_SEED,
            data_port: Be16::from_host(4789),
            generation: 1,
            gateway_mask: GATEWAY_MASK,
            tunnel_mtu: TUNNEL_MTU,
            doubted: 0,
            unsettled_until: 0,
            reassembly_ifindex: 0,
            _pad: 0,
        });
        node.node_addr(addr);
        node.put("NETNS", namespace.cookie(), netns_value(NETNS_NODE, &[]));
        let mut host = Host {
            namespace,
            node,
            addr,
            tasks: Vec::new(),
            reassembly: None,
        };
        host.attach("sn_tc_uplink", "up0");
        host.attach("sn_tc_vxlan", "vx0");
        host
    }
}

pub struct Host {
    pub namespace: Namespace,
    pub node: Node,
    pub addr: Be32,
    pub tasks: Vec<Task>,
    /// Where the kernel puts fragments in order.
    pub reassembly: Option<Namespace>,
}

pub struct Task {
    pub namespace: Namespace,
    pub endpoint: u32,
    /// Address on the overlay network [`VNI`].
    pub overlay: Be32,
    pub gateway: Be32,
    overlay_ifindex: u32,
}

impl Host {
    pub fn attach(&mut self, name: &str, device: &str) {
        let program: &mut SchedClassifier = program(&mut self.node.ebpf, name);
        self.namespace.run(|| {
            // Before Linux 6.6 it becomes a filter, which needs this; else it does no harm.
            let _ = qdisc_add_clsact(device);
            program.attach(device, TcAttachType::Ingress).unwrap();
        });
    }

    pub fn attach_xdp(&mut self, mode: XdpMode) {
        let program: &mut Xdp = program(&mut self.node.ebpf, "sn_xdp_uplink");
        self.namespace
            .run(|| program.attach("up0", mode).map(drop))
            .unwrap();
    }

    /// Packets that a device of the node sent.
    pub fn sent(&self, device: &str) -> u64 {
        let table = self
            .namespace
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .unwrap();
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
        line.unwrap()
            .split_whitespace()
            .nth(9)
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn attach_sockets(&mut self, cgroup: &Cgroup) {
        let directory = fs::File::open(&cgroup.path).unwrap();
        for name in SOCKET_PROGRAMS {
            let program: &mut CgroupSockAddr = program(&mut self.node.ebpf, name);
            program
                .attach(&directory, CgroupAttachMode::Single)
                .unwrap();
        }
    }

    /// Gives the node a namespace in which the kernel puts fragments in order.
    pub fn put_in_order(&mut self) {
        let inside = Namespace::new("reassembly");
        inside.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        inside.sysctl("net/ipv4/ip_forward", "1");
        for scope in ["all", "default"] {
            inside.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
            inside.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0");
        }
        inside.sysctl("net/ipv4/ipfrag_time", "2");
        let mac = self
            .namespace
            .mac("up0")
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        self.namespace.ip(&format!(
            "link add order0 mtu 65535 type veth peer name eth0 mtu 65535 address {mac} netns {}",
            inside.name
        ));
        self.namespace.ip("link set order0 up");
        inside.ip("link set eth0 arp off up");
        inside.ip("route add default dev eth0 scope link");
        inside.nft(
            "table ip order {\n\
                 chain prerouting {\n\
                     type filter hook prerouting priority raw; policy accept;\n\
                     notrack\n\
                 }\n\
                 chain forward {\n\
                     type filter hook forward priority filter; policy accept;\n\
                     ct state untracked accept\n\
                 }\n\
             }\n",
        );
        self.attach("sn_tc_ordered", "order0");
        let config: NodeConfig = self.node.array("CONFIG").get(&0, 0).unwrap();
        self.node.configure(NodeConfig {
            reassembly_ifindex: self.namespace.ifindex("order0"),
            ..config
        });
        self.reassembly = Some(inside);
    }

    /// A task with both of its interfaces, and its entries in this node's own maps. Its counters
    /// have the index of its endpoint.
    pub fn add_task(&mut self, endpoint: u32, overlay: Be32) -> usize {
        let namespace = Namespace::new("task");
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        let gateway = ip(172, 18, 0, endpoint as u8);
        // Before a link between the two has the kernel choose a number.
        self.namespace
            .ip(&format!("netns set {} {endpoint}", namespace.name));
        self.wire(&namespace, "ov", endpoint, "eth0", overlay, 24, 1450);
        self.wire(&namespace, "gw", endpoint, "eth1", gateway, 16, 1500);
        self.namespace
            .ip(&format!("link set gw{endpoint} master sn_gwbridge"));
        namespace.ip("route add default via 172.18.0.1 mtu 1450 advmss 1410");
        self.attach("sn_tc_task", &format!("ov{endpoint}"));
        self.attach("sn_tc_gateway", &format!("gw{endpoint}"));

        let overlay_ifindex = self.namespace.ifindex(&format!("ov{endpoint}"));
        let gateway_ifindex = self.namespace.ifindex(&format!("gw{endpoint}"));
        self.node
            .overlay_veth(overlay_ifindex, VNI, overlay, endpoint);
        self.node.gateway_veth(gateway_ifindex, gateway);
        self.node
            .local(endpoint, gateway_ifindex, gateway, endpoint);
        self.node
            .put("NETNS", namespace.cookie(), netns_value(NETNS_TASK, &[VNI]));
        self.tasks.push(Task {
            namespace,
            endpoint,
            overlay,
            gateway,
            overlay_ifindex,
        });
        self.tasks.len() - 1
    }

    #[expect(clippy::too_many_arguments, reason = "one call site each")]
    fn wire(
        &self,
        task: &Namespace,
        prefix: &str,
        endpoint: u32,
        device: &str,
        addr: Be32,
        prefix_len: u8,
        mtu: u32,
    ) {
        let mac = dataplane_abi::net::task_mac(addr)
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        self.namespace.ip(&format!(
            "link add {prefix}{endpoint} mtu {mtu} type veth peer name {device} mtu {mtu} \
             address {mac} netns {}",
            task.name
        ));
        self.namespace
            .ip(&format!("link set {prefix}{endpoint} up"));
        task.ip(&format!(
            "addr add {}/{prefix_len} dev {device}",
            show(addr)
        ));
        task.ip(&format!("link set {device} up"));
    }
}

/// Tells every node where all tasks are, and who its peers are.
pub fn introduce(hosts: &mut [&mut Host]) {
    let places: Vec<(Be32, Be32, u32)> = hosts
        .iter()
        .flat_map(|host| {
            host.tasks
                .iter()
                .map(|task| (host.addr, task.overlay, task.overlay_ifindex))
        })
        .collect();
    let addrs: Vec<Be32> = hosts.iter().map(|host| host.addr).collect();
    for host in hosts {
        for addr in addrs.iter().filter(|&&addr| addr != host.addr) {
            host.node.peer(*addr);
        }
        for (node, overlay, ifindex) in &places {
            let place = if *node == host.addr {
                Place::Here(*ifindex)
            } else {
                Place::At(*node)
            };
            host.node.endpoint(VNI, *overlay, place);
        }
    }
}

fn netns_value(kind: u32, networks: &[u32]) -> NetnsValue {
    let mut vnis = [0; NETNS_VNIS_MAX];
    vnis[..networks.len()].copy_from_slice(networks);
    NetnsValue {
        kind,
        vni_count: networks.len() as u32,
        vnis,
    }
}

pub fn show(addr: Be32) -> Ipv4Addr {
    addr.into()
}

pub fn at(addr: Be32, port: u16) -> SocketAddr {
    SocketAddrV4::new(addr.into(), port).into()
}

/// A cgroup of the test's own, with the test's process in it while it lives. A process is in one
/// cgroup only: tests that need one take turns.
pub struct Cgroup {
    path: PathBuf,
    root: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Cgroup {
    pub fn enter() -> Self {
        static TURNS: Mutex<()> = Mutex::new(());
        // A test that failed in its turn has cleaned up.
        let turn = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.exists() {
            unified
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let path = root.join(format!("snp-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Self {
            path,
            root: root.to_owned(),
            _turn: turn,
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let moved = fs::write(
            self.root.join("cgroup.procs"),
            std::process::id().to_string(),
        );
        // Commands that other tests of this process run meanwhile were born here: they end soon.
        let deadline = Instant::now() + patience();
        let left = moved.and_then(|()| {
            loop {
                match fs::remove_dir(&self.path) {
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy
                            && Instant::now() < deadline =>
                    {
                        thread::yield_now();
                    }
                    outcome => return outcome,
                }
            }
        });
        if !thread::panicking() {
            left.unwrap();
        }
    }
}

/// Sends frames as they are out of a device.
pub struct Wire {
    socket: OwnedFd,
    ifindex: u32,
}

impl Wire {
    pub fn new(namespace: &Namespace, device: &str) -> Self {
        let open = || {
            // SAFETY: no pointers.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        Self {
            socket: namespace.run(open),
            ifindex: namespace.ifindex(device),
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: zero is a value of this structure.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.ifindex as i32;
        // SAFETY: frame and address live until the call returns, and their sizes are passed.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        assert_eq!(
            sent,
            frame.len() as isize,
            "{}",
            std::io::Error::last_os_error()
        );
    }
}

/// Sends each byte back, one connection after the other, and says where they came from.
pub struct EchoServer {
    peers: std::sync::mpsc::Receiver<SocketAddr>,
}

impl EchoServer {
    /// The thread ends with the process; the socket keeps its namespace until then.
    pub fn tcp(namespace: &Namespace, bind: SocketAddr) -> Self {
        let listener = namespace.run(|| TcpListener::bind(bind)).unwrap();
        let (sender, peers) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if sender.send(stream.peer_addr().unwrap()).is_err() {
                    return;
                }
                thread::spawn(move || {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(len @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..len]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { peers }
    }

    pub fn udp(namespace: &Namespace, bind: SocketAddr) -> Self {
        let socket = namespace.run(|| UdpSocket::bind(bind)).unwrap();
        let (sender, peers) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                if sender.send(from).is_err() || socket.send_to(&buffer[..len], from).is_err() {
                    return;
                }
            }
        });
        Self { peers }
    }

    /// Who the last connection or datagram came from.
    #[track_caller]
    pub fn peer(&self) -> SocketAddr {
        self.peers
            .recv_timeout(patience())
            .expect("the server saw a client")
    }

    /// Whether nobody came since the last look.
    pub fn is_idle(&self) -> bool {
        self.peers.try_recv().is_err()
    }
}

/// Echoes words of four bytes to any number of clients, and closes after [`WordServer::BYE`].
pub struct WordServer {
    /// A byte ends it.
    stop: UnixStream,
}

impl WordServer {
    pub const BYE: [u8; 4] = *b"bye!";

    /// On a thread with descriptors of its own, so that they count apart from the clients'. (Tokio's
    /// runtimes share some, across threads.)
    pub fn new(namespace: &Namespace, bind: SocketAddr) -> Self {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (listens, ready) = std::sync::mpsc::channel();
        let path = namespace.path();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            close_all_but(stopped.as_raw_fd());
            let listener = run_inside(&path, || TcpListener::bind(bind)).unwrap();
            listens.send(()).unwrap();
            Self::serve(&listener, &stopped).unwrap();
        });
        ready.recv().expect("the server listens");
        Self { stop }
    }

    /// Has the server close a connection, then closes it.
    pub fn end(mut connection: TcpStream) {
        connection.write_all(&Self::BYE).unwrap();
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, Self::BYE);
    }

    fn serve(listener: &TcpListener, stop: &UnixStream) -> io::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let watch = |fd: BorrowedFd<'_>| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, fd.as_raw_fd() as u64);
            epoll.add(fd, event)
        };
        watch(listener.as_fd())?;
        watch(stop.as_fd())?;
        let mut streams = HashMap::new();
        let mut events = vec![EpollEvent::empty(); 1024];
        loop {
            let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in &events[..ready] {
                let fd = event.data() as RawFd;
                if fd == stop.as_raw_fd() {
                    return Ok(());
                } else if fd == listener.as_raw_fd() {
                    let (stream, _) = listener.accept()?;
                    watch(stream.as_fd())?;
                    streams.insert(stream.as_raw_fd(), stream);
                } else if !Self::echo(&streams[&fd]).is_ok_and(|word| word != Self::BYE) {
                    streams.remove(&fd);
                }
            }
        }
    }

    fn echo(mut stream: &TcpStream) -> io::Result<[u8; 4]> {
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        stream.write_all(&word)?;
        Ok(word)
    }
}

/// Of a thread with descriptors of its own: those that it inherited would keep others' sockets open.
fn close_all_but(kept: RawFd) {
    let kept = kept as u32;
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        // SAFETY: no pointers; nothing here uses the descriptors. An empty range fails, and is one.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

impl Drop for WordServer {
    fn drop(&mut self) {
        // It may have failed before.
        let _ = self.stop.write_all(&[0]);
    }
}

/// Sends each connection's number on it, and checks that it comes back.
#[track_caller]
pub fn assert_all_echo(connections: &[TcpStream]) {
    for (nth, mut connection) in connections.iter().enumerate() {
        connection.write_all(&(nth as u32).to_be_bytes()).unwrap();
    }
    // For all of them: one by one, many lost ones would take for ever.
    let deadline = Instant::now() + patience();
    let answers = connections.iter().enumerate().map(|(nth, mut connection)| {
        let mut word = [0; 4];
        let left = deadline.saturating_duration_since(Instant::now());
        connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        connection.read_exact(&mut word)?;
        match u32::from_be_bytes(word) as usize == nth {
            true => Ok(()),
            false => Err(io::Error::other("another connection's answer")),
        }
    });
    let lost: Vec<_> = answers.filter_map(Result::err).collect();
    assert!(lost.is_empty(), "{} lost: {}", lost.len(), lost[0]);
}

/// A connection from a port of the caller's choice, also where an earlier one from it has just ended.
pub fn connect_from(namespace: &Namespace, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else {
        unreachable!("the tests speak IPv4");
    };
    let socket = namespace.run(|| {
        let (family, kind) = (AddressFamily::Inet, SockType::Stream);
        let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        socket::bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
        // Also for connect(2).
        let patience = TimeVal::milliseconds(patience().as_millis() as i64);
        socket::setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        socket::setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        nix::Result::Ok(socket)
    })?;
    Ok(socket.into())
}

/// As [`connect_from`], once the caller's kernel lets it: an earlier connection may be about to end.
#[track_caller]
pub fn connect_when_free(client: &Namespace, port: u16, to: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + patience();
    loop {
        match connect_from(client, port, to) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome.unwrap_or_else(|error| panic!("port {port}: {error}")),
        }
    }
}

/// A connection made inside of `namespace`.
#[track_caller]
pub fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    let stream = namespace
        .run(|| TcpStream::connect_timeout(&to, patience()))
        .unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.set_write_timeout(Some(patience())).unwrap();
    stream
}

/// Sends `len` bytes and checks that each comes back.
#[track_caller]
pub fn exchange(stream: &TcpStream, len: usize) {
    let data: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut back = vec![0; len];
    thread::scope(|scope| {
        let sent = scope.spawn(|| (&*stream).write_all(&data));
        (&*stream).read_exact(&mut back).unwrap();
        sent.join().unwrap().unwrap();
    });
    assert!(back == data, "the bytes that came back differ");
}

/// Sends a datagram of `len` bytes and returns who answered.
#[track_caller]
pub fn ask(socket: &UdpSocket, to: SocketAddr, len: usize) -> SocketAddr {
    let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
    socket.send_to(&data, to).unwrap();
    let mut back = vec![0; len + 1];
    let (got, from) = socket
        .recv_from(&mut back)
        .unwrap_or_else(|e| panic!("no answer: {e}"));
    assert!(back[..got] == data, "the answer differs");
    from
}

pub fn udp(namespace: &Namespace) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(patience())).unwrap();
    socket
}

#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
