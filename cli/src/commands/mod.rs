//! The command line: what can be typed, and which module does it.

mod backup;
mod info;
mod inspect;
mod network;
mod node;
mod service;
mod swarm;
mod trace;

use std::ffi::OsString;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{
    client::Client,
    daemon::{self, AgentArgs},
    host::Host,
};

/// Swarm networking with eBPF: routing mesh, VIPs and overlays in the kernel
#[derive(Debug, Parser)]
#[command(
    name = "swarmnet",
    version,
    propagate_version = false,
    max_term_width = 100
)]
pub struct Cli {
    /// The daemon's socket [env: SWARMNET_HOST, DOCKER_HOST] [default: unix:///run/swarmnet/docker.sock]
    #[arg(short = 'H', long, value_name = "HOST")]
    pub host: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Client(ClientCommand),
    /// Run this node's daemon
    Agent(AgentArgs),
    /// What a task hangs on; the daemon calls it
    #[command(name = executor::SHIM_COMMAND, hide = true)]
    TaskShim { args: Vec<OsString> },
}

/// Commands that ask the daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Start a cluster with this node as its manager
    Init(swarm::Init),
    /// Join a cluster as a worker or manager
    Join(swarm::Join),
    /// Show the token and command to join with, or replace the token
    JoinToken(swarm::JoinToken),
    /// Change settings of the cluster
    Update(swarm::Update),
    /// Show the root certificate, or replace it
    Ca(swarm::Ca),
    /// Unlock this manager after it started
    Unlock(swarm::Unlock),
    /// Show the key that unlocks managers, or replace it
    UnlockKey(swarm::UnlockKey),
    /// Copy this manager's state to a file, to restore it from when all managers are lost
    Backup(backup::Backup),
    /// Leave the cluster
    Leave(swarm::Leave),
    /// Show this node and its cluster
    Info(info::Info),
    /// Manage nodes
    #[command(subcommand)]
    Node(node::Node),
    /// Manage overlay networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage services
    #[command(subcommand)]
    Service(Box<service::Service>),
    /// Look into the data plane of this node
    Inspect(inspect::Inspect),
    /// Tell where a packet would go from this node, and why
    Trace(trace::Trace),
}

/// # Errors
/// One sentence for the user.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        // Forks, so it comes before any thread.
        Command::TaskShim { args } => executor::shim_main(args),
        Command::Agent(args) => daemon::run(args),
        Command::Client(command) => ask(cli.host.as_deref(), command),
    }
}

fn ask(host: Option<&str>, command: ClientCommand) -> Result<()> {
    die_with_the_pipe();
    let host = Host::choose(host, |name| std::env::var(name).ok())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(dispatch(&Client::new(host), command))
}

async fn dispatch(client: &Client, command: ClientCommand) -> Result<()> {
    match command {
        ClientCommand::Init(init) => init.run(client).await,
        ClientCommand::Join(join) => join.run(client).await,
        ClientCommand::JoinToken(token) => token.run(client).await,
        ClientCommand::Update(update) => update.run(client).await,
        ClientCommand::Ca(ca) => ca.run(client).await,
        ClientCommand::Unlock(unlock) => unlock.run(client).await,
        ClientCommand::UnlockKey(key) => key.run(client).await,
        ClientCommand::Backup(backup) => backup.run(client).await,
        ClientCommand::Leave(leave) => leave.run(client).await,
        ClientCommand::Info(info) => info.run(client).await,
        ClientCommand::Node(node) => node.run(client).await,
        ClientCommand::Network(network) => network.run(client).await,
        ClientCommand::Service(service) => service.run(client).await,
        ClientCommand::Inspect(inspect) => inspect.run(client).await,
        ClientCommand::Trace(trace) => trace.run(client).await,
    }
}

/// `swarmnet service ls | head` ends quietly, as with other commands; Rust ignores the signal.
fn die_with_the_pipe() {
    // SAFETY: the default disposition runs no code of ours, and no thread exists yet.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.expect("SIGPIPE may be set");
}

/// One outcome for each name: the good ones are printed as they come, the others are told
/// together at the end.
#[derive(Debug, Default)]
struct Outcomes(Vec<String>);

impl Outcomes {
    fn add<E: Into<anyhow::Error>>(&mut self, outcome: Result<(), E>) {
        if let Err(err) = outcome {
            self.0.push(format!("{:#}", err.into()));
        }
    }

    fn end(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        anyhow::bail!(self.0.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Renders the help of every command: a broken template or a clash shows here.
    #[test]
    fn every_command_has_help() {
        fn visit(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Usage:"), "{}", command.get_name());
            if !command.is_hide_set() && command.get_name() != "help" {
                assert!(
                    command.get_about().is_some(),
                    "{} says nothing",
                    command.get_name()
                );
            }
            command.get_subcommands_mut().for_each(visit);
        }
        let mut cli = Cli::command();
        cli.build();
        visit(&mut cli);
    }

    #[test]
    fn outcomes_are_told_together() {
        let mut outcomes = Outcomes::default();
        outcomes.add(Ok::<_, anyhow::Error>(()));
        assert!(Outcomes::default().end().is_ok());
        outcomes.add(Err(anyhow::anyhow!("a")));
        outcomes.add(Err(anyhow::anyhow!("b")));
        assert_eq!(outcomes.end().unwrap_err().to_string(), "a\nb");
    }
}
