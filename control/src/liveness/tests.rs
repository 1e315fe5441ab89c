use super::*;
use crate::fixture::World;

const GRACE: Duration = Duration::from_secs(15);

/// When the node expires, by looks that come when they are due; the first of them at `from`.
fn expiry(deadlines: &mut Deadlines, node: NodeId, from: Instant) -> Instant {
    let mut now = from;
    loop {
        let expired = deadlines.look(now);
        if expired.contains(&node) {
            return now;
        }
        assert!(now < from + 2 * GRACE, "it does not expire");
        now = deadlines.next_look();
    }
}

#[test]
fn a_node_expires_once_at_its_deadline() {
    let now = Instant::now();
    let mut deadlines = Deadlines::new(now);
    let (first, second) = (NodeId::generate(), NodeId::generate());
    deadlines.beat(first, now, GRACE);
    deadlines.beat(second, now, GRACE + Duration::from_secs(5));
    let due = deadlines.next_look();
    let at = expiry(&mut deadlines, first, due);
    assert_eq!(at - now, GRACE);
    assert!(!deadlines.is_watched(first) && deadlines.is_watched(second));
    assert_eq!(deadlines.look(deadlines.next_look()), []);
    deadlines.forget(second);
    assert!(!deadlines.is_watched(second));
}

#[test]
fn a_beat_puts_the_deadline_off_and_outweighs_a_retry() {
    let now = Instant::now();
    let mut deadlines = Deadlines::new(now);
    let node = NodeId::generate();
    deadlines.beat(node, now, Duration::ZERO);
    assert_eq!(deadlines.look(now), [node]);
    deadlines.beat(node, now, GRACE);
    deadlines.retry(node, now);
    let due = deadlines.next_look();
    assert_eq!(expiry(&mut deadlines, node, due) - now, GRACE);
}

#[test]
fn time_in_which_the_manager_did_not_run_counts_against_no_node() {
    let now = Instant::now();
    let mut deadlines = Deadlines::new(now);
    let node = NodeId::generate();
    deadlines.beat(node, now, GRACE);
    let mut last = now;
    while last < now + Duration::from_secs(10) {
        last = deadlines.next_look();
        assert_eq!(deadlines.look(last), []);
    }
    // From here on nothing runs for half a minute.
    let (left, due) = (now + GRACE - last, deadlines.next_look());
    let awake = last + Duration::from_secs(30);
    let at = expiry(&mut deadlines, node, awake);
    assert_eq!(at - awake, left - (due - last));
}

#[test]
fn who_is_heard_of_while_a_look_is_overdue_has_all_its_time_from_then_on() {
    let now = Instant::now();
    let mut deadlines = Deadlines::new(now);
    let node = NodeId::generate();
    let late = now + Duration::from_secs(30);
    deadlines.beat(node, late, GRACE);
    let at = expiry(&mut deadlines, node, late);
    assert_eq!(at - late, GRACE);
}

#[test]
fn periods_of_sessions_are_spread_around_the_clusters() {
    let cluster = cluster_period(&World::new().state);
    let periods: Vec<_> = (0..200).map(|_| session_period(cluster)).collect();
    let (least, most) = (Duration::from_millis(4500), Duration::from_millis(5500));
    assert!(periods.iter().all(|period| (least..=most).contains(period)));
    assert!(periods.iter().any(|p| *p < cluster) && periods.iter().any(|p| *p > cluster));
}

#[test]
fn after_a_start_all_are_unknown_but_those_that_are_down() {
    let mut world = World::new();
    let nodes = world.add_nodes(3);
    let down = world.write(|tx| mark_down(tx, nodes[..1].iter().copied()));
    assert_eq!(down, nodes[..1]);
    world.write(all_unknown);
    let state = |id: NodeId| world.state.node(id).unwrap().status.state;
    assert_eq!(state(nodes[0]), NodeState::Down);
    assert_eq!(state(nodes[1]), NodeState::Unknown);
    assert_eq!(state(nodes[2]), NodeState::Unknown);
}

#[test]
fn marking_down_skips_nodes_that_are_gone_or_down_already() {
    let mut world = World::new();
    let nodes = world.add_nodes(2);
    let gone = NodeId::generate();
    world.write(|tx| mark_down(tx, [nodes[0]].into_iter()));
    let before = world.state.version();
    assert_eq!(
        world.write(|tx| mark_down(tx, [gone, nodes[0]].into_iter())),
        []
    );
    assert_eq!(world.state.version(), before, "nothing to commit");
}
