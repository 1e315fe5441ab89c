//! The whole manager in one process, over real gRPC on loopback and a store on disk.

mod access;
mod pipeline;
mod sessions;
mod support;
