//! One request and its answer, on a connection of its own: there are few.

use std::{io, sync::Arc, time::Duration};

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

use super::{Endpoint, External, answer};
use crate::{
    CaError,
    tls::{failure::refuses_certificate, provider},
};

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
    #[error(
        "it demands a client certificate, and the first manager has none before it is signed for: \
         name a server of the same CA that demands none, which only this node may reach, and the \
         other one afterwards, with `swarmnet update --external-ca …`"
    )]
    Demands,
    #[error(
        "it does not take the certificate of this manager: have it believe clients whose \
         certificates are signed by what `swarmnet ca` shows (`cfssl serve -mutual-tls-ca`)"
    )]
    Stranger,
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    Long,
    #[error("it answers {status}: {text}")]
    Status { status: StatusCode, text: String },
}

/// What an authority answered.
pub(super) struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    /// # Errors
    /// Another status than 200, unless it comes with a refusal of CFSSL's, which says more.
    pub(super) fn body(self) -> Result<Bytes, ExchangeError> {
        match self.status == StatusCode::OK || answer::is_refusal(&self.body) {
            true => Ok(self.body),
            false => Err(self.into_error()),
        }
    }

    /// # Errors
    /// Nothing is at the path, or nothing for this manager.
    pub(super) fn found(self) -> Result<(), ExchangeError> {
        match self.status {
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(self.into_error())
            }
            _ => Ok(()),
        }
    }

    fn into_error(self) -> ExchangeError {
        let text = String::from_utf8_lossy(&self.body);
        let text = text.trim().chars().take(REFUSAL_CHARS_MAX).collect();
        let status = self.status;
        ExchangeError::Status { status, text }
    }
}

/// Posts `body`, which is JSON, to a server that the roots vouch for, and gives what is answered.
pub(super) async fn post(
    endpoint: &Endpoint,
    external: &External<'_>,
    body: Vec<u8>,
) -> Result<Answer, ExchangeError> {
    let posted = tokio::time::timeout(WAIT, async {
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
    });
    posted
        .await
        .unwrap_or(Err(ExchangeError::Late))
        .map_err(|error| match &error {
            // TLS 1.3 tells a client only after its handshake what becomes of its certificate.
            ExchangeError::Broken(broken) if refuses_certificate(broken) => match external.caller {
                None => ExchangeError::Demands,
                Some(_) => ExchangeError::Stranger,
            },
            _ => error,
        })
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

async fn read(response: Response<Incoming>) -> Result<Answer, ExchangeError> {
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
    Ok(Answer { status, body })
}
