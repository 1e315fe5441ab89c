//! `cargo xtask demo`: three nodes in network namespaces, a published service, and a client outside
//! that reaches it through each of them.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, LabSpec, Wiring, progress::step};

use crate::{
    build::{Binaries, Profile, build},
    setup,
};

const NAME: &str = "sndemo";
/// Short: a unix socket's path has at most 107 bytes.
const DIR: &str = "/var/lib/swarmnet-demo";
const NODES: u8 = 3;
const PORT: u16 = 8080;

#[derive(clap::Args)]
pub struct Args {
    /// Tear down at the end; exit status 0 only if every claim held.
    #[arg(long, conflicts_with = "down")]
    once: bool,
    /// Only tear down what an earlier demo left running.
    #[arg(long)]
    down: bool,
    /// Where the mesh's entry program runs.
    #[arg(long, default_value = "auto", value_parser = ["auto", "xdp", "tc"])]
    uplink_mode: String,
}

pub fn run(args: &Args) -> Result<()> {
    if args.down {
        return step("tearing the demo down", || Lab::clean(NAME, Path::new(DIR)));
    }
    setup::ensure_ready(setup::For::Run)?;
    // The profile of the tests: half the time to the first answer.
    let binaries = build(Profile::Dev)?;
    let mut lab = step(
        "starting 3 nodes and a client in network namespaces",
        || start(args, &binaries),
    )?;
    let shown = show(&mut lab, &binaries);
    if args.once {
        step("tearing the demo down", || {
            drop(lab);
            Ok(())
        })?;
        return shown;
    }
    let hints = hints(&lab);
    lab.keep();
    println!("{hints}");
    shown
}

fn start(args: &Args, binaries: &Binaries) -> Result<Lab> {
    let uplink_mode = ["auto", "xdp", "tc"]
        .into_iter()
        .find(|mode| *mode == args.uplink_mode)
        .context("clap lets only these through")?;
    let mut lab = Lab::new(LabSpec {
        name: NAME.to_owned(),
        dir: PathBuf::from(DIR),
        nodes: NODES,
        managers: 1,
        binary: binaries.swarmnet.clone(),
        uplink_mode,
        mtu: 1500,
        wiring: Wiring::Switch,
    })?;
    lab.form_cluster()?;
    Ok(lab)
}

fn show(lab: &mut Lab, binaries: &Binaries) -> Result<()> {
    let whoami = binaries
        .whoami
        .to_str()
        .context("the path of the build is no UTF-8")?;
    let port = PORT.to_string();
    let manager = lab.node(1);
    step(
        "deploying one replica of `web`, published on port 8080",
        || {
            manager.cli(&["network", "create", "-d", "overlay", "front"])?;
            manager.cli(&[
                "service",
                "create",
                "--name",
                "web",
                "--network",
                "front",
                "--publish",
                &format!("{PORT}:{PORT}"),
                "--",
                whoami,
                &port,
            ])?;
            lab.wait_running("web", 1)?;
            lab.settle()
        },
    )?;
    let mut claims = Claims::default();
    claims.ask_every_node(lab, "1 replica")?;
    step("scaling `web` to 3", || {
        lab.node(1).cli(&["service", "scale", "web=3"])?;
        lab.wait_running("web", 3)?;
        lab.settle()
    })?;
    claims.ask_every_node(lab, "3 replicas")?;
    println!("\n{}", claims.table()?);
    claims.connection_outlives_agent(lab)?;
    let manager = lab.node(1);
    for table in ["nodes", "services", "backends", "vips"] {
        println!(
            "$ swarmnet inspect {table}\n{}",
            manager.cli(&["inspect", table])?
        );
    }
    println!(
        "$ swarmnet service ps web\n{}",
        manager.cli(&["service", "ps", "web"])?
    );
    claims.verdict()
}

/// What was asked, and whether the answer was as claimed.
#[derive(Default)]
struct Claims {
    rows: Vec<[String; 5]>,
    broken: Vec<String>,
}

