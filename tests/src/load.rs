//! Many clients that never pause: connections that each ask once, and streams that go on and on.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Host, patience, wait_for};

use crate::{Conversation, Heard};

/// A thread writes to all of its streams, then reads from all of them.
const STREAMS_PER_THREAD: usize = 50;
/// Requests that come within a deadline.
const STEP: u64 = 1_000;
/// What waits so long is lost; less is slow, as the machine may be.
const PATIENCE: Duration = Duration::from_secs(60);
/// Failures that are kept to be told.
const TOLD_MAX: usize = 5;

/// How much there is of what.
#[derive(Debug, Clone, Copy)]
pub struct LoadSpec {
    /// Streams to each target.
    pub streams: usize,
    /// Clients of each target that make a connection for each request, one after the other.
    pub askers: usize,
}

/// What there was, when nothing was lost.
#[derive(Debug, Clone, Copy)]
pub struct LoadReport {
    pub requests: u64,
    pub echoes: u64,
    /// What the slowest request took.
    pub slowest: Duration,
}

#[derive(Debug, Default)]
struct Tally {
    stop: AtomicBool,
    /// Connections that were made, asked and answered.
    requests: AtomicU64,
    /// Lines that streams sent and got back.
    echoes: AtomicU64,
    /// Streams that their task ended in good order, and that began again.
    farewells: AtomicU64,
    /// What the slowest request took, in milliseconds.
    slowest_ms: AtomicU64,
    failures: AtomicU64,
    told: Mutex<Vec<String>>,
}

