//! `trace`: where would this packet go, and why?

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use model::inspect::{TraceAnswer, TraceFrom, TraceStep};

use crate::{
    client::{Client, Route},
    output::{Format, Listing, Row},
};

/// Source port of a packet for which none is given.
const SRC_PORT: u16 = 40_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Args)]
pub struct Trace {
    #[arg(value_enum, value_name = "PROTO")]
    proto: Transport,
    /// Address of the sender, and its port (40000 unless given)
    #[arg(value_name = "SRC[:PORT]")]
    src: String,
    /// Address and port that it sends to
    #[arg(value_name = "DST:PORT")]
    dst: String,
    /// Who sends it: node, or task and a name or id; from outside the cluster unless given
    #[arg(long, num_args = 1..=2, value_names = ["node|task", "TASK"])]
    from: Vec<String>,
    /// A packet in the middle of a connection, not its first
    #[arg(long)]
    established: bool,
    /// One of the fragments that the packet comes in
    #[arg(long)]
    fragment: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Trace {
    pub async fn run(self, client: &Client) -> Result<()> {
        let (src, src_port) = parse(&self.src)?;
        let (dst, dst_port) = parse(&self.dst)?;
        let dst_port = dst_port
            .with_context(|| format!("`{}` has no port: want an address and a port", self.dst))?;
        let proto = match self.proto {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let route = Route::new("swarmnet/trace")
            .query("proto", proto)
            .query("src", src)
            .query("src_port", src_port.unwrap_or(SRC_PORT))
            .query("dst", dst)
            .query("dst_port", dst_port)
            .query("established", self.established)
            .query("fragment", self.fragment)
            .query("from", String::from(from(&self.from)?));
        let answer: TraceAnswer = client.get(route).await?;
        match &self.listing.format {
            Format::Json => println!("{}", serde_json::to_string(&answer)?),
            _ => self.listing.print(&answer.steps)?,
        }
        Ok(())
    }
}

fn from(words: &[String]) -> Result<TraceFrom> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => Ok(TraceFrom::Outside),
        ["node"] => Ok(TraceFrom::Node),
        ["task", task] => Ok(TraceFrom::Task(task.to_owned())),
        ["task"] => anyhow::bail!("--from task needs the task's name or id"),
        _ => anyhow::bail!(
            "--from {}: want node, or task and its name or id",
            words.join(" ")
        ),
    }
}

fn parse(text: &str) -> Result<(Ipv4Addr, Option<u16>)> {
    let wrong = || format!("`{text}` is no address: want an IPv4 address, and :port");
    match text.split_once(':') {
        None => Ok((text.parse().with_context(wrong)?, None)),
        Some((addr, port)) => {
            let port: u16 = port.parse().with_context(wrong)?;
            Ok((addr.parse().with_context(wrong)?, Some(port)))
        }
    }
}

impl Row for TraceStep {
    const HEADERS: &'static [&'static str] = &["AT", "FOUND"];

    fn cells(&self) -> Vec<String> {
        vec![self.at.clone(), self.found.clone()]
    }

    fn id(&self) -> &str {
        &self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port_or_none() {
        let addr = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(parse("192.0.2.1").unwrap(), (addr, None));
        assert_eq!(parse("192.0.2.1:80").unwrap(), (addr, Some(80)));
        for wrong in ["", "web:80", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:99999"] {
            assert!(parse(wrong).unwrap_err().to_string().contains(wrong));
        }
    }

    #[test]
    fn sender_is_the_node_or_a_task_that_is_named() {
        let read = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            from(&words)
        };
        assert_eq!(read(&[]).unwrap(), TraceFrom::Outside);
        assert_eq!(read(&["node"]).unwrap(), TraceFrom::Node);
        assert_eq!(
            read(&["task", "web.1"]).unwrap(),
            TraceFrom::Task("web.1".into())
        );
        assert!(read(&["task"]).is_err());
        assert!(read(&["node", "n1"]).is_err());
        assert!(read(&["moon"]).is_err());
    }
}
