//! That no drop is silent, told by the programs' source: each is counted under its reason, and each
//! reason has a test that brings it about.

use std::{collections::BTreeMap, fs, path::Path};

use dataplane_abi::DropReason;

/// Given no more; their numbers stay taken.
const RETIRED: [DropReason; 2] = [DropReason::Fragmented, DropReason::FragmentBeforeHead];

/// Reasons that only a failing kernel has: no packet and no table brings them about.
const KERNELS_OWN: [DropReason; 2] = [
    // A helper that changes the packet is out of memory.
    DropReason::RewriteFailed,
    // The kernel evicts from a full LRU table, and refuses only when it cannot.
    DropReason::FlowTableFull,
];

/// Folder of the benchmark's programs, which no node loads.
const NOT_OURS: &str = "bench/";

/// Rust sources in `directory` of this crate and in its folders: their text by path from there.
fn sources(directory: &str) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// Lines that use `word`, imports and comments apart, by file.
fn uses(sources: &BTreeMap<String, String>, word: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, text) in sources
        .iter()
        .filter(|(name, _)| !name.starts_with(NOT_OURS))
    {
        let code = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("//"));
        // An import ends its list with a brace or a comma.
        let code = code.filter(|line| line.contains(word) && !line.ends_with(','));
        let code = code.filter(|line| !line.ends_with("};") && !line.starts_with("use "));
        found.extend(code.map(|line| (name.clone(), line.to_owned())));
    }
    found
}

#[test]
fn drop_verdicts_stand_beside_their_counters_alone() {
    let programs = sources("../dataplane-ebpf/src");
    let at = |file: &str, line: &str| (file.to_owned(), line.to_owned());
    assert_eq!(
        uses(&programs, "TC_ACT_SHOT"),
        [at("skb.rs", "TC_ACT_SHOT")]
    );
    assert_eq!(
        uses(&programs, "XDP_DROP"),
        [at("xdp_uplink.rs", "XDP_DROP")]
    );
    assert_eq!(uses(&programs, "XDP_ABORTED"), []);
    for (file, counted) in [
        (
            "skb.rs",
            "count::dropped(program, reason, self.volume());\n                TC_ACT_SHOT",
        ),
        (
            "xdp_uplink.rs",
            "count::dropped(ProgramId::XdpUplink, reason, volume(&ctx));\n            XDP_DROP",
        ),
        ("socket.rs", "count::socket_refused(program, reason);"),
    ] {
        assert!(
            programs[file].contains(counted),
            "{file} drops without a count"
        );
    }
}

#[test]
fn every_reason_is_given_by_a_program_and_brought_about_by_a_test() {
    let (programs, tests) = (sources("../dataplane-ebpf/src"), sources("tests"));
    for reason in DropReason::ALL {
        let name = format!("DropReason::{reason:?}");
        let given = programs.values().any(|text| text.contains(&name));
        if RETIRED.contains(reason) {
            assert!(!given, "{name} is retired");
            continue;
        }
        assert!(given, "no program gives {name}");
        let tested = tests
            .iter()
            .any(|(file, text)| file != "drop_reasons.rs" && text.contains(&name));
        assert_eq!(
            tested,
            !KERNELS_OWN.contains(reason),
            "{name}: tested, or among those that cannot be"
        );
    }
}
