//! Which updates of a session are on their way, and what version that makes the node be at. Pure.

use std::collections::VecDeque;

use model::Version;

/// Updates sent and not acknowledged: one that the agent works on, and one that it finds when it is
/// done. Meanwhile a session gathers what changes, so a burst becomes few updates.
const OUTSTANDING_MAX: usize = 2;

#[derive(Debug, Default)]
pub(crate) struct Flight {
    outstanding: VecDeque<Version>,
    /// The newest version that the session has looked at.
    evaluated: Version,
    acked: Version,
}

impl Flight {
    pub(crate) fn has_room(&self) -> bool {
        self.outstanding.len() < OUTSTANDING_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The session has looked at `version`; `sent` when it had to tell the agent something.
    pub(crate) fn evaluated(&mut self, version: Version, sent: bool) {
        self.evaluated = version;
        if sent {
            self.outstanding.push_back(version);
        }
    }

    /// The agent applied the update to `version`, and so those before it. Two updates may have the
    /// same version (the release of a stop needs no commit): the first acknowledgement counts for
    /// both, which is harmless, as only commits are waited for.
    pub(crate) fn ack(&mut self, version: Version) {
        let version = version.min(self.evaluated);
        while self
            .outstanding
            .front()
            .is_some_and(|sent| *sent <= version)
        {
            self.outstanding.pop_front();
        }
        self.acked = self.acked.max(version);
    }

    /// The version that the node is at: the newest looked at when nothing is on its way, since all
    /// that did not concern the node needs no acknowledgement.
    pub(crate) fn reached(&self) -> Version {
        if self.outstanding.is_empty() {
            self.evaluated
        } else {
            self.acked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_do_not_concern_the_node_count_as_acknowledged() {
        let mut flight = Flight::default();
        flight.evaluated(Version(3), true);
        assert_eq!(flight.reached(), Version(0));
        flight.ack(Version(3));
        assert_eq!(flight.reached(), Version(3));
        flight.evaluated(Version(9), false);
        assert_eq!(flight.reached(), Version(9));
    }

    #[test]
    fn an_update_on_its_way_holds_the_node_back() {
        let mut flight = Flight::default();
        flight.evaluated(Version(3), true);
        flight.evaluated(Version(4), false);
        flight.evaluated(Version(5), true);
        flight.evaluated(Version(6), false);
        flight.ack(Version(3));
        assert_eq!(flight.reached(), Version(3));
        flight.ack(Version(5));
        assert_eq!(flight.reached(), Version(6));
    }

    #[test]
    fn acks_of_versions_never_sent_count_for_nothing() {
        let mut flight = Flight::default();
        flight.evaluated(Version(3), true);
        flight.ack(Version(2));
        assert_eq!(flight.reached(), Version(2));
        flight.ack(Version(1000));
        assert_eq!(flight.reached(), Version(3));
    }

    #[test]
    fn room_ends_and_comes_back() {
        let mut flight = Flight::default();
        for version in 1..=OUTSTANDING_MAX as u64 {
            assert!(flight.has_room());
            flight.evaluated(Version(version), true);
        }
        assert!(!flight.has_room());
        flight.ack(Version(1));
        assert!(flight.has_room());
    }
}
