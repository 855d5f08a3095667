//! Device 0 of every account: a phone, played by the service with real keys.
//!
//! One key pair signs the account's companions and is the phone's Signal identity (chapter 10.4). It reads everything
//! it gets, answers like a phone (receipts, retry receipts, resends), says what it is told to, and books the text it
//! could read. Its stanzas take the same way through the service as everybody's.
//!
//! Its pool of one-time keys never runs dry: a key is made when a bundle is asked for. One client fetches bundles of
//! phones on each first send (chapter 10.7.3), and eight hundred keys in advance would be most of a simulation's work.

use super::accounts::{DeviceId, Form};
use super::books::PhoneText;
use super::handover::Handover;
use super::keys::{Bundle, SignedPreKey};
use super::{Now, Service};
use baton_core::crypto::{KeyPair, Rng, Signature};
use baton_core::jid::Jid;
use baton_core::proto::e2e;
use baton_core::signal::{
    self, Ciphertext, CiphertextKind, DecryptError, LocalIdentity, PreKeyMessage, SessionRecord,
};
use baton_core::wire::node::Node;
use prost::Message as _;
use smol_str::SmolStr;
use std::collections::{BTreeMap, VecDeque};

/// Retry receipts for one message, sent or answered; the clients' own limit (chapter 07.10).
const RETRIES_MAX: u32 = 5;
/// Sent messages that can be sent again.
const SENT_MAX: usize = 1_000;

/// Why a phone could not be made to say something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhoneSendError {
    /// No account has this phone number.
    #[error("there is no such phone")]
    NoSuchPhone,
    /// Not a JID or phone number of a user.
    #[error("not a user")]
    NotAUser,
    /// No account has this JID.
    #[error("there is no such user")]
    NoSuchUser,
}

/// One phone.
pub(super) struct Phone {
    pub(super) identity: KeyPair,
    pub(super) push_name: SmolStr,
    pub(super) registration: u32,
    pub(super) signed: KeyPair,
    pub(super) signature: Signature,
    /// One-time keys in other people's hands.
    pub(super) one_time: BTreeMap<u32, KeyPair>,
    pub(super) last_one_time: u32,
    pub(super) sessions: BTreeMap<DeviceId, SessionRecord>,
    sent: VecDeque<Sent>,
    asked: BTreeMap<(DeviceId, String), u32>,
    answered: BTreeMap<(DeviceId, String), u32>,
    /// What companions still get of the past, by their numbers.
    pub(super) handovers: BTreeMap<u16, Handover>,
}

/// A message this phone can send again.
struct Sent {
    id: String,
    to: Jid,
    peer: bool,
    message: Vec<u8>,
}

const SIGNED_ID: u32 = 1;

impl Phone {
    pub(super) fn new(identity: KeyPair, push_name: SmolStr, rng: &mut Rng) -> Self {
        let signed = KeyPair::generate(rng);
        let signature = identity.private.sign(&[&signed.public.serialize()], rng);
        // Fourteen bits and not zero, as the clients make them.
        let registration = rng.next_u32() % 16_380 + 1;
        Self::from_keys(identity, push_name, registration, signed, signature)
    }

    pub(super) fn from_keys(
        identity: KeyPair,
        push_name: SmolStr,
        registration: u32,
        signed: KeyPair,
        signature: Signature,
    ) -> Self {
        Self {
            identity,
            push_name,
            registration,
            signed,
            signature,
            one_time: BTreeMap::new(),
            last_one_time: 0,
            sessions: BTreeMap::new(),
            sent: VecDeque::new(),
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            handovers: BTreeMap::new(),
        }
    }

    /// A bundle with a one-time key nobody else has.
    pub(super) fn bundle(&mut self, rng: &mut Rng) -> Bundle {
        self.last_one_time = self.last_one_time % 0x00ff_fffe + 1;
        let pair = KeyPair::generate(rng);
        let one_time = (self.last_one_time, pair.public);
        self.one_time.insert(self.last_one_time, pair);
        Bundle {
            registration: self.registration,
            identity: self.identity.public,
            signed: SignedPreKey {
                id: SIGNED_ID,
                key: self.signed.public,
                signature: self.signature,
            },
            one_time: Some(one_time),
            proof: None,
        }
    }

