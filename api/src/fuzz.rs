//! What the fuzz targets `api` and `query` look at.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bollard_stubs::models as docker;
use control::{allocator, ops, stage::Pipeline};
use jiff::Timestamp;
use model::{
    ClusterId, NetworkId, NodeId,
    object::{
        Cluster, DataPathConfig, JoinTokens, Meta, Node, NodeDescription, NodeState, NodeStatus,
        RootCa,
    },
    spec::{ClusterSpec, NodeSpec, ServiceMode},
};
use store::{State, Transaction};
use tokio::time::Instant;

use crate::{
    ApiError, HostPort, Remote, convert,
    filters::Filters,
    request::{self, SwarmInit, SwarmJoin},
    routes, version,
};

/// More of one service tell nothing new.
const REPLICAS_MAX: u64 = 4;
/// Until nothing is left to do at one instant; more would be a loop.
const STEPS_MAX: usize = 100;
/// For what waits in the managers: it is over then.
const LATER: Duration = Duration::from_secs(3600);

/// Bodies of requests, one a line, whose first byte says what is asked for. What is taken is shown so
/// that it is taken again as the same, and the managers go on.
pub fn bodies(data: &[u8]) {
    let mut managers = Managers::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((asked, body)) = line.split_first() else {
            continue;
        };
        // To be refused is as good.
        let _ = match asked {
            b'i' => managers.init(body),
            b'j' => request::read::<SwarmJoin>(body)
                .and_then(routes::join_params)
                .map(drop),
            b'n' => managers.network(body),
            b's' => managers.service(body),
            b'c' => managers.cluster(body),
            _ => node(body),
        };
    }
    managers.now += LATER;
    managers.clock += LATER;
    managers.now += LATER;
    managers.settle();
}

/// What stands in paths, queries and addresses.
pub fn query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let _ = Filters::parse(Some(text), &["name", "label"]);
    if let Some((version, rest)) = version::split(text) {
        assert!(text.ends_with(rest), "{version} {rest}");
    }
    let _ = text.parse::<HostPort>();
    let _ = text.parse::<Remote>();
}

fn node(body: &[u8]) -> Result<(), ApiError> {
    convert::node_spec_from_docker(&request::read::<docker::NodeSpec>(body)?).map(drop)
}

/// Their state, with one node, and without a clock of its own.
struct Managers {
    state: Arc<State>,
    pipeline: Pipeline,
    now: Timestamp,
    /// The same, for delays.
    clock: Instant,
}

impl Managers {
    fn new() -> Self {
        let mut managers = Self {
            state: Arc::default(),
            pipeline: Pipeline::default(),
            now: "2026-01-01T00:00:00Z".parse().expect("a timestamp"),
            clock: Instant::now(),
        };
        managers.start(ClusterSpec::default(), DataPathConfig::default());
        managers
    }

    /// Anew.
    fn start(&mut self, spec: ClusterSpec, data_path: DataPathConfig) {
        self.state = Arc::default();
        let now = self.now;
        let made = self.write(|tx| {
            tx.put(cluster(now, spec, data_path)).expect("it is new");
            tx.put(first_node(now)).expect("it is new");
            allocator::create_ingress(tx)
        });
        // A pool may have room for nothing.
        let _ = made;
    }

    fn write<T, E>(&mut self, f: impl FnOnce(&mut Transaction) -> Result<T, E>) -> Result<T, E> {
        let mut tx = Transaction::new(Arc::clone(&self.state), self.now);
        let done = f(&mut tx)?;
        if !tx.is_empty() {
            let mut state = State::clone(&self.state);
            let set = tx.finish().expect("nothing stale");
            state.apply(set).expect("it is of this state");
            self.state = Arc::new(state);
        }
        Ok(done)
    }

    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let before = self.state.version();
            let mut pipeline = std::mem::take(&mut self.pipeline);
            let clock = self.clock;
            let _ = self.write(|tx| Ok::<_, ApiError>(pipeline.step(tx, clock)));
            self.pipeline = pipeline;
            if self.state.version() == before {
                return;
            }
        }
        panic!("the pipeline finds something to do for ever");
    }

    fn init(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let asked = routes::init_request(request::read::<SwarmInit>(body)?)?;
        self.start(asked.spec, asked.data_path);
        Ok(())
    }

    fn cluster(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let asked = request::read::<docker::SwarmSpec>(body)?;
        let base = ClusterSpec::default();
        let spec = convert::cluster_spec_from_docker(&asked, &base)?;
        let shown = convert::cluster_spec_to_docker(&spec);
        let again = convert::cluster_spec_from_docker(&shown, &base);
        assert_eq!(again, Ok(spec), "what is shown is taken");
        Ok(())
    }

    fn network(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let spec = convert::network_spec_from_docker(&request::read(body)?)?;
        convert::check_network(&spec)?;
        let id = self.write(|tx| ops::network::create(tx, spec))?;
        convert::network(self.state.network(id).expect("it was made"));
        Ok(())
    }

    fn service(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let mut asked = request::read::<docker::ServiceSpec>(body)?;
        let some_network = self.network_for_all();
        convert::resolve_networks(&mut asked, |_| Ok(some_network))?;
        convert::tag_image(&mut asked);
        let mut spec = convert::service_spec_from_docker(&asked)?;
        convert::check_service(&spec)?;
        let shown = convert::service_spec_to_docker(&spec);
        let again = convert::service_spec_from_docker(&shown);
        assert_eq!(again.as_ref(), Ok(&spec), "what is shown is taken");
        if let ServiceMode::Replicated { replicas } = &mut spec.mode {
            *replicas = (*replicas).min(REPLICAS_MAX);
        }
        let made = self.state.service_by_name(&spec.name).cloned();
        let id = self.write(|tx| match made {
            None => ops::service::create(tx, spec),
            Some(made) => {
                ops::service::update(tx, made.id, made.meta.version, spec).map(|()| made.id)
            }
        })?;
        convert::service(self.state.service(id).expect("it was made"), true, None);
        self.settle();
        Ok(())
    }

    /// The one made last, whatever the request names.
    fn network_for_all(&self) -> NetworkId {
        let networks = self.state.networks();
        let newest = networks
            .filter(|network| !network.spec.ingress)
            .max_by_key(|network| network.meta.created_at);
        newest.map_or(NetworkId::from_raw(0), |network| network.id)
    }
}

fn cluster(now: Timestamp, spec: ClusterSpec, data_path: DataPathConfig) -> Cluster {
    Cluster {
        id: ClusterId::from_raw(1),
        meta: Meta::new(now),
        spec,
        tokens: JoinTokens {
            worker: String::new(),
            manager: String::new(),
        },
        ca: RootCa {
            certificate_pem: String::new(),
            key_pem: None,
        },
        data_path,
        revoked: Default::default(),
        rotation: None,
        unlock_key: None,
        probes: Default::default(),
    }
}

fn first_node(now: Timestamp) -> Node {
    Node {
        id: NodeId::from_raw(1),
        meta: Meta::new(now),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: "first".to_owned(),
            nano_cpus: 4_000_000_000,
            memory_bytes: 8 << 30,
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: Ipv4Addr::LOCALHOST,
        },
        issuer: None,
        vtep: Ipv4Addr::LOCALHOST,
        manager: None,
    }
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("api", bodies);
    replay::seeds("query", query);
}
