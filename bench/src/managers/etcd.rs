//! etcd with one member on each of the first nodes of a lab, and a client that writes as ours does: reads
//! a key, and replaces what it read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Node};
use tokio::runtime::Runtime;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// For its members to find each other.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

pub struct Etcd {
    members: Vec<Child>,
    dirs: Vec<PathBuf>,
    /// Its name with the version.
    pub name: String,
}

impl Etcd {
    /// # Errors
    /// When it does not come up.
    pub fn start(binary: &Path, lab: &Lab) -> Result<Self> {
        let nodes = lab.nodes();
        let all: Vec<_> = (1..).zip(nodes).map(|(n, node)| member(n, node)).collect();
        let mut etcd = Self {
            members: Vec::new(),
            dirs: Vec::new(),
            name: String::new(),
        };
        for (number, node) in (1..).zip(nodes) {
            let dir = lab.dir().join(format!("etcd-{number}"));
            let (peer, client) = (url(node, 2380), url(node, 2379));
            // The precedence that our daemon gives itself.
            let mut command = node.host().command("nice")?;
            command
                .args(["-n", "-10"])
                .arg(binary)
                .arg(format!("--name=n{number}"))
                .arg(format!("--data-dir={}", dir.display()))
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg(format!("--initial-cluster={}", all.join(",")))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            etcd.dirs.push(dir);
            etcd.members
                .push(command.spawn().context("cannot run etcd")?);
        }
        let (_, version) = leader(nodes)?;
        etcd.name = format!("etcd {version}");
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Fails when it has ended by itself.
            let _ = member.kill();
            let _ = member.wait();
        }
        for dir in &self.dirs {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn member(number: usize, node: &Node) -> String {
    format!("n{number}={}", url(node, 2380))
}

fn url(node: &Node, port: u16) -> String {
    format!("http://{}:{port}", node.addr())
}

/// Waits for one. Its node, and the version of etcd.
///
/// # Errors
/// When none comes to lead.
pub fn leader(nodes: &[Node]) -> Result<(&Node, String)> {
    let begun = Instant::now();
    loop {
        for node in nodes {
            let status = node.host().within(|| Client::connect(node)?.status());
            if let Ok(status) = status
                && status.leads()
            {
                return Ok((node, status.version));
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "etcd elects no leader");
        thread::sleep(LOOK);
    }
}

/// A connection, for a thread of the member's host.
pub struct Client {
    runtime: Runtime,
    grpc: Grpc<Channel>,
}

/// A key as it was read.
pub struct Read {
    revision: i64,
}

impl Client {
    /// # Errors
    /// When nobody listens.
    pub fn connect(node: &Node) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(url(node, 2379))?;
        let channel = runtime.block_on(endpoint.connect())?;
        let grpc = Grpc::new(channel);
        Ok(Self { runtime, grpc })
    }

    fn status(&mut self) -> Result<proto::Status> {
        self.call("/etcdserverpb.Maintenance/Status", proto::Empty {})
    }

    /// With everything that was acknowledged before, as ours are.
    ///
    /// # Errors
    /// As etcd says.
    pub fn read(&mut self, key: &str) -> Result<Read> {
        let range = proto::Range { key: key.into() };
        let found: proto::Ranged = self.call("/etcdserverpb.KV/Range", range)?;
        let revision = found.kvs.first().map_or(0, |found| found.mod_revision);
        Ok(Read { revision })
    }

    /// Replaces `read`; returns when that is committed.
    ///
    /// # Errors
    /// As etcd says, or when it has changed since.
    pub fn write(&mut self, read: &Read, key: &str, value: &str) -> Result<()> {
        let put = proto::Put {
            key: key.into(),
            value: value.into(),
        };
        let is_unchanged = proto::Compare {
            result: proto::EQUAL,
            target: proto::MOD_REVISION,
            key: key.into(),
            mod_revision: Some(read.revision),
        };
        let tx = proto::Tx {
            compare: vec![is_unchanged],
            success: vec![proto::Op { put: Some(put) }],
        };
        let done: proto::TxDone = self.call("/etcdserverpb.KV/Txn", tx)?;
        ensure!(done.succeeded, "key {key} changed meanwhile");
        Ok(())
    }

    fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let Self { runtime, grpc } = self;
        runtime.block_on(async {
            grpc.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(path);
            let answer = grpc
                .unary(tonic::Request::new(request), path, codec)
                .await?;
            Ok(answer.into_inner())
        })
    }
}

/// What we use of etcd's API, by its field numbers (etcd 3.4, `etcdserver/etcdserverpb/rpc.proto` and
/// `mvcc/mvccpb/kv.proto`).
mod proto {
    pub const EQUAL: i32 = 0;
    pub const MOD_REVISION: i32 = 2;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Empty {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Header {
        #[prost(uint64, tag = "2")]
        pub member_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(message, optional, tag = "1")]
        pub header: Option<Header>,
        #[prost(string, tag = "2")]
        pub version: String,
        /// 0 is none.
        #[prost(uint64, tag = "4")]
        pub leader: u64,
    }

    impl Status {
        /// Whether it is of the member that leads.
        pub fn leads(&self) -> bool {
            let own = self.header.as_ref().map(|header| header.member_id);
            own == Some(self.leader)
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Range {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Ranged {
        #[prost(message, repeated, tag = "2")]
        pub kvs: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct KeyValue {
        #[prost(int64, tag = "3")]
        pub mod_revision: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Op {
        #[prost(message, optional, tag = "2")]
        pub put: Option<Put>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Compare {
        #[prost(int32, tag = "1")]
        pub result: i32,
        #[prost(int32, tag = "2")]
        pub target: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub key: Vec<u8>,
        /// Present even when 0, which is a key that is not there: it is one of several.
        #[prost(int64, optional, tag = "6")]
        pub mod_revision: Option<i64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Tx {
        #[prost(message, repeated, tag = "1")]
        pub compare: Vec<Compare>,
        #[prost(message, repeated, tag = "2")]
        pub success: Vec<Op>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TxDone {
        #[prost(bool, tag = "2")]
        pub succeeded: bool,
    }
}
