//! Whose key is it? The chain from WhatsApp's root to the service's static key (chapter 01.7).
//!
//! Two certificates: the root signs the intermediate, the intermediate signs the leaf, and the leaf names the key that
//! the service has just used. The root itself is not a certificate but a key known beforehand, so a simulated service
//! brings a root of its own.

use prost::Message as _;

use crate::crypto::{KeyPair, PublicKey, Rng, Signature};
use crate::proto::handshake::{CertChain, NoiseCertificate, NoiseCertificateDetails};

/// The key behind every certificate of the real service.
pub const WHATSAPP_ROOT: PublicKey = PublicKey::from_bytes([
    0x14, 0x23, 0x75, 0x57, 0x4d, 0x0a, 0x58, 0x71, 0x66, 0xaa, 0xe7, 0x1e, 0xbe, 0x51, 0x64, 0x37,
    0xc4, 0xa2, 0x8b, 0x73, 0xe3, 0x69, 0x5c, 0x6c, 0xe1, 0xf7, 0xf9, 0x54, 0x5d, 0xa8, 0xee, 0x6b,
]);

/// The root's serial number, which an intermediate names as its issuer.
const ROOT_SERIAL: u32 = 0;
/// What [`certificate_chain`] numbers its certificates with.
const INTERMEDIATE_SERIAL: u32 = 1;
const LEAF_SERIAL: u32 = 2;

/// Whom to believe, and when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The key that must have signed the intermediate; usually [`WHATSAPP_ROOT`].
    pub root: PublicKey,
    /// Unix seconds.
    pub now_unix_secs: i64,
}

/// What a verified chain proved. Kept, it lets the next connection resume by IK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The service's static key.
    pub static_key: PublicKey,
    /// When the leaf certificate holds.
    pub leaf: Validity,
    /// When the intermediate certificate holds.
    pub intermediate: Validity,
}

/// A span of Unix seconds; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    fn check(self, now: i64, certificate: Certificate) -> Result<(), CertificateError> {
        if now < self.not_before {
            Err(CertificateError::NotYetValid(certificate))
        } else if now > self.not_after {
            Err(CertificateError::Expired(certificate))
        } else {
            Ok(())
        }
    }
}

impl ServerIdentity {
    /// Whether one may resume with it at this time (Unix seconds): while both certificates are valid.
    pub fn is_valid_at(&self, now_unix_secs: i64) -> bool {
        self.check(now_unix_secs).is_ok()
    }

    pub(super) fn check(&self, now: i64) -> Result<(), CertificateError> {
        self.intermediate.check(now, Certificate::Intermediate)?;
        self.leaf.check(now, Certificate::Leaf)
    }

    /// For storage: a version byte, the key, then leaf and intermediate as four big-endian i64.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENCODED);
        out.push(ENCODING);
        out.extend_from_slice(self.static_key.as_bytes());
        for validity in [self.leaf, self.intermediate] {
            out.extend_from_slice(&validity.not_before.to_be_bytes());
            out.extend_from_slice(&validity.not_after.to_be_bytes());
        }
        out
    }

    /// What [`encode`](Self::encode) made; `None` for anything else, another version included. Nothing is lost then
    /// but half a round trip: the next connection runs XX.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[ENCODING], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let (&static_key, mut rest) = rest.split_first_chunk()?;
        let mut seconds = || {
            let (head, tail) = rest.split_first_chunk()?;
            rest = tail;
            Some(i64::from_be_bytes(*head))
        };
        let leaf = Validity {
            not_before: seconds()?,
            not_after: seconds()?,
        };
        let intermediate = Validity {
            not_before: seconds()?,
            not_after: seconds()?,
        };
        rest.is_empty().then_some(Self {
            static_key: PublicKey::from_bytes(static_key),
            leaf,
            intermediate,
        })
    }
}

const ENCODING: u8 = 1;
const ENCODED: usize = 1 + 32 + 4 * 8;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Names the service's key.
    Leaf,
    /// Signed the leaf.
    Intermediate,
}

impl std::fmt::Display for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Leaf => "leaf certificate",
            Self::Intermediate => "intermediate certificate",
        })
    }
}

