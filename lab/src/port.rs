//! Ports for tests that name one before they listen there.

use std::{
    iter,
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the range from which the kernel gives ports by itself (32768 to 60999), and below the mesh's.
static NEXT: AtomicU16 = AtomicU16::new(20_000);

/// A TCP port that is free at all addresses, that no other caller in this process is given, and that the
/// kernel gives nobody: one of its own choice could be a connection's a moment later.
pub fn free_port() -> u16 {
    let mut ports = iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok());
    free.expect("there is no end to them")
}
