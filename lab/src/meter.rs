//! Measurements between two hosts: a TCP stream, one-byte requests on one connection, and whole
//! connections with one request each. The far end is the `meter` binary.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::Host;

/// What the first byte of a connection asks the far end for.
pub const STREAM: u8 = b'S';
pub const ECHO: u8 = b'E';
/// Bytes a write of the stream.
pub const CHUNK: usize = 256 * 1024;

/// Latencies of many requests, in microseconds, and how many there were a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requests {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Bits a second that one TCP connection carries to the far end.
///
/// # Errors
/// When the far end does not answer.
pub fn stream(from: &Host, to: (Ipv4Addr, u16), length: Duration) -> Result<f64> {
    from.within(|| {
        let mut socket = TcpStream::connect(to)?;
        socket.write_all(&[STREAM])?;
        let chunk = vec![0; CHUNK];
        let started = Instant::now();
        let mut sent = 0u64;
        while started.elapsed() < length {
            socket.write_all(&chunk)?;
            sent += CHUNK as u64;
        }
        socket.shutdown(std::net::Shutdown::Write)?;
        // The far end says how much it took when it has all of it.
        let mut taken = [0; 8];
        socket.read_exact(&mut taken)?;
        let elapsed = started.elapsed();
        ensure!(
            u64::from_be_bytes(taken) == sent,
            "the far end missed bytes"
        );
        Ok(sent as f64 * 8.0 / elapsed.as_secs_f64())
    })
}

/// One-byte requests, one after the other, on one connection.
///
/// # Errors
/// When the far end does not answer.
pub fn request_response(from: &Host, to: (Ipv4Addr, u16), length: Duration) -> Result<Requests> {
    from.within(|| {
        let mut socket = TcpStream::connect(to)?;
        socket.set_nodelay(true)?;
        socket.write_all(&[ECHO])?;
        time_each(length, || {
            socket.write_all(b"?")?;
            Ok(socket.read_exact(&mut [0])?)
        })
    })
}

/// Connect, one-byte request, answer, close; one after the other.
///
/// # Errors
/// When the far end does not answer.
pub fn connect_request_response(
    from: &Host,
    to: (Ipv4Addr, u16),
    length: Duration,
) -> Result<Requests> {
    from.within(|| {
        time_each(length, || {
            let mut socket = TcpStream::connect(to)?;
            socket.set_nodelay(true)?;
            // Ends without TIME_WAIT, so that ports do not run out.
            nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::Linger,
                &nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                },
            )?;
            socket.write_all(&[ECHO, b'?'])?;
            Ok(socket.read_exact(&mut [0])?)
        })
    })
}

fn time_each(length: Duration, mut request: impl FnMut() -> Result<()>) -> Result<Requests> {
    let started = Instant::now();
    let mut took = Vec::new();
    while started.elapsed() < length {
        let asked = Instant::now();
        request()?;
        took.push(asked.elapsed());
    }
    let elapsed = started.elapsed();
    took.sort_unstable();
    ensure!(!took.is_empty(), "no request was answered");
    let quantile = |share: f64| {
        let nth = ((took.len() - 1) as f64 * share).round() as usize;
        took[nth].as_secs_f64() * 1e6
    };
    Ok(Requests {
        per_second: took.len() as f64 / elapsed.as_secs_f64(),
        p50_us: quantile(0.50),
        p99_us: quantile(0.99),
    })
}
