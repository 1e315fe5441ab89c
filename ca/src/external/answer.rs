//! What is sent and what comes back: CFSSL's `sign` endpoint (doc/api/endpoint_sign.txt), with the
//! fields that SwarmKit sends (`PrepareCSR` in `ca/certificates.go`). What comes back is believed only
//! as far as it is what was asked for.

use jiff::Timestamp;
use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    CaError, Identity, Request, Roots, Subject,
    certificate::CHAIN_MAX,
    certificates,
    identity::unit,
    tls::{self, Vouched},
};

/// Of what the authority says is wrong, for a person to read.
const MESSAGES_MAX: usize = 3;

#[derive(Serialize)]
struct Sign<'a> {
    /// The role comes first: a client asks for it.
    hosts: [&'a str; 2],
    certificate_request: &'a str,
    subject: Name<'a>,
}

#[derive(Serialize)]
struct Name<'a> {
    #[serde(rename = "CN")]
    common_name: &'a str,
    names: [Parts<'a>; 1],
}

#[derive(Serialize)]
struct Parts<'a> {
    #[serde(rename = "OU")]
    unit: &'a str,
    #[serde(rename = "O")]
    organization: String,
}

/// The request that the key of `request` be certified for `subject`.
pub(super) fn body(request: &Request, subject: Subject) -> Vec<u8> {
    let (node, role) = (subject.node.to_string(), unit(subject.role));
    let sign = Sign {
        hosts: [role, &node],
        certificate_request: request.pem(),
        subject: Name {
            common_name: &node,
            names: [Parts {
                unit: role,
                organization: subject.cluster.to_string(),
            }],
        },
    };
    serde_json::to_vec(&sign).expect("text always serializes")
}

/// CFSSL's envelope.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    success: bool,
    result: Option<Signed>,
    #[serde(default)]
    errors: Vec<Message>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    message: String,
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("its answer is not CFSSL's: {0}")]
    Form(#[source] serde_json::Error),
    #[error("it does not sign: {0}")]
    Refused(String),
    #[error("it signed something else than was asked for: {0}")]
    Other(&'static str),
    #[error("it signed what is of no use: {0}")]
    Certificate(#[from] CaError),
}

/// The certificate in an answer, unchecked.
pub(crate) fn read(body: &[u8]) -> Result<String, AnswerError> {
    let answer: Answer = serde_json::from_slice(body).map_err(AnswerError::Form)?;
    match answer.result {
        Some(signed) if answer.success => Ok(signed.certificate),
        _ => Err(AnswerError::Refused(reasons(&answer.errors))),
    }
}

/// Whether CFSSL says what is wrong. It does so with other statuses than 200.
pub(super) fn is_refusal(body: &[u8]) -> bool {
    let answer = serde_json::from_slice::<Answer>(body);
    answer.is_ok_and(|answer| !answer.success && !answer.errors.is_empty())
}

fn reasons(messages: &[Message]) -> String {
    let texts = messages.iter().map(|message| message.message.as_str());
    let texts: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
    match texts.is_empty() {
        true => "it does not say why".to_owned(),
        false => texts[..texts.len().min(MESSAGES_MAX)].join(", "),
    }
}

/// Whether the first certificate of the chain is for the key in `request` and for `subject`, leads to
/// a root, and is good at `now` for both sides of a connection.
pub(super) fn check(
    chain_pem: &str,
    request: &Request,
    subject: Subject,
    roots: &Roots,
    now: Timestamp,
) -> Result<(), AnswerError> {
    let chain = certificates(chain_pem).ok_or(CaError::Certificate("it does not parse as PEM"))?;
    let parts = chain.split_first().filter(|_| chain.len() <= CHAIN_MAX);
    let (leaf, rest) = parts.ok_or(CaError::Certificate("want one, or two at most"))?;
    let identity = Identity::from_der(leaf)?;
    if public_key(leaf)? != request.key().der_bytes() {
        return Err(AnswerError::Other("another key"));
    }
    if identity.node != subject.node || identity.cluster != subject.cluster {
        return Err(AnswerError::Other("another node"));
    }
    if identity.role != subject.role {
        return Err(AnswerError::Other("another role"));
    }
    if identity.not_after <= identity.issued_at {
        return Err(AnswerError::Other("a life of less than an hour"));
    }
    let vouched = Vouched {
        leaf,
        rest,
        roots,
        at: now,
    };
    tls::check_client(&vouched)?;
    tls::check_server(&vouched, subject.role)?;
    Ok(())
}

fn public_key(leaf: &CertificateDer<'_>) -> Result<Vec<u8>, CaError> {
    let parsed = X509Certificate::from_der(leaf);
    let (_, certificate) = parsed.map_err(|_| CaError::Certificate("it does not parse"))?;
    let key = &certificate.public_key().subject_public_key;
    Ok(key.data.to_vec())
}
