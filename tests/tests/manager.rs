//! The manager is killed at any moment: what it acknowledged is there when it is back, and until
//! then the nodes go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use swarmnet_tests::{Cluster, Task, Traffic, ask_tcp};

const KILLS: usize = 6;
/// Seconds that a test's tasks sleep: tells their processes from all others.
fn nap(test: u32) -> String {
    (10 * (1_000_000 + std::process::id()) + test).to_string()
}
const WRITTEN: u32 = 1;
const AWAY: u32 = 2;

/// What the manager said yes to.
#[derive(Debug, Default)]
struct Acknowledged {
    networks: BTreeSet<String>,
    /// Replicas by name.
    services: BTreeMap<String, usize>,
}

/// A client that creates and scales for as long as it may, whether the manager is there or not.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// `host` is the manager's socket.
    fn start(host: String) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::default());
        let thread = std::thread::spawn({
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    write(&host, number, &acknowledged);
                }
            }
        });
        Self {
            stop,
            acknowledged,
            thread: Some(thread),
        }
    }

    fn count(&self) -> usize {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.networks.len() + acknowledged.services.len()
    }

    fn end(mut self) -> Acknowledged {
        self.join();
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer does not panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

/// One round: a network, a service on the networks there are, and its scaling. What is refused or
/// lost on the way is nobody's loss.
fn write(host: &str, number: usize, acknowledged: &Mutex<Acknowledged>) {
    let (network, service) = (format!("n{number}"), format!("s{number}"));
    if docker(host, &["network", "create", "-d", "overlay", &network]) {
        acknowledged
            .lock()
            .unwrap()
            .networks
            .insert(network.clone());
    }
    let create = ["service", "create", "--detach", "--name", &service];
    let options = ["--network", &network, "--network", "net", "--publish", "80"];
    let command = ["host", "sleep", &nap(WRITTEN)];
    if docker(host, &[&create[..], &options, &command].concat()) {
        acknowledged
            .lock()
            .unwrap()
            .services
            .insert(service.clone(), 1);
    }
    let scale = ["service", "scale", "--detach", &format!("{service}=2")];
    if docker(host, &scale) {
        acknowledged.lock().unwrap().services.insert(service, 2);
    }
}

fn docker(host: &str, args: &[&str]) -> bool {
    let mut command = Command::new("docker");
    let output = command.env("DOCKER_HOST", host).args(args).output();
    output.expect("docker is installed").status.success()
}

/// Numbers for the moments of the kills (a 64-bit xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << by } else { self.0 >> by };
        }
        self.0 % limit
    }
}

#[test]
fn acknowledged_writes_survive_kills_at_random_moments_and_traffic_goes_on() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = now.as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut cluster = Cluster::new()?;
    cluster
        .node(1)
        .cli(&["network", "create", "-d", "overlay", "net"])?;
    let web = ["--network", "net", "--publish", "8080:80"];
    let before = processes(&cluster, &cluster.serve("web", 3, &web)?)?;
    cluster.settle()?;
    let entries = cluster.entries(8080)?;
    let open = Traffic::of_conversations(cluster.client(), &entries)?;
    let new = Traffic::of_connections(cluster.client(), &entries);
    let writer = Writer::start(cluster.node(1).host_url());
    for _ in 0..KILLS {
        let enough = writer.count() + 1 + random.below(4) as usize;
        wait_for("some writes", || {
            Ok((writer.count() >= enough).then_some(()))
        })?;
        // The moment is what is tested: anywhere in a write.
        std::thread::sleep(Duration::from_millis(random.below(100)));
        cluster.node_mut(1).kill()?;
        open.go_on()?;
        new.go_on()?;
        cluster.node_mut(1).start()?;
    }
    let acknowledged = writer.end();
    all_is_there_once(&cluster, &acknowledged)?;
    cluster.settle()?;
    open.end()?;
    new.end()?;
    let after = processes(&cluster, &cluster.wait_running("web", 3)?)?;
    ensure!(
        before == after,
        "tasks were restarted: {before:?}, now {after:?}"
    );
    Ok(())
}

/// Process of each task.
fn processes(cluster: &Cluster, tasks: &[Task]) -> Result<BTreeMap<String, String>> {
    let format = "{{.Status.ContainerStatus.PID}}";
    let pid = |task: &Task| -> Result<_> {
        let inspect = ["inspect", "--type", "task", "--format", format, &task.id];
        let pid = cluster.node(1).docker(&inspect)?;
        Ok((task.id.clone(), pid.trim().to_owned()))
    };
    tasks.iter().map(pid).collect()
}

