//! `swarmnet agent`: the daemon of a node. It serves the API on its socket, and runs the node's
//! agent, and on managers the control plane, once the node is in a cluster.
//!
//! On disk, below `--state-dir`: `member.json` (who the node is), `certificates/` (its key and
//! certificate, the roots that it trusts), `agent/`, `manager/`, and `lock`, held while the daemon
//! runs. Files have mode 0600, directories 0700.

mod addresses;
mod backup;
mod certificates;
mod config;
mod description;
mod join;
mod lock;
mod member;
mod node;
mod ports;
mod precedence;
mod private;
mod renewal;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

pub use self::config::AgentArgs;
use self::{config::DaemonConfig, lock::StateLock, node::Node};

/// Runs until SIGTERM or SIGINT, and leaves tasks, programs and traffic as they are.
///
/// # Errors
/// Names what the node lacks, or what is in the way.
pub fn run(args: AgentArgs) -> Result<()> {
    let config = DaemonConfig::check(args)?;
    start_log(&config.log)?;
    precedence::take();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: DaemonConfig) -> Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), state.dir = %config.state_dir.display(),
        run.dir = %config.run_dir.display(), pin.dir = %config.pin_dir.display(),
        "swarmnet agent starts");
    let _lock = StateLock::take(&config.state_dir)?;
    // From here on a signal is waited for, not deadly: a half-made start is undone in order.
    let mut signals = Signals::new()?;
    let socket = config.socket();
    let node = Node::new(config);
    let stop = CancellationToken::new();
    let outcome = async {
        node.resume().await?;
        let serving = api::serve(&socket, api::router(node.clone()), stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            served = &mut serving => served.context("the API ended"),
            name = signals.wait() => {
                info!(signal = name, "stopping; tasks and traffic go on");
                stop.cancel();
                serving.await.context("the API ended badly")
            }
        }
    }
    .await;
    node.stop().await;
    info!("stopped");
    outcome
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn start_log(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("--log `{filter}` is not a filter: want one like info,agent=debug")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    Ok(())
}
