//! Connections between nodes. Whoever calls another node gets the channel from [`dial`], and what
//! listens for other nodes does so by [`serve`]: two places that decide how a connection is
//! secured and how a dead one is noticed.

mod dial;
mod gate;
mod serve;

pub use dial::{DialError, dial, dial_lazily, refused_certificate};
pub use gate::Gatekeeper;
pub use serve::{listen, serve};

use std::time::Duration;

/// Bytes of the largest message, both ways: a hello names all that a node holds, and a first
/// update carries it; this is room for several hundred thousand objects.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A peer that does not answer a ping within this time is cut off.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
