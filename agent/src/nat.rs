//! The way out: what tasks send to the world leaves with the node's address.

use std::{io, process::Stdio};

use ipnet::Ipv4Net;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{links::GATEWAY_BRIDGE, nft_generation, repair::Repairs};

const TABLE: &str = "swarmnet";

#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error("cannot run `nft`: {0}; install the package nftables")]
    Missing(#[source] io::Error),
    #[error("nft refused the table `{TABLE}`: {0}")]
    Refused(String),
}

/// The node's own table. Other tables are never looked at.
#[derive(Debug, Default)]
pub struct Masquerade {
    /// As `nft` prints it.
    printed: Option<String>,
    /// Of the kernel's rules when they were last looked at: while it stays, nobody changed any.
    generation: Option<u32>,
}

impl Masquerade {
    /// Puts the table in place when it is not there as it should be. One nftables transaction:
    /// never half there.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub async fn ensure(&mut self, subnet: Ipv4Net, repairs: &mut Repairs) -> Result<(), NatError> {
        // Read before the rules: a change in between is found the next time.
        let generation = nft_generation::read().ok();
        if generation.is_some() && generation == self.generation {
            return Ok(());
        }
        let present = list().await?;
        if present.is_none() || present != self.printed {
            let ours = present.as_deref().is_some_and(|text| is_ours(text, subnet));
            if !ours {
                nft(&script(subnet)).await?;
                let found = match present {
                    Some(_) => "altered",
                    None => "missing",
                };
                let why = "what tasks send to the world leaves with the node's address";
                repairs.note(format!("nft table ip {TABLE}"), found, why);
            }
            self.printed = list().await?;
        }
        self.generation = generation;
        Ok(())
    }
}

fn script(subnet: Ipv4Net) -> String {
    format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\n{}\n",
        table(subnet)
    )
}

/// As `nft` prints it, but for blanks.
fn table(subnet: Ipv4Net) -> String {
    format!(
        "table ip {TABLE} {{\n\
             chain postrouting {{\n\
                 type nat hook postrouting priority srcnat; policy accept;\n\
                 ip saddr {subnet} oifname != \"{GATEWAY_BRIDGE}\" masquerade\n\
             }}\n\
         }}\n"
    )
}

fn is_ours(printed: &str, subnet: Ipv4Net) -> bool {
    printed
        .split_whitespace()
        .eq(table(subnet).split_whitespace())
}

/// The table as `nft` prints it; `None` when there is none.
async fn list() -> Result<Option<String>, NatError> {
    let listed = Command::new("nft")
        .args(["list", "table", "ip", TABLE])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(NatError::Missing)?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.status.success().then_some(text))
}

/// Removes the table, for a node that leaves.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn remove() -> Result<(), NatError> {
    nft(&format!("table ip {TABLE}\ndelete table ip {TABLE}\n")).await
}

async fn nft(script: &str) -> Result<(), NatError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NatError::Missing)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(script.as_bytes())
        .await
        .map_err(NatError::Missing)?;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(NatError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NatError::Refused(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_ours_whatever_the_blanks_and_not_with_a_rule_more() {
        let subnet = "172.18.0.0/16".parse().unwrap();
        let printed = "table ip swarmnet {\n\tchain postrouting {\n\t\ttype nat hook postrouting \
                       priority srcnat; policy accept;\n\t\tip saddr 172.18.0.0/16 oifname != \
                       \"sn_gwbridge\" masquerade\n\t}\n}\n";
        assert!(is_ours(printed, subnet));
        assert!(!is_ours(&printed.replace("masquerade", "drop"), subnet));
        let more = printed.replace("\t\tip saddr", "\t\tcounter drop\n\t\tip saddr");
        assert!(!is_ours(&more, subnet));
    }
}
