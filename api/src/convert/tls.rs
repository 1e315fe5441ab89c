//! The root certificate as Docker shows it.

use base64::{Engine, engine::general_purpose::STANDARD};
use bollard_stubs::models as docker;
use model::object::{Cluster, Node, RootCa};
use x509_parser::pem::parse_x509_pem;

/// The certificate, and the subject and public key in it as base64 of their DER. The last two are
/// left out when the certificate does not parse, which `control` does not let happen.
pub(super) fn info(ca: &RootCa) -> docker::TlsInfo {
    let parts = subject_and_key(&ca.certificate_pem);
    docker::TlsInfo {
        trust_root: Some(ca.certificate_pem.clone()),
        cert_issuer_subject: parts.as_ref().map(|parts| STANDARD.encode(&parts.0)),
        cert_issuer_public_key: parts.as_ref().map(|parts| STANDARD.encode(&parts.1)),
    }
}

/// The root that the node's certificate is from.
pub(super) fn issuer<'a>(cluster: &'a Cluster, node: &Node) -> &'a RootCa {
    let new = cluster.rotation.as_ref().map(|rotation| &rotation.ca);
    new.filter(|root| key_id(&root.certificate_pem).is_some_and(|id| Some(id) == node.issuer))
        .unwrap_or(&cluster.ca)
}

fn key_id(pem: &str) -> Option<String> {
    let roots = ca::Roots::from_pem(pem).ok()?;
    roots.issuers().first().map(ToString::to_string)
}

fn subject_and_key(pem: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let subject = certificate.subject().as_raw().to_vec();
    Some((subject, certificate.public_key().raw.to_vec()))
}
