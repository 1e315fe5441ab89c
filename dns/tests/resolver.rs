//! A resolver on loopback, asked through real sockets, with upstreams that are as the test wants.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use hickory_resolver::{
    Resolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use model::{
    EndpointId, NetworkId, NodeId, ServiceId, TaskId, Vni,
    feed::{
        BackendState, EndpointView, NetworkView, NodeView, ServiceNetwork, ServiceView, ViewObject,
    },
    object::Attachment,
    spec::EndpointMode,
};
use swarmnet_dns::TaskResolver;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(20);
const NETWORK: NetworkId = NetworkId::from_raw(1);
const SERVICE: ServiceId = ServiceId::from_raw(1);

/// A view with the round-robin service `web` of so many tasks, on 10.1.0.0/16.
fn view(tasks: u32) -> NodeView {
    let mut view = NodeView::default();
    view.put(ViewObject::Network(NetworkView {
        id: NETWORK,
        name: "net".to_owned(),
        vni: Vni::FIRST,
        subnet: "10.1.0.0/16".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 1, 0, 1),
        internal: false,
    }));
    view.put(ViewObject::Service(ServiceView {
        id: SERVICE,
        name: "web".to_owned(),
        mode: EndpointMode::Dnsrr,
        networks: vec![ServiceNetwork {
            network: NETWORK,
            vip: None,
            aliases: Vec::new(),
        }],
        ports: Vec::new(),
        policy: Default::default(),
    }));
    for number in 1..=tasks {
        view.put(ViewObject::Endpoint(EndpointView {
            id: EndpointId(number),
            task: TaskId::generate(),
            task_name: format!("web.{number}.x"),
            service: SERVICE,
            slot: Some(number.into()),
            node: NodeId::from_raw(1),
            addresses: vec![Attachment {
                network: NETWORK,
                addr: address(number),
                prefix_len: 16,
            }],
            state: BackendState::Active,
            weight: 1,
        }));
    }
    view
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 1, 0).to_bits() + number)
}

struct Fixture {
    addr: SocketAddr,
    view: watch::Sender<Arc<NodeView>>,
    _resolver: TaskResolver,
}

fn start(tasks: u32, upstreams: &[SocketAddr]) -> Fixture {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = std::net::UdpSocket::bind(addr).unwrap();
    let (view, receiver) = watch::channel(Arc::new(view(tasks)));
    let sockets = (udp, tcp);
    let upstreams = upstreams.to_vec();
    let resolver = TaskResolver::spawn(
        sockets,
        TaskId::generate(),
        vec![NETWORK],
        receiver,
        upstreams,
    );
    Fixture {
        addr,
        view,
        _resolver: resolver.unwrap(),
    }
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_utf8(name).unwrap(), RecordType::A));
    message
}

async fn exchange_udp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut reply = vec![0; 65_535];
    let len = timeout(DEADLINE, socket.recv(&mut reply))
        .await
        .expect("a reply")
        .unwrap();
    reply.truncate(len);
    reply
}

async fn exchange_tcp(stream: &mut TcpStream, packet: &[u8]) -> Vec<u8> {
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let reply = async {
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        reply
    };
    timeout(DEADLINE, reply).await.expect("a reply")
}

async fn ask_udp(server: SocketAddr, query: &Message) -> Message {
    let reply = exchange_udp(server, &query.to_vec().unwrap()).await;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    reply
}

async fn ask_tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let reply = exchange_tcp(&mut stream, &query.to_vec().unwrap()).await;
    Message::from_vec(&reply).unwrap()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let addresses = message.answers.iter().map(|record| match record.data {
        RData::A(A(addr)) => addr,
        ref other => panic!("{other:?}"),
    });
    addresses.collect()
}

/// How an upstream answers.
#[derive(Clone, Copy)]
enum Manner {
    Silent,
    Fails(ResponseCode),
    /// With so many addresses, by UDP only as many as fit.
    Answers(usize),
    /// As `Answers(1)`, after a packet with a wrong id and one with a wrong question.
    AfterSpoofs,
    /// Truncates, and resets connections.
    TruncatesOnly,
}

