//! The mesh's entry by `BPF_PROG_TEST_RUN`: nanoseconds a packet, net of the driver, against other
//! balancers' objects in the same rounds.

mod check;
pub mod driver;
pub mod packet;
mod peer;
pub mod rows;
pub mod world;

use std::{
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use dataplane_abi::bench::Drive;
use driver::{Driver, Nop, Subject};
use packet::Target;
use peer::Peer;
use rows::{Expect, Row};
use world::World;

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Where the programs are pinned meanwhile.
const PINS: &str = "/sys/fs/bpf/snbench-programs";

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Each row is measured once a round.
    pub rounds: usize,
    /// Packets a measurement; rows of many flows send four times as many.
    pub packets: u32,
    pub peers: Vec<PeerObject>,
}

/// An object to compare with.
#[derive(Debug, Clone)]
pub struct PeerObject {
    pub label: String,
    pub path: PathBuf,
    pub kind: PeerKind,
}

#[derive(Debug, Clone)]
pub enum PeerKind {
    /// Another balancer's; the name of its XDP program, unless it has but one.
    Balancer(Option<String>),
    /// Ours, as built at another time.
    Ours,
}

/// A row, measured.
pub struct Measured {
    pub row: Row,
    /// Ours first, then the peers in their order; `None` for what a peer does in another way.
    pub samples: Vec<Option<Samples>>,
}

/// Nanoseconds a packet, one a round, net of the driver.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    pub gross: Vec<f64>,
    /// Of the driver alone.
    pub own: Vec<f64>,
}

impl Samples {
    pub fn min(&self) -> f64 {
        let min = |samples: &[f64]| samples.iter().copied().fold(f64::INFINITY, f64::min);
        min(&self.gross) - min(&self.own)
    }

    pub fn median(&self) -> f64 {
        crate::report::median(&self.gross) - crate::report::median(&self.own)
    }
}

/// Everything that a run of this part found.
pub struct Outcome {
    pub measured: Vec<Measured>,
    /// Name, instructions verified, bytes translated.
    pub programs: Vec<(String, u32, u32)>,
}

/// Measures the rows, in a namespace of its own.
///
/// # Errors
/// When a program does not do what its row says.
pub fn measure(objects: &Path, rows: &[Row], plan: &Plan) -> Result<Outcome> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            pin_to_last_cpu()?;
            let world = World::enter(Path::new(PINS))?;
            let programs = world.instruction_counts()?;
            let measured = Course::new(&world, objects, plan)?.run(rows, plan)?;
            Ok(Outcome { measured, programs })
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Wanders of the thread from one CPU to another would show as noise.
fn pin_to_last_cpu() -> Result<()> {
    let mut only = nix::sched::CpuSet::new();
    let last = thread::available_parallelism()?.get() - 1;
    only.set(last)?;
    let this_thread = nix::unistd::Pid::from_raw(0);
    nix::sched::sched_setaffinity(this_thread, &only).context("one CPU alone")
}

/// One who takes part in every round.
struct Contender {
    subject: Subject,
    nops: [Subject; 3],
    services: Target,
    nothing: Target,
    kind: Kind,
}

enum Kind {
    /// Of this build or of another one.
    Ours,
    Balancer(Peer),
}

struct Course<'a> {
    world: &'a World,
    driver: Driver,
    contenders: Vec<Contender>,
}

/// A row's state with one contender.
struct Cell {
    drive: Drive,
    samples: Samples,
}

impl<'a> Course<'a> {
    fn new(world: &'a World, objects: &Path, plan: &Plan) -> Result<Self> {
        let mut driver = Driver::load(&objects.join("bench-driver.o"), world.uplink)?;
        let mut contenders = vec![ours(&mut driver, world.subject()?)?];
        for object in &plan.peers {
            let context = || format!("the peer's object {}", object.path.display());
            contenders.push(match &object.kind {
                PeerKind::Ours => {
                    let subject = world.subject_of(&object.path).with_context(context)?;
                    ours(&mut driver, subject)?
                }
                PeerKind::Balancer(program) => {
                    balancer(&mut driver, object, program.as_deref()).with_context(context)?
                }
            });
        }
        Ok(Self {
            world,
            driver,
            contenders,
        })
    }

