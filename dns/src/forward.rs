//! Asking the upstreams. The client's bytes go out as they came, but for the id.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::query::{Forward, Transport};

/// Where tasks' resolvers listen; never an upstream, or a query would go round.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Questions put for one query, over all upstreams, and how long each may take. All of it is less
/// than the 5 s after which glibc and musl ask again.
const TRIES: usize = 3;
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// The largest datagram.
const DATAGRAM_BYTES: usize = 65_535;

/// Response codes after which another upstream may know more.
const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// The servers for names that are not the cluster's.
#[derive(Debug)]
pub(crate) struct Upstreams {
    servers: Vec<SocketAddr>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
}

impl Upstreams {
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        let servers = servers.into_iter().filter(|server| server.ip() != RESOLVER);
        Self {
            servers: servers.collect(),
            preferred: AtomicUsize::new(0),
        }
    }

    /// An upstream's answer with the client's id, or SERVFAIL when none gives one in time.
    /// `packet` is the query that `forward` was made from.
    pub async fn ask(&self, packet: &[u8], forward: &Forward) -> Vec<u8> {
        let mut last = None;
        let first = self.preferred.load(Ordering::Relaxed);
        for at in (0..self.servers.len()).cycle().skip(first).take(TRIES) {
            let server = self.servers[at];
            match timeout(TRY_TIMEOUT, exchange(server, packet, forward)).await {
                Ok(Ok(answer)) if matches!(answer[3] & 0xf, SERVFAIL | NOTIMP | REFUSED) => {
                    last = Some(answer);
                }
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return answer;
                }
                Ok(Err(err)) => {
                    tracing::debug!(dns.upstream = %server, error = %err, "upstream failed");
                }
                Err(_) => tracing::debug!(dns.upstream = %server, "upstream does not answer"),
            }
        }
        last.unwrap_or_else(|| forward.failure())
    }
}

/// One question to one server: by UDP, and by TCP if the answer does not fit and the client can
/// take more.
async fn exchange(server: SocketAddr, packet: &[u8], forward: &Forward) -> io::Result<Vec<u8>> {
    let mut question = packet.to_vec();
    // A fresh id and a fresh port: what a spoofer has to guess (RFC 5452).
    question[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    let mut answer = by_udp(server, &question).await?;
    let truncated = answer[2] & 0x02 != 0;
    if truncated && forward.limit() > answer.len() {
        match by_tcp(server, &question).await {
            Ok(whole) if whole.len() <= forward.limit() => answer = whole,
            // The client sees the truncation bit and comes back by TCP itself.
            _ if forward.transport() == Transport::Udp => {}
            Ok(_) => return Err(io::Error::other("the answer does not fit")),
            Err(err) => return Err(err),
        }
    }
    answer[..2].copy_from_slice(&packet[..2]);
    Ok(answer)
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: only this server's packets come in, and a closed port is an error at once.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_BYTES];
    loop {
        let len = socket.recv(&mut answer).await?;
        if answers(question, &answer[..len]) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    let answer = read_message(&mut stream).await?;
    if answers(question, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("the answer is not to the question"))
    }
}

/// Whether a packet is a response to a question: the id is the same, and the section with the
/// question too, if the server repeats it (on some errors it need not).
pub(crate) fn answers(question: &[u8], answer: &[u8]) -> bool {
    const HEADER_BYTES: usize = 12;
    if answer.len() < HEADER_BYTES || answer[..2] != question[..2] || answer[2] & 0x80 == 0 {
        return false;
    }
    let repeated = u16::from_be_bytes([answer[4], answer[5]]);
    let len = question_len(&question[HEADER_BYTES..]);
    let same = |len: usize| {
        let range = HEADER_BYTES..HEADER_BYTES + len;
        let (ours, theirs) = (question.get(range.clone()), answer.get(range));
        ours.zip(theirs)
            .is_some_and(|(ours, theirs)| ours.eq_ignore_ascii_case(theirs))
    };
    match repeated {
        0 => answer[3] & 0xf != 0,
        1 => len.is_some_and(same),
        _ => false,
    }
}

/// Bytes of the one question: its labels, type and class.
fn question_len(section: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *section.get(at)? {
            0 => return Some(at + 1 + 4),
            label @ 1..=63 => at += 1 + usize::from(label),
            _ => return None, // a pointer has nothing to point at here
        }
    }
}

/// Reads a message with its length before it (RFC 1035, 4.2.2).
pub(crate) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it, in one segment.
pub(crate) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), message].concat())
        .await
}
