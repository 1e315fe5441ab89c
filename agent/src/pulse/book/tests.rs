//! Whole clusters in virtual time, over a network that loses, delays and cuts, by a seed.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// Within which new flows are to go elsewhere.
const GOAL: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// What a packet is under way at most.
const DELAY_MAX: Duration = Duration::from_millis(30);

struct Sim {
    random: StdRng,
    now: Duration,
    books: BTreeMap<NodeId, Book>,
    /// By when they arrive.
    packets: BTreeMap<(Duration, u64), Message>,
    sent: BTreeMap<NodeId, usize>,
    loss: f64,
    /// Neither answer nor ask.
    dead: BTreeSet<NodeId>,
    /// Packets between these are lost, in either direction.
    cuts: BTreeSet<(NodeId, NodeId)>,
    changes: Vec<(Duration, NodeId, Change)>,
}

fn node(number: usize) -> NodeId {
    NodeId::from_raw(number as u128)
}

fn peers(count: usize, down: &BTreeSet<NodeId>) -> OrdMap<NodeId, PeerView> {
    let peer = |number| PeerView {
        node: node(number),
        hostname: format!("n{number}"),
        vtep: Ipv4Addr::from(0x0a00_0000 + number as u32),
        up: !down.contains(&node(number)),
    };
    (1..=count)
        .map(|number| (node(number), peer(number)))
        .collect()
}

impl Sim {
    fn new(count: usize, seed: u64) -> Self {
        let view = peers(count, &BTreeSet::new());
        let books = (1..=count).map(|number| {
            let mut book = Book::new(node(number));
            book.follow(&view);
            (node(number), book)
        });
        Self {
            random: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            books: books.collect(),
            packets: BTreeMap::new(),
            sent: BTreeMap::new(),
            loss: 0.0,
            dead: BTreeSet::new(),
            cuts: BTreeSet::new(),
            changes: Vec::new(),
        }
    }

    /// Until each has heard of each.
    fn acquainted(count: usize, seed: u64) -> Self {
        let mut sim = Self::new(count, seed);
        sim.run(PERIOD * (count as u32 + 10));
        assert!(sim.books.values().all(|book| {
            let heard = book.peers.values().filter(|peer| peer.heard.is_some());
            heard.count() == count - 1
        }));
        assert_eq!(sim.changes, [], "seed {seed}");
        sim
    }

    fn wall(&self) -> Millis {
        Millis(1_000_000 + self.now.as_millis() as u64)
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            self.deliver();
            for id in self.books.keys().copied().collect::<Vec<_>>() {
                if self.dead.contains(&id) {
                    continue;
                }
                let (now, wall, random) = (self.now, self.wall(), &mut self.random);
                let book = self.books.get_mut(&id).unwrap();
                let outcome = book.tick(now, wall, || random.random());
                self.take(id, outcome);
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.packets.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let message = entry.remove();
            if self.dead.contains(&message.to) {
                continue;
            }
            let wall = self.wall();
            let book = self.books.get_mut(&message.to).unwrap();
            let outcome = book.hear(&message, wall).unwrap_or_default();
            assert!(
                outcome.sends.len() <= 1,
                "one packet has one answer at most"
            );
            self.take(message.to, outcome);
        }
    }

    fn take(&mut self, from: NodeId, outcome: Outcome) {
        let changes = outcome.changes.into_iter();
        self.changes
            .extend(changes.map(|change| (self.now, from, change)));
        for Send { to, body, .. } in outcome.sends {
            *self.sent.entry(from).or_default() += 1;
            let pair = (from.min(to), from.max(to));
            if self.random.random_bool(self.loss) || self.cuts.contains(&pair) {
                continue;
            }
            let delay = self.random.random_range(Duration::ZERO..=DELAY_MAX);
            let at = (self.now + delay, self.random.random());
            self.packets.insert(at, Message { from, to, body });
        }
    }

    /// Another agent in the place of one.
    fn restart(&mut self, of: NodeId) {
        let mut book = Book::new(of);
        book.now = self.now;
        book.elapsed = self.now;
        book.follow(&peers(self.books.len(), &BTreeSet::new()));
        self.books.insert(of, book);
    }

    fn cut(&mut self, one: NodeId, other: NodeId) {
        self.cuts.insert((one.min(other), one.max(other)));
    }

    fn isolate(&mut self, one: NodeId) {
        for other in self.books.keys().copied().collect::<Vec<_>>() {
            self.cut(one, other);
        }
    }

