//! Cheap stand-ins for simulated worlds: the same types, the same lengths, the same laws, and no secrecy at all.
//!
//! A simulator that runs engines by the million spends most of its time in Curve25519, AES and SHA-256, and what it
//! hunts for is not there. What the protocol's logic needs of its cryptography are laws, and a few multiplications keep
//! them as well:
//!
//! | law | kept by |
//! |---|---|
//! | distinct private keys have distinct public ones | `public_key`, a permutation of 256 bits |
//! | `DH(a, B) = DH(b, A)`, another pair has another secret | `agree`, a hash of both public keys in order |
//! | a signature holds for its key and its bytes only | `sign` and `verify`, a hash of key, nonce and bytes |
//! | what was sealed opens under its key, nonce and context and no others | `Block` in the modes of the real ones, a `Hash` as the tag |
//! | a damaged ciphertext of CBC decrypts to garbage of the same extent | `Block` in CBC, padding as ever |
//! | hashes, MACs and derived keys differ where the inputs do | `Hash`, 256 bits, kept apart by purpose |
//!
//! Everybody who sees two public keys can compute their secret: nothing here resists anybody who wants to break it, only
//! accidents. So it is there under the feature `stand-in-crypto` only, which the product never has (`scripts/test` and
//! the gateway's build see to that), and even then only between `scope` and the end of what it returns, on that thread.
//!
//! **Why a switch per thread.** Marks inside of keys would reach what has a key; hashes, which are most of the work, have
//! none. A type parameter would run through every struct above. A switch per thread is invisible there, and safe for the
//! reason that simulated worlds are deterministic at all: a world is stepped by one thread at a time, from outside to
//! inside, and whoever steps it holds the scope. Whatever keeps a key schedule or the state of a hash remembers by which
//! of the two it was made, so that nothing changes sides half way.
//!
//! SHA-1, MD5, Argon2 and XChaCha20-Poly1305 stay what they are: worlds hardly use them. So does `Rng`(super::Rng):
//! a seed draws the same numbers with either cryptography, which makes their runs comparable line by line.

use std::{cell::Cell, marker::PhantomData};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Uses the stand-ins on this thread (or, with `false`, the real thing) until what it returns is dropped.
#[must_use = "it ends when this is dropped"]
pub fn scope(on: bool) -> Scope {
    Scope {
        before: ON.replace(on),
        here: PhantomData,
    }
}

/// Whether the stand-ins are used on this thread now.
#[must_use]
pub fn active() -> bool {
    ON.get()
}

/// See `scope`. Scopes nest; each ends on the thread on which it began.
#[derive(Debug)]
pub struct Scope {
    before: bool,
    here: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        ON.set(self.before);
    }
}

/// What a `Hash` is for. Two purposes never give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Instead of SHA-256.
    Sha256 = 1,
    /// Instead of HMAC-SHA256; the key comes first, by `Hash::keyed`.
    Hmac256,
    /// Instead of HMAC-SHA512.
    Hmac512,
    /// Instead of HKDF-SHA256.
    Hkdf,
    /// The tag of a ciphertext.
    Tag,
    /// The key stream of a ciphertext.
    Stream,
    /// What two keys agree on.
    Agreement,
    /// The first half of a signature.
    Nonce,
    /// The other half.
    Signature,
}

/// A hash of what comes in pieces, 32 bytes at a time; gives as many bytes as somebody wants.
#[derive(Clone, Debug)]
pub struct Hash {
    lanes: [u64; 4],
    block: [u8; 32],
    /// How much of `block` is taken, below 32.
    taken: usize,
    length: u64,
}

/// Digits of pi: odd, and otherwise nothing special.
const ODD: [u64; 4] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
    0x082e_fa98_ec4e_6c89,
];

impl Hash {
    /// Of nothing yet.
    #[must_use]
    pub fn new(purpose: Purpose) -> Self {
        let mut lanes = ODD;
        lanes[3] ^= purpose as u64;
        Self {
            lanes: stir(lanes),
            block: [0; 32],
            taken: 0,
            length: 0,
        }
    }

    /// Of nothing yet, under a key.
    #[must_use]
    pub fn keyed(purpose: Purpose, key: &[u8]) -> Self {
        let mut hash = Self::new(purpose);
        hash.part(key);
        hash
    }