    /// A companion is gone; so is what was shared with it.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.sessions.remove(device);
        self.handovers.remove(&device.device);
    }

    fn open(
        &mut self,
        from: &DeviceId,
        kind: CiphertextKind,
        bytes: &[u8],
        rng: &mut Rng,
    ) -> Result<Vec<u8>, DecryptError> {
        let local = LocalIdentity {
            key_pair: &self.identity,
            registration_id: self.registration,
        };
        if kind == CiphertextKind::Message {
            let record = self.sessions.get_mut(from).ok_or(DecryptError::NoSession)?;
            return signal::decrypt(record, &local, bytes, rng);
        }
        let message = PreKeyMessage::parse(bytes)?;
        let signed = (message.signed_pre_key_id == SIGNED_ID).then_some(&self.signed);
        let one_time = message.pre_key_id.and_then(|id| self.one_time.get(&id));
        let record = self.sessions.entry(from.clone()).or_default();
        let plaintext = signal::decrypt_pre_key(record, &local, &message, signed, one_time, rng)?;
        if let Some(id) = message.pre_key_id {
            self.one_time.remove(&id);
        }
        Ok(plaintext)
    }

    fn remember(&mut self, sent: Sent) {
        self.sent.push_back(sent);
        if self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
    }
}

impl Service {
    /// Makes sure there is an account with this phone number, and names its phone. Accounts without companions can be
    /// written to: the phone reads.
    pub fn add_phone(
        &mut self,
        phone: &str,
        push_name: Option<&str>,
        now: Now,
    ) -> Result<Jid, super::BadPhoneNumber> {
        let account = self
            .accounts
            .get_or_create(phone, now.secs(), &mut self.rng)?;
        if let Some(name) = push_name {
            account.phone.push_name = name.into();
        }
        self.revision += 1;
        Ok(account.lid.clone())
    }

    /// The phone writes `text` to a user, by JID of either form or by phone number, and copies it to its companions.
    /// Returns the message id.
    pub fn phone_send(
        &mut self,
        phone: &str,
        to: &str,
        text: &str,
        now: Now,
    ) -> Result<String, PhoneSendError> {
        if self.accounts.get(phone).is_none() {
            return Err(PhoneSendError::NoSuchPhone);
        }
        let to = if to.contains('@') {
            to.parse::<Jid>().ok()
        } else {
            Jid::pn(to.trim_start_matches('+')).ok()
        };
        let to = to
            .filter(Jid::is_user)
            .ok_or(PhoneSendError::NotAUser)?
            .bare();
        let recipient = self
            .accounts
            .resolve(&to)
            .ok_or(PhoneSendError::NoSuchUser)?;
        let from = DeviceId::new(phone, 0);
        let message = e2e::Message {
            conversation: Some(text.to_owned()),
            ..Default::default()
        }
        .encode_to_vec();
        let copy = device_sent(&to, &message);

        let mut participants = Vec::new();
        let mut devices = self.accounts.devices_of(&recipient.phone);
        if recipient.phone != from.phone {
            devices.extend(self.accounts.devices_of(&from.phone));
        }
        for device in devices.into_iter().filter(|device| *device != from) {
            let plaintext = if device.phone == from.phone {
                &copy
            } else {
                &message
            };
            let jid = self.accounts.jid(&device, Form::of(&to));
            if let (Some(jid), Some(enc)) = (
                jid,
                self.phone_seal(&from, &device, None, plaintext, None, now),
            ) {
                participants.push(Node::new("to").attr("jid", jid).child(enc));
            }
        }
        self.revision += 1;
        let id = self.phone_message_id();
        self.phone_remembers(
            &from,
            Sent {
                id: id.clone(),
                to: to.clone(),
                peer: false,
                message,
            },
        );
        let node = Node::new("message")
            .attr("to", to)
            .attr("id", id.as_str())
            .attr("type", "text")
            .child(Node::new("participants").children(participants));
        self.on_message(&from, &node, now);
        self.settle(now);
        Ok(id)
    }

