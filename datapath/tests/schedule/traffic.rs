//! Clients that ask all the time, and servers that say who they are.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    sync::watch,
};

use crate::common::{Namespace, cluster::patience};

/// Between two questions of a client that nobody hurries.
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// Clients that never pause.
const BUSY_EVERY: usize = 50;

pub struct Traffic {
    runtime: Runtime,
    /// Changes whenever all clients shall ask at once.
    hurry: watch::Sender<u64>,
}

impl Traffic {
    pub fn new() -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        Self {
            runtime: runtime.worker_threads(2).enable_all().build().unwrap(),
            hurry: watch::channel(0).0,
        }
    }

    /// A server in `namespace`. It takes connections all the time; those of a task end with it.
    pub fn server(&self, namespace: &Namespace, at: (Ipv4Addr, u16)) -> Server {
        let listener = namespace.run(|| TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (endpoint, watched) = watch::channel(0u32);
        self.runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, watched.clone()));
            }
        });
        Server { endpoint }
    }

    /// Opens a connection to each address, from inside of `namespace`.
    pub fn connect(&self, namespace: &Namespace, to: &[SocketAddr]) -> Vec<Connection> {
        let open = |to: &SocketAddr| {
            let stream = connect_from_own_port(to);
            let mut stream = stream.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
            stream.set_read_timeout(Some(patience())).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut greeting = [0; 4];
            let read = stream.read_exact(&mut greeting);
            read.unwrap_or_else(|error| panic!("greeting of {to}: {error}"));
            (stream, u32::from_be_bytes(greeting))
        };
        let streams: Vec<_> = namespace.run(|| to.iter().map(open).collect());
        let streams = streams.into_iter().enumerate();
        let connections = streams.map(|(nth, (stream, endpoint))| {
            let name = format!(
                "{} to {} at endpoint {endpoint}",
                stream.local_addr().unwrap(),
                stream.peer_addr().unwrap()
            );
            let state = Arc::new(State::default());
            stream.set_nonblocking(true).unwrap();
            let (hurry, watched) = (self.hurry.subscribe(), Arc::clone(&state));
            let is_busy = nth % BUSY_EVERY == 0;
            self.runtime.spawn(async move {
                let stream = tokio::net::TcpStream::from_std(stream).unwrap();
                if let Err(error) = ask(stream, &watched, hurry, is_busy).await {
                    let _ = watched.error.set(error.to_string());
                }
            });
            Connection {
                name,
                endpoint,
                state,
            }
        });
        connections.collect()
    }

    /// Returns when each of the connections has had an answer to a question asked from now on, or
    /// tells of those that have not.
    pub fn probe(&self, connections: &[Connection], patience: Duration) -> Result<(), String> {
        // The round that is under way may have been answered by now.
        let goal = |connection: &Connection| connection.state.rounds.load(Ordering::Relaxed) + 2;
        let goals: Vec<u64> = connections.iter().map(goal).collect();
        let deadline = Instant::now() + patience;
        loop {
            self.hurry.send_modify(|turn| *turn += 1);
            let reached = |(connection, goal): &(&Connection, &u64)| {
                connection.state.rounds.load(Ordering::Relaxed) >= **goal
            };
            let late: Vec<_> = connections
                .iter()
                .zip(&goals)
                .filter(|pair| !reached(pair))
                .collect();
            let broken = late.iter().find_map(|(connection, _)| {
                let error = connection.state.error.get()?;
                Some(format!("{}: {error}", connection.name))
            });
            match (late.first(), broken) {
                (None, _) => return Ok(()),
                (_, Some(broken)) => return Err(format!("{broken} ({} late)", late.len())),
                (Some((first, _)), None) if Instant::now() >= deadline => {
                    return Err(format!("{}: no answer ({} late)", first.name, late.len()));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A task's server.
pub struct Server {
    /// Zero: the task has ended.
    endpoint: watch::Sender<u32>,
}

impl Server {
    pub fn serve(&self, endpoint: u32) {
        self.endpoint.send_replace(endpoint);
    }

    pub fn end(&self) {
        self.endpoint.send_replace(0);
    }
}

async fn serve(mut stream: tokio::net::TcpStream, mut endpoint: watch::Receiver<u32>) {
    let id = *endpoint.borrow_and_update();
    tokio::select! {
        _ = echo(&mut stream, id) => {}
        _ = endpoint.wait_for(|now| *now != id) => {}
    }
}

/// Until either side has enough.
async fn echo(stream: &mut tokio::net::TcpStream, id: u32) -> std::io::Result<()> {
    stream.write_all(&id.to_be_bytes()).await?;
    let mut buffer = [0; 8];
    loop {
        stream.read_exact(&mut buffer).await?;
        stream.write_all(&buffer).await?;
    }
}

pub struct Connection {
    pub name: String,
    /// Whoever greeted.
    pub endpoint: u32,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    rounds: AtomicU64,
    slowest_ms: AtomicU64,
    ended: AtomicBool,
    error: OnceLock<String>,
}

impl Connection {
    pub fn slowest(&self) -> Duration {
        Duration::from_millis(self.state.slowest_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
    }
}

async fn ask(
    mut stream: tokio::net::TcpStream,
    state: &State,
    mut hurry: watch::Receiver<u64>,
    is_busy: bool,
) -> std::io::Result<()> {
    let mut round = 0u64;
    while !state.ended.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(&round.to_be_bytes()).await?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await?;
        if answer != round.to_be_bytes() {
            return Err(std::io::Error::other("another connection's answer"));
        }
        let took = asked.elapsed().as_millis() as u64;
        state.slowest_ms.fetch_max(took, Ordering::Relaxed);
        round += 1;
        state.rounds.store(round, Ordering::Relaxed);
        if is_busy {
            tokio::task::yield_now().await;
            continue;
        }
        let pause = PAUSE_MAX.mul_f64(rand::rng().random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = hurry.changed() => {}
        }
    }
    Ok(())
}

/// From a port that no other connection has, as one taken at `bind` is: places for tasks are used again,
/// and the sockets that a task left in one would take another connection from the same port for theirs.
fn connect_from_own_port(to: &SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let SocketAddr::V4(to) = to else {
        panic!("{to} is not IPv4")
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket(AddressFamily::Inet, SockType::Stream, flags, None)?);
    bind(stream.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))?;
    connect(stream.as_raw_fd(), &SockaddrIn::from(*to))?;
    Ok(stream)
}
