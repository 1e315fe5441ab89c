//! The program's rows and the kernel's scenarios as figures.

use anyhow::Result;
use lab::progress::step;
use serde_json::json;

use crate::{
    Parts,
    programs::{
        self, Measured, PeerKind, PeerObject, Plan,
        rows::{ROWS, Row, SCENARIOS, Scenario},
    },
    report::{Figure, Goal, Report, median},
};

const ROUNDS: usize = 25;
const ROUNDS_QUICK: usize = 7;
/// Packets a measurement: a few milliseconds.
const PACKETS: u32 = 50_000;
const NO_PEER: &str =
    "no other balancer is measured beside: give its compiled object by --peer-object PATH";
const UNIT: &str = "ns";

/// # Errors
/// When a program does not do what its row says.
pub fn rows(parts: &Parts, report: &mut Report) -> Result<()> {
    if parts.peers.is_empty() {
        println!("{NO_PEER}");
    }
    let plan = plan(parts);
    let what = format!(
        "{} rows of the mesh's program, {} rounds",
        ROWS.len(),
        plan.rounds
    );
    let outcome = step(&what, || {
        programs::measure(&parts.objects.programs, &ROWS, &plan)
    })?;
    for measured in &outcome.measured {
        add(
            report,
            "mesh program, net ns a packet: min",
            &plan,
            measured,
        );
    }
    let counts = outcome.programs.iter().map(|(name, verified, translated)| {
        json!({"program": name, "verified_instructions": verified, "translated_bytes": translated})
    });
    report.table("programs", counts.collect());
    for (name, verified, _) in &outcome.programs {
        let figure = Figure::new("verified instructions", name, f64::from(*verified));
        report.add(figure.goal(Goal::AtMost(100_000.0)));
    }
    Ok(())
}

/// # Errors
/// As [`rows`].
pub fn scenarios(parts: &Parts, report: &mut Report) -> Result<()> {
    let here: Vec<Row> = SCENARIOS
        .iter()
        .filter_map(|scenario| match scenario {
            Scenario::Here(row) => Some(*row),
            Scenario::NotYet(..) => None,
        })
        .collect();
    let plan = plan(parts);
    let what = format!(
        "{} scenarios of bench_xdp_lb, {} rounds",
        here.len(),
        plan.rounds
    );
    let outcome = step(&what, || {
        programs::measure(&parts.objects.programs, &here, &plan)
    })?;
    let mut measured = outcome.measured.iter();
    const PART: &str = "scenarios of bench_xdp_lb, net ns a packet: min";
    for scenario in &SCENARIOS {
        match scenario {
            Scenario::Here(_) => add(report, PART, &plan, measured.next().expect("one a row")),
            Scenario::NotYet(name, why) => {
                report.add(Figure::new(PART, *name, f64::NAN).note(*why));
            }
        }
    }
    Ok(())
}

fn plan(parts: &Parts) -> Plan {
    let balancer = PeerKind::Balancer(parts.peer_program.clone());
    let balancers = parts.peers.iter().map(|path| (path, balancer.clone()));
    let former = parts.before.iter().map(|path| (path, PeerKind::Ours));
    let peers = balancers.chain(former).map(|(path, kind)| PeerObject {
        label: path.file_stem().map_or_else(
            || "peer".to_owned(),
            |stem| stem.to_string_lossy().into_owned(),
        ),
        path: path.clone(),
        kind,
    });
    Plan {
        rounds: if parts.quick { ROUNDS_QUICK } else { ROUNDS },
        packets: PACKETS,
        peers: peers.collect(),
    }
}

/// One line a peer, or one without.
fn add(report: &mut Report, part: &'static str, plan: &Plan, measured: &Measured) {
    let Measured { row, samples } = measured;
    let Some(ours) = &samples[0] else { return };
    let figure = || {
        let detail = json!({
            "unit": UNIT, "median": ours.median(), "min": ours.min(), "gross": ours.gross,
            "driver": ours.own, "driver_median": median(&ours.own),
        });
        Figure::new(part, row.name, ours.min())
            .goal(row.goal.map(Goal::AtMost))
            .note(row.note)
            .detail(detail)
    };
    if plan.peers.is_empty() {
        report.add(figure());
    }
    for (peer, samples) in plan.peers.iter().zip(&samples[1..]) {
        report.add(match samples {
            Some(samples) => figure().against(peer.label.clone(), samples.min()),
            None => figure().note(format!("{}: does otherwise", peer.label)),
        });
    }
}