    /// After a companion's first login its phone sends the app-state key and an empty history, as peer messages: some
    /// clients wait for them (chapter 10.9).
    pub(super) fn bootstrap(&mut self, device: &DeviceId, now: Now) {
        let first = self
            .accounts
            .device_mut(device)
            .is_some_and(|known| !std::mem::replace(&mut known.bootstrapped, true));
        if !first || !self.options.bootstrap {
            return;
        }
        self.first_keys(device, now);
        let history = e2e::HistorySyncNotification {
            sync_type: Some(e2e::history_sync_notification::SyncType::InitialBootstrap.into()),
            chunk_order: Some(1),
            progress: Some(100),
            initial_hist_bootstrap_inline_payload: Some(EMPTY_HISTORY.to_vec()),
            ..Default::default()
        };
        let history = e2e::ProtocolMessage {
            r#type: Some(e2e::protocol_message::Type::HistorySyncNotification.into()),
            history_sync_notification: Some(history),
            ..Default::default()
        };
        self.phone_tells(device, history, now);
    }

    /// The phone tells a companion something, as a peer message. Returns its id.
    pub(super) fn phone_tells(
        &mut self,
        device: &DeviceId,
        content: e2e::ProtocolMessage,
        now: Now,
    ) -> Option<String> {
        let message = e2e::Message {
            protocol_message: Some(Box::new(content)),
            ..Default::default()
        };
        self.phone_peer_message(device, message.encode_to_vec(), now)
    }

    fn phone_peer_message(&mut self, to: &DeviceId, message: Vec<u8>, now: Now) -> Option<String> {
        let phone = DeviceId::new(&to.phone, 0);
        let jid = self.accounts.jid(to, Form::Lid)?;
        let enc = self.phone_seal(&phone, to, None, &message, None, now)?;
        let id = self.phone_message_id();
        self.phone_remembers(
            &phone,
            Sent {
                id: id.clone(),
                to: jid.clone(),
                peer: true,
                message,
            },
        );
        let node = Node::new("message")
            .attr("to", jid)
            .attr("id", id.as_str())
            .attr("type", "text")
            .attr("category", "peer")
            .child(enc);
        self.on_message(&phone, &node, now);
        Some(id)
    }

    /// A stanza has reached a phone.
    pub(super) fn phone_reads(&mut self, phone: &DeviceId, node: &Node, now: Now) {
        match node.tag() {
            "message" => self.phone_message(phone, node, now),
            "receipt" if node.get_str("type") == Some("retry") => {
                self.phone_retry(phone, node, now)
            }
            // Other receipts need no ack of a phone: it has no queue.
            _ => {}
        }
    }

    fn phone_message(&mut self, phone: &DeviceId, node: &Node, now: Now) {
        let (Some(id), Some(jid)) = (node.get_string("id"), node.get_jid("from")) else {
            return;
        };
        let Some(from) = self.accounts.resolve(&jid) else {
            return;
        };
        let mut failure = None;
        for enc in node.find_all("enc") {
            let kind = match enc.get_str("type") {
                Some("pkmsg") => CiphertextKind::PreKey,
                Some("msg") => CiphertextKind::Message,
                _ => continue,
            };
            let Some(account) = self.accounts.get_mut(&phone.phone) else {
                return;
            };
            match account
                .phone
                .open(&from, kind, enc.data().unwrap_or_default(), &mut self.rng)
            {
                Ok(plaintext) => self.phone_understands(phone, &from, &id, &plaintext, now),
                Err(error) => failure = failure.or(error.retry_reason()),
            }
        }
        let receipt = Node::new("receipt")
            .attr("id", id.as_str())
            .attr("to", &jid);
        let receipt = match failure {
            Some(reason) => match self.phone_asks_again(phone, &from, &id, reason, receipt, now) {
                Some(receipt) => receipt.attr_opt("recipient", node.get("recipient").cloned()),
                None => return,
            },
            None if node.get_str("category") == Some("peer") => receipt.attr("type", "peer_msg"),
            None if from.phone == phone.phone => receipt
                .attr("type", "sender")
                .attr_opt("recipient", node.get("recipient").cloned()),
            None => receipt,
        };
        self.on_receipt(phone, &receipt, now);
    }