fn all_is_there_once(cluster: &Cluster, acknowledged: &Acknowledged) -> Result<()> {
    let manager = cluster.node(1);
    let listed = |args: &[&str]| -> Result<Vec<String>> {
        let text = manager.docker(args)?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let services = acknowledged.services.len();
    ensure!(
        services + acknowledged.networks.len() >= KILLS,
        "{acknowledged:?}"
    );
    let networks = listed(&[
        "network",
        "ls",
        "--filter",
        "driver=overlay",
        "--format",
        "{{.Name}}",
    ])?;
    for network in &acknowledged.networks {
        ensure!(networks.contains(network), "network {network} is lost");
    }
    let services = listed(&["service", "ls", "--format", "{{.Name}}"])?;
    for (service, replicas) in &acknowledged.services {
        ensure!(services.contains(service), "service {service} is lost");
        let format = "{{.Spec.Mode.Replicated.Replicas}}";
        let found = manager.docker(&["service", "inspect", "--format", format, service])?;
        // A scaling that was lost on the way to us may have been done.
        let found: usize = found.trim().parse()?;
        ensure!(
            found >= *replicas,
            "{service} has {found} replicas, not {replicas}"
        );
    }
    // Whether acknowledged or not, what is there runs, as often as it should.
    let mut running = 0;
    for service in services.iter().filter(|service| service.as_str() != "web") {
        running += wait_for(&format!("all tasks of {service}"), || {
            let format = "{{.Spec.Mode.Replicated.Replicas}}";
            let wanted = manager.docker(&["service", "inspect", "--format", format, service])?;
            let tasks = cluster.tasks(service)?.len();
            let wanted: usize = wanted.trim().parse()?;
            let shown = || manager.docker(&["service", "ps", "--no-trunc", service]);
            ensure!(tasks == wanted, "{tasks} of {wanted}:\n{}", shown()?);
            Ok(Some(tasks))
        })?;
    }
    ensure!(
        naps(WRITTEN)? == running,
        "{} processes for {running} tasks",
        naps(WRITTEN)?
    );
    let ids = "{{index .Options \"com.docker.network.driver.overlay.vxlanid_list\"}}";
    let subnets = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
    for format in [ids, subnets] {
        let inspect = ["network", "inspect", "--format", format];
        let names: Vec<_> = networks.iter().map(String::as_str).collect();
        all_different(&listed(&[&inspect[..], &names].concat())?)?;
    }
    let names: Vec<_> = services.iter().map(String::as_str).collect();
    let inspect =
        |format| listed(&[&["service", "inspect", "--format", format][..], &names].concat());
    all_different(&inspect(
        "{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}",
    )?)?;
    let vips = inspect("{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}")?;
    let mut addrs: Vec<String> = words(&vips);
    let tasks: Vec<Task> = names
        .iter()
        .map(|service| cluster.tasks(service))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let ids: Vec<_> = tasks.iter().map(|task| task.id.as_str()).collect();
    let format = "{{range .NetworksAttachments}}{{range .Addresses}}{{.}} {{end}}{{end}}";
    let inspect = ["inspect", "--type", "task", "--format", format];
    addrs.extend(words(&listed(&[&inspect[..], &ids].concat())?));
    all_different(&addrs)
}

fn words(lines: &[String]) -> Vec<String> {
    let words = lines.iter().flat_map(|line| line.split_whitespace());
    words.map(str::to_owned).collect()
}

fn all_different(things: &[String]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for thing in things {
        ensure!(!thing.is_empty(), "something has none: {things:?}");
        ensure!(seen.insert(thing), "{thing} is there twice: {things:?}");
    }
    Ok(())
}

/// Processes of a test's tasks.
fn naps(test: u32) -> Result<usize> {
    let wanted = format!("sleep\0{}\0", nap(test));
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        found += usize::from(line == wanted.as_bytes());
    }
    Ok(found)
}

#[test]
fn what_happened_while_the_manager_was_gone_is_told_when_it_is_back() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let before = cluster.serve("web", 3, &["--publish", "8080:80"])?;
    cluster.settle()?;
    let pids = processes(&cluster, &before)?;
    let dying = before
        .iter()
        .find(|task| task.node == 2)
        .context("a task on node 2")?;
    cluster.node_mut(1).kill()?;
    kill(Pid::from_raw(pids[&dying.id].parse()?), Signal::SIGKILL)?;
    cluster.node_mut(1).start()?;
    wait_for("the replacement", || {
        let tasks = cluster.tasks("web")?;
        let replaced = tasks.len() == 3 && tasks.iter().all(|task| task.id != dying.id);
        Ok(replaced.then_some(()))
    })?;
    let others = |tasks: &[Task]| -> BTreeSet<_> {
        let ids = tasks.iter().map(|task| task.id.clone());
        ids.filter(|id| *id != dying.id).collect()
    };
    let after = others(&cluster.tasks("web")?);
    ensure!(
        others(&before).is_subset(&after),
        "a healthy task was replaced"
    );
    cluster.settle()?;
    for node in cluster.nodes() {
        ask_tcp(cluster.client(), (node.addr(), 8080))?;
    }
    Ok(())
}

#[test]
fn what_was_made_while_a_workers_agent_was_down_reaches_it_once() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.settle()?;
    let at_3 = format!("node.hostname=={}", cluster.node(3).name());
    cluster.node_mut(3).kill()?;
    let create = ["service", "create", "--detach", "--replicas", "2"];
    let here = [
        "--name",
        "here",
        "--constraint",
        &at_3,
        "--",
        "sleep",
        &nap(AWAY),
    ];
    cluster.node(1).cli(&[&create[..], &here].concat())?;
    let elsewhere = ["--constraint", "node.role==manager", "--publish", "8080:80"];
    let there = cluster.serve("there", 1, &elsewhere)?;
    let through_3 = (cluster.node(3).addr(), 8080);
    ensure!(
        ask_tcp(cluster.client(), through_3).is_err(),
        "port 8080 is open already"
    );
    cluster.node_mut(3).start()?;
    let here = cluster.wait_running("here", 2)?;
    cluster.settle()?;
    ensure!(here.iter().all(|task| task.node == 3), "{here:?}");
    assert_eq!(naps(AWAY)?, 2);
    let answer = ask_tcp(cluster.client(), through_3)?;
    assert_eq!(answer.task, there[0].hostname);
    // One namespace for each task that the node has.
    let netns = cluster.node(3).run_dir().join("netns");
    assert_eq!(std::fs::read_dir(netns)?.count(), 2);
    Ok(())
}
