//! Where the kernel puts fragments in order (docs/decisions/0011): a namespace that sends everything back
//! by the veth that it came in by. What it routes it first puts together, as connection tracking is
//! asked for there (`nf_defrag_ipv4`), and cuts again to the sizes that it had, the first one first.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    links::{self, REASSEMBLY_NEEDS_IT},
    netns::Netns,
    nft::Table,
    repair::Repairs,
};

/// Nothing is tracked: reassembly is ahead of both chains. The namespace says nothing itself.
const CHAINS: &str = "chain prerouting {\n\
         type filter hook prerouting priority raw; policy accept;\n\
         notrack\n\
     }\n\
     chain forward {\n\
         type filter hook forward priority filter; policy accept;\n\
         ct state untracked accept\n\
     }\n\
     chain output {\n\
         type filter hook output priority filter; policy drop;\n\
     }";

#[derive(Debug)]
pub struct Reassembly {
    path: PathBuf,
    /// Of the namespace that `table` was put into.
    cookie: Option<u64>,
    table: Table,
}

fn table() -> Table {
    Table::new(CHAINS, REASSEMBLY_NEEDS_IT)
}

impl Reassembly {
    pub fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join("reassembly"),
            cookie: None,
            table: table(),
        }
    }

    /// Makes what is missing and mends what differs. Returns the interface index of the node's side; zero
    /// for an uplink without a MAC, to which nothing could come back.
    ///
    /// # Errors
    /// Names the namespace, or the link and the step.
    pub async fn ensure(
        &mut self,
        uplink_mac: Option<[u8; 6]>,
        repairs: &mut Repairs,
    ) -> Result<u32> {
        let Some(mac) = uplink_mac else { return Ok(0) };
        let is_missing = Netns::open(&self.path).is_err();
        let netns = Netns::ensure(&self.path)?;
        let mut consequences = Repairs::default();
        let repairs = match is_missing {
            true => {
                let what = format!("network namespace {}", self.path.display());
                repairs.note(what, "missing", REASSEMBLY_NEEDS_IT);
                &mut consequences
            }
            false => repairs,
        };
        let cookie = netns.cookie()?;
        if self.cookie.replace(cookie) != Some(cookie) {
            self.table = table();
        }
        // With a number, its changes are heard of.
        links::namespace_id(&netns).await?;
        let ifindex = links::ensure_reassembly_links(&netns, mac, repairs).await?;
        self.table.ensure(Some(&netns), repairs).await?;
        Ok(ifindex)
    }

    /// Packets that did not become whole, as the kernel counts them (`ReasmFails`, RFC 2011).
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn failures(&self) -> Result<u64> {
        let Ok(netns) = Netns::open(&self.path) else {
            return Ok(0);
        };
        let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
        failures(&table).context("the kernel counts no failed reassembly")
    }

    /// Removes all of it, for a node that leaves.
    ///
    /// # Errors
    /// The first failure, after trying both.
    pub async fn remove(self) -> Result<()> {
        let links = links::remove_reassembly_links().await;
        let netns = match Netns::open(&self.path) {
            Ok(netns) => netns.remove(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        };
        links?;
        Ok(netns?)
    }
}

/// From `/proc/net/snmp`: for each protocol a line of names and one of numbers.
fn failures(table: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let counters: HashMap<_, _> = names
        .split_whitespace()
        .zip(numbers.split_whitespace())
        .collect();
    counters.get("ReasmFails")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::failures;

    #[test]
    fn failures_are_found_by_their_name() {
        let table =
            "Ip: Forwarding ReasmOKs ReasmFails FragOKs\nIp: 1 2 3 4\nIcmp: InMsgs\nIcmp: 9\n";
        assert_eq!(failures(table), Some(3));
        assert_eq!(failures("Ip: Forwarding\nIp: 1\n"), None);
        assert_eq!(failures(""), None);
    }
}
