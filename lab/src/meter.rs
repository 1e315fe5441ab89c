//! Measurements between two hosts: TCP streams, one-byte requests on one connection or by UDP, and
//! whole connections with one request each. The far end is the `meter` binary.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    thread,
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

/// Bits a second that so many TCP connections together carry to the far end.
///
/// # Errors
/// When the far end does not answer.
pub fn streams(from: &Host, to: (Ipv4Addr, u16), count: usize, length: Duration) -> Result<f64> {
    from.within(|| {
        let started = Instant::now();
        // Threads inherit the namespace.
        thread::scope(|scope| {
            let streams: Vec<_> = (0..count)
                .map(|_| scope.spawn(|| stream(to, length)))
                .collect();
            let sent = streams.into_iter().map(|stream| {
                let outcome = stream.join();
                outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            let sent: u64 = sent.sum::<Result<u64>>()?;
            Ok(sent as f64 * 8.0 / started.elapsed().as_secs_f64())
        })
    })
}

/// Bytes that one connection carried. All of them have arrived when it returns.
fn stream(to: (Ipv4Addr, u16), length: Duration) -> Result<u64> {
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
    ensure!(
        u64::from_be_bytes(taken) == sent,
        "the far end missed bytes"
    );
    Ok(sent)
}

/// One-byte UDP requests, one after the other. A lost one counts for the time that it was waited
/// for.
///
/// # Errors
/// When the far end does not answer at all.
pub fn udp_request_response(
    from: &Host,
    to: (Ipv4Addr, u16),
    length: Duration,
) -> Result<Requests> {
    const PATIENCE: Duration = Duration::from_millis(200);
    from.within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut lost = 0;
        time_each(length, || {
            socket.send(b"?")?;
            if let Err(error) = socket.recv(&mut [0]) {
                lost += 1;
                ensure!(lost < 10, "no answer by UDP: {error}");
            }
            Ok(())
        })
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
