//! The way into a cluster: nodes that join it and hold no session, for others to write to.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use ca::{Connector, NodeKey, Roots};
use futures::{StreamExt, TryStreamExt, stream};
use lab::Lab;
use model::{
    NodeId,
    object::NodeDescription,
    rpc::{JoinRequest, MANAGER_PORT, MembershipClient},
    spec::Availability,
};
use tonic::transport::Channel;

use crate::api::Api;

/// Nodes that join at a time.
const AT_ONCE: usize = 16;

/// The first manager, and what it takes to join it.
struct Door {
    addr: SocketAddr,
    token: String,
    roots_pem: String,
}

/// Ids of so many nodes that joined.
///
/// # Errors
/// When the API does not tell how, or the manager refuses one.
pub fn join(lab: &Lab, api: &Api, count: usize) -> Result<Vec<String>> {
    let door = Door::of(lab, api)?;
    let joined = lab.client().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(door.join(count))
    })?;
    Ok(joined.iter().map(NodeId::to_string).collect())
}

impl Door {
    fn of(lab: &Lab, api: &Api) -> Result<Self> {
        let swarm = api.get("/swarm")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        Ok(Self {
            addr: (lab.node(1).addr(), MANAGER_PORT).into(),
            token: text(&swarm["JoinTokens"]["Worker"]).context("a token")?,
            roots_pem: text(&swarm["TLSInfo"]["TrustRoot"]).context("a root")?,
        })
    }

    /// With tunnel addresses one after the other, in 10.64.0.0/10.
    async fn join(&self, count: usize) -> Result<Vec<NodeId>> {
        let connector = Connector::joiner(&Roots::from_pem(&self.roots_pem)?)?;
        let client = MembershipClient::new(net::dial(&connector, self.addr).await?);
        let joined = stream::iter(0..count).map(|number| self.join_one(client.clone(), number));
        joined.buffered(AT_ONCE).try_collect().await
    }

    async fn join_one(
        &self,
        mut client: MembershipClient<Channel>,
        number: usize,
    ) -> Result<NodeId> {
        let vtep = Ipv4Addr::from_bits(0x0a40_0001 + u32::try_from(number)?);
        let request = JoinRequest {
            token: self.token.clone(),
            request_pem: NodeKey::generate()?.request()?,
            description: NodeDescription {
                hostname: format!("simulated-{number}"),
                os: "linux".to_owned(),
                architecture: "x86_64".to_owned(),
                ..NodeDescription::default()
            },
            advertise_addr: Some(vtep),
            data_path_addr: None,
            availability: Availability::Active,
        };
        Ok(client.join(request).await?.into_inner().node)
    }
}
