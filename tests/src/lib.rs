//! What the end-to-end tests share: a cluster in a lab, services in it, and the ways to ask them.

mod ask;
mod cfssl;
mod cluster;
mod datagram;
mod load;
mod traffic;
mod unlock;
mod web;
mod writer;

pub use ask::{Answer, Asker, Conversation, Heard, ask_tcp, ask_udp, send_through};
pub use cfssl::{Cfssl, Serving};
pub use cluster::{Cluster, external_ca};
pub use datagram::{Datagrams, Fragments, Pieces};
pub use lab::RunningTask as Task;
pub use load::{Load, LoadReport, LoadSpec};
pub use traffic::Traffic;
pub use unlock::unlock;
pub use web::Web;
pub use writer::{Acknowledged, Writer};
