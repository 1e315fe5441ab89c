//! A node leaves its cluster: the managers first, then its tasks, then its files.

use anyhow::Context;
use api::ApiError;
use tracing::{info, warn};

use super::{Membership, Node, join, remove_dir};
use crate::daemon::member::Member;

impl Node {
    /// Leaves the cluster and forgets it. Says what the other managers could not be told.
    ///
    /// # Errors
    /// What could not be stopped or removed.
    pub(super) async fn leave(&self) -> Result<Option<String>, ApiError> {
        let mut agent = self.agent.write().await;
        let (member, locked) = {
            let seen = self.seen();
            (seen.member.clone(), seen.locked.clone())
        };
        let mut untold = None;
        let node = match (member, locked) {
            (Some(member), _) => {
                if self.has_other_managers(&member.member) {
                    // Before the tasks stop, so that the others stop sending to them first.
                    untold = self.tell_managers(&member).await.err();
                }
                member.member.credentials.node
            }
            // Nobody would believe that it is the node that leaves.
            (None, Some(locked)) => locked.credentials.node,
            (None, None) => {
                return Err(ApiError::unavailable("This node is not part of a swarm"));
            }
        };
        let left = match agent.take() {
            Some(agent) => agent.leave().await,
            None => Ok(()),
        };
        let manager = self.take_manager();
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
        self.see(None, None);
        let forgotten = Member::forget(&self.config.state_dir);
        remove_dir(self.certificates().dir())?;
        remove_dir(&self.config.manager_dir())?;
        remove_dir(&self.config.agent_dir())?;
        info!(node.id = %node, "left the cluster");
        left.context("this node left the swarm, but not everything of it could be removed")
            .and(forgotten)
            .map_err(|err| ApiError::internal(format!("{err:#}")))?;
        Ok(untold)
    }

    /// Whether somebody is left to be told when the node leaves.
    fn has_other_managers(&self, member: &Member) -> bool {
        let Some(manager) = self.seen().manager.clone() else {
            return true;
        };
        let state = manager.store().state();
        state
            .nodes()
            .any(|node| node.manager.is_some() && node.id != member.credentials.node)
    }

    /// Managers that cannot be told, or need this one for a quorum, find out by the missing
    /// heartbeats.
    ///
    /// # Errors
    /// What is left to be done on them.
    pub(super) async fn tell_managers(&self, membership: &Membership) -> Result<(), String> {
        let Membership { member, tls } = membership;
        let managers = self.managers(&member.credentials);
        let told = join::leave(&managers, tls).await;
        told.map_err(|err| {
            let untold = still_counted(member, &err);
            warn!("{untold}");
            untold
        })
    }
}

/// What the managers do not know of a node that went without their leave, and the way to tell them.
fn still_counted(member: &Member, why: &str) -> String {
    let node = member.credentials.node;
    let demote = match member.manager {
        Some(_) => format!("`swarmnet node demote {node}`, then "),
        None => String::new(),
    };
    format!(
        "the managers still count this node ({why}); on one of them, when they have a quorum, run \
         {demote}`swarmnet node rm {node}` once it is down"
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{first_member, tests::credentials},
        *,
    };

    #[test]
    fn managers_that_were_not_told_can_be_told_later() {
        let credentials = credentials();
        let node = credentials.node;
        let membership = first_member(credentials, "0.0.0.0:2377".parse().unwrap(), None);
        let mut member = membership.member;
        let manager = still_counted(&member, "no answer");
        let demote = format!("run `swarmnet node demote {node}`, then `swarmnet node rm {node}`");
        assert!(
            manager.contains("(no answer)") && manager.contains(&demote),
            "{manager}"
        );
        member.manager = None;
        let worker = still_counted(&member, "no answer");
        let remove = format!("run `swarmnet node rm {node}`");
        assert!(worker.contains(&remove), "{worker}");
    }
}
