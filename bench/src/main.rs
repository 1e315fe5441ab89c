//! Started by `cargo xtask bench`, which builds what is measured.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;
use swarmnet_bench::{Objects, Parts, part::Part, record::Record, report::Report};

/// Measures, and shows figures as ratios against peers of the same run.
#[derive(Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
struct Args {
    /// Less of everything: minutes instead of half an hour.
    #[arg(long)]
    quick: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Write the figures to docs/bench.json, each part's as soon as it is measured.
    #[arg(long)]
    save: bool,
    /// Another balancer's compiled XDP object, with maps as Katran has them; measured in the same
    /// process on the same packets.
    #[arg(long, value_name = "PATH")]
    peer_object: Vec<PathBuf>,
    /// The program in it, if it has several.
    #[arg(long, value_name = "NAME")]
    peer_program: Option<String>,
    /// Our own object (target/bpf/swarmnet.o) as it was before a change, measured beside.
    #[arg(long, value_name = "PATH")]
    before: Vec<PathBuf>,
    /// etcd's binary, if there is one.
    #[arg(long, hide = true)]
    etcd: Option<PathBuf>,
    /// Where `cargo xtask bench` put what it built.
    #[arg(long, hide = true)]
    root: PathBuf,
    #[arg(long, hide = true)]
    binaries: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let parts = Parts {
        quick: args.quick,
        objects: Objects {
            programs: args.root.join("target/bpf"),
            swarmnet: args.binaries.join("swarmnet"),
            meter: args.binaries.join("meter"),
            whoami: args.binaries.join("whoami"),
        },
        peers: args.peer_object.clone(),
        peer_program: args.peer_program.clone(),
        before: args.before.clone(),
        etcd: args.etcd.clone(),
    };
    let record = args.save.then(|| Record::of_repository(&args.root));
    let record = record.transpose()?;
    let mut failed = Vec::new();
    for part in Part::chosen(&args.only) {
        let mut report = Report::default();
        if let Err(error) = part.measure(&parts, &mut report) {
            eprintln!("Error: the part `{part}`: {error:#}");
            failed.push(part.to_string());
            continue;
        }
        println!("{}", report.show()?);
        if let Some(record) = &record {
            record.put(part, &report)?;
        }
    }
    if let Some(record) = record {
        println!("written to {}", record.path().display());
    }
    ensure!(
        failed.is_empty(),
        "not measured: {}; the others were",
        failed.join(", ")
    );
    Ok(())
}