/// Why the service was not believed. With [`NotYetValid`](Self::NotYetValid) and [`Expired`](Self::Expired) it may be
/// our clock that is wrong; the others have no honest explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The chain is no protobuf of two certificates.
    #[error("not a certificate chain")]
    Undecodable,
    /// Details or signature are absent, of a wrong length, or the details are no protobuf.
    #[error("the {0} is not well-formed")]
    Malformed(Certificate),
    /// The issuer did not sign these details.
    #[error("the {0} is not signed by its issuer")]
    BadSignature(Certificate),
    /// It names another issuer than the one that should have signed it.
    #[error("the {0} names another issuer")]
    WrongIssuer(Certificate),
    /// The leaf is about another key than the service used; or the intermediate's key is no key.
    #[error("the {0} is not for this key")]
    WrongKey(Certificate),
    /// `now` is before its first second.
    #[error("the {0} is not valid yet")]
    NotYetValid(Certificate),
    /// `now` is after its last second.
    #[error("the {0} has expired")]
    Expired(Certificate),
}

/// Checks that `trust.root` stands behind `server_static`, here and now. `chain` is a `CertChain` protobuf.
pub fn verify_chain(
    chain: &[u8],
    server_static: &PublicKey,
    trust: &Trust,
) -> Result<ServerIdentity, CertificateError> {
    let chain = CertChain::decode(chain).map_err(|_| CertificateError::Undecodable)?;
    let intermediate = Signed::read(chain.intermediate, Certificate::Intermediate)?;
    let leaf = Signed::read(chain.leaf, Certificate::Leaf)?;

    let details = intermediate.verify(&trust.root)?;
    if details.issuer_serial() != ROOT_SERIAL {
        return Err(CertificateError::WrongIssuer(Certificate::Intermediate));
    }
    let issuer = PublicKey::from_slice(details.key())
        .map_err(|_| CertificateError::WrongKey(Certificate::Intermediate))?;
    let (serial, intermediate) = (details.serial(), validity(&details));

    let details = leaf.verify(&issuer)?;
    intermediate.check(trust.now_unix_secs, Certificate::Intermediate)?;
    if details.issuer_serial() != serial {
        return Err(CertificateError::WrongIssuer(Certificate::Leaf));
    }
    if details.key() != server_static.as_bytes() {
        return Err(CertificateError::WrongKey(Certificate::Leaf));
    }
    let leaf = validity(&details);
    leaf.check(trust.now_unix_secs, Certificate::Leaf)?;
    Ok(ServerIdentity {
        static_key: *server_static,
        leaf,
        intermediate,
    })
}

/// A `CertChain` protobuf as the service would send it, for services of our own: `root` signs `intermediate`, and
/// `intermediate` signs `leaf`. Both certificates hold from `not_before` to `not_after` (Unix seconds, inclusive).
pub fn certificate_chain(
    root: &KeyPair,
    intermediate: &KeyPair,
    leaf: &PublicKey,
    not_before: i64,
    not_after: i64,
    rng: &mut Rng,
) -> Vec<u8> {
    let mut sign = |serial, issuer: &KeyPair, issuer_serial, key: &PublicKey| {
        let details = NoiseCertificateDetails {
            serial: Some(serial),
            issuer_serial: Some(issuer_serial),
            key: Some(key.as_bytes().to_vec()),
            not_before: Some(not_before.try_into().unwrap_or(0)),
            not_after: Some(not_after.try_into().unwrap_or(0)),
        }
        .encode_to_vec();
        let signature = issuer.private.sign(&[&details], rng).as_bytes().to_vec();
        Some(NoiseCertificate {
            details: Some(details),
            signature: Some(signature),
        })
    };
    CertChain {
        intermediate: sign(INTERMEDIATE_SERIAL, root, ROOT_SERIAL, &intermediate.public),
        leaf: sign(LEAF_SERIAL, intermediate, INTERMEDIATE_SERIAL, leaf),
    }
    .encode_to_vec()
}

/// A certificate whose signature is still to be checked, over the bytes that came.
struct Signed {
    certificate: Certificate,
    details: Vec<u8>,
    signature: Signature,
}

impl Signed {
    fn read(
        message: Option<NoiseCertificate>,
        certificate: Certificate,
    ) -> Result<Self, CertificateError> {
        let message = message.ok_or(CertificateError::Undecodable)?;
        let malformed = CertificateError::Malformed(certificate);
        let signature = Signature::from_slice(message.signature()).map_err(|_| malformed)?;
        let details = message
            .details
            .filter(|details| !details.is_empty())
            .ok_or(malformed)?;
        Ok(Self {
            certificate,
            details,
            signature,
        })
    }

    fn verify(&self, issuer: &PublicKey) -> Result<NoiseCertificateDetails, CertificateError> {
        issuer
            .verify(&[&self.details], &self.signature)
            .map_err(|_| CertificateError::BadSignature(self.certificate))?;
        NoiseCertificateDetails::decode(self.details.as_slice())
            .map_err(|_| CertificateError::Malformed(self.certificate))
    }
}

