//! `PORTS`, through a mapping of its memory.

use std::{os::fd::AsFd, path::Path, sync::atomic::Ordering};

use aya::maps::{Array, IterableMap as _, MapData};
use dataplane_abi::{
    Be16, PortWord,
    ports::{PORTS_LEN, port_at, port_index},
};
use imbl::OrdMap;

use crate::{error::DatapathError, maps::open, sys::MappedWords, tables::Port};

pub(crate) struct PortMap(MappedWords);

impl PortMap {
    /// Opens the map pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        let map: Array<MapData, u32> = open(dir, "PORTS")?;
        let words = MappedWords::new(map.map().fd().as_fd(), PORTS_LEN);
        words
            .map(Self)
            .map_err(DatapathError::map_io("PORTS", "map into memory"))
    }

    /// The ports that lead anywhere.
    pub fn read(&self) -> OrdMap<Port, PortWord> {
        let words = self.0.iter().map(|at| at.word.load(Ordering::Relaxed));
        (0..)
            .zip(words)
            .filter(|(_, raw)| *raw != 0)
            .map(|(index, raw)| {
                let (proto, number) = port_at(index);
                (Port { proto, number }, PortWord::from_raw(raw))
            })
            .collect()
    }

    /// One store, after all that was written before: a program that reads the new word finds the
    /// frontend that it names. A protocol without ports has no word.
    pub fn set(&self, port: Port, word: PortWord) {
        if let Some(index) = port_index(port.proto, Be16::from_host(port.number)) {
            let at = &self.0[index as usize];
            at.word.store(word.to_raw(), Ordering::Release);
        }
    }
}
