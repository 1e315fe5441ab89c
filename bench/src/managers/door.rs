//! The way into a cluster: nodes that join it, and what they prove themselves with.

use std::net::{Ipv4Addr, SocketAddrV4};

use agent::Credentials;
use anyhow::{Context, Result};
use ca::{Connector, NodeCertificate, NodeKey, NodeTls, Roots};
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
pub struct Door {
    addr: SocketAddrV4,
    token: String,
    roots_pem: String,
}

/// A node that joined.
pub struct Joined {
    pub credentials: Credentials,
    pub tls: NodeTls,
    pub description: NodeDescription,
}

/// Ids of so many nodes that joined and hold no session, for others to write to.
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
    let ids = joined.iter().map(|joined| joined.credentials.node);
    Ok(ids.map(|id| NodeId::to_string(&id)).collect())
}

impl Door {
    /// # Errors
    /// When the API does not tell how.
    pub fn of(lab: &Lab, api: &Api) -> Result<Self> {
        let swarm = api.get("/swarm")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        Ok(Self {
            addr: SocketAddrV4::new(lab.node(1).addr(), MANAGER_PORT),
            token: text(&swarm["JoinTokens"]["Worker"]).context("a token")?,
            roots_pem: text(&swarm["TLSInfo"]["TrustRoot"]).context("a root")?,
        })
    }

    /// With tunnel addresses one after the other, in 10.64.0.0/10.
    ///
    /// # Errors
    /// When the manager refuses one.
    pub async fn join(&self, count: usize) -> Result<Vec<Joined>> {
        let connector = Connector::joiner(&Roots::from_pem(&self.roots_pem)?)?;
        let client = MembershipClient::new(net::dial(&connector, self.addr).await?);
        let joined = stream::iter(0..count).map(|number| self.join_one(client.clone(), number));
        joined.buffered(AT_ONCE).try_collect().await
    }

    async fn join_one(
        &self,
        mut client: MembershipClient<Channel>,
        number: usize,
    ) -> Result<Joined> {
        let vtep = Ipv4Addr::from_bits(0x0a40_0001 + u32::try_from(number)?);
        let key = NodeKey::generate()?;
        let description = NodeDescription {
            hostname: format!("simulated-{number}"),
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
            ..NodeDescription::default()
        };
        let request = JoinRequest {
            token: self.token.clone(),
            request_pem: key.request()?,
            description: description.clone(),
            advertise_addr: Some(vtep),
            data_path_addr: None,
            availability: Availability::Active,
        };
        let answer = client.join(request).await?.into_inner();
        let roots = Roots::from_pem(&answer.certified.roots_pem)?;
        let certificate = NodeCertificate::new(key, &answer.certified.chain_pem, roots)?;
        Ok(Joined {
            credentials: Credentials {
                node: answer.node,
                cluster: answer.cluster,
                addr: answer.addr,
                vtep: answer.vtep,
                managers: vec![self.addr],
            },
            tls: NodeTls::new(certificate)?,
            description,
        })
    }
}
