//! `service inspect`.

use anyhow::Result;
use bollard_stubs::models::Network;
use clap::Args;
use jiff::Timestamp;

use super::pretty;
use crate::{
    client::{Client, Filters, Route},
    commands::Outcomes,
    output::{Inspected, print_objects},
};

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    output: Inspected,
    /// Print for people
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Inspect {
    pub async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let mut texts = Vec::new();
        for name in &self.services {
            let route = Route::new("services").segment(name);
            match client.get_text(route.query("insertDefaults", true)).await {
                Ok(text) => texts.push(text),
                err => outcomes.add(err.map(drop)),
            }
        }
        if self.pretty {
            let networks = client.networks(&Filters::default()).await?;
            for text in &texts {
                let service = serde_json::from_str(text)?;
                let name = |id: &str| network_name(&networks, id).to_owned();
                println!("{}", pretty::service(&service, name, Timestamp::now()));
            }
        } else {
            print!("{}", print_objects(&self.output.format, &texts)?);
        }
        outcomes.end()
    }
}

fn network_name<'a>(networks: &'a [Network], id: &'a str) -> &'a str {
    networks
        .iter()
        .find(|network| network.id.as_deref() == Some(id))
        .and_then(|network| network.name.as_deref())
        .unwrap_or(id)
}
