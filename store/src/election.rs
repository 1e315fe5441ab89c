//! How a leader is made and kept. openraft's own timers are not used: it draws the patience for an
//! election once, when it starts, so that two managers that drew much the same would stand against each
//! other again and again; it stands without asking whether it can win, which ends the time of a leader
//! that others follow; and its leader is heard of once in one and a half of its intervals.
//!
//! Here a leader is heard of four times in a [`LEASE`]. A manager that has heard of none for longer asks
//! the others first whether they would vote for it (Ongaro's dissertation, section 9.6). Only when a
//! quorum would does it stand. So a manager that lacks an entry, or was cut off, costs the others nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use openraft::ServerState;
use rand::{Rng, RngExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::raft::{LogId, Member, Network, Raft, RaftId, Vote, log::LogStore};

/// Of the leader.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// Since it last heard of a leader, a manager votes for no other, and does not stand.
pub(crate) const LEASE: Duration = Duration::from_millis(1000);
/// The same since it last voted: for who stood to become a leader. Votes that are split cost no more.
const CANDIDACY: Duration = Duration::from_millis(500);
/// On top of that, or after it was told that it would not win. Long enough apart for one manager to ask
/// and stand before the next one asks.
const PATIENCE_MILLIS: std::ops::Range<u64> = 50..550;
/// For the answer whether one would vote. Short: of three that lost their leader, two are to ask each
/// other again, not to wait for the third.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// For a vote to be on the disk of who gives it, and to come.
pub(crate) const VOTE_TIMEOUT: Duration = Duration::from_millis(900);
/// Bounds the wait for something that may change meanwhile.
const LOOK_MAX: Duration = Duration::from_millis(500);
const LOOK_MIN: Duration = Duration::from_millis(10);

/// Has the followers hear of their leader, if this is it, until Raft ends.
pub(crate) async fn beat(raft: Raft) {
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// A patience by `random`.
pub(crate) fn patience(random: &mut impl Rng) -> Duration {
    Duration::from_millis(random.random_range(PATIENCE_MILLIS))
}

/// This manager in elections. A clone is the same.
#[derive(Clone)]
pub(crate) struct Voter {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
}

impl Voter {
    /// Stands, under the name `id`, whenever there has been no leader for too long and it would win,
    /// until Raft ends. `draw` gives each attempt's patience.
    pub(crate) async fn stand(
        self,
        id: RaftId,
        network: Network,
        mut draw: impl FnMut() -> Duration,
    ) {
        let mut since = Instant::now() + LEASE;
        let mut patience = draw();
        while let Some(seen) = self.look().await {
            let due = seen.free_at().map_or(since, |at| at.max(since)) + patience;
            let left = due.saturating_duration_since(Instant::now());
            if seen.leads || !seen.is_voter(id) {
                sleep(LOOK_MAX).await;
            } else if !left.is_zero() {
                sleep(left.clamp(LOOK_MIN, LOOK_MAX)).await;
            } else {
                if self.would_win(id, &seen, &network).await && self.still_sees(&seen).await {
                    // Fails when Raft has ended, as is seen above.
                    let _ = self.raft.trigger().elect().await;
                }
                since = Instant::now();
                patience = draw();
            }
        }
    }

    /// Whether this manager would vote for another one whose log ends with `last`: it has heard of no
    /// leader for a [`LEASE`], voted for none for a [`CANDIDACY`], and has no entry that the other lacks.
    pub(crate) async fn would_vote(&self, last: Option<LogId>) -> bool {
        let Some(seen) = self.look().await else {
            return false;
        };
        let waits = seen.free_at().is_some_and(|at| Instant::now() <= at);
        let own = self.log.last().await;
        !seen.leads && !waits && own.is_ok_and(|own| last >= own)
    }

    /// Whether a quorum would vote for this manager.
    async fn would_win(&self, id: RaftId, seen: &Seen, network: &Network) -> bool {
        let Ok(last) = self.log.last().await else {
            return false;
        };
        let others = seen.members.iter();
        let others = others.filter(|(other, _)| **other != id && seen.is_voter(**other));
        let mut asked: FuturesUnordered<_> = others
            .map(|(other, member)| network.would_vote(*other, member, last))
            .collect();
        let mut for_it = BTreeSet::from([id]);
        while !seen.is_quorum(&for_it) {
            match asked.next().await {
                Some(other) => for_it.extend(other),
                None => return false,
            }
        }
        true
    }

    /// Whether this manager has heard of no leader, and voted for none, since.
    async fn still_sees(&self, seen: &Seen) -> bool {
        let now = self.look().await;
        now.is_some_and(|now| (now.vote, now.vote_at) == (seen.vote, seen.vote_at))
    }

    /// `None` when Raft has ended.
    async fn look(&self) -> Option<Seen> {
        let seen = self.raft.with_raft_state(|state| {
            let members = state.membership_state.effective().membership();
            Seen {
                leads: state.server_state == ServerState::Leader,
                vote: *state.vote_ref(),
                vote_at: state.vote_last_modified(),
                voters: members.get_joint_config().clone(),
                members: members.nodes().map(|(id, m)| (*id, m.clone())).collect(),
            }
        });
        seen.await.ok()
    }
}

/// What counts, of Raft's state.
struct Seen {
    leads: bool,
    vote: Vote,
    /// When it was given, or last renewed by a leader; not before this manager started.
    vote_at: Option<Instant>,
    /// Majorities of each of these are a quorum.
    voters: Vec<BTreeSet<RaftId>>,
    members: BTreeMap<RaftId, Member>,
}

impl Seen {
    /// From when on this manager votes for another, or stands; `None`: since it started.
    fn free_at(&self) -> Option<Instant> {
        let bound = if self.vote.is_committed() {
            LEASE
        } else {
            CANDIDACY
        };
        self.vote_at.map(|at| at + bound)
    }

    fn is_voter(&self, id: RaftId) -> bool {
        self.voters.iter().any(|voters| voters.contains(&id))
    }

    fn is_quorum(&self, ids: &BTreeSet<RaftId>) -> bool {
        let mut configs = self.voters.iter();
        configs.all(|voters| voters.intersection(ids).count() > voters.len() / 2)
    }
}
