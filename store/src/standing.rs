//! Where this manager stands among the others: it leads, follows, or knows of no leader.
//!
//! Raft alone does not tell. Its leader stays one in its own eyes however long it hears from
//! nobody, and a new one has yet to apply what was committed before it. Here a manager leads from
//! the moment that its state has everything that was ever acknowledged, until it has gone
//! [`QUORUM_LOST_AFTER`] without an answer from a quorum. Nothing is acknowledged wrongly outside of
//! that; what acts for the cluster must not act on a state that others may have left behind.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::{RaftMetrics, ServerState};
use tokio::{sync::watch, time::Instant};

use crate::raft::{Member, Raft, RaftId};

/// Followers begin to stand for election at about this time: they may have another leader.
pub(crate) const QUORUM_LOST_AFTER: Duration = Duration::from_millis(1500);
/// Between two looks at the time since a quorum answered.
const LOOK: Duration = Duration::from_millis(200);
/// For a new leader to apply what is in its log. Tried again after that.
const BARRIER: Duration = Duration::from_secs(5);
/// A manager that has not answered for this long is unreachable.
const CONTACT_LOST_AFTER: Duration = Duration::from_secs(3);

/// What this manager is to the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Standing {
    /// No leader is known, or a quorum of the managers is out of reach.
    #[default]
    Vacant,
    /// Another one leads.
    Follows { leader: RaftId, member: Member },
    /// This one leads, and its state has all that was acknowledged before. The number differs from
    /// that of every other time that it came to lead.
    Leads { reign: u64 },
}

impl Standing {
    pub fn leads(&self) -> bool {
        matches!(self, Self::Leads { .. })
    }
}

/// The managers by their names, with who votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: BTreeMap<RaftId, Member>,
    /// Have yet to catch up.
    pub learners: BTreeMap<RaftId, Member>,
}

impl Members {
    pub(crate) fn of(metrics: &RaftMetrics<RaftId, Member>) -> Self {
        let membership = metrics.membership_config.membership();
        let (voters, learners) = membership
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .partition(|(id, _)| membership.voter_ids().any(|voter| voter == *id));
        Self { voters, learners }
    }
}

/// When each other manager last answered a call.
#[derive(Debug, Default)]
pub(crate) struct Contacts(Mutex<HashMap<RaftId, Instant>>);

impl Contacts {
    pub(crate) fn answered(&self, id: RaftId) {
        self.lock().insert(id, Instant::now());
    }

    pub(crate) fn is_recent(&self, id: RaftId) -> bool {
        let last = self.lock().get(&id).copied();
        last.is_some_and(|last| last.elapsed() < CONTACT_LOST_AFTER)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RaftId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps `standing` up to date until Raft ends.
pub(crate) async fn follow(raft: Raft, standing: Arc<watch::Sender<Standing>>) {
    let mut metrics = raft.metrics();
    let mut observer = Observer::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_new = true;
    loop {
        is_new |= metrics.has_changed().unwrap_or(false);
        let seen = observer.observe(&metrics.borrow_and_update(), is_new);
        match seen {
            Seen::Vacant => observer.show(&standing, Standing::Vacant),
            Seen::Follows(leader, member) => {
                observer.show(&standing, Standing::Follows { leader, member });
            }
            Seen::Leads { term, last } if !observer.reigns_in(term) => {
                observer.show(&standing, Standing::Vacant);
                if caught_up(&raft, last).await {
                    let reign = observer.begin_reign(term);
                    observer.show(&standing, Standing::Leads { reign });
                }
            }
            Seen::Leads { .. } => {}
        }
        is_new = tokio::select! {
            changed = metrics.changed() => match changed {
                Ok(()) => true,
                Err(_) => {
                    standing.send_replace(Standing::Vacant);
                    return;
                }
            },
            _ = look.tick() => false,
        };
    }
}

/// Whether this leader has applied its log up to the entry `last`, and was still followed by a
/// quorum after it began to wait.
async fn caught_up(raft: &Raft, last: Option<u64>) -> bool {
    let applied = async {
        raft.ensure_linearizable().await.is_ok()
            && raft
                .wait(None)
                .applied_index_at_least(last, "caught up")
                .await
                .is_ok()
    };
    tokio::time::timeout(BARRIER, applied)
        .await
        .unwrap_or(false)
}

/// What Raft's metrics say at a moment.
enum Seen {
    Vacant,
    Follows(RaftId, Member),
    /// With the index of the last log entry.
    Leads {
        term: u64,
        last: Option<u64>,
    },
}

/// Remembers what metrics leave out.
#[derive(Default)]
struct Observer {
    /// Their count.
    reigns: u64,
    /// The term of the one that goes on.
    reign: Option<u64>,
    /// When a quorum had last answered, as of the last metrics.
    quorum_at: Option<Instant>,
}

impl Observer {
    fn observe(&mut self, metrics: &RaftMetrics<RaftId, Member>, is_new: bool) -> Seen {
        self.note_quorum(metrics, is_new);
        let answered = |at: Instant| at.elapsed() < QUORUM_LOST_AFTER;
        let has_quorum = self.quorum_at.is_some_and(answered);
        match metrics.state {
            ServerState::Leader if has_quorum => Seen::Leads {
                term: metrics.current_term,
                last: metrics.last_log_index,
            },
            ServerState::Leader => Seen::Vacant,
            _ => match leader(metrics) {
                Some((id, member)) if id != metrics.id => Seen::Follows(id, member),
                _ => Seen::Vacant,
            },
        }
    }

    fn note_quorum(&mut self, metrics: &RaftMetrics<RaftId, Member>, is_new: bool) {
        let now = Instant::now();
        let mut voters = metrics.membership_config.voter_ids();
        if metrics.state != ServerState::Leader {
            self.quorum_at = None;
        } else if voters.all(|id| id == metrics.id) {
            // Also while its disk keeps it waiting.
            self.quorum_at = Some(now);
        } else if is_new && let Some(age) = metrics.millis_since_quorum_ack {
            // There is none for a moment when a new voter has yet to answer: the old time holds.
            self.quorum_at = now.checked_sub(Duration::from_millis(age));
        }
    }

    fn reigns_in(&self, term: u64) -> bool {
        self.reign == Some(term)
    }

    fn begin_reign(&mut self, term: u64) -> u64 {
        self.reigns += 1;
        self.reign = Some(term);
        self.reigns
    }

    fn show(&mut self, standing: &watch::Sender<Standing>, next: Standing) {
        if !next.leads() {
            self.reign = None;
        }
        standing.send_if_modified(|current| {
            let is_news = *current != next;
            *current = next;
            is_news
        });
    }
}

fn leader(metrics: &RaftMetrics<RaftId, Member>) -> Option<(RaftId, Member)> {
    let id = metrics.current_leader?;
    let member = metrics.membership_config.membership().get_node(&id)?;
    Some((id, member.clone()))
}
