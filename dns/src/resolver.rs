//! The sockets of one task's resolver.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use model::{NetworkId, TaskId, feed::NodeView};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::Instrument;

use crate::{
    forward::{Upstreams, read_message, write_message},
    names::Names,
    query::{Transport, Verdict, handle},
};

/// Queries of one task waiting for upstreams; more are refused, as with Docker.
const FORWARDS_MAX: usize = 1024;

/// Connections of one task; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;

/// A connection without a query for this long is closed.
const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(10);

/// After a failing `accept` or `recv`, which may fail at once again (no descriptors left).
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// The largest query. Ours have a name and perhaps an OPT record.
const QUERY_BYTES_MAX: usize = 4096;

/// Answers one task's queries until it is dropped.
#[derive(Debug)]
pub struct TaskResolver(JoinHandle<()>);

struct Shared {
    networks: Vec<NetworkId>,
    view: watch::Receiver<Arc<NodeView>>,
    upstreams: Upstreams,
    forwards: Arc<Semaphore>,
}

impl TaskResolver {
    /// Serves on sockets that are bound in the task's network namespace. `networks` are the task's,
    /// in the order in which they are asked for a name. Names that are not the cluster's go to
    /// `upstreams`, from the namespace of the calling thread's runtime; without any they fail.
    ///
    /// # Errors
    /// When the sockets cannot be registered. Needs a tokio runtime.
    pub fn spawn(
        (udp, tcp): (std::net::UdpSocket, std::net::TcpListener),
        task: TaskId,
        networks: Vec<NetworkId>,
        view: watch::Receiver<Arc<NodeView>>,
        upstreams: Vec<SocketAddr>,
    ) -> io::Result<Self> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let udp = UdpSocket::from_std(udp)?;
        let tcp = TcpListener::from_std(tcp)?;
        let shared = Arc::new(Shared {
            networks,
            view,
            upstreams: Upstreams::new(upstreams),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
        });
        let serve = async move {
            tokio::join!(
                serve_udp(Arc::new(udp), shared.clone()),
                serve_tcp(tcp, shared)
            );
        };
        let span = tracing::info_span!("dns", task.id = %task);
        Ok(Self(tokio::spawn(serve.instrument(span))))
    }
}

impl Drop for TaskResolver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// Looks at the newest view.
    fn decide(&self, packet: &[u8], transport: Transport) -> Verdict {
        let view = self.view.borrow().clone();
        handle(packet, transport, &Names::new(&view, &self.networks))
    }

    /// The whole answer to a packet, if it gets one.
    async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self.decide(packet, transport) {
            Verdict::Reply(reply) => Some(reply),
            Verdict::Ignore => None,
            Verdict::Forward(forward) => match self.forwards.try_acquire() {
                Ok(_place) => Some(self.upstreams.ask(packet, &forward).await),
                Err(_) => Some(forward.failure()),
            },
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut packet = vec![0; QUERY_BYTES_MAX];
    let mut forwarding = JoinSet::new();
    loop {
        while forwarding.try_join_next().is_some() {}
        let (len, client) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(err) => {
                tracing::warn!(error = %err, "cannot receive a query");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let packet = &packet[..len];
        let reply = match shared.decide(packet, Transport::Udp) {
            Verdict::Reply(reply) => reply,
            Verdict::Ignore => continue,
            Verdict::Forward(forward) => match shared.forwards.clone().try_acquire_owned() {
                Ok(place) => {
                    let (socket, shared, packet) =
                        (socket.clone(), shared.clone(), packet.to_vec());
                    forwarding.spawn(async move {
                        let _place = place;
                        let reply = shared.upstreams.ask(&packet, &forward).await;
                        let _ = socket.send_to(&reply, client).await;
                    });
                    continue;
                }
                Err(_) => forward.failure(),
            },
        };
        // A reply that cannot be sent is lost like any datagram; the client asks again.
        let _ = socket.send_to(&reply, client).await;
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve_connection(stream, shared.clone()))),
            Err(err) => {
                tracing::warn!(error = %err, "cannot accept a connection");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Answers the queries of one connection, one after the other.
async fn serve_connection(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(Ok(packet)) = timeout(CONNECTION_IDLE_MAX, read_message(&mut stream)).await {
        let Some(reply) = shared.answer(&packet, Transport::Tcp).await else {
            return;
        };
        let written = timeout(CONNECTION_IDLE_MAX, write_message(&mut stream, &reply)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}