    /// As the managers tell all: these are down, the others up.
    fn hold_down(&mut self, down: &[NodeId]) {
        let view = peers(self.books.len(), &down.iter().copied().collect());
        self.books.values_mut().for_each(|book| book.follow(&view));
    }

    /// Of the living, who suspects `of`.
    fn suspecting(&self, of: NodeId) -> usize {
        let living = self.books.iter().filter(|(id, _)| !self.dead.contains(id));
        let doubt = |book: &Book| book.doubts().get(&of) == Some(&Doubt::Suspected);
        living.filter(|(_, book)| doubt(book)).count()
    }

    fn doubts(&self) -> usize {
        self.books.values().map(|book| book.doubts().len()).sum()
    }
}

/// Of clusters in which all watch all, and of one in which few do; at any phase of the questions.
#[test]
fn dead_node_is_suspected_by_all_within_a_second() {
    let mut slowest = Duration::ZERO;
    for (count, seeds) in [(3, 16), (5, 8), (9, 2), (40, 1)] {
        for seed in 0..seeds {
            let mut sim = Sim::acquainted(count, seed);
            sim.run(TICK * (seed as u32 % 8));
            let died = sim.now;
            sim.dead.insert(node(2));
            while sim.suspecting(node(2)) < count - 1 {
                sim.run(TICK);
                let took = sim.now - died;
                assert!(took <= GOAL, "{count} nodes, seed {seed}: {took:?}");
            }
            slowest = slowest.max(sim.now - died);
            sim.run(2 * SECOND);
            assert_eq!(sim.doubts(), count - 1, "nobody else is suspected");
        }
    }
    println!("suspected by all after {slowest:?} at most");
}

#[test]
fn node_that_returns_gets_new_flows_at_once_and_is_trusted_later() {
    let mut sim = Sim::acquainted(5, 1);
    sim.dead.insert(node(3));
    sim.run(3 * SECOND);
    sim.dead.remove(&node(3));
    sim.run(SECOND);
    let doubts = sim.books[&node(1)].doubts();
    assert_eq!(doubts, [(node(3), Doubt::Returning)].into());
    sim.run(RETURN);
    assert_eq!(sim.doubts(), 0);
    let of_first = sim.changes.iter().filter(|(_, at, _)| *at == node(1));
    let of_first: Vec<_> = of_first.map(|(_, _, change)| *change).collect();
    assert!(
        matches!(
            of_first[..],
            [
                Change::Suspected { .. },
                Change::Returning(_),
                Change::Trusted(_)
            ]
        ),
        "{of_first:?}"
    );
}

/// The next agent of a node knows nobody by itself, and may be told before or after it heard of who is
/// back.
#[test]
fn another_agent_doubts_whom_the_one_before_doubted_until_they_answer() {
    for heard_before in [false, true] {
        let mut sim = Sim::acquainted(5, 19);
        sim.dead.insert(node(3));
        sim.run(2 * SECOND);
        let inherited = sim.books[&node(1)].doubts();
        assert_eq!(inherited, [(node(3), Doubt::Suspected)].into());
        sim.restart(node(1));
        if heard_before {
            sim.dead.remove(&node(3));
            sim.run(SECOND);
        }
        let heir = sim.books.get_mut(&node(1)).unwrap();
        heir.inherit(&inherited);
        if !heard_before {
            sim.run(60 * SECOND);
            assert_eq!(sim.books[&node(1)].doubts(), inherited, "it is not back");
            sim.dead.remove(&node(3));
            sim.run(SECOND);
        }
        let returning = BTreeMap::from([(node(3), Doubt::Returning)]);
        assert_eq!(sim.books[&node(1)].doubts(), returning);
        sim.run(RETURN - 2 * SECOND);
        assert_eq!(
            sim.books[&node(1)].doubts(),
            returning,
            "for as long as ever"
        );
        sim.run(2 * SECOND);
        assert_eq!(sim.books[&node(1)].doubts(), BTreeMap::new());
    }
}

/// When it came back is not known, so all of the time begins anew; and it has answered once.
#[test]
fn another_agent_waits_for_who_was_back_and_misses_them() {
    let doubts = BTreeMap::from([(node(3), Doubt::Returning)]);
    let mut sim = Sim::acquainted(5, 20);
    sim.restart(node(1));
    sim.books.get_mut(&node(1)).unwrap().inherit(&doubts);
    sim.run(RETURN - SECOND);
    assert_eq!(sim.books[&node(1)].doubts(), doubts);
    sim.run(2 * SECOND);
    assert_eq!(sim.books[&node(1)].doubts(), BTreeMap::new());

    sim.restart(node(1));
    sim.dead.insert(node(3));
    sim.books.get_mut(&node(1)).unwrap().inherit(&doubts);
    sim.run(GOAL);
    assert_eq!(
        sim.books[&node(1)].doubts(),
        [(node(3), Doubt::Suspected)].into(),
    );
}

