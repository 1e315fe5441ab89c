//! Signals as Docker writes them.

use std::{fmt, str::FromStr};

use nix::sys::signal::Signal;

/// A signal a task is stopped with: `SIGQUIT`, `quit`, `3` or `SIGRTMIN+3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal(i32);

/// Text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {0}; want a name as SIGTERM or a number from 1 to 64")]
pub struct ParseSignalError(String);

/// The highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

impl StopSignal {
    pub const TERM: Self = Self(libc::SIGTERM);
    pub const KILL: Self = Self(libc::SIGKILL);

    pub(crate) const fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for StopSignal {
    type Err = ParseSignalError;

    fn from_str(text: &str) -> Result<Self, ParseSignalError> {
        let name = text.trim().to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        let number = match name.parse() {
            Ok(number) => Some(number),
            Err(_) => real_time(name).or_else(|| {
                let signal: Signal = format!("SIG{name}").parse().ok()?;
                Some(signal as i32)
            }),
        };
        match number {
            Some(number @ 1..=SIGNAL_MAX) => Ok(Self(number)),
            _ => Err(ParseSignalError(text.to_owned())),
        }
    }
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
fn real_time(name: &str) -> Option<i32> {
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = match offset {
            "" => 0,
            _ => offset.strip_prefix('+')?.parse().ok()?,
        };
        return libc::SIGRTMIN().checked_add(offset);
    }
    let offset: i32 = match name.strip_prefix("RTMAX")? {
        "" => 0,
        offset => offset.strip_prefix('-')?.parse().ok()?,
    };
    libc::SIGRTMAX().checked_sub(offset)
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_spellings_name_the_same_signal() {
        for text in ["SIGQUIT", "QUIT", "quit", "sigquit", "3", " 3 "] {
            assert_eq!(text.parse(), Ok(StopSignal(libc::SIGQUIT)), "{text}");
        }
        assert_eq!("RTMIN+3".parse(), Ok(StopSignal(37)));
        assert_eq!("SIGRTMAX-1".parse(), Ok(StopSignal(63)));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "SIG",
            "SIGFOO",
            "RTMIN+99",
            "RTMINx",
            "RTMIN+2147483647",
        ] {
            assert!(text.parse::<StopSignal>().is_err(), "{text}");
        }
    }
}
