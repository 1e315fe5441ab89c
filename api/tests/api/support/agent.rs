//! An agent without a data plane: it acknowledges what it is sent and says of each task that it is
//! in the state wanted.

use std::{collections::BTreeMap, net::SocketAddr};

use ca::Connector;
use control::NodeCredentials;
use model::{
    TaskId, TaskState,
    feed::{AgentMessage, Hello, ManagerMessage, NodeView, TaskStatusUpdate},
    object::NodeDescription,
    rpc::DispatcherClient,
    spec::PortSpec,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A session that lasts until this is dropped.
pub struct Agent(JoinHandle<()>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    pub fn start(addr: SocketAddr, node: &NodeCredentials, description: NodeDescription) -> Self {
        let hello = Hello {
            description,
            vtep: node.vtep,
            applied: Default::default(),
            known: Vec::new(),
        };
        let connector = Connector::member(&node.tls);
        Self(tokio::spawn(async move {
            match session(connector, addr, hello).await {
                Ok(()) => {}
                Err(status) => eprintln!("the agent's session ended: {status}"),
            }
        }))
    }
}

async fn session(connector: Connector, addr: SocketAddr, hello: Hello) -> Result<(), Status> {
    let channel = net::dial(&connector, addr).await;
    let channel = channel.map_err(|err| Status::unavailable(err.to_string()))?;
    let mut client = DispatcherClient::new(channel);
    let (say, said) = mpsc::channel(64);
    let tell = async |message| {
        say.send(message)
            .await
            .map_err(|_| Status::cancelled("hung up"))
    };
    tell(AgentMessage::Hello(Box::new(hello))).await?;
    let mut inbound = client
        .session(ReceiverStream::new(said))
        .await?
        .into_inner();
    let mut pace = tokio::time::interval(std::time::Duration::from_secs(1));
    let mut view = NodeView::default();
    let mut reported = BTreeMap::new();
    let mut seq = 0;
    loop {
        tokio::select! {
            message = inbound.message() => match message? {
                None => return Ok(()),
                Some(ManagerMessage::Update(update)) => {
                    let version = update.version;
                    view.apply(update);
                    tell(AgentMessage::Ack { version }).await?;
                    let statuses = news(&view, &mut reported);
                    if !statuses.is_empty() {
                        seq += 1;
                        tell(AgentMessage::Status { seq, statuses }).await?;
                    }
                }
                Some(_) => {}
            },
            _ = pace.tick() => {
                let (applied, digest) = (view.version, view.digest());
                tell(AgentMessage::Heartbeat { applied, digest }).await?;
            }
        }
    }
}

/// The state of each task that has not been told yet.
fn news(view: &NodeView, reported: &mut BTreeMap<TaskId, TaskState>) -> Vec<TaskStatusUpdate> {
    reported.retain(|task, _| view.tasks.contains_key(task));
    let mut news = Vec::new();
    for task in view.tasks.values() {
        let state = match task.desired {
            desired if desired <= TaskState::Running => desired,
            _ => TaskState::Shutdown,
        };
        if reported.insert(task.id, state) != Some(state) {
            news.push(TaskStatusUpdate {
                task: task.id,
                timestamp: jiff::Timestamp::now(),
                state,
                message: "as told".into(),
                err: None,
                container: None,
                ports: match state {
                    TaskState::Running => task.host_ports.iter().map(numbered).collect(),
                    _ => Vec::new(),
                },
            });
        }
    }
    news
}

fn numbered(port: &PortSpec) -> PortSpec {
    PortSpec {
        published: port.published.or(Some(61_000)),
        ..port.clone()
    }
}
