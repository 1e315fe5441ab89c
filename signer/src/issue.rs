//! The root, and the certificates that are signed by it.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

use crate::Conduct;

/// As CFSSL's when its profile says nothing.
const BACKDATE: Duration = Duration::minutes(5);
const LIFE: Duration = Duration::days(30);

/// CFSSL's `jsonSignRequest`, of which SwarmKit sends this.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    hosts: Vec<String>,
    certificate_request: String,
    subject: Subject,
}

#[derive(Debug, Deserialize)]
struct Subject {
    #[serde(rename = "CN")]
    common_name: String,
    names: Vec<Name>,
}

#[derive(Debug, Deserialize)]
struct Name {
    #[serde(rename = "OU")]
    unit: String,
    #[serde(rename = "O")]
    organization: String,
}

impl Request {
    pub(crate) fn node(&self) -> String {
        self.subject.common_name.clone()
    }

    pub(crate) fn role(&self) -> Option<String> {
        self.subject.names.first().map(|name| name.unit.clone())
    }
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
    root_pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("there is randomness");
        let mut params = named("corporate-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("the parameters are right");
        Self {
            root_pem: root.pem(),
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let added = roots.add(self.root.der().clone());
        added.expect("it was made as a root");
        roots
    }

    /// For the signer's own server.
    pub(crate) fn server(&self, addr: IpAddr) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("there is randomness");
        let mut params = named("signer");
        params.subject_alt_names = vec![SanType::IpAddress(addr)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("the parameters are right");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        (certificate.der().clone(), key)
    }

    /// In PEM; `None` for a request that is none.
    pub(crate) fn issue(&self, request: &Request, conduct: Conduct) -> Option<String> {
        let asked = CertificateSigningRequestParams::from_pem(&request.certificate_request).ok()?;
        let params = node_params(request, conduct)?;
        let own = KeyPair::generate().ok()?;
        let other = Self::new();
        let issuer = match conduct {
            Conduct::OtherRoot => &other.issuer,
            _ => &self.issuer,
        };
        let certificate = match conduct {
            Conduct::OtherKey => sign(params, &own, issuer),
            _ => sign(params, &asked.public_key, issuer),
        };
        Some(certificate?.pem())
    }
}

fn sign(
    params: CertificateParams,
    key: &impl PublicKeyData,
    issuer: &Issuer<'_, KeyPair>,
) -> Option<rcgen::Certificate> {
    params.signed_by(key, issuer).ok()
}

fn node_params(request: &Request, conduct: Conduct) -> Option<CertificateParams> {
    let name = request.subject.names.first()?;
    let unit = match (conduct, name.unit.as_str()) {
        (Conduct::OtherRole, "swarm-worker") => "swarm-manager",
        (Conduct::OtherRole, _) => "swarm-worker",
        (_, unit) => unit,
    };
    let node = match conduct {
        Conduct::OtherNode => "0000000000000000000000001",
        _ => &request.subject.common_name,
    };
    let mut params = named(node);
    let names = &mut params.distinguished_name;
    names.push(DnType::OrganizationName, &name.organization);
    names.push(DnType::OrganizationalUnitName, unit);
    if conduct != Conduct::NoHosts {
        for host in &request.hosts {
            let host = host.as_str().try_into().ok()?;
            params.subject_alt_names.push(SanType::DnsName(host));
        }
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = match conduct {
        Conduct::Early => now + Duration::hours(1),
        _ => now - BACKDATE,
    };
    params.not_after = now + LIFE;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Some(params)
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}
