//! The rows of the program's table, and the kernel's scenarios by their names.

use super::packet::{ACK, Kind, RST, SYN, Shape};

/// What becomes of the packets, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Wrapped,
    Passed,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub shape: Shape,
    /// For a service of the node, or for a port of its own.
    pub published: bool,
    pub expect: Expect,
    /// At most so many nanoseconds, net of the driver.
    pub goal: Option<f64>,
    /// What our program does otherwise than the name says.
    pub note: &'static str,
}

const SMALL: usize = 64;
const LARGE: usize = 1_400;
const MILLION: u32 = 1 << 20;
/// As many as there are.
const ALL: u32 = super::world::SERVICES;

const fn row(name: &'static str, kind: Kind, flows: u32, services: u32) -> Row {
    Row {
        name,
        shape: Shape {
            kind,
            len: SMALL,
            flows,
            services,
        },
        published: true,
        expect: Expect::Wrapped,
        goal: None,
        note: "",
    }
}

impl Row {
    const fn goal(mut self, ns: f64) -> Self {
        self.goal = Some(ns);
        self
    }

    const fn len(mut self, len: usize) -> Self {
        self.shape.len = len;
        self
    }

    /// Not for a published port: the host's own.
    const fn not_ours(mut self) -> Self {
        self.published = false;
        self.expect = Expect::Passed;
        self
    }

    const fn expect(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }
}

const TCP: Kind = Kind::Tcp(ACK);

pub const ROWS: [Row; 24] = [
    row("established TCP, 1 service, 1 flow", TCP, 1, 1).goal(45.0),
    row("established TCP, 1 service, 1024 flows", TCP, 1 << 10, 1).goal(50.0),
    row("established TCP, 1 service, 65536 flows", TCP, 1 << 16, 1).goal(100.0),
    row("established TCP, 1 service, 1048576 flows", TCP, MILLION, 1).goal(120.0),
    row(
        "established TCP, 100 services, 1024 flows",
        TCP,
        1 << 10,
        ALL,
    ),
    row(
        "established TCP, 100 services, 65536 flows",
        TCP,
        1 << 16,
        ALL,
    ),
    row(
        "established TCP, 100 services, 1048576 flows",
        TCP,
        MILLION,
        ALL,
    )
    .goal(150.0),
    row("SYN, 1 service, 1048576 flows", Kind::Tcp(SYN), MILLION, 1).goal(60.0),
    row(
        "SYN, 100 services, 1048576 flows",
        Kind::Tcp(SYN),
        MILLION,
        ALL,
    ),
    row("UDP, 1 service, 1 flow", Kind::Udp, 1, 1),
    row("UDP, 1 service, 1024 flows", Kind::Udp, 1 << 10, 1),
    row("UDP, 1 service, 65536 flows", Kind::Udp, 1 << 16, 1),
    row("UDP, 100 services, 1024 flows", Kind::Udp, 1 << 10, ALL),
    row("UDP, 100 services, 65536 flows", Kind::Udp, 1 << 16, ALL),
    row("UDP, 100 services, 1048576 flows", Kind::Udp, MILLION, ALL),
    row("not ours, TCP", TCP, 1, 1).not_ours().goal(20.0),
    row("not ours, TCP, 65536 flows", TCP, 1 << 16, 1).not_ours(),
    row("not ours, UDP", Kind::Udp, 1, 1).not_ours().goal(20.0),
    row("not ours, neither TCP nor UDP", Kind::Icmp, 1, 1)
        .not_ours()
        .goal(20.0),
    row("1400 B, established TCP, 1 service, 1 flow", TCP, 1, 1).len(LARGE),
    row(
        "1400 B, established TCP, 100 services, 65536 flows",
        TCP,
        1 << 16,
        ALL,
    )
    .len(LARGE),
    row("1400 B, UDP, 1 service, 1 flow", Kind::Udp, 1, 1).len(LARGE),
    row("1400 B, not ours, TCP", TCP, 1, 1)
        .len(LARGE)
        .not_ours(),
    row("ARP", Kind::Arp, 1, 1).not_ours(),
];

/// A scenario of the kernel's `bench_xdp_lb` (tools/testing/selftests/bpf), by its name.
pub enum Scenario {
    Here(Row),
    /// Why it cannot be measured.
    NotYet(&'static str, &'static str),
}

/// Flows of the yardstick's "diverse" scenarios, and of those that miss its table.
const DIVERSE: u32 = 1 << 12;
const SPARSE: u32 = 1 << 24;
const NO_TABLE: &str = "no table to hit or to miss";
const IPV6: &str = "IPv6: not yet";

/// A row of the same name.
const fn here(name: &'static str, kind: Kind, flows: u32) -> Row {
    row(name, kind, flows, 1)
}

pub const SCENARIOS: [Scenario; 24] = [
    Scenario::Here(here("tcp-v4-lru-hit", TCP, 1).note(NO_TABLE)),
    Scenario::Here(here("tcp-v4-ch", TCP, 1)),
    Scenario::NotYet("tcp-v6-lru-hit", IPV6),
    Scenario::NotYet("tcp-v6-ch", IPV6),
    Scenario::Here(here("udp-v4-lru-hit", Kind::Udp, 1).note(NO_TABLE)),
    Scenario::NotYet("udp-v6-lru-hit", IPV6),
    Scenario::NotYet("tcp-v4v6-lru-hit", IPV6),
    Scenario::Here(here("tcp-v4-lru-diverse", TCP, DIVERSE).note(NO_TABLE)),
    Scenario::Here(here("tcp-v4-ch-diverse", TCP, DIVERSE)),
    Scenario::NotYet("tcp-v6-lru-diverse", IPV6),
    Scenario::NotYet("tcp-v6-ch-diverse", IPV6),
    Scenario::Here(here("udp-v4-lru-diverse", Kind::Udp, DIVERSE).note(NO_TABLE)),
    Scenario::Here(here("tcp-v4-lru-miss", TCP, SPARSE).note(NO_TABLE)),
    Scenario::Here(here("udp-v4-lru-miss", Kind::Udp, SPARSE).note(NO_TABLE)),
    Scenario::Here(here("tcp-v4-lru-warmup", TCP, DIVERSE).note(NO_TABLE)),
    Scenario::Here(here("tcp-v4-syn", Kind::Tcp(SYN), 1)),
    Scenario::Here(here("tcp-v4-rst-miss", Kind::Tcp(RST), SPARSE).note(NO_TABLE)),
    Scenario::Here(here("pass-v4-no-vip", TCP, 1).not_ours()),
    Scenario::Here(here("pass-v6-no-vip", Kind::TcpV6, 1).not_ours()),
    Scenario::Here(here("pass-v4-icmp", Kind::Icmp, 1).expect(Expect::Passed)),
    Scenario::Here(here("pass-non-ip", Kind::Arp, 1).not_ours()),
    Scenario::Here(
        here("drop-v4-frag", Kind::TcpFragment, 1)
            .expect(Expect::Passed)
            .note("left to tc, which follows fragments"),
    ),
    Scenario::Here(here("drop-v4-options", Kind::TcpOptions, 1).note("forwarded, not dropped")),
    Scenario::NotYet("drop-v6-frag", IPV6),
];
