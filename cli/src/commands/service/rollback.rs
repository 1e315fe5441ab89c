//! `service rollback`, and `service update --rollback`.

use anyhow::Result;
use clap::Args;

use super::{Waiting, warn};
use crate::client::Client;

#[derive(Debug, Args)]
pub struct Rollback {
    #[command(flatten)]
    waiting: Waiting,
    service: String,
}

impl Rollback {
    pub async fn run(self, client: &Client) -> Result<()> {
        roll_back(client, &self.service, &self.waiting).await
    }
}

pub(super) async fn roll_back(client: &Client, name: &str, waiting: &Waiting) -> Result<()> {
    let service = client.service(name).await?;
    let spec = service.spec.clone().unwrap_or_default();
    warn(&client.update_service(&service, &spec, true).await?);
    println!("{name}");
    waiting
        .wait(client, service.id.as_deref().unwrap_or_default())
        .await
}
