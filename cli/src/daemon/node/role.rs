//! A node becomes a manager or a worker, when the managers say so.

use std::time::Duration;

use agent::Applied;
use anyhow::{Result, ensure};
use model::spec::NodeRole;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Membership, Node, remove_dir};
use crate::daemon::renewal::{self, Signer};

/// Between attempts to become what the managers say.
const ROLE_RETRY: Duration = Duration::from_secs(1);

impl Node {
    /// Follows what the managers make of this node, until its agent ends.
    pub(super) fn follow_role(&self, mut told: watch::Receiver<Applied>) {
        let me = self.me.clone();
        tokio::spawn(async move {
            loop {
                let view = told.borrow_and_update().view.clone();
                let role = view.cluster.as_ref().and_then(|cluster| cluster.role);
                let Some(node) = me.upgrade() else {
                    return;
                };
                let taken = match role {
                    Some(role) => node.take_role(role).await,
                    None => Ok(()),
                };
                drop(node);
                let ended = match taken {
                    Ok(()) => told.changed().await.is_err(),
                    Err(err) => {
                        warn!("cannot become a {role:?}: {err:#}; trying again");
                        tokio::time::sleep(ROLE_RETRY).await;
                        told.has_changed().is_err()
                    }
                };
                if ended {
                    return;
                }
            }
        });
    }

    /// Starts the node's manager, or ends it, when the managers say so.
    async fn take_role(&self, role: NodeRole) -> Result<()> {
        let agent = self.agent.write().await;
        let member = self.seen().member.clone();
        let (Some(membership), true) = (member, agent.is_some()) else {
            return Ok(());
        };
        let is_manager = membership.member.manager.is_some();
        if is_manager == (role == NodeRole::Manager) {
            return Ok(());
        }
        // The change of the role is what it waits for, too: it would write the node's key in the
        // form of the role before, after this has.
        let renewal = self.seen().renewal.take();
        if let Some(renewal) = renewal {
            renewal.end().await;
        }
        let taken = match role {
            NodeRole::Manager => self.be_manager(membership.clone()).await,
            NodeRole::Worker => self.be_worker(membership.clone()).await,
        };
        if taken.is_err() {
            let manager = self.seen().manager.clone();
            let renewal = self.start_renewal(&membership, manager);
            self.seen().renewal.get_or_insert(renewal);
        }
        taken
    }

    async fn be_manager(&self, mut membership: Membership) -> Result<()> {
        self.be_certified_as(NodeRole::Manager, &membership).await?;
        let addrs = membership.member.manager_addrs();
        let (manager, candidate) = self.new_manager(&membership, addrs).await?;
        membership.member.manager = Some(addrs);
        if let Err(err) = self.keep(&membership, Some(&manager)) {
            manager.shutdown().await;
            return Err(err);
        }
        manager.enrol(candidate);
        self.see(Some(membership), Some(manager));
        info!("this node was promoted to a manager");
        Ok(())
    }

    async fn be_worker(&self, mut membership: Membership) -> Result<()> {
        // The others go on without it already. Its key file goes with it.
        let certificates = self.certificates();
        membership.tls.with(|own| certificates.save(own, None))?;
        let manager = self.take_manager();
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
        let managers = self.managers(&membership.member.credentials);
        membership.member.end_manager(managers);
        membership.member.save(&self.config.state_dir)?;
        self.see(Some(membership), None);
        remove_dir(&self.config.manager_dir())?;
        info!("this node was demoted to a worker");
        Ok(())
    }

    /// The others believe a manager by its certificate.
    async fn be_certified_as(&self, role: NodeRole, membership: &Membership) -> Result<()> {
        let Membership { member, tls } = membership;
        let signer = Signer::Others(self.managers(&member.credentials));
        renewal::renew(tls, &self.certificates(), signer).await?;
        let certified = tls.with(|own| own.identity().role);
        ensure!(
            certified == role,
            "the manager that certified this node knows nothing of its new role yet"
        );
        Ok(())
    }
}
