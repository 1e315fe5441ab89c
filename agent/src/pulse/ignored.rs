//! Packets that counted for nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use model::{
    inspect::{DropRow, ProgramDrops},
    probe::Rejected,
};

/// Why a packet to the port of the probes counted for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    Malformed,
    UnknownKey,
    Forged,
    /// Sealed for another node.
    Misdirected,
    /// From a node that the view does not have.
    Stranger,
    /// Nobody asked.
    Unasked,
    /// Said too long ago, or not yet.
    Stale,
}

impl From<Rejected> for Ignored {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Malformed => Self::Malformed,
            Rejected::UnknownKey => Self::UnknownKey,
            Rejected::Forged => Self::Forged,
        }
    }
}

impl Ignored {
    const ALL: [Self; 7] = [
        Self::Malformed,
        Self::UnknownKey,
        Self::Forged,
        Self::Misdirected,
        Self::Stranger,
        Self::Unasked,
        Self::Stale,
    ];

    /// As `swarmnet inspect drops` shows it, and what it means.
    const fn label(self) -> (&'static str, &'static str) {
        match self {
            Self::Malformed => ("probe-malformed", "A packet to port 7946 that is no probe."),
            Self::UnknownKey => (
                "probe-unknown-key",
                "A probe sealed with a key that this node does not have, or not any more.",
            ),
            Self::Forged => (
                "probe-forged",
                "A probe that was changed on its way, or not sealed by a node of the cluster.",
            ),
            Self::Misdirected => (
                "probe-misdirected",
                "A probe that was sealed for another node.",
            ),
            Self::Stranger => (
                "probe-stranger",
                "A probe of a node that is no member, or that this node has not heard of yet.",
            ),
            Self::Unasked => (
                "probe-unasked",
                "An answer to no question of this node: late, or sent again by somebody.",
            ),
            Self::Stale => (
                "probe-stale",
                "A probe's news from another time: a clock that is wrong, or sent again by somebody.",
            ),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct IgnoredCounts([Count; Ignored::ALL.len()]);

#[derive(Debug, Default)]
struct Count {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl IgnoredCounts {
    /// `bytes` of UDP's payload.
    pub(crate) fn count(&self, why: Ignored, bytes: usize) {
        let count = &self.0[why as usize];
        count.packets.fetch_add(1, Ordering::Relaxed);
        count.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Those that occurred, as drops of the agent.
    pub(crate) fn rows(&self) -> impl Iterator<Item = DropRow> + '_ {
        Ignored::ALL.into_iter().filter_map(|why| {
            let count = &self.0[why as usize];
            let packets = count.packets.load(Ordering::Relaxed);
            let bytes = count.bytes.load(Ordering::Relaxed);
            let (reason, explanation) = why.label();
            (packets > 0).then(|| DropRow {
                reason: reason.to_owned(),
                explanation: explanation.to_owned(),
                packets,
                bytes,
                programs: vec![ProgramDrops {
                    program: "agent".to_owned(),
                    packets,
                    bytes,
                }],
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_by_itself() {
        let counts = IgnoredCounts::default();
        assert_eq!(counts.rows().count(), 0);
        for (index, why) in Ignored::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index);
            (0..=index).for_each(|_| counts.count(why, 10));
        }
        let packets: Vec<_> = counts.rows().map(|row| (row.packets, row.bytes)).collect();
        assert_eq!(packets, (1..=7).map(|n| (n, 10 * n)).collect::<Vec<_>>());
        let labels: std::collections::BTreeSet<_> = counts.rows().map(|row| row.reason).collect();
        assert_eq!(labels.len(), Ignored::ALL.len());
    }
}
