//! `service scale`.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use bollard_stubs::models::ServiceSpec;
use clap::Args;

use super::{Waiting, warn};
use crate::{client::Client, commands::Outcomes};

#[derive(Debug, Args)]
pub struct Scale {
    #[command(flatten)]
    waiting: Waiting,
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    targets: Vec<Target>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    service: String,
    replicas: i64,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (service, replicas) = text
            .split_once('=')
            .filter(|(service, _)| !service.is_empty())
            .with_context(|| format!("invalid scale specifier `{text}`: want SERVICE=REPLICAS"))?;
        let count: u32 = replicas
            .parse()
            .ok()
            .with_context(|| format!("{service}: invalid replicas value `{replicas}`"))?;
        Ok(Self {
            service: service.to_owned(),
            replicas: count.into(),
        })
    }
}

impl Scale {
    /// All are scaled before any is waited for.
    pub async fn run(self, client: &Client) -> Result<()> {
        let mut outcomes = Outcomes::default();
        let mut scaled = Vec::new();
        for target in &self.targets {
            match target.scale(client).await {
                Ok(id) => scaled.push((target, id)),
                err => outcomes.add(err.map(drop)),
            }
        }
        for (target, id) in scaled {
            let outcome = self.waiting.wait(client, &id).await;
            outcomes.add(outcome.context(target.service.clone()));
        }
        outcomes.end()
    }
}

impl Target {
    async fn scale(&self, client: &Client) -> Result<String> {
        let name = &self.service;
        let service = client.service(name).await.with_context(|| name.clone())?;
        let mut spec = service.spec.clone().unwrap_or_default();
        self.edit(&mut spec)?;
        let warnings = client.update_service(&service, &spec, false).await;
        warn(&warnings.with_context(|| name.clone())?);
        println!("{name} scaled to {}", self.replicas);
        Ok(service.id.unwrap_or_default())
    }

    fn edit(&self, spec: &mut ServiceSpec) -> Result<()> {
        match spec.mode.as_mut().and_then(|mode| mode.replicated.as_mut()) {
            Some(replicated) => replicated.replicas = Some(self.replicas),
            None => bail!(
                "{}: scale can only be used with replicated services",
                self.service
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_are_read() {
        let target: Target = "web=3".parse().unwrap();
        assert_eq!((target.service.as_str(), target.replicas), ("web", 3));
        for text in ["web", "=3", "web=", "web=-1", "web=x", "web=1=2"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn global_service_is_not_scaled() {
        let target: Target = "web=3".parse().unwrap();
        let mut spec = serde_json::from_value(json!({"Mode": {"Global": {}}})).unwrap();
        assert!(target.edit(&mut spec).is_err());
        let mut spec =
            serde_json::from_value(json!({"Mode": {"Replicated": {"Replicas": 1}}})).unwrap();
        target.edit(&mut spec).unwrap();
        assert_eq!(
            serde_json::to_value(spec).unwrap(),
            json!({"Mode": {"Replicated": {"Replicas": 3}}})
        );
    }
}