    fn phone_understands(
        &mut self,
        phone: &DeviceId,
        from: &DeviceId,
        id: &str,
        plaintext: &[u8],
        now: Now,
    ) {
        let message = signal::unpad(plaintext)
            .ok()
            .and_then(|message| e2e::Message::decode(message).ok());
        let Some(mut message) = message else {
            return self.anomaly(
                from,
                format!("message {id} decrypts to something that is no message"),
                now,
            );
        };
        let mut destination = None;
        if let Some(copy) = message.device_sent_message.take() {
            // Only an own device can speak for this account.
            if from.phone != phone.phone {
                return self.anomaly(
                    from,
                    format!("message {id}: device-sent copy to somebody else's phone"),
                    now,
                );
            }
            destination = copy.destination_jid;
            message = copy
                .message
                .and_then(|inner| e2e::Message::decode(&*inner).ok())
                .unwrap_or_default();
        }
        let request = message.protocol_message.as_ref();
        if let Some(request) = request.and_then(|m| m.app_state_sync_key_request.as_ref())
            && from.phone == phone.phone
        {
            let ids = request.key_ids.iter().filter_map(|id| id.key_id.clone());
            self.share_keys(from, Some(&ids.collect::<Vec<_>>()), now);
        }
        let operation = request
            .and_then(|m| m.peer_data_operation_request_message.as_deref())
            .and_then(|bytes| e2e::PeerDataOperationRequestMessage::decode(bytes).ok())
            .filter(|operation| {
                operation.r#type == Some(super::settings::RECOVERY) && from.phone == phone.phone
            });
        let wanted = operation.and_then(|o| o.syncd_collection_fatal_recovery_request);
        if let Some(name) = wanted.and_then(|wanted| wanted.collection_name) {
            self.tell_collection(from, id, &name, now);
        }
        let text = message.conversation.or_else(|| {
            message
                .extended_text_message
                .and_then(|extended| extended.text)
        });
        self.books.text(PhoneText {
            phone: phone.clone(),
            sender: from.clone(),
            id: id.to_owned(),
            destination,
            text,
            at: now.into(),
        });
    }

    /// Makes a retry receipt of `receipt`, keys included; none when it has been asked for often enough.
    fn phone_asks_again(
        &mut self,
        phone: &DeviceId,
        from: &DeviceId,
        id: &str,
        reason: u8,
        receipt: Node,
        now: Now,
    ) -> Option<Node> {
        let known = &mut self.accounts.get_mut(&phone.phone)?.phone;
        let count = known
            .asked
            .entry((from.clone(), id.to_owned()))
            .or_default();
        *count += 1;
        if *count > RETRIES_MAX {
            return None;
        }
        let retry = Node::new("retry")
            .attr("v", "1")
            .attr("count", u64::from(*count))
            .attr("id", id)
            .attr("t", now.secs())
            .attr("error", u64::from(reason));
        let bundle = known.bundle(&mut self.rng);
        Some(
            receipt
                .attr("type", "retry")
                .child(retry)
                .children(bundle.retry_nodes()),
        )
    }

    /// Somebody could not read what this phone sent, and gets it again.
    fn phone_retry(&mut self, phone: &DeviceId, receipt: &Node, now: Now) {
        let (Some(id), Some(jid)) = (receipt.get_string("id"), receipt.get_jid("from")) else {
            return;
        };
        let Some(to) = self.accounts.resolve(&jid) else {
            return;
        };
        let Some(account) = self.accounts.get_mut(&phone.phone) else {
            return;
        };
        let Some(sent) = account.phone.sent.iter().find(|sent| sent.id == id) else {
            return;
        };
        let (chat, peer, message) = (sent.to.clone(), sent.peer, sent.message.clone());
        // Only whom it was for: the recipient's devices, or the own ones.
        if to.phone != phone.phone
            && Some(&to.phone) != self.accounts.resolve(&chat).map(|d| d.phone).as_ref()
        {
            return;
        }
        let Some(account) = self.accounts.get_mut(&phone.phone) else {
            return;
        };
        let answered = account
            .phone
            .answered
            .entry((to.clone(), id.clone()))
            .or_default();
        *answered += 1;
        if *answered > RETRIES_MAX {
            return;
        }
        let count = receipt
            .find("retry")
            .and_then(|retry| retry.get_u64("count"))
            .unwrap_or(1);
        let fresh = match Bundle::from_retry(receipt) {
            Some(bundle) => Some(bundle),
            // The session may be what is broken; from the second request on it certainly is.
            None if count > 1 => self.take_bundle(&to, phone, now),
            None => None,
        };
        let plaintext = if to.phone == phone.phone && !peer {
            device_sent(&chat, &message)
        } else {
            message
        };
        let Some(enc) = self.phone_seal(phone, &to, fresh, &plaintext, Some(count), now) else {
            return;
        };
        let node = Node::new("message")
            .attr("to", jid)
            .attr("id", id)
            .attr("type", "text")
            .attr("device_fanout", "false")
            .attr_opt("category", peer.then_some("peer"))
            .attr_opt(
                "recipient",
                (to.phone == phone.phone && !peer).then_some(chat),
            )
            .child(enc);
        self.on_message(phone, &node, now);
    }

