//! Requests that go on while a test does something else.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{Host, wait_for};

use crate::{Conversation, ask_tcp};

/// Of calm clients.
const PAUSE: Duration = Duration::from_millis(10);

type Failures = Vec<String>;

/// One client for each target, which asks again and again until it is told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Failures>>,
}

impl Traffic {
    /// A new connection for each request.
    pub fn of_connections(from: &Host, to: &[(Ipv4Addr, u16)]) -> Self {
        Self::start(to, |to| {
            let from = from.clone();
            Ok(move || ask_tcp(&from, to).map(drop))
        })
        .expect("nothing was asked yet")
    }

    /// One connection for all requests.
    ///
    /// # Errors
    /// A connection that is not made.
    pub fn of_conversations(from: &Host, to: &[(Ipv4Addr, u16)]) -> Result<Self> {
        Self::start(to, |to| {
            let mut conversation = Conversation::begin(from, to)?;
            Ok(move || conversation.say("are you there?"))
        })
    }

    /// As [`Self::of_conversations`], with a pause after each answer: a cut is noticed as well, and
    /// what else happens has the machine for itself.
    ///
    /// # Errors
    /// A connection that is not made.
    pub fn of_calm_conversations(from: &Host, to: &[(Ipv4Addr, u16)]) -> Result<Self> {
        Self::start(to, |to| {
            let mut conversation = Conversation::begin(from, to)?;
            Ok(move || {
                thread::sleep(PAUSE);
                conversation.say("are you there?")
            })
        })
    }

    fn start<Ask>(
        to: &[(Ipv4Addr, u16)],
        client: impl Fn((Ipv4Addr, u16)) -> Result<Ask>,
    ) -> Result<Self>
    where
        Ask: FnMut() -> Result<()> + Send + 'static,
    {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = Vec::new();
        for to in to {
            let mut ask = client(*to)?;
            let (stop, answered) = (stop.clone(), answered.clone());
            let run = move || {
                let mut failures = Failures::new();
                while !stop.load(Ordering::Relaxed) {
                    match ask() {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(err) => failures.push(format!("{err:#}")),
                    }
                }
                failures
            };
            clients.push(thread::spawn(run));
        }
        Ok(Self {
            stop,
            answered,
            clients,
        })
    }

    /// Waits until some more requests were answered.
    ///
    /// # Errors
    /// At the deadline.
    pub fn go_on(&self) -> Result<()> {
        let before = self.answered.load(Ordering::Relaxed);
        let enough = before + 5 * self.clients.len();
        wait_for("traffic to go on", || {
            let answered = self.answered.load(Ordering::Relaxed);
            Ok((answered >= enough).then_some(()))
        })
    }

    /// Stops; all must have been answered.
    ///
    /// # Errors
    /// Tells how many were not, and some of the reasons.
    pub fn end(mut self) -> Result<()> {
        let failures = self.join();
        let answered = self.answered.load(Ordering::Relaxed);
        ensure!(
            failures.is_empty(),
            "{} requests failed, {answered} did not: {:?}",
            failures.len(),
            &failures[..failures.len().min(3)]
        );
        ensure!(answered > 0, "nothing was asked");
        Ok(())
    }

    fn join(&mut self) -> Failures {
        self.stop.store(true, Ordering::Relaxed);
        let clients = self.clients.drain(..);
        clients
            .flat_map(|client| client.join().unwrap_or_else(|_| vec!["panic".to_owned()]))
            .collect()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.join();
    }
}
