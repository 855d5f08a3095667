//! Every protobuf message that is read from outside or from a row.
//!
//! Checked: what is accepted is written in as many bytes as were counted, and reads back equal; printing it shows no
//! more than is meant to be shown, and does not fail.

use baton_core::proto::{adv, archive, e2e, handshake, history, payload, record, sync};
use prost::Message;
use std::fmt::Debug;

fn one<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else {
        return;
    };
    let again = message.encode_to_vec();
    assert_eq!(again.len(), message.encoded_len());
    let back = M::decode(again.as_slice()).expect("what was written can be read");
    assert!(message == back, "reads back as something else");
    assert!(!format!("{message:?}").is_empty());
}

macro_rules! messages {
    ($($module:ident::{$($name:ident),*$(,)?})*) => {
        const MESSAGES: &[fn(&[u8])] = &[$($(one::<$module::$name>,)*)*];
    };
}

messages! {
    adv::{AdvDeviceIdentity, AdvKeyIndexList, AdvSignedDeviceIdentity, AdvSignedDeviceIdentityHmac, AdvSignedKeyIndexList}
    archive::{End, Header, Release, TableCount}
    e2e::{AppStateSyncKeyShare, HistorySyncNotification, MediaRetryNotification, Message,
        PeerDataOperationRequestResponseMessage, ProtocolMessage, ServerErrorReceipt, SyncdSnapshotFatalRecoveryResponse,
        LidMigrationMappingSyncPayload}
    handshake::{CertChain, HandshakeMessage, NoiseCertificate, NoiseCertificateDetails}
    history::{Conversation, HistorySync, PhoneNumberToLidMapping, Pushname, WebMessageInfo}
    payload::{ClientPayload, DeviceProps}
    record::{ChatSettings, Collection, Contact, Counters, Device, DeviceList, Event, Evidence, HistoryJob, Identity,
        LidMapping, Mailbox, MessageSecret, Outbound, PreKey, Seen, Setting}
    sync::{ExternalBlobReference, SyncActionData, SyncdMutations, SyncdPatch, SyncdRecord, SyncdSnapshot,
        SyncdSnapshotRecovery}
}

/// See the module.
pub fn target(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    MESSAGES[usize::from(*which) % MESSAGES.len()](bytes);
}

/// An empty message of each kind, and a few full ones.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let count = u8::try_from(MESSAGES.len()).expect("few");
    let text = e2e::Message {
        conversation: Some("text".into()),
        ..Default::default()
    };
    let chain = &crate::handshakes::Handshakes::get().chain;
    let mut seeds: Vec<Vec<u8>> = (0..count).map(|which| vec![which, 0x0a, 0]).collect();
    // Most are made of lengths and numbers: what is one of them is nearly another.
    for bytes in [
        &text.encode_to_vec(),
        chain,
        &crate::settings::snapshot().encode_to_vec(),
    ] {
        seeds.extend(
            (0..count)
                .step_by(3)
                .map(|which| [&[which][..], bytes].concat()),
        );
    }
    seeds
}