impl Claims {
    fn ask_every_node(&mut self, lab: &Lab, what: &str) -> Result<()> {
        let wanted = lab.client_addr().to_string();
        for node in lab.nodes() {
            let url = format!("http://{}:{PORT}", node.addr());
            let output = lab
                .client()
                .output("curl", &["-sS", "--max-time", "5", &url])?;
            let answer = String::from_utf8_lossy(&output.stdout);
            // `task <host name> client <address>:<port>`
            let words: Vec<_> = answer.split_whitespace().collect();
            let task = words.get(1).copied().unwrap_or("no answer");
            let client = words
                .get(3)
                .and_then(|addr| addr.split(':').next())
                .unwrap_or("-");
            if client != wanted {
                let err = String::from_utf8_lossy(&output.stderr);
                self.broken.push(format!(
                    "{what}: {url}: client {client}, want {wanted}; {err}"
                ));
            }
            self.rows
                .push([what, node.name(), &url, task, client].map(str::to_owned));
        }
        Ok(())
    }

    /// An open connection through node 2 while its agent is killed and started again.
    fn connection_outlives_agent(&mut self, lab: &mut Lab) -> Result<()> {
        let addr = lab.node(2).addr();
        let connect = || Ok(TcpStream::connect_timeout(&(addr, PORT).into(), PATIENCE)?);
        let stream = lab.client().within(connect)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut echo = Echo::greet(stream)?;
        step(
            "kill -9 of node 2's agent, with a connection open through it",
            || lab.node_mut(2).kill(),
        )?;
        self.check_open(&mut echo, "killed");
        self.rows.clear();
        self.ask_every_node(lab, "agent of node 2 killed")?;
        step("starting it again", || lab.node_mut(2).start())?;
        self.check_open(&mut echo, "started again");
        self.ask_every_node(lab, "and started again")?;
        println!("\n{}", self.table()?);
        Ok(())
    }

    fn check_open(&mut self, echo: &mut Echo, agent: &str) {
        if let Err(err) = echo.say("still there?") {
            self.broken.push(format!(
                "open connection, agent of its entry node {agent}: {err:#}"
            ));
        }
    }

    fn table(&self) -> Result<String> {
        let mut table = tabwriter::TabWriter::new(Vec::new()).padding(3);
        writeln!(
            table,
            "SERVICE\tENTRY NODE\tCURL FROM OUTSIDE\tANSWERED BY TASK\tCLIENT SEEN BY TASK"
        )?;
        for row in &self.rows {
            writeln!(table, "{}", row.join("\t"))?;
        }
        Ok(String::from_utf8(table.into_inner()?)?)
    }

    fn verdict(&self) -> Result<()> {
        ensure!(
            self.broken.is_empty(),
            "claims that did not hold:\n{}",
            self.broken.join("\n")
        );
        println!("every claim held");
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to the lab's service, which echoes lines.
struct Echo {
    reader: BufReader<TcpStream>,
}

impl Echo {
    fn greet(stream: TcpStream) -> Result<Self> {
        let mut echo = Self {
            reader: BufReader::new(stream),
        };
        echo.reader.get_mut().write_all(b"hello\n")?;
        for _ in ["who answered", "hello"] {
            echo.line()?;
        }
        Ok(echo)
    }

    fn say(&mut self, words: &str) -> Result<()> {
        writeln!(self.reader.get_mut(), "{words}")?;
        let answer = self.line()?;
        ensure!(answer.trim_end() == words, "sent `{words}`, got `{answer}`");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.reader.read_line(&mut line)? > 0,
            "the connection was closed"
        );
        Ok(line)
    }
}

fn hints(lab: &Lab) -> String {
    let mut text = String::new();
    let (manager, client) = (lab.node(1), lab.client().name());
    let _ = write!(
        text,
        "\nThe cluster goes on running. Try:\n\
         \x20 export SWARMNET_HOST={url}\n\
         \x20 {binary} service ls\n\
         \x20 {binary} service scale web=5\n\
         \x20 {binary} inspect flows\n\
         \x20 DOCKER_HOST={url} docker service ps web\n\
         \x20 nsenter --net=/run/netns/{client} curl http://{addr}:{PORT}\n\
         \x20 tail -f {log}\n\
         Tear it down:\n\
         \x20 cargo xtask demo --down",
        url = manager.host_url(),
        binary = "target/debug/swarmnet",
        addr = lab.node(3).addr(),
        log = manager.log_path().display(),
    );
    text
}
