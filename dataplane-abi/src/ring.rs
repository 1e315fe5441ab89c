//! Rings: runs of slots in `RINGS`, in one of two forms.
//!
//! Indexes below 256 take a byte: a ring that names no other has slots of two bytes, two to a word,
//! and so half the memory (docs/decisions/0019).

/// Words of a chunk. A power of two, so that a slot's place is a shift and a mask.
pub const RING_CHUNK_WORDS: u32 = 256;
/// The largest ring: as long as Maglev's (NSDI'16, section 5.3), rounded to a power of two.
pub const RING_LEN_MAX: u32 = 65_536;

/// One value of `RINGS`, array: a run of ring slots. Written by the agent before the service that
/// names it; the agent reuses chunks only after every reader is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RingChunk {
    pub words: [u32; RING_CHUNK_WORDS as usize],
}

// SAFETY: an array of integers.
#[cfg(feature = "user")]
unsafe impl aya::Pod for RingChunk {}

/// A ring slot: the backend to send to, and the one before the last change, as indexes relative to
/// `ServiceValue::backend_base`. They are equal when there was no change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingSlot {
    pub now: u16,
    pub before: u16,
}

impl RingSlot {
    /// From the wide form.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self {
            now: raw as u16,
            before: (raw >> 16) as u16,
        }
    }

    #[inline(always)]
    pub const fn to_raw(self) -> u32 {
        self.now as u32 | (self.before as u32) << 16
    }
}

/// How a ring's slots lie in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingForm {
    /// One to a word: `now` in the low half, `before` in the high one.
    Wide,
    /// Two to a word, the first in the low half: `now` in the low byte, `before` in the high one.
    Narrow,
}

impl RingForm {
    /// The smallest for these slots, in the wide form.
    pub fn of(slots: &[u32]) -> Self {
        let is_small = |raw: &u32| {
            let slot = RingSlot::from_raw(*raw);
            slot.now.max(slot.before) <= u8::MAX as u16
        };
        match slots.iter().all(is_small) {
            true => Self::Narrow,
            false => Self::Wide,
        }
    }

    pub const fn slots_per_chunk(self) -> u32 {
        match self {
            Self::Wide => RING_CHUNK_WORDS,
            Self::Narrow => 2 * RING_CHUNK_WORDS,
        }
    }

    /// Chunks of a ring of so many slots.
    pub const fn chunks(self, slots: u32) -> u32 {
        slots.div_ceil(self.slots_per_chunk())
    }

    /// The next chunk of a ring, from as many slots as it has left, in the wide form. What is beyond
    /// them is zero.
    pub fn pack(self, slots: &[u32]) -> RingChunk {
        let mut words = [0; RING_CHUNK_WORDS as usize];
        match self {
            Self::Wide => words
                .iter_mut()
                .zip(slots)
                .for_each(|(word, raw)| *word = *raw),
            Self::Narrow => words
                .iter_mut()
                .zip(slots.chunks(2))
                .for_each(|(word, pair)| {
                    let halves = pair.iter().rev();
                    *word = halves.fold(0, |word, raw| word << 16 | narrow(*raw));
                }),
        }
        RingChunk { words }
    }
}

const fn narrow(raw: u32) -> u32 {
    raw & 0xff | raw >> 8 & 0xff00
}

/// Where in `RINGS` a ring begins, and its form.
///
/// Builds before layout 10 take all of it for the first chunk. So to them a narrow ring is none, as it
/// begins beyond the map's end, and they make it anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct RingPlace(u32);

impl RingPlace {
    const NARROW_BIT: u32 = 31;

    pub const fn new(first_chunk: u32, form: RingForm) -> Self {
        let first_chunk = first_chunk & !(1 << Self::NARROW_BIT);
        match form {
            RingForm::Wide => Self(first_chunk),
            RingForm::Narrow => Self(first_chunk | 1 << Self::NARROW_BIT),
        }
    }

    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    #[inline(always)]
    pub const fn first_chunk(self) -> u32 {
        self.0 & !(1 << Self::NARROW_BIT)
    }

    pub const fn form(self) -> RingForm {
        match self.narrow() {
            0 => RingForm::Wide,
            _ => RingForm::Narrow,
        }
    }

    /// The chunks of a ring of so many slots that begins here.
    pub const fn chunks(self, slots: u32) -> core::ops::Range<u32> {
        let first = self.first_chunk();
        first..first + self.form().chunks(slots)
    }

    /// Index into `RINGS` of the chunk that has the slot.
    #[inline(always)]
    pub const fn chunk_of(self, slot: u32) -> u32 {
        self.first_chunk() + (slot >> self.narrow()) / RING_CHUNK_WORDS
    }

