//! Numbers that a network namespace has for others.

use futures::StreamExt;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::{LinkError, Netlink, Result, is_errno};
use crate::netns::Netns;

/// What the calling thread's namespace calls `netns`: a number by which programs look up sockets
/// there. Given at the first call, and kept as long as both live.
///
/// # Errors
/// When netlink fails.
pub async fn namespace_id(netns: &Netns) -> Result<u32> {
    let netlink = Netlink::here()?;
    let number = number(&netlink, netns.fd() as u32).await;
    number.map_err(|source| LinkError::NamespaceId {
        netns: netns.path().display().to_string(),
        source,
    })
}

async fn number(netlink: &Netlink, fd: u32) -> std::result::Result<u32, rtnetlink::Error> {
    let fd = NsidAttribute::Fd(fd);
    let give = message(vec![fd.clone(), NsidAttribute::Id(-1)]);
    match ask(netlink, RouteNetlinkMessage::NewNsId(give)).await {
        Err(err) if !is_errno(&err, libc::EEXIST) => return Err(err),
        Ok(_) | Err(_) => {}
    }
    let attributes = ask(netlink, RouteNetlinkMessage::GetNsId(message(vec![fd]))).await?;
    let id = attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => u32::try_from(*id).ok(),
        _ => None,
    });
    id.ok_or(rtnetlink::Error::RequestFailed)
}

fn message(attributes: Vec<NsidAttribute>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes = attributes;
    message
}

/// The attributes of the answer, if it has any.
async fn ask(
    netlink: &Netlink,
    message: RouteNetlinkMessage,
) -> std::result::Result<Vec<NsidAttribute>, rtnetlink::Error> {
    let flags = match message {
        RouteNetlinkMessage::NewNsId(_) => NLM_F_REQUEST | NLM_F_ACK,
        _ => NLM_F_REQUEST,
    };
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    let mut answers = netlink.handle.clone().request(request)?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                found = message.attributes;
            }
            _ => {}
        }
    }
    Ok(found)
}
