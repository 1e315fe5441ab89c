//! Every program loads, and how much of the verifier's budget it takes.

mod common;

use aya::programs::{CgroupSockAddr, SchedClassifier, Xdp};
use common::{Node, SOCKET_PROGRAMS, TC_PROGRAMS, program};

/// The kernel's limit is a million; a program that needs a tenth of it asks for a second thought.
const BUDGET: u32 = 100_000;

/// The counts are printed: `cargo test -p swarmnet-datapath --test prog_load -- --nocapture`.
#[test]
fn every_program_loads_within_the_verifier_budget() {
    let mut node = Node::load();
    let mut counts = Vec::new();
    for name in TC_PROGRAMS {
        let program: &mut SchedClassifier = program(&mut node.ebpf, name);
        counts.push((name, program.info().unwrap()));
    }
    let xdp: &mut Xdp = program(&mut node.ebpf, "sn_xdp_uplink");
    counts.push(("sn_xdp_uplink", xdp.info().unwrap()));
    for name in SOCKET_PROGRAMS {
        let program: &mut CgroupSockAddr = program(&mut node.ebpf, name);
        counts.push((name, program.info().unwrap()));
    }
    for (name, info) in counts {
        let verified = info.verified_instruction_count().unwrap();
        let (translated, jited) = (info.size_translated().unwrap(), info.size_jitted());
        println!(
            "{name:14} {verified:6} instructions verified, {translated:6} B translated, {jited:6} B of machine code"
        );
        assert!(verified <= BUDGET, "{name} takes {verified}");
    }
}
