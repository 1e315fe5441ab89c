//! The objects that commands ask for, by name.

use std::collections::{BTreeMap, BTreeSet};

use bollard_stubs::models::{
    Network, Node, Service, ServiceSpec, ServiceUpdateResponse, Swarm, SystemInfo, Task,
};

use super::{Client, ClientError, Route};

/// Conditions on a listing: every key must match one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// From `--filter key=value`, any number of times.
    ///
    /// # Errors
    /// One that has no `=`.
    pub fn parse(texts: &[String]) -> anyhow::Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| anyhow::anyhow!("invalid filter `{text}`: want KEY=VALUE"))?;
            filters = filters.with(key.trim(), value.trim());
        }
        Ok(filters)
    }

    pub fn with(mut self, key: &str, value: &str) -> Self {
        let values = self.0.entry(key.to_lowercase()).or_default();
        values.insert(value.to_owned());
        self
    }

    /// Adds them to a listing; none add nothing.
    pub fn on(&self, route: Route) -> Route {
        if self.0.is_empty() {
            return route;
        }
        let text: BTreeMap<_, BTreeMap<_, _>> = self
            .0
            .iter()
            .map(|(key, values)| (key, values.iter().map(|value| (value, true)).collect()))
            .collect();
        let text = serde_json::to_string(&text).expect("strings serialize");
        route.query("filters", text)
    }
}

impl Client {
    pub async fn info(&self) -> Result<SystemInfo, ClientError> {
        self.get(Route::new("info")).await
    }

    pub async fn swarm(&self) -> Result<Swarm, ClientError> {
        self.get(Route::new("swarm")).await
    }

    pub async fn nodes(&self, filters: &Filters) -> Result<Vec<Node>, ClientError> {
        self.get(filters.on(Route::new("nodes"))).await
    }

    pub async fn node(&self, name: &str) -> Result<Node, ClientError> {
        self.get(Route::new("nodes").segment(name)).await
    }

    pub async fn networks(&self, filters: &Filters) -> Result<Vec<Network>, ClientError> {
        self.get(filters.on(Route::new("networks"))).await
    }

    /// An overlay network by name, id or unique prefix.
    pub async fn overlay(&self, name: &str) -> Result<Network, ClientError> {
        let route = Route::new("networks").segment(name);
        self.get(route.query("scope", "swarm")).await
    }

    pub async fn services(&self, filters: &Filters) -> Result<Vec<Service>, ClientError> {
        let route = filters.on(Route::new("services"));
        self.get(route.query("status", true)).await
    }

    /// As it was written: what is not set stays unset.
    pub async fn service(&self, name: &str) -> Result<Service, ClientError> {
        let route = Route::new("services").segment(name);
        self.get(route.query("insertDefaults", false)).await
    }

    /// Replaces the spec of the service as it was read; returns the daemon's warnings.
    pub async fn update_service(
        &self,
        read: &Service,
        spec: &ServiceSpec,
        rollback: bool,
    ) -> Result<Vec<String>, ClientError> {
        let id = read.id.as_deref().unwrap_or_default();
        let version = read.version.as_ref().and_then(|version| version.index);
        let mut route = Route::new("services")
            .segment(id)
            .segment("update")
            .query("version", version.unwrap_or_default());
        if rollback {
            route = route.query("rollback", "previous");
        }
        let answer: ServiceUpdateResponse = self.post(route, spec).await?;
        Ok(answer.warnings.unwrap_or_default())
    }

    pub async fn tasks(&self, filters: &Filters) -> Result<Vec<Task>, ClientError> {
        self.get(filters.on(Route::new("tasks"))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_written_as_docker_writes_them() {
        let texts = [
            "name=a".to_owned(),
            "Name=b".to_owned(),
            "label=k=v".to_owned(),
        ];
        let route = Filters::parse(&texts).unwrap().on(Route::new("services"));
        let plain = percent_encoding::percent_decode_str(route.as_str()).decode_utf8_lossy();
        assert_eq!(
            plain,
            r#"/services?filters={"label":{"k=v":true},"name":{"a":true,"b":true}}"#
        );
        assert!(Filters::parse(&["name".to_owned()]).is_err());
    }
}
