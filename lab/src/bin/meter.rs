//! The far end of the lab's measurements, by TCP and UDP: `meter PORT`.

use std::{
    env,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
};

use swarmnet_lab::meter::{CHUNK, ECHO, STREAM};

fn main() -> ExitCode {
    let Some(port) = env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: meter PORT");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(err) => {
            eprintln!("port {port}: {err}");
            return ExitCode::FAILURE;
        }
    };
    let datagrams = match UdpSocket::bind(("0.0.0.0", port)) {
        Ok(socket) => socket,
        Err(err) => {
            eprintln!("UDP port {port}: {err}");
            return ExitCode::FAILURE;
        }
    };
    thread::spawn(move || answer(&datagrams));
    for socket in listener.incoming().flatten() {
        // A client that breaks off is its own affair.
        thread::spawn(move || serve(socket));
    }
    ExitCode::SUCCESS
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut wish = [0];
    socket.read_exact(&mut wish)?;
    match wish[0] {
        STREAM => swallow(socket),
        ECHO => echo(socket),
        _ => Ok(()),
    }
}

/// Sends every datagram back.
fn answer(socket: &UdpSocket) -> io::Result<()> {
    let mut datagram = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        // Whoever is gone by now does not need it.
        let _ = socket.send_to(&datagram[..len], from);
    }
}

fn swallow(mut socket: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut taken = 0u64;
    loop {
        match socket.read(&mut chunk)? {
            0 => return socket.write_all(&taken.to_be_bytes()),
            count => taken += count as u64,
        }
    }
}

fn echo(mut socket: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        socket.read_exact(&mut byte)?;
        socket.write_all(&byte)?;
    }
}
