//! The service's own cryptography for files and settings: written by another hand than the engine's, so that a mistake
//! in one of them shows.
//!
//! In worlds with stand-ins there is nothing to have an opinion about, and both use the engine's stand-ins; one seed in
//! ten has the real thing on both sides.

use aes::Aes256;
#[cfg(feature = "stand-in-crypto")]
use baton_core::crypto::stand_in::{self, Hash, Purpose};
use cbc::cipher::{
    BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _, block_padding::Pkcs7,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256, Sha512};

/// AES-256-CBC of what comes in whole blocks.
#[cfg_attr(
    feature = "stand-in-crypto",
    expect(
        clippy::large_enum_variant,
        reason = "the real one is the rule in what embeds the service"
    )
)]
pub(super) enum Cbc {
    Real(cbc::Encryptor<Aes256>),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(stand_in::Cbc),
}

impl Cbc {
    pub(super) fn new(key: &[u8; 32], iv: &[u8; 16]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(stand_in::Cbc::new(key, iv));
        }
        Self::Real(cbc::Encryptor::new(key.into(), iv.into()))
    }

    /// Encrypts whole blocks in place.
    pub(super) fn encrypt(&mut self, blocks: &mut [u8]) {
        match self {
            Self::Real(cipher) => {
                for block in blocks.as_chunks_mut::<16>().0 {
                    cipher.encrypt_block(block.into());
                }
            }
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(cipher) => cipher.encrypt(blocks),
        }
    }
}

/// Whole texts, with padding.
pub(super) fn cbc_seal(key: &[u8; 32], iv: &[u8; 16], plain: &[u8]) -> Vec<u8> {
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return baton_core::crypto::aes_cbc_encrypt(key, iv, plain);
    }
    cbc::Encryptor::<Aes256>::new(key.into(), iv.into()).encrypt_padded_vec::<Pkcs7>(plain)
}

/// The inverse of [`cbc_seal`]; none if the padding is wrong.
pub(super) fn cbc_open(key: &[u8; 32], iv: &[u8; 16], sealed: &[u8]) -> Option<Vec<u8>> {
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return baton_core::crypto::aes_cbc_decrypt(key, iv, sealed).ok();
    }
    cbc::Decryptor::<Aes256>::new(key.into(), iv.into())
        .decrypt_padded_vec::<Pkcs7>(sealed)
        .ok()
}

/// SHA-256 of what comes in pieces.
pub(super) enum Sum {
    Real(Sha256),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(Hash),
}

impl Sum {
    pub(super) fn new() -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(Hash::new(Purpose::Sha256));
        }
        Self::Real(Sha256::new())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Real(sum) => sum.update(bytes),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(sum) => sum.update(bytes),
        }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        match self {
            Self::Real(sum) => sum.finalize().into(),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(sum) => sum.finish(),
        }
    }
}

/// SHA-256.
pub(super) fn sum(bytes: &[u8]) -> [u8; 32] {
    let mut sum = Sum::new();
    sum.update(bytes);
    sum.finish()
}

/// HMAC-SHA256 of what comes in pieces.
#[derive(Clone)]
pub(super) enum Mac {
    Real(Hmac<Sha256>),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(Hash),
}

impl Mac {
    pub(super) fn new(key: &[u8]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(Hash::keyed(Purpose::Hmac256, key));
        }
        Self::Real(Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("any length will do")))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Real(mac) => mac.update(bytes),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(mac) => mac.update(bytes),
        }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        match self {
            Self::Real(mac) => mac.finalize().into_bytes().into(),
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(mac) => mac.finish(),
        }
    }
}

/// HMAC-SHA256.
pub(super) fn hmac256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Mac::new(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.finish()
}

/// HMAC-SHA512, the first half of it.
pub(super) fn hmac512(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        let mut mac = Hash::keyed(Purpose::Hmac512, key);
        parts.iter().for_each(|part| mac.update(part));
        return mac.finish();
    }
    let mut mac =
        Hmac::<Sha512>::new_from_slice(key).unwrap_or_else(|_| unreachable!("any length will do"));
    parts.iter().for_each(|part| mac.update(part));
    let whole = mac.finalize().into_bytes();
    std::array::from_fn(|n| whole[n])
}

/// HKDF-SHA256 without salt: extract, then as many blocks as are needed.
pub(super) fn hkdf<const N: usize>(secret: &[u8], info: &[u8]) -> [u8; N] {
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return *baton_core::crypto::hkdf_sha256(&[], secret, info);
    }
    let pseudo_random = hmac256(&[0; 32], &[secret]);
    let (mut out, mut block) = ([0; N], Vec::new());
    for (counter, chunk) in (1u8..).zip(out.chunks_mut(32)) {
        block = hmac256(&pseudo_random, &[&block, info, &[counter]]).to_vec();
        chunk.copy_from_slice(&block[..chunk.len()]);
    }
    out
}
