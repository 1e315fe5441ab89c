//! The lab's service: says which task answered and which client it saw, and logs it. TCP gets one
//! line a connection and then an echo of what it sends (HTTP gets an HTTP answer); UDP gets the
//! line for each datagram.
//!
//! `whoami PORT` serves TCP and UDP on it.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{SigHandler, Signal, signal},
    },
};

/// The last line to a client of a task that stops.
const GOODBYE: &[u8] = b"goodbye\n";

/// How long a client may take to close after that.
const FAREWELL: Duration = Duration::from_secs(1);

/// Readable once the task has been told to stop.
static STOP: OnceLock<EventFd> = OnceLock::new();
/// Connections that are served.
static OPEN: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let Some(port) = env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: whoami PORT");
        return ExitCode::from(2);
    };
    match serve(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("port {port}: {err}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> io::Result<()> {
    stop_on_sigterm()?;
    let udp = UdpSocket::bind(("0.0.0.0", port))?;
    let tcp = TcpListener::bind(("0.0.0.0", port))?;
    tcp.set_nonblocking(true)?;
    thread::spawn(move || serve_udp(&udp));
    loop {
        match tcp.accept() {
            Ok((stream, _)) => {
                OPEN.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    let served = serve_tcp(stream);
                    OPEN.fetch_sub(1, Ordering::SeqCst);
                    served
                });
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                let ready = readable(&tcp)?;
                if ready.stops && !ready.input && OPEN.load(Ordering::SeqCst) == 0 {
                    return Ok(());
                }
            }
            Err(err) => return Err(err),
        }
    }
}

/// Says goodbye in each connection at the end of a line, then ends: what was answered was answered,
/// and what comes later was not begun.
fn stop_on_sigterm() -> io::Result<()> {
    extern "C" fn stop(_: i32) {
        if let Some(event) = STOP.get() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: `write` is async-signal-safe, and the buffer is valid for its length.
            unsafe { nix::libc::write(event.as_fd().as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
    STOP.get_or_init(|| {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd takes nothing")
    });
    // A first process of a pid namespace has no default action for SIGTERM.
    // SAFETY: the handler calls nothing but `write`.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(stop)) }?;
    Ok(())
}

struct Readable {
    input: bool,
    stops: bool,
}

/// Waits for input, or for the word to stop. After that word, looks again every so often.
fn readable(input: &impl AsFd) -> io::Result<Readable> {
    let stop = STOP.get().expect("it is made first");
    let is_told = is_readable(stop)?;
    let mut fds = vec![PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    let mut timeout = PollTimeout::from(20u8);
    if !is_told {
        fds.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        timeout = PollTimeout::NONE;
    }
    poll_again(&mut fds, timeout)?;
    Ok(Readable {
        input: fds[0].any().unwrap_or_default(),
        stops: is_readable(stop)?,
    })
}

fn is_readable(event: &EventFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    Ok(poll_again(&mut fds, PollTimeout::ZERO)? > 0)
}

/// The word to stop is a signal, which some thread's `poll` is interrupted by.
fn poll_again(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<i32> {
    loop {
        match poll(fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

fn line(client: SocketAddr) -> String {
    let task = env::var("HOSTNAME").unwrap_or_default();
    println!("client {client}");
    format!("task {task} client {client}\n")
}

fn serve_udp(socket: &UdpSocket) {
    let mut buffer = [0; 65_536];
    while let Ok((_, client)) = socket.recv_from(&mut buffer) {
        // A client that went away is its own affair.
        let _ = socket.send_to(line(client).as_bytes(), client);
    }
}

fn serve_tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = line(stream.peer_addr()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(());
    }
    if first.starts_with("GET ") {
        // The head ends with an empty line.
        while first.trim_end() != "" {
            first.clear();
            reader.read_line(&mut first)?;
        }
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        );
    }
    stream.write_all(answer.as_bytes())?;
    stream.write_all(first.as_bytes())?;
    echo(reader, stream)
}

/// Echoes until the client ends, or the task stops and the last line is whole.
fn echo(mut reader: BufReader<TcpStream>, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut is_line = true;
    loop {
        if reader.buffer().is_empty() {
            let ready = readable(reader.get_ref())?;
            if ready.stops && is_line {
                stream.write_all(GOODBYE)?;
                stream.shutdown(Shutdown::Write)?;
                stream.set_read_timeout(Some(FAREWELL))?;
                // Closed with input unread, the connection would be reset.
                return io::copy(&mut reader, &mut io::sink()).map(drop);
            }
            if !ready.input {
                continue;
            }
        }
        let len = reader.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
        is_line = buffer[len - 1] == b'\n';
    }
}
