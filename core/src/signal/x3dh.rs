//! Building a session out of nothing (chapter 05.3): X3DH in its version-3 form, from both ends.

use super::ratchet::{ChainKey, KeySource, Secret, root_and_chain, root_step};
use super::record::SessionRecord;
use super::state::{PendingPreKey, ReceiverChain, SenderChain, State};
use super::{LocalIdentity, PreKeyMessage};
use crate::crypto::{KeyError, KeyPair, PublicKey, Rng, SharedSecret, Signature, hkdf_sha256};
use zeroize::Zeroizing;

/// What the service hands out about a device so that others can write to it unasked.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The device's registration id.
    pub registration_id: u32,
    /// Its identity.
    pub identity: PublicKey,
    /// The id of its signed pre-key.
    pub signed_pre_key_id: u32,
    /// Its signed pre-key.
    pub signed_pre_key: PublicKey,
    /// The identity's signature over the signed pre-key's 33-byte form.
    pub signature: Signature,
    /// A one-time key, while the device has some left.
    pub pre_key: Option<(u32, PublicKey)>,
}

/// Why no session came of a bundle. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiateError {
    /// The signed pre-key is not signed by the identity: somebody made the bundle up. Do not write to this device.
    #[error("the signed pre-key of the bundle is not signed by its identity")]
    BadSignature,
    /// A key of the bundle cannot be agreed with.
    #[error("the bundle holds a bad key")]
    Key(#[from] KeyError),
}

/// Starts a session from a bundle; a session the record already has is archived.
///
/// Whether the bundle's identity is the one known for the address is the caller's question, to be asked first.
pub fn initiate(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    bundle: &Bundle,
    rng: &mut Rng,
) -> Result<(), InitiateError> {
    initiate_with(record, local, bundle, rng)
}

pub(super) fn initiate_with(
    record: &mut SessionRecord,
    local: &LocalIdentity<'_>,
    bundle: &Bundle,
    keys: &mut impl KeySource,
) -> Result<(), InitiateError> {
    bundle
        .identity
        .verify(&[&bundle.signed_pre_key.serialize()], &bundle.signature)
        .map_err(|_| InitiateError::BadSignature)?;

    let base = keys.next_pair();
    let ratchet = keys.next_pair();
    let agreements = [
        Some(local.key_pair.private.agree(&bundle.signed_pre_key)?),
        Some(base.private.agree(&bundle.identity)?),
        Some(base.private.agree(&bundle.signed_pre_key)?),
        bundle
            .pre_key
            .as_ref()
            .map(|(_, key)| base.private.agree(key))
            .transpose()?,
    ];
    let (root, first) = master(&agreements);
    let (root, chain) = root_step(&root, &ratchet.private, &bundle.signed_pre_key)?;
    record.install(Box::new(State {
        local_identity: local.key_pair.public,
        remote_identity: bundle.identity,
        local_registration_id: local.registration_id,
        remote_registration_id: bundle.registration_id,
        base_key: Some(base.public),
        root,
        sender: Some(SenderChain {
            ratchet,
            chain,
            burn: record.burn,
        }),
        previous_counter: 0,
        // The responder could send on this chain before its first ratchet turn. None does, but it costs nothing.
        receivers: vec![ReceiverChain {
            ratchet: bundle.signed_pre_key,
            chain: Some(first),
            skipped: Vec::new(),
        }],
        pending: Some(PendingPreKey {
            pre_key_id: bundle.pre_key.map(|(id, _)| id),
            signed_pre_key_id: bundle.signed_pre_key_id,
            base_key: base.public,
        }),
    }));
    Ok(())
}

