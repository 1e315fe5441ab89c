//! The key that locked managers want.

use std::{io::Write, process::Stdio};

use anyhow::{Context, Result};
use lab::Node;

/// `swarmnet unlock` with this key. Gives what it says when it is refused.
///
/// # Errors
/// When the command cannot be run.
pub fn unlock(node: &Node, key: &str) -> Result<Option<String>> {
    let mut child = node
        .command(&["unlock"])?
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("it was piped")?;
    stdin.write_all(format!("{key}\n").as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    Ok((!output.status.success()).then_some(said))
}