/// Its own look is newer than what the one before left; and of who is no member there is nothing to
/// doubt.
#[test]
fn what_an_agent_found_by_itself_stays() {
    let mut sim = Sim::acquainted(5, 21);
    sim.dead.insert(node(3));
    sim.run(2 * SECOND);
    let doubts = sim.books[&node(1)].doubts();
    let late = [node(3), node(9)].map(|of| (of, Doubt::Returning)).into();
    sim.books.get_mut(&node(1)).unwrap().inherit(&late);
    assert_eq!(sim.books[&node(1)].doubts(), doubts);
}

#[test]
fn packets_that_are_lost_make_nobody_suspected() {
    for seed in 0..5 {
        let mut sim = Sim::acquainted(6, seed);
        sim.loss = 0.1;
        sim.run(30 * SECOND);
        assert_eq!(sim.changes, [], "seed {seed}");
    }
}

#[test]
fn node_that_is_cut_off_suspects_nobody() {
    for count in [3, 5, 12] {
        let mut sim = Sim::acquainted(count, 7);
        sim.isolate(node(1));
        sim.run(5 * SECOND);
        assert_eq!(sim.books[&node(1)].doubts(), BTreeMap::new());
        assert_eq!(sim.suspecting(node(1)), count - 1, "by the others");
        let cut_off = sim.changes.iter().filter(|(_, at, _)| *at == node(1));
        let cut_off: Vec<_> = cut_off.map(|(_, _, change)| *change).collect();
        assert!(
            matches!(cut_off[..], [Change::CutOff { .. }]),
            "{cut_off:?}"
        );
        sim.cuts.clear();
        sim.run(RETURN + SECOND);
        assert_eq!(sim.doubts(), 0);
    }
}

/// One of two cannot tell which of them it is.
#[test]
fn one_of_two_suspects_nobody() {
    let mut sim = Sim::acquainted(2, 3);
    sim.dead.insert(node(2));
    sim.run(10 * SECOND);
    assert_eq!(sim.doubts(), 0);
}

/// Port 7946 may be closed at a node, and its flows go on all the same.
#[test]
fn node_that_was_never_heard_of_is_not_suspected() {
    let mut sim = Sim::new(5, 4);
    sim.isolate(node(4));
    sim.run(20 * SECOND);
    assert_eq!(sim.doubts(), 0);
}

/// Each node goes by its own way to another.
#[test]
fn two_that_do_not_reach_each_other_suspect_each_other_alone() {
    let mut sim = Sim::acquainted(12, 5);
    sim.cut(node(3), node(4));
    // Neither is watched by the other: each is found in its turn.
    sim.run(3 * SECOND);
    assert_eq!(sim.doubts(), 2);
    assert_eq!(sim.suspecting(node(3)), 1);
    assert_eq!(sim.suspecting(node(4)), 1);
}

/// An agent that got no time for seconds: what it missed, it did not hear.
#[test]
fn agent_that_slept_suspects_nobody() {
    let mut sim = Sim::acquainted(4, 6);
    sim.dead.insert(node(1));
    sim.run(5 * SECOND);
    sim.dead.remove(&node(1));
    sim.run(SECOND);
    let own = sim.changes.iter().filter(|(_, at, _)| *at == node(1));
    assert_eq!(own.count(), 0);
}

#[test]
fn agent_that_ends_on_purpose_is_waited_for() {
    let mut sim = Sim::acquainted(4, 8);
    let pausing = sim.books[&node(2)].pause(sim.wall());
    sim.take(
        node(2),
        Outcome {
            sends: pausing,
            changes: Vec::new(),
        },
    );
    sim.dead.insert(node(2));
    sim.run(PAUSE - SECOND);
    assert_eq!(sim.doubts(), 0);
    sim.run(SECOND + GOAL);
    assert_eq!(sim.suspecting(node(2)), 3);
}

