//! What both sides of a handshake keep in step: the hash of all that was said and the key of all that was agreed
//! (chapter 01.5).

use zeroize::Zeroizing;

use super::transport::nonce;
use super::{NoiseError, Part};
use crate::crypto::{AesGcm, PrivateKey, PublicKey, hkdf_sha256, sha256};
use crate::wire::frame::PROLOGUE;

/// The handshakes WhatsApp speaks. The name goes into the hash, so two sides that differ here never agree on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Xx,
    Ik,
    XxFallback,
}

impl Pattern {
    /// The hash to begin with: the name, zero-padded if it fits, hashed if not.
    fn initial_hash(self) -> [u8; 32] {
        match self {
            Self::Xx => *b"Noise_XX_25519_AESGCM_SHA256\0\0\0\0",
            Self::Ik => *b"Noise_IK_25519_AESGCM_SHA256\0\0\0\0",
            Self::XxFallback => sha256(&[b"Noise_XXfallback_25519_AESGCM_SHA256"]),
        }
    }
}

/// Noise's symmetric state, without a step of the specification: nothing is mixed in for the payload that message 1
/// of XX does not have. That is left to the callers, who simply do not do it.
pub(super) struct Symmetric {
    hash: [u8; 32],
    chaining_key: Zeroizing<[u8; 32]>,
    key: Zeroizing<[u8; 32]>,
    counter: u32,
}

impl Symmetric {
    pub(super) fn new(pattern: Pattern) -> Self {
        let hash = pattern.initial_hash();
        let mut state = Self {
            hash,
            chaining_key: Zeroizing::new(hash),
            // Never used: every pattern agrees on a secret before it encrypts.
            key: Zeroizing::new(hash),
            counter: 0,
        };
        state.mix_hash(&PROLOGUE);
        state
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = sha256(&[&self.hash, data]);
    }

    /// Mixes in what the owners of these two keys share.
    pub(super) fn mix_key(
        &mut self,
        ours: &PrivateKey,
        theirs: &PublicKey,
    ) -> Result<(), NoiseError> {
        let secret = ours.agree(theirs).map_err(|_| NoiseError::LowOrder)?;
        (self.chaining_key, self.key) = self.derive(secret.as_bytes());
        self.counter = 0;
        Ok(())
    }

    /// Encrypts with all that was agreed, bound to all that was said; the ciphertext is now said, too.
    pub(super) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(plaintext.len() + 16);
        sealed.extend_from_slice(plaintext);
        let nonce = self.next_nonce();
        AesGcm::new(&self.key).seal(&nonce, &self.hash, &mut sealed);
        self.mix_hash(&sealed);
        sealed
    }

    /// The inverse of [`seal`](Self::seal).
    pub(super) fn open(&mut self, part: Part, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut plaintext = sealed.to_vec();
        let nonce = self.next_nonce();
        AesGcm::new(&self.key)
            .open_in_place(&nonce, &self.hash, &mut plaintext)
            .map_err(|_| NoiseError::Sealed(part))?;
        self.mix_hash(sealed);
        Ok(plaintext)
    }

    /// (initiator's key, responder's key) for the transport.
    pub(super) fn split(self) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        self.derive(&[])
    }

    /// A key is never used more than twice before the next secret is mixed in, so the counter cannot end.
    fn next_nonce(&mut self) -> [u8; 12] {
        let nonce = nonce(self.counter);
        self.counter += 1;
        nonce
    }

    fn derive(&self, secret: &[u8]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        let out = hkdf_sha256::<64>(&*self.chaining_key, secret, &[]);
        let (mut first, mut second) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        first.copy_from_slice(&out[..32]);
        second.copy_from_slice(&out[32..]);
        (first, second)
    }
}