struct Upstream {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Upstream {
    async fn start(manner: Manner) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(addr).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let serve_udp = async move {
            let mut packet = [0; 4096];
            loop {
                let (len, client) = udp.recv_from(&mut packet).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                for reply in by_udp(manner, &packet[..len]) {
                    udp.send_to(&reply, client).await.unwrap();
                }
            }
        };
        let serve_tcp = async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let Manner::Answers(count) = manner else {
                    continue;
                };
                let mut packet = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut packet).await.unwrap();
                let reply = answer(&packet, count).to_vec().unwrap();
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        };
        let serving = tokio::spawn(async {
            tokio::join!(serve_udp, serve_tcp);
        });
        Self {
            addr,
            asked,
            serving,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(packet: &[u8], count: usize) -> Message {
    let query = Message::from_vec(packet).unwrap();
    let mut reply = Message::new(
        query.metadata.id,
        MessageType::Response,
        query.metadata.op_code,
    );
    reply.queries = query.queries.clone();
    let name = query.queries[0].name();
    let addresses = (0..count as u32).map(|n| RData::A(A(Ipv4Addr::from_bits(0xC000_0200 + n))));
    reply.answers = addresses
        .map(|data| Record::from_rdata(name.clone(), 60, data))
        .collect();
    reply
}

fn by_udp(manner: Manner, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut reply = answer(packet, 1);
    match manner {
        Manner::Silent => return Vec::new(),
        Manner::Fails(code) => {
            reply.answers.clear();
            reply.metadata.response_code = code;
        }
        Manner::Answers(count) if count <= 20 => reply = answer(packet, count),
        Manner::Answers(_) | Manner::TruncatesOnly => {
            reply.answers.clear();
            reply.metadata.truncation = true;
        }
        Manner::AfterSpoofs => {
            let mut wrong_id = answer(packet, 5);
            wrong_id.metadata.id ^= 1;
            let mut wrong_question = answer(packet, 5);
            wrong_question.queries[0].set_name(Name::from_utf8("evil.org.").unwrap());
            let spoofs = [wrong_id, wrong_question].map(|spoof| spoof.to_vec().unwrap());
            return [
                spoofs.to_vec(),
                vec![vec![], vec![0; 12], reply.to_vec().unwrap()],
            ]
            .concat();
        }
    }
    vec![reply.to_vec().unwrap()]
}

#[tokio::test]
async fn a_stub_resolver_finds_services_and_foreign_names() {
    let upstream = Upstream::start(Manner::Answers(2)).await;
    let fixture = start(3, &[upstream.addr]);
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = fixture.addr.port();
    }
    let server = NameServerConfig::new(fixture.addr.ip(), true, connections);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let client = Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        .build()
        .unwrap();

    let ips = client.lookup_ip("tasks.web.").await.unwrap();
    let found: BTreeSet<_> = ips.iter().collect();
    assert_eq!(
        found,
        (1..=3).map(|number| address(number).into()).collect()
    );
    assert_eq!(
        client
            .lookup_ip("web.2.x.net.")
            .await
            .unwrap()
            .iter()
            .next(),
        Some(address(2).into())
    );
    let names = client.reverse_lookup(address(2)).await.unwrap();
    assert_eq!(names.answers()[0].data.to_string(), "web.2.x.net.");
    assert_eq!(
        client
            .lookup_ip("example.org.")
            .await
            .unwrap()
            .iter()
            .count(),
        2
    );
}

