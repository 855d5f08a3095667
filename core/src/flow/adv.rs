//! Signed device identities: who vouches for a companion device (fact sheet 03.4).
//!
//! The phone signs each companion's identity key with the account key, which is also the phone's own Signal identity;
//! the companion signs back. Prefixes tell the signatures apart: `06 00` account, `06 01` device, `06 02` key index
//! list, `06 05` and `06 06` the hosted forms.

use crate::{
    crypto::{KeyPair, PublicKey, Rng, Signature, hmac_sha256, verify_mac},
    proto::adv::{
        AdvDeviceIdentity, AdvKeyIndexList, AdvSignedDeviceIdentity, AdvSignedDeviceIdentityHmac,
        AdvSignedKeyIndexList,
    },
};
use prost::Message as _;
use std::collections::BTreeSet;

const ACCOUNT: [u8; 2] = [6, 0];
const DEVICE: [u8; 2] = [6, 1];
const HOSTED_ACCOUNT: [u8; 2] = [6, 5];
const HOSTED_DEVICE: [u8; 2] = [6, 6];

/// `AdvEncryptionType::HOSTED`.
const HOSTED: i32 = 1;

/// Why an identity is not accepted, with the code and text that the service is told (fact sheet 03.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdvError {
    #[error("internal-error")]
    Malformed,
    #[error("hmac-mismatch")]
    Hmac,
    #[error("signature-mismatch")]
    Signature,
}

impl AdvError {
    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Malformed => 500,
            Self::Hmac | Self::Signature => 401,
        }
    }
}

/// The identity that pairing gave us.
#[derive(Clone)]
pub(crate) struct Accepted {
    /// With account key and device signature: what messages carry.
    pub(crate) full: Vec<u8>,
    /// Without the account key: the reply to the service.
    pub(crate) reply: Vec<u8>,
    pub(crate) key_index: u32,
    /// The phone's Signal identity.
    pub(crate) account_key: PublicKey,
}

/// Checks the container that the phone made for the key in our QR code, and signs it.
pub(crate) fn accept(
    container: &[u8],
    adv_secret: &[u8; 32],
    identity: &KeyPair,
    rng: &mut Rng,
) -> Result<Accepted, AdvError> {
    let container =
        AdvSignedDeviceIdentityHmac::decode(container).map_err(|_| AdvError::Malformed)?;
    let details = container.details.ok_or(AdvError::Malformed)?;
    let hmac = container.hmac.ok_or(AdvError::Malformed)?;
    let prefix: &[u8] = if container.account_type == Some(HOSTED) {
        &HOSTED_ACCOUNT
    } else {
        &[]
    };
    // Over the bytes as they came: encoding them again could change them.
    if !verify_mac(&hmac_sha256(adv_secret, &[prefix, &details]), &hmac) {
        return Err(AdvError::Hmac);
    }
    let mut signed =
        AdvSignedDeviceIdentity::decode(details.as_slice()).map_err(|_| AdvError::Malformed)?;
    let inner = signed.details.clone().ok_or(AdvError::Malformed)?;
    let device = AdvDeviceIdentity::decode(inner.as_slice()).map_err(|_| AdvError::Malformed)?;
    let account_key = check_account(&signed, &identity.public)?;
    let prefix = if device.device_type == Some(HOSTED) {
        HOSTED_DEVICE
    } else {
        DEVICE
    };
    let message: [&[u8]; 4] = [
        &prefix,
        &inner,
        identity.public.as_bytes(),
        account_key.as_bytes(),
    ];
    signed.device_signature = Some(identity.private.sign(&message, rng).as_bytes().to_vec());
    let full = signed.encode_to_vec();
    signed.account_signature_key = None;
    Ok(Accepted {
        full,
        reply: signed.encode_to_vec(),
        key_index: device.key_index.ok_or(AdvError::Malformed)?,
        account_key,
    })
}

/// The account signature over a device's identity key; returns the account key.
fn check_account(
    signed: &AdvSignedDeviceIdentity,
    identity: &PublicKey,
) -> Result<PublicKey, AdvError> {
    let details = signed.details.as_deref().ok_or(AdvError::Malformed)?;
    let device = AdvDeviceIdentity::decode(details).map_err(|_| AdvError::Malformed)?;
    let key = signed
        .account_signature_key
        .as_deref()
        .ok_or(AdvError::Malformed)?;
    let key = PublicKey::from_slice(key).map_err(|_| AdvError::Malformed)?;
    let signature = signed.account_signature.as_deref().unwrap_or_default();
    let signature = Signature::from_slice(signature).map_err(|_| AdvError::Signature)?;
    let prefix = if device.device_type == Some(HOSTED) {
        HOSTED_ACCOUNT
    } else {
        ACCOUNT
    };
    key.verify(&[&prefix, details, identity.as_bytes()], &signature)
        .map_err(|_| AdvError::Signature)?;
    Ok(key)
}

