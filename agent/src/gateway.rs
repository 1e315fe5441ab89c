//! Addresses of tasks on the node's gateway bridge. They mean nothing outside the node.

use std::{collections::BTreeSet, net::Ipv4Addr};

use datapath::GATEWAY_PREFIX_LEN;
use ipnet::Ipv4Net;

/// Docker's `docker_gwbridge` has the same.
pub fn subnet() -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(172, 18, 0, 0), GATEWAY_PREFIX_LEN)
        .expect("the data plane's is a prefix length")
}

/// The bridge's own address.
pub fn bridge_addr() -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, 1)
}

/// That, with the subnet's length.
pub fn bridge() -> Ipv4Net {
    Ipv4Net::new(bridge_addr(), GATEWAY_PREFIX_LEN).expect("the data plane's is a prefix length")
}

/// Hands out addresses in turn, so that one just given back is the last to come again.
#[derive(Debug)]
pub struct GatewayPool {
    used: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
#[error("the gateway network {0} of this node has no free address; it has too many tasks")]
pub struct PoolExhausted(Ipv4Net);

impl GatewayPool {
    /// With the addresses of tasks that are there already.
    pub fn new(used: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let used: BTreeSet<_> = used.into_iter().collect();
        let last = used.last().copied().unwrap_or_else(bridge_addr);
        Self { used, last }
    }

    /// # Errors
    /// When every address is taken.
    pub fn take(&mut self) -> Result<Ipv4Addr, PoolExhausted> {
        let (first, end) = (bridge_addr().to_bits() + 1, subnet().broadcast().to_bits());
        let start = self.last.to_bits() + 1;
        let free = (start..end)
            .chain(first..start.min(end))
            .map(Ipv4Addr::from_bits)
            .find(|addr| !self.used.contains(addr));
        let addr = free.ok_or(PoolExhausted(subnet()))?;
        self.used.insert(addr);
        self.last = addr;
        Ok(addr)
    }

    pub fn give_back(&mut self, addr: Ipv4Addr) {
        self.used.remove(&addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_distinct_and_returned_ones_come_last() {
        let mut pool = GatewayPool::new([Ipv4Addr::new(172, 18, 0, 2)]);
        let first = pool.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(172, 18, 0, 3));
        pool.give_back(first);
        assert_eq!(pool.take().unwrap(), Ipv4Addr::new(172, 18, 0, 4));
    }

    #[test]
    fn pool_wraps_and_then_is_exhausted() {
        let mut pool = GatewayPool::new([]);
        let total = (1 << 16) - 3;
        for _ in 0..total {
            pool.take().unwrap();
        }
        assert!(pool.take().is_err());
        pool.give_back(Ipv4Addr::new(172, 18, 0, 9));
        assert_eq!(pool.take().unwrap(), Ipv4Addr::new(172, 18, 0, 9));
    }
}
