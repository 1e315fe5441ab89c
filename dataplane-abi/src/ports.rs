//! Published ports: `PORTS` has a word for each port of TCP and UDP, written in one store.

use crate::net::Be16;

/// Length of `PORTS`.
pub const PORTS_LEN: u32 = 2 * PORTS_PER_PROTOCOL;
const PORTS_PER_PROTOCOL: u32 = 1 << 16;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Index into `PORTS`; `None` for a protocol that has no ports there.
#[inline(always)]
pub const fn port_index(proto: u8, port: Be16) -> Option<u32> {
    match proto {
        TCP => Some(port.to_host() as u32),
        UDP => Some(PORTS_PER_PROTOCOL | port.to_host() as u32),
        _ => None,
    }
}

/// What an index of `PORTS` stands for.
pub const fn port_at(index: u32) -> (u8, u16) {
    let proto = if index < PORTS_PER_PROTOCOL { TCP } else { UDP };
    (proto, index as u16)
}

/// Element of `PORTS`: an index into `FRONTENDS`, zero when the port is not published, and whether
/// some addresses have frontends of their own. Written by the agent; read by the uplink, vxlan and
/// socket programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct PortWord(u32);

impl PortWord {
    const BY_ADDRESS: u32 = 1 << 31;

    /// `frontend` is for the addresses that `ADDRESSED` does not name; zero for none.
    pub const fn new(frontend: u32, by_address: bool) -> Self {
        let flag = if by_address { Self::BY_ADDRESS } else { 0 };
        Self(frontend & !Self::BY_ADDRESS | flag)
    }

    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    pub const fn to_raw(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn frontend(self) -> Option<u32> {
        match self.0 & !Self::BY_ADDRESS {
            0 => None,
            index => Some(index),
        }
    }

    /// Whether `ADDRESSED` has to be asked first.
    #[inline(always)]
    pub const fn is_by_address(self) -> bool {
        self.0 & Self::BY_ADDRESS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{PORTS_LEN, PortWord, port_at, port_index};
    use crate::net::Be16;

    #[test]
    fn every_port_has_a_place_of_its_own() {
        for index in 0..PORTS_LEN {
            let (proto, port) = port_at(index);
            assert_eq!(port_index(proto, Be16::from_host(port)), Some(index));
        }
        assert_eq!(port_index(132, Be16::from_host(1)), None);
    }

    #[test]
    fn word_keeps_its_parts() {
        for (frontend, by_address) in [(0, false), (0, true), (7, false), (7, true)] {
            let word = PortWord::from_raw(PortWord::new(frontend, by_address).to_raw());
            assert_eq!(word.frontend(), (frontend != 0).then_some(frontend));
            assert_eq!(word.is_by_address(), by_address);
        }
    }
}
