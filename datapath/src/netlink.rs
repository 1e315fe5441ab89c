//! Questions to rtnetlink from code that does not wait on a runtime: one message, one answer.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tracing::debug;

/// Has the kernel do something.
pub(crate) fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
}

/// Asks for everything that matches.
pub(crate) fn dump(message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
}

fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send(&request, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take_in(&datagram, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Takes the messages out of a datagram; whether the last one was among them.
fn take_in(mut datagram: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while let Some(head) = datagram.first_chunk() {
        let len = u32::from_ne_bytes(*head) as usize;
        if len == 0 || len > datagram.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[..len]) {
            Ok(message) => match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            },
            // Others' things come in kinds that the decoder does not know; none is ours.
            Err(error) => debug!(%error, "netlink message not understood"),
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLMSG_DONE;
    use proptest::prelude::*;

    use super::*;

    /// `len`, whatever is behind it; then kind, flags, sequence number and port.
    fn message(len: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn answers_end_with_the_message_that_says_so() {
        let link = message(32, libc::RTM_NEWLINK, &[0; 16]);
        let done = message(20, NLMSG_DONE, &[0; 4]);
        let mut answers = Vec::new();
        assert!(!take_in(&link, &mut answers).unwrap());
        assert!(take_in(&[link, done].concat(), &mut answers).unwrap());
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn length_that_cannot_be_is_an_error() {
        for len in [0, 17] {
            let damaged = message(len, NLMSG_DONE, &[]);
            assert!(take_in(&damaged, &mut Vec::new()).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_datagram_is_taken_in_or_refused(
            messages in prop::collection::vec((0u32..64, 0u16..64, prop::collection::vec(any::<u8>(), 0..48)), 0..4),
        ) {
            let messages = messages.iter().map(|(len, kind, body)| message(*len, *kind, body));
            let _ = take_in(&messages.collect::<Vec<_>>().concat(), &mut Vec::new());
        }
    }
}
