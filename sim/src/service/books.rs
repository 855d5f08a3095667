//! The books: everything the service saw and did, kept so that somebody else can judge.
//!
//! The service never judges a client's work itself, with three exceptions that only it can see: one message key that
//! encrypted two different things, one pre-key id bound to two keys, an identity that changed under the same pairing.
//! Those are [`Violation`]s. What merely breaks the protocol (a receipt for nothing, a stanza without id) is an
//! [`Anomaly`]. Everything else is plain record, by message and by device.
//!
//! Books live as long as the process: they are evidence of one run, not state of the service.

use super::{ConnId, DeviceId, Now};
use baton_core::crypto::PublicKey;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// What there is to read, in order of interest: [`Books::violations`], [`Books::message`], [`Books::summary`].
#[derive(Debug, Default, Serialize)]
pub struct Books {
    #[serde(serialize_with = "as_list")]
    messages: BTreeMap<MessageKey, MessageLog>,
    #[serde(serialize_with = "as_list")]
    devices: BTreeMap<DeviceId, DeviceLog>,
    texts: Vec<PhoneText>,
    histories: Vec<HistoryLog>,
    #[serde(skip)]
    relays: BTreeMap<Relay, ([u8; 32], Stamp)>,
    violations: Vec<Violation>,
    anomalies: Vec<Anomaly>,
    anomalies_dropped: u64,
}

/// A message is known by its sending device and the id that device gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MessageKey {
    /// The sending device.
    pub sender: DeviceId,
    /// The stanza id.
    pub id: String,
}

/// The life of one message id.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MessageLog {
    /// Each time the service took a stanza with this id: the first, and the resends to single devices.
    pub accepted: Vec<Accepted>,
    /// How often the sender repeated it (acked again, not delivered again).
    pub repeated: u32,
    /// How often the service refused it (a fault, or a stanza it could not route).
    pub refused: u32,
    /// How often it came with other ciphertexts than the first time, resends to single devices left aside.
    pub changed: u32,
    /// A hash of the first ones.
    #[serde(skip)]
    first: Option<[u8; 32]>,
    /// What became of it, per device it was meant for.
    #[serde(serialize_with = "as_list")]
    pub recipients: BTreeMap<DeviceId, RecipientLog>,
}

impl MessageLog {
    /// Whether it comes with the same ciphertexts as ever.
    pub(super) fn says(&mut self, hash: [u8; 32]) -> bool {
        *self.first.get_or_insert(hash) == hash
    }
}

/// One acceptance.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    /// When.
    pub at: Stamp,
    /// The stanza's `to`, as written.
    pub to: String,
    /// The stanza's `category`, `peer` for messages between an account's own devices.
    pub category: Option<String>,
    /// Whether it was a resend to one device.
    pub resend: bool,
}

/// One recipient device's side of a message.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RecipientLog {
    /// Each time the stanza was put on a connection.
    pub deliveries: Vec<Delivery>,
    /// Receipts of this device, in order: the type (`delivered` when there is none).
    pub receipts: Vec<(Stamp, String)>,
    /// Plain acks of this device, with the error code if there was one.
    pub acks: Vec<(Stamp, Option<String>)>,
    /// Retry receipts among the receipts.
    pub retries: u32,
}

/// One delivery.
#[derive(Clone, Debug, Serialize)]
pub struct Delivery {
    /// When.
    pub at: Stamp,
    /// On which connection; none for the scripted phone.
    pub conn: Option<ConnId>,
    /// With the attribute `offline`.
    pub offline: bool,
    /// A fault lost it on the way.
    pub dropped: bool,
    /// A fault damaged the ciphertext.
    pub corrupted: bool,
}

/// One device's connections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceLog {
    /// In order of login.
    pub connections: Vec<ConnectionLog>,
    /// Moments in which the device logged in while another connection of it was live: (when, old, new).
    pub live_twice: Vec<(Stamp, ConnId, ConnId)>,
    /// Pre-key uploads: (when, one-time keys in it).
    pub uploads: Vec<(Stamp, usize)>,
    /// Bundles given out: (when, to whom, one-time key id if there was one left).
    pub bundles: Vec<(Stamp, DeviceId, Option<u32>)>,
}

/// One connection of a device, from login to end.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionLog {
    /// Which.
    pub conn: ConnId,
    /// The socket was opened.
    pub opened: Stamp,
    /// Login accepted.
    pub login: Stamp,
    /// `XX`, `IK` or `XXfallback`.
    pub handshake: &'static str,
    /// When the client said `active`.
    pub active: Option<Stamp>,
    /// When and why it ended.
    pub closed: Option<(Stamp, &'static str)>,
}

