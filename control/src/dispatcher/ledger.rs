//! What an agent holds, by content digest, and what is to be sent to bring it up to date. Pure.

use std::collections::{HashMap, HashSet};

use model::{
    Version,
    feed::{Update, ViewKey, ViewObject, view_digest},
};

#[derive(Debug, Default)]
pub(crate) struct Ledger(HashMap<ViewKey, u64>);

impl Ledger {
    /// From what the agent says it holds.
    pub(crate) fn new(known: Vec<(ViewKey, u64)>) -> Self {
        Self(known.into_iter().collect())
    }

    pub(crate) fn holds(&self, object: &ViewObject) -> bool {
        self.0.get(&object.key()) == Some(&object.digest())
    }

    pub(crate) fn contains(&self, key: ViewKey) -> bool {
        self.0.contains_key(&key)
    }

    /// The digest of the whole view, for heartbeats.
    pub(crate) fn digest(&self) -> u64 {
        view_digest(self.0.values().copied())
    }

    /// The update to a whole view. Costs a look at each of its objects.
    pub(crate) fn replace(
        &mut self,
        version: Version,
        objects: impl Iterator<Item = ViewObject>,
    ) -> Update {
        let mut update = Update {
            version,
            ..Update::default()
        };
        let mut wanted = HashSet::with_capacity(self.0.len());
        for object in objects {
            wanted.insert(object.key());
            self.put(object, &mut update);
        }
        let stale = self.0.extract_if(|key, _| !wanted.contains(key));
        update.removed = stale.map(|(key, _)| key).collect();
        update
    }

    /// The update for some keys; `None` is an object that the node has no need of.
    pub(crate) fn update(
        &mut self,
        version: Version,
        objects: impl Iterator<Item = (ViewKey, Option<ViewObject>)>,
    ) -> Update {
        let mut update = Update {
            version,
            ..Update::default()
        };
        for (key, object) in objects {
            match object {
                Some(object) => self.put(object, &mut update),
                None if self.0.remove(&key).is_some() => update.removed.push(key),
                None => {}
            }
        }
        update
    }

    fn put(&mut self, object: ViewObject, update: &mut Update) {
        let digest = object.digest();
        if self.0.insert(object.key(), digest) != Some(digest) {
            update.put.push(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::{NodeId, feed::NodeView, feed::PeerView};
    use proptest::prelude::*;

    use super::*;

    fn peer(id: u8, hostname: u8) -> ViewObject {
        ViewObject::Peer(PeerView {
            node: NodeId::from_raw(id.into()),
            hostname: hostname.to_string(),
            vtep: Ipv4Addr::LOCALHOST,
            up: true,
        })
    }

    fn objects() -> impl Strategy<Value = Vec<ViewObject>> {
        let by_id = prop::collection::btree_map(0..8u8, 0..3u8, 0..8);
        by_id.prop_map(|peers| peers.into_iter().map(|(id, name)| peer(id, name)).collect())
    }

    fn view(objects: &[ViewObject]) -> NodeView {
        let mut view = NodeView::default();
        objects.iter().cloned().for_each(|object| view.put(object));
        view
    }

    proptest! {
        #[test]
        fn an_update_takes_any_view_to_the_wanted_one_and_the_next_is_empty(
            held in objects(),
            wanted in objects(),
        ) {
            let mut agent = view(&held);
            let mut ledger = Ledger::new(agent.digests());
            let update = ledger.replace(Version(1), wanted.iter().cloned());
            prop_assert!(update.put.iter().all(|object| !held.contains(object)));
            agent.apply(update);
            prop_assert_eq!(&agent.peers, &view(&wanted).peers);
            prop_assert_eq!(agent.digest(), ledger.digest());

            let again = ledger.replace(Version(2), wanted.iter().cloned());
            prop_assert!(again.put.is_empty() && again.removed.is_empty());
        }
    }

    #[test]
    fn only_named_keys_change() {
        let mut ledger = Ledger::new(view(&[peer(1, 1), peer(2, 2)]).digests());
        let named = [
            (peer(1, 9).key(), Some(peer(1, 9))),
            (peer(3, 0).key(), None),
        ];
        let update = ledger.update(Version(1), named.into_iter());
        assert_eq!((update.put, update.removed), (vec![peer(1, 9)], vec![]));
        assert!(ledger.holds(&peer(2, 2)) && !ledger.holds(&peer(1, 1)));
        let update = ledger.update(Version(2), [(peer(2, 2).key(), None)].into_iter());
        assert_eq!(
            (update.put, update.removed),
            (vec![], vec![peer(2, 2).key()])
        );
    }
}
