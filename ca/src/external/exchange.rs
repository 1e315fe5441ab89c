//! One request and its answer, on a connection of its own: there are few.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, client::Resumption, version::TLS13};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Endpoint, External};
use crate::{CaError, tls::provider};

/// For an authority to answer, as in SwarmKit.
const WAIT: Duration = Duration::from_secs(5);
/// Of an answer, as in SwarmKit (`CertificateMaxSize`).
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Of a refusal, for a person to read.
const REFUSAL_CHARS_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("it does not answer within {WAIT:?}")]
    Late,
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("no secure connection: {0}")]
    Secure(#[source] io::Error),
    #[error("the certificates cannot be used: {0}")]
    Certificates(#[from] CaError),
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    Long,
    #[error("it answers {status}: {text}")]
    Status { status: StatusCode, text: String },
}

/// Posts `body`, which is JSON, and gives what is answered.
pub(super) async fn post(
    endpoint: &Endpoint,
    external: &External<'_>,
    body: Vec<u8>,
) -> Result<Bytes, ExchangeError> {
    in_time(async {
        let stream = secured(endpoint, external).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ExchangeError::Broken)?;
        let answered = async {
            let response = sender.send_request(request(endpoint, body)).await;
            read(response.map_err(ExchangeError::Broken)?).await
        };
        tokio::select! {
            biased;
            answer = answered => answer,
            // It goes on until the answer is read, unless it breaks.
            Err(broken) = connection => Err(ExchangeError::Broken(broken)),
        }
    })
    .await
}

/// A connection to a server that the roots vouch for.
pub(super) async fn connect(
    endpoint: &Endpoint,
    external: &External<'_>,
) -> Result<TlsStream<TcpStream>, ExchangeError> {
    in_time(secured(endpoint, external)).await
}

async fn in_time<T>(
    work: impl Future<Output = Result<T, ExchangeError>>,
) -> Result<T, ExchangeError> {
    let done = tokio::time::timeout(WAIT, work).await;
    done.unwrap_or(Err(ExchangeError::Late))
}

async fn secured(
    endpoint: &Endpoint,
    external: &External<'_>,
) -> Result<TlsStream<TcpStream>, ExchangeError> {
    let connector = TlsConnector::from(Arc::new(config(external)?));
    let stream = TcpStream::connect(endpoint.addr()).await;
    let stream = stream.map_err(ExchangeError::Connect)?;
    let secured = connector.connect(endpoint.server(), stream).await;
    secured.map_err(ExchangeError::Secure)
}

fn config(external: &External<'_>) -> Result<ClientConfig, CaError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(external.roots.store()?);
    let mut config = match external.caller {
        Some(tls) => {
            tls.with(|own| config.with_client_auth_cert(own.chain(), own.private_key()))?
        }
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn request(endpoint: &Endpoint, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post(endpoint.path())
        .header(HOST, endpoint.authority())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .expect("path and authority were parsed as parts of a URL")
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ExchangeError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) if err.is::<LengthLimitError>() => return Err(ExchangeError::Long),
        Err(err) => {
            let broken = err.downcast::<hyper::Error>();
            let broken = broken.expect("a body of hyper's fails with its errors");
            return Err(ExchangeError::Broken(*broken));
        }
    };
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        let text = text.trim().chars().take(REFUSAL_CHARS_MAX).collect();
        return Err(ExchangeError::Status { status, text });
    }
    Ok(body)
}
