//! What is known of each node, and what follows from it. Time is told, messages are handed in and
//! out: the same course of both has the same outcome.
//!
//! Each node watches the next [`WATCHED`] of the nodes' circle, in the order of their ids, and so is
//! watched by as many: that many questions a [`PERIOD`], however large the cluster, and one more to
//! the others in turn. Who watches a node that falls silent says so to all; that makes them look, and
//! each believes its own look alone.
//!
//! A node that the managers hold for down is asked as before, as it may be there for all but them,
//! until it does not answer. Then, and not because it never did, it is suspected: until it answers, or, if
//! it never did, until it is up again.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    time::Duration,
};

use datapath::Doubt;
use imbl::OrdMap;
use model::{
    NodeId,
    feed::PeerView,
    probe::{Body, Message, Millis},
};

use super::{Doubts, Ignored};

/// Between two looks at the clock.
pub(super) const TICK: Duration = Duration::from_millis(25);
/// The most that passes from one look to the next, however late it is: what this node's own agent
/// slept through, others have not missed.
const STEP_MAX: Duration = Duration::from_millis(50);
/// How many nodes each node watches.
const WATCHED: usize = 8;
/// Between questions to a node that is watched; and to one other after the other.
const PERIOD: Duration = Duration::from_millis(100);
/// Who did not answer for so long is looked at.
const SILENCE: Duration = Duration::from_millis(450);
/// And left so many questions unanswered, the last of which may be under way.
const UNANSWERED: u32 = 4;
/// So many questions more are put to a node that does not answer in its turn.
const OVERDUE_MAX: u32 = 16;
/// A look: questions for so long, ...
const LOOK: Duration = Duration::from_millis(300);
/// ... each so long after the one before.
const LOOK_PERIOD: Duration = Duration::from_millis(75);
/// Between questions to a node that is suspected.
const RECALL_PERIOD: Duration = Duration::from_millis(500);
/// Between two looks at a node at others' word.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Looks at one time. Those beyond wait for the next word.
const LOOKS_MAX: usize = 64;
/// A node that answers again is trusted after so long: until then the flows that went elsewhere are
/// known to all nodes (the agents look for them every five seconds).
const RETURN: Duration = Duration::from_secs(15);
/// An agent that ends on purpose is expected back within so long.
const PAUSE: Duration = Duration::from_secs(5);
/// How much clocks may differ, and a message take.
const SKEW_MAX: Duration = Duration::from_secs(10);
/// As the time of the next question: when the turn comes.
const TURN: Duration = Duration::MAX;
/// Messages that pass on news, a tick.
const NEWS_PER_TICK: usize = 64;
/// Of news that waits to be passed on; what is beyond is not told.
const NEWS_MAX: usize = 65_536;
/// Questions whose answer still counts.
const TOKENS: usize = 8;

/// A message to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Send {
    pub to: NodeId,
    /// Its tunnel address.
    pub addr: Ipv4Addr,
    pub body: Body,
}

/// For the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Suspected {
        node: NodeId,
        silent: Duration,
    },
    Returning(NodeId),
    Trusted(NodeId),
    /// Of the nodes that are watched and have answered once, so many do not any more.
    CutOff {
        silent: usize,
        known: usize,
    },
    Reconnected,
}

/// What follows from a moment or a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub sends: Vec<Send>,
    pub changes: Vec<Change>,
}

pub(super) struct Book {
    own: NodeId,
    peers: BTreeMap<NodeId, Peer>,
    /// Time that this node was awake.
    now: Duration,
    /// Time at the last tick.
    elapsed: Duration,
    /// Which node that is not watched was asked last, and when the next one is.
    turn: (NodeId, Duration),
    is_cut_off: bool,
    /// To whom, and of whom.
    news: VecDeque<(NodeId, NodeId)>,
}

#[derive(Debug)]
struct Peer {
    addr: Ipv4Addr,
    /// As the managers say.
    is_up: bool,
    /// Since when; of a node that never answered, the time from which on it is missed when it is down.
    since: Duration,
    is_watched: bool,
    state: State,
    /// When it last answered.
    heard: Option<Duration>,
    asked: [u64; TOKENS],
    /// Questions in all.
    questions: usize,
    /// Questions since it last answered.
    unanswered: u32,
    next_question: Duration,
    look: Option<Look>,
    /// No look at others' word before that.
    next_look: Duration,
    paused_until: Duration,
    /// When it said that it would pause.
    paused_at: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Trusted,
    Suspected,
    Returning { until: Duration },
}

