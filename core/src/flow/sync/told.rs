//! What the own phone says that is not for people: keys, chunks of history, collections in clear. It is taken in where its
//! message is, so that its rows join the batch of the message.

use super::{
    keys::{Keys, SharedKey},
    phone, rows,
};
use crate::{
    appstate::read_recovery,
    flow::Context,
    limits::MESSAGE_PARTS,
    proto::{bounded::decode_within, e2e, record, sync::SyncdSnapshotRecovery},
    state::{Key, MessageId, codec},
};
use prost::Message as _;

/// What the phone has said that is not a message.
#[derive(Debug)]
pub(crate) enum FromPhone {
    /// A key; its row is written.
    Key(SharedKey),
    /// It has announced a chunk of history; its row is written.
    History(MessageId, record::HistoryJob),
    /// It has told a collection in clear.
    Recovery(Box<SyncdSnapshotRecovery>),
}

impl super::Sync {
    /// Takes in what the phone has said.
    pub(super) fn told(&mut self, cx: &mut Context, told: FromPhone) {
        match told {
            FromPhone::Key(SharedKey { id, data, at }) => {
                cx.stats.sync.keys += 1;
                self.first_keys = None;
                if let Keys::Loading(ring) | Keys::Ready(ring) = &mut self.keys {
                    ring.insert(id.clone(), &data, at);
                }
                for track in self.tracks.values_mut() {
                    if track.waiting.remove(&id) && track.waiting.is_empty() {
                        track.attempts = 0;
                        track.not_before = None;
                    }
                    track.wanted |= std::mem::take(&mut track.keyless);
                }
            }
            FromPhone::History(id, job) => self.history.announced(id, job),
            FromPhone::Recovery(recovery) => {
                let name = recovery.collection_name.as_deref().unwrap_or_default();
                let Ok(collection) = name.parse() else {
                    return cx.protocol_error("a recovery of no collection");
                };
                let track = self.track(collection);
                // One that nobody asked for, or that came too late, would undo what we know.
                if track.recovery_until.take().is_some() {
                    track.recovery = Some(recovery);
                    track.given_up = false;
                    track.wanted = true;
                    track.attempts = 0;
                    track.not_before = None;
                }
            }
        }
    }
}

/// The own phone has announced a chunk of history. It is a row until it has been taken in.
pub(crate) fn history_announced(
    cx: &mut Context,
    id: &MessageId,
    notification: &e2e::HistorySyncNotification,
) {
    let order = cx.counters.next_order.unwrap_or(1);
    cx.counters.next_order = Some(order + 1);
    cx.save_counters();
    let job = record::HistoryJob {
        notification: Some(notification.encode_to_vec()),
        order: Some(order),
        ..Default::default()
    };
    let key = Key::AppStateVersion(format!("{}{id}", rows::HISTORY).into());
    if crate::state::rules::key(&key).is_err() {
        return cx.protocol_error("an announcement of history with an impossible id");
    }
    cx.put(key, codec::encode(&job));
    cx.from_phone.push_back(FromPhone::History(id.clone(), job));
}

/// The phone's answer to a question of ours. Anything but a collection in clear is for others. Returns whether it is
/// one.
pub(crate) fn phone_answered(cx: &mut Context, answer: &[u8]) -> bool {
    let answer =
        decode_within::<e2e::PeerDataOperationRequestResponseMessage>(answer, MESSAGE_PARTS);
    let Ok(answer) = answer else {
        return false;
    };
    if answer.r#type != Some(phone::RECOVERY) {
        return false;
    }
    for result in answer.results {
        let Some(told) = result.syncd_snapshot_fatal_recovery_response else {
            continue;
        };
        let bytes = told.collection_snapshot.as_deref().unwrap_or_default();
        match read_recovery(bytes, told.is_compressed.unwrap_or(false)) {
            Some(recovery) => cx
                .from_phone
                .push_back(FromPhone::Recovery(Box::new(recovery))),
            None => {
                cx.stats.sync.malformed += 1;
                cx.protocol_error("a recovery that does not decode");
            }
        }
    }
    true
}
