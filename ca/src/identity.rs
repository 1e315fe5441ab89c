//! Who a certificate says its holder is. The certificate's signature is the concern of TLS: here
//! it is only read.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, ToSpan};
use model::{ClusterId, NodeId, spec::NodeRole};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer, X509Certificate},
    time::ASN1Time,
    x509::AttributeTypeAndValue,
};

use crate::{BACKDATE, CaError};

/// The organizational unit of a role.
pub(crate) fn unit(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Manager => "swarm-manager",
        NodeRole::Worker => "swarm-worker",
    }
}

fn role(unit: &str) -> Option<NodeRole> {
    let roles = [NodeRole::Manager, NodeRole::Worker];
    roles.into_iter().find(|role| self::unit(*role) == unit)
}

/// Names an authority's key: the identifier that its certificates carry of it (RFC 5280,
/// 4.2.1.1 and 4.2.1.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(Vec<u8>);

impl KeyId {
    pub(crate) fn of_subject(certificate: &X509Certificate<'_>) -> Option<Self> {
        let extensions = certificate.extensions().iter();
        let mut found = extensions.filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(Self(id.0.to_vec())),
            _ => None,
        });
        found.next()
    }

    fn of_issuer(certificate: &X509Certificate<'_>) -> Option<Self> {
        let extensions = certificate.extensions().iter();
        let mut found = extensions.filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
            _ => None,
        });
        found.next().map(|id| Self(id.0.to_vec()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub role: NodeRole,
    /// By the issuer's clock. The certificate is valid from [`BACKDATE`] before; one of an external CA,
    /// which backdates by as much as it likes, may seem to be issued up to that much later than it was.
    pub issued_at: Timestamp,
    pub not_after: Timestamp,
    pub issuer: KeyId,
}

impl Identity {
    /// # Errors
    /// Says what the certificate lacks.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, CaError> {
        let parsed = X509Certificate::from_der(der);
        let (_, certificate) = parsed.map_err(|_| CaError::Certificate("it does not parse"))?;
        let subject = certificate.subject();
        let validity = certificate.validity();
        let unit = text(subject.iter_organizational_unit(), NO_ROLE)?;
        let not_before = timestamp(validity.not_before)?;
        Ok(Self {
            node: id(text(subject.iter_common_name(), NO_NODE)?, NO_NODE)?,
            cluster: id(text(subject.iter_organization(), NO_CLUSTER)?, NO_CLUSTER)?,
            role: role(unit).ok_or(CaError::Certificate(NO_ROLE))?,
            issued_at: not_before + BACKDATE,
            not_after: timestamp(validity.not_after)?,
            issuer: KeyId::of_issuer(&certificate)
                .ok_or(CaError::Certificate("it does not name its issuer's key"))?,
        })
    }

    /// When the certificate expired, if it has.
    pub fn expired(&self, now: Timestamp) -> Option<Timestamp> {
        (self.not_after < now).then_some(self.not_after)
    }

    /// When it is time for a new certificate: at a moment in the second half of this one's
    /// life, the earlier the smaller `share` is (0 to 1: 50 to 80 % of the life).
    pub fn renewal_at(&self, share: f64) -> Timestamp {
        let life = self.not_after.duration_since(self.issued_at).as_secs_f64();
        let wait = life.max(0.0) * (0.5 + 0.3 * share.clamp(0.0, 1.0));
        // Whole seconds: certificates have no finer ones.
        self.issued_at
            .saturating_add((wait as i64).seconds())
            .unwrap_or(self.not_after)
    }
}

const NO_NODE: &str = "its common name is no node's id";
const NO_CLUSTER: &str = "its organization is no cluster's id";
const NO_ROLE: &str = "its organizational unit is neither swarm-manager nor swarm-worker";

/// The only value; more than one would be for the reader to choose.
fn text<'a>(
    mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
    wrong: &'static str,
) -> Result<&'a str, CaError> {
    let only = values.next().filter(|_| values.next().is_none());
    only.and_then(|value| value.as_str().ok())
        .ok_or(CaError::Certificate(wrong))
}

fn id<T: FromStr>(text: &str, wrong: &'static str) -> Result<T, CaError> {
    text.parse().map_err(|_| CaError::Certificate(wrong))
}

fn timestamp(time: ASN1Time) -> Result<Timestamp, CaError> {
    Timestamp::from_second(time.timestamp())
        .map_err(|_| CaError::Certificate("its validity is out of range"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        NodeKey,
        fixture::{Cluster, DAY},
    };

    #[test]
    fn certificate_says_who_its_holder_is() {
        let cluster = Cluster::new();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for role in [NodeRole::Worker, NodeRole::Manager] {
            let certificate = cluster.node_at(role, now);
            let identity = certificate.identity();
            assert_eq!(identity.node, NodeId::from_raw(7));
            assert_eq!((identity.cluster, identity.role), (cluster.id, role));
            assert_eq!((identity.issued_at, identity.not_after), (now, now + DAY));
            assert_eq!(vec![identity.issuer.clone()], cluster.roots().issuers());
        }
    }

    #[test]
    fn subject_is_written_as_swarmkit_writes_it() {
        let cluster = Cluster::new();
        let certificate = cluster.node(NodeRole::Worker);
        let chain = certificate.chain();
        let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
        let (node, id) = (NodeId::from_raw(7), cluster.id);
        assert_eq!(
            parsed.subject().to_string(),
            format!("O={id}, OU=swarm-worker, CN={node}")
        );
        assert_eq!(parsed.issuer().to_string(), "CN=swarm-ca");
    }

    #[test]
    fn a_root_is_nobodys_identity() {
        let root = Cluster::new().root.certificate_pem;
        let der = crate::certificates(&root).unwrap();
        assert!(Identity::from_der(&der[0]).is_err());
    }

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_the_life() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let certificate = Cluster::new().node_at(NodeRole::Worker, now);
        let at = |share| certificate.identity().renewal_at(share);
        assert_eq!(at(0.0), now + DAY / 2);
        assert_eq!(at(1.0), now + DAY / 10 * 8);
        assert_eq!(at(7.0), at(1.0));
    }

    #[test]
    fn certificate_of_another_key_or_root_does_not_fit() {
        let (ours, theirs) = (Cluster::new(), Cluster::new());
        let key = || NodeKey::generate().unwrap();
        let chain = ours.chain(&key(), NodeRole::Worker, Timestamp::now());
        let wrong_key = crate::NodeCertificate::new(key(), &chain, ours.roots());
        assert!(wrong_key.unwrap_err().to_string().contains("another key"));
        let key = key();
        let chain = theirs.chain(&key, NodeRole::Worker, Timestamp::now());
        let wrong_root = crate::NodeCertificate::new(key, &chain, ours.roots());
        assert!(wrong_root.unwrap_err().to_string().contains("not issued"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_identity_or_an_error(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            junk: Vec<u8>,
        ) {
            let certificate = Cluster::new().node(NodeRole::Worker);
            let mut der = certificate.chain()[0].to_vec();
            for (at, flip) in &flips {
                let at = at.index(der.len());
                der[at] ^= flip;
            }
            if let Some(cut) = cut {
                der.truncate(cut.index(der.len()));
            }
            for bytes in [der, junk] {
                let _ = Identity::from_der(&bytes.clone().into());
                let pem = ::pem::encode(&::pem::Pem::new("CERTIFICATE", bytes.clone()));
                let _ = crate::Roots::from_pem(&pem);
                let _ = crate::Roots::from_pem(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}