#[tokio::test]
async fn a_change_of_the_view_holds_from_the_next_query_on() {
    let fixture = start(1, &[]);
    assert_eq!(
        addresses(&ask_udp(fixture.addr, &question("web.")).await),
        [address(1)]
    );
    for tasks in [2, 0, 1] {
        fixture.view.send_replace(Arc::new(view(tasks)));
        let reply = ask_udp(fixture.addr, &question("web.")).await;
        assert_eq!(reply.answers.len(), tasks as usize);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
}

/// Without EDNS 512 bytes, with it what it says, over TCP all.
#[tokio::test]
async fn hundreds_of_addresses_are_truncated_by_udp_and_whole_by_tcp() {
    let fixture = start(700, &[]);
    let mut query = question("web.");
    let reply = ask_udp(fixture.addr, &query).await;
    assert!(reply.metadata.truncation);
    assert_eq!(reply.answers.len(), (512 - 12 - 9) / 16);

    let whole = ask_tcp(fixture.addr, &query).await;
    assert!(!whole.metadata.truncation);
    let found: BTreeSet<_> = addresses(&whole).into_iter().collect();
    assert_eq!(found, (1..=700).map(address).collect());

    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    query.set_edns(edns);
    let bytes = exchange_udp(fixture.addr, &query.to_vec().unwrap()).await;
    assert!(
        bytes.len() <= 1232 && bytes.len() > 1232 - 16,
        "{}",
        bytes.len()
    );
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.metadata.truncation && reply.edns.is_some());
}

/// More than a DNS message can hold at all.
#[tokio::test]
async fn thousands_of_addresses_are_as_many_as_fit() {
    let fixture = start(9000, &[]);
    let query = question("tasks.web.net.");
    let mut stream = TcpStream::connect(fixture.addr).await.unwrap();
    let bytes = exchange_tcp(&mut stream, &query.to_vec().unwrap()).await;
    assert!(bytes.len() > 65_000, "{}", bytes.len());
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.metadata.truncation && reply.answers.len() > 2000);
}

#[tokio::test]
async fn answers_are_shuffled() {
    let fixture = start(16, &[]);
    let mut first = BTreeSet::new();
    for _ in 0..64 {
        first.insert(addresses(&ask_udp(fixture.addr, &question("web.")).await)[0]);
    }
    // 64 draws of 16: fewer than 4 different ones happens once in 10^36.
    assert!(first.len() >= 4, "{first:?}");
}

#[tokio::test]
async fn one_connection_takes_many_queries() {
    let fixture = start(2, &[]);
    let mut stream = TcpStream::connect(fixture.addr).await.unwrap();
    for _ in 0..10 {
        let query = question("web.");
        let reply = exchange_tcp(&mut stream, &query.to_vec().unwrap()).await;
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(
            (reply.metadata.id, reply.answers.len()),
            (query.metadata.id, 2)
        );
    }
}

#[tokio::test]
async fn our_names_are_never_asked_upstream() {
    let upstream = Upstream::start(Manner::Answers(1)).await;
    let fixture = start(0, &[upstream.addr]);
    let mut aaaa = question("web.");
    aaaa.queries[0].set_query_type(RecordType::AAAA);
    for query in [question("web."), aaaa] {
        let reply = ask_udp(fixture.addr, &query).await;
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (ResponseCode::NoError, 0)
        );
    }
    assert_eq!(upstream.asked(), 0);
}

