//! XChaCha20-Poly1305, for what Baton keeps and nobody else reads: rows at rest and export files.
//!
//! Its nonces of 24 bytes can be drawn at random for every row of every process without a counter that all of them
//! would have to share: after 2^80 of them a repetition is still unlikely.

use super::CipherError;
use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305};
use std::fmt;

/// A key of XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): nonces of 24 bytes, tags of 16 at the end. Wiped on drop.
pub struct XChaCha(XChaCha20Poly1305);

impl XChaCha {
    /// Bytes that sealing adds.
    pub const TAG: usize = 16;
    /// Bytes of a nonce.
    pub const NONCE: usize = 24;

    /// A cipher of this key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(key.into()))
    }

    /// Encrypts `buf[offset..]` in place and appends the tag, for a ciphertext behind a header.
    ///
    /// # Panics
    ///
    /// If `offset` is beyond the end of `buf`, or the plaintext longer than ChaCha20's 256 GiB.
    #[expect(
        clippy::expect_used,
        reason = "our own plaintext, of a size that our own limits bound"
    )]
    pub fn seal_from(
        &self,
        offset: usize,
        nonce: &[u8; Self::NONCE],
        aad: &[u8],
        buf: &mut Vec<u8>,
    ) {
        let plaintext = (&mut buf[offset..]).into();
        let tag = self.0.encrypt_inout_detached(nonce.into(), aad, plaintext);
        buf.extend_from_slice(&tag.expect("a plaintext shorter than 256 GiB"));
    }

    /// The plaintext of `sealed`, which ends in the tag.
    pub fn open(
        &self,
        nonce: &[u8; Self::NONCE],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, CipherError> {
        let end = sealed.len().checked_sub(Self::TAG).ok_or(CipherError)?;
        let (ciphertext, tag) = sealed.split_at_checked(end).ok_or(CipherError)?;
        let tag = Tag::try_from(tag).map_err(|_| CipherError)?;
        let mut plaintext = ciphertext.to_vec();
        self.0
            .decrypt_inout_detached(nonce.into(), aad, plaintext.as_mut_slice().into(), &tag)
            .map_err(|_| CipherError)?;
        Ok(plaintext)
    }
}

impl fmt::Debug for XChaCha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XChaCha(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;
    use proptest::prelude::*;

    /// draft-irtf-cfrg-xchacha-03, A.3.1.
    #[test]
    fn known_answer() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let aad = hex("50515253c0c1c2c3c4c5c6c7");
        let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let sealed = hex(concat!(
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb",
            "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452",
            "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9",
            "21f9664c97637da9768812f615c68b13b52e",
            "c0875924c1c7987947deafd8780acf49",
        ));
        let cipher = XChaCha::new(&key);
        let mut buf = text.to_vec();
        cipher.seal_from(0, &nonce, &aad, &mut buf);
        assert_eq!(buf, sealed);
        assert_eq!(cipher.open(&nonce, &aad, &sealed).as_deref(), Ok(&text[..]));
    }

    proptest! {
        #[test]
        fn opens_what_it_sealed_and_nothing_else(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            header in 0..20usize,
            nonce: [u8; 24],
            bit: prop::sample::Index,
        ) {
            let cipher = XChaCha::new(&[7; 32]);
            let mut buf = vec![9; header];
            buf.extend_from_slice(&text);
            cipher.seal_from(header, &nonce, b"context", &mut buf);
            prop_assert_eq!(&buf[..header], &vec![9; header]);
            let mut sealed = buf.split_off(header);
            prop_assert_eq!(sealed.len(), text.len() + XChaCha::TAG);
            let opened = cipher.open(&nonce, b"context", &sealed);
            prop_assert_eq!(opened.as_deref(), Ok(&text[..]));
            prop_assert!(cipher.open(&nonce, b"another", &sealed).is_err());
            prop_assert!(XChaCha::new(&[8; 32]).open(&nonce, b"context", &sealed).is_err());
            for cut in 0..sealed.len() {
                prop_assert!(cipher.open(&nonce, b"context", &sealed[..cut]).is_err());
            }
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(cipher.open(&nonce, b"context", &sealed).is_err());
        }
    }
}