    /// Which of that chunk's words has it.
    #[inline(always)]
    pub const fn word_of(self, slot: u32) -> u32 {
        (slot >> self.narrow()) % RING_CHUNK_WORDS
    }

    /// The slot, from its word. Without a branch: the verifier would follow all that comes after for
    /// either form.
    #[inline(always)]
    pub const fn slot(self, word: u32, slot: u32) -> RingSlot {
        let narrow = self.narrow();
        let bits = word >> ((slot & narrow) * 16);
        let width = 16 >> narrow;
        let mask = 0xffff >> (16 - width);
        RingSlot {
            now: (bits & mask) as u16,
            before: (bits >> width & mask) as u16,
        }
    }

    /// The slots of a chunk of such a ring, the unused ones included.
    pub fn slots(self, chunk: &RingChunk) -> impl Iterator<Item = RingSlot> + '_ {
        let slots = 0..self.form().slots_per_chunk();
        slots.map(move |slot| self.slot(chunk.words[self.word_of(slot) as usize], slot))
    }

    /// 1 for the narrow form, else 0.
    #[inline(always)]
    const fn narrow(self) -> u32 {
        self.0 >> Self::NARROW_BIT
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn raw(now: u16, before: u16) -> u32 {
        RingSlot { now, before }.to_raw()
    }

    /// Written and read back, slot by slot as the programs do, and chunk by chunk.
    fn keeps(slots: &[u32]) -> RingForm {
        let place = RingPlace::new(7, RingForm::of(slots));
        let form = place.form();
        let runs = slots.chunks(form.slots_per_chunk() as usize);
        let chunks: Vec<_> = runs.map(|run| form.pack(run)).collect();
        assert_eq!(place.chunks(slots.len() as u32), 7..7 + chunks.len() as u32);
        for (index, raw) in (0..).zip(slots) {
            let chunk = &chunks[place.chunk_of(index) as usize - 7];
            let word = chunk.words[place.word_of(index) as usize];
            assert_eq!(place.slot(word, index).to_raw(), *raw, "slot {index}");
        }
        let read = chunks.iter().flat_map(|chunk| place.slots(chunk));
        let read: Vec<_> = read.map(RingSlot::to_raw).collect();
        assert_eq!(read[..slots.len()], *slots);
        assert!(read[slots.len()..].iter().all(|unused| *unused == 0));
        form
    }

    #[test]
    fn slots_of_two_bytes_reach_to_index_255() {
        assert_eq!(keeps(&[raw(255, 255); 2]), RingForm::Narrow);
        assert_eq!(keeps(&[raw(0, 255), raw(255, 0)]), RingForm::Narrow);
        assert_eq!(keeps(&[raw(0, 0), raw(256, 0)]), RingForm::Wide);
        assert_eq!(keeps(&[raw(0, 256), raw(0, 0)]), RingForm::Wide);
        assert_eq!(keeps(&[raw(u16::MAX, u16::MAX); 2]), RingForm::Wide);
    }

    #[test]
    fn ring_of_160_backends_takes_32_kib() {
        let bytes = |form: RingForm, slots| form.chunks(slots) as usize * size_of::<RingChunk>();
        assert_eq!(bytes(RingForm::Narrow, 16_384), 32 << 10);
        assert_eq!(bytes(RingForm::Wide, 16_384), 64 << 10);
        assert_eq!(bytes(RingForm::Wide, RING_LEN_MAX), 256 << 10);
        assert_eq!(
            [1, 512, 513].map(|slots| RingForm::Narrow.chunks(slots)),
            [1, 1, 2]
        );
    }

    #[test]
    fn narrow_ring_begins_beyond_the_map_of_a_build_that_knows_none() {
        let place = RingPlace::new(3, RingForm::Narrow);
        assert!(place.0 > crate::RING_CHUNKS_MAX);
        assert_eq!(place.first_chunk(), 3);
        assert_eq!(RingPlace::from_raw(3), RingPlace::new(3, RingForm::Wide));
    }

    proptest! {
        #[test]
        fn every_slot_is_read_as_it_was_written(
            most in prop::sample::select(std::vec![255u16, 256, u16::MAX]),
            indexes in prop::collection::vec(any::<(u16, u16)>(), 1..1_600),
        ) {
            let within = |index: u16| (u32::from(index) % (u32::from(most) + 1)) as u16;
            let slots = indexes.iter().map(|(now, before)| raw(within(*now), within(*before)));
            let form = keeps(&slots.collect::<Vec<_>>());
            prop_assert!(most > 255 || form == RingForm::Narrow);
        }
    }
}