/// Running clients.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    /// How often each client of streams has heard all of its streams.
    rounds: Vec<Arc<AtomicU64>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients of `targets` on `host`.
    ///
    /// # Errors
    /// A stream that does not come about.
    pub fn start(host: &Host, targets: &[(Ipv4Addr, u16)], spec: LoadSpec) -> Result<Self> {
        let mut load = Self {
            tally: Arc::default(),
            rounds: Vec::new(),
            clients: Vec::new(),
        };
        for target in targets {
            let mut left = spec.streams;
            while left > 0 {
                let count = left.min(STREAMS_PER_THREAD);
                let streams: Vec<_> =
                    host.within(|| (0..count).map(|_| begin(*target)).collect::<Result<_>>())?;
                let rounds = Arc::<AtomicU64>::default();
                load.rounds.push(rounds.clone());
                load.spawn(host, *target, move |tally, target| {
                    stream(tally, &rounds, target, streams)
                });
                left -= count;
            }
            for _ in 0..spec.askers {
                load.spawn(host, *target, ask);
            }
        }
        Ok(load)
    }

    fn spawn(
        &mut self,
        host: &Host,
        target: (Ipv4Addr, u16),
        client: impl FnOnce(&Tally, (Ipv4Addr, u16)) + Send + 'static,
    ) {
        let (tally, host) = (self.tally.clone(), host.clone());
        self.clients.push(std::thread::spawn(move || {
            let entered = host.within(|| {
                client(&tally, target);
                Ok(())
            });
            if let Err(err) = entered {
                tally.fail(&err);
            }
        }));
    }

    /// Waits until there were `requests` more, and every stream has sent a line since and got it
    /// back.
    ///
    /// # Errors
    /// At the deadline, and as soon as something failed.
    pub fn go_on(&self, requests: u64) -> Result<()> {
        // A round may be under way: the one after it begins and ends from here on.
        let rounds: Vec<_> = self.rounds().map(|round| round + 2).collect();
        let went_on = || self.rounds().zip(&rounds).all(|(now, then)| now >= *then);
        self.wait_until(went_on)?;
        // A step at a time, so that however many there are, each has all the patience.
        let mut left = requests;
        while left > 0 {
            let step = left.min(STEP);
            let asked = self.requests() + step;
            self.wait_until(|| self.requests() >= asked)?;
            left -= step;
        }
        Ok(())
    }

    fn wait_until(&self, is_so: impl Fn() -> bool) -> Result<()> {
        wait_for("the load to go on", || {
            Ok((self.tally.has_failed() || is_so()).then_some(()))
        })?;
        self.tally.check()
    }

    fn rounds(&self) -> impl Iterator<Item = u64> {
        let rounds = self.rounds.iter();
        rounds.map(|rounds| rounds.load(Ordering::Relaxed))
    }

    /// Connections that were asked and answered so far.
    pub fn requests(&self) -> u64 {
        self.tally.requests.load(Ordering::Relaxed)
    }

    /// Ends all clients.
    ///
    /// # Errors
    /// When anything failed: how much, and the first words of it.
    pub fn end(mut self) -> Result<LoadReport> {
        self.join();
        self.tally.check()?;
        Ok(LoadReport {
            requests: self.requests(),
            echoes: self.tally.echoes.load(Ordering::Relaxed),
            slowest: Duration::from_millis(self.tally.slowest_ms.load(Ordering::Relaxed)),
        })
    }

    fn join(&mut self) {
        self.tally.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            if client.join().is_err() {
                self.tally.fail(&anyhow::anyhow!("a client panicked"));
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn answered_after(&self, time: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let ms = time.as_millis() as u64;
        self.slowest_ms.fetch_max(ms, Ordering::Relaxed);
    }

    fn has_failed(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    fn fail(&self, err: &anyhow::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().expect("no holder panics");
        if told.len() < TOLD_MAX {
            told.push(format!("{err:#}"));
        }
    }

    fn check(&self) -> Result<()> {
        let told = self.told.lock().expect("no holder panics");
        ensure!(
            !self.has_failed(),
            "{} of {} requests and {} echoes failed ({} streams were ended in good order): {told:#?}",
            self.failures.load(Ordering::Relaxed),
            self.requests.load(Ordering::Relaxed),
            self.echoes.load(Ordering::Relaxed),
            self.farewells.load(Ordering::Relaxed),
        );
        Ok(())
    }
}

fn begin(target: (Ipv4Addr, u16)) -> Result<Conversation> {
    Conversation::begin_here(target, patience(PATIENCE))
}

fn ask(tally: &Tally, target: (Ipv4Addr, u16)) {
    while tally.goes_on() {
        let since = Instant::now();
        match begin(target) {
            Ok(_) => tally.answered_after(since.elapsed()),
            Err(err) => tally.fail(&err.context("a request")),
        }
    }
}

/// A stream that fails is given up, one that its task ends in good order begins again.
fn stream(
    tally: &Tally,
    rounds: &AtomicU64,
    target: (Ipv4Addr, u16),
    mut streams: Vec<Conversation>,
) {
    const WORDS: &str = "still there";
    while tally.goes_on() && !streams.is_empty() {
        let mut next = Vec::with_capacity(streams.len());
        let sent: Vec<_> = streams
            .iter_mut()
            .map(|stream| stream.send(WORDS))
            .collect();
        for (mut stream, sent) in streams.drain(..).zip(sent) {
            let heard = match (sent, stream.hear(WORDS)) {
                // It had come before, and the line was not taken up.
                (_, Ok(Heard::Goodbye)) => Ok(Heard::Goodbye),
                (sent, heard) => sent.and(heard),
            };
            let stream = match heard {
                Ok(Heard::Echo) => {
                    tally.echoes.fetch_add(1, Ordering::Relaxed);
                    Ok(stream)
                }
                Ok(Heard::Goodbye) => {
                    tally.farewells.fetch_add(1, Ordering::Relaxed);
                    drop(stream);
                    begin(target)
                }
                Err(err) => Err(err.context(format!("a stream with {}", stream.answer.task))),
            };
            match stream {
                Ok(stream) => next.push(stream),
                Err(err) => tally.fail(&err),
            }
        }
        streams = next;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}
