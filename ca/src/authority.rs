//! The cluster's root, and the certificates that it signs.

use jiff::{SignedDuration, Timestamp, ToSpan, tz::TimeZone};
use model::{ClusterId, NodeId, object::RootCa, spec::NodeRole};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;

use crate::{CaError, Request, identity::unit};

/// Common name of the root certificate, as Swarm's.
pub const ROOT_CN: &str = "swarm-ca";
const ROOT_YEARS: i32 = 20;
/// Certificates are valid from this long before they are issued, for nodes whose clocks are late.
pub const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// A fresh root, with its key.
///
/// # Errors
/// When there is no randomness.
pub fn new_root(now: Timestamp) -> Result<RootCa, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
    let certificate = root_params(now).self_signed(&key).map_err(CaError::Sign)?;
    Ok(RootCa {
        certificate_pem: certificate.pem(),
        key_pem: Some(key.serialize_pem()),
    })
}

fn root_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ROOT_CN);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let begin = now.to_zoned(TimeZone::UTC);
    let end = begin.saturating_add(ROOT_YEARS.years());
    (params.not_before, params.not_after) = (date(now - BACKDATE), date(end.timestamp()));
    params
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub role: NodeRole,
}

/// The key that signs, and what makes its signatures known to those who do not trust it yet.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificate of its key by the root before, while the root is being replaced.
    cross_signed_pem: Option<String>,
}

impl Authority {
    /// # Errors
    /// A certificate or key that does not parse; a key that is not here.
    pub fn new(root: &RootCa) -> Result<Self, CaError> {
        let key = key_of(root)?;
        let issuer = Issuer::from_ca_cert_pem(&root.certificate_pem, key)
            .map_err(|_| CaError::Root("it does not parse"))?;
        Ok(Self {
            issuer,
            cross_signed_pem: None,
        })
    }

    /// One whose certificates are also accepted where only the root before is trusted.
    #[must_use]
    pub fn cross_signed(mut self, pem: String) -> Self {
        self.cross_signed_pem = Some(pem);
        self
    }

    /// The certificate, for `subject`, of the key in `request`: with what leads to the root, in
    /// PEM. Valid until `expiry` from now.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        request: &Request,
        subject: Subject,
        now: Timestamp,
        expiry: SignedDuration,
    ) -> Result<String, CaError> {
        let mut params = node_params(subject)?;
        params.not_before = date(now - BACKDATE);
        params.not_after = date(now.saturating_add(expiry).unwrap_or(Timestamp::MAX));
        let certificate = params.signed_by(request.key(), &self.issuer);
        let mut chain = certificate.map_err(CaError::Sign)?.pem();
        chain.extend(self.cross_signed_pem.as_deref());
        Ok(chain)
    }

    /// The certificate of another root's key, for those who trust this one.
    ///
    /// # Errors
    /// A root that does not parse, or when signing fails.
    pub fn cross_sign(&self, root: &RootCa, now: Timestamp) -> Result<String, CaError> {
        let key = key_of(root)?;
        let mut params = root_params(now);
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Sign)?;
        Ok(certificate.pem())
    }
}

fn key_of(root: &RootCa) -> Result<KeyPair, CaError> {
    let pem = root.key_pem.as_deref();
    let pem = pem.ok_or(CaError::Root("an external CA has its key"))?;
    KeyPair::from_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| CaError::Root("its key does not parse"))
}

fn node_params(subject: Subject) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let (node, role) = (subject.node.to_string(), unit(subject.role));
    let names = [
        (DnType::OrganizationName, subject.cluster.to_string()),
        (DnType::OrganizationalUnitName, role.to_owned()),
        (DnType::CommonName, node.clone()),
    ];
    for (kind, name) in names {
        params.distinguished_name.push(kind, name);
    }
    // The name that a client asks for is the role that it wants to talk to.
    for name in [role, &node] {
        let name = name.try_into().map_err(CaError::Sign)?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// Whole seconds, as certificates have them.
fn date(time: Timestamp) -> OffsetDateTime {
    // Outside of it certificates cannot say when: years have four digits.
    let (first, last) = (0, 253_402_300_799);
    let second = time.as_second().clamp(first, last);
    OffsetDateTime::from_unix_timestamp(second).expect("it was clamped to years 1970 to 9999")
}
