//! A phone hands its past over: one chunk after the other, the next when the one before was received (chapter 07.17).

use super::books::HistoryLog;
use super::history::{Chunk, History};
use super::{DeviceId, Now, Service};
use baton_core::crypto::{AesGcm, hkdf_sha256};
use baton_core::proto::e2e;
use baton_core::wire::node::Node;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};

/// Longest content of an announcement.
const INLINE_BYTES: usize = 60 << 10;

/// What one companion still has to get.
#[derive(Default)]
pub(super) struct Handover {
    queue: VecDeque<Chunk>,
    /// The announcement that was not answered yet.
    waiting: Option<String>,
    /// The last one, to be made again.
    last: Option<(Chunk, e2e::HistorySyncNotification)>,
    /// What was announced of files, by the messages in which it was: a phone can upload each again. A companion whose
    /// database was put back asks for what it has long had, and one that was told twice may ask for either.
    files: BTreeMap<String, e2e::HistorySyncNotification>,
}

impl Service {
    /// The phone hands `history` over to a companion, behind what it is handing over already. False if there is no such
    /// companion.
    pub fn phone_history(&mut self, device: &DeviceId, history: &History, now: Now) -> bool {
        if device.is_phone() || !self.accounts.exists(device) {
            return false;
        }
        let Some(account) = self.accounts.get_mut(&device.phone) else {
            return false;
        };
        let handover = account.phone.handovers.entry(device.device).or_default();
        handover
            .queue
            .extend((1..=history.chunks).map(|order| Chunk {
                history: history.clone(),
                order,
            }));
        self.next_chunk(device, now);
        self.settle(now);
        true
    }

    /// The phone announces the last chunk again, in another message. False if there was none.
    pub fn repeat_history(&mut self, device: &DeviceId, now: Now) -> bool {
        let account = self.accounts.get(&device.phone);
        let handover = account.and_then(|account| account.phone.handovers.get(&device.device));
        let Some((chunk, notification)) = handover.and_then(|handover| handover.last.clone())
        else {
            return false;
        };
        self.announce_chunk(device, chunk, notification, now);
        self.settle(now);
        true
    }

    fn next_chunk(&mut self, device: &DeviceId, now: Now) {
        let Some(account) = self.accounts.get_mut(&device.phone) else {
            return;
        };
        let Some(handover) = account.phone.handovers.get_mut(&device.device) else {
            return;
        };
        if handover.waiting.is_some() {
            return;
        }
        let Some(chunk) = handover.queue.pop_front() else {
            return;
        };
        let mut notification = e2e::HistorySyncNotification {
            sync_type: Some(chunk.history.kind.wire().into()),
            chunk_order: Some(chunk.order),
            progress: Some(chunk.progress()),
            ..Default::default()
        };
        if chunk.history.inline {
            let content: Vec<u8> = chunk.file().flatten().take(INLINE_BYTES).collect();
            notification.initial_hist_bootstrap_inline_payload = Some(content);
        } else {
            let told = self.files.make(&device.phone, chunk.clone(), &mut self.rng);
            notification.file_sha256 = Some(told.sha256.to_vec());
            notification.file_length = Some(told.length);
            notification.media_key = Some(told.key.to_vec());
            notification.file_enc_sha256 = Some(told.enc_sha256.to_vec());
            notification.direct_path = Some(told.path);
        }
        let id = self.announce_chunk(device, chunk.clone(), notification.clone(), now);
        if let Some(account) = self.accounts.get_mut(&device.phone) {
            let handover = account.phone.handovers.entry(device.device).or_default();
            handover.waiting = id;
            handover.last = Some((chunk, notification));
        }
    }

