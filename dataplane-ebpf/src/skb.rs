//! What tc programs do with an skb, over the helpers. Each function that changes the packet voids
//! earlier [`Bytes`]; headers alone are made writable, so GSO packets stay as they are.

use core::{mem::size_of_val, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use dataplane_abi::{Be16, Be32, DropReason, ProgramId};

use crate::{
    checksum::Sum,
    count::{self, Volume},
    packet::{Bytes, ETH_LEN, HEADERS_MAX, Mac, PROTO_UDP, Packet, TCP_LEN},
};

/// A verdict of a tc program: `TC_ACT_*`.
pub type Verdict = i32;

#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// The one place where a tc program's outcome becomes its verdict.
    #[inline(always)]
    pub fn verdict(self, program: ProgramId, outcome: Result<Verdict, DropReason>) -> Verdict {
        match outcome {
            Ok(verdict) => verdict,
            Err(reason) => {
                count::dropped(program, reason, self.volume());
                TC_ACT_SHOT
            }
        }
    }

    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ifindex }
    }

    /// Zero, of which the verifier knows nothing: a number that it is added to is any number from
    /// there on, and the ways on which it came about are one way (docs/verifier.md).
    #[inline(always)]
    pub fn unknown_zero(self) -> u32 {
        // SAFETY: as above.
        let len = || unsafe { (&raw const (*self.0).len).read_volatile() };
        len().wrapping_sub(len())
    }

    #[inline(always)]
    pub fn has_vlan_tag(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).mark }
    }

    #[inline(always)]
    pub fn set_mark(self, mark: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).mark = mark }
    }

    #[inline(always)]
    pub fn volume(self) -> Volume {
        // SAFETY: as above.
        let (len, segments) = unsafe { ((*self.0).len, (*self.0).gso_segs) };
        Volume {
            packets: u64::from(if segments == 0 { 1 } else { segments }),
            bytes: len.into(),
        }
    }

    /// Length of the longest IPv4 packet that leaves a device: a GSO packet's segment.
    #[inline(always)]
    pub fn ip_len(self, packet: &Packet) -> u32 {
        // SAFETY: as above.
        let (len, segment) = unsafe { ((*self.0).len, (*self.0).gso_size) };
        if segment == 0 {
            return len - ETH_LEN as u32;
        }
        (packet.l4 - ETH_LEN + packet.l4_len) as u32 + segment
    }

    /// Bytes at an offset that the verifier need not bound.
    #[inline(always)]
    pub fn load<const N: usize>(self, offset: usize) -> Result<[u8; N], DropReason> {
        let mut bytes = [0; N];
        // SAFETY: the bytes live on the stack and are passed with their size; the helper checks the
        // offset.
        let loaded = unsafe {
            bpf_skb_load_bytes(
                self.0.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        match loaded {
            0 => Ok(bytes),
            _ => Err(DropReason::Truncated),
        }
    }

    /// The packet's linear bytes, which hold all headers.
    #[inline(always)]
    pub fn bytes(self) -> Bytes {
        let bytes = self.linear_bytes();
        let linear = (bytes.end - bytes.start) as u32;
        // SAFETY: the context is valid while the program runs.
        let len = unsafe { (*self.0).len };
        if linear >= HEADERS_MAX || linear >= len {
            return bytes;
        }
        // A byte of payload among the headers is too much: where GRO makes such packets one, and that
        // leaves by a device which cannot send it whole, Linux 6.1 panics ("kernel BUG" in
        // `skb_segment`).
        let headers = match bytes.read::<u8>(ETH_LEN) {
            Ok(version_ihl) => ETH_LEN as u32 + u32::from(version_ihl & 0xf) * 4 + TCP_LEN,
            Err(_) => HEADERS_MAX,
        };
        if linear >= headers {
            return bytes;
        }
        // The device left (part of) the headers in pages. A failure shows as truncation.
        // SAFETY: as above.
        unsafe { bpf_skb_pull_data(self.0, if len < headers { len } else { headers }) };
        self.linear_bytes()
    }

    #[inline(always)]
    fn linear_bytes(self) -> Bytes {
        // SAFETY: as above.
        unsafe {
            Bytes {
                start: (*self.0).data as usize,
                end: (*self.0).data_end as usize,
            }
        }
    }

    #[inline(always)]
    pub fn store<T>(self, offset: usize, value: &T) -> Result<(), DropReason> {
        self.store_with(offset, value, 0)
    }

    /// Also tells a checksum that the device computed over the packet.
    #[inline(always)]
    pub fn store_summed<T>(self, offset: usize, value: &T) -> Result<(), DropReason> {
        self.store_with(offset, value, BPF_F_RECOMPUTE_CSUM.into())
    }

    #[inline(always)]
    fn store_with<T>(self, offset: usize, value: &T, flags: u64) -> Result<(), DropReason> {
        let from = ptr::from_ref(value).cast();
        // SAFETY: the value is initialized and lives on the stack; the helper checks the offset.
        match unsafe {
            bpf_skb_store_bytes(
                self.0,
                offset as u32,
                from,
                size_of_val(value) as u32,
                flags,
            )
        } {
            0 => Ok(()),
            _ => Err(DropReason::RewriteFailed),
        }
    }

    #[inline(always)]
    pub fn set_macs(self, dst: Mac, src: Mac) -> Result<(), DropReason> {
        let [a, b, c] = dst.0;
        let [d, e, f] = src.0;
        self.store(0, &[a, b, c, d, e, f])
    }

    /// Replaces the IPv4 addresses and the time to live. The header's sum over all bytes stays
    /// what it was, so a checksum that the device computed over the packet stays true.
    #[inline(always)]
    pub fn set_ip(self, packet: &Packet, src: Be32, dst: Be32, ttl: u8) -> Result<(), DropReason> {
        if src != packet.src {
            self.fix_transport_addr(packet, packet.src, src)?;
        }
        if dst != packet.dst {
            self.fix_transport_addr(packet, packet.dst, dst)?;
        }
        let checksum = Sum::of_field(packet.checksum)
            .replace_addr(packet.src, src)
            .replace_addr(packet.dst, dst)
            .replace(
                halfword(packet.ttl, packet.proto),
                halfword(ttl, packet.proto),
            )
            .field();
        let ttl_to_checksum = u32::from(halfword(ttl, packet.proto)) | u32::from(checksum) << 16;
        self.store(ETH_LEN + 8, &[ttl_to_checksum, src.raw(), dst.raw()])
    }

    #[inline(always)]
    pub fn set_src_port(self, packet: &Packet, port: Be16) -> Result<(), DropReason> {
        self.set_half(packet, packet.l4, packet.src_port, port)
    }

    #[inline(always)]
    pub fn set_dst_port(self, packet: &Packet, port: Be16) -> Result<(), DropReason> {
        self.set_half(packet, packet.l4 + 2, packet.dst_port, port)
    }

    /// Replaces two bytes of the transport header, and tells its checksum.
    #[inline(always)]
    pub fn set_half(
        self,
        packet: &Packet,
        offset: usize,
        old: Be16,
        new: Be16,
    ) -> Result<(), DropReason> {
        if old == new {
            return Ok(());
        }
        // The sum takes bytes in pairs from the header's start.
        let summed = |half: Be16| match (offset - packet.l4) % 2 {
            0 => half.raw(),
            _ => half.raw().swap_bytes(),
        };
        self.fix_transport(packet, summed(old).into(), summed(new).into(), 2)?;
        self.store(offset, &new.raw())
    }

    /// The pseudo header's part, also of checksums that the device will finish. Other protocols
    /// than TCP and UDP do not sum up addresses.
    #[inline(always)]
    fn fix_transport_addr(self, packet: &Packet, old: Be32, new: Be32) -> Result<(), DropReason> {
        if !packet.has_ports() {
            return Ok(());
        }
        self.fix_transport(
            packet,
            old.raw().into(),
            new.raw().into(),
            4 | u64::from(BPF_F_PSEUDO_HDR),
        )
    }

    #[inline(always)]
    fn fix_transport(
        self,
        packet: &Packet,
        old: u64,
        new: u64,
        flags: u64,
    ) -> Result<(), DropReason> {
        // A UDP checksum of zero means "none" and stays; one that comes out as zero is sent as
        // 0xffff (RFC 768).
        let (offset, flags) = if packet.proto == PROTO_UDP {
            (packet.l4 + 6, flags | u64::from(BPF_F_MARK_MANGLED_0))
        } else {
            (packet.l4 + 16, flags)
        };
        // SAFETY: the context is valid; the helper checks the offset.
        match unsafe { bpf_l4_csum_replace(self.0, offset as u32, old, new, flags) } {
            0 => Ok(()),
            _ => Err(DropReason::RewriteFailed),
        }
    }
}

/// Two neighbouring bytes of the packet.
#[inline(always)]
fn halfword(first: u8, second: u8) -> u16 {
    u16::from_ne_bytes([first, second])
}