#[tokio::test]
async fn a_foreign_name_is_answered_by_the_upstream_with_our_id() {
    let upstream = Upstream::start(Manner::AfterSpoofs).await;
    let fixture = start(1, &[upstream.addr]);
    let reply = ask_udp(fixture.addr, &question("example.org.")).await;
    assert_eq!(addresses(&reply), [Ipv4Addr::new(192, 0, 2, 0)]);
    let reply = ask_tcp(fixture.addr, &question("example.org.")).await;
    assert_eq!(reply.answers.len(), 1);
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_by_tcp() {
    let upstream = Upstream::start(Manner::Answers(300)).await;
    let fixture = start(1, &[upstream.addr]);
    let query = question("example.org.");
    assert_eq!(ask_tcp(fixture.addr, &query).await.answers.len(), 300);
    // By UDP it does not fit; the client is told to come by TCP.
    let reply = ask_udp(fixture.addr, &query).await;
    assert!(reply.metadata.truncation);

    let stingy = Upstream::start(Manner::TruncatesOnly).await;
    let fixture = start(1, &[stingy.addr]);
    let reply = ask_udp(fixture.addr, &query).await;
    assert!(reply.metadata.truncation);
    let reply = ask_tcp(fixture.addr, &query).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_fails() {
    for manner in [
        Manner::Silent,
        Manner::Fails(ResponseCode::ServFail),
        Manner::Fails(ResponseCode::Refused),
    ] {
        let bad = Upstream::start(manner).await;
        let good = Upstream::start(Manner::Answers(1)).await;
        let fixture = start(1, &[bad.addr, good.addr]);
        assert_eq!(
            ask_udp(fixture.addr, &question("a.org."))
                .await
                .answers
                .len(),
            1
        );
        let asked = bad.asked();
        assert_eq!(
            ask_udp(fixture.addr, &question("b.org."))
                .await
                .answers
                .len(),
            1
        );
        assert_eq!(
            (bad.asked(), good.asked()),
            (asked, 2),
            "the one that answered comes first"
        );
    }
}

#[tokio::test]
async fn no_such_name_is_an_answer_and_the_next_upstream_is_not_asked() {
    let first = Upstream::start(Manner::Fails(ResponseCode::NXDomain)).await;
    let second = Upstream::start(Manner::Answers(1)).await;
    let fixture = start(1, &[first.addr, second.addr]);
    let reply = ask_udp(fixture.addr, &question("no.org.")).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(second.asked(), 0);
}

#[tokio::test]
async fn without_an_answer_in_time_or_an_upstream_it_is_servfail() {
    let silent = Upstream::start(Manner::Silent).await;
    let itself: SocketAddr = "127.0.0.11:53".parse().unwrap();
    for upstreams in [vec![silent.addr], vec![itself], vec![]] {
        let fixture = start(1, &upstreams);
        let query = question("example.org.");
        let reply = ask_udp(fixture.addr, &query).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(reply.queries, query.queries);
    }
    assert_eq!(silent.asked(), 3);
}

/// Slow names do not hold up others.
#[tokio::test]
async fn our_names_are_answered_while_upstreams_are_silent() {
    let silent = Upstream::start(Manner::Silent).await;
    let fixture = start(1, &[silent.addr]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(fixture.addr).await.unwrap();
    for _ in 0..50 {
        socket
            .send(&question("example.org.").to_vec().unwrap())
            .await
            .unwrap();
    }
    let ours = question("web.");
    socket.send(&ours.to_vec().unwrap()).await.unwrap();
    let mut reply = [0; 512];
    let len = timeout(DEADLINE, socket.recv(&mut reply))
        .await
        .unwrap()
        .unwrap();
    let reply = Message::from_vec(&reply[..len]).unwrap();
    assert_eq!(
        (reply.metadata.id, reply.answers.len()),
        (ours.metadata.id, 1)
    );
}

/// Through the sockets: the resolver still answers afterwards.
#[tokio::test]
async fn garbage_does_not_stop_it() {
    let fixture = start(1, &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(fixture.addr).await.unwrap();
    for len in 0..300 {
        let packet: Vec<u8> = (0..len).map(|_| rand::random()).collect();
        socket.send(&packet).await.unwrap();
        let mut stream = TcpStream::connect(fixture.addr).await.unwrap();
        let _ = stream.write_all(&packet).await;
    }
    assert_eq!(
        ask_udp(fixture.addr, &question("web.")).await.answers.len(),
        1
    );
    assert_eq!(
        ask_tcp(fixture.addr, &question("web.")).await.answers.len(),
        1
    );
}

#[tokio::test]
async fn dropped_it_gives_its_sockets_back() {
    let fixture = start(1, &[]);
    let addr = fixture.addr;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    drop(fixture);
    // The open connection is closed with it.
    let end = timeout(DEADLINE, stream.read_u16()).await.unwrap();
    assert!(end.is_err());
    UdpSocket::bind(addr).await.unwrap();
}
