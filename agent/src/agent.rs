//! The handle of a running agent.

use std::sync::Arc;

use anyhow::{Context, Result};
use ca::NodeTls;
use model::inspect::{Table, TraceAnswer, TraceQuery};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{AgentConfig, Credentials},
    core::{Command, Core},
    pulse::Pulse,
    session::{Applied, Session},
    view_file::ViewFile,
};

/// Messages that wait for one of the agent's tasks; senders wait when it is full.
pub(crate) const QUEUE_LEN: usize = 1024;

/// A running agent.
pub struct Agent {
    commands: mpsc::Sender<Command>,
    applied: watch::Receiver<Applied>,
    cancel: CancellationToken,
    core: JoinHandle<()>,
    session: JoinHandle<()>,
    pulse: JoinHandle<()>,
    /// Waits for what the node proves itself with.
    identity: Option<oneshot::Sender<NodeTls>>,
}

impl Agent {
    /// Takes up what an agent before it left (programs, maps, tasks) by the view on disk, and follows
    /// the managers from [`Agent::identify`] on. Ready when the data plane stands.
    ///
    /// # Errors
    /// Names what the node lacks.
    pub async fn start(
        config: AgentConfig,
        credentials: Credentials,
        tls: Option<NodeTls>,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let (commands, command_inbox) = mpsc::channel(QUEUE_LEN);
        let (events, event_inbox) = mpsc::channel(QUEUE_LEN);
        let (outbox, outbox_inbox) = mpsc::channel(QUEUE_LEN);
        let view_file = ViewFile::new(&config.state_dir);
        let knows_the_cluster = view_file.exists();
        let applied = watch::Sender::new(Applied::new(Arc::new(view_file.load()?)));
        let shown = applied.subscribe();
        let (identity, identified) = oneshot::channel();
        let identity = match tls {
            Some(tls) => {
                let _ = identity.send(tls);
                None
            }
            None => Some(identity),
        };
        let session = {
            let (credentials, description) = (credentials.clone(), config.description.clone());
            let (applied, cancel) = (applied.subscribe(), cancel.child_token());
            async move {
                let identified = cancel.run_until_cancelled(identified).await;
                let Some(Ok(tls)) = identified else { return };
                let session = Session {
                    credentials,
                    tls,
                    description,
                    applied,
                    events,
                    outbox: outbox_inbox,
                    cancel,
                };
                session.run().await;
            }
        };
        let (pulse, pulse_view) = Pulse::new(
            credentials.node,
            credentials.vtep,
            applied.subscribe(),
            cancel.child_token(),
        );
        // Others are answered while the programs are loaded.
        let pulse = tokio::spawn(pulse.run());
        let core = Core::start(
            config,
            &credentials,
            pulse_view,
            applied,
            outbox,
            cancel.child_token(),
        );
        // A node that was here before says so at once: to load programs may take longer than the
        // managers wait, and its tasks run on meanwhile. A new one is ready when it can serve.
        let (core, session) = if knows_the_cluster {
            let session = tokio::spawn(session);
            let core = core.await;
            if core.is_err() {
                cancel.cancel();
            }
            (core?, session)
        } else {
            (core.await?, tokio::spawn(session))
        };
        Ok(Self {
            commands,
            applied: shown,
            core: tokio::spawn(core.run(command_inbox, event_inbox)),
            session,
            pulse,
            identity,
            cancel,
        })
    }

    /// What the node proves itself with to the managers, if the agent started without.
    pub fn identify(&mut self, tls: NodeTls) {
        if let Some(identity) = self.identity.take() {
            // A session that has ended needs none.
            let _ = identity.send(tls);
        }
    }

    /// What the managers last told this node and the kernel has, whenever it changes.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// The rows of one `swarmnet inspect` table, as this node's kernel and agent have them.
    ///
    /// # Errors
    /// When the maps cannot be read, or the table is not this node's to tell.
    pub async fn inspect(&self, table: Table) -> Result<serde_json::Value> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Inspect(table, reply))
            .await
            .context("the agent is stopping")?;
        answer.await.context("the agent is stopping")?
    }

    /// Where a packet would go from this node, and why.
    ///
    /// # Errors
    /// When the question makes no sense here.
    pub async fn trace(&self, query: TraceQuery) -> Result<TraceAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Trace(Box::new(query), reply))
            .await
            .context("the agent is stopping")?;
        answer.await.context("the agent is stopping")?
    }

    /// Stops the agent and nothing else: tasks, programs and traffic go on.
    pub async fn stop(self) {
        self.cancel.cancel();
        let _ = tokio::join!(self.core, self.session, self.pulse);
    }

    /// Stops the node's tasks and removes everything that the agent made.
    ///
    /// # Errors
    /// The first failure; the rest is removed all the same.
    pub async fn leave(self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Leave(reply))
            .await
            .context("the agent is stopping")?;
        let outcome = answer.await.context("the agent is stopping")?;
        self.stop().await;
        outcome
    }
}
