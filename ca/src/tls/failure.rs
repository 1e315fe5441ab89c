//! Why a connection failed, for a person.

use std::{error::Error, io};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError, pki_types::UnixTime};

use super::verify::OtherCluster;

/// What of `error` or its causes TLS is to blame for, as the end of a sentence about a manager.
/// `None` when TLS had no part in it.
pub fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    causes(error).find_map(|cause| match tls_error(cause) {
        Some(error) => Some(sentence(error)),
        None => alert(cause).map(|alert| sentence(&rustls::Error::AlertReceived(alert))),
    })
}

/// Whether `error` or one of its causes is the peer's alert that it wants a certificate from us, or
/// another one (RFC 8446, 6.2).
pub(crate) fn refuses_certificate(error: &(dyn Error + 'static)) -> bool {
    let alert = causes(error).find_map(|cause| match tls_error(cause) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    });
    matches!(
        alert,
        Some(
            AlertDescription::CertificateRequired
                // Of Go's servers, until 1.21, to who shows none.
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::AccessDenied
        )
    )
}

/// HTTP/2 keeps only the text of what went wrong below it.
fn alert(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let text = error.to_string();
    let (_, name) = text.rsplit_once("received fatal alert: ")?;
    [
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateUnknown,
        AlertDescription::BadCertificate,
        AlertDescription::DecryptError,
        AlertDescription::UnknownCA,
    ]
    .into_iter()
    .find(|alert| name == format!("{alert:?}"))
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    // An I/O error gives its cause's cause as its own.
    let within = error.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
    let within = within.and_then(|e| e.downcast_ref::<rustls::Error>());
    within.or_else(|| error.downcast_ref())
}

fn sentence(error: &rustls::Error) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(ExpiredContext { time, not_after }) => format!(
            "its certificate was valid until {}, and the clock of this node says {}; set the \
             clock, or start that manager again so that it renews its certificate",
            date(*not_after),
            date(*time)
        ),
        InvalidCertificate(NotValidYetContext { time, not_before }) => format!(
            "its certificate is valid from {} on, and the clock of this node says {}; set the \
             clock",
            date(*not_before),
            date(*time)
        ),
        InvalidCertificate(Expired | NotValidYet) => {
            "its certificate is not valid now; is the clock of this node right?".to_owned()
        }
        InvalidCertificate(UnknownIssuer | BadSignature) => {
            "its certificate is not from the root that this node trusts: it belongs to another \
             swarm, or is an impostor"
                .to_owned()
        }
        InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is not that of a manager".to_owned()
        }
        InvalidCertificate(Other(other)) => match other.0.downcast_ref::<OtherCluster>() {
            Some(other) => format!("{other}, not of this node's"),
            None => format!("its certificate is wrong: {other}"),
        },
        AlertReceived(AlertDescription::CertificateExpired) => {
            "it holds the certificate of this node for expired, or not valid yet; compare the \
             clocks of both"
                .to_owned()
        }
        AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown,
        ) => "it does not know who issued the certificate of this node: it belongs to another \
              swarm, or its root was replaced while this node was away; leave with `swarmnet leave \
              --force` and join again"
            .to_owned(),
        InvalidMessage(_) => "it does not speak TLS".to_owned(),
        other => format!("TLS failed: {other}"),
    }
}

fn date(time: UnixTime) -> Timestamp {
    let second = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}
