//! The lab's service: says which task answered and which client it saw, and logs it. TCP gets one
//! line a connection and then an echo of what it sends (HTTP gets an HTTP answer); UDP gets the
//! line for each datagram.
//!
//! `whoami PORT` serves TCP and UDP on it.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
};

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
    // A first process of a pid namespace has no default action for SIGTERM.
    end_on_sigterm();
    let udp = UdpSocket::bind(("0.0.0.0", port))?;
    let tcp = TcpListener::bind(("0.0.0.0", port))?;
    thread::spawn(move || serve_udp(&udp));
    for stream in tcp.incoming() {
        let stream = stream?;
        thread::spawn(move || serve_tcp(stream));
    }
    Ok(())
}

fn end_on_sigterm() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    extern "C" fn end(_: i32) {
        // SAFETY: `_exit` is async-signal-safe.
        unsafe { nix::libc::_exit(0) }
    }
    // SAFETY: the handler calls nothing but `_exit`.
    unsafe { signal(Signal::SIGTERM, SigHandler::Handler(end)) }.expect("SIGTERM can be handled");
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
    io::copy(&mut reader, &mut stream).map(drop)
}