/// Text that a scripted phone could read.
#[derive(Clone, Debug, Serialize)]
pub struct PhoneText {
    /// The phone that read it.
    pub phone: DeviceId,
    /// The device that encrypted it.
    pub sender: DeviceId,
    /// The stanza id.
    pub id: String,
    /// The chat of a copy of an own message; none for messages from others.
    pub destination: Option<String>,
    /// What it said; none for content that is not text.
    pub text: Option<String>,
    /// When.
    pub at: Stamp,
}

/// A chunk of history that a phone has announced.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryLog {
    /// To whom.
    pub to: DeviceId,
    /// By the message of this id.
    pub id: String,
    /// What is in it.
    #[serde(skip)]
    pub chunk: super::history::Chunk,
    /// The device says that it has it.
    pub received: bool,
}

/// Something that must never happen, whatever fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "violation", rename_all = "snake_case")]
pub enum Violation {
    /// One (ratchet key, counter) of one session carried two different ciphertexts.
    KeyUsedTwice {
        /// Who encrypted twice.
        sender: DeviceId,
        /// For whom.
        recipient: DeviceId,
        /// The sending ratchet key, in hex.
        ratchet_key: String,
        /// The counter under it.
        counter: u32,
        /// SHA-256 of the first ciphertext, in hex.
        first: String,
        /// SHA-256 of the other, in hex.
        second: String,
        /// The message that carried the other.
        id: String,
        /// When the first one came.
        first_at: Stamp,
        /// When the second one came.
        at: Stamp,
    },
    /// One pre-key id of one device was given two different keys.
    PreKeyRebound {
        /// Whose.
        device: DeviceId,
        /// One-time or signed.
        kind: KeyKind,
        /// The id.
        id: u32,
        /// The key it had, in hex.
        first: String,
        /// The key it was given, in hex.
        second: String,
        /// When.
        at: Stamp,
    },
    /// A device's patch of settings that does not add up: the phone, which has the keys, cannot take it in.
    BadPatch {
        /// Whose.
        device: DeviceId,
        /// Of which collection.
        collection: String,
        /// The version that it was given.
        version: u64,
        /// What is wrong.
        why: String,
        /// When.
        at: Stamp,
    },
    /// A device uploaded an identity other than the one it was paired with.
    IdentityChanged {
        /// Whose.
        device: DeviceId,
        /// When.
        at: Stamp,
    },
}

impl Violation {
    /// Who has broken the rule, and what stands in the books about when (in microseconds).
    #[must_use]
    pub fn moments(&self) -> (&DeviceId, Vec<(u64, String)>) {
        match self {
            Self::KeyUsedTwice {
                sender,
                counter,
                first_at,
                at,
                ..
            } => {
                let first = format!("the key of counter {counter} is used");
                let second = format!("the key of counter {counter} is used for something else");
                (sender, vec![(first_at.micros, first), (at.micros, second)])
            }
            Self::PreKeyRebound { device, id, at, .. } => {
                let words = format!("pre-key {id} is another key than before");
                (device, vec![(at.micros, words)])
            }
            Self::BadPatch {
                device,
                collection,
                version,
                at,
                ..
            } => {
                let words = format!("the patch that makes {collection} version {version}");
                (device, vec![(at.micros, words)])
            }
            Self::IdentityChanged { device, at } => {
                let words = "another identity is uploaded".to_owned();
                (device, vec![(at.micros, words)])
            }
        }
    }
}

/// Which of a device's two series of pre-keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Used once.
    OneTime,
    /// Used until rotated.
    Signed,
}

/// A client broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Anomaly {
    /// When.
    pub at: Stamp,
    /// On which connection, if on one.
    pub conn: Option<ConnId>,
    /// Which device, if it is known.
    pub device: Option<DeviceId>,
    /// What, in words.
    pub what: String,
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// Monotonic microseconds, as passed in.
    pub micros: u64,
    /// Wall clock, as passed in.
    pub unix_millis: i64,
}

impl From<Now> for Stamp {
    fn from(now: Now) -> Self {
        Self {
            micros: now.mono.0,
            unix_millis: now.unix.0,
        }
    }
}

/// Numbers per message id, for a quick look.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// One line per message id.
    pub messages: Vec<MessageSummary>,
    /// All of them, in order of discovery.
    pub violations: Vec<Violation>,
    /// All of them that were kept, in order.
    pub anomalies: Vec<Anomaly>,
    /// Texts read by scripted phones.
    pub texts: usize,
}

