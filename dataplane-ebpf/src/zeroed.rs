//! Structures of helpers, all zero.

use core::{
    mem::{MaybeUninit, align_of, size_of},
    ptr::write_volatile,
};

/// Fills a place with zeroes, word by word.
///
/// `core::mem::zeroed` becomes a call of `memset`, which goes byte by byte, and whose frame Linux 6.1
/// counts as 32 bytes of the stack's 512: it refused a program for that ("combined stack size of 3
/// calls is 544"). Volatile, else the compiler makes a `memset` of this too; in place, as what is
/// volatile is not moved for free.
///
/// # Safety
/// Zero must be a value of `T`.
#[inline(always)]
pub unsafe fn zeroed<T>(place: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    let words = place.as_mut_ptr().cast::<u32>();
    for index in 0..size_of::<T>() / 4 {
        // SAFETY: within the value, and aligned for words.
        unsafe { write_volatile(words.add(index), 0) };
    }
    // SAFETY: every byte is written, and the caller vouches for the value.
    unsafe { place.assume_init_mut() }
}