#[test]
fn questions_a_second_do_not_grow_with_the_cluster() {
    let rate = |count| {
        let mut sim = Sim::acquainted(count, 9);
        sim.sent.clear();
        sim.run(10 * SECOND);
        *sim.sent.values().max().unwrap() / 10
    };
    let (some, many) = (rate(10), rate(50));
    println!("packets a second and node: {some} of 10, {many} of 50");
    // Eight watched and one in its turn, questions and answers.
    assert!(many <= 2 * 9 * 10 + 10, "{many}");
    // A node's death has all tell all, once or twice.
    let mut sim = Sim::acquainted(50, 10);
    sim.dead.insert(node(30));
    sim.sent.clear();
    sim.run(SECOND);
    let most = sim.sent.values().max().unwrap();
    assert!(*most <= many + 3 * 50, "{most}");
}

/// What others say makes a node look, and nothing else.
#[test]
fn words_of_others_alone_make_nobody_suspected() {
    let mut sim = Sim::acquainted(4, 11);
    for _ in 0..100 {
        let at = sim.wall();
        let body = Body::Silent { about: node(3), at };
        let message = Message {
            from: node(2),
            to: node(1),
            body,
        };
        sim.books
            .get_mut(&node(1))
            .unwrap()
            .hear(&message, at)
            .unwrap();
        sim.run(TICK * 4);
    }
    assert_eq!(sim.changes, []);
    // Nor does it ask more often than once a second or so, for as long as a look takes.
    let peer = &sim.books[&node(1)].peers[&node(3)];
    assert!(peer.next_look > sim.now - 2 * SECOND, "{peer:?}");
}

#[test]
fn packets_that_say_nothing_to_this_node_are_ignored_with_a_reason() {
    let mut sim = Sim::acquainted(3, 12);
    let wall = sim.wall();
    let book = sim.books.get_mut(&node(1)).unwrap();
    let mut hear = |from, to, body| book.hear(&Message { from, to, body }, wall);
    let ask = Body::Ask { token: 1 };
    let late = Millis(wall.0 - 60_000);
    assert_eq!(hear(node(2), node(3), ask), Err(Ignored::Misdirected));
    assert_eq!(hear(node(9), node(1), ask), Err(Ignored::Stranger));
    let answer = Body::Answer { token: 1 };
    assert_eq!(hear(node(2), node(1), answer), Err(Ignored::Unasked));
    let silent = Body::Silent {
        about: node(3),
        at: late,
    };
    assert_eq!(hear(node(2), node(1), silent), Err(Ignored::Stale));
    let pausing = |at| Body::Pausing { at };
    assert_eq!(hear(node(2), node(1), pausing(late)), Err(Ignored::Stale));
    assert!(hear(node(2), node(1), pausing(wall)).is_ok());
    assert_eq!(hear(node(2), node(1), pausing(wall)), Err(Ignored::Stale));
}

/// Answers that are sent again keep nobody alive.
#[test]
fn old_answers_are_no_sign_of_life() {
    let mut sim = Sim::acquainted(4, 13);
    let replayed: Vec<Message> = sim
        .books
        .values()
        .flat_map(|book| book.peers.get(&node(2)).map(|peer| (book.own, peer.asked)))
        .flat_map(|(to, tokens)| tokens.map(|token| (to, token)))
        .map(|(to, token)| Message {
            from: node(2),
            to,
            body: Body::Answer { token },
        })
        .collect();
    sim.run(PERIOD * (TOKENS as u32 + 1));
    sim.dead.insert(node(2));
    let died = sim.now;
    while sim.suspecting(node(2)) < 3 {
        for message in &replayed {
            let at = (sim.now, sim.random.random());
            sim.packets.insert(at, *message);
        }
        sim.run(TICK);
        assert!(sim.now - died <= GOAL);
    }
}

/// The managers alone do not reach it: all others hear it, and miss it as soon as it is silent.
#[test]
fn node_that_is_down_for_the_managers_alone_is_heard_until_it_is_silent() {
    for count in [3, 5, 20] {
        let mut sim = Sim::acquainted(count, 14);
        sim.hold_down(&[node(2)]);
        sim.run(60 * SECOND);
        assert_eq!(sim.changes, [], "{count} nodes");
        sim.dead.insert(node(2));
        sim.run(GOAL);
        assert_eq!(sim.suspecting(node(2)), count - 1, "{count} nodes");
        // And asked no more.
        sim.run(SECOND);
        let asks = |book: &Book| book.peers.get(&node(2)).map(|peer| peer.next_question);
        let asks: Vec<_> = sim.books.values().filter_map(asks).collect();
        assert_eq!(asks, vec![TURN; count - 1]);
    }
}