/// The wire's seconds are unsigned; what exceeds i64 is further away than any clock.
fn validity(details: &NoiseCertificateDetails) -> Validity {
    let seconds = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Validity {
        not_before: seconds(details.not_before()),
        not_after: seconds(details.not_after()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex;
    use crate::crypto::{PrivateKey, Rng};
    use proptest::prelude::*;

    use Certificate::{Intermediate, Leaf};

    fn pair(byte: u8) -> KeyPair {
        KeyPair::from_private(PrivateKey::from_bytes([byte; 32]))
    }

    /// Chapter 01.7.1.
    fn vector() -> (CertChain, PublicKey, Trust) {
        let chain = CertChain {
            intermediate: Some(NoiseCertificate {
                details: Some(hex(concat!(
                    "080110001a20e8980c4ea5ebf8fb6c281098b75cdd32862922a638778251979b6d322ed7e02e",
                    "2080e2cfaa062880e6fe8907"
                ))),
                signature: Some(hex(concat!(
                    "978e0aa4bd5b8943ca835dfeb5638841bd9b9818f5f94cf23fcad230bf9afea8",
                    "25d9c786c7e56997baf663e22598392acc60e93092be5bcfb611934e2ea9c088"
                ))),
            }),
            leaf: Some(NoiseCertificate {
                details: Some(hex(concat!(
                    "080210011a20ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b",
                    "2080e2cfaa062880e6fe8907"
                ))),
                signature: Some(hex(concat!(
                    "0301f47e952499aeb7b1556754ae1696628aaffe3d0008b7e9947f1df1f8b1d6",
                    "3502298ef1b5ce6e542f1c99b22b1a3998653d7f42918bdc6ea18b752427b900"
                ))),
            }),
        };
        let trust = Trust {
            root: pair(0xbb).public,
            now_unix_secs: 1_800_000_000,
        };
        (chain, pair(0x44).public, trust)
    }

    /// A chain signed like the vector's, after `change` had its way with the details.
    fn forged(
        change: impl Fn(&mut NoiseCertificateDetails, &mut NoiseCertificateDetails),
    ) -> Vec<u8> {
        let (mut chain, ..) = vector();
        let mut rng = Rng::from_seed([1; 32]);
        let decode = |certificate: &Option<NoiseCertificate>| {
            NoiseCertificateDetails::decode(certificate.as_ref().unwrap().details()).unwrap()
        };
        let (mut intermediate, mut leaf) = (decode(&chain.intermediate), decode(&chain.leaf));
        change(&mut intermediate, &mut leaf);
        let mut sign = |details: NoiseCertificateDetails, issuer: KeyPair| {
            let details = details.encode_to_vec();
            let signature = issuer
                .private
                .sign(&[&details], &mut rng)
                .as_bytes()
                .to_vec();
            Some(NoiseCertificate {
                details: Some(details),
                signature: Some(signature),
            })
        };
        chain.intermediate = sign(intermediate, pair(0xbb));
        chain.leaf = sign(leaf, pair(0xcc));
        chain.encode_to_vec()
    }

    #[test]
    fn chain_of_chapter_01() {
        let (chain, server, trust) = vector();
        let identity = verify_chain(&chain.encode_to_vec(), &server, &trust).unwrap();
        let validity = Validity {
            not_before: 1_700_000_000,
            not_after: 1_900_000_000,
        };
        assert_eq!(
            identity,
            ServerIdentity {
                static_key: server,
                leaf: validity,
                intermediate: validity
            }
        );
        // Both ends belong to the span.
        for (now, expected) in [
            (
                1_699_999_999,
                Err(CertificateError::NotYetValid(Intermediate)),
            ),
            (1_700_000_000, Ok(identity)),
            (1_900_000_000, Ok(identity)),
            (1_900_000_001, Err(CertificateError::Expired(Intermediate))),
        ] {
            let trust = Trust {
                now_unix_secs: now,
                ..trust
            };
            assert_eq!(
                verify_chain(&chain.encode_to_vec(), &server, &trust),
                expected,
                "{now}"
            );
            assert_eq!(identity.is_valid_at(now), expected.is_ok(), "{now}");
        }
    }

    #[test]
    fn our_chain_is_shaped_like_the_vector() {
        let (vector, server, trust) = vector();
        let mut rng = Rng::from_seed([2; 32]);
        let bytes = certificate_chain(
            &pair(0xbb),
            &pair(0xcc),
            &server,
            1_700_000_000,
            1_900_000_000,
            &mut rng,
        );
        let chain = CertChain::decode(bytes.as_slice()).unwrap();
        assert_eq!(chain.leaf.unwrap().details, vector.leaf.unwrap().details);
        assert_eq!(
            chain.intermediate.unwrap().details,
            vector.intermediate.unwrap().details
        );
        assert!(verify_chain(&bytes, &server, &trust).is_ok());
    }

    #[test]
    fn every_check_has_its_error() {
        let (_, server, trust) = vector();
        let check = |chain: &[u8]| verify_chain(chain, &server, &trust).unwrap_err();
        assert!(verify_chain(&forged(|_, _| ()), &server, &trust).is_ok());

        assert_eq!(
            check(&forged(
                |intermediate, _| intermediate.issuer_serial = Some(7)
            )),
            CertificateError::WrongIssuer(Intermediate)
        );
        assert_eq!(
            check(&forged(
                |intermediate, _| intermediate.key = Some(vec![5; 33])
            )),
            CertificateError::WrongKey(Intermediate)
        );
        assert_eq!(
            check(&forged(
                |intermediate, _| intermediate.key = Some(vec![5; 32])
            )),
            CertificateError::BadSignature(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.issuer_serial = Some(0))),
            CertificateError::WrongIssuer(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.issuer_serial = None)),
            CertificateError::WrongIssuer(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.key = Some(vec![5; 32]))),
            CertificateError::WrongKey(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.key = None)),
            CertificateError::WrongKey(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.not_after = Some(1))),
            CertificateError::Expired(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.not_after = None)),
            CertificateError::Expired(Leaf)
        );
        assert_eq!(
            check(&forged(|_, leaf| leaf.not_before = Some(u64::MAX))),
            CertificateError::NotYetValid(Leaf)
        );
        assert_eq!(
            check(&forged(|intermediate, _| intermediate.not_after = Some(1))),
            CertificateError::Expired(Intermediate)
        );
        // The root's serial is 0, and absent counts as that.
        assert!(
            verify_chain(
                &forged(|intermediate, _| intermediate.issuer_serial = None),
                &server,
                &trust
            )
            .is_ok()
        );

        let (good, ..) = vector();
        let with = |change: fn(&mut CertChain)| {
            let mut chain = good.clone();
            change(&mut chain);
            check(&chain.encode_to_vec())
        };
        assert_eq!(check(&[0xff]), CertificateError::Undecodable);
        assert_eq!(
            with(|chain| chain.leaf = None),
            CertificateError::Undecodable
        );
        assert_eq!(
            with(|chain| chain.intermediate = None),
            CertificateError::Undecodable
        );
        assert_eq!(
            with(|chain| chain.leaf.as_mut().unwrap().details = None),
            CertificateError::Malformed(Leaf)
        );
        assert_eq!(
            with(|chain| chain.intermediate.as_mut().unwrap().signature = None),
            CertificateError::Malformed(Intermediate)
        );
        assert_eq!(
            with(|chain| chain.leaf.as_mut().unwrap().signature = Some(vec![0; 64])),
            CertificateError::BadSignature(Leaf)
        );
        assert_eq!(
            with(|chain| std::mem::swap(&mut chain.leaf, &mut chain.intermediate)),
            CertificateError::BadSignature(Intermediate)
        );
        // A chain of our own root proves nothing to somebody who trusts WhatsApp's.
        let strangers = Trust {
            root: WHATSAPP_ROOT,
            ..trust
        };
        let result = verify_chain(&good.encode_to_vec(), &server, &strangers);
        assert_eq!(result, Err(CertificateError::BadSignature(Intermediate)));
    }

    #[test]
    fn identity_for_storage() {
        let (chain, server, trust) = vector();
        let mut identity = verify_chain(&chain.encode_to_vec(), &server, &trust).unwrap();
        identity.leaf.not_before = -1;
        let bytes = identity.encode();
        assert_eq!(bytes.len(), ENCODED);
        assert_eq!(ServerIdentity::decode(&bytes), Some(identity));
        for length in 0..bytes.len() {
            assert_eq!(ServerIdentity::decode(&bytes[..length]), None);
        }
        assert_eq!(
            ServerIdentity::decode(&[bytes.as_slice(), &[0]].concat()),
            None
        );
        assert_eq!(ServerIdentity::decode(&[&[2], &bytes[1..]].concat()), None);
    }

    proptest! {
        #[test]
        fn arbitrary_chains_never_panic(bytes: Vec<u8>) {
            let (_, server, trust) = vector();
            prop_assert!(verify_chain(&bytes, &server, &trust).is_err());
            let _ = ServerIdentity::decode(&bytes);
        }

        #[test]
        fn a_changed_bit_is_noticed(at: prop::sample::Index, bit in 0u8..8) {
            let (chain, server, trust) = vector();
            let mut bytes = chain.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(verify_chain(&bytes, &server, &trust).is_err());
        }
    }
}
