//! AES-256 in the two modes of the protocol: CBC for messages, app state and media; GCM for the Noise transport and
//! companion payloads.

#[cfg(feature = "stand-in-crypto")]
use super::stand_in;
use aes::Aes256;
use aes::cipher::{Array, BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit, Tag};

const BLOCK: usize = 16;
const TAG: usize = 16;

/// The ciphertext is not what this key and this context made: cut, changed, or of another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not decrypt")]
pub struct CipherError;

/// AES-256-CBC with PKCS#7 padding.
pub fn aes_cbc_encrypt(key: &[u8; 32], iv: &[u8; 16], plaintext: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(cbc_ciphertext_len(plaintext.len()));
    aes_cbc_encrypt_into(key, iv, plaintext, &mut out);
    out
}

/// As [`aes_cbc_encrypt`], appending to `out`, for a ciphertext in the middle of a message.
pub fn aes_cbc_encrypt_into(key: &[u8; 32], iv: &[u8; 16], plaintext: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(plaintext);
    // PKCS#7: 1 to 16 bytes, each saying how many.
    let padding = BLOCK - plaintext.len() % BLOCK;
    out.resize(out.len() + padding, padding as u8);
    #[cfg(feature = "stand-in-crypto")]
    if stand_in::active() {
        return stand_in::Cbc::new(key, iv).encrypt(&mut out[start..]);
    }
    let (blocks, _) = Array::slice_as_chunks_mut(&mut out[start..]);
    cbc::Encryptor::<Aes256>::new(key.into(), iv.into()).encrypt_blocks(blocks);
}

/// Bytes of the CBC ciphertext of so many bytes of plaintext.
pub const fn cbc_ciphertext_len(plaintext: usize) -> usize {
    (plaintext / BLOCK + 1) * BLOCK
}

/// The inverse of [`aes_cbc_encrypt`]. CBC authenticates nothing: check the MAC or signature over the ciphertext
/// first, or the error tells an attacker about the plaintext.
pub fn aes_cbc_decrypt(
    key: &[u8; 32],
    iv: &[u8; 16],
    ciphertext: &[u8],
) -> Result<Vec<u8>, CipherError> {
    if !ciphertext.len().is_multiple_of(BLOCK) {
        return Err(CipherError);
    }
    let mut out = ciphertext.to_vec();
    CbcStream::new(key, iv).decrypt(&mut out);
    // The empty ciphertext has no last byte: not even padding.
    let padding = padding(&out).ok_or(CipherError)?;
    out.truncate(out.len() - padding);
    Ok(out)
}

/// CBC decryption of what comes in pieces. The padding at the end is the caller's to take off.
#[cfg_attr(
    feature = "stand-in-crypto",
    expect(
        clippy::large_enum_variant,
        reason = "the real one is the rule, and needs no allocation"
    )
)]
pub(crate) enum CbcStream {
    Real(cbc::Decryptor<Aes256>),
    #[cfg(feature = "stand-in-crypto")]
    StandIn(stand_in::Cbc),
}

impl CbcStream {
    pub(crate) fn new(key: &[u8; 32], iv: &[u8; 16]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self::StandIn(stand_in::Cbc::new(key, iv));
        }
        Self::Real(cbc::Decryptor::new(key.into(), iv.into()))
    }

    /// Decrypts whole blocks in place; an incomplete last one is left as it is.
    pub(crate) fn decrypt(&mut self, blocks: &mut [u8]) {
        match self {
            Self::Real(cipher) => {
                let (blocks, _) = Array::slice_as_chunks_mut(blocks);
                cipher.decrypt_blocks(blocks);
            }
            #[cfg(feature = "stand-in-crypto")]
            Self::StandIn(cipher) => cipher.decrypt(blocks),
        }
    }
}

/// How many bytes of PKCS#7 padding a last block carries. `None` if it is no such block.
pub(crate) fn padding(last: &[u8]) -> Option<usize> {
    let padding = usize::from(*last.last()?);
    let start = last.len().checked_sub(padding)?;
    let whole = last
        .iter()
        .skip(start)
        .all(|&byte| usize::from(byte) == padding);
    ((1..=BLOCK).contains(&padding) && whole).then_some(padding)
}

/// AES-256-GCM with a kept key schedule; nonces of 12 bytes, tags of 16 at the end.
///
/// A nonce must never be used twice with one key: a repetition gives away the authentication key.
pub struct AesGcm(Gcm);

#[cfg_attr(
    feature = "stand-in-crypto",
    expect(
        clippy::large_enum_variant,
        reason = "the real one is the rule, and needs no allocation"
    )
)]
enum Gcm {
    Real(Aes256Gcm),
    #[cfg(feature = "stand-in-crypto")]
    StandIn([u8; 32]),
}

impl AesGcm {
    /// Expands the key.
    pub fn new(key: &[u8; 32]) -> Self {
        #[cfg(feature = "stand-in-crypto")]
        if stand_in::active() {
            return Self(Gcm::StandIn(*key));
        }
        Self(Gcm::Real(Aes256Gcm::new(key.into())))
    }

