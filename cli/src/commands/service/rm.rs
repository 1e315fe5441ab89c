//! `service rm`.

use anyhow::Result;
use clap::Args;

use crate::{
    client::{Client, Route},
    commands::Outcomes,
};

#[derive(Debug, Args)]
pub struct Rm {
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

impl Rm {
    pub async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        for name in &self.services {
            let outcome = client.delete(Route::new("services").segment(name)).await;
            outcomes.add(outcome.map(|()| println!("{name}")));
        }
        outcomes.end()
    }
}
