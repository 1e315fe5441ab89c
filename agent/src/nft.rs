//! Tables of nftables that are ours: one in each network namespace that needs any.

use std::{io, process::Stdio};

use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    runtime::Handle,
};

use crate::{netns::Netns, nft_generation, repair::Repairs};

const TABLE: &str = "swarmnet";

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run `nft`: {0}; install the package nftables")]
    Missing(#[source] io::Error),
    #[error("nft refused the table `{TABLE}`: {0}")]
    Refused(String),
}

/// The table of ours in a namespace. Other tables are never looked at.
#[derive(Debug)]
pub struct Table {
    /// As `nft` prints it, but for blanks.
    text: String,
    why: &'static str,
    /// As `nft` printed it.
    printed: Option<String>,
    /// Of the kernel's rules when they were last looked at: while it stays, nobody changed any.
    generation: Option<u32>,
}

impl Table {
    /// With these chains, and who needs them.
    pub fn new(chains: &str, why: &'static str) -> Self {
        Self {
            text: format!("table ip {TABLE} {{\n{chains}\n}}\n"),
            why,
            printed: None,
            generation: None,
        }
    }

    /// Puts the table in place when it is not there as it should be; in the calling thread's namespace
    /// without another one. One nftables transaction: never half there.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub async fn ensure(
        &mut self,
        netns: Option<&Netns>,
        repairs: &mut Repairs,
    ) -> Result<(), NftError> {
        // Read before the rules: a change in between is found the next time.
        let generation = match netns {
            Some(netns) => netns.run(nft_generation::read),
            None => nft_generation::read(),
        };
        let generation = generation.ok();
        if generation.is_some() && generation == self.generation {
            return Ok(());
        }
        let present = list(netns).await?;
        if present.is_none() || present != self.printed {
            let ours = present.as_deref().is_some_and(|text| self.is(text));
            if !ours {
                let replaced = format!("{}{}", removal(), self.text);
                nft(netns, &replaced).await?;
                let found = match present {
                    Some(_) => "altered",
                    None => "missing",
                };
                let place = netns.map_or_else(String::new, |netns| {
                    format!(" in {}", netns.path().display())
                });
                repairs.note(format!("nft table ip {TABLE}{place}"), found, self.why);
            }
            self.printed = list(netns).await?;
        }
        self.generation = generation;
        Ok(())
    }

    fn is(&self, printed: &str) -> bool {
        printed.split_whitespace().eq(self.text.split_whitespace())
    }
}

/// Also where there is none.
fn removal() -> String {
    format!("table ip {TABLE}\ndelete table ip {TABLE}\n")
}

/// Removes the table from the calling thread's namespace, for a node that leaves.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn remove() -> Result<(), NftError> {
    nft(None, &removal()).await
}

/// The table as `nft` prints it; `None` when there is none.
async fn list(netns: Option<&Netns>) -> Result<Option<String>, NftError> {
    let child = spawn(netns, &["list", "table", "ip", TABLE])?;
    let listed = child.wait_with_output().await.map_err(NftError::Missing)?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.status.success().then_some(text))
}

async fn nft(netns: Option<&Netns>, script: &str) -> Result<(), NftError> {
    let mut child = spawn(netns, &["-f", "-"])?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(script.as_bytes())
        .await
        .map_err(NftError::Missing)?;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(NftError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NftError::Refused(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// A process is born into the namespace of the thread that starts it.
fn spawn(netns: Option<&Netns>, arguments: &[&str]) -> Result<Child, NftError> {
    let spawn = || {
        Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let spawned = match netns {
        None => spawn(),
        Some(netns) => {
            let runtime = Handle::current();
            netns.run(move || {
                let _context = runtime.enter();
                spawn()
            })
        }
    };
    spawned.map_err(NftError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_ours_whatever_the_blanks_and_not_with_a_rule_more() {
        let table = Table::new("chain out { masquerade }", "");
        let printed = "table ip swarmnet {\n\tchain out {\n\t\tmasquerade }\n}\n";
        assert!(table.is(printed));
        assert!(!table.is(&printed.replace("masquerade", "drop")));
        assert!(!table.is(&printed.replace("masquerade", "counter drop masquerade")));
    }
}