/// Its port may have been closed before: no word of it is no reason to go on with it, nor to do without
/// it when it is back.
#[test]
fn node_that_was_never_heard_of_is_suspected_while_it_is_down() {
    let mut sim = Sim::new(5, 15);
    sim.isolate(node(4));
    sim.run(20 * SECOND);
    sim.hold_down(&[node(4)]);
    sim.run(GOAL);
    assert_eq!(sim.suspecting(node(4)), 4);
    sim.hold_down(&[]);
    sim.run(20 * SECOND);
    assert_eq!(sim.suspecting(node(4)), 0);
    sim.hold_down(&[node(4)]);
    sim.run(GOAL);
    assert_eq!(sim.suspecting(node(4)), 4);
}

/// Of two nodes neither can tell which is cut off; the managers have told.
#[test]
fn last_other_node_is_suspected_once_it_is_down() {
    let mut sim = Sim::acquainted(2, 16);
    sim.dead.insert(node(2));
    sim.run(10 * SECOND);
    assert_eq!(sim.doubts(), 0);
    sim.hold_down(&[node(2)]);
    sim.run(GOAL);
    assert_eq!(sim.suspecting(node(2)), 1);
}

#[test]
fn node_that_was_down_is_asked_again_when_it_is_up() {
    let mut sim = Sim::acquainted(5, 17);
    sim.dead.insert(node(3));
    sim.run(SECOND);
    sim.hold_down(&[node(3)]);
    sim.run(10 * SECOND);
    sim.dead.remove(&node(3));
    sim.hold_down(&[]);
    sim.run(SECOND);
    let doubts = sim.books[&node(1)].doubts();
    assert_eq!(doubts, [(node(3), Doubt::Returning)].into());
    sim.run(RETURN);
    assert_eq!(sim.doubts(), 0);
    sim.dead.insert(node(3));
    sim.run(GOAL);
    assert_eq!(sim.suspecting(node(3)), 4, "it is watched again");
}

#[test]
fn nodes_that_are_down_and_silent_are_not_watched_and_others_take_their_place() {
    let mut sim = Sim::acquainted(30, 18);
    let watched = |sim: &Sim| -> Vec<u128> {
        let peers = sim.books[&node(1)].peers.iter();
        let watched = peers.filter(|(_, peer)| peer.is_watched);
        watched.map(|(node, _)| node.raw()).collect()
    };
    let first = (2..=9).collect::<Vec<_>>();
    assert_eq!(watched(&sim), first);
    sim.hold_down(&[node(3)]);
    assert_eq!(watched(&sim), first, "it may be there");
    sim.dead.insert(node(3));
    sim.run(GOAL);
    assert_eq!(watched(&sim), [2, 4, 5, 6, 7, 8, 9, 10]);
    let book = sim.books.get_mut(&node(1)).unwrap();
    book.follow(&peers(4, &BTreeSet::new()));
    assert_eq!(watched(&sim), [2, 3, 4]);
}

fn some_message() -> impl Strategy<Value = Message> {
    let some_node = || (0usize..6).prop_map(node);
    let body = prop_oneof![
        (0u64..20).prop_map(|token| Body::Ask { token }),
        (0u64..20).prop_map(|token| Body::Answer { token }),
        (some_node(), any::<u64>()).prop_map(|(about, at)| Body::Silent {
            about,
            at: Millis(at % 40_000)
        }),
        any::<u64>().prop_map(|at| Body::Pausing {
            at: Millis(at % 40_000)
        }),
    ];
    (some_node(), some_node(), body).prop_map(|(from, to, body)| Message { from, to, body })
}

proptest! {
    /// Whatever is said and however time goes: no panic, no more than one answer, no suspicion of
    /// oneself or of who is none, and what is done is bounded.
    #[test]
    fn any_course_of_messages_is_taken(
        course in prop::collection::vec(
            (some_message(), 0u64..3000, 1usize..6, any::<bool>()), 1..200,
        ),
    ) {
        let mut book = Book::new(node(1));
        let (mut elapsed, mut token) = (Duration::ZERO, 0u64);
        for (message, step, count, is_down) in course {
            book.follow(&peers(count, &is_down.then_some(node(3)).into_iter().collect()));
            elapsed += Duration::from_millis(step);
            let wall = Millis(elapsed.as_millis() as u64);
            let outcome = book.tick(elapsed, wall, || { token = (token + 1) % 20; token });
            prop_assert!(outcome.sends.len() <= 5 + NEWS_PER_TICK);
            if let Ok(outcome) = book.hear(&message, wall) {
                prop_assert!(outcome.sends.len() <= 1);
            }
            let doubts = book.doubts();
            prop_assert!(doubts.keys().all(|of| *of != node(1) && of.raw() <= count as u128));
        }
    }
}
