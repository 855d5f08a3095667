//! A hash over everything that happened: the same trace is the same run.
//!
//! It is asked whether two runs are the same, by nobody who wants to deceive, and several times for each of hundreds of
//! thousands of happenings a second: a few multiplications on 32 bytes at a time will do.

use baton_core::state::Micros;

#[derive(Debug)]
pub(super) struct Trace([u64; 4]);

const ODD: [u64; 4] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
];

impl Trace {
    pub(super) const fn new() -> Self {
        Self(ODD)
    }

    /// Something happened at `now`.
    pub(super) fn note(&mut self, now: Micros, parts: &[&[u8]]) {
        self.take([now.0, parts.len() as u64, 0, 0]);
        for part in parts {
            let (blocks, rest) = part.as_chunks::<32>();
            for block in blocks {
                self.take(words(block));
            }
            let mut last = [0; 32];
            last[..rest.len()].copy_from_slice(rest);
            self.take(words(&last));
            // Where a part ends counts.
            self.0[3] ^= part.len() as u64;
        }
    }

    fn take(&mut self, words: [u64; 4]) {
        for n in 0..4 {
            let lane = (self.0[n] ^ words[n]).wrapping_mul(ODD[n]);
            self.0[n] = lane ^ lane >> 31;
        }
        let [a, b, c, d] = self.0;
        self.0 = [b, c ^ a.rotate_left(17), d, a.wrapping_add(c)];
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        let mut end = Self(self.0);
        (0..4).for_each(|_| end.take([0; 4]));
        let mut out = [0; 32];
        for (chunk, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(end.0) {
            *chunk = lane.to_le_bytes();
        }
        out
    }
}

fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let (chunks, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|n| u64::from_le_bytes(chunks[n]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    type Notes<'a> = [(u64, &'a [&'a [u8]])];

    fn of(notes: &Notes<'_>) -> [u8; 32] {
        let mut trace = Trace::new();
        for (now, parts) in notes {
            trace.note(Micros(*now), parts);
        }
        trace.hash()
    }

    #[test]
    fn whatever_differs_shows() {
        let long = [7; 100];
        let mut other = long;
        other[99] ^= 0x80;
        let mut last = long;
        last[0] ^= 1;
        let runs: [&Notes<'_>; 11] = [
            &[],
            &[(1, &[])],
            &[(2, &[])],
            &[(1, &[b"a"])],
            &[(1, &[b"a", b""])],
            &[(1, &[b"", b"a"])],
            &[(1, &[b"a\0"])],
            &[(1, &[&long])],
            &[(1, &[&other])],
            &[(1, &[&last])],
            &[(1, &[&long]), (1, &[])],
        ];
        let hashes: BTreeSet<[u8; 32]> = runs.iter().map(|run| of(run)).collect();
        assert_eq!(hashes.len(), runs.len());
        assert_eq!(of(runs[9]), of(runs[9]));
    }
}
