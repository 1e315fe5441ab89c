//! Where the daemon listens.

use std::{fmt, path::PathBuf, str::FromStr};

/// The daemon's socket when nothing else is said.
pub const DEFAULT: &str = "unix:///run/swarmnet/docker.sock";

/// An address of the API, as `--host`, `SWARMNET_HOST` and `DOCKER_HOST` write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Unix(PathBuf),
    /// `address:port`, without TLS.
    Tcp(String),
}

/// Text that names no host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("host `{0}` is not understood: want unix:///path/to/docker.sock or tcp://address:port")]
pub struct ParseHostError(String);

impl Host {
    /// The flag, else `SWARMNET_HOST` and then `DOCKER_HOST`, else [`DEFAULT`]. An empty value is
    /// no value.
    ///
    /// # Errors
    /// When the first one given names no host.
    pub fn choose(
        flag: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ParseHostError> {
        flag.map(str::to_owned)
            .or_else(|| env("SWARMNET_HOST").filter(|text| !text.is_empty()))
            .or_else(|| env("DOCKER_HOST").filter(|text| !text.is_empty()))
            .unwrap_or_else(|| DEFAULT.to_owned())
            .parse()
    }
}

impl FromStr for Host {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        let refused = || ParseHostError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return (path.starts_with('/'))
                .then(|| Self::Unix(path.into()))
                .ok_or_else(refused);
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let authority = text
            .strip_prefix("tcp://")
            .or_else(|| text.strip_prefix("http://"))
            .ok_or_else(refused)?
            .trim_end_matches('/');
        match authority.rsplit_once(':') {
            Some((addr, port)) if !addr.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(authority.to_owned()))
            }
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_wins_over_both_variables() {
        let env = |name: &str| Some(format!("unix:///{name}"));
        let none = |_: &str| None;
        assert_eq!(Host::choose(Some("/a"), env), Ok(Host::Unix("/a".into())));
        assert_eq!(
            Host::choose(None, env),
            Ok(Host::Unix("/SWARMNET_HOST".into()))
        );
        assert_eq!(Host::choose(None, none).unwrap().to_string(), DEFAULT);
    }

    #[test]
    fn empty_variable_is_passed_over() {
        let env = |name: &str| {
            Some(
                if name == "DOCKER_HOST" {
                    "tcp://h:1"
                } else {
                    ""
                }
                .into(),
            )
        };
        assert_eq!(Host::choose(None, env), Ok(Host::Tcp("h:1".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "unix://",
            "unix://a",
            "tcp://",
            "tcp://a",
            "tcp://:1",
            "tcp://a:x",
            "ssh://a",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }
}