/// The counts of one message id.
#[derive(Clone, Debug, Serialize)]
pub struct MessageSummary {
    /// The sending device.
    pub sender: DeviceId,
    /// The stanza id.
    pub id: String,
    /// Times accepted, resends to single devices included.
    pub accepted: usize,
    /// Times repeated by the sender.
    pub repeated: u32,
    /// Deliveries over all devices.
    pub delivered: usize,
    /// Devices that sent a receipt other than `retry`.
    pub receipted: usize,
    /// Retry receipts.
    pub retried: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Relay {
    sender: DeviceId,
    recipient: DeviceId,
    ratchet_key: PublicKey,
    counter: u32,
}

impl Books {
    /// More anomalies than this are counted, not kept: a fuzzer makes one per stanza.
    pub const ANOMALIES_KEPT: usize = 10_000;

    /// Broken rules, in order of discovery. Empty is the only good answer.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Violations of one kind: message keys that encrypted two different things.
    pub fn keys_used_twice(&self) -> impl Iterator<Item = &Violation> {
        self.violations
            .iter()
            .filter(|v| matches!(v, Violation::KeyUsedTwice { .. }))
    }

    /// What clients did against the protocol, the first [`Self::ANOMALIES_KEPT`] of them.
    #[must_use]
    pub fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }

    /// The life of one message.
    #[must_use]
    pub fn message(&self, sender: &DeviceId, id: &str) -> Option<&MessageLog> {
        self.messages.get(&MessageKey {
            sender: sender.clone(),
            id: id.to_owned(),
        })
    }

    /// All messages, by sender and id.
    pub fn messages(&self) -> impl Iterator<Item = (&MessageKey, &MessageLog)> {
        self.messages.iter()
    }

    /// One device's connections.
    #[must_use]
    pub fn device(&self, device: &DeviceId) -> Option<&DeviceLog> {
        self.devices.get(device)
    }