    fn announce_chunk(
        &mut self,
        device: &DeviceId,
        chunk: Chunk,
        notification: e2e::HistorySyncNotification,
        now: Now,
    ) -> Option<String> {
        let content = e2e::ProtocolMessage {
            r#type: Some(e2e::protocol_message::Type::HistorySyncNotification.into()),
            history_sync_notification: Some(notification.clone()),
            ..Default::default()
        };
        let id = self.phone_tells(device, content, now)?;
        if notification.direct_path.is_some()
            && let Some(account) = self.accounts.get_mut(&device.phone)
        {
            let handover = account.phone.handovers.entry(device.device).or_default();
            handover.files.insert(id.clone(), notification);
        }
        self.books.histories_mut().push(HistoryLog {
            to: device.clone(),
            id: id.clone(),
            chunk,
            received: false,
        });
        Some(id)
    }

    /// A companion cannot get the file of a chunk (`server-error`): the phone uploads it again, and says where it is
    /// (chapter 07.16). Both sides of that are encrypted with a key that follows from the file's.
    pub(super) fn history_is_missing(&mut self, from: &DeviceId, id: &str, node: &Node, now: Now) {
        let handover = self
            .accounts
            .get(&from.phone)
            .and_then(|account| account.phone.handovers.get(&from.device));
        let Some(notification) = handover.and_then(|handover| handover.files.get(id).cloned())
        else {
            return self.anomaly(from, format!("no file was announced by {id}"), now);
        };
        let key = notification.media_key.as_deref().unwrap_or_default();
        let key = hkdf_sha256::<32>(&[], key, b"WhatsApp Media Retry Notification");
        let cipher = AesGcm::new(&key);
        let part = |name| node.path(&["encrypt", name]).and_then(Node::data);
        let mut plain = part("enc_p").unwrap_or_default().to_vec();
        let nonce = part("enc_iv").and_then(|nonce| <[u8; 12]>::try_from(nonce).ok());
        let sound = nonce.is_some_and(|nonce| {
            cipher
                .open_in_place(&nonce, id.as_bytes(), &mut plain)
                .is_ok()
        });
        let said = e2e::ServerErrorReceipt::decode(plain.as_slice()).unwrap_or_default();
        let subject = node.find("rmr").cloned();
        if !sound || said.stanza_id.as_deref() != Some(id) || subject.is_none() {
            return self.anomaly(from, "a request for a file that nobody can read", now);
        }
        self.faults.count("file_uploaded_again");
        let answer = e2e::MediaRetryNotification {
            stanza_id: Some(id.to_owned()),
            direct_path: notification.direct_path,
            result: Some(1),
            message_secret: None,
        };
        let mut sealed = answer.encode_to_vec();
        let nonce: [u8; 12] = self.rng.bytes();
        cipher.seal(&nonce, id.as_bytes(), &mut sealed);
        let Some(jid) = self
            .accounts
            .jid(&DeviceId::new(&from.phone, 0), super::accounts::Form::Lid)
        else {
            return;
        };
        let node = Node::new("notification")
            .attr("id", id)
            .attr("type", "mediaretry")
            .attr("t", now.secs())
            .attr("from", jid)
            .children(subject)
            .child(
                Node::new("encrypt")
                    .child(Node::new("enc_p").bytes(sealed))
                    .child(Node::new("enc_iv").bytes(nonce.to_vec())),
            );
        self.deliver(from, super::queue::Class::Notification, id, None, node, now);
    }

    /// A companion has received a chunk (`hist_sync`).
    pub(super) fn history_received(&mut self, from: &DeviceId, id: &str, now: Now) {
        let mut histories = self.books.histories_mut().iter_mut();
        if let Some(log) = histories.find(|log| log.to == *from && log.id == id) {
            log.received = true;
        }
        let Some(account) = self.accounts.get_mut(&from.phone) else {
            return;
        };
        let Some(handover) = account.phone.handovers.get_mut(&from.device) else {
            return;
        };
        if handover.waiting.as_deref() == Some(id) {
            handover.waiting = None;
            self.next_chunk(from, now);
        }
    }
}
