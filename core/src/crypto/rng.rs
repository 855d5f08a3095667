//! The engine's only source of randomness: a seeded ChaCha20 stream.
//!
//! The core must not ask the operating system, so the embedder seeds it once and may mix in more later. The same
//! seed and the same inputs give the same run, key for key; that is what makes a failing simulation repeatable.

use super::kdf::real_hkdf_sha256;
use chacha20::ChaCha20Rng;
use rand_core::{SeedableRng, TryCryptoRng, TryRng};
use std::convert::Infallible;
use std::fmt;

/// A cryptographic random stream. Not `Clone`: two copies would hand out the same keys.
pub struct Rng(ChaCha20Rng);

impl Rng {
    /// The stream of a seed. Outside of tests the seed is 32 bytes of the operating system's randomness.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let Ok(()) = self.0.try_fill_bytes(out);
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A random 32-bit number.
    pub fn next_u32(&mut self) -> u32 {
        let Ok(number) = self.0.try_next_u32();
        number
    }

    /// A random 64-bit number.
    pub fn next_u64(&mut self) -> u64 {
        let Ok(number) = self.0.try_next_u64();
        number
    }

    /// A number in `0..n`, every one equally likely.
    ///
    /// # Panics
    ///
    /// If `n` is 0: there is no such number.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no number is below 0");
        // 2^64 is rarely a multiple of n; numbers from the incomplete last stretch are thrown away.
        let excess = (u64::MAX % n + 1) % n;
        loop {
            let number = self.next_u64();
            if number <= u64::MAX - excess {
                return number % n;
            }
        }
    }

    /// Mixes `fresh` into the stream. Never makes it worse: the old state stays part of the new one, so even
    /// entropy an attacker knows takes nothing away.
    pub fn reseed(&mut self, fresh: [u8; 32]) {
        let mut material = zeroize::Zeroizing::new([0; 64]);
        let (old, new) = material.split_at_mut(32);
        self.fill(old);
        new.copy_from_slice(&fresh);
        *self = Self::from_seed(*real_hkdf_sha256(&[], material.as_slice(), b"Baton reseed"));
    }

    /// A stream of its own for a part of the program, so that what it draws does not shift what the others draw.
    pub fn fork(&mut self, label: &str) -> Self {
        let material = zeroize::Zeroizing::new(self.bytes::<32>());
        Self::from_seed(*real_hkdf_sha256(
            b"Baton fork",
            material.as_slice(),
            label.as_bytes(),
        ))
    }
}

impl TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(out)
    }
}

impl TryCryptoRng for Rng {}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;

    /// The ChaCha20 key stream of an all-zero key (RFC 8439, A.1, vectors 1 and 2).
    #[test]
    fn the_stream_is_chacha20() {
        let mut rng = Rng::from_seed([0; 32]);
        assert_eq!(
            rng.bytes::<32>().as_slice(),
            hex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
        );
    }

    #[test]
    fn same_seed_same_stream_and_reseeding_leaves_it() {
        let (mut a, mut b) = (Rng::from_seed([1; 32]), Rng::from_seed([1; 32]));
        assert_eq!(a.bytes::<40>(), b.bytes::<40>());
        a.reseed([2; 32]);
        b.reseed([2; 32]);
        assert_eq!(a.next_u64(), b.next_u64());
        a.reseed([3; 32]);
        b.reseed([4; 32]);
        assert_ne!(a.next_u64(), b.next_u64());
    }

    #[test]
    fn reseeding_with_known_bytes_depends_on_the_old_state() {
        let (mut a, mut b) = (Rng::from_seed([1; 32]), Rng::from_seed([2; 32]));
        a.reseed([9; 32]);
        b.reseed([9; 32]);
        assert_ne!(a.next_u64(), b.next_u64());
    }

    #[test]
    fn forks_are_independent() {
        let fork = |label| Rng::from_seed([1; 32]).fork(label).next_u64();
        assert_eq!(fork("a"), fork("a"));
        assert_ne!(fork("a"), fork("b"));
        // Whatever a fork draws, the parent's next number is the same.
        let mut parent = Rng::from_seed([1; 32]);
        let _ = parent.fork("a").bytes::<1000>();
        let mut other = Rng::from_seed([1; 32]);
        let _ = other.fork("b");
        assert_eq!(parent.next_u64(), other.next_u64());
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let mut rng = Rng::from_seed([5; 32]);
        for n in [1, 2, 3, 16, 100] {
            let mut seen = vec![0u32; n as usize];
            for _ in 0..n * 200 {
                seen[rng.below(n) as usize] += 1;
            }
            assert!(
                seen.iter().all(|&count| (100..=300).contains(&count)),
                "{seen:?}"
            );
        }
        // The hardest case for rejection: just over half of all numbers.
        let n = (1 << 63) + 1;
        assert!((0..100).all(|_| rng.below(n) < n));
    }
}
