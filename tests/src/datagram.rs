//! Datagrams of a chosen length, and what the sender learns about the way.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Host, wait_for};
use nix::libc;

/// Nothing that arrives takes longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// IPv4 and UDP headers.
const HEADERS_LEN: u32 = 20 + 8;

/// Who may fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// Routers, and the sender where its interface asks for it.
    Allowed,
    /// Nobody: routers report what does not fit.
    Forbidden,
}

/// A connected socket.
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// # Errors
    /// What the kernel said.
    pub fn from(host: &Host, to: (Ipv4Addr, u16), fragments: Fragments) -> Result<Self> {
        let socket = host.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let discover = match fragments {
            Fragments::Allowed => libc::IP_PMTUDISC_INTERFACE,
            Fragments::Forbidden => libc::IP_PMTUDISC_DO,
        };
        // SAFETY: the option takes an integer, which is passed with its size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const discover).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        ensure!(set == 0, "IP_MTU_DISCOVER: {}", io::Error::last_os_error());
        Ok(Self { socket })
    }

    /// Sends one that is so long as an IPv4 packet.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, ip_len: u32) -> io::Result<()> {
        let payload = vec![b'x'; (ip_len - HEADERS_LEN) as usize];
        self.socket.send(&payload).map(drop)
    }

    /// Sends one and waits for the server's answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn ask(&self, ip_len: u32) -> Result<()> {
        self.send(ip_len)
            .with_context(|| format!("cannot send a packet of {ip_len}"))?;
        let answer = self.receive();
        answer
            .with_context(|| format!("no answer to a packet of {ip_len}"))
            .map(drop)
    }

    /// # Errors
    /// A timeout, or what the kernel heard of an earlier packet.
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        let length = self.socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Sends packets of this length until the sender has heard what fits, and gives that.
    ///
    /// # Errors
    /// When it hears nothing: a black hole.
    pub fn learn_mtu(&self, too_long: u32) -> Result<u32> {
        wait_for(&format!("word that {too_long} bytes do not fit"), || {
            // An error waiting from an earlier packet shows here too.
            let _ = self.send(too_long);
            let mtu = self.mtu()?;
            // The last word waits as an error of the socket.
            drop(self.socket.take_error()?);
            Ok((mtu < too_long).then_some(mtu))
        })
    }

    fn mtu(&self) -> Result<u32> {
        let mut mtu: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `mtu`, which has as many.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU,
                (&raw mut mtu).cast(),
                &raw mut len,
            )
        };
        ensure!(got == 0, "IP_MTU: {}", io::Error::last_os_error());
        Ok(mtu as u32)
    }
}
