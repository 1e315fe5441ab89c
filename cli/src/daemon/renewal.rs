//! Renews the node's certificate when 50 to 80 % of its life are over, or when it is wanted sooner. Any manager signs, whoever
//! leads; a manager signs for its own node.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context, Result, anyhow};
use ca::{Connector, NodeCertificate, NodeKey, NodeTls, Roots, clock::until};
use control::Manager;
use jiff::{SignedDuration, Timestamp};
use model::rpc::{AuthorityClient, Certified, RenewRequest};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use super::certificates::Certificates;

/// For a manager to answer.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// After a failure; twice as long after each further one, and sooner when little is left.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// Of what is left of the certificate's life, no more than this part is waited for.
const RETRY_SHARE: i32 = 8;

/// Who signs.
pub enum Signer {
    /// The manager on this node.
    Own(Manager),
    /// Managers elsewhere, each of which will do.
    Others(Vec<SocketAddrV4>),
}

/// Renews a node's certificate until it is dropped.
pub struct Renewal {
    cancel: DropGuard,
    renewing: JoinHandle<()>,
}

impl Renewal {
    /// See [`run`].
    pub fn start(
        tls: NodeTls,
        certificates: Certificates,
        signer: impl Fn() -> Signer + Send + Sync + 'static,
    ) -> Self {
        let cancel = CancellationToken::new();
        let renewing = tokio::spawn(run(tls, certificates, signer, cancel.clone()));
        Self {
            cancel: cancel.drop_guard(),
            renewing,
        }
    }

    /// Ends it: nothing is written to the disk when this returns.
    pub async fn end(self) {
        drop(self.cancel);
        if let Err(panic) = self.renewing.await {
            error!(%panic, "the renewal of the certificate ended badly");
        }
    }
}

/// Renews whenever it is time, until cancelled. `signer` is asked anew each time.
pub async fn run(
    tls: NodeTls,
    certificates: Certificates,
    signer: impl Fn() -> Signer,
    cancel: CancellationToken,
) {
    let work = async {
        loop {
            // Another moment for each certificate, so that those of many nodes do not coincide.
            let due = tls.with(|own| own.identity().renewal_at(rand::random()));
            tokio::select! {
                () = until(due) => persist(&tls, &certificates, &signer).await,
                () = tls.renewal_wanted() => persist(&tls, &certificates, &signer).await,
                () = tls.replaced() => {}
            }
        }
    };
    cancel.run_until_cancelled(work).await;
}

/// Tries until it is done. One that expired is not renewed by other managers.
async fn persist(tls: &NodeTls, certificates: &Certificates, signer: &impl Fn() -> Signer) {
    let mut pause = RETRY_MIN;
    while let Err(err) = renew(tls, certificates, signer()).await {
        match tls.with(|own| own.identity().expired(Timestamp::now())) {
            Some(when) => error!("{}; it cannot be renewed: {err:#}", ca::expired(when)),
            None => warn!("cannot renew the certificate: {err:#}; trying again in {pause:?}"),
        }
        tokio::time::sleep(pause).await;
        let not_after = tls.with(|own| own.identity().not_after);
        pause = next_pause(pause, not_after.duration_since(Timestamp::now()));
    }
}

/// After `pause`, with `left` of the certificate's life, or less than nothing.
fn next_pause(pause: Duration, left: SignedDuration) -> Duration {
    let longer = RETRY_MAX.min(pause * 2);
    match left.is_positive() {
        true => longer
            .min((left / RETRY_SHARE).unsigned_abs())
            .max(RETRY_MIN),
        false => longer,
    }
}

/// A new key, its certificate on disk, and both in use.
///
/// # Errors
/// What the managers or the disk said; the old ones stay.
pub async fn renew(tls: &NodeTls, certificates: &Certificates, signer: Signer) -> Result<()> {
    let key = NodeKey::generate()?;
    let request_pem = key.request()?;
    let (certified, manager) = match signer {
        Signer::Own(manager) => (sign(&manager, &request_pem).await?, Some(manager)),
        Signer::Others(addrs) => (ask(tls, &addrs, request_pem).await?, None),
    };
    let roots = Roots::from_pem(&certified.roots_pem)?;
    let certificate = NodeCertificate::new(key, &certified.chain_pem, roots)?;
    let vault = manager.as_ref().map(|manager| manager.store().data_key());
    certificates.save(&certificate, vault)?;
    let identity = certificate.identity().clone();
    tls.replace(certificate)?;
    info!(node.role = ?identity.role, certificate.not_after = %identity.not_after,
        "certificate renewed");
    Ok(())
}

