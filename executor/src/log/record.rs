//! One record: a line of output, or a piece of a long one.

use std::io::Write;

use jiff::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub time: Timestamp,
    pub stream: LogStream,
    /// The line goes on in the stream's next record.
    pub partial: bool,
    /// Without the newline.
    pub message: Vec<u8>,
}

/// Appends a record as a line of the log file.
pub(super) fn encode(
    out: &mut Vec<u8>,
    time: Timestamp,
    stream: LogStream,
    partial: bool,
    message: &[u8],
) {
    let stream = stream.as_str();
    let tag = if partial { 'P' } else { 'F' };
    write!(out, "{time:.9} {stream} {tag} ").expect("a vector takes all bytes");
    out.extend_from_slice(message);
    out.push(b'\n');
}

impl LogRecord {
    /// Reads a line of the log file, without its newline. `None` for what [`encode`] did not write.
    pub(super) fn decode(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let time = text()?.parse().ok()?;
        let stream = match text()? {
            "stdout" => LogStream::Stdout,
            "stderr" => LogStream::Stderr,
            _ => return None,
        };
        let partial = match text()? {
            "P" => true,
            "F" => false,
            _ => return None,
        };
        Some(Self {
            time,
            stream,
            partial,
            message: fields.next()?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_with_nine_digits_and_any_bytes() {
        let time: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let mut line = Vec::new();
        encode(&mut line, time, LogStream::Stderr, true, b" a \xff b ");
        assert_eq!(
            line,
            b"2026-01-02T03:04:05.600000000Z stderr P  a \xff b \n"
        );
        let record = LogRecord::decode(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(
            record,
            LogRecord {
                time,
                stream: LogStream::Stderr,
                partial: true,
                message: b" a \xff b ".to_vec()
            }
        );
    }

    #[test]
    fn what_is_no_record_is_none() {
        for line in [
            &b""[..],
            b"x",
            b"2026-01-02T03:04:05Z stdout F",
            b"2026-01-02T03:04:05Z std F x",
        ] {
            assert_eq!(LogRecord::decode(line), None);
        }
    }
}