    /// Takes more in. Where a piece ends makes no difference.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.taken > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(32 - self.taken));
            self.block[self.taken..self.taken + now.len()].copy_from_slice(now);
            self.taken += now.len();
            bytes = later;
            if self.taken < 32 {
                return;
            }
            self.lanes = absorb(self.lanes, &self.block);
        }
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            self.lanes = absorb(self.lanes, block);
        }
        self.block[..rest.len()].copy_from_slice(rest);
        self.taken = rest.len();
    }

    /// Takes a part in, with its length: the same bytes in other parts are something else.
    pub fn part(&mut self, bytes: &[u8]) {
        self.update(bytes);
        self.update(&(bytes.len() as u64).to_le_bytes());
    }

    /// The first bytes of what comes out.
    #[must_use]
    pub fn finish<const N: usize>(mut self) -> [u8; N] {
        self.block[self.taken..].fill(0);
        let mut lanes = absorb(self.lanes, &self.block);
        lanes[0] ^= self.length;
        lanes = stir(stir(lanes));
        let mut out = [0; N];
        for chunk in out.chunks_mut(32) {
            lanes = stir(lanes);
            chunk.copy_from_slice(&to_bytes(lanes)[..chunk.len()]);
        }
        out
    }
}

/// The hash of the concatenation of `parts`.
#[must_use]
pub fn hash<const N: usize>(purpose: Purpose, parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Hash::new(purpose);
    parts.iter().for_each(|part| hash.update(part));
    hash.finish()
}

/// In place of HKDF-SHA256. As there, no salt and 32 zeroes are the same, and a shorter result is how a longer begins.
#[must_use]
pub fn hkdf<const N: usize>(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; N] {
    let salt = if salt.is_empty() { &[0; 32] } else { salt };
    let mut hash = Hash::keyed(Purpose::Hkdf, salt);
    hash.part(secret);
    hash.part(info);
    hash.finish()
}

/// In place of AES-256: a keyed permutation of 16 bytes, four rounds of Feistel.
#[derive(Clone, Debug)]
pub struct Block([u64; 4]);

impl Block {
    /// Of this key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(stir(words(key)))
    }

    fn encrypt(&self, block: u128) -> u128 {
        let (mut high, mut low) = ((block >> 64) as u64, block as u64);
        for key in self.0 {
            (high, low) = (low, high ^ round(low, key));
        }
        u128::from(high) << 64 | u128::from(low)
    }

    fn decrypt(&self, block: u128) -> u128 {
        let (mut high, mut low) = ((block >> 64) as u64, block as u64);
        for key in self.0.into_iter().rev() {
            (high, low) = (low ^ round(high, key), high);
        }
        u128::from(high) << 64 | u128::from(low)
    }
}

fn round(half: u64, key: u64) -> u64 {
    let wide = u128::from(half ^ key) * u128::from(ODD[0]);
    (wide as u64 ^ (wide >> 64) as u64).wrapping_add(key.rotate_left(32))
}

/// In place of AES-256 in CBC mode, in either direction, of what comes in pieces.
#[derive(Clone, Debug)]
pub struct Cbc {
    block: Block,
    last: u128,
}

impl Cbc {
    /// Of this key and this vector.
    #[must_use]
    pub fn new(key: &[u8; 32], iv: &[u8; 16]) -> Self {
        Self {
            block: Block::new(key),
            last: u128::from_le_bytes(*iv),
        }
    }

    /// Encrypts whole blocks in place; an incomplete last one is left as it is.
    pub fn encrypt(&mut self, blocks: &mut [u8]) {
        for block in blocks.as_chunks_mut::<16>().0 {
            self.last = self.block.encrypt(u128::from_le_bytes(*block) ^ self.last);
            *block = self.last.to_le_bytes();
        }
    }

    /// Decrypts whole blocks in place; an incomplete last one is left as it is.
    pub fn decrypt(&mut self, blocks: &mut [u8]) {
        for block in blocks.as_chunks_mut::<16>().0 {
            let sealed = u128::from_le_bytes(*block);
            *block = (self.block.decrypt(sealed) ^ self.last).to_le_bytes();
            self.last = sealed;
        }
    }
}

