//! `service logs`: the last records, those since a time, and those to come.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::{LogRecord, log_numbers, log_path};
use crate::{pidfd::async_fd, task_dir::EXIT_FILE};

/// Which records to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Only the last so many records of those there are; `None` is all.
    pub tail: Option<usize>,
    /// Only records of this time and later.
    pub since: Option<Timestamp>,
    /// Go on with what the task writes, until it has ended.
    pub follow: bool,
}

/// Reads a task's records in order. Its small file reads are done in place: they come from the page
/// cache or take as long as a local disk does.
pub struct LogReader {
    dir: PathBuf,
    since: Option<Timestamp>,
    /// Present when following: wakes on every change in the directory.
    watch: Option<AsyncFd<OwnedFd>>,
    /// The file being read, and its number.
    current: Option<(u64, File)>,
    /// Bytes read of `current` that no record was made of yet.
    unread: Vec<u8>,
    /// Where in `unread` the next record begins.
    at: usize,
}

/// Read from a file at once.
const CHUNK_BYTES: usize = 64 << 10;

impl LogReader {
    /// # Errors
    /// When the task's directory is gone. Needs a tokio runtime when following.
    pub(crate) fn open(dir: &Path, query: LogQuery) -> io::Result<Self> {
        let mut reader = Self {
            dir: dir.to_owned(),
            since: query.since,
            watch: query.follow.then(|| watch(dir)).transpose()?,
            current: None,
            unread: Vec::new(),
            at: 0,
        };
        if let Some(tail) = query.tail {
            reader.seek_to_tail(tail)?;
        }
        Ok(reader)
    }

    /// The next record, or `None` at the end: of what there is, or when following, of the task.
    /// Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Option<LogRecord>> {
        loop {
            // Asked before reading: what the task wrote before it ended is then read below.
            let ended = self.watch.is_none() || self.dir.join(EXIT_FILE).exists();
            if let Some(record) = self.next_present()? {
                return Ok(Some(record));
            }
            match &self.watch {
                Some(watch) if !ended && self.dir.exists() => wait_for_change(watch).await?,
                _ => return Ok(None),
            }
        }
    }

    /// The next record that is in the files already.
    fn next_present(&mut self) -> io::Result<Option<LogRecord>> {
        loop {
            while let Some(record) = self.next_buffered() {
                let wanted =
                    |record: &LogRecord| self.since.is_none_or(|since| record.time >= since);
                match record {
                    Some(record) if wanted(&record) => return Ok(Some(record)),
                    _ => continue,
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Takes a line off the buffer; the inner `None` is one that is no record.
    fn next_buffered(&mut self) -> Option<Option<LogRecord>> {
        let rest = &self.unread[self.at..];
        let len = rest.iter().position(|byte| *byte == b'\n')?;
        let record = LogRecord::decode(&rest[..len]);
        self.at += len + 1;
        Some(record)
    }

    /// Reads on, in the next file when this one is at its end. False when there is no more.
    fn fill(&mut self) -> io::Result<bool> {
        self.unread.drain(..self.at);
        self.at = 0;
        loop {
            // The list comes before the read: a newer file in it means that this one is complete.
            let newest = log_numbers(&self.dir).unwrap_or_default();
            if self.read_chunk()? > 0 {
                return Ok(true);
            }
            let number = self.current.as_ref().map_or(0, |(number, _)| *number);
            let Some(next) = newest.into_iter().find(|next| *next > number) else {
                return Ok(false);
            };
            match File::open(log_path(&self.dir, next)) {
                Ok(file) => self.current = Some((next, file)),
                // Rotated away since; a later one is there.
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                Err(err) => return Err(err),
            }
            self.unread.clear();
        }
    }

    fn read_chunk(&mut self) -> io::Result<usize> {
        let Some((_, file)) = &mut self.current else {
            return Ok(0);
        };
        let len = self.unread.len();
        self.unread.resize(len + CHUNK_BYTES, 0);
        let read = file.read(&mut self.unread[len..]);
        self.unread.truncate(len + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Puts the reader before the last `tail` records of all files.
    fn seek_to_tail(&mut self, tail: usize) -> io::Result<()> {
        let mut wanted = tail;
        for number in log_numbers(&self.dir)?.into_iter().rev() {
            let mut file = match File::open(log_path(&self.dir, number)) {
                Ok(file) => file,
                Err(err) if err.kind() == io::ErrorKind::NotFound => break,
                Err(err) => return Err(err),
            };
            let found = seek_back(&mut file, wanted)?;
            wanted -= found;
            self.current = Some((number, file));
            if wanted == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Puts `file` at the beginning of its last `lines` whole lines, or at its beginning when it has
/// fewer. Returns how many follow.
fn seek_back(file: &mut File, lines: usize) -> io::Result<usize> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut newlines = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut chunk[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(chunk)?;
        for (at, _) in chunk
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            // The newline before the wanted lines: one more than there are wanted lines.
            if newlines == lines {
                file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                return Ok(lines);
            }
            newlines += 1;
        }
        end = start;
    }
    file.rewind()?;
    Ok(newlines)
}

fn watch(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let changes = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(dir, changes)?;
    async_fd(inotify.into())
}

/// Waits for any change and forgets all that are queued.
async fn wait_for_change(watch: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = watch.readable().await?;
    let mut events = [0; 4096];
    loop {
        match nix::unistd::read(watch.get_ref().as_fd(), &mut events) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(err) => return Err(err.into()),
        }
    }
    ready.clear_ready();
    Ok(())
}
