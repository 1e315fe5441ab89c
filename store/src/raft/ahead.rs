//! A leader's entries, on their way to the others while it writes them down itself.
//!
//! openraft sends an entry when the leader's own disk has it, so that a write takes the time of two disks.
//! Raft asks for less (Ongaro's dissertation, section 10.2.1): the leader may not count itself before. So
//! the call is made when openraft has the entry appended, and when openraft comes to make it, it gets the
//! answer of that one. What is counted, and when, is as before.
//!
//! An entry may then be at others and lost by the leader. It must not make another in its place: see
//! [`super::log`]. Everything else that such a call can meet, any call of a leader can: it may be late,
//! repeated, and overtaken.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    LogId, Member, RaftId, RaftReply, RaftRequest, TypeConfig, Vote,
    transport::{Failure, Network, Peer},
};
use crate::{election::HEARTBEAT, store::APPEND_TIMEOUT};

/// Who has not taken what openraft itself sent for this long is not called ahead: it may be gone, no member
/// any more, or lack what the entries follow. Two heartbeats.
const HEARD_WITHIN: Duration = HEARTBEAT.saturating_mul(2);
/// openraft takes an answer for one to a call that it just made. Later than this it makes one.
const ANSWERS_FOR: Duration = HEARTBEAT;

/// Whom entries go to, and those that are on their way.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<BTreeMap<RaftId, Line>>);

/// To one manager that keeps up.
#[derive(Debug)]
struct Line {
    member: Member,
    heard_at: Instant,
    call: Option<Call>,
}

/// The last one.
#[derive(Debug)]
struct Call {
    stretch: Stretch,
    made_at: Instant,
    answer: JoinHandle<Result<RaftReply, Failure>>,
}

/// Names a request: a leader makes one entry with an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    vote: Vote,
    prev: Option<LogId>,
    last: Option<LogId>,
    committed: Option<LogId>,
}

impl Stretch {
    fn of(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: request.vote,
            prev: request.prev_log_id,
            last: request.entries.last().map(|entry| entry.log_id),
            committed: request.leader_commit,
        }
    }
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RaftId, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Sends entries of this leader to those who keep up, but to none that has yet to answer the last such
    /// call.
    pub(super) fn send_ahead(&self, request: &AppendEntriesRequest<TypeConfig>) {
        let mut lines = self.ahead.lock();
        lines.retain(|_, line| line.heard_at.elapsed() < HEARD_WITHIN);
        for (to, line) in lines.iter_mut() {
            let last = line.call.as_ref();
            if last.is_some_and(|call| !call.answer.is_finished()) {
                continue;
            }
            let peer = self.to(*to, &line.member);
            let call = RaftRequest::Append(request.clone());
            line.call = Some(Call {
                stretch: Stretch::of(request),
                made_at: Instant::now(),
                answer: tokio::spawn(async move {
                    let answer = peer.call(call, APPEND_TIMEOUT).await;
                    if !is_success(&answer) {
                        peer.network.ahead.lock().remove(&peer.to);
                    }
                    answer
                }),
            });
        }
    }
}

impl Peer {
    /// What the manager says to the request, if it was sent ahead, and is not refused: a refusal may be of
    /// before it took the entries that these follow.
    pub(super) async fn sent_ahead(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> Option<Result<RaftReply, Failure>> {
        let call = self.take_call(Stretch::of(request))?;
        let answer = call.answer.await.ok()?;
        (answer.is_err() || is_success(&answer)).then_some(answer)
    }

    fn take_call(&self, stretch: Stretch) -> Option<Call> {
        let mut lines = self.network.ahead.lock();
        let call = &mut lines.get_mut(&self.to)?.call;
        call.take_if(|call| call.stretch == stretch && call.made_at.elapsed() < ANSWERS_FOR)
    }

    /// The manager has answered what openraft asked.
    pub(super) fn heard(&self, reply: &RaftReply) {
        let mut lines = self.network.ahead.lock();
        if !took(reply) {
            lines.remove(&self.to);
            return;
        }
        let line = lines.entry(self.to).or_insert_with(|| Line {
            member: self.member.clone(),
            heard_at: Instant::now(),
            call: None,
        });
        line.member = self.member.clone();
        line.heard_at = Instant::now();
    }
}

fn is_success(answer: &Result<RaftReply, Failure>) -> bool {
    answer.as_ref().is_ok_and(took)
}

fn took(reply: &RaftReply) -> bool {
    matches!(reply, RaftReply::Append(Ok(AppendEntriesResponse::Success)))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    };

    use async_trait::async_trait;
    use openraft::{CommittedLeaderId, Entry, EntryPayload, RaftNetwork, network::RPCOption};
    use tokio::{sync::Semaphore, task::yield_now, time::advance};

