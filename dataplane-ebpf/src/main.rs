//! The programs of a swarmnet node, one file a hook; what they share beside them. The life of a
//! packet on each path is told in `docs/dataplane.md`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

// Hooks.
mod connect4;
mod getpeer4;
mod recvmsg4;
mod sendmsg4;
mod tc_gateway;
mod tc_ordered;
mod tc_task;
mod tc_uplink;
mod tc_vxlan;
mod xdp_uplink;

// Shared.
mod arp;
mod bridge;
mod checksum;
mod client;
mod count;
mod doubt;
mod encap;
mod entry;
mod flow;
mod fragment;
mod guard;
mod maps;
mod mesh;
mod mesh_error;
mod mss;
mod next_hop;
mod overlay;
mod owner;
mod packet;
mod quote;
mod redirect;
mod refuse;
mod reset;
mod service;
mod skb;
mod socket;
mod source_port;
mod task_socket;
mod too_big;
mod vip;
mod vip_error;
mod zeroed;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Licence that the kernel asks for before it lends the programs GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
