//! Hashes, HMAC and HKDF.
//!
//! [`hmac_sha256`] and [`hkdf_sha256`] are all most callers need. [`HmacKey`] is for the ratchets, where hashing is
//! most of the work of a message: keying an HMAC costs two compressions of the four a short message takes, and a
//! chain key is used twice.

#[cfg(feature = "stand-in-crypto")]
use super::stand_in::{self, Hash, Purpose};
use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use std::sync::LazyLock;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const HASH_LEN: usize = 32;
const BLOCK_LEN: usize = 64;

/// HKDF-SHA256 (RFC 5869), extract and expand: `N` bytes from the secret `ikm`. An empty salt means none, which is
/// the same as 32 zero bytes.
pub fn hkdf_sha256<const N: usize>(salt: &[u8], ikm: &[u8], info: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * HASH_LEN, "HKDF ends after 255 blocks") };
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return Zeroizing::new(stand_in::hkdf(salt, ikm, info));
    }
    real_hkdf_sha256(salt, ikm, info)
}

/// As [`hkdf_sha256`], whatever stands in for it: for random streams, which are the same in every run of a seed.
pub(super) fn real_hkdf_sha256<const N: usize>(
    salt: &[u8],
    ikm: &[u8],
    info: &[u8],
) -> Zeroizing<[u8; N]> {
    /// Most derivations have no salt; this saves them two compressions.
    static NO_SALT: LazyLock<Hmac<Sha256>> = LazyLock::new(|| real_hmac(&[]));

    let extracted = Zeroizing::new(if salt.is_empty() {
        finish(NO_SALT.clone(), &[ikm])
    } else {
        finish(real_hmac(salt), &[ikm])
    });
    let expand = real_hmac(extracted.as_slice());
    let mut out = Zeroizing::new([0; N]);
    let mut block = Zeroizing::new([0; HASH_LEN]);
    for (index, chunk) in (1..=u8::MAX).zip(out.chunks_mut(HASH_LEN)) {
        let previous: &[u8] = if index == 1 { &[] } else { block.as_slice() };
        let next = finish(expand.clone(), &[previous, info, &[index]]);
        *block = next;
        chunk.copy_from_slice(&block[..chunk.len()]);
    }
    out
}

/// HMAC-SHA256 over the concatenation of `parts`.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    HmacKey::new(key).mac(parts)
}

fn real_hmac(key: &[u8]) -> Hmac<Sha256> {
    let mut block = Zeroizing::new([0; BLOCK_LEN]);
    if let Some(start) = block.get_mut(..key.len()) {
        start.copy_from_slice(key);
    } else {
        block[..HASH_LEN].copy_from_slice(&digest::<Sha256>(&[key]));
    }
    Hmac::new((&*block).into())
}

fn finish(mut mac: Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// A key taken in once and used for several messages.
#[derive(Clone)]
pub(crate) struct HmacKey(HmacStream);

impl HmacKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(HmacStream::new(key))
    }

    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finish()
    }
}

/// HMAC-SHA512 with a key taken in once: the value MACs of app state (fact sheet 08.4).
#[derive(Clone)]
#[cfg_attr(
    feature = "stand-in-crypto",
    expect(
        clippy::large_enum_variant,
        reason = "the real one is the rule, and needs no allocation"
    )
)]
pub(crate) enum HmacSha512Key {
    Real(Hmac<Sha512>),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(Hash),
}

impl HmacSha512Key {
    /// Keys are no longer than a block, 128 bytes; what is beyond is not looked at.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(Hash::keyed(Purpose::Hmac512, key));
        }
        let mut block = Zeroizing::new([0; 2 * BLOCK_LEN]);
        block[..key.len()].copy_from_slice(key);
        Self::Real(Hmac::new((&*block).into()))
    }

    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 64] {
        match self {
            Self::Real(mac) => {
                let mut mac = mac.clone();
                parts.iter().for_each(|part| mac.update(part));
                mac.finalize().into_bytes().into()
            }
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(hash) => {
                let mut hash = hash.clone();
                parts.iter().for_each(|part| hash.update(part));
                hash.finish()
            }
        }
    }
}

/// SHA-256 of what comes in pieces.
#[derive(Clone)]
pub(crate) enum Sha256Stream {
    Real(Sha256),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(Hash),
}

impl Default for Sha256Stream {
    fn default() -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(Hash::new(Purpose::Sha256));
        }
        Self::Real(Sha256::default())
    }
}

impl Sha256Stream {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Real(hash) => hash.update(bytes),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        match self {
            Self::Real(hash) => hash.finalize().into(),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(hash) => hash.finish(),
        }
    }
}

/// HMAC-SHA256 of what comes in pieces.
#[derive(Clone)]
pub(crate) enum HmacStream {
    Real(Hmac<Sha256>),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(Hash),
}

