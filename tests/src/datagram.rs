//! Datagrams of a chosen length, and what the sender learns about the way.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, wait_for};
use nix::{
    libc,
    sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn},
};

/// Nothing that arrives takes longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// IPv4 and UDP headers.
const HEADERS_LEN: u32 = 20 + 8;
/// Of a datagram's three.
const PIECE_LEN: usize = 1200;
/// Of IPv4's flags.
const MORE_FRAGMENTS: u16 = 0x2000;

/// Who may fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragments {
    /// Routers, and the sender where its interface asks for it.
    Allowed,
    /// Nobody: routers report what does not fit.
    Forbidden,
}

/// A client whose datagrams come in three fragments, in an order of its choice.
pub struct Pieces {
    socket: UdpSocket,
    /// For packets with headers of one's own.
    raw: OwnedFd,
}

impl Pieces {
    /// # Errors
    /// What the kernel said.
    pub fn from(host: &Host, to: (Ipv4Addr, u16)) -> Result<Self> {
        let (socket, raw) = host.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            let raw = socket::socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Raw,
            )?;
            Ok((socket, raw))
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, raw })
    }

    /// Sends fragments of a datagram under a number, which is not zero.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn send(&self, id: u16, order: &[usize]) -> Result<()> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) =
            (self.socket.local_addr()?, self.socket.peer_addr()?)
        else {
            bail!("the lab speaks IPv4");
        };
        let len = 3 * PIECE_LEN;
        // UDP's header, without a checksum, and what is sent.
        let mut datagram = [from.port(), to.port(), len as u16, 0]
            .map(u16::to_be_bytes)
            .concat();
        datagram.resize(len, b'x');
        for &nth in order {
            let more = if nth < 2 { MORE_FRAGMENTS } else { 0 };
            let place = (nth * PIECE_LEN / 8) as u16 | more;
            // The kernel fills in length and checksum.
            let mut packet = vec![0x45, 0, 0, 0];
            packet.extend(id.to_be_bytes());
            packet.extend(place.to_be_bytes());
            packet.extend([64, libc::IPPROTO_UDP as u8, 0, 0]);
            packet.extend(from.ip().octets());
            packet.extend(to.ip().octets());
            packet.extend(&datagram[nth * PIECE_LEN..][..PIECE_LEN]);
            let to = SockaddrIn::from(to);
            let raw = self.raw.as_raw_fd();
            socket::sendto(raw, &packet, &to, MsgFlags::empty())?;
        }
        Ok(())
    }

    /// As [`Self::send`], and waits for the server's answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn ask(&self, id: u16, order: &[usize]) -> Result<()> {
        self.send(id, order)?;
        let mut answer = [0; 1 << 16];
        let answered = self.socket.recv(&mut answer);
        answered.with_context(|| format!("no answer to fragments {order:?}"))?;
        Ok(())
    }
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
