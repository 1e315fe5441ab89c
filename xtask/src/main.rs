//! `cargo xtask`: set-up, builds, demo, tests and benchmarks.

mod bench;
mod build;
mod build_ebpf;
mod demo;
mod etcd;
mod follow;
mod fuzz;
mod setup;
mod test;
mod verify;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Three nodes in network namespaces, a published service, a client: shows the main job.
    Demo(demo::Args),
    /// Sets up what is missing and runs every test.
    Test(test::Args),
    /// Measures, and shows figures as ratios against peers of the same run.
    Bench(bench::Args),
    /// Runs libFuzzer over what comes from others.
    Fuzz(fuzz::Args),
    /// Installs what the other commands need and is missing.
    Setup,
    /// Builds the eBPF programs into target/bpf/swarmnet.o.
    BuildEbpf(build_ebpf::Args),
    /// Checks formatting and lints; changes nothing.
    Verify,
    /// Formats the code.
    Fix,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Setup => setup::ensure_ready(setup::For::Test),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Verify => verify::verify(),
        Command::Fix => verify::fix(),
    }
}
