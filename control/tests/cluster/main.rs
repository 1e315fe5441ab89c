//! The whole manager in one process, over real gRPC on loopback and a store on disk.

mod access;
mod managers;
mod pipeline;
mod sessions;
mod support;
