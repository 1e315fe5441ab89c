//! A disk whose power fails: what was not yet synced is there, gone, or torn, sector by sector.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use redb::StorageBackend;
use vault::DataKey;

use super::{Disk, Slot};

const SECTOR: usize = 512;
const SEEDS: u64 = 12;

#[derive(Debug, Clone)]
enum Op {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug)]
struct Platter {
    /// What a read sees.
    cached: Vec<u8>,
    /// What is there after the power failed, whatever comes.
    synced: Vec<u8>,
    unsynced: Vec<Op>,
    /// Operations until the power fails.
    left: u64,
}

/// A clone is the same disk.
#[derive(Debug, Clone)]
struct Failing(Arc<Mutex<Platter>>);

impl Failing {
    fn with(image: Vec<u8>, left: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            cached: image.clone(),
            synced: image,
            unsynced: Vec::new(),
            left,
        })))
    }

    /// One more operation, unless the power has failed.
    fn operate<T>(&self, f: impl FnOnce(&mut Platter) -> T) -> io::Result<T> {
        let mut platter = self.0.lock().unwrap();
        platter.left = platter
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("the power failed"))?;
        Ok(f(&mut platter))
    }

    /// What is found later. `kept` is how likely an unsynced sector is there.
    fn after_failure(&self, random: &mut StdRng, kept: f64) -> Vec<u8> {
        let platter = self.0.lock().unwrap();
        let mut image = platter.synced.clone();
        for op in &platter.unsynced {
            match op {
                Op::SetLen(len) if random.random_bool(kept) => image.resize(*len, 0),
                Op::SetLen(_) => {}
                Op::Write(offset, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if random.random_bool(kept) {
                            write(&mut image, offset + number * SECTOR, sector);
                        }
                    }
                }
            }
        }
        image
    }
}

fn write(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(data);
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let found = platter.cached.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.operate(|platter| {
            platter.cached.resize(len, 0);
            platter.unsynced.push(Op::SetLen(len));
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|platter| {
            platter.synced.clone_from(&platter.cached);
            platter.unsynced.clear();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.operate(|platter| {
            write(&mut platter.cached, offset, data);
            platter.unsynced.push(Op::Write(offset, data.to_vec()));
        })
    }
}

fn open(backend: Failing) -> Result<Disk, crate::StoreError> {
    // The same one in all lives of the disk.
    static VAULT: LazyLock<DataKey> = LazyLock::new(DataKey::generate);
    Disk::open_on(PathBuf::from("failing"), VAULT.clone(), backend)
}

/// A file is made under another name until it is whole, so no power fails before this.
fn new_image() -> Vec<u8> {
    let backend = Failing::with(Vec::new(), u64::MAX);
    drop(open(backend.clone()).unwrap());
    backend.0.lock().unwrap().synced.clone()
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
