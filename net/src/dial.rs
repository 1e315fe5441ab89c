//! Calling another node.

use std::{error::Error, net::SocketAddr, time::Duration};

use ca::{Connector, tls};
use tonic::{
    Status,
    transport::{self, Channel, Endpoint},
};

use crate::KEEP_ALIVE;

/// Two attempts of the kernel's: it repeats a lost SYN after a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// No connection came about.
#[derive(Debug, thiserror::Error)]
#[error("{}", sentence(*addr, .source))]
pub struct DialError {
    pub addr: SocketAddr,
    #[source]
    source: transport::Error,
}

/// A connection to the manager at `addr`, secured by `connector`. Drop the future to give up
/// earlier.
///
/// # Errors
/// [`DialError`] after three seconds at most.
pub async fn dial(
    connector: &Connector,
    addr: impl Into<SocketAddr>,
) -> Result<Channel, DialError> {
    let addr = addr.into();
    let connected = connector.connect(&endpoint(addr)).await;
    connected.map_err(|source| DialError { addr, source })
}

/// A channel that connects when it is first used, and again when it is used after the connection
/// was lost.
pub fn dial_lazily(connector: &Connector, addr: impl Into<SocketAddr>) -> Channel {
    connector.connect_lazy(&endpoint(addr.into()))
}

/// What a call says that failed for the caller's certificate: in TLS 1.3 a client is done with the
/// handshake before its certificate is looked at, so that it hears of it in its first call.
pub fn refused_certificate(status: &Status) -> Option<String> {
    tls::reason(status)
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Connector::endpoint(addr)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}

fn sentence(addr: SocketAddr, error: &transport::Error) -> String {
    match tls::reason(error) {
        Some(reason) => format!("manager {addr} is not to be trusted: {reason}"),
        None => format!(
            "cannot reach manager {addr}: {}; is the address right, and TCP port {} open?",
            cause(error),
            addr.port()
        ),
    }
}

/// The innermost error: those around it say "transport error".
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_listen_is_named_with_the_cause() {
        // Bound and dropped: nothing listens there.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = gone.local_addr().unwrap();
        drop(gone);
        let connector = Connector::unverified().unwrap();
        let error = dial(&connector, addr).await.unwrap_err().to_string();
        assert!(error.contains(&addr.to_string()), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}