/// In place of AES-256-GCM: its key stream over `text`, in place. Twice is nothing.
pub(super) fn stream(key: &[u8; 32], nonce: &[u8], text: &mut [u8]) {
    let mut hash = Hash::keyed(Purpose::Stream, key);
    hash.part(nonce);
    let block = Block::new(&hash.finish());
    for (number, chunk) in (0..).zip(text.chunks_mut(16)) {
        let mask = block.encrypt(number).to_le_bytes();
        chunk
            .iter_mut()
            .zip(mask)
            .for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// The tag of a ciphertext.
pub(super) fn tag(key: &[u8; 32], nonce: &[u8], aad: &[u8], sealed: &[u8]) -> [u8; 16] {
    let mut hash = Hash::keyed(Purpose::Tag, key);
    hash.part(nonce);
    hash.part(aad);
    hash.part(sealed);
    hash.finish()
}

/// The public half of a private key: a permutation, so that no two have the same.
pub(super) fn public_key(private: &[u8; 32]) -> [u8; 32] {
    to_bytes(stir(stir(stir(words(private)))))
}

/// What two agree on, from their public keys, whoever of them asks.
pub(super) fn agree(one: &[u8; 32], other: &[u8; 32]) -> [u8; 32] {
    hash(Purpose::Agreement, &[one.min(other), one.max(other)])
}

/// Whether a public key is one of those with which everybody has the same secret: the points of low order (RFC 7748,
/// section 6.1, and what <https://cr.yp.to/ecdh.html#validate> lists), which the real agreement refuses as well.
pub(super) fn is_low_order(public: &[u8; 32]) -> bool {
    // Four of the seven are all zeroes or ones but for the first and the last byte.
    let [first, middle @ .., last] = public;
    let last = last & 0x7f;
    let small = middle.iter().all(|byte| *byte == 0) && last == 0 && *first <= 1;
    let large = middle.iter().all(|byte| *byte == 0xff) && last == 0x7f && *first >= 0xec;
    let eighth = |point: &[u8; 32]| point[..31] == public[..31] && point[31] == last;
    small || (large && *first <= 0xee) || EIGHTH.iter().any(eighth)
}

/// The two u-coordinates of order eight.
const EIGHTH: [[u8; 32]; 2] = [
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
];

/// A signature: a nonce of key, message and `random`, as the real one has, and what only fits this key and message.
pub(super) fn sign(private: &[u8; 32], message: &[&[u8]], random: &[u8; 64]) -> [u8; 64] {
    let mut hash = Hash::keyed(Purpose::Nonce, private);
    hash.update(random);
    message.iter().for_each(|part| hash.update(part));
    let nonce: [u8; 32] = hash.finish();
    let mut out = [0; 64];
    out[..32].copy_from_slice(&nonce);
    out[32..].copy_from_slice(&fitting(&public_key(private), &nonce, message));
    out
}

/// Whether a signature was made by the private half of `public` over the concatenation of `message`.
pub(super) fn verify(public: &[u8; 32], message: &[&[u8]], signature: &[u8; 64]) -> bool {
    let (nonce, rest) = signature.split_at(32);
    !is_low_order(public) && fitting(public, nonce, message) == rest
}

fn fitting(public: &[u8; 32], nonce: &[u8], message: &[&[u8]]) -> [u8; 32] {
    let mut hash = Hash::keyed(Purpose::Signature, public);
    hash.update(nonce);
    message.iter().for_each(|part| hash.update(part));
    hash.finish()
}

fn absorb(mut lanes: [u64; 4], block: &[u8; 32]) -> [u64; 4] {
    for (lane, word) in lanes.iter_mut().zip(words(block)) {
        *lane ^= word;
    }
    stir(lanes)
}

/// A permutation of 256 bits: every step can be undone, so different states stay different.
fn stir([a, b, c, d]: [u64; 4]) -> [u64; 4] {
    let spread = |lane: u64, odd: u64| {
        let lane = (lane ^ lane >> 32).wrapping_mul(odd);
        lane ^ lane >> 29
    };
    let (mut a, mut b) = (spread(a, ODD[0]), spread(b, ODD[1]));
    let (mut c, mut d) = (spread(c, ODD[2]), spread(d, ODD[3]));
    a = a.wrapping_add(b).wrapping_add(ODD[0]);
    d = (d ^ a).rotate_left(32);
    c = c.wrapping_add(d).wrapping_add(ODD[1]);
    b = (b ^ c).rotate_left(24);
    a = a.wrapping_add(b);
    d = (d ^ a).rotate_left(16);
    c = c.wrapping_add(d);
    b = (b ^ c).rotate_left(63);
    [a, b, c, d]
}

fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let (chunks, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|n| u64::from_le_bytes(chunks[n]))
}

fn to_bytes(lanes: [u64; 4]) -> [u8; 32] {
    let mut out = [0; 32];
    for (chunk, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
        *chunk = lane.to_le_bytes();
    }
    out
}

#[cfg(test)]
mod laws;
