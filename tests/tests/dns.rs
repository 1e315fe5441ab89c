//! Names inside tasks: each task's resolver on 127.0.0.11, asked by UDP, TCP and the C library.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use lab::{Host, RunningTask, wait_for};
use swarmnet_tests::Cluster;

const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum By {
    Udp,
    Tcp,
}

/// Puts one question to the resolver of a task.
fn ask(task: &Host, by: By, name: &str, kind: RecordType) -> Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_utf8(name)?, kind));
    let packet = question.to_vec()?;
    let answer = task.within(|| match by {
        By::Udp => by_udp(&packet),
        By::Tcp => by_tcp(&packet),
    });
    let answer = answer.with_context(|| format!("{name} {kind} by {by:?}"))?;
    let answer = Message::from_vec(&answer)?;
    ensure!(
        answer.metadata.id == question.metadata.id,
        "another's answer"
    );
    Ok(answer)
}

fn by_udp(packet: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(RESOLVER)?;
    socket.send(packet)?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn by_tcp(packet: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&RESOLVER.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[&(packet.len() as u16).to_be_bytes(), packet].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// The addresses in an answer, in its order.
fn addrs(answer: &Message) -> Vec<Ipv4Addr> {
    let addr = |record: &Record| match record.data {
        RData::A(A(addr)) => Some(addr),
        _ => None,
    };
    answer.answers.iter().filter_map(addr).collect()
}

/// The addresses of a name, which UDP and TCP must agree on.
fn resolve(task: &Host, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
    let set = |by| -> Result<BTreeSet<_>> {
        let answer = ask(task, by, name, RecordType::A)?;
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{name} by {by:?}: {code}");
        Ok(addrs(&answer).into_iter().collect())
    };
    let (udp, tcp) = (set(By::Udp)?, set(By::Tcp)?);
    ensure!(udp == tcp, "{name}: {udp:?} by UDP, {tcp:?} by TCP");
    Ok(udp)
}

fn rcode(task: &Host, name: &str) -> Result<ResponseCode> {
    Ok(ask(task, By::Udp, name, RecordType::A)?
        .metadata
        .response_code)
}

/// The name of an address.
fn reverse(task: &Host, addr: Ipv4Addr) -> Result<String> {
    let answer = ask(
        task,
        By::Udp,
        &Name::from(IpAddr::V4(addr)).to_string(),
        RecordType::PTR,
    )?;
    let record = answer
        .answers
        .first()
        .with_context(|| format!("{addr} has no name"))?;
    match &record.data {
        RData::PTR(name) => Ok(name.to_string()),
        other => anyhow::bail!("{other:?} is no name"),
    }
}

/// The address of a task's eth0.
fn addr(cluster: &Cluster, task: &RunningTask) -> Result<Ipv4Addr> {
    let show = ["-4", "-o", "address", "show", "dev", "eth0"];
    let shown = cluster.inside(task).ip(&show)?;
    let cidr = shown.split_whitespace().nth(3).context("no address")?;
    Ok(cidr.split('/').next().context("no address")?.parse()?)
}

fn addrs_of(cluster: &Cluster, tasks: &[RunningTask]) -> Result<BTreeSet<Ipv4Addr>> {
    tasks.iter().map(|task| addr(cluster, task)).collect()
}

fn inspected(cluster: &Cluster, kind: &str, format: &str, id: &str) -> Result<String> {
    let inspect = ["inspect", "--type", kind, "--format", format, id];
    Ok(cluster.node(1).docker(&inspect)?.trim().to_owned())
}

fn vip(cluster: &Cluster, service: &str) -> Result<Ipv4Addr> {
    let format = "{{(index .Endpoint.VirtualIPs 0).Addr}}";
    let cidr = inspected(cluster, "service", format, service)?;
    Ok(cidr.split('/').next().context("no address")?.parse()?)
}

/// `service.slot.id`, as containers of tasks are called.
fn task_name(cluster: &Cluster, task: &RunningTask, service: &str) -> Result<String> {
    let slot = inspected(cluster, "task", "{{.Slot}}", &task.id)?;
    Ok(format!("{service}.{slot}.{}", task.id))
}

fn network(cluster: &Cluster, name: &str) -> Result<()> {
    let create = ["network", "create", "-d", "overlay", name];
    cluster.node(1).cli(&create).map(drop)
}

#[test]
fn every_kind_of_name_resolves_in_every_task_and_only_on_its_networks() -> Result<()> {
    let cluster = Cluster::new()?;
    network(&cluster, "net")?;
    network(&cluster, "other")?;
    let web = cluster.serve("web", 3, &["--network", "name=net,alias=www"])?;
    let rr = ["--network", "name=net,alias=db", "--endpoint-mode", "dnsrr"];
    let rr = cluster.serve("rr", 3, &rr)?;
    let stranger = cluster.serve("stranger", 1, &["--network", "other"])?;
    cluster.settle()?;
    let vip = vip(&cluster, "web")?;
    let (web_addrs, rr_addrs) = (addrs_of(&cluster, &web)?, addrs_of(&cluster, &rr)?);
    for task in web.iter().chain(&rr) {
        let inside = cluster.inside(task);
        for name in ["web.", "WEB.", "www.", "web.net."] {
            assert_eq!(resolve(&inside, name)?, [vip].into(), "{name}");
        }
        for name in ["tasks.web.", "tasks.www."] {
            assert_eq!(resolve(&inside, name)?, web_addrs, "{name}");
        }
        for name in ["rr.", "db.", "tasks.rr.", "rr.net."] {
            assert_eq!(resolve(&inside, name)?, rr_addrs, "{name}");
        }
        assert_eq!(reverse(&inside, vip)?, "web.net.");
        // No IPv6: the name is known and has none.
        let aaaa = ask(&inside, By::Udp, "web.", RecordType::AAAA)?;
        assert_eq!(aaaa.metadata.response_code, ResponseCode::NoError);
        assert!(aaaa.answers.is_empty(), "{aaaa}");
    }
    let inside = cluster.inside(&rr[0]);
    for task in &web {
        let (name, addr) = (task_name(&cluster, task, "web")?, addr(&cluster, task)?);
        assert_eq!(resolve(&inside, &format!("{name}."))?, [addr].into());
        assert_eq!(
            resolve(&inside, &format!("{}.", task.hostname))?,
            [addr].into()
        );
        assert_eq!(reverse(&inside, addr)?, format!("{name}.net."));
    }
    let outside = cluster.inside(&stranger[0]);
    for name in ["web.", "tasks.web.", "db."] {
        assert_ne!(rcode(&outside, name)?, ResponseCode::NoError, "{name}");
    }
    c_library_finds_names(&cluster, &rr[0], vip)?;
    all_orders_are_given(&inside, &rr_addrs)
}

/// A real process with the task's own `resolv.conf` and `hosts`.
fn c_library_finds_names(cluster: &Cluster, task: &RunningTask, vip: Ipv4Addr) -> Result<()> {
    let pid = inspected(cluster, "task", "{{.Status.ContainerStatus.PID}}", &task.id)?;
    let getent = |name: &str| -> Result<String> {
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-m", "-n", "getent", "ahostsv4", name])
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    for name in ["web", "www", "web.net"] {
        let found = getent(name)?;
        ensure!(
            found.starts_with(&format!("{vip} ")),
            "getent {name}: {found}"
        );
    }
    // Its own hostname is in its hosts file, with its address on the first network.
    let own = getent(&task.hostname)?;
    let addr = addr(cluster, task)?.to_string();
    ensure!(
        own.starts_with(&addr),
        "getent {}: {own}, not {addr}",
        task.hostname
    );
    Ok(())
}

/// Clients take the first address: each must be the first now and then.
fn all_orders_are_given(task: &Host, all: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let mut firsts = BTreeSet::new();
    // A fair choice of 3 misses one in 100 tries with a chance of about 1e-17.
    for _ in 0..100 {
        let answer = addrs(&ask(task, By::Udp, "rr.", RecordType::A)?);
        ensure!(answer.len() == all.len(), "{answer:?}");
        firsts.insert(answer[0]);
    }
    ensure!(firsts == *all, "{firsts:?} of {all:?} come first");
    Ok(())
}

#[test]
fn names_follow_scale_and_survive_an_agents_restart() -> Result<()> {
    let mut cluster = Cluster::new()?;
    network(&cluster, "net")?;
    cluster.serve("web", 1, &["--network", "net"])?;
    let asking = cluster.serve("asking", 3, &["--network", "net"])?;
    for replicas in [4, 2] {
        let scale = ["service", "scale", "--detach", &format!("web={replicas}")];
        cluster.node(1).cli(&scale)?;
        let web = cluster.wait_running("web", replicas)?;
        cluster.settle()?;
        let acknowledged = Instant::now();
        let wanted = addrs_of(&cluster, &web)?;
        for task in &asking {
            let inside = cluster.inside(task);
            wait_for("names to follow", || {
                Ok((resolve(&inside, "tasks.web.")? == wanted).then_some(()))
            })?;
        }
        println!("names followed in {:?}", acknowledged.elapsed());
    }
    let vip = vip(&cluster, "web")?;
    for number in 1..=3 {
        cluster.node_mut(number).kill()?;
        cluster.node_mut(number).start()?;
    }
    for task in &asking {
        let inside = cluster.inside(task);
        // The resolver comes back with the agent, from the view on its disk.
        let found = wait_for("the resolver", || resolve(&inside, "web.").map(Some))?;
        assert_eq!(found, [vip].into());
    }
    Ok(())
}

#[test]
fn many_addresses_are_cut_for_udp_and_whole_by_tcp() -> Result<()> {
    // Headers, question and 29 records of 16 bytes are more than 512 bytes.
    const REPLICAS: usize = 40;
    let cluster = Cluster::new()?;
    network(&cluster, "net")?;
    let rr = ["--network", "net", "--endpoint-mode", "dnsrr"];
    let tasks = cluster.serve("web", REPLICAS, &rr)?;
    cluster.settle()?;
    let inside = cluster.inside(&tasks[0]);
    let udp = ask(&inside, By::Udp, "web.", RecordType::A)?;
    ensure!(udp.metadata.truncation, "{udp}");
    ensure!(udp.to_vec()?.len() <= 512, "{udp}");
    let tcp = ask(&inside, By::Tcp, "web.", RecordType::A)?;
    ensure!(!tcp.metadata.truncation, "{tcp}");
    let found: BTreeSet<_> = addrs(&tcp).into_iter().collect();
    assert_eq!(found.len(), REPLICAS);
    assert_eq!(found, addrs_of(&cluster, &tasks)?);
    Ok(())
}

/// A name server on the client outside: every name has the one address.
struct Upstream {
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Upstream {
    const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    fn start(host: &Host, addr: Ipv4Addr) -> Result<Self> {
        let socket = host.within(|| Ok(UdpSocket::bind((addr, 53))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let serving = std::thread::spawn(move || {
            let mut packet = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut packet) {
                    let answer = Self::answer(&packet[..length]).expect("a question");
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        let serving = Some(serving);
        Ok(Self { stop, serving })
    }

    fn answer(packet: &[u8]) -> Result<Vec<u8>> {
        let question = Message::from_vec(packet)?;
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        for query in &question.queries {
            answer.add_query(query.clone());
            let record = Record::from_rdata(query.name().clone(), 60, RData::A(A(Self::ANSWER)));
            answer.add_answer(record);
        }
        Ok(answer.to_vec()?)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

#[test]
fn foreign_names_go_to_the_services_own_upstream() -> Result<()> {
    let cluster = Cluster::new()?;
    network(&cluster, "net")?;
    let _upstream = Upstream::start(cluster.client(), cluster.client_addr())?;
    let upstream = cluster.client_addr().to_string();
    let web = cluster.serve("web", 1, &["--network", "net", "--dns", &upstream])?;
    cluster.settle()?;
    let inside = cluster.inside(&web[0]);
    for name in ["example.test.", "web.example.test."] {
        let answer = ask(&inside, By::Udp, name, RecordType::A)?;
        assert_eq!(addrs(&answer), [Upstream::ANSWER], "{name}");
    }
    // The cluster's names are not asked outside.
    assert_eq!(resolve(&inside, "web.")?, [vip(&cluster, "web")?].into());
    // Nor are the cluster's addresses, even those that nobody has.
    let nobody = Name::from(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 250))).to_string();
    let answer = ask(&inside, By::Udp, &nobody, RecordType::PTR)?;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    Ok(())
}