#[derive(Debug, Clone, Copy)]
struct Look {
    since: Duration,
}

impl Peer {
    fn new(addr: Ipv4Addr, now: Duration) -> Self {
        Self {
            addr,
            is_up: true,
            since: now,
            is_watched: false,
            state: State::Trusted,
            heard: None,
            asked: [0; TOKENS],
            questions: 0,
            unanswered: 0,
            next_question: now,
            look: None,
            next_look: now,
            paused_until: now,
            paused_at: Millis(0),
        }
    }

    /// As the managers say now. Of one that never answered theirs is the only word: its port may be
    /// closed.
    fn follow(&mut self, is_up: bool, now: Duration) {
        if self.is_up != is_up {
            self.is_up = is_up;
            self.since = now;
            self.next_question = now;
            if is_up && self.heard.is_none() {
                self.state = State::Trusted;
            }
        }
    }

    fn inherit(&mut self, doubt: Doubt, now: Duration) {
        if doubt == Doubt::Returning {
            // It answered the agent before, so that it can be missed.
            self.heard.get_or_insert(now);
        }
        self.state = match self.heard {
            Some(_) => State::Returning {
                until: now + RETURN,
            },
            None => State::Suspected,
        };
        self.next_question = now;
    }

    /// By the word of the managers or its own.
    fn may_be_there(&self) -> bool {
        self.is_up || self.state != State::Suspected
    }

    /// Whether it can be missed: for one that is up, port 7946 may be closed.
    fn is_known(&self) -> bool {
        self.heard.is_some() || !self.is_up
    }

    /// Whether it is to answer now.
    fn is_expected(&self, now: Duration) -> bool {
        self.is_known() && now >= self.paused_until
    }

    fn silence(&self, now: Duration) -> Duration {
        now - self.heard.unwrap_or(self.since)
    }

    /// Not one question is it that was lost.
    fn is_silent(&self, now: Duration) -> bool {
        self.is_expected(now) && self.unanswered >= UNANSWERED && self.silence(now) > SILENCE
    }

    /// How often it is asked; `None`: in its turn.
    fn period(&self) -> Option<Duration> {
        // Asked in its turn, it has not answered.
        let is_overdue = self.is_known() && (1..OVERDUE_MAX).contains(&self.unanswered);
        match self.state {
            _ if !self.may_be_there() => None,
            _ if self.look.is_some() => Some(LOOK_PERIOD),
            State::Suspected => Some(RECALL_PERIOD),
            State::Trusted | State::Returning { .. } => {
                (self.is_watched || is_overdue).then_some(PERIOD)
            }
        }
    }

    fn ask(&mut self, token: u64) -> Body {
        self.asked[self.questions % TOKENS] = token;
        self.questions += 1;
        self.unanswered += 1;
        Body::Ask { token }
    }

    fn has_asked(&self, token: u64) -> bool {
        self.asked[..self.questions.min(TOKENS)].contains(&token)
    }

    /// Asks at once from now on.
    fn begin_look(&mut self, now: Duration) {
        self.look = Some(Look { since: now });
        self.next_question = now;
        self.next_look = now + LOOK + LOOK_PAUSE;
    }
}