    use super::*;
    use crate::raft::{RaftCall, RaftTransport, TransportError};

    const FAR: RaftId = RaftId(2);

    /// A manager that answers as often as it may.
    #[derive(Debug)]
    struct Far {
        calls: AtomicUsize,
        answers: Semaphore,
        refuses: AtomicBool,
    }

    #[async_trait]
    impl RaftTransport for Far {
        async fn call(&self, _: &Member, _: RaftCall) -> Result<RaftReply, TransportError> {
            self.calls.fetch_add(1, Relaxed);
            let may = self.answers.acquire().await.expect("it is never closed");
            may.forget();
            Ok(RaftReply::Append(Ok(match self.refuses.load(Relaxed) {
                true => AppendEntriesResponse::Conflict,
                false => AppendEntriesResponse::Success,
            })))
        }
    }

    /// A network in which the other manager has just answered, and will so many times more.
    async fn heard(answers: usize) -> (Arc<Far>, Network, Peer) {
        let far = Arc::new(Far {
            calls: AtomicUsize::new(0),
            answers: Semaphore::new(1),
            refuses: AtomicBool::new(false),
        });
        let network = Network::new(Arc::clone(&far) as _, Arc::default());
        let mut peer = network.to(FAR, &Member::default());
        ask(&mut peer, &request(None)).await;
        far.answers.add_permits(answers);
        (far, network, peer)
    }

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, RaftId::default()), index)
    }

    /// With the entry of that index, or none.
    fn request(index: Option<u64>) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index| Entry {
            log_id: id(index),
            payload: EntryPayload::Blank,
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, RaftId(1)),
            prev_log_id: index.map(|index| id(index - 1)),
            entries: index.map(entry).into_iter().collect(),
            leader_commit: None,
        }
    }

    async fn ask(
        peer: &mut Peer,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> AppendEntriesResponse<RaftId> {
        let option = RPCOption::new(APPEND_TIMEOUT);
        let answer = peer.append_entries(request.clone(), option).await;
        answer.expect("it answers")
    }

    async fn send(network: &Network, index: u64) {
        network.send_ahead(&request(Some(index)));
        yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn raft_gets_the_answer_of_the_call_made_ahead_to_the_same_request_and_once() {
        let (far, network, mut peer) = heard(9).await;
        send(&network, 5).await;
        assert_eq!(far.calls.load(Relaxed), 2, "it is made at once");
        ask(&mut peer, &request(None)).await;
        ask(&mut peer, &request(Some(4))).await;
        let newer = AppendEntriesRequest {
            leader_commit: Some(id(4)),
            ..request(Some(5))
        };
        ask(&mut peer, &newer).await;
        assert_eq!(far.calls.load(Relaxed), 5, "those are others");
        let answer = ask(&mut peer, &request(Some(5))).await;
        assert!(matches!(answer, AppendEntriesResponse::Success));
        assert_eq!(far.calls.load(Relaxed), 5);
        ask(&mut peer, &request(Some(5))).await;
        assert_eq!(far.calls.load(Relaxed), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_and_an_old_answer_are_not_handed_on() {
        let (far, network, mut peer) = heard(9).await;
        far.refuses.store(true, Relaxed);
        send(&network, 5).await;
        far.refuses.store(false, Relaxed);
        let answer = ask(&mut peer, &request(Some(5))).await;
        assert!(matches!(answer, AppendEntriesResponse::Success));
        assert_eq!(far.calls.load(Relaxed), 3);
        send(&network, 6).await;
        assert_eq!(far.calls.load(Relaxed), 4);
        advance(ANSWERS_FOR).await;
        ask(&mut peer, &request(Some(6))).await;
        assert_eq!(far.calls.load(Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_an_answer_refuses_or_is_silent_is_not_called_ahead() {
        let (far, network, mut peer) = heard(0).await;
        send(&network, 5).await;
        send(&network, 6).await;
        assert_eq!(far.calls.load(Relaxed), 2, "it owes one");
        far.answers.add_permits(9);
        yield_now().await;
        send(&network, 7).await;
        assert_eq!(far.calls.load(Relaxed), 3);
        far.refuses.store(true, Relaxed);
        send(&network, 8).await;
        send(&network, 9).await;
        assert_eq!(far.calls.load(Relaxed), 4, "it refuses");
        far.refuses.store(false, Relaxed);
        ask(&mut peer, &request(None)).await;
        advance(HEARD_WITHIN).await;
        send(&network, 10).await;
        assert_eq!(far.calls.load(Relaxed), 5, "it is silent");
    }
}
