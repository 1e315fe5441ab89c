use super::*;
use crate::fixture::World;

#[test]
fn a_node_expires_once_at_its_deadline() {
    let (mut deadlines, now) = (Deadlines::default(), Instant::now());
    let (first, second) = (NodeId::generate(), NodeId::generate());
    let period = Duration::from_secs(5);
    deadlines.beat(first, now + grace(period));
    deadlines.beat(second, now + grace(period) + period);
    assert_eq!(deadlines.next(), Some(now + Duration::from_secs(15)));
    assert_eq!(
        deadlines.take_expired(now + Duration::from_millis(14_999)),
        []
    );
    assert_eq!(
        deadlines.take_expired(now + Duration::from_secs(15)),
        [first]
    );
    assert!(!deadlines.is_watched(first));
    assert_eq!(deadlines.take_expired(now + Duration::from_secs(15)), []);
    deadlines.forget(second);
    assert_eq!(deadlines.next(), None);
}

#[test]
fn a_beat_puts_the_deadline_off_and_outweighs_a_retry() {
    let (mut deadlines, now) = (Deadlines::default(), Instant::now());
    let node = NodeId::generate();
    deadlines.beat(node, now);
    assert_eq!(deadlines.take_expired(now), [node]);
    let later = now + Duration::from_secs(15);
    deadlines.beat(node, later);
    deadlines.retry(node, now);
    assert_eq!(deadlines.next(), Some(later));
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