    /// `<enc>` for one device; the session is made from `fresh`, or from a fetched bundle if there is none.
    fn phone_seal(
        &mut self,
        phone: &DeviceId,
        to: &DeviceId,
        fresh: Option<Bundle>,
        message: &[u8],
        count: Option<u64>,
        now: Now,
    ) -> Option<Node> {
        let known = self
            .accounts
            .get(&phone.phone)?
            .phone
            .sessions
            .get(to)
            .is_some_and(SessionRecord::is_usable);
        let bundle = match fresh {
            None if !known => Some(self.take_bundle(to, phone, now)?),
            fresh => fresh,
        };
        let plaintext = signal::pad(message, &mut self.rng);
        let Phone {
            identity,
            registration,
            sessions,
            ..
        } = &mut self.accounts.get_mut(&phone.phone)?.phone;
        let local = LocalIdentity {
            key_pair: identity,
            registration_id: *registration,
        };
        let record = sessions.entry(to.clone()).or_default();
        if let Some(bundle) = bundle
            && let Err(error) = signal::initiate(record, &local, &bundle.to_signal(), &mut self.rng)
        {
            self.anomaly(to, format!("bundle cannot be used: {error}"), now);
            return None;
        }
        let Ciphertext { kind, bytes } = match signal::encrypt(record, &local, &plaintext) {
            Ok(ciphertext) => ciphertext,
            Err(error) => {
                self.anomaly(to, format!("session cannot be used: {error}"), now);
                return None;
            }
        };
        let kind = if kind == CiphertextKind::PreKey {
            "pkmsg"
        } else {
            "msg"
        };
        Some(
            Node::new("enc")
                .attr("v", "2")
                .attr("type", kind)
                .attr_opt("count", count)
                .bytes(bytes),
        )
    }

    fn phone_remembers(&mut self, phone: &DeviceId, sent: Sent) {
        if let Some(account) = self.accounts.get_mut(&phone.phone) {
            account.phone.remember(sent);
        }
    }

    /// 32 hex digits behind `3A`, as phones make them.
    fn phone_message_id(&mut self) -> String {
        format!(
            "3A{}",
            super::books::hex(&self.rng.bytes::<15>()).to_uppercase()
        )
    }
}

/// The form in which an own device gets a copy.
fn device_sent(to: &Jid, message: &[u8]) -> Vec<u8> {
    let copy = e2e::DeviceSentMessage {
        destination_jid: Some(to.to_string()),
        message: Some(message.to_vec()),
        phash: None,
    };
    e2e::Message {
        device_sent_message: Some(copy),
        ..Default::default()
    }
    .encode_to_vec()
}

/// `HistorySync{syncType: INITIAL_BOOTSTRAP}`, two bytes `08 00`, as a zlib stream with one stored block.
const EMPTY_HISTORY: [u8; 13] = [
    0x78, 0x01, 0x01, 0x02, 0x00, 0xfd, 0xff, 0x08, 0x00, 0x00, 0x12, 0x00, 0x09,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_history_has_the_right_checksum() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &EMPTY_HISTORY[7..9] {
            a += u32::from(*byte);
            b += a;
        }
        assert_eq!(EMPTY_HISTORY[9..], (b << 16 | a).to_be_bytes());
    }

    #[test]
    fn every_bundle_has_a_key_of_its_own() {
        let mut rng = Rng::from_seed([4; 32]);
        let mut phone = Phone::new(KeyPair::generate(&mut rng), "A".into(), &mut rng);
        let ids: Vec<_> = (0..3)
            .filter_map(|_| phone.bundle(&mut rng).one_time.map(|(id, _)| id))
            .collect();
        assert_eq!(ids, [1, 2, 3]);
        let bundle = phone.bundle(&mut rng);
        let signed = [5]
            .into_iter()
            .chain(*bundle.signed.key.as_bytes())
            .collect::<Vec<u8>>();
        assert!(
            bundle
                .identity
                .verify(&[&signed], &bundle.signed.signature)
                .is_ok()
        );
    }
}
