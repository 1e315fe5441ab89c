//! `GET /events`: what changes in the cluster, one JSON object a line, from the store's commits.

mod message;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt, future, stream};
use store::{ChangeSet, Commit, Store};
use tokio::sync::broadcast::{self, error::RecvError};

use super::Ctx;
use crate::{error::ApiError, filters::Filters, request::Params};

const FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

pub(super) async fn events(State(node): State<Ctx>, params: Params) -> Result<Response, ApiError> {
    let filters = params.filters(FILTERS)?;
    if time(&params, "since")?.is_some_and(|since| since < SystemTime::now()) {
        return Err(ApiError::unsupported("since: a stream of past events"));
    }
    let until = time(&params, "until")?;
    // Only managers see changes; the stream of another node stays open and silent.
    let lines = match super::store(&node) {
        Ok(store) => lines(store, filters).boxed(),
        Err(_) => stream::pending().boxed(),
    };
    let body = Body::from_stream(lines.take_until(reached(until)));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// A time in seconds since 1970, with a fraction or without.
fn time(params: &Params, name: &str) -> Result<Option<SystemTime>, ApiError> {
    let Some(text) = params
        .get(name)
        .filter(|text| !text.is_empty() && *text != "0")
    else {
        return Ok(None);
    };
    let seconds = text
        .parse()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok());
    match seconds {
        Some(seconds) => Ok(Some(UNIX_EPOCH + seconds)),
        None => Err(ApiError::invalid(format!(
            "invalid {name} `{text}`: want seconds since 1970"
        ))),
    }
}

async fn reached(until: Option<SystemTime>) {
    match until.map(|until| until.duration_since(SystemTime::now())) {
        None => future::pending().await,
        Some(wait) => tokio::time::sleep(wait.unwrap_or_default()).await,
    }
}

/// Follows the commits of a store.
struct Follower {
    store: Store,
    commits: broadcast::Receiver<Arc<Commit>>,
    /// Before the next commit.
    state: store::State,
    filters: Filters,
    waiting: VecDeque<Bytes>,
}

fn lines(store: Store, filters: Filters) -> impl Stream<Item = Result<Bytes, Infallible>> {
    // First the receiver, then the state: commits in between are in both, and skipped.
    let commits = store.commits();
    let follower = Follower {
        state: store::State::clone(&store.state()),
        commits,
        store,
        filters,
        waiting: VecDeque::new(),
    };
    stream::unfold(follower, |mut follower| async move {
        let line = follower.next().await?;
        Some((Ok(line), follower))
    })
}

impl Follower {
    /// The next line; `None` once the store has stopped.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                return Some(line);
            }
            match self.commits.recv().await {
                Ok(commit) => self.take(&commit),
                // The client reads too slowly: what it missed is gone.
                Err(RecvError::Lagged(_)) => self.start_anew(),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, commit: &Commit) {
        if commit.version <= self.state.version() {
            return;
        }
        let messages = message::messages(&self.state, commit);
        for message in messages.filter(|message| message.matches(&self.filters)) {
            self.waiting.push_back(message.line());
        }
        let applied = self.state.apply(ChangeSet {
            base: self.state.version(),
            at: commit.at,
            changes: commit.changes.clone(),
        });
        if applied.is_err() || self.state.version() != commit.version {
            self.start_anew();
        }
    }

    fn start_anew(&mut self) {
        self.state = store::State::clone(&self.store.state());
    }
}
