//! Questions to the lab's server, from wherever a [`Host`] is.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Host, patience};

const PATIENCE: Duration = Duration::from_secs(3);

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Hostname of the task.
    pub task: String,
    pub client: SocketAddrV4,
    /// The address that the asking socket had.
    pub from: SocketAddrV4,
}

impl Answer {
    fn parse(line: &str, from: SocketAddr) -> Result<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        ensure!(words.len() == 4, "the server said `{line}`");
        let SocketAddr::V4(from) = from else {
            anyhow::bail!("{from} is not IPv4")
        };
        Ok(Self {
            task: words[1].to_owned(),
            client: words[3].parse()?,
            from,
        })
    }
}

/// One connection from `host` to the lab's server.
///
/// # Errors
/// Connection failures and what is no answer.
pub fn ask_tcp(host: &Host, to: (Ipv4Addr, u16)) -> Result<Answer> {
    Conversation::begin(host, to).map(|conversation| conversation.answer)
}

/// One datagram from `host` to the lab's server, on an unconnected socket.
///
/// # Errors
/// No answer in time, or one from another address than was asked.
pub fn ask_udp(host: &Host, to: (Ipv4Addr, u16)) -> Result<Answer> {
    Asker::new(host, to)?.ask()
}

/// One unconnected socket that asks the lab's server by datagrams.
pub struct Asker {
    socket: UdpSocket,
    to: (Ipv4Addr, u16),
    from: SocketAddr,
}

impl Asker {
    /// # Errors
    /// Sockets that cannot be made.
    pub fn new(host: &Host, to: (Ipv4Addr, u16)) -> Result<Self> {
        host.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // The unconnected socket has no address of its own; one connected like it tells.
            let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            probe.connect(to)?;
            let from = SocketAddr::new(probe.local_addr()?.ip(), socket.local_addr()?.port());
            Ok(Self { socket, to, from })
        })
    }

    /// # Errors
    /// No answer in time, or one from another address than was asked.
    pub fn ask(&self) -> Result<Answer> {
        self.ask_within(patience(PATIENCE))
    }

    /// As [`Self::ask`], with another patience.
    ///
    /// # Errors
    /// As there.
    pub fn ask_within(&self, patience: Duration) -> Result<Answer> {
        let (to, mut buffer) = (self.to, [0; 512]);
        // Answers to earlier questions that nobody waited for.
        self.socket.set_nonblocking(true)?;
        while self.socket.recv_from(&mut buffer).is_ok() {}
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(patience))?;
        self.socket
            .send_to(b"?", to)
            .with_context(|| format!("cannot send to {to:?}"))?;
        let (length, from) = self.socket.recv_from(&mut buffer).context("no answer")?;
        ensure!(
            from == SocketAddr::from(to),
            "asked {to:?}, {from} answered"
        );
        Answer::parse(str::from_utf8(&buffer[..length])?, self.from)
    }
}

/// What a line was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Echo,
    /// The task stops. It did not take up the line.
    Goodbye,
}

/// An open connection to the lab's server, which echoes lines after its first.
pub struct Conversation {
    reader: BufReader<TcpStream>,
    pub answer: Answer,
}

impl Conversation {
    /// # Errors
    /// Connection failures and what is no answer.
    pub fn begin(host: &Host, to: (Ipv4Addr, u16)) -> Result<Self> {
        host.within(|| Self::begin_here(to, patience(PATIENCE)))
    }

    /// From the network namespace of the calling thread. Each answer is waited for that long.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_here(to: (Ipv4Addr, u16), patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to.into(), patience)
            .with_context(|| format!("connect {to:?}"))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        ensure!(
            peer == SocketAddr::from(to),
            "connected to {to:?}, the socket says {peer}"
        );
        let from = stream.local_addr()?;
        let mut reader = BufReader::new(stream);
        reader.get_mut().write_all(b"hello\n")?;
        let line = read_line(&mut reader);
        let line = line.with_context(|| format!("no answer to {from} from {to:?}"))?;
        let answer = Answer::parse(&line, from)?;
        let mut conversation = Self { reader, answer };
        let echoed = conversation.line();
        let echoed = echoed.with_context(|| {
            format!(
                "no echo from {to:?}, task {}, to {from}",
                conversation.answer.task
            )
        })?;
        ensure!(echoed == "hello\n", "sent hello, got {echoed}");
        Ok(conversation)
    }

    /// Sends a line and checks its echo.
    ///
    /// # Errors
    /// When the connection is broken or says something else.
    pub fn say(&mut self, words: &str) -> Result<()> {
        self.send(words)?;
        match self.hear(words)? {
            Heard::Echo => Ok(()),
            Heard::Goodbye => anyhow::bail!("the task {} said goodbye", self.answer.task),
        }
    }

    /// The first half of [`Self::say`].
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, words: &str) -> Result<()> {
        Ok(self
            .reader
            .get_mut()
            .write_all(format!("{words}\n").as_bytes())?)
    }

    /// The answer to [`Self::send`].
    ///
    /// # Errors
    /// When the connection is broken or says something else.
    pub fn hear(&mut self, words: &str) -> Result<Heard> {
        let heard = self.line();
        let heard = heard.with_context(|| format!("no echo to {}", self.answer.from))?;
        if heard == "goodbye\n" {
            return Ok(Heard::Goodbye);
        }
        ensure!(heard.trim_end() == words, "sent {words}, got {heard}");
        Ok(Heard::Echo)
    }

    fn line(&mut self) -> Result<String> {
        read_line(&mut self.reader)
    }
}

/// Sends so many bytes on one connection and checks that each comes back.
///
/// # Errors
/// When the connection breaks or stalls.
pub fn send_through(host: &Host, to: (Ipv4Addr, u16), len: usize) -> Result<()> {
    let conversation = Conversation::begin(host, to)?;
    let mut reader = conversation.reader;
    let data: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut writer = reader.get_ref().try_clone()?;
    writer.set_write_timeout(Some(PATIENCE))?;
    let mut back = vec![0; len];
    thread::scope(|scope| {
        let sent = scope.spawn(|| writer.write_all(&data));
        reader
            .read_exact(&mut back)
            .context("the way back stalls")?;
        let sent = sent.join().expect("the writer does not panic");
        sent.context("the way there stalls")
    })?;
    ensure!(back == data, "what came back differs");
    Ok(())
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    ensure!(
        reader.read_line(&mut line)? > 0,
        "the connection was closed"
    );
    Ok(line)
}