impl Book {
    pub fn new(own: NodeId) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            now: Duration::ZERO,
            elapsed: Duration::ZERO,
            turn: (own, Duration::ZERO),
            is_cut_off: false,
            news: VecDeque::new(),
        }
    }

    /// Takes over who the other nodes are.
    pub fn follow(&mut self, view: &OrdMap<NodeId, PeerView>) {
        self.peers.retain(|node, _| view.contains_key(node));
        for peer in view.values().filter(|peer| peer.node != self.own) {
            let known = self.peers.entry(peer.node);
            let known = known.or_insert_with(|| Peer::new(peer.vtep, self.now));
            if known.addr != peer.vtep {
                *known = Peer::new(peer.vtep, self.now);
            }
            known.follow(peer.up, self.now);
        }
        self.choose_watched();
    }

    fn choose_watched(&mut self) {
        for peer in self.peers.values_mut() {
            peer.is_watched = false;
        }
        let watched: Vec<NodeId> = self.circle(self.own).take(WATCHED).collect();
        for node in watched {
            self.peer_mut(node).is_watched = true;
        }
    }

    /// Nodes that may be there, from the one behind `node` on.
    fn circle(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        let behind = self.peers.range((Excluded(node), Unbounded));
        let before = self.peers.range(..=node);
        let all = behind.chain(before);
        all.filter(|(_, peer)| peer.may_be_there())
            .map(|(node, _)| *node)
    }

    fn peer_mut(&mut self, node: NodeId) -> &mut Peer {
        self.peers.get_mut(&node).expect("it was just seen")
    }

    pub fn doubts(&self) -> Doubts {
        let doubt = |peer: &Peer| match peer.state {
            State::Trusted => None,
            State::Suspected => Some(Doubt::Suspected),
            State::Returning { .. } => Some(Doubt::Returning),
        };
        let peers = self.peers.iter();
        peers
            .filter_map(|(node, peer)| Some((*node, doubt(peer)?)))
            .collect()
    }

    /// Takes over whom the agent before doubted, and this one not by itself. Who has answered this one
    /// already is back.
    pub fn inherit(&mut self, doubts: &Doubts) {
        let now = self.now;
        for (node, doubt) in doubts {
            let peer = self.peers.get_mut(node);
            if let Some(peer) = peer.filter(|peer| peer.state == State::Trusted) {
                peer.inherit(*doubt, now);
            }
        }
        self.choose_watched();
    }

    /// Time goes on. `elapsed` is since the beginning; tokens are to be such as nobody can guess.
    pub fn tick(
        &mut self,
        elapsed: Duration,
        wall: Millis,
        mut token: impl FnMut() -> u64,
    ) -> Outcome {
        self.now += elapsed.saturating_sub(self.elapsed).min(STEP_MAX);
        self.elapsed = elapsed;
        let mut outcome = Outcome::default();
        self.judge_self(&mut outcome);
        self.judge(&mut token, &mut outcome);
        self.take_turn();
        self.ask(&mut token, &mut outcome);
        self.pass_on(wall, &mut outcome);
        outcome
    }

    /// Whether this node is the one that is cut off: then nobody is suspected. Those that are down say
    /// nothing of that, as the managers miss them, too.
    fn judge_self(&mut self, outcome: &mut Outcome) {
        let peers = self.peers.values();
        let watched = peers.filter(|peer| peer.is_watched && peer.is_up);
        let known = watched.filter(|peer| peer.is_expected(self.now));
        let (mut count, mut silent) = (0, 0);
        for peer in known {
            count += 1;
            silent += usize::from(peer.is_silent(self.now));
        }
        let is_cut_off = 2 * silent > count;
        if is_cut_off != self.is_cut_off {
            self.is_cut_off = is_cut_off;
            outcome.changes.push(match is_cut_off {
                true => Change::CutOff {
                    silent,
                    known: count,
                },
                false => Change::Reconnected,
            });
        }
    }

    /// Looks at who is silent, and ends looks that are over.
    fn judge(&mut self, token: &mut impl FnMut() -> u64, outcome: &mut Outcome) {
        let now = self.now;
        let mut silent = Vec::new();
        for (node, peer) in &mut self.peers {
            if let State::Returning { until } = peer.state
                && now >= until
            {
                peer.state = State::Trusted;
                outcome.changes.push(Change::Trusted(*node));
            }
            match peer.look {
                Some(look) if now >= look.since + LOOK => {
                    peer.look = None;
                    let has_answered = peer.heard.is_some_and(|heard| heard >= look.since);
                    if has_answered || self.is_cut_off || !peer.is_expected(now) {
                        continue;
                    }
                    peer.state = State::Suspected;
                    outcome.changes.push(Change::Suspected {
                        node: *node,
                        silent: peer.silence(now),
                    });
                    silent.push(*node);
                }
                None if peer.state != State::Suspected
                    && !self.is_cut_off
                    && peer.is_silent(now) =>
                {
                    peer.begin_look(now);
                    silent.push(*node);
                }
                _ => {}
            }
        }
        for node in &silent {
            if self.peers[node].is_watched {
                self.spread(*node, token());
            }
        }
        if !silent.is_empty() {
            // Others take the place of those that are down.
            self.choose_watched();
        }
    }

    /// Has all other nodes look at one, those first that are at a random place of the circle.
    fn spread(&mut self, about: NodeId, random: u64) {
        let all: Vec<NodeId> = self.circle(about).filter(|node| *node != about).collect();
        let first = random as usize % all.len().max(1);
        let (before, behind) = all.split_at(first);
        let room = NEWS_MAX.saturating_sub(self.news.len());
        let order = behind.iter().chain(before).take(room);
        self.news.extend(order.map(|to| (*to, about)));
    }

    /// One node after the other is asked that nobody has a reason to ask: whoever has not been heard
    /// of cannot be missed.
    fn take_turn(&mut self) {
        let (last, due) = self.turn;
        if self.now < due {
            return;
        }
        let now = self.now;
        let is_idle = |node: &NodeId| self.peers[node].period().is_none();
        let next = self.circle(last).find(is_idle);
        if let Some(node) = next {
            self.peer_mut(node).next_question = now;
        }
        self.turn = (next.unwrap_or(last), now + PERIOD);
    }

    fn ask(&mut self, token: &mut impl FnMut() -> u64, outcome: &mut Outcome) {
        let now = self.now;
        for (node, peer) in &mut self.peers {
            if now < peer.next_question {
                continue;
            }
            let body = peer.ask(token());
            peer.next_question = peer.period().map_or(TURN, |period| now + period);
            outcome.sends.push(Send {
                to: *node,
                addr: peer.addr,
                body,
            });
        }
    }

    fn pass_on(&mut self, wall: Millis, outcome: &mut Outcome) {
        let some = NEWS_PER_TICK.min(self.news.len());
        for (to, about) in self.news.drain(..some) {
            if let Some(peer) = self.peers.get(&to) {
                outcome.sends.push(Send {
                    to,
                    addr: peer.addr,
                    body: Body::Silent { about, at: wall },
                });
            }
        }
    }

    /// Takes a message that was opened.
    pub fn hear(&mut self, message: &Message, wall: Millis) -> Result<Outcome, Ignored> {
        if message.to != self.own {
            return Err(Ignored::Misdirected);
        }
        let from = message.from;
        let now = self.now;
        let sender = self.peers.get_mut(&from).ok_or(Ignored::Stranger)?;
        let mut outcome = Outcome::default();
        match message.body {
            Body::Ask { token } => outcome.sends.push(Send {
                to: from,
                addr: sender.addr,
                body: Body::Answer { token },
            }),
            Body::Answer { token } => {
                if !sender.has_asked(token) {
                    return Err(Ignored::Unasked);
                }
                sender.heard = Some(now);
                sender.unanswered = 0;
                sender.look = None;
                sender.paused_until = now;
                if sender.period().is_none() {
                    sender.next_question = TURN;
                }
                if sender.state == State::Suspected {
                    let until = now + RETURN;
                    sender.state = State::Returning { until };
                    outcome.changes.push(Change::Returning(from));
                }
            }
            Body::Silent { about, at } => {
                is_fresh(at, wall)?;
                self.look_at(about);
            }
            Body::Pausing { at } => {
                is_fresh(at, wall)?;
                if at <= sender.paused_at {
                    return Err(Ignored::Stale);
                }
                sender.paused_at = at;
                sender.paused_until = now + PAUSE;
            }
        }
        Ok(outcome)
    }

    /// At another node's word.
    fn look_at(&mut self, about: NodeId) {
        let looks = self.peers.values().filter(|peer| peer.look.is_some());
        if looks.count() >= LOOKS_MAX {
            return;
        }
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&about) else {
            return;
        };
        let may = peer.look.is_none() && peer.state != State::Suspected && now >= peer.next_look;
        if may && peer.is_expected(now) {
            peer.begin_look(now);
        }
    }

    /// This node's agent ends, and another one follows.
    pub fn pause(&self, wall: Millis) -> Vec<Send> {
        let others = self.peers.iter().filter(|(_, peer)| peer.may_be_there());
        let pausing = |(node, peer): (&NodeId, &Peer)| Send {
            to: *node,
            addr: peer.addr,
            body: Body::Pausing { at: wall },
        };
        others.map(pausing).collect()
    }
}

fn is_fresh(at: Millis, wall: Millis) -> Result<(), Ignored> {
    match at.distance(wall) <= SKEW_MAX {
        true => Ok(()),
        false => Err(Ignored::Stale),
    }
}

#[cfg(test)]
mod tests;