impl std::fmt::Debug for Symmetric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Symmetric(..)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::crypto::KeyPair;
    use crate::crypto::testing::{bytes, hex, key_pair};

    fn pair(byte: u8) -> KeyPair {
        KeyPair::from_private(PrivateKey::from_bytes([byte; 32]))
    }

    /// Chapter 01.6.1 with its intermediate values, as the service lives it.
    #[test]
    fn xx_of_chapter_01() {
        let (ce, cs, se, ss) = (pair(0x11), pair(0x22), pair(0x33), pair(0x44));
        let mut state = Symmetric::new(Pattern::Xx);
        assert_eq!(
            state.hash.as_slice(),
            hex("ffff0c9267310966f1311170c04b38c79504285bf5edf763e5c946492a50a755")
        );
        state.mix_hash(ce.public.as_bytes());
        assert_eq!(
            state.hash.as_slice(),
            hex("6c9ea30317f933b43ebefedd04d07fa1428b9530c67179ef1189ce3a91089bae")
        );
        state.mix_hash(se.public.as_bytes());
        state.mix_key(&se.private, &ce.public).unwrap();
        assert_eq!(
            state.chaining_key.as_slice(),
            hex("75255525cb2271af63579e9ad8df40b244dd97349e0d87536a7ac429e72987a3")
        );
        assert_eq!(
            state.seal(ss.public.as_bytes()),
            hex(
                "76c390387466635d58f0323bdcbe69099601a1a274074852c87a5a56adbc2200326ad89abf7d0428235760e33dfb7358"
            )
        );
        state.mix_key(&ss.private, &ce.public).unwrap();
        assert_eq!(
            state.chaining_key.as_slice(),
            hex("30c5726908e5ce436d8ddaf962bc0a9bd2d9b16bc930f6e15299064db43c82c9")
        );
        assert_eq!(
            state.seal(b"CERT-CHAIN-PLACEHOLDER"),
            hex("61b8c7d4810b8233dcc691c05d04ec15a4f1e06dada99c0e8dfdd6a01f972f4e113b5d08c73c")
        );
        let sealed_static = hex(
            "b9cb19690dfcfb9a42e033388870388167c822982ffe1d4ef4c15a4d3e5d9d411f9a1465f94f08c3f3527c3cb7c7bbdf",
        );
        assert_eq!(
            state.open(Part::ClientStatic, &sealed_static).unwrap(),
            cs.public.as_bytes()
        );
        state.mix_key(&se.private, &cs.public).unwrap();
        let sealed_payload = hex(
            "03284c53a17ebe9ee1d2c48ef054c4e21b0ced8a87538766ec658929094680b9aa16102b92b527376770",
        );
        assert_eq!(
            state.open(Part::ClientPayload, &sealed_payload).unwrap(),
            b"CLIENT-PAYLOAD-PLACEHOLDER"
        );
        assert_eq!(
            state.hash.as_slice(),
            hex("b3cba9c66510a0f4a3522b41c3d4d9ee79f7d604fcabb6cef5202785f8fa762b")
        );
        let (client, server) = state.split();
        assert_eq!(
            client.as_slice(),
            hex("eb2fe0bed643c43335b1354ec654dc80e37916a5b95f315e54435ddd476ef060")
        );
        assert_eq!(
            server.as_slice(),
            hex("f6363bb26e6e9cb20ac77b14b6ec4ee9c92f3f1d9d1397468bb4ea23bed9d1d8")
        );
    }

    /// The recorded handshake of `noise-xx.json`: hash and chaining key after every step, as the device lives it.
    #[test]
    fn recorded_trace() {
        let vector: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/noise-xx.json")).unwrap();
        let key = |name: &str| key_pair(&vector[name]);
        let (ce, cs, se) = (
            key("client_ephemeral"),
            key("client_static"),
            key("server_ephemeral"),
        );
        let mut trace = vector["trace"].as_array().unwrap().iter();
        let mut check = |state: &Symmetric| {
            let step = trace.next().unwrap();
            assert_eq!(
                state.hash.as_slice(),
                bytes(&step["h"]),
                "{}",
                step["after"]
            );
            if let Some(chaining_key) = step.get("ck") {
                assert_eq!(
                    state.chaining_key.as_slice(),
                    bytes(chaining_key),
                    "{}",
                    step["after"]
                );
            }
        };

        let mut state = Symmetric::new(Pattern::Xx);
        check(&state);
        state.mix_hash(ce.public.as_bytes());
        check(&state);
        state.mix_hash(se.public.as_bytes());
        state.mix_key(&ce.private, &se.public).unwrap();
        check(&state);
        let hello = &vector["server_hello"];
        let ss = state
            .open(Part::ServerStatic, &bytes(&hello["static_ciphertext"]))
            .unwrap();
        state
            .mix_key(&ce.private, &PublicKey::from_slice(&ss).unwrap())
            .unwrap();
        check(&state);
        let chain = state
            .open(Part::CertificateChain, &bytes(&hello["payload_ciphertext"]))
            .unwrap();
        assert_eq!(chain, bytes(&vector["server_payload_plaintext"]));
        check(&state);
        let finish = &vector["client_finish"];
        assert_eq!(
            state.seal(cs.public.as_bytes()),
            bytes(&finish["static_ciphertext"])
        );
        state.mix_key(&cs.private, &se.public).unwrap();
        check(&state);
        let payload = state.seal(&bytes(&vector["client_payload_plaintext"]));
        assert_eq!(payload, bytes(&finish["payload_ciphertext"]));
        check(&state);
        let (client, server) = state.split();
        assert_eq!(
            client.as_slice(),
            bytes(&vector["split"]["client_to_server_key"])
        );
        assert_eq!(
            server.as_slice(),
            bytes(&vector["split"]["server_to_client_key"])
        );
        assert!(trace.next().is_none());
    }

    #[test]
    fn low_order_points_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            let mut state = Symmetric::new(Pattern::Xx);
            assert_eq!(
                state.mix_key(&pair(9).private, &PublicKey::from_bytes(point)),
                Err(NoiseError::LowOrder)
            );
        }
    }
}
