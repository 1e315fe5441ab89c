//! From a build with another map layout to this one, without a packet noticing.
//!
//! The former build's programs stay on their hooks, with their maps, until this build's maps hold all
//! that the node needs: what the former ones held is carried over here, and the first sync brings it
//! to the view. Then every link gets this build's program. An upgrade and a downgrade are the same.
//!
//! What is carried over keeps its meaning because of a rule of the ABI crate: a value grows only at
//! its end, and a field that is not written is zero. So a value is cut or filled up with zeroes. A key
//! of another size is another map: its entries are left behind.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    maps::{MapInfo, MapType},
    util::nr_cpus,
};
use aya_obj::{Object, generated::bpf_map_type};
use tracing::{debug, info};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    bpffs::{Layout, PinDir},
    error::DatapathError,
    load::OBJECT,
    maps::MAP_NAMES,
    sys::{self, EntrySize, Existing},
};

/// What a map is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    kind: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// The maps of a build with another layout, whose programs are on the hooks.
#[derive(Debug)]
pub(crate) struct Heritage {
    former: Layout,
    /// Maps that were made anew though the former build has one of that name, with a hash of each of
    /// their entries that was copied.
    copied: BTreeMap<&'static str, HashSet<u64>>,
}

impl Heritage {
    /// Finds what another build left, and pins here what the programs wrote, where its shape has not
    /// changed: former and new programs then work on the same flows.
    ///
    /// To be called before this build's programs are loaded, as these take the maps they find.
    pub fn share(pins: &PinDir) -> Result<Option<Self>, DatapathError> {
        let Some(former) = pins.former()? else {
            return Ok(None);
        };
        pins.begin_anew()?;
        let wanted = Object::parse(OBJECT).map_err(|source| DatapathError::Load {
            source: Box::new(source.into()),
        })?;
        let mut copied = BTreeMap::new();
        for name in MAP_NAMES {
            let (from, to) = (former.maps().join(name), pins.maps().join(name));
            let Some(was) = Shape::of_pin(&from) else {
                info!(map.name = name, "the former build has no such map");
                continue;
            };
            let is_same = wanted.maps.get(name).and_then(Shape::of_object) == Some(was);
            if is_same && was.is_written_by_programs() {
                let map = open(&from, name)?;
                sys::pin(map.as_fd(), &to).map_err(|source| DatapathError::Pin {
                    action: "make",
                    path: to,
                    source,
                })?;
                debug!(map.name = name, "map shared with the former build");
            } else {
                copied.insert(name, HashSet::new());
            }
        }
        Ok(Some(Self { former, copied }))
    }

    pub fn former(&self) -> &Layout {
        &self.former
    }

    /// Copies what is not shared, once this build's maps are there.
    pub fn copy(&mut self, pins: &PinDir) -> Result<(), DatapathError> {
        self.copy_where(pins, |_| true, Existing::Replace)
    }

    /// Copies the flows that began or changed since they were copied last.
    pub fn copy_flows(&mut self, pins: &PinDir) -> Result<(), DatapathError> {
        self.copy_where(pins, Shape::is_flow_table, Existing::Replace)
    }

    /// As [`Self::copy_flows`], when this build's programs are at work already: what they wrote stays.
    pub fn copy_last_flows(&mut self, pins: &PinDir) -> Result<(), DatapathError> {
        self.copy_where(pins, Shape::is_flow_table, Existing::Keep)
    }

    fn copy_where(
        &mut self,
        pins: &PinDir,
        which: impl Fn(&Shape) -> bool,
        existing: Existing,
    ) -> Result<(), DatapathError> {
        for (name, done) in &mut self.copied {
            let (from, to) = (self.former.maps().join(name), pins.maps().join(name));
            let (Some(was), Some(is)) = (Shape::of_pin(&from), Shape::of_pin(&to)) else {
                continue;
            };
            if !which(&is) {
                continue;
            }
            if was.key != is.key || was.is_array() != is.is_array() {
                info!(
                    map.name = name,
                    "the former build's entries have another key"
                );
                continue;
            }
            let (from, to) = ((open(&from, name)?, was), (open(&to, name)?, is));
            let count =
                copy(from, to, existing, done).map_err(DatapathError::map_io(name, "copy"))?;
            debug!(
                map.name = name,
                map.entries = count,
                "copied from the former build"
            );
        }
        Ok(())
    }
}

impl Shape {
    fn of_pin(path: &Path) -> Option<Self> {
        let info = MapInfo::from_pin(path).ok()?;
        Some(Self {
            kind: info.map_type().ok()?,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }

    fn of_object(map: &aya_obj::Map) -> Option<Self> {
        let kind = bpf_map_type::try_from(map.map_type()).ok()?;
        Some(Self {
            kind: MapType::try_from(kind).ok()?,
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        })
    }

    /// Flow tables and counters. All other maps are the agent's, which writes them again.
    fn is_written_by_programs(&self) -> bool {
        self.is_flow_table() || self.is_per_cpu()
    }

    fn is_flow_table(&self) -> bool {
        matches!(self.kind, MapType::LruHash | MapType::LruPerCpuHash)
    }

    fn is_per_cpu(&self) -> bool {
        matches!(
            self.kind,
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash
        )
    }

    fn is_array(&self) -> bool {
        matches!(self.kind, MapType::Array | MapType::PerCpuArray)
    }

    /// Bytes of one value: of one CPU's, in per-CPU maps.
    fn value_len(&self) -> usize {
        let value = self.value as usize;
        if self.is_per_cpu() {
            return value.next_multiple_of(8);
        }
        value
    }
}

/// Copies entries that are not among those `done`. Returns how many were written.
fn copy(
    (from, was): (OwnedFd, Shape),
    (to, is): (OwnedFd, Shape),
    existing: Existing,
    done: &mut HashSet<u64>,
) -> io::Result<usize> {
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    let size = EntrySize {
        key: was.key as usize,
        value: was.value_len() * if was.is_per_cpu() { cpus } else { 1 },
    };
    let mut count = 0;
    sys::for_each_entry(from.as_fd(), size, |key, value| {
        // Elements of a new array are zero.
        if is.is_array() && (value.iter().all(|byte| *byte == 0) || index(key) >= is.entries) {
            return Ok(());
        }
        if !done.insert(xxh3_64_with_seed(value, xxh3_64(key))) {
            return Ok(());
        }
        let value = fit(value, was.value_len(), is.value_len());
        match sys::write_entry(to.as_fd(), key, &value, existing) {
            Ok(()) => count += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(count)
}

fn index(key: &[u8]) -> u32 {
    key.try_into().map_or(u32::MAX, u32::from_ne_bytes)
}

/// Each of the values that follow one another, `from` bytes long, cut or filled up to `to` bytes.
fn fit(values: &[u8], from: usize, to: usize) -> Vec<u8> {
    values
        .chunks(from)
        .flat_map(|value| value.iter().copied().chain(std::iter::repeat(0)).take(to))
        .collect()
}

fn open(path: &Path, name: &'static str) -> Result<OwnedFd, DatapathError> {
    sys::open_pin(path).map_err(DatapathError::map_io(name, "open"))
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn values_are_cut_or_filled_up_each_by_itself() {
        assert_eq!(fit(&[1, 2, 3, 4], 2, 3), [1, 2, 0, 3, 4, 0]);
        assert_eq!(fit(&[1, 2, 3, 4], 2, 1), [1, 3]);
        assert_eq!(fit(&[1, 2], 2, 2), [1, 2]);
    }
}
