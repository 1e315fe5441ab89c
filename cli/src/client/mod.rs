//! Client of the Docker Engine API: one HTTP/1.1 connection a request, since commands make few.

mod advice;
mod objects;
mod route;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, HeaderValue, WARNING},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

pub use self::{objects::Filters, route::Route};
use crate::host::Host;

/// A request that came to nothing. Each is one sentence with its cause in it, for the user.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "cannot reach the swarmnet daemon at {host} ({cause}): start it with `swarmnet agent`, \
         or name its socket with --host or SWARMNET_HOST"
    )]
    Unreachable { host: Host, cause: std::io::Error },
    /// The daemon's own words.
    #[error("Error response from daemon: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("the connection to the daemon at {host} broke: {cause}")]
    Broken { host: Host, cause: hyper::Error },
    #[error("the daemon's answer to {route} is not what it should be: {cause}")]
    Answer {
        route: String,
        cause: serde_json::Error,
    },
}

impl ClientError {
    /// Whether the daemon knows no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// Asks one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    host: Host,
    /// Shared by clones: one command.
    warned: Arc<AtomicBool>,
}

impl Client {
    pub fn new(host: Host) -> Self {
        Self {
            host,
            warned: Arc::default(),
        }
    }

    /// # Errors
    /// As of every request: the daemon cannot be reached, refuses, or answers nonsense.
    pub async fn get<T: DeserializeOwned>(&self, route: Route) -> Result<T, ClientError> {
        let text = self.get_text(route.clone()).await?;
        decode(&route, text.as_bytes())
    }

    /// The answer as it came, for `inspect`.
    pub async fn get_text(&self, route: Route) -> Result<String, ClientError> {
        let bytes = self.body(Method::GET, &route, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The answer's body, piece by piece, to its end. What `write` fails with ends it.
    pub async fn download(
        &self,
        route: Route,
        write: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut body = self
            .send(Method::GET, &route, Bytes::new())
            .await?
            .into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|err| self.broken(err))?;
            frame.data_ref().map_or(Ok(()), |chunk| write(chunk))?;
        }
        Ok(())
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        route: Route,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let bytes = self.body(Method::POST, &route, encode(body)).await?;
        decode(&route, &bytes)
    }

    /// Posts where nothing comes back.
    pub async fn post_only(&self, route: Route, body: &impl Serialize) -> Result<(), ClientError> {
        self.body(Method::POST, &route, encode(body)).await?;
        Ok(())
    }

    pub async fn delete(&self, route: Route) -> Result<(), ClientError> {
        self.body(Method::DELETE, &route, Bytes::new()).await?;
        Ok(())
    }

    async fn body(&self, method: Method, route: &Route, body: Bytes) -> Result<Bytes, ClientError> {
        let answer = self.send(method, route, body).await?;
        self.collect(answer.into_body()).await
    }

    async fn send(
        &self,
        method: Method,
        route: &Route,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let answer = match &self.host {
            Host::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                self.exchange(
                    socket.map_err(|err| self.unreachable(err))?,
                    method,
                    route,
                    body,
                )
                .await?
            }
            Host::Tcp(authority) => {
                let socket = TcpStream::connect(authority).await;
                self.exchange(
                    socket.map_err(|err| self.unreachable(err))?,
                    method,
                    route,
                    body,
                )
                .await?
            }
        };
        if answer.status().is_success() {
            self.warn(&answer);
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = self.collect(answer.into_body()).await?;
        Err(ClientError::Refused {
            status,
            message: refusal(status, &bytes),
        })
    }

    /// Shows what the daemon warns of, once a command.
    fn warn(&self, answer: &Response<Incoming>) {
        let text = answer.headers().get(WARNING).and_then(warning);
        if let Some(text) = text
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            eprintln!("WARNING: {text}");
        }
    }

    async fn exchange(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        method: Method,
        route: &Route,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |cause| self.broken(cause);
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(broken)?;
        // Ends with the response body, or with the process.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(route.as_str())
            .header(HOST, "swarmnet");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body))
            .expect("a route is percent-encoded, the rest is constant");
        sender.send_request(request).await.map_err(broken)
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        let collected = body.collect().await;
        Ok(collected.map_err(|err| self.broken(err))?.to_bytes())
    }

    fn unreachable(&self, cause: std::io::Error) -> ClientError {
        ClientError::Unreachable {
            host: self.host.clone(),
            cause,
        }
    }

    fn broken(&self, cause: hyper::Error) -> ClientError {
        ClientError::Broken {
            host: self.host.clone(),
            cause,
        }
    }
}

/// The text of `110 agent "text"` (RFC 7234 section 5.5).
fn warning(header: &HeaderValue) -> Option<&str> {
    let (_, quoted) = header.to_str().ok()?.split_once('"')?;
    quoted.strip_suffix('"')
}

fn encode(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body)
        .expect("API types always serialize")
        .into()
}

fn decode<T: DeserializeOwned>(route: &Route, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|cause| ClientError::Answer {
        route: route.as_str().to_owned(),
        cause,
    })
}

/// The sentence in an error body. The daemon speaks to users of `docker`; ours type `swarmnet`.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        message: String,
    }
    let message = serde_json::from_slice::<Body>(body).map_or_else(
        |_| String::from_utf8_lossy(body).trim().to_owned(),
        |body| body.message,
    );
    if message.is_empty() {
        return status.to_string();
    }
    let message = message.replace("docker swarm ", "swarmnet ");
    match advice::way_out(&message) {
        Some(way_out) => format!("{}: {way_out}", message.trim_end_matches(['.', ' '])),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_the_message_of_the_body() {
        let text = |body: &str| refusal(StatusCode::NOT_FOUND, body.as_bytes());
        assert_eq!(
            text(r#"{"message":"subnet x is wrong"}"#),
            "subnet x is wrong"
        );
        assert_eq!(text("plain\n"), "plain");
        assert_eq!(text(""), "404 Not Found");
        assert_eq!(
            text(r#"{"message":"Use \"docker swarm init\"."}"#),
            "Use \"swarmnet init\"."
        );
    }

    #[test]
    fn warning_is_the_quoted_text() {
        let text = |value| warning(&HeaderValue::from_static(value)).map(str::to_owned);
        assert_eq!(
            text("110 swarmnet \"this may be stale\""),
            Some("this may be stale".to_owned())
        );
        assert_eq!(text("110 swarmnet"), None);
    }

    #[tokio::test]
    async fn unreachable_daemon_names_the_socket_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(Host::Unix(dir.path().join("no.sock")));
        let err = client
            .get_text(Route::new("info"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("no.sock") && err.contains("swarmnet agent"),
            "{err}"
        );
    }
}
