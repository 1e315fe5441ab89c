//! A node's API without a client in between: what is timed is the cluster, not a command's start.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub struct Api {
    socket: PathBuf,
}

impl Api {
    pub fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// # Errors
    /// With the API's own message when it refuses.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, "")
    }

    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut socket = UnixStream::connect(&self.socket)
            .with_context(|| format!("no API at {}", self.socket.display()))?;
        // HTTP/1.0: the answer is whole, and ends with the connection.
        write!(
            socket,
            "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            bail!("{method} {path}: {status}: {}", body.trim());
        }
        if body.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(body).with_context(|| format!("{method} {path}: no JSON: {body}"))
    }
}
