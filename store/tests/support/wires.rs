//! Several managers in one process: a call is answered by the store that the address names.
#![allow(dead_code, reason = "who uses it needs a part")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use model::{codec, rpc::MANAGER_PORT};
use swarmnet_store::{
    Start, Store, StoreConfig,
    raft::{Member, RaftCall, RaftReply, RaftTransport, TransportError},
};

/// Who listens where. Calls pass through their encoding, as on a wire.
#[derive(Debug, Clone, Default)]
pub struct Wires(Arc<Mutex<HashMap<SocketAddr, Store>>>);

#[async_trait]
impl RaftTransport for Wires {
    async fn call(&self, member: &Member, call: RaftCall) -> Result<RaftReply, TransportError> {
        let lost = TransportError {
            to: call.to,
            member: member.clone(),
            reason: "nobody listens".to_owned(),
        };
        let listening = self.0.lock().unwrap().get(&member.addr).cloned();
        let store = listening.ok_or_else(|| lost.clone())?;
        let received = codec::decode(&codec::encode(&call)).unwrap();
        let reply = store.answer(received).await.ok_or(lost)?;
        Ok(codec::decode(&codec::encode(&reply)).unwrap())
    }
}

/// Of the manager with this number.
pub fn addr(number: u8) -> SocketAddr {
    ([127, 0, 0, number], MANAGER_PORT).into()
}

impl Wires {
    pub async fn open(&self, dir: impl AsRef<Path>, number: u8, start: Start) -> Store {
        let config = StoreConfig {
            addr: addr(number),
            start,
            transport: Arc::new(self.clone()),
            unlock: None,
        };
        let store = Store::open(dir.as_ref(), config).await.unwrap();
        self.listen(number, store.clone());
        store
    }

    pub fn listen(&self, number: u8, store: Store) {
        self.0.lock().unwrap().insert(addr(number), store);
    }

    /// No call reaches anybody any more.
    pub fn cut_all(&self) {
        self.0.lock().unwrap().clear();
    }

    /// No call reaches it any more.
    pub fn cut(&self, number: u8) -> Option<Store> {
        self.0.lock().unwrap().remove(&addr(number))
    }
}
