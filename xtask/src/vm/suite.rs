//! Which tests run under other kernels.

use std::{path::PathBuf, process::Command, process::Stdio};

use anyhow::{Context, Result, ensure};

use crate::build::root;

/// A file of tests.
struct Group {
    package: &'static str,
    target: &'static str,
    smoke: Smoke,
    threads: u8,
}

/// What of a group belongs to the smoke tests.
enum Smoke {
    All,
    One(&'static str),
    No,
}

const fn programs(target: &'static str, smoke: Smoke) -> Group {
    Group {
        package: "swarmnet-datapath",
        target,
        smoke,
        threads: 2,
    }
}

/// Three agents and their tasks: one lab at a time is enough for an emulated machine.
const fn cluster(target: &'static str, smoke: Smoke) -> Group {
    Group {
        package: "swarmnet-tests",
        target,
        smoke,
        threads: 1,
    }
}

const GROUPS: &[Group] = &[
    programs("prog_load", Smoke::All),
    programs("prog_uplink", Smoke::All),
    programs("prog_vxlan", Smoke::No),
    programs("prog_task", Smoke::All),
    programs("prog_gateway", Smoke::All),
    programs("prog_icmp", Smoke::No),
    programs("prog_mtu", Smoke::All),
    programs("prog_fragment", Smoke::All),
    programs("reassembly", Smoke::No),
    programs("links", Smoke::One("restart_keeps_links_and_programs")),
    programs("handover", Smoke::No),
    programs("sync", Smoke::No),
    programs(
        "prog_netns",
        Smoke::One("generic_xdp_forwards_to_remote_backends_without_the_stack"),
    ),
    programs("icmp_netns", Smoke::No),
    programs("spoof", Smoke::No),
    programs("trace", Smoke::No),
    cluster(
        "mesh",
        Smoke::One("client_outside_reaches_one_replica_through_every_node_and_is_seen"),
    ),
    cluster("overlay", Smoke::No),
    cluster("vip", Smoke::No),
    cluster("survival", Smoke::No),
];

/// A test binary with its arguments.
pub struct Run {
    pub name: &'static str,
    pub binary: PathBuf,
    pub arguments: Vec<String>,
}

/// Builds the test binaries.
///
/// # Errors
/// When they do not build.
pub fn build(smoke: bool, filter: &[String]) -> Result<Vec<Run>> {
    let groups: Vec<_> = GROUPS
        .iter()
        .filter(|group| !smoke || !matches!(group.smoke, Smoke::No))
        .collect();
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root())
        .args([
            "test",
            // Of one package alone, crates would have other features, and be built once more.
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit());
    for group in &groups {
        cargo.args(["--test", group.target]);
    }
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not build; see above");
    let messages = String::from_utf8(output.stdout).context("cargo says UTF-8")?;
    groups
        .into_iter()
        .map(|group| {
            let binary = messages.lines().find_map(|line| executable(line, group));
            Ok(Run {
                name: group.target,
                binary: binary.with_context(|| format!("cargo built no {}", group.target))?,
                arguments: arguments(group, smoke, filter),
            })
        })
        .collect()
}

/// The path in cargo's message about an artifact, if it is this group's.
fn executable(line: &str, group: &Group) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    // `path+file:///…/datapath#swarmnet-datapath@0.1.0`
    let of_package = format!("#{}@", group.package);
    let is_ours = message["package_id"].as_str()?.contains(&of_package)
        && message["target"]["name"] == group.target
        && message["target"]["kind"][0] == "test"
        && message["reason"] == "compiler-artifact";
    let path = message["executable"].as_str()?;
    is_ours.then(|| path.into())
}

fn arguments(group: &Group, smoke: bool, filter: &[String]) -> Vec<String> {
    let mut arguments = vec![format!("--test-threads={}", group.threads)];
    if group.target == "prog_load" {
        // It prints the verifier's counts.
        arguments.push("--nocapture".to_owned());
    }
    match group.smoke {
        Smoke::One(test) if smoke => arguments.push(test.to_owned()),
        _ => arguments.extend(filter.iter().cloned()),
    }
    arguments
}
