//! `service`: what runs, and how it is reached.

mod create;
mod inspect;
mod ls;
mod pretty;
mod ps;
mod rm;
mod rollback;
mod scale;
mod update;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{client::Client, progress};

#[derive(Debug, Subcommand)]
pub enum Service {
    /// Create a service
    Create(Box<create::Create>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    /// List the tasks of services
    #[command(visible_alias = "tasks")]
    Ps(ps::Ps),
    /// Show services in detail
    Inspect(inspect::Inspect),
    /// Set the number of tasks of replicated services
    Scale(scale::Scale),
    /// Change a service
    Update(Box<update::Update>),
    /// Return a service to its spec before the last update
    Rollback(rollback::Rollback),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
}

impl Service {
    pub async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::Create(create) => create.run(client).await,
            Self::Ls(ls) => ls.run(client).await,
            Self::Ps(ps) => ps.run(client).await,
            Self::Inspect(inspect) => inspect.run(client).await,
            Self::Scale(scale) => scale.run(client).await,
            Self::Update(update) => update.run(client).await,
            Self::Rollback(rollback) => rollback.run(client).await,
            Self::Rm(rm) => rm.run(client).await,
        }
    }
}

/// How a command that changes a service ends.
#[derive(Debug, Default, Args)]
struct Waiting {
    /// Do not wait until the service has converged
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    detach: bool,
    /// Wait, but show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Waiting {
    async fn wait(&self, client: &Client, service_id: &str) -> Result<()> {
        if self.detach {
            return Ok(());
        }
        progress::wait(client, service_id, self.quiet).await
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("WARNING: {warning}");
    }
}
