//! `service ps`.

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;

use crate::{
    client::{Client, Filters},
    commands::Outcomes,
    names::Names,
    tasks::TaskListing,
};

#[derive(Debug, Args)]
pub struct Ps {
    #[command(flatten)]
    listing: TaskListing,
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Ps {
    pub async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let filters = Filters::parse(&self.listing.filter)?;
        let mut tasks = Vec::new();
        let mut found = false;
        for name in &self.services {
            match client.service(name).await {
                Ok(service) => {
                    found = true;
                    let id = service.id.unwrap_or_default();
                    tasks.extend(client.tasks(&filters.clone().with("service", &id)).await?);
                }
                Err(err) if err.is_not_found() => {
                    outcomes.add(Err(anyhow::anyhow!(
                        "no such service: {name}: `swarmnet service ls` lists all"
                    )));
                }
                Err(err) => outcomes.add(Err(err)),
            }
        }
        if found {
            let names = match self.listing.no_resolve {
                true => Names::default(),
                false => Names::load(client).await?,
            };
            self.listing.print(tasks, &names, Timestamp::now())?;
        }
        outcomes.end()
    }
}