    /// All devices that ever logged in or put keys into the vault.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &DeviceLog)> {
        self.devices.iter()
    }

    /// What scripted phones could read, in order.
    #[must_use]
    pub fn texts(&self) -> &[PhoneText] {
        &self.texts
    }

    /// Chunks of history that phones have announced, in order.
    #[must_use]
    pub fn histories(&self) -> &[HistoryLog] {
        &self.histories
    }

    pub(super) fn histories_mut(&mut self) -> &mut Vec<HistoryLog> {
        &mut self.histories
    }

    /// Counts per message id, violations and anomalies.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let messages = self.messages.iter().map(|(key, log)| MessageSummary {
            sender: key.sender.clone(),
            id: key.id.clone(),
            accepted: log.accepted.len(),
            repeated: log.repeated,
            delivered: log.recipients.values().map(|r| r.deliveries.len()).sum(),
            receipted: log
                .recipients
                .values()
                .filter(|r| r.receipts.iter().any(|(_, kind)| kind != "retry"))
                .count(),
            retried: log.recipients.values().map(|r| r.retries).sum(),
        });
        Summary {
            messages: messages.collect(),
            violations: self.violations.clone(),
            anomalies: self.anomalies.clone(),
            texts: self.texts.len(),
        }
    }

    /// Whether a device ever got this message; none if the message is not in the books at all.
    pub(super) fn was_delivered(&self, sender: &DeviceId, id: &str, to: &DeviceId) -> Option<bool> {
        let log = self.message(sender, id)?;
        Some(
            log.recipients
                .get(to)
                .is_some_and(|r| !r.deliveries.is_empty()),
        )
    }

    /// Whether `sender` sent a message with this id to `to`, among others.
    pub(super) fn was_meant_for(&self, sender: &DeviceId, id: &str, to: &DeviceId) -> bool {
        self.message(sender, id)
            .is_some_and(|log| log.recipients.contains_key(to))
    }

    /// Who sent the message that `to` got under this id, when only one such is known.
    pub(super) fn sender_of(&self, id: &str, to: &DeviceId) -> Option<DeviceId> {
        let mut found = self
            .messages
            .iter()
            .filter(|(key, log)| key.id == id && log.recipients.contains_key(to))
            .map(|(key, _)| key);
        let first = found.next()?;
        found.next().is_none().then(|| first.sender.clone())
    }

    pub(super) fn message_mut(&mut self, sender: &DeviceId, id: &str) -> &mut MessageLog {
        self.messages
            .entry(MessageKey {
                sender: sender.clone(),
                id: id.to_owned(),
            })
            .or_default()
    }

    pub(super) fn recipient_mut(
        &mut self,
        sender: &DeviceId,
        id: &str,
        to: &DeviceId,
    ) -> &mut RecipientLog {
        self.message_mut(sender, id)
            .recipients
            .entry(to.clone())
            .or_default()
    }

    pub(super) fn device_mut(&mut self, device: &DeviceId) -> &mut DeviceLog {
        self.devices.entry(device.clone()).or_default()
    }

    pub(super) fn connection_mut(
        &mut self,
        device: &DeviceId,
        conn: ConnId,
    ) -> Option<&mut ConnectionLog> {
        self.devices
            .get_mut(device)?
            .connections
            .iter_mut()
            .rev()
            .find(|log| log.conn == conn)
    }

    pub(super) fn text(&mut self, text: PhoneText) {
        self.texts.push(text);
    }

    /// Books one ciphertext that passed the service. The same bytes again are a retransmission and fine.
    pub(super) fn relay(
        &mut self,
        sender: &DeviceId,
        recipient: &DeviceId,
        (ratchet_key, counter): (PublicKey, u32),
        hash: [u8; 32],
        id: &str,
        now: Now,
    ) {
        let relay = Relay {
            sender: sender.clone(),
            recipient: recipient.clone(),
            ratchet_key,
            counter,
        };
        let now = now.into();
        let (first, first_at) = *self.relays.entry(relay).or_insert((hash, now));
        if first != hash {
            self.violations.push(Violation::KeyUsedTwice {
                sender: sender.clone(),
                recipient: recipient.clone(),
                ratchet_key: hex(ratchet_key.as_bytes()),
                counter,
                first: hex(&first),
                second: hex(&hash),
                id: id.to_owned(),
                first_at,
                at: now,
            });
        }
    }

    /// Books that `id`, which `device` had bound to `first`, now names `second`.
    pub(super) fn rebound(
        &mut self,
        device: &DeviceId,
        kind: KeyKind,
        id: u32,
        (first, second): (PublicKey, PublicKey),
        now: Now,
    ) {
        self.violations.push(Violation::PreKeyRebound {
            device: device.clone(),
            kind,
            id,
            first: hex(first.as_bytes()),
            second: hex(second.as_bytes()),
            at: now.into(),
        });
    }

    pub(super) fn violation(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    pub(super) fn anomaly(
        &mut self,
        conn: Option<ConnId>,
        device: Option<&DeviceId>,
        what: String,
        now: Now,
    ) {
        if self.anomalies.len() >= Self::ANOMALIES_KEPT {
            self.anomalies_dropped += 1;
            return;
        }
        self.anomalies.push(Anomaly {
            at: now.into(),
            conn,
            device: device.cloned(),
            what,
        });
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| DIGITS[usize::from(value)];
    let digits: Vec<u8> = (bytes.iter())
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect();
    // Digits are ASCII.
    String::from_utf8(digits).unwrap_or_default()
}

/// JSON keys are text; ours are structures. So a map is written as a list of `{key, value}`.
fn as_list<K: Serialize, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    to: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a, K, V> {
        key: &'a K,
        #[serde(flatten)]
        value: &'a V,
    }
    to.collect_seq(map.iter().map(|(key, value)| Row { key, value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::{Micros, UnixMillis};

    const NOW: Now = Now {
        mono: Micros(5),
        unix: UnixMillis(7),
    };

    fn device(number: u16) -> DeviceId {
        DeviceId::new("15550000001", number)
    }

    #[test]
    fn the_same_ciphertext_again_is_fine_and_another_one_is_not() {
        let mut books = Books::default();
        let key = PublicKey::from_bytes([3; 32]);
        books.relay(&device(1), &device(2), (key, 0), [1; 32], "A", NOW);
        books.relay(&device(1), &device(2), (key, 0), [1; 32], "A", NOW);
        books.relay(&device(1), &device(2), (key, 1), [2; 32], "B", NOW);
        books.relay(&device(2), &device(1), (key, 0), [9; 32], "C", NOW);
        assert_eq!(books.violations(), []);
        books.relay(&device(1), &device(2), (key, 1), [3; 32], "D", NOW);
        assert_eq!(books.keys_used_twice().count(), 1);
    }

    #[test]
    fn anomalies_are_bounded() {
        let mut books = Books::default();
        for _ in 0..Books::ANOMALIES_KEPT + 5 {
            books.anomaly(None, None, "noise".into(), NOW);
        }
        assert_eq!(books.anomalies().len(), Books::ANOMALIES_KEPT);
        assert_eq!(books.anomalies_dropped, 5);
    }

    #[test]
    fn books_are_json() {
        let mut books = Books::default();
        books.recipient_mut(&device(1), "A", &device(2)).retries = 1;
        books.device_mut(&device(1)).uploads.push((NOW.into(), 3));
        let json = serde_json::to_value(&books).expect("json");
        assert_eq!(json["messages"][0]["key"]["sender"], "15550000001:1");
        assert_eq!(json["messages"][0]["recipients"][0]["retries"], 1);
    }
}
