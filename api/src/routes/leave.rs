//! Leaving the cluster. A manager goes by force only, and is told first what becomes of the others.

use axum::{
    extract::State,
    http::{HeaderMap, header},
};
use bollard_stubs::models as docker;
use control::{Forwarded, Manager};

use super::{Ctx, leader, warning};
use crate::{error::ApiError, local_node::MemberState, request::Params};

const NO_WAY_BACK: &str = "The only way to restore a swarm that has lost consensus is to \
                           reinitialize it with `--force-new-cluster`. Use `--force` to suppress \
                           this message.";

/// The sentences are Docker's.
pub(super) async fn leave(State(node): State<Ctx>, params: Params) -> Result<HeaderMap, ApiError> {
    let force = params.flag("force");
    match node.status().state {
        MemberState::Inactive => {
            return Err(ApiError::unavailable("This node is not part of a swarm"));
        }
        MemberState::Manager | MemberState::Restored if !force => {
            return Err(manager_must_force(&node).await);
        }
        MemberState::Locked if !force => {
            return Err(ApiError::unavailable(
                "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore \
                 this message.",
            ));
        }
        MemberState::Manager
        | MemberState::Restored
        | MemberState::Locked
        | MemberState::Pending
        | MemberState::Worker => {}
    }
    Ok(told(node.leave().await?))
}

/// A node that is gone says in its last answer what it leaves behind.
fn told(text: Option<String>) -> HeaderMap {
    let field = text.and_then(|text| warning::field(warning::MISCELLANEOUS, &text));
    let field = field.map(|field| (header::WARNING, field));
    field.into_iter().collect()
}

async fn manager_must_force(node: &Ctx) -> ApiError {
    let consequence = match node.manager() {
        Some(manager) => consequence(Managers::of(&manager).await),
        None => format!("Doing so may lose the consensus of your cluster. {NO_WAY_BACK}"),
    };
    ApiError::unavailable(format!(
        "You are attempting to leave the swarm on a node that is participating as a manager. \
         {consequence}"
    ))
}

/// What becomes of the swarm when one of its managers leaves. Docker warns of two that reach each
/// other as well: there who leaves is not taken out of the group, and here it is.
fn consequence(managers: Option<Managers>) -> String {
    let Some(Managers { reachable, all }) = managers else {
        return NO_WAY_BACK.to_owned();
    };
    if all <= 1 {
        return "Removing the last manager erases all current state of the swarm. Use `--force` to \
                ignore this message. "
            .to_owned();
    }
    let (left, of) = (reachable.saturating_sub(1), all - 1);
    if left > of / 2 {
        return NO_WAY_BACK.to_owned();
    }
    format!(
        "Removing this node leaves {left} managers out of {all}. Without a Raft quorum your swarm \
         will be inaccessible. {NO_WAY_BACK}"
    )
}

/// How many managers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Managers {
    /// By the leader.
    reachable: usize,
    all: usize,
}

impl Managers {
    /// `None` when no leader tells.
    async fn of(manager: &Manager) -> Option<Self> {
        let reached: Vec<bool> = match manager.forward(&leader::get("/nodes")).await {
            Forwarded::Here => {
                let state = manager.store().state();
                let managers = state.nodes().filter_map(|node| node.manager);
                let reached = managers.map(|its| manager.reach(its.raft).reachable);
                reached.collect()
            }
            Forwarded::Answered(answer) => {
                let nodes: Vec<docker::Node> = serde_json::from_slice(&answer.body).ok()?;
                let statuses = nodes.into_iter().filter_map(|node| node.manager_status);
                let reachable = Some(docker::Reachability::REACHABLE);
                statuses.map(|its| its.reachability == reachable).collect()
            }
            Forwarded::NoLeader { .. } | Forwarded::InDoubt { .. } => return None,
        };
        Some(Self {
            reachable: reached.iter().filter(|is_reached| **is_reached).count(),
            all: reached.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manager_that_leaves_is_told_what_becomes_of_the_others() {
        let told = |reachable, all| consequence(Some(Managers { reachable, all }));
        assert!(told(1, 1).starts_with("Removing the last manager erases"));
        for (reachable, all) in [(2, 2), (3, 3), (3, 4), (4, 5), (5, 5)] {
            assert_eq!(told(reachable, all), NO_WAY_BACK, "{reachable} of {all}");
        }
        for (reachable, all, left) in [(1, 2, 0), (2, 3, 1), (3, 5, 2), (0, 3, 0)] {
            let text = told(reachable, all);
            let warning = format!("leaves {left} managers out of {all}. Without a Raft quorum");
            assert!(
                text.contains(&warning) && text.ends_with(NO_WAY_BACK),
                "{text}"
            );
        }
        assert_eq!(consequence(None), NO_WAY_BACK, "nobody tells");
    }

    #[test]
    fn what_is_left_behind_is_in_the_answer() {
        assert!(told(None).is_empty());
        let headers = told(Some("two managers still count it".to_owned()));
        assert_eq!(
            headers[header::WARNING],
            "199 swarmnet \"two managers still count it\""
        );
    }
}
