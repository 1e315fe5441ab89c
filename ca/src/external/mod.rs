//! Certificates signed by an authority outside of the cluster, which speaks CFSSL's API and keeps the
//! root's key for itself. As SwarmKit asks it (`ca/external.go`): by HTTPS, with the manager's own
//! certificate, and one URL after the other until one signs.
//!
//! * [`endpoint`]: where such an authority is.
//! * [`exchange`]: one request and its answer, over TLS 1.3.
//! * [`answer`]: what comes back, and whether it is what was asked for.

pub(crate) mod answer;
mod endpoint;
mod exchange;
#[cfg(test)]
mod tests;

use std::fmt;

use jiff::Timestamp;

use crate::{NodeTls, Request, Roots, Subject};

pub use answer::AnswerError;
pub use endpoint::{Endpoint, EndpointError};
pub use exchange::ExchangeError;

/// Authorities that sign by the same roots, any of which will do.
#[derive(Debug, Clone, Copy)]
pub struct External<'a> {
    pub endpoints: &'a [Endpoint],
    /// Vouch for their servers, and for what they sign.
    pub roots: &'a Roots,
    /// The manager that asks. The first one has no certificate when it asks for its own.
    pub caller: Option<&'a NodeTls>,
}

impl External<'_> {
    /// The certificate, for `subject`, of the key in `request`, in PEM: the first that an authority
    /// gives and that is as asked for.
    ///
    /// # Errors
    /// What each of them said, or that it did not answer within five seconds.
    pub async fn sign(&self, request: &Request, subject: Subject) -> Result<String, ExternalError> {
        let mut failures = ExternalError::default();
        for endpoint in self.endpoints {
            let signed = async {
                let answer = exchange::post(endpoint, self, answer::body(request, subject)).await?;
                let chain_pem = answer::read(&answer.body()?)?;
                answer::check(&chain_pem, request, subject, self.roots, Timestamp::now())?;
                Ok(chain_pem)
            };
            match signed.await {
                Ok(chain_pem) => return Ok(chain_pem),
                Err(failure) => failures.add(endpoint, failure),
            }
        }
        Err(failures)
    }

    /// Whether one of them is there, with a server that the roots vouch for, and hears this manager.
    /// It is asked to sign nothing.
    ///
    /// # Errors
    /// Why none is.
    pub async fn reach(&self) -> Result<(), ExternalError> {
        let mut failures = ExternalError::default();
        for endpoint in self.endpoints {
            let answer = exchange::post(endpoint, self, b"{}".to_vec()).await;
            match answer.and_then(exchange::Answer::found) {
                Ok(()) => return Ok(()),
                Err(failure) => failures.add(endpoint, failure.into()),
            }
        }
        Err(failures)
    }
}

/// Why an authority did not sign.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Why none did, by the URLs that were asked.
#[derive(Debug, Default)]
pub struct ExternalError(Vec<(Endpoint, Failure)>);

impl ExternalError {
    fn add(&mut self, endpoint: &Endpoint, failure: Failure) {
        self.0.push((endpoint.clone(), failure));
    }
}

impl fmt::Display for ExternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no external CA is named");
        }
        for (nth, (endpoint, failure)) in self.0.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "; " };
            write!(f, "{separator}external CA {endpoint}: {failure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ExternalError {}
