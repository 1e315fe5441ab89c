//! Internet checksum arithmetic (RFC 1624) on values as they lie in memory: the sum does not
//! depend on byte order.

use dataplane_abi::Be32;

/// An unfolded ones' complement sum.
#[derive(Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    /// Starts from a header's checksum field.
    #[inline(always)]
    pub fn of_field(checksum: u16) -> Self {
        Self(u64::from(!checksum))
    }

    #[inline(always)]
    pub fn add(self, half: u16) -> Self {
        Self(self.0 + u64::from(half))
    }

    /// Four bytes as they lie in memory.
    #[inline(always)]
    pub fn add_word(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    #[inline(always)]
    pub fn add_addr(self, addr: Be32) -> Self {
        self.add_word(addr.raw())
    }

    #[inline(always)]
    pub fn replace(self, old: u16, new: u16) -> Self {
        self.add(!old).add(new)
    }

    #[inline(always)]
    pub fn replace_addr(self, old: Be32, new: Be32) -> Self {
        Self(self.0 + u64::from(!old.raw()) + u64::from(new.raw()))
    }

    /// The sum in 32 bits, as the kernel's helpers take it.
    #[inline(always)]
    pub fn folded(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (sum as u32).wrapping_add((sum >> 32) as u32)
    }

    /// The value of the checksum field.
    #[inline(always)]
    pub fn field(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}
