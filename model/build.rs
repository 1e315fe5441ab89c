//! Generates the gRPC clients and servers of `src/rpc.rs`: one set of Rust types on the wire, in the
//! log and in memory, so there is no `.proto` file (see `docs/decisions/0002-wire-format.md`).

use std::{env, fmt::Write, fs, path::Path};

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

/// One gRPC service.
struct Calls {
    name: &'static str,
    comment: &'static str,
    calls: &'static [Call],
}

/// One call: its name as a function and on the wire, its types, and whether both are streams.
struct Call {
    name: &'static str,
    route: &'static str,
    input: &'static str,
    output: &'static str,
    streams: bool,
}

const fn unary(
    name: &'static str,
    route: &'static str,
    input: &'static str,
    output: &'static str,
) -> Call {
    Call {
        name,
        route,
        input,
        output,
        streams: false,
    }
}

const SERVICES: &[Calls] = &[
    Calls {
        name: "Authority",
        comment: "The cluster's root and the certificates that it signs.",
        calls: &[
            unary(
                "root",
                "Root",
                "crate::rpc::RootRequest",
                "crate::rpc::RootResponse",
            ),
            unary(
                "renew",
                "Renew",
                "crate::rpc::RenewRequest",
                "crate::rpc::Certified",
            ),
        ],
    },
    Calls {
        name: "Membership",
        comment: "Joining and leaving the cluster and its managers.",
        calls: &[
            unary(
                "join",
                "Join",
                "crate::rpc::JoinRequest",
                "crate::rpc::JoinResponse",
            ),
            unary(
                "enrol",
                "Enrol",
                "crate::rpc::EnrolRequest",
                "crate::rpc::EnrolResponse",
            ),
            unary(
                "leave",
                "Leave",
                "crate::rpc::LeaveRequest",
                "crate::rpc::LeaveResponse",
            ),
        ],
    },
    Calls {
        name: "Dispatcher",
        comment: "The session that feeds an agent and hears from it.",
        calls: &[Call {
            name: "session",
            route: "Session",
            input: "crate::feed::AgentMessage",
            output: "crate::feed::ManagerMessage",
            streams: true,
        }],
    },
    Calls {
        name: "Raft",
        comment: "Calls between the managers of the Raft group.",
        calls: &[unary(
            "call",
            "Call",
            "crate::rpc::RaftMessage",
            "crate::rpc::RaftMessage",
        )],
    },
    Calls {
        name: "Api",
        comment: "Requests of the Docker API that another manager received.",
        calls: &[unary(
            "forward",
            "Forward",
            "crate::rpc::ApiRequest",
            "crate::rpc::ApiResponse",
        )],
    },
];

fn main() {
    let services: Vec<_> = SERVICES.iter().map(service).collect();
    Builder::new().compile(&services);
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("rpcs.rs"), enumeration()).expect("OUT_DIR is writable");
}

fn service(calls: &Calls) -> Service {
    let mut builder = Service::builder()
        .name(calls.name)
        .package("swarmnet")
        .comment(calls.comment);
    for call in calls.calls {
        builder = builder.method(method(call).build());
    }
    builder.build()
}

fn method(call: &Call) -> MethodBuilder {
    let method = Method::builder()
        .name(call.name)
        .route_name(call.route)
        .input_type(call.input)
        .output_type(call.output)
        .codec_path("crate::codec::MsgPackCodec");
    match call.streams {
        true => method.client_streaming().server_streaming(),
        false => method,
    }
}

/// An enum with every call, so that who says what may be called has to say it of each.
fn enumeration() -> String {
    let calls = || {
        SERVICES.iter().flat_map(|service| {
            let name = service.name;
            service.calls.iter().map(move |call| {
                let variant = format!("{name}{}", call.route);
                (variant, format!("/swarmnet.{name}/{}", call.route))
            })
        })
    };
    let (mut variants, mut all, mut paths) = (String::new(), String::new(), String::new());
    for (variant, path) in calls() {
        writeln!(variants, "    {variant},").expect("memory suffices");
        writeln!(all, "        Self::{variant},").expect("memory suffices");
        writeln!(paths, "            Self::{variant} => \"{path}\",").expect("memory suffices");
    }
    let count = calls().count();
    format!(
        "/// Every call between nodes.\n\
         #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         pub enum Rpc {{\n{variants}}}\n\n\
         impl Rpc {{\n\
         \x20   pub const ALL: [Self; {count}] = [\n{all}    ];\n\n\
         \x20   /// Of its HTTP/2 requests.\n\
         \x20   pub const fn path(self) -> &'static str {{\n\
         \x20       match self {{\n{paths}        }}\n    }}\n\n\
         \x20   pub fn from_path(path: &str) -> Option<Self> {{\n\
         \x20       Self::ALL.into_iter().find(|rpc| rpc.path() == path)\n    }}\n}}\n"
    )
}
