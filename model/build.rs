//! Generates the gRPC clients and servers of `src/rpc.rs`: one set of Rust types on the wire, in the
//! log and in memory, so there is no `.proto` file (see `docs/decisions/0002-wire-format.md`).

use tonic_build::manual::{Builder, Method, Service};

fn method(
    name: &str,
    route: &str,
    input: &str,
    output: &str,
) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(input)
        .output_type(output)
        .codec_path("crate::codec::MsgPackCodec")
}

fn main() {
    let join = method(
        "join",
        "Join",
        "crate::rpc::JoinRequest",
        "crate::rpc::JoinResponse",
    )
    .build();
    let leave = method(
        "leave",
        "Leave",
        "crate::rpc::LeaveRequest",
        "crate::rpc::LeaveResponse",
    )
    .build();
    let session = method(
        "session",
        "Session",
        "crate::feed::AgentMessage",
        "crate::feed::ManagerMessage",
    )
    .client_streaming()
    .server_streaming()
    .build();
    let membership = Service::builder()
        .name("Membership")
        .package("swarmnet")
        .comment("Joining and leaving the cluster.")
        .method(join)
        .method(leave)
        .build();
    let dispatcher = Service::builder()
        .name("Dispatcher")
        .package("swarmnet")
        .comment("The session that feeds an agent and hears from it.")
        .method(session)
        .build();
    Builder::new().compile(&[membership, dispatcher]);
}
