//! The shim's side: bytes of two streams become records in bounded files.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use jiff::Timestamp;

use super::{LogLimits, LogStream, log_numbers, log_path, record::encode};

/// A longer line is cut into records of this size, as Docker does.
const RECORD_BYTES_MAX: usize = 16 << 10;

pub(crate) struct LogWriter {
    dir: PathBuf,
    limits: LogLimits,
    number: u64,
    file: File,
    written: u64,
    /// What came after the last newline, of stdout and stderr.
    open_lines: [Vec<u8>; 2],
}

impl LogWriter {
    /// Begins a new file in `dir`.
    pub fn create(dir: PathBuf, limits: LogLimits) -> io::Result<Self> {
        let number = log_numbers(&dir)?.last().map_or(1, |last| last + 1);
        Ok(Self {
            file: File::create(log_path(&dir, number))?,
            dir,
            limits,
            number,
            written: 0,
            open_lines: [Vec::new(), Vec::new()],
        })
    }

    /// Appends output; whole lines are in the file when this returns.
    pub fn write(&mut self, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        let time = Timestamp::now();
        let open = &mut self.open_lines[stream as usize];
        let mut records = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = piece.strip_suffix(b"\n");
            open.extend_from_slice(line.unwrap_or(piece));
            let mut rest = open.as_slice();
            while rest.len() > RECORD_BYTES_MAX {
                let (record, after) = rest.split_at(RECORD_BYTES_MAX);
                encode(&mut records, time, stream, true, record);
                rest = after;
            }
            if line.is_some() {
                encode(&mut records, time, stream, false, rest);
                rest = &[];
            }
            open.drain(..open.len() - rest.len());
        }
        self.append(&records)
    }

    /// Writes the lines that never got their newline. The end of the output.
    pub fn finish(mut self) -> io::Result<()> {
        let time = Timestamp::now();
        let mut records = Vec::new();
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let open = std::mem::take(&mut self.open_lines[stream as usize]);
            if !open.is_empty() {
                encode(&mut records, time, stream, true, &open);
            }
        }
        self.append(&records)
    }

    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.written >= self.limits.file_bytes {
            self.rotate()?;
        }
        self.written += records.len() as u64;
        self.file.write_all(records)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = File::create(log_path(&self.dir, self.number + 1))?;
        self.number += 1;
        self.written = 0;
        let numbers = log_numbers(&self.dir)?;
        let surplus = numbers.len().saturating_sub(self.limits.files);
        for number in &numbers[..surplus] {
            fs::remove_file(log_path(&self.dir, *number))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogQuery, LogReader};

    async fn read(dir: &std::path::Path, tail: Option<usize>) -> Vec<(bool, Vec<u8>)> {
        let query = LogQuery {
            tail,
            ..LogQuery::default()
        };
        let mut reader = LogReader::open(dir, query).unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next().await.unwrap() {
            records.push((record.partial, record.message));
        }
        records
    }

    /// However the bytes arrive, the pieces of a long line put together are the line.
    #[tokio::test]
    async fn a_long_line_is_cut_and_can_be_put_together() {
        let line: Vec<u8> = (0..40_000u32).map(|at| b'a' + (at % 26) as u8).collect();
        let written = [line.as_slice(), b"\n\nshort\n"].concat();
        for chunk in [
            1,
            1000,
            RECORD_BYTES_MAX,
            RECORD_BYTES_MAX + 1,
            written.len(),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut log = LogWriter::create(dir.path().to_owned(), LogLimits::default()).unwrap();
            for bytes in written.chunks(chunk) {
                log.write(LogStream::Stdout, bytes).unwrap();
            }
            log.finish().unwrap();
            let records = read(dir.path(), None).await;
            let partial: Vec<bool> = records.iter().map(|(partial, _)| *partial).collect();
            assert_eq!(
                partial,
                [true, true, false, false, false],
                "chunks of {chunk}"
            );
            let whole = records[..3].iter().flat_map(|(_, piece)| piece.clone());
            assert!(whole.eq(line.iter().copied()));
            assert_eq!(records[3..], [(false, vec![]), (false, b"short".to_vec())]);
        }
    }

    #[tokio::test]
    async fn the_oldest_files_go_and_the_tail_spans_files() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            file_bytes: 100,
            files: 3,
        };
        let mut log = LogWriter::create(dir.path().to_owned(), limits).unwrap();
        for number in 0..100 {
            log.write(LogStream::Stderr, format!("{number:04}\n").as_bytes())
                .unwrap();
        }
        assert_eq!(log_numbers(dir.path()).unwrap().len(), 3);
        let messages = |records: Vec<(bool, Vec<u8>)>| -> Vec<String> {
            records
                .into_iter()
                .map(|(_, m)| String::from_utf8(m).unwrap())
                .collect()
        };
        let all = messages(read(dir.path(), None).await);
        assert_eq!(all.last().unwrap(), "0099");
        assert!((6..=9).contains(&all.len()), "{all:?}");
        let tail = messages(read(dir.path(), Some(4)).await);
        assert_eq!(tail, ["0096", "0097", "0098", "0099"]);
    }
}
