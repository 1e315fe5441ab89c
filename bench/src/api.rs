//! A node's API without a client in between: what is timed is the cluster, not a command's start.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

#[derive(Clone)]
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
        answer_of(method, path, status, body)
    }
}

fn answer_of(method: &str, path: &str, status: &str, body: &str) -> Result<Value> {
    if !status.starts_with('2') {
        bail!("{method} {path}: {status}: {}", body.trim());
    }
    if body.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(body).with_context(|| format!("{method} {path}: no JSON: {body}"))
}

/// A connection that serves one request after the other, for what asks often.
pub struct Connection {
    socket: BufReader<UnixStream>,
}

impl Connection {
    /// # Errors
    /// When nobody listens.
    pub fn open(socket: &Path) -> Result<Self> {
        let connected = UnixStream::connect(socket);
        let connected = connected.with_context(|| format!("no API at {}", socket.display()))?;
        Ok(Self {
            socket: BufReader::new(connected),
        })
    }

    /// # Errors
    /// With the API's own message when it refuses.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        self.ask("GET", path, "")
    }

    /// # Errors
    /// As [`Self::get`].
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: swarmnet\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.socket.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let status = status.split_whitespace().nth(1).unwrap_or_default();
        let mut length = 0;
        loop {
            let header = self.line()?.to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", how)) => bail!("{path} is answered {how}"),
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        self.socket.read_exact(&mut body)?;
        answer_of(method, path, status, std::str::from_utf8(&body)?)
    }

    /// Without its end; empty after the last header.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.socket.read_line(&mut line)? > 0, "the API hung up");
        Ok(line.trim_end().to_owned())
    }
}
