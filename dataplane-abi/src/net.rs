//! Network-order integers and the inner MAC addresses of mesh packets.

/// A 16-bit value in network order. To read it is to choose an order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn from_host(host: u16) -> Self {
        Self(host.to_be())
    }

    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.0)
    }

    /// As it lies in memory, for helpers and contexts that want network order.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// A 32-bit value in network order, mostly an IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be32 {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn from_host(host: u32) -> Self {
        Self(host.to_be())
    }

    #[inline(always)]
    pub const fn to_host(self) -> u32 {
        u32::from_be(self.0)
    }

    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Its halfwords as they lie in memory.
    #[inline(always)]
    pub const fn halves(self) -> [u16; 2] {
        let [a, b, c, d] = self.0.to_ne_bytes();
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
    }

    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

// SAFETY: transparent over an integer.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Be32 {}

impl From<core::net::Ipv4Addr> for Be32 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self::from_host(addr.to_bits())
    }
}

impl From<Be32> for core::net::Ipv4Addr {
    fn from(addr: Be32) -> Self {
        Self::from_bits(addr.to_host())
    }
}

/// What the tunnel adds to an IPv4 packet: Ethernet, VXLAN, UDP and IPv4 headers.
pub const TUNNEL_OVERHEAD: u32 = 14 + 8 + 8 + 20;

/// Longest IPv4 packet that goes through the tunnel in one piece, on an underlay with this MTU.
pub const fn tunnel_mtu(underlay_mtu: u32) -> u32 {
    underlay_mtu.saturating_sub(TUNNEL_OVERHEAD)
}

/// First two bytes of the inner destination MAC of a mesh packet; the endpoint id follows in
/// network order. All are locally administered unicast addresses. The source MAC is
/// [`task_mac`] of the tunnel address of the entry node (`RETURN`: of the sender), so that whoever gets
/// the packet at last knows where replies belong.
pub mod mesh_mac {
    /// From the entry node to the backend's node.
    pub const FORWARD: [u8; 2] = [0x06, 0x53];
    /// From there once more: to the owner before the last ring change, or where the flow is pinned.
    pub const SECOND_HOP: [u8; 2] = [0x0a, 0x53];
    /// Once more from whom a pin named in vain: whoever gets it asks nobody.
    pub const LAST: [u8; 2] = [0x16, 0x53];
    /// First byte of a hop among nodes whose rings differ; the second is how many may follow.
    pub const SEARCH: u8 = 0x12;
    /// How many nodes are asked in such a search after the first.
    pub const SEARCH_HOPS_MAX: u8 = 3;
    /// From the backend's node back to the entry node.
    pub const RETURN: [u8; 2] = [0x0e, 0x53];

    /// All of them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Kind {
        Forward,
        SecondHop,
        Last,
        /// With the hops that may follow.
        Search(u8),
        Return,
    }
}

impl mesh_mac::Kind {
    #[inline(always)]
    pub const fn prefix(self) -> [u8; 2] {
        match self {
            Self::Forward => mesh_mac::FORWARD,
            Self::SecondHop => mesh_mac::SECOND_HOP,
            Self::Last => mesh_mac::LAST,
            Self::Search(left) => [mesh_mac::SEARCH, left],
            Self::Return => mesh_mac::RETURN,
        }
    }

    /// The MAC that names `endpoint`.
    #[inline(always)]
    pub const fn mac(self, endpoint: u32) -> [u8; 6] {
        let [a, b] = self.prefix();
        let id = endpoint.to_be_bytes();
        [a, b, id[0], id[1], id[2], id[3]]
    }

    #[inline(always)]
    pub const fn of(mac: [u8; 6]) -> Option<Self> {
        match [mac[0], mac[1]] {
            mesh_mac::FORWARD => Some(Self::Forward),
            mesh_mac::SECOND_HOP => Some(Self::SecondHop),
            mesh_mac::LAST => Some(Self::Last),
            [mesh_mac::SEARCH, left] if left <= mesh_mac::SEARCH_HOPS_MAX => {
                Some(Self::Search(left))
            }
            mesh_mac::RETURN => Some(Self::Return),
            _ => None,
        }
    }
}

/// The 32 bits that follow the kind: an endpoint id, or the address of a [`task_mac`].
#[inline(always)]
pub const fn mac_suffix(mac: [u8; 6]) -> u32 {
    u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]])
}

/// MAC of a task's interface: 02:42 and the IPv4 address, as Docker has it.
#[inline(always)]
pub const fn task_mac(addr: Be32) -> [u8; 6] {
    let octets = addr.to_host().to_be_bytes();
    [0x02, 0x42, octets[0], octets[1], octets[2], octets[3]]
}

#[cfg(test)]
mod tests {
    use super::{Be32, mac_suffix, mesh_mac::Kind, task_mac};

    #[test]
    fn mesh_macs_name_kind_and_endpoint_and_are_never_a_tasks() {
        for kind in [
            Kind::Forward,
            Kind::SecondHop,
            Kind::Last,
            Kind::Search(0),
            Kind::Search(3),
            Kind::Return,
        ] {
            let mac = kind.mac(0x0102_0304);
            assert_eq!(Kind::of(mac), Some(kind));
            assert_eq!(mac_suffix(mac), 0x0102_0304);
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, unicast");
        }
        let addr = Be32::from_host(0x0a00_0103);
        assert_eq!(Kind::of(task_mac(addr)), None);
        assert_eq!(mac_suffix(task_mac(addr)), addr.to_host());
    }
}
