//! The way out: what tasks send to the world leaves with the node's address.

use std::{io, process::Stdio};

use ipnet::Ipv4Net;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::links::GATEWAY_BRIDGE;

const TABLE: &str = "swarmnet";

#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error("cannot run `nft`: {0}; install the package nftables")]
    Missing(#[source] io::Error),
    #[error("nft refused the table `{TABLE}`: {0}")]
    Refused(String),
}

/// Puts the masquerade rule in place when it is not. One nftables transaction: never half there.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn ensure_masquerade(subnet: Ipv4Net) -> Result<(), NatError> {
    if is_in_place(subnet).await? {
        return Ok(());
    }
    nft(&format!(
        "table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
             chain postrouting {{\n\
                 type nat hook postrouting priority srcnat; policy accept;\n\
                 {}\n\
             }}\n\
         }}\n",
        rule(subnet)
    ))
    .await
}

/// As `nft` prints it too.
fn rule(subnet: Ipv4Net) -> String {
    format!("ip saddr {subnet} oifname != \"{GATEWAY_BRIDGE}\" masquerade")
}

async fn is_in_place(subnet: Ipv4Net) -> Result<bool, NatError> {
    let listed = Command::new("nft")
        .args(["list", "chain", "ip", TABLE, "postrouting"])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(NatError::Missing)?;
    let rule = rule(subnet);
    Ok(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains(&rule))
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
