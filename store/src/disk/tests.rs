//! Power failures at any operation.

use std::{path::PathBuf, sync::LazyLock};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use vault::DataKey;

use super::{Disk, Slot, failing::Failing};

const SEEDS: u64 = 12;

fn open(backend: Failing) -> Result<Disk, crate::StoreError> {
    // The same one in all lives of the disk.
    static VAULT: LazyLock<DataKey> = LazyLock::new(DataKey::generate);
    Disk::open_on(PathBuf::from("failing"), VAULT.clone(), backend)
}

/// A file is made under another name until it is whole, so no power fails before this.
fn new_image() -> Vec<u8> {
    let backend = Failing::with(Vec::new(), u64::MAX);
    drop(open(backend.clone()).unwrap());
    backend.synced()
}

/// What the disk said is done.
#[derive(Debug, Default)]
struct Acknowledged {
    /// Entries are their own index, from 1, and some padding.
    last: u64,
    snapshot: u64,
    vote: u64,
}

type Entry = (u64, Vec<u8>);

/// Appends, votes, takes snapshots and purges, until the power fails.
fn work(disk: &Disk, random: &mut StdRng, done: &mut Acknowledged) -> Result<(), super::DiskError> {
    loop {
        let next = done.last + 1;
        match random.random_range(0..10) {
            0 => {
                let state = vec![7; random.random_range(0..400_000)];
                disk.set_snapshot(&done.last, &state)?;
                done.snapshot = done.last;
                disk.purge(done.snapshot, &done.snapshot)?;
            }
            1 => {
                disk.set(Slot::Vote, &(done.vote + 1))?;
                done.vote += 1;
            }
            _ => {
                let count = random.random_range(1..5);
                let entries: Vec<(u64, Entry)> = (next..next + count)
                    .map(|index| (index, (index, vec![1; random.random_range(0..3000)])))
                    .collect();
                disk.append(&entries, &done.last)?;
                done.last += count;
            }
        }
    }
}

fn check(disk: &Disk, done: &Acknowledged) {
    let snapshot = disk.snapshot::<u64>().unwrap();
    let snapshot = snapshot.map_or(0, |snapshot| snapshot.meta);
    assert!(snapshot >= done.snapshot, "snapshot {snapshot}");
    let purged = disk.get::<u64>(Slot::Purged).unwrap().unwrap_or(0);
    assert!(purged <= snapshot, "purged {purged}, snapshot {snapshot}");
    let log: Vec<u64> = disk
        .log::<Entry>(..)
        .unwrap()
        .into_iter()
        .map(|(index, _)| index)
        .collect();
    let last = log.last().copied().unwrap_or(purged);
    assert!(log.iter().copied().eq(purged + 1..=last), "log {log:?}");
    assert!(last >= done.last, "log ends at {last}");
    assert!(last < done.last + 5, "log ends at {last}");
    let vote = disk.get::<u64>(Slot::Vote).unwrap().unwrap_or(0);
    assert!(vote == done.vote || vote == done.vote + 1, "vote {vote}");
}

/// Power failures at any operation, several in a row on one disk: what was acknowledged is there,
/// and nothing is there by half.
#[test]
fn power_failures_lose_nothing_acknowledged() {
    for seed in 0..SEEDS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut image = new_image();
        let mut done = Acknowledged::default();
        for round in 0..4 {
            let backend = Failing::with(image, random.random_range(1..400));
            if let Ok(disk) = open(backend.clone()) {
                work(&disk, &mut random, &mut done).expect_err("the power fails some time");
            }
            let kept = [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
            image = backend.after_failure(&mut random, kept);

            let disk = open(Failing::with(image.clone(), u64::MAX));
            let disk = disk.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
            println!("seed {seed}, round {round}, acknowledged {done:?}");
            check(&disk, &done);
            // Some of what was not acknowledged may be there: it counts from now on.
            done.last = disk
                .log_last::<Entry>()
                .unwrap()
                .map_or(done.last, |(index, _)| index);
            done.vote = disk.get(Slot::Vote).unwrap().unwrap_or(0);
        }
    }
}