    /// Encrypts all of `buf` in place and appends the tag.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], buf: &mut Vec<u8>) {
        self.seal_from(0, nonce, aad, buf);
    }

    /// Encrypts `buf[offset..]` in place and appends the tag, for a ciphertext behind a header.
    ///
    /// # Panics
    ///
    /// If `offset` is beyond the end of `buf`, or the plaintext longer than GCM's 64 GiB.
    #[expect(
        clippy::expect_used,
        reason = "our own plaintext, of a size that our own limits bound"
    )]
    pub fn seal_from(&self, offset: usize, nonce: &[u8; 12], aad: &[u8], buf: &mut Vec<u8>) {
        let plaintext = &mut buf[offset..];
        match &self.0 {
            Gcm::Real(cipher) => {
                let tag = cipher.encrypt_inout_detached(nonce.into(), aad, plaintext.into());
                buf.extend_from_slice(&tag.expect("a plaintext shorter than 64 GiB"));
            }
            #[cfg(feature = "stand-in-crypto")]
            Gcm::StandIn(key) => {
                stand_in::stream(key, nonce, plaintext);
                let tag = stand_in::tag(key, nonce, aad, plaintext);
                buf.extend_from_slice(&tag);
            }
        }
    }

    /// Checks the tag at the end of `buf`, removes it and decrypts the rest in place. On error the content of `buf`
    /// is unspecified (but never plaintext).
    pub fn open_in_place(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        buf: &mut Vec<u8>,
    ) -> Result<(), CipherError> {
        let end = buf.len().checked_sub(TAG).ok_or(CipherError)?;
        let (ciphertext, tag) = buf.split_at_mut_checked(end).ok_or(CipherError)?;
        match &self.0 {
            Gcm::Real(cipher) => {
                let tag = Tag::try_from(&*tag).map_err(|_| CipherError)?;
                cipher
                    .decrypt_inout_detached(nonce.into(), aad, ciphertext.into(), &tag)
                    .map_err(|_| CipherError)?;
            }
            #[cfg(feature = "stand-in-crypto")]
            Gcm::StandIn(key) => {
                if stand_in::tag(key, nonce, aad, ciphertext) != *tag {
                    return Err(CipherError);
                }
                stand_in::stream(key, nonce, ciphertext);
            }
        }
        buf.truncate(end);
        Ok(())
    }
}

impl std::fmt::Debug for AesGcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AesGcm(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use proptest::prelude::*;

    /// NIST SP 800-38A, F.2.5 (its last block is our padding).
    #[test]
    fn cbc_known_answer() {
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
            .try_into()
            .unwrap();
        let iv = hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap();
        let plaintext = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        let ciphertext = aes_cbc_encrypt(&key, &iv, &plaintext);
        assert_eq!(ciphertext.len(), 48);
        assert_eq!(
            ciphertext[..32],
            hex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d")
        );
        assert_eq!(aes_cbc_decrypt(&key, &iv, &ciphertext), Ok(plaintext));
    }

    #[test]
    fn cbc_refuses_what_it_never_makes() {
        let (key, iv) = ([1; 32], [2; 16]);
        assert_eq!(aes_cbc_decrypt(&key, &iv, &[]), Err(CipherError));
        assert_eq!(aes_cbc_decrypt(&key, &iv, &[0; 15]), Err(CipherError));
        // Padding that lies: the last byte says 2, the one before is no 2.
        let mut block = Array::from([7; 16]);
        block[15] = 2;
        cbc::Encryptor::<Aes256>::new(&key.into(), &iv.into()).encrypt_block(&mut block);
        assert_eq!(aes_cbc_decrypt(&key, &iv, &block), Err(CipherError));
    }

    /// Test case 14 of the GCM specification, and one with associated data made by hand.
    #[test]
    fn gcm_known_answer() {
        let mut buf = vec![0; 16];
        AesGcm::new(&[0; 32]).seal(&[0; 12], &[], &mut buf);
        assert_eq!(
            buf,
            hex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
        );
    }

    #[test]
    fn gcm_in_place_behind_a_header() {
        let cipher = AesGcm::new(&[9; 32]);
        let mut buf = b"headerbody".to_vec();
        cipher.seal_from(6, &[1; 12], b"context", &mut buf);
        assert_eq!((&buf[..6], buf.len()), (b"header".as_slice(), 10 + TAG));
        let mut body = buf.split_off(6);
        assert_eq!(
            cipher.open_in_place(&[1; 12], b"other context", &mut body.clone()),
            Err(CipherError)
        );
        assert_eq!(
            cipher.open_in_place(&[2; 12], b"context", &mut body.clone()),
            Err(CipherError)
        );
        assert_eq!(
            cipher.open_in_place(&[1; 12], b"context", &mut body[..TAG - 1].to_vec()),
            Err(CipherError)
        );
        cipher
            .open_in_place(&[1; 12], b"context", &mut body)
            .unwrap();
        assert_eq!(body, b"body");
    }

    proptest! {
        #[test]
        fn cbc_round_trip(key: [u8; 32], iv: [u8; 16], plaintext: Vec<u8>) {
            let ciphertext = aes_cbc_encrypt(&key, &iv, &plaintext);
            prop_assert_eq!(ciphertext.len(), cbc_ciphertext_len(plaintext.len()));
            prop_assert_eq!(aes_cbc_decrypt(&key, &iv, &ciphertext), Ok(plaintext));
        }

        #[test]
        fn cbc_survives_anything(key: [u8; 32], iv: [u8; 16], ciphertext: Vec<u8>) {
            let _ = aes_cbc_decrypt(&key, &iv, &ciphertext);
        }
    }
}