    fn run(mut self, rows: &[Row], plan: &Plan) -> Result<Vec<Measured>> {
        let mut cells = Vec::new();
        for row in rows {
            let mut of_row = Vec::new();
            for at in 0..self.contenders.len() {
                let context = || format!("row `{}`, contender {at}", row.name);
                of_row.push(self.prepare(row, at).with_context(context)?);
            }
            cells.push(of_row);
        }
        let (counted, dropped) = (self.world.counted()?, drops(self.world)?);
        let mut to_count = 0;
        let is_ours = |contender: &&Contender| matches!(contender.kind, Kind::Ours);
        let ours = self.contenders.iter().filter(is_ours).count() as u64;
        for _ in 0..plan.rounds {
            for (row, of_row) in rows.iter().zip(&mut cells) {
                let packets = plan.packets * if row.shape.flows > 1 << 12 { 4 } else { 1 };
                for (at, cell) in of_row.iter_mut().enumerate() {
                    let Some(cell) = cell else { continue };
                    self.time(row, at, cell, packets)
                        .with_context(|| format!("row `{}`, contender {at}", row.name))?;
                }
                let packets = u64::from(packets) * ours;
                if row.expect == Expect::Wrapped {
                    to_count += packets;
                }
            }
        }
        // Our own counters saw every packet of the timed runs, once and at the right place.
        let counted = self.world.counted()? - counted;
        ensure!(
            counted == to_count,
            "services counted {counted} packets of {to_count}"
        );
        let dropped = drops(self.world)? - dropped;
        ensure!(
            dropped == 0,
            "{dropped} packets are counted as dropped, of none"
        );
        Ok(rows
            .iter()
            .zip(cells)
            .map(|(row, of_row)| Measured {
                row: *row,
                samples: of_row.into_iter().map(|cell| Some(cell?.samples)).collect(),
            })
            .collect())
    }

    /// Checks one packet's way, and warms up. `None` when a peer does something else with this kind
    /// of packet.
    fn prepare(&mut self, row: &Row, at: usize) -> Result<Option<Cell>> {
        let contender = &self.contenders[at];
        let to = if row.published {
            contender.services
        } else {
            contender.nothing
        };
        let mut drive = packet::drive(row.shape, to);
        let (sent, run, out) = self.driver.one(&contender.subject, &mut drive)?;
        match &contender.kind {
            Kind::Ours => self.check_ours(row, run.verdict, &sent, &out)?,
            Kind::Balancer(peer) => {
                if run.verdict != verdict(row.expect) {
                    return Ok(None);
                }
                if row.expect == Expect::Wrapped {
                    check::wrapped_by_peer(|to| peer.is_backend(to), &sent, &out)?;
                    peer.establish(row, &mut self.driver, &contender.subject, to)?;
                }
            }
        }
        self.driver.run(&contender.subject, &mut drive, 1_000)?;
        Ok(Some(Cell {
            drive,
            samples: Samples::default(),
        }))
    }

    fn check_ours(&self, row: &Row, got: u32, sent: &[u8], out: &[u8]) -> Result<()> {
        let drops = || self.world.dropped();
        ensure!(
            got == verdict(row.expect),
            "the verdict is {got}; drops: {:?}",
            drops()?
        );
        match row.expect {
            Expect::Wrapped => check::wrapped_by_us(&self.world.view, sent, out),
            Expect::Passed => {
                ensure!(sent == out, "the packet passes, but changed");
                Ok(())
            }
        }
    }

    /// The driver with nothing behind it, then with the contender: neighbours in time.
    fn time(&mut self, row: &Row, at: usize, cell: &mut Cell, packets: u32) -> Result<()> {
        let contender = &self.contenders[at];
        let mut idle = cell.drive;
        let mut alone = |nop: Nop| -> Result<f64> {
            Ok(self
                .driver
                .run(&contender.nops[nop as usize], &mut idle, packets)?
                .ns)
        };
        let own = match row.expect {
            // Of the two moves of the head, one is the driver's.
            Expect::Wrapped => f64::midpoint(alone(Nop::Tx)?, alone(Nop::Wrap)?),
            Expect::Passed => alone(Nop::Pass)?,
        };
        let run = self
            .driver
            .run(&contender.subject, &mut cell.drive, packets)?;
        let wrapped = if row.expect == Expect::Wrapped {
            packets
        } else {
            0
        };
        ensure!(
            run.verdict == verdict(row.expect) && run.wrapped == u64::from(wrapped),
            "of {packets} packets {} were wrapped, the last verdict is {}",
            run.wrapped,
            run.verdict
        );
        cell.samples.own.push(own);
        cell.samples.gross.push(run.ns);
        Ok(())
    }
}

fn ours(driver: &mut Driver, subject: Subject) -> Result<Contender> {
    Ok(Contender {
        nops: nops(driver, subject.frags)?,
        subject,
        services: World::services(),
        nothing: World::nothing(),
        kind: Kind::Ours,
    })
}

fn balancer(driver: &mut Driver, object: &PeerObject, program: Option<&str>) -> Result<Contender> {
    let peer = Peer::load(&object.path, program, world::SERVICES)?;
    let subject = peer.subject()?;
    let services = peer.services();
    Ok(Contender {
        nops: nops(driver, subject.frags)?,
        subject,
        services,
        nothing: Target {
            port: 22,
            port_step: 0,
            ..services
        },
        kind: Kind::Balancer(peer),
    })
}

fn nops(driver: &mut Driver, frags: bool) -> Result<[Subject; 3]> {
    Ok([
        driver.nop(Nop::Tx, frags)?,
        driver.nop(Nop::Pass, frags)?,
        driver.nop(Nop::Wrap, frags)?,
    ])
}

fn drops(world: &World) -> Result<u64> {
    Ok(world.dropped()?.iter().map(|(_, packets)| packets).sum())
}

const fn verdict(expect: Expect) -> u32 {
    match expect {
        Expect::Wrapped => XDP_TX,
        Expect::Passed => XDP_PASS,
    }
}