async fn sign(manager: &Manager, request_pem: &str) -> Result<Certified> {
    let certified = manager.certify(request_pem).await;
    certified.map_err(|status| anyhow!("{}", status.message()))
}

/// The first manager's answer.
async fn ask(tls: &NodeTls, managers: &[SocketAddrV4], request_pem: String) -> Result<Certified> {
    let request = RenewRequest { request_pem };
    let mut failure = anyhow!("no manager is known");
    for addr in managers {
        let asked = tokio::time::timeout(CALL_WAIT, ask_one(tls, *addr, request.clone())).await;
        match asked.unwrap_or_else(|_| Err(anyhow!("it does not answer"))) {
            Ok(certified) => return Ok(certified),
            Err(err) => failure = err.context(format!("manager {addr}")),
        }
    }
    Err(failure)
}

async fn ask_one(tls: &NodeTls, addr: SocketAddrV4, request: RenewRequest) -> Result<Certified> {
    let channel = net::dial(&Connector::member(tls), addr).await?;
    let answer = AuthorityClient::new(channel).renew(request).await;
    let answer = answer.map_err(|status| {
        anyhow!(net::refused_certificate(&status).unwrap_or_else(|| status.message().to_owned()))
    });
    Ok(answer.context("it refuses")?.into_inner())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use control::{ApiHandler, InitOptions, ManagerConfig, NodeCredentials};
    use model::{
        object::DataPathConfig,
        rpc::{ApiRequest, ApiResponse},
        spec::{ClusterSpec, ExternalCa},
    };
    use tempfile::TempDir;

    use super::*;

    /// No other manager forwards anything.
    struct Alone;

    #[async_trait::async_trait]
    impl ApiHandler for Alone {
        async fn answer(&self, request: ApiRequest) -> ApiResponse {
            panic!("{} was forwarded", request.uri)
        }
    }

    /// A manager whose certificates live for a few seconds.
    async fn manager(dir: &TempDir, expiry: Duration) -> (Manager, NodeCredentials) {
        let spec = ClusterSpec {
            cert_expiry: expiry,
            ..ClusterSpec::default()
        };
        manager_with(dir, spec).await
    }

    async fn manager_with(dir: &TempDir, spec: ClusterSpec) -> (Manager, NodeCredentials) {
        let config = ManagerConfig {
            state_dir: dir.path().join("manager"),
            listen_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            unlock: None,
            api: std::sync::Arc::new(Alone),
        };
        let init = InitOptions {
            spec,
            data_path: DataPathConfig::default(),
            description: Default::default(),
            availability: Default::default(),
            advertise_addr: Ipv4Addr::LOCALHOST,
            advertise_port: None,
            data_path_addr: None,
        };
        Manager::bootstrap(config, init).await.unwrap()
    }

    fn addr(manager: &Manager) -> SocketAddrV4 {
        match manager.local_addr() {
            SocketAddr::V4(addr) => addr,
            SocketAddr::V6(_) => unreachable!("it listens on 127.0.0.1"),
        }
    }

    /// A certificate of an hour is renewed when 12 minutes are left, at the latest: who did not answer
    /// for 11 of them is still asked in time.
    #[test]
    fn whoever_answers_again_before_the_end_is_asked_before_it() {
        let life = SignedDuration::from_mins(12);
        let (mut at, mut pause) = (SignedDuration::ZERO, RETRY_MIN);
        let mut asked = Vec::new();
        while at < life {
            asked.push(at);
            at += SignedDuration::try_from(pause).unwrap();
            pause = next_pause(pause, life - at);
        }
        let last = asked.pop().unwrap();
        assert!(last > SignedDuration::from_mins(11), "{last:?}");
        assert!(asked.len() < 40, "{} times", asked.len());

        let quarter = SignedDuration::from_hours(24 * 20);
        let grown = (0..20).fold(RETRY_MIN, |pause, _| next_pause(pause, quarter));
        assert_eq!(grown, RETRY_MAX);
        assert_eq!(next_pause(RETRY_MAX, -life), RETRY_MAX);
    }

    #[tokio::test]
    async fn certificates_are_renewed_in_time_again_and_again_and_kept() {
        let dir = TempDir::new().unwrap();
        let (manager, credentials) = manager(&dir, Duration::from_secs(6)).await;
        let certificates = Certificates::new(dir.path());
        let tls = credentials.tls;
        let first = tls.with(|own| own.identity().clone());
        let cancel = CancellationToken::new();
        let managers = vec![addr(&manager)];
        let signer = move || Signer::Others(managers.clone());
        let run = tokio::spawn(run(
            tls.clone(),
            certificates.clone(),
            signer,
            cancel.clone(),
        ));
        let mut before = first.clone();
        for _ in 0..2 {
            // Still valid: the managers would not hear an expired one.
            tls.replaced().await;
            let now = tls.with(|own| own.identity().clone());
            assert!(now.not_after > before.not_after);
            assert!(
                now.issued_at < before.not_after,
                "renewed before it expired"
            );
            assert_eq!((now.node, now.role), (first.node, first.role));
            before = now;
        }
        cancel.cancel();
        run.await.unwrap();
        let kept = certificates
            .load(|| unreachable!("it is not sealed"))
            .unwrap();
        assert_eq!(kept.identity(), &before);
        manager.shutdown().await;
    }

    #[tokio::test]
    async fn a_manager_signs_for_its_own_node_even_when_its_certificate_expired() {
        let dir = TempDir::new().unwrap();
        let (manager, credentials) = manager(&dir, Duration::ZERO).await;
        let certificates = Certificates::new(dir.path());
        let tls = credentials.tls;
        until(tls.with(|own| own.identity().not_after) + jiff::SignedDuration::from_secs(1)).await;
        let others = Signer::Others(vec![addr(&manager)]);
        let refused = renew(&tls, &certificates, others).await.unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("valid until"), "{refused}");

        renew(&tls, &certificates, Signer::Own(manager.clone()))
            .await
            .unwrap();
        let vault = || Ok(manager.store().data_key().clone());
        let kept = certificates.load(vault).unwrap();
        let identity = tls.with(|own| own.identity().clone());
        assert_eq!(kept.identity(), &identity);
        assert_eq!(identity.node, credentials.node);
        manager.shutdown().await;
    }

    /// What it does not sign is refused within seconds, with its URL, and the certificate stays.
    #[tokio::test]
    async fn an_external_ca_renews_and_the_certificate_stays_while_it_does_not() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let signer = signer::Signer::start(listener).unwrap();
        let spec = ClusterSpec {
            external_cas: vec![ExternalCa {
                url: signer.url(),
                root_pem: Some(signer.root_pem().to_owned()),
            }],
            ..ClusterSpec::default()
        };
        let dir = TempDir::new().unwrap();
        let (manager, credentials) = manager_with(&dir, spec).await;
        let certificates = Certificates::new(dir.path());
        let tls = credentials.tls;
        let chain = || tls.with(|own| own.chain_pem().to_owned());
        let first = chain();
        signer.conduct(signer::Conduct::Refuse);
        for signed_by in [
            Signer::Own(manager.clone()),
            Signer::Others(vec![addr(&manager)]),
        ] {
            let refused = renew(&tls, &certificates, signed_by).await.unwrap_err();
            let refused = format!("{refused:#}");
            assert!(
                refused.contains(&signer.url()) && refused.contains("policy violation"),
                "{refused}"
            );
            assert_eq!(chain(), first);
        }

        signer.conduct(signer::Conduct::Sign);
        renew(&tls, &certificates, Signer::Own(manager.clone()))
            .await
            .unwrap();
        assert_ne!(chain(), first);
        let node = credentials.node.to_string();
        let callers: Vec<_> = signer
            .signed()
            .into_iter()
            .map(|signed| signed.caller)
            .collect();
        assert_eq!(callers, [None, Some(node)]);
        manager.shutdown().await;
    }
}
