//! Live packets over a veth pair: one end sends, the program at the other wraps and sends back, a
//! program that counts takes what returns. Against a program that sends back at once.

use std::{path::Path, thread, time::Instant};

use anyhow::{Context, Result, ensure};
use lab::progress::step;
use serde_json::json;

use crate::{
    Parts,
    programs::{
        driver::Driver,
        packet::{ACK, Kind, Shape, drive, packet},
        world::World,
    },
    report::{Figure, Report, median},
};

const PART: &str = "live packets over veth, XDP";
const PINS: &str = "/sys/fs/bpf/snbench-live";
const PACKETS: u32 = 500_000;

/// # Errors
/// When no packet comes back.
pub fn measure(parts: &Parts, report: &mut Report) -> Result<()> {
    let rounds = if parts.quick { 5 } else { 15 };
    step(&format!("live packets, {rounds} rounds"), || {
        thread::scope(|scope| {
            let inside = scope.spawn(|| in_namespace(parts, rounds, report));
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn in_namespace(parts: &Parts, rounds: usize, report: &mut Report) -> Result<()> {
    let world = World::enter(Path::new(PINS))?;
    let (near, far) = World::nop_pair()?;
    let mut driver = Driver::load(&parts.objects.programs.join("bench-driver.o"), world.uplink)?;
    driver.attach("nop_tx_frags", &near)?;
    driver.attach("sink", &far)?;
    driver.attach("sink", "up1")?;
    let shape = Shape {
        kind: Kind::Tcp(ACK),
        len: 64,
        flows: 1,
        services: 1,
    };
    let frame = packet(&drive(shape, World::services()), 0);
    let (mut ours, mut nops) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (from, rates) in [("up1", &mut ours), (far.as_str(), &mut nops)] {
            let before = driver.sunk()?;
            let started = Instant::now();
            driver.send_live(from, &frame, PACKETS)?;
            let back = driver.sunk()? - before;
            ensure!(back > 0, "no packet came back to {from}");
            rates.push(back as f64 / started.elapsed().as_secs_f64() / 1e6);
        }
    }
    let counted = world.counted().context("counters")?;
    ensure!(counted > 0, "the mesh's program counted no packet");
    report.add(
        Figure::new(PART, "wrapped and sent back, M packets/s", median(&ours))
            .against("nop XDP_TX", median(&nops))
            .detail(json!({"samples": ours, "peer_samples": nops})),
    );
    Ok(())
}