/// Checks the identity that another companion shows: both signatures, and that it speaks of `identity`. Returns the
/// account key, which is the identity of that user's phone.
pub(crate) fn verify_companion(bytes: &[u8], identity: &PublicKey) -> Result<PublicKey, AdvError> {
    let signed = AdvSignedDeviceIdentity::decode(bytes).map_err(|_| AdvError::Malformed)?;
    let account_key = check_account(&signed, identity)?;
    let details = signed.details.as_deref().ok_or(AdvError::Malformed)?;
    let signature = signed.device_signature.as_deref().unwrap_or_default();
    let signature = Signature::from_slice(signature).map_err(|_| AdvError::Signature)?;
    // Two clients sign a hosted device with one prefix, one with the other: both are accepted.
    [DEVICE, HOSTED_DEVICE]
        .iter()
        .any(|prefix| {
            let message: [&[u8]; 4] =
                [prefix, details, identity.as_bytes(), account_key.as_bytes()];
            identity.verify(&message, &signature).is_ok()
        })
        .then_some(account_key)
        .ok_or(AdvError::Signature)
}

/// Which companions a key index list vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyIndexes {
    current: u32,
    valid: BTreeSet<u32>,
}

impl KeyIndexes {
    /// Reads the list. Its signature is made by a key that we may not know yet; no client checks it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let signed = AdvSignedKeyIndexList::decode(bytes).ok()?;
        let list = AdvKeyIndexList::decode(signed.details?.as_slice()).ok()?;
        Some(Self {
            current: list.current_index.unwrap_or(0),
            valid: list.valid_indexes.into_iter().collect(),
        })
    }

    /// A device is vouched for if its index is listed, or is newer than the list.
    pub(crate) fn vouches(&self, index: u32) -> bool {
        index > self.current || self.valid.contains(&index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{PrivateKey, testing::hex};

    fn key(byte: u8) -> KeyPair {
        KeyPair::from_private(PrivateKey::from_bytes([byte; 32]))
    }

    /// The vector of fact sheet 03.4.
    fn container() -> Vec<u8> {
        let s = concat!(
            "0a1108959aef3a1080e2cfaa061801200028001220219e4d800da968d2a5fcb009c784f4746c7138edb9ee4844b739e830b05cf4241a40",
            "f0deee8893b3ac2c4e438492dd783551c313e8bf83ce3cd4817fb915d64057e31b3f5cc757ee2aa976187e73f722e6c8be0dd7d84bca7bc8f490f2a372a6e682"
        );
        let hmac = "b38dc027e171a5b7be64160a5b093fd3d2bf4173eb5f70f95246f070ed6eb98b";
        hex(&format!("0a77{s}1220{hmac}"))
    }

    #[test]
    fn the_vector_pairs() {
        let identity = key(0x55);
        let accepted = accept(
            &container(),
            &[0x77; 32],
            &identity,
            &mut Rng::from_seed([1; 32]),
        )
        .unwrap();
        assert_eq!(accepted.key_index, 1);
        assert_eq!(accepted.account_key, key(0x66).public);
        // What we made is accepted by whoever checks companions.
        assert_eq!(
            verify_companion(&accepted.full, &identity.public),
            Ok(accepted.account_key)
        );
        let reply = AdvSignedDeviceIdentity::decode(accepted.reply.as_slice()).unwrap();
        assert_eq!(reply.account_signature_key, None);
        // And the device signature of the sheet is accepted too.
        let mut foreign = AdvSignedDeviceIdentity::decode(accepted.full.as_slice()).unwrap();
        foreign.device_signature = Some(hex(
            "2deb012c6bc78ecbc5ea19b4a6be00dcc7460bfb2bfeeaaf031d5c741936d3d44845c11375cc2228bc6d1060eaff03dfe4154fd9d275ba349d17a12e5e9aa609",
        ));
        assert!(verify_companion(&foreign.encode_to_vec(), &identity.public).is_ok());
    }

    #[test]
    fn anything_wrong_is_refused_by_name() {
        let mut rng = Rng::from_seed([1; 32]);
        let mut refused = |container: &[u8], secret: u8, identity: u8| {
            accept(container, &[secret; 32], &key(identity), &mut rng).err()
        };
        assert_eq!(refused(&container(), 0x78, 0x55), Some(AdvError::Hmac));
        // A signature over another companion's key.
        assert_eq!(refused(&container(), 0x77, 0x54), Some(AdvError::Signature));
        assert_eq!(refused(b"\x0a", 0x77, 0x55), Some(AdvError::Malformed));
        let whole = container();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert!(refused(&broken, 0x77, 0x55).is_some(), "byte {at}");
        }
        assert_eq!(
            verify_companion(b"", &key(1).public),
            Err(AdvError::Malformed)
        );
    }
}
