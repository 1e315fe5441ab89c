//! HTTPS, with the caller's certificate.

use std::{convert::Infallible, net::SocketAddr, net::TcpListener as StdListener, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig, crypto::ring, pki_types::CertificateDer, server::WebPkiClientVerifier,
    version::TLS13,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Conduct, PATH, Shared, Signed, issue};

/// More than any certificate.
const HUGE: usize = 8 << 20;

/// Until it is dropped.
pub(crate) async fn run(listener: StdListener, addr: SocketAddr, shared: Arc<Shared>) {
    let acceptor = TlsAcceptor::from(Arc::new(config(&shared, addr)));
    let listener = TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(connection(socket, acceptor.clone(), Arc::clone(&shared)));
    }
}

fn config(shared: &Shared, addr: SocketAddr) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(shared.authority.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .expect("there is a root");
    let (certificate, key) = shared.authority.server(addr.ip());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the library has it")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .expect("the key is the certificate's")
}

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // Whoever goes away or is not believed hears of it by TLS.
    let Ok(stream) = acceptor.accept(socket).await else {
        return;
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let caller = certificates.and_then(|chain| caller(chain.first()?));
    let answering = service_fn(|request| {
        let (shared, caller) = (Arc::clone(&shared), caller.clone());
        async move { Ok::<_, Infallible>(answer(request, &shared, caller).await) }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answering)
        .await;
}

/// Who calls: common name and organizational unit.
#[derive(Debug, Clone)]
struct Caller {
    node: String,
    role: String,
}

fn caller(der: &CertificateDer<'_>) -> Option<Caller> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let node = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let role = subject.iter_organizational_unit().next()?;
    let role = role.as_str().ok()?.to_owned();
    Some(Caller { node, role })
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    caller: Option<Caller>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        return text(StatusCode::NOT_FOUND, "404 page not found");
    }
    let may = match &caller {
        Some(caller) => caller.role == "swarm-manager",
        None => shared.book().signed.is_empty(),
    };
    if !may {
        return text(StatusCode::FORBIDDEN, "want a manager's certificate");
    }
    let Ok(body) = request.into_body().collect().await else {
        return text(StatusCode::BAD_REQUEST, "no body");
    };
    let conduct = shared.book().conduct;
    match conduct {
        Conduct::Silent => std::future::pending().await,
        Conduct::Huge => text(StatusCode::OK, &" ".repeat(HUGE)),
        Conduct::Nonsense => text(StatusCode::OK, "<html>proxy</html>"),
        Conduct::Refuse => failure(StatusCode::INTERNAL_SERVER_ERROR, "policy violation"),
        _ => sign(&body.to_bytes(), shared, conduct, caller),
    }
}

fn sign(
    body: &[u8],
    shared: &Shared,
    conduct: Conduct,
    caller: Option<Caller>,
) -> Response<Full<Bytes>> {
    let Ok(request) = serde_json::from_slice::<issue::Request>(body) else {
        return failure(StatusCode::BAD_REQUEST, "not a request to sign");
    };
    let signed = shared.authority.issue(&request, conduct);
    let (Some(certificate), Some(role)) = (signed, request.role()) else {
        return failure(StatusCode::BAD_REQUEST, "not a certificate request");
    };
    shared.book().signed.push(Signed {
        node: request.node(),
        role,
        caller: caller.map(|caller| caller.node),
    });
    let answer = json!({"success": true, "result": {"certificate": certificate}, "errors": [],
        "messages": []});
    text(StatusCode::OK, &answer.to_string())
}

/// As CFSSL's: with a status of its own, and the reason in the same envelope.
fn failure(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let errors = json!([{"code": 5200, "message": message}]);
    let answer = json!({"success": false, "result": null, "errors": errors, "messages": []});
    text(status, &answer.to_string())
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = status;
    response
}
