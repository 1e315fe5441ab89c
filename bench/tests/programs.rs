//! The benchmark's driver, rows, scenarios and peer do what they say. Nothing is timed here.

use std::path::Path;

use swarmnet_bench::programs::{
    PeerKind, PeerObject, Plan, measure,
    rows::{ROWS, SCENARIOS, Scenario},
};

/// Every row: verdicts of all packets by the driver and by our counters, every byte of one. The
/// floor stands in for another balancer's object.
#[test]
fn every_row_and_scenario_is_what_its_name_says() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "the test needs root");
        eprintln!("skipped: needs root");
        return;
    }
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    let scenarios = SCENARIOS.iter().filter_map(|scenario| match scenario {
        Scenario::Here(row) => Some(*row),
        Scenario::NotYet(..) => None,
    });
    let rows: Vec<_> = ROWS.into_iter().chain(scenarios).collect();
    let plan = Plan {
        rounds: 1,
        packets: 500,
        peers: vec![PeerObject {
            label: "plain".to_owned(),
            path: objects.join("bench-plain.o"),
            kind: PeerKind::Balancer(None),
        }],
    };
    let outcome = measure(&objects, &rows, &plan).expect("every row holds");
    assert_eq!(outcome.measured.len(), rows.len());
    for measured in &outcome.measured {
        // It drops no fragments, but passes them, and options.
        let differs = measured.row.name.starts_with("drop-");
        let both = measured.samples.iter().all(Option::is_some);
        assert!(
            both || differs,
            "{}: the peer was not measured",
            measured.row.name
        );
    }
    let limits = outcome
        .programs
        .iter()
        .filter(|(_, verified, _)| *verified > 100_000);
    assert_eq!(limits.count(), 0, "{:?}", outcome.programs);
}

/// The kernel's names, all of them, each once.
#[test]
fn scenarios_are_those_of_the_kernels_benchmark() {
    let mut names: Vec<_> = SCENARIOS
        .iter()
        .map(|scenario| match scenario {
            Scenario::Here(row) => row.name,
            Scenario::NotYet(name, _) => name,
        })
        .collect();
    names.sort_unstable();
    let tcp4 = "tcp-v4-{lru-hit,ch,lru-diverse,ch-diverse,lru-miss,lru-warmup,syn,rst-miss}";
    let others = [
        tcp4,
        "tcp-v6-{lru-hit,ch,lru-diverse,ch-diverse}",
        "udp-v4-{lru-hit,lru-diverse,lru-miss}",
        "udp-v6-{lru-hit}",
        "tcp-v4v6-{lru-hit}",
        "pass-{v4-no-vip,v6-no-vip,v4-icmp,non-ip}",
        "drop-{v4-frag,v4-options,v6-frag}",
    ];
    let mut expected: Vec<String> = others
        .iter()
        .flat_map(|group| {
            let (prefix, rest) = group.split_once('{').expect("a group");
            let endings = rest.trim_end_matches('}').split(',');
            endings.map(move |ending| format!("{prefix}{ending}"))
        })
        .collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(names.len(), 24);
}