/// The session the sender of a `pkmsg` built, seen from our end. Believe it when its message has decrypted.
pub(super) fn respond(
    local: &LocalIdentity<'_>,
    message: &PreKeyMessage,
    signed_pre_key: &KeyPair,
    one_time: Option<&KeyPair>,
) -> Result<State, KeyError> {
    let agreements = [
        Some(signed_pre_key.private.agree(&message.identity_key)?),
        Some(local.key_pair.private.agree(&message.base_key)?),
        Some(signed_pre_key.private.agree(&message.base_key)?),
        one_time
            .map(|key| key.private.agree(&message.base_key))
            .transpose()?,
    ];
    let (root, first) = master(&agreements);
    Ok(State {
        local_identity: local.key_pair.public,
        remote_identity: message.identity_key,
        local_registration_id: local.registration_id,
        remote_registration_id: message.registration_id,
        base_key: Some(message.base_key),
        root,
        sender: Some(SenderChain {
            ratchet: signed_pre_key.clone(),
            chain: first,
            // Replaced by the turn that the first message brings, before anything is sent on it.
            burn: 0,
        }),
        previous_counter: 0,
        receivers: Vec::new(),
        pending: None,
    })
}

/// The root key and first chain of the agreements. 32 bytes of 0xFF in front mark version 3 of the protocol.
fn master(agreements: &[Option<SharedSecret>; 4]) -> (Secret, ChainKey) {
    let mut secret = Zeroizing::new(Vec::with_capacity(32 * 5));
    secret.resize(32, 0xff);
    agreements
        .iter()
        .flatten()
        .for_each(|agreed| secret.extend_from_slice(agreed.as_bytes()));
    root_and_chain(&hkdf_sha256(&[], &secret, b"WhisperText"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{array, key_pair};
    use serde_json::Value;

    #[test]
    fn the_master_secret_equals_the_vector() {
        let file: Value = serde_json::from_str(include_str!(
            "../../tests/vectors/signal-session-with-otk.json"
        ))
        .unwrap();
        let (alice, bob) = (&file["alice"], &file["bob"]);
        let identity = key_pair(&alice["identity"]);
        let base = key_pair(&alice["base_key"]);
        let signed = key_pair(&bob["signed_prekey"]["key"]).public;
        let agreements = [
            Some(identity.private.agree(&signed).unwrap()),
            Some(
                base.private
                    .agree(&key_pair(&bob["identity"]).public)
                    .unwrap(),
            ),
            Some(base.private.agree(&signed).unwrap()),
            Some(
                base.private
                    .agree(&key_pair(&bob["one_time_prekey"]["key"]).public)
                    .unwrap(),
            ),
        ];
        let names = [
            "dh1_IKa_SPKb",
            "dh2_EKa_IKb",
            "dh3_EKa_SPKb",
            "dh4_EKa_OPKb",
        ];
        for (agreed, name) in agreements.iter().flatten().zip(names) {
            assert_eq!(agreed.as_bytes(), &array(&file["x3dh"][name]), "{name}");
        }
        let (root, chain) = master(&agreements);
        assert_eq!(root.as_bytes(), &array(&file["x3dh"]["root_key_0"]));
        assert_eq!(chain.key.as_bytes(), &array(&file["x3dh"]["chain_key_0"]));
    }

    #[test]
    fn a_bundle_with_a_wrong_signature_changes_nothing() {
        let mut rng = Rng::from_seed([1; 32]);
        let (ours, theirs, signed) = (
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
            KeyPair::generate(&mut rng),
        );
        let mut bundle = Bundle {
            registration_id: 1,
            identity: theirs.public,
            signed_pre_key_id: 1,
            signed_pre_key: signed.public,
            signature: theirs.private.sign(&[&signed.public.serialize()], &mut rng),
            pre_key: None,
        };
        let local = LocalIdentity {
            key_pair: &ours,
            registration_id: 2,
        };
        let mut record = SessionRecord::new();
        initiate(&mut record, &local, &bundle, &mut rng).unwrap();
        let before = record.encode();
        bundle.signed_pre_key = ours.public;
        assert_eq!(
            initiate(&mut record, &local, &bundle, &mut rng),
            Err(InitiateError::BadSignature)
        );
        bundle.signed_pre_key = signed.public;
        bundle.pre_key = Some((1, PublicKey::from_bytes([0; 32])));
        let low_order = InitiateError::Key(KeyError::LowOrder);
        assert_eq!(
            initiate(&mut record, &local, &bundle, &mut rng),
            Err(low_order)
        );
        assert_eq!(record.encode(), before);
    }
}
