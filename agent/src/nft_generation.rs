//! The generation of the kernel's nftables rules, in one message: whether anybody changed any, without
//! a list of them. Numbers and layouts are those of `linux/netfilter/nf_tables.h`.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `NFNL_SUBSYS_NFTABLES << 8`, with `NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
const NLM_F_REQUEST: u16 = 1;
const NFTA_GEN_ID: u16 = 1;

/// Netlink's header and netfilter's.
const HEADERS_LEN: usize = 16 + 4;

/// Of the calling thread's network namespace.
///
/// # Errors
/// When the kernel has no nftables, or says something else.
pub fn read() -> io::Result<u32> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    send(netlink.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    generation(&answer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn request() -> [u8; HEADERS_LEN] {
    let mut message = [0; HEADERS_LEN];
    message[..4].copy_from_slice(&(HEADERS_LEN as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&GET_GENERATION.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message
}

fn generation(message: &[u8]) -> Option<u32> {
    let half =
        |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    if half(message, 4)? != NEW_GENERATION {
        return None;
    }
    let mut attributes = message.get(HEADERS_LEN..)?;
    loop {
        let (len, kind) = (half(attributes, 0)?, half(attributes, 2)?);
        let value = attributes.get(4..usize::from(len))?;
        if kind == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(usize::from(len).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel answers: generation 7, process id and name of who changed the rules last.
    fn answer() -> Vec<u8> {
        let mut answer = vec![0; HEADERS_LEN];
        answer[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
        for (kind, value) in [(2u16, &[0, 0, 1, 1][..]), (1, &[0, 0, 0, 7]), (3, b"nft\0")] {
            answer.extend((4 + value.len() as u16).to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value);
        }
        answer
    }

    #[test]
    fn generation_is_found_among_the_attributes() {
        assert_eq!(generation(&answer()), Some(7));
    }

    proptest! {
        #[test]
        fn any_attributes_have_a_generation_or_none(attributes: Vec<u8>) {
            let mut answer = vec![0; HEADERS_LEN];
            answer[4..6].copy_from_slice(&NEW_GENERATION.to_ne_bytes());
            answer.extend(attributes);
            generation(&answer);
        }
    }

    #[test]
    fn damaged_answers_tell_nothing() {
        let whole = answer();
        for len in 0..whole.len() - 16 {
            assert_eq!(generation(&whole[..len]), None, "{len} bytes");
        }
        let mut error = whole;
        error[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(generation(&error), None);
    }
}