impl HmacStream {
    pub(crate) fn new(key: &[u8]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(Hash::keyed(Purpose::Hmac256, key));
        }
        Self::Real(real_hmac(key))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Real(mac) => mac.update(bytes),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        match self {
            Self::Real(mac) => mac.finalize().into_bytes().into(),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(hash) => hash.finish(),
        }
    }
}

/// Whether two MACs are equal, in time that depends on their lengths only. Different lengths are unequal.
pub fn verify_mac(expected: &[u8], got: &[u8]) -> bool {
    expected.ct_eq(got).into()
}

/// SHA-256 of the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return stand_in::hash(Purpose::Sha256, parts);
    }
    digest::<Sha256>(parts).into()
}

/// SHA-1 of the concatenation of `parts`: the digest of a key bundle (chapter 06), not a security boundary.
pub fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    digest::<Sha1>(parts).into()
}

/// MD5: the hash of the client's version in registration data, not a security boundary.
pub fn md5(data: &[u8]) -> [u8; 16] {
    Md5::digest(data).into()
}

fn digest<D: Digest>(parts: &[&[u8]]) -> hmac::digest::Output<D> {
    let mut hash = D::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bytes, hex};
    use super::*;
    use serde_json::Value;

    fn misc() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/misc.json")).unwrap()
    }

    /// RFC 4231, cases 2 and 6 (a key longer than a block).
    #[test]
    fn hmac_known_answers() {
        assert_eq!(
            hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]).as_slice(),
            hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
        );
        assert_eq!(
            hmac_sha256(
                &[0xaa; 131],
                &[b"Test Using Larger Than Block-Size Key - Hash Key First"]
            )
            .as_slice(),
            hex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
        );
    }

    /// RFC 5869, cases 1 and 3 (no salt, no info).
    #[test]
    fn hkdf_known_answers() {
        let ikm = [0x0b; 22];
        assert_eq!(
            hkdf_sha256::<42>(
                &hex("000102030405060708090a0b0c"),
                &ikm,
                &hex("f0f1f2f3f4f5f6f7f8f9")
            )
            .as_slice(),
            hex(
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
            )
        );
        let no_salt = hex(
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        );
        assert_eq!(hkdf_sha256::<42>(&[], &ikm, &[]).as_slice(), no_salt);
        assert_eq!(hkdf_sha256::<42>(&[0; 32], &ikm, &[]).as_slice(), no_salt);
    }

    /// The chain keys keep their HMAC state across steps; the crate that everybody uses for HKDF says what must come out.
    #[test]
    fn hkdf_equals_the_crate() {
        let mut rng = crate::crypto::Rng::from_seed([5; 32]);
        for length in [0, 1, 31, 32, 33, 64, 65, 200] {
            let (mut salt, mut ikm, info) = (vec![0; length], vec![0; 32], rng.bytes::<11>());
            rng.fill(&mut salt);
            rng.fill(&mut ikm);
            let mut expected = [0; 112];
            hkdf::Hkdf::<Sha256>::new(Some(&salt), &ikm)
                .expand(&info, &mut expected)
                .unwrap();
            assert_eq!(*hkdf_sha256::<112>(&salt, &ikm, &info), expected);
        }
    }

    #[test]
    fn chain_step_vector() {
        let case = &misc()["chain_key_step"];
        let chain = HmacKey::new(&bytes(&case["chain_key"]));
        let seed = chain.mac(&[&[1]]);
        assert_eq!(seed.as_slice(), bytes(&case["message_seed"]));
        assert_eq!(
            chain.mac(&[&[2]]).as_slice(),
            bytes(&case["next_chain_key"])
        );
        assert_eq!(
            hkdf_sha256::<80>(&[], &seed, b"WhisperMessageKeys").as_slice(),
            bytes(&case["message_keys_80"])
        );
    }

    #[test]
    fn key_bundle_digest_vector() {
        let case = &misc()["key_bundle_digest"];
        let field = |name: &str| bytes(&case[name]);
        let (identity, signed, signature) = (
            field("identity"),
            field("signed_prekey_public"),
            field("signed_prekey_signature"),
        );
        let pre_keys: Vec<u8> = case["prekey_publics"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(bytes)
            .collect();
        assert_eq!(
            sha1(&[&identity, &signed, &signature, &pre_keys]).as_slice(),
            field("sha1")
        );
    }

    #[test]
    fn plain_hashes() {
        assert_eq!(
            sha256(&[b"a", b"bc"]).as_slice(),
            hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert_eq!(
            md5(b"abc").as_slice(),
            hex("900150983cd24fb0d6963f7d28e17f72")
        );
    }

    #[test]
    fn macs_of_other_lengths_differ() {
        assert!(verify_mac(b"12345678", b"12345678"));
        assert!(!verify_mac(b"12345678", b"12345679"));
        assert!(!verify_mac(b"12345678", b"1234567"));
        assert!(!verify_mac(b"12345678", b""));
    }
}
