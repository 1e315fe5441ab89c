//! External CAs of a cluster: what may be named, and by whose root they sign. That root is the
//! cluster's. A new cluster takes theirs and never has its key; another root cannot be put in its place
//! later.

use ca::{
    CaError, NodeTls, Roots,
    external::{Endpoint, EndpointError, External, ExternalError},
};
use model::{
    object::{Cluster, RootCa},
    spec::{ClusterSpec, ExternalCa},
};

/// Why external CAs are refused.
#[derive(Debug, thiserror::Error)]
pub enum ExternalCaError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("the `cacert` of external CA {url} is of no use: {source}")]
    Root {
        url: String,
        #[source]
        source: CaError,
    },
    #[error(
        "external CA {url} signs by another root than the swarm's: nodes would not believe its \
         certificates; name one that signs by what `swarmnet ca` shows"
    )]
    OtherRoot { url: String },
    #[error(
        "an external CA signs by a root of its own, which becomes the swarm's: name the file that \
         has it, with `--external-ca protocol=cfssl,url=…,cacert=FILE`"
    )]
    NoRoot,
    #[error(
        "external CAs have the key of this swarm's root, and without one nothing could be signed: \
         name at least one"
    )]
    NoneLeft,
    #[error(
        "the root is not replaced while external CAs are named: it is theirs, and they go on \
         signing by it"
    )]
    Rotates,
    #[error("no external CA can be used: {0}")]
    Unreachable(#[from] ExternalError),
}

/// Where the external CAs are.
pub(crate) fn endpoints(spec: &ClusterSpec) -> Result<Vec<Endpoint>, EndpointError> {
    let parsed = spec
        .external_cas
        .iter()
        .map(|external| external.url.parse());
    parsed.collect()
}

/// The root of a new cluster for which external CAs are to sign; nothing when there are none.
pub(crate) fn founding_root(spec: &ClusterSpec) -> Result<Option<RootCa>, ExternalCaError> {
    if spec.external_cas.is_empty() {
        return Ok(None);
    }
    let named = spec.external_cas.iter().find_map(|external| {
        let pem = external.root_pem.clone()?;
        Some(RootCa {
            certificate_pem: pem,
            key_pem: None,
        })
    });
    let root = named.ok_or(ExternalCaError::NoRoot)?;
    sign_by(spec, &root)?;
    Ok(Some(root))
}

/// Whether the settings of a cluster may become `spec`.
pub(crate) fn check(cluster: &Cluster, spec: &ClusterSpec) -> Result<(), ExternalCaError> {
    if spec.external_cas.is_empty() {
        return match cluster.spec.external_cas.is_empty() || cluster.ca.key_pem.is_some() {
            true => Ok(()),
            false => Err(ExternalCaError::NoneLeft),
        };
    }
    if spec.force_rotate != cluster.spec.force_rotate || cluster.rotation.is_some() {
        return Err(ExternalCaError::Rotates);
    }
    sign_by(spec, &cluster.ca)
}

/// Whether all external CAs sign by `root`, as far as they say by which.
fn sign_by(spec: &ClusterSpec, root: &RootCa) -> Result<(), ExternalCaError> {
    endpoints(spec)?;
    for external in &spec.external_cas {
        let Some(pem) = &external.root_pem else {
            continue;
        };
        if only_root(external, pem)? != only_root(external, &root.certificate_pem)? {
            let url = external.url.clone();
            return Err(ExternalCaError::OtherRoot { url });
        }
    }
    Ok(())
}

/// The digest of the root in `pem`, which must be alone.
fn only_root(external: &ExternalCa, pem: &str) -> Result<[u8; 32], ExternalCaError> {
    let root = Roots::from_pem(pem).and_then(|roots| match roots.issuers().len() {
        1 => Ok(roots.sha256()),
        _ => Err(CaError::Root("want one certificate")),
    });
    root.map_err(|source| ExternalCaError::Root {
        url: external.url.clone(),
        source,
    })
}

/// Whether one of the external CAs that are to be named can be reached, and shows a certificate of the
/// cluster's root.
pub(crate) async fn reach(
    cluster: &Cluster,
    spec: &ClusterSpec,
    caller: &NodeTls,
) -> Result<(), ExternalCaError> {
    if spec.external_cas.is_empty() || spec.external_cas == cluster.spec.external_cas {
        return Ok(());
    }
    // What is wrong in itself is told first, and without asking anybody.
    check(cluster, spec)?;
    let url = || spec.external_cas[0].url.clone();
    let roots = Roots::from_pem(&cluster.ca.certificate_pem);
    let external = External {
        endpoints: &endpoints(spec)?,
        roots: &roots.map_err(|source| ExternalCaError::Root { url: url(), source })?,
        caller: Some(caller),
    };
    Ok(external.reach().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, epoch};

    fn external(root_pem: Option<&str>) -> ClusterSpec {
        ClusterSpec {
            external_cas: vec![ExternalCa {
                url: "https://ca.example/sign".to_owned(),
                root_pem: root_pem.map(str::to_owned),
            }],
            ..ClusterSpec::default()
        }
    }

    fn root() -> RootCa {
        ca::new_root(epoch()).unwrap()
    }

    #[test]
    fn a_new_cluster_takes_the_root_that_is_named_without_its_key() {
        let pem = root().certificate_pem;
        let taken = founding_root(&external(Some(&pem))).unwrap().unwrap();
        assert_eq!((taken.certificate_pem, taken.key_pem), (pem.clone(), None));
        assert_eq!(founding_root(&ClusterSpec::default()).unwrap(), None);

        let none = founding_root(&external(None)).unwrap_err();
        assert!(none.to_string().contains("cacert=FILE"), "{none}");
        let mut two = external(Some(&pem));
        two.external_cas.extend(external(None).external_cas);
        founding_root(&two).unwrap();
        let other = external(Some(&root().certificate_pem));
        two.external_cas.extend(other.external_cas);
        let differ = founding_root(&two).unwrap_err().to_string();
        assert!(differ.contains("another root"), "{differ}");
        for wrong in ["text".to_owned(), pem.repeat(2)] {
            let refused = founding_root(&external(Some(&wrong))).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains("https://ca.example/sign"), "{refused}");
        }
    }

    #[test]
    fn what_would_leave_the_cluster_without_a_signer_is_refused() {
        let own = root();
        let (pem, other) = (own.certificate_pem.clone(), root().certificate_pem);
        let mut cluster = fixture::cluster();
        cluster.ca = own;
        let text =
            |cluster: &Cluster, spec: &ClusterSpec| check(cluster, spec).unwrap_err().to_string();

        check(&cluster, &external(None)).unwrap();
        check(&cluster, &external(Some(&pem))).unwrap();
        let refused = text(&cluster, &external(Some(&other)));
        assert!(
            refused.contains("another root than the swarm's"),
            "{refused}"
        );
        let mut plain = external(None);
        plain.external_cas[0].url = "http://ca.example".to_owned();
        assert!(text(&cluster, &plain).contains("want https://"));

        cluster.spec = external(Some(&pem));
        check(&cluster, &ClusterSpec::default()).unwrap();
        let rotated = ClusterSpec {
            force_rotate: 1,
            ..external(None)
        };
        assert!(text(&cluster, &rotated).contains("the root is not replaced"));
        cluster.ca.key_pem = None;
        let none = text(&cluster, &ClusterSpec::default());
        assert!(none.contains("name at least one"), "{none}");
        check(&cluster, &external(None)).unwrap();
    }
}
