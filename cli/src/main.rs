//! The `swarmnet` command: a client of the cluster's API, and the daemon that serves it.

mod client;
mod commands;
mod daemon;
mod host;
mod names;
mod output;
mod progress;
mod publish;
mod spec;
mod tasks;
mod units;

use std::process::ExitCode;

use clap::Parser;

use self::commands::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version come this way too; they are no failure.
            let _ = err.print();
            return if err.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}
