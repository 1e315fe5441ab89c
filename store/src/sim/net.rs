//! The network between simulated managers: calls are lost, late, repeated, in one direction or both.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use model::codec;
use rand::{RngExt, rngs::StdRng};
use tokio::time::sleep;

use crate::{
    Store,
    disk::failing::Failing,
    raft::{Member, RaftCall, RaftReply, RaftTransport, TransportError},
};

/// What happens to messages from one host to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Chance that one is lost.
    pub(super) loss: f64,
    /// Chance that one comes twice.
    pub(super) repeats: f64,
    pub(super) delay_max: Duration,
}

impl Link {
    const GOOD: Self = Self {
        loss: 0.0,
        repeats: 0.0,
        delay_max: Duration::from_millis(2),
    };
    pub(super) const INSTANT: Self = Self {
        delay_max: Duration::ZERO,
        ..Self::GOOD
    };
    pub(super) const CUT: Self = Self {
        loss: 1.0,
        ..Self::GOOD
    };
    pub(super) const BAD: Self = Self {
        loss: 0.4,
        repeats: 0.3,
        delay_max: Duration::from_millis(150),
    };
}

/// A clone is the same network.
#[derive(Clone)]
pub(super) struct Net(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    hosts: BTreeMap<u8, Plugged>,
    /// All others are good.
    links: BTreeMap<(u8, u8), Link>,
    /// Whose power fails with the next vote that it gives.
    fickle: Option<u8>,
}

/// What runs on a host, for as long as its disk has power.
#[derive(Clone)]
struct Plugged {
    store: Store,
    disk: Failing,
}

/// A call on its way between hosts.
#[derive(Clone)]
struct Message {
    from: u8,
    to: u8,
    call: Vec<u8>,
}

/// What becomes of one message: the delay of each of its copies.
type Fate = Vec<Duration>;

impl Net {
    pub(super) fn new(random: StdRng) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random,
            hosts: BTreeMap::new(),
            links: BTreeMap::new(),
            fickle: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn plug(&self, host: u8, store: Store, disk: Failing) {
        self.lock().hosts.insert(host, Plugged { store, disk });
    }

    /// From `from` to `to` alone.
    pub(super) fn set(&self, from: u8, to: u8, link: Link) {
        self.lock().links.insert((from, to), link);
    }

    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.links.clear();
        inner.fickle = None;
    }

    /// The next vote that the host gives is heard, and nothing that it has not synced by then is
    /// kept: its power fails. It hears nothing more of whom it voted for.
    pub(super) fn fail_with_next_vote(&self, host: u8) {
        self.lock().fickle = Some(host);
    }

    /// Whether it has, or no host is to.
    pub(super) fn has_voted(&self) -> bool {
        self.lock().fickle.is_none()
    }

    fn voted(&self, voter: u8, candidate: u8, disk: &Failing) {
        let mut inner = self.lock();
        if inner.fickle == Some(voter) {
            inner.fickle = None;
            inner.links.insert((candidate, voter), Link::CUT);
            disk.fail_after(0);
        }
    }

    fn fate(&self, from: u8, to: u8) -> Fate {
        let mut inner = self.lock();
        let link = inner.links.get(&(from, to)).copied();
        let link = link.unwrap_or(Link::GOOD);
        if inner.random.random_bool(link.loss) {
            return Fate::new();
        }
        let copies = 1 + usize::from(inner.random.random_bool(link.repeats));
        let micros = u64::try_from(link.delay_max.as_micros()).unwrap();
        let delay = |_| Duration::from_micros(inner.random.random_range(0..=micros));
        (0..copies).map(delay).collect()
    }

    /// The answer of who is there by the time the message comes, if it has power for that long.
    async fn deliver(&self, message: Message, after: Duration) -> Option<Vec<u8>> {
        sleep(after).await;
        let Message { from, to, call } = message;
        let plugged = self.lock().hosts.get(&to).cloned()?;
        if plugged.disk.has_failed() {
            return None;
        }
        let reply = plugged.store.answer(codec::decode(&call).unwrap()).await?;
        if plugged.disk.has_failed() {
            return None;
        }
        if matches!(&reply, RaftReply::Vote(Ok(answer)) if answer.vote_granted) {
            self.voted(to, from, &plugged.disk);
        }
        Some(codec::encode(&reply))
    }
}

pub(super) fn addr(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 2377).into()
}

/// The way to the others of what runs on a host, for as long as its disk has power.
pub(super) struct Port {
    pub(super) net: Net,
    pub(super) host: u8,
    pub(super) disk: Failing,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port of host {}", self.host)
    }
}

#[async_trait]
impl RaftTransport for Port {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        let SocketAddr::V4(addr) = member.addr else {
            unreachable!("hosts have IPv4 addresses");
        };
        let to = addr.ip().octets()[3];
        let message = Message {
            from: self.host,
            to,
            call: codec::encode(&call),
        };
        let mut copies = self.net.fate(self.host, to).into_iter();
        let first = match copies.next() {
            Some(first) if !self.disk.has_failed() => first,
            _ => return std::future::pending().await,
        };
        for after in copies {
            let (net, message) = (self.net.clone(), message.clone());
            // Nobody waits for the answer to a repetition.
            tokio::spawn(async move { net.deliver(message, after).await });
        }
        let Some(reply) = self.net.deliver(message, first).await else {
            return Err(TransportError {
                to: call.to,
                member: member.clone(),
                reason: "nobody is there".to_owned(),
            });
        };
        let Some(after) = self.net.fate(to, self.host).first().copied() else {
            return std::future::pending().await;
        };
        sleep(after).await;
        Ok(codec::decode(&reply).unwrap())
    }
}
