//! Whether other nodes are there, by single packets on port 7946: so that new flows go elsewhere
//! before the managers know (docs/decisions/0015).
//!
//! * [`book`]: what is known of each node, and what follows from it; no socket and no clock.
//! * [`ignored`]: packets that counted for nothing, and why.
//! * here: the socket.

mod book;
mod ignored;

use std::{
    collections::BTreeMap,
    future,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use datapath::Doubt;
use model::{
    NodeId,
    probe::{Message, Millis, PACKET_LEN, PORT, ProbeKeys},
};
use tokio::{
    net::UdpSocket,
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::session::Applied;
use book::{Book, Change, Send, TICK};
pub(crate) use ignored::{Ignored, IgnoredCounts};

/// Between attempts to take the port.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Which nodes are in doubt.
pub(crate) type Doubts = BTreeMap<NodeId, Doubt>;

/// What the rest of the agent has of the task.
pub(crate) struct PulseView {
    /// Changes first when the task has taken over what the agent before doubted, or cannot.
    pub(crate) doubts: watch::Receiver<Doubts>,
    pub(crate) ignored: Arc<IgnoredCounts>,
    bequest: Option<oneshot::Sender<Doubts>>,
}

impl PulseView {
    /// Tells the task, once, what the agent before doubted.
    pub(crate) fn bequeath(&mut self, doubts: Doubts) {
        if let Some(bequest) = self.bequest.take() {
            // A task that could not take the port doubts nobody.
            let _ = bequest.send(doubts);
        }
    }
}

/// The task's state, but for the socket.
pub(crate) struct Pulse {
    own: NodeId,
    addr: Ipv4Addr,
    applied: watch::Receiver<Applied>,
    keys: ProbeKeys,
    book: Book,
    doubts: watch::Sender<Doubts>,
    /// Until it is taken: nothing is told before, as all that is told counts.
    heirloom: Option<oneshot::Receiver<Doubts>>,
    ignored: Arc<IgnoredCounts>,
    cancel: CancellationToken,
}

impl Pulse {
    /// Of the node `own` with tunnel address `addr`.
    pub(crate) fn new(
        own: NodeId,
        addr: Ipv4Addr,
        applied: watch::Receiver<Applied>,
        cancel: CancellationToken,
    ) -> (Self, PulseView) {
        let (sender, doubts) = watch::channel(Doubts::new());
        let (bequest, heirloom) = oneshot::channel();
        let ignored = Arc::new(IgnoredCounts::default());
        let view = PulseView {
            doubts,
            ignored: Arc::clone(&ignored),
            bequest: Some(bequest),
        };
        let pulse = Self {
            own,
            addr,
            applied,
            keys: ProbeKeys::default(),
            book: Book::new(own),
            doubts: sender,
            heirloom: Some(heirloom),
            ignored,
            cancel,
        };
        (pulse, view)
    }

    /// Until cancelled.
    pub(crate) async fn run(mut self) {
        let cancel = self.cancel.clone();
        let Some(socket) = cancel.run_until_cancelled(self.bind()).await else {
            return;
        };
        let begun = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One more than a packet has: what is longer is none.
        let mut packet = [0; PACKET_LEN + 1];
        self.follow_view();
        loop {
            // A flood must not keep the book from its time.
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = tick.tick() => self.tick(&socket, begun.elapsed()),
                changed = self.applied.changed() => match changed {
                    Ok(()) => self.follow_view(),
                    Err(_) => break,
                },
                doubts = heirloom(&mut self.heirloom) => self.inherit(&doubts),
                received = socket.recv_from(&mut packet) => {
                    // Errors tell of packets sent before.
                    if let Ok((len, _)) = received {
                        self.hear(&socket, &packet[..len]);
                    }
                }
            }
        }
        for send in self.book.pause(Millis::now()) {
            self.send(&socket, &send);
        }
    }

    /// The port, once it is free.
    async fn bind(&mut self) -> UdpSocket {
        let at = SocketAddrV4::new(self.addr, PORT);
        let mut is_told = false;
        loop {
            match UdpSocket::bind(at).await {
                Ok(socket) => return socket,
                Err(err) if !is_told => {
                    warn!(
                        "cannot take UDP {at}: {err}; until it is free, other nodes do not notice at \
                         once when this one dies, nor this one when they do"
                    );
                    is_told = true;
                    // Nobody would ever be heard to be back.
                    self.inherit(&Doubts::new());
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    }

    fn inherit(&mut self, doubts: &Doubts) {
        self.heirloom = None;
        self.book.inherit(doubts);
        let doubts = self.book.doubts();
        if !doubts.is_empty() {
            info!(
                probe.doubted = doubts.len(),
                "nodes that the agent before doubted are doubted until they answer"
            );
        }
        self.doubts.send_replace(doubts);
    }

    fn follow_view(&mut self) {
        let view = self.applied.borrow_and_update().view.clone();
        if let Some(cluster) = &view.cluster
            && cluster.probe_keys != self.keys
        {
            self.keys = cluster.probe_keys.clone();
        }
        self.book.follow(&view.peers);
        self.show();
    }

    fn tick(&mut self, socket: &UdpSocket, elapsed: Duration) {
        let outcome = self.book.tick(elapsed, Millis::now(), rand::random);
        for send in &outcome.sends {
            self.send(socket, send);
        }
        self.tell(&outcome.changes);
    }

    fn hear(&mut self, socket: &UdpSocket, packet: &[u8]) {
        if self.keys.is_empty() {
            // This node just joined, and the others know it before it knows them.
            return;
        }
        let heard = self.keys.open(packet).map_err(Ignored::from);
        let heard = heard.and_then(|message| self.book.hear(&message, Millis::now()));
        match heard {
            Ok(outcome) => {
                for send in &outcome.sends {
                    self.send(socket, send);
                }
                self.tell(&outcome.changes);
            }
            Err(why) => self.ignored.count(why, packet.len()),
        }
    }

    /// A packet that cannot be sent is one that is lost.
    fn send(&self, socket: &UdpSocket, send: &Send) {
        let message = Message {
            from: self.own,
            to: send.to,
            body: send.body,
        };
        if let Some(packet) = self.keys.seal(&message) {
            let _ = socket.try_send_to(&packet, SocketAddrV4::new(send.addr, PORT).into());
        }
    }

    fn tell(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        self.show();
        for change in changes {
            self.log(change);
        }
    }

    fn show(&self) {
        if self.heirloom.is_some() {
            return;
        }
        let doubts = self.book.doubts();
        self.doubts.send_if_modified(|shown| {
            let is_news = *shown != doubts;
            *shown = doubts;
            is_news
        });
    }

    fn log(&self, change: &Change) {
        let name = |node: &NodeId| {
            let view = &self.applied.borrow().view;
            let peer = view.peers.get(node);
            peer.map_or_else(String::new, |peer| peer.hostname.clone())
        };
        match change {
            Change::Suspected { node, silent } => {
                warn!(node.id = %node, node.hostname = name(node), probe.silent_ms = silent.as_millis() as u64,
                    "the node does not answer; new flows go to others");
            }
            Change::Returning(node) => {
                info!(node.id = %node, node.hostname = name(node),
                    "the node answers again and gets new flows");
            }
            Change::Trusted(node) => {
                info!(node.id = %node, node.hostname = name(node),
                    "the node has answered for long enough; all its flows go to it at once");
            }
            Change::CutOff { silent, known } => {
                warn!(
                    probe.silent = silent,
                    probe.known = known,
                    "most nodes do not answer: this one is cut off, or UDP port {PORT} is closed; \
                     nobody is suspected for it"
                );
            }
            Change::Reconnected => info!("most nodes answer again"),
        }
    }
}

/// What the agent before doubted, as soon as it is known; nothing where it cannot be. Cancel-safe.
async fn heirloom(waits: &mut Option<oneshot::Receiver<Doubts>>) -> Doubts {
    match waits {
        Some(waits) => waits.await.unwrap_or_default(),
        None => future::pending().await,
    }
}
