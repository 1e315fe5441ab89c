//! A disk whose power fails: what was not yet synced is there, gone, or torn, sector by sector.

use std::{
    io,
    sync::{Arc, Mutex},
};

use rand::{RngExt, rngs::StdRng};
use redb::StorageBackend;

const SECTOR: usize = 512;

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
pub(crate) struct Failing(Arc<Mutex<Platter>>);

impl Failing {
    /// With these contents, until after so many more operations.
    pub(crate) fn with(image: Vec<u8>, left: u64) -> Self {
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

    /// Has the power fail after so many more operations.
    pub(crate) fn fail_after(&self, left: u64) {
        self.0.lock().unwrap().left = left;
    }

    /// Has it not fail, if it has not yet.
    pub(crate) fn endure(&self) {
        if !self.has_failed() {
            self.fail_after(u64::MAX);
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().unwrap().left == 0
    }

    /// What is there for certain.
    pub(crate) fn synced(&self) -> Vec<u8> {
        self.0.lock().unwrap().synced.clone()
    }

    /// What is found later. `kept` is how likely an unsynced sector is there.
    pub(crate) fn after_failure(&self, random: &mut StdRng, kept: f64) -> Vec<u8> {
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
            for op in std::mem::take(&mut platter.unsynced) {
                match op {
                    Op::SetLen(len) => platter.synced.resize(len, 0),
                    Op::Write(offset, data) => write(&mut platter.synced, offset, &data),
                }
            }
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
