//! Placement preferences and host entries: short texts that the API spells out.

use anyhow::{Context, Result};
use bollard_stubs::models::{TaskSpecPlacementPreferences, TaskSpecPlacementSpread};

/// `spread=node.labels.zone`.
///
/// # Errors
/// Any other strategy.
pub fn preference(text: &str) -> Result<TaskSpecPlacementPreferences> {
    let descriptor = text
        .strip_prefix("spread=")
        .filter(|descriptor| !descriptor.is_empty())
        .with_context(|| {
            format!("invalid placement preference `{text}`: want spread=node.labels.NAME")
        })?;
    Ok(TaskSpecPlacementPreferences {
        spread: Some(TaskSpecPlacementSpread {
            spread_descriptor: Some(descriptor.to_owned()),
        }),
    })
}

/// `name:address`, as a line of `/etc/hosts`.
///
/// # Errors
/// A text without both, or with an address that is none.
pub fn extra_host(text: &str) -> Result<String> {
    let invalid = || format!("invalid host `{text}`: want NAME:ADDRESS");
    let (name, addr) = text.split_once(':').with_context(invalid)?;
    let addr: std::net::IpAddr = addr
        .trim_matches(['[', ']'])
        .parse()
        .ok()
        .with_context(invalid)?;
    if name.is_empty() {
        anyhow::bail!(invalid());
    }
    Ok(format!("{addr} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spread_is_a_strategy() {
        assert!(preference("spread=node.labels.a").is_ok());
        assert!(preference("spread=").is_err());
        assert!(preference("pack=node.labels.a").is_err());
    }

    #[test]
    fn hosts_become_lines() {
        assert_eq!(extra_host("db:1.2.3.4").unwrap(), "1.2.3.4 db");
        assert_eq!(extra_host("db:fd00::1").unwrap(), "fd00::1 db");
        for text in ["db", "db:x", ":1.2.3.4", ""] {
            assert!(extra_host(text).is_err(), "{text}");
        }
    }
}
