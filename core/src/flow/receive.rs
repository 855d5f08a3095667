//! Receiving a message: decrypt, keep, then acknowledge (fact sheets 05.8, 07.8).
//!
//! One message is one step: ratchet, consumed pre-key, duplicate mark and event go into one batch, and the receipt that
//! makes the service forget the message stands behind it at the gate. A message that comes again is known by its mark,
//! whatever happened to the ratchet meanwhile, and is only acknowledged again.

use super::{Context, Event, Message, adv, devices, inbox, pre_keys, retry::Retries, sync};
use crate::{
    crypto::sha256,
    jid::{Jid, Server},
    limits::MESSAGE_PARTS,
    proto::{bounded::decode_within, e2e, record},
    signal::{self, DecryptError, PreKeyMessage, SenderKeyRecord, SessionRecord},
    state::{Key, MessageId, codec},
    wire::node::Node,
};
use prost::Message as _;

/// A stanza with more ciphertexts than this is refused: what is in the rest would be lost unseen.
const CIPHERTEXTS: usize = crate::limits::CIPHERTEXTS;

/// Longest decrypted message that is taken in: half of what a row can hold.
const CONTENT_BYTES: usize = crate::limits::MESSAGE_RECEIVED;

/// Longest name of an author that is kept.
const NAME_BYTES: usize = crate::limits::NAME;

/// Codes with which a stanza is refused (fact sheet 04.5).
const NACK_PARSING: u16 = 487;
const NACK_UNRECOGNIZED: u16 = 488;
const NACK_PROTOBUF: u16 = 491;

/// Reason codes of retry receipts that are not a [`DecryptError`]'s (fact sheet 05.15).
const RETRY_ADV: u8 = 12;
const RETRY_KEY_MISSING: u8 = 9;

/// Who wrote what where.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) id: MessageId,
    /// As it stands in the stanza.
    pub(crate) from: Jid,
    /// The conversation, without device.
    pub(crate) chat: Jid,
    /// The author's device.
    pub(crate) sender: Jid,
    /// The author's other address.
    pub(crate) alt: Option<Jid>,
    pub(crate) from_me: bool,
    pub(crate) peer: bool,
}

impl Incoming {
    /// Reads the addressing of a message stanza. `None` if it does not say who wrote it.
    pub(crate) fn read(cx: &Context, stanza: &Node) -> Option<Self> {
        let id = stanza
            .get_string("id")
            .filter(|id| !id.is_empty() && id.len() <= crate::limits::MESSAGE_ID)?;
        let from = stanza.get_jid("from")?;
        let in_group = from.is_group() || from.is_broadcast();
        let sender = normal(if in_group {
            stanza.get_jid("participant")?
        } else {
            from.clone()
        });
        if !sender.is_user() {
            return None;
        }
        let from_me = cx.account.is_mine(&sender);
        let recipient = stanza.get_jid("recipient");
        let chat = if in_group {
            from.clone()
        } else if from_me {
            recipient.map_or_else(|| sender.bare(), |recipient| recipient.bare())
        } else {
            sender.bare()
        };
        let alt = if sender.is_lid() {
            ["sender_pn", "participant_pn"]
        } else {
            ["sender_lid", "participant_lid"]
        };
        let alt = alt
            .iter()
            .find_map(|name| stanza.get_jid(name))
            .map(|jid| normal(jid).bare());
        let alt = alt.filter(|alt| alt.is_pn() != sender.is_pn() && alt.is_user());
        let alt = if from_me { other_own(cx, &sender) } else { alt };
        let peer = stanza.get_str("category") == Some("peer");
        Some(Self {
            id: id.into(),
            from,
            chat: normal(chat),
            sender,
            alt,
            from_me,
            peer,
        })
    }

    /// The duplicate marks it may have left: while its author's LID was not known, under the phone number.
    fn marks(&self, address: &Jid) -> Vec<Key> {
        let alt = self.alt.as_ref();
        let alt = alt.map(|alt| alt.bare().with_device(self.sender.device()));
        let mut marks: Vec<Key> = [Some(address), Some(&self.sender), alt.as_ref()]
            .into_iter()
            .flatten()
            .map(|author| mark(author, &self.id))
            .collect();
        marks.sort();
        marks.dedup();
        marks
    }

    /// The phone number and the LID of the author, if both are in the stanza.
    fn pair(&self) -> Option<(&str, &Jid)> {
        let alt = self.alt.as_ref()?;
        if self.sender.is_lid() {
            Some((alt.phone()?, &self.sender))
        } else {
            Some((self.sender.phone()?, alt))
        }
    }
}

/// Hosted devices are filed with the user they belong to.
fn normal(jid: Jid) -> Jid {
    let server = match jid.server() {
        Server::Hosted => Server::User,
        Server::HostedLid => Server::Lid,
        _ => return jid,
    };
    Jid::new(jid.user(), server)
        .map(|plain| plain.with_device(jid.device()))
        .unwrap_or(jid)
}

fn other_own(cx: &Context, own: &Jid) -> Option<Jid> {
    let other = if own.is_lid() {
        &cx.account.jid
    } else {
        &cx.account.lid
    };
    other.as_ref().map(Jid::bare)
}

/// The address under which sessions with a device are filed: the LID as soon as it is known. Needs the row of
/// [`address_needs`].
pub(crate) fn address(cx: &mut Context, device: &Jid, alt: Option<&Jid>) -> Jid {
    if !device.is_pn() {
        return device.clone();
    }
    if cx.account.is_mine(device) {
        return cx.account.lid.as_ref().map_or_else(
            || device.clone(),
            |lid| lid.bare().with_device(device.device()),
        );
    }
    match alt.filter(|alt| alt.is_lid()) {
        Some(lid) => lid.bare().with_device(device.device()),
        None => devices::lid_of(cx, device).unwrap_or_else(|| device.clone()),
    }
}

/// The row that [`address`] reads.
pub(crate) fn address_needs(device: &Jid) -> Option<Key> {
    device.phone().map(|phone| Key::LidMap(phone.into()))
}

/// The duplicate mark of a message: who sent which id. A retry is sent under the same id by the same device, so the
/// mark also catches a copy that was asked for and came after the original.
fn mark(sender: &Jid, id: &str) -> Key {
    Key::Seen(sha256(&[
        b"seen",
        sender.to_string().as_bytes(),
        &[0],
        id.as_bytes(),
    ]))
}

fn has_too_many_ciphertexts(stanza: &Node) -> bool {
    stanza.find_all("enc").nth(CIPHERTEXTS).is_some()
}

/// An `enc` that does not say what it is, or holds nothing. Passed over, it would be acknowledged as if it had been read;
/// so it is one that does not decrypt.
fn has_hollow_ciphertext(stanza: &Node) -> bool {
    let holds = |enc: &Node| enc.get_str("type").is_some() && enc.data().is_some();
    !stanza.find_all("enc").all(holds)
}

fn ciphertexts(stanza: &Node) -> impl Iterator<Item = (&Node, &str, &[u8])> {
    let all = stanza.find_all("enc").take(CIPHERTEXTS);
    all.filter_map(|enc| Some((enc, enc.get_str("type")?, enc.data()?)))
}

/// Rows that [`message`] reads. Asked again after each load, because what is found decides what else is needed.
pub(crate) fn needs(cx: &mut Context, stanza: &Node) -> Vec<Key> {
    let Some(incoming) = Incoming::read(cx, stanza) else {
        return Vec::new();
    };
    let mut keys: Vec<Key> = Vec::new();
    keys.extend(incoming.pair().map(|(phone, _)| Key::LidMap(phone.into())));
    keys.extend(address_needs(&incoming.sender));
    if keys.iter().any(|key| !cx.rows.knows(key)) {
        return keys;
    }
    let address = address(cx, &incoming.sender, incoming.alt.as_ref());
    keys.extend(incoming.marks(&address));
    keys.push(Key::Session(address.clone()));
    keys.push(Key::Identity(address.clone()));
    if address != incoming.sender {
        keys.push(Key::Session(incoming.sender.clone()));
    }
    for (_, kind, bytes) in ciphertexts(stanza) {
        if kind == "pkmsg" {
            let named = PreKeyMessage::parse(bytes)
                .ok()
                .and_then(|message| message.pre_key_id);
            keys.extend(named.map(Key::PreKey));
        }
    }
    if incoming.chat.is_group() || incoming.chat.is_broadcast() {
        keys.push(Key::SenderKey {
            group: incoming.chat,
            sender: address,
        });
    }
    keys
}

/// Why one ciphertext did not become a message.
enum Failure {
    /// Had before; nothing to do.
    Duplicate,
    /// Ask for it again, for this reason; `true` if only a fresh bundle of ours will help.
    Retry(u8, bool),
    /// No use asking; refuse with this code.
    Refuse(u16),
}

impl From<DecryptError> for Failure {
    fn from(error: DecryptError) -> Self {
        if matches!(error, DecryptError::Duplicate) {
            return Self::Duplicate;
        }
        Self::Retry(error.retry_reason().unwrap_or(0), false)
    }
}

/// Takes in a message.
pub(crate) fn message(cx: &mut Context, retries: &mut Retries, stanza: &Node) {
    // Channels are not end-to-end encrypted and have no authors: not for us yet, but in order.
    if stanza
        .get_jid("from")
        .is_some_and(|from| from.is_newsletter())
    {
        cx.acknowledge(stanza, None);
        return;
    }
    let Some(incoming) = Incoming::read(cx, stanza) else {
        cx.acknowledge(stanza, Some(NACK_PARSING));
        cx.protocol_error("a message without usable address");
        return;
    };
    if let Some((phone, lid)) = incoming.pair() {
        let lid = lid.user().to_owned();
        let phone = phone.to_owned();
        let known: Option<record::LidMapping> = cx.read(&Key::LidMap(phone.as_str().into()));
        if known.and_then(|row| row.lid).as_deref() != Some(&lid) {
            devices::learn(cx, &phone, &lid);
        }
    }
    let address = address(cx, &incoming.sender, incoming.alt.as_ref());
    let mark = mark(&address, &incoming.id);
    let marks = incoming.marks(&address);
    if marks.iter().any(|mark| cx.rows.get(mark).is_some()) {
        cx.stats.duplicates += 1;
        receipt(cx, stanza, &incoming);
        return;
    }
    if stanza.find("enc").is_none() {
        // "unavailable": the service has no ciphertext for this device. Anything else without one is not for us.
        let known = stanza.find("unavailable").is_some();
        cx.acknowledge(stanza, (!known).then_some(NACK_UNRECOGNIZED));
        if known {
            let Incoming {
                id, chat, sender, ..
            } = incoming;
            cx.emit(Event::Undecryptable { id, chat, sender });
        }
        return;
    }
    let mut texts = Vec::new();
    let mut failure = if has_too_many_ciphertexts(stanza) {
        Some(Failure::Refuse(NACK_PARSING))
    } else {
        has_hollow_ciphertext(stanza).then_some(Failure::Retry(0, false))
    };
    let mut had = false;
    // The pairwise ciphertexts first: one of them may carry the sender key that the others need.
    let mut parts: Vec<(&Node, &str, &[u8])> = match failure {
        None => ciphertexts(stanza).collect(),
        Some(_) => Vec::new(),
    };
    parts.sort_by_key(|(_, kind, _)| *kind == "skmsg");
    for (enc, kind, bytes) in parts {
        let result = match kind {
            "pkmsg" => pre_key_message(cx, stanza, &incoming, &address, bytes),
            "msg" => plain_message(cx, &incoming, &address, bytes),
            "skmsg" => group_message(cx, &incoming, &address, bytes),
            _ => Err(Failure::Refuse(NACK_UNRECOGNIZED)),
        };
        let result = result.and_then(|padded| {
            let plain = if enc.get_str("v") == Some("3") {
                &padded[..]
            } else {
                unpad(&padded)?
            };
            content(cx, &incoming, &address, plain)
        });
        match result {
            Ok(content) => texts.extend(content),
            // The part with the sender key can have been taken in before, when the part that needs it failed.
            Err(Failure::Duplicate) => had = true,
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    match failure {
        // Its key is used up, and not by it: a sender that loses a step of its ratchet uses a key for two messages, and
        // this is the second of them. Dropped as a duplicate it would be lost.
        None | Some(Failure::Duplicate) if had && texts.is_empty() => {
            cx.stats.decrypt_failures += 1;
            retries.ask(cx, stanza, &incoming, RETRY_KEY_MISSING, false);
        }
        None | Some(Failure::Duplicate) => {
            let mut seen = record::Seen::default();
            for content in texts {
                seen.event = Some(show(cx, stanza, &incoming, content).0);
            }
            cx.put(mark, codec::encode(&seen));
            receipt(cx, stanza, &incoming);
        }
        Some(Failure::Refuse(code)) => {
            cx.protocol_error(format!("a message is refused with code {code}"));
            cx.put(mark, codec::encode(&record::Seen::default()));
            cx.acknowledge(stanza, Some(code));
        }
        Some(Failure::Retry(reason, with_keys)) => {
            cx.stats.decrypt_failures += 1;
            retries.ask(cx, stanza, &incoming, reason, with_keys);
        }
    }
}

fn unpad(padded: &[u8]) -> Result<&[u8], Failure> {
    signal::unpad(padded).map_err(|_| Failure::Refuse(NACK_PROTOBUF))
}

/// The session with a device; one that is still filed under its phone number counts.
fn session(cx: &mut Context, incoming: &Incoming, address: &Jid) -> (Option<SessionRecord>, bool) {
    if let Some(session) = devices::session(cx, &Key::Session(address.clone())) {
        return (Some(session), false);
    }
    if *address == incoming.sender {
        return (None, false);
    }
    let old = devices::session(cx, &Key::Session(incoming.sender.clone()));
    let moved = old.is_some();
    (old, moved)
}

/// How far a counter may jump. Our own devices may be far ahead after we were offline; a stranger who jumps far makes
/// us hash for nothing.
fn limits(incoming: &Incoming) -> signal::Limits {
    if incoming.from_me {
        signal::Limits::OWN_DEVICE
    } else {
        signal::Limits::PEER
    }
}

fn keep(
    cx: &mut Context,
    incoming: &Incoming,
    address: &Jid,
    session: &SessionRecord,
    moved: bool,
) {
    cx.put(
        Key::Session(address.clone()),
        codec::wrap(&session.encode()),
    );
    if moved {
        cx.delete(Key::Session(incoming.sender.clone()));
    }
}

fn plain_message(
    cx: &mut Context,
    incoming: &Incoming,
    address: &Jid,
    bytes: &[u8],
) -> Result<Vec<u8>, Failure> {
    let (session, moved) = session(cx, incoming, address);
    let mut session = session.ok_or(DecryptError::NoSession)?;
    let padded = signal::decrypt_within(
        limits(incoming),
        &mut session,
        &cx.account.local(),
        bytes,
        &mut cx.rng,
    )?;
    keep(cx, incoming, address, &session, moved);
    Ok(padded)
}

fn pre_key_message(
    cx: &mut Context,
    stanza: &Node,
    incoming: &Incoming,
    address: &Jid,
    bytes: &[u8],
) -> Result<Vec<u8>, Failure> {
    let message = PreKeyMessage::parse(bytes).map_err(|_| DecryptError::InvalidMessage)?;
    if let Some(proof) = stanza
        .find("device-identity")
        .and_then(Node::data)
        .filter(|_| address.device() != 0)
        && adv::verify_companion(proof, &message.identity_key).is_err()
    {
        return Err(Failure::Retry(RETRY_ADV, true));
    }
    let (session, moved) = session(cx, incoming, address);
    let mut session = session.unwrap_or_else(|| devices::new_session(cx));
    let one_time = message
        .pre_key_id
        .and_then(|id| pre_keys::load(cx, id, true));
    let signed = cx.account.signed_pre_key_by_id(message.signed_pre_key_id);
    let local = cx.account.local();
    let padded = signal::decrypt_pre_key_within(
        limits(incoming),
        &mut session,
        &local,
        &message,
        signed,
        one_time.as_ref(),
        &mut cx.rng,
    )?;
    keep(cx, incoming, address, &session, moved);
    // Deleted in the batch that makes the session durable, never before: a lost key cannot be made again.
    if let (Some(id), Some(_)) = (message.pre_key_id, one_time) {
        cx.delete(Key::PreKey(id));
    }
    devices::trust(cx, address, &message.identity_key);
    Ok(padded)
}

fn group_message(
    cx: &mut Context,
    incoming: &Incoming,
    address: &Jid,
    bytes: &[u8],
) -> Result<Vec<u8>, Failure> {
    if !(incoming.chat.is_group() || incoming.chat.is_broadcast()) {
        return Err(Failure::Refuse(NACK_UNRECOGNIZED));
    }
    let key = Key::SenderKey {
        group: incoming.chat.clone(),
        sender: address.clone(),
    };
    // Without the key only a message that carries it again helps, and for that the sender wants our bundle.
    let mut sender_key = cx
        .read_with(&key, sender_key_from)
        .ok_or(Failure::Retry(1, true))?;
    let padded = sender_key
        .decrypt_within(limits(incoming), bytes)
        .map_err(|error| match Failure::from(error) {
            Failure::Retry(reason, _) => Failure::Retry(reason, true),
            other => other,
        })?;
    cx.put(key, codec::wrap(&sender_key.encode()));
    Ok(padded)
}

fn sender_key_from(row: &crate::state::Record) -> Result<SenderKeyRecord, ()> {
    SenderKeyRecord::decode(codec::payload(row).map_err(|_| ())?).map_err(|_| ())
}

/// Unwraps a decrypted message and does what it asks of this device. `None` if there is nothing to show.
fn content(
    cx: &mut Context,
    incoming: &Incoming,
    address: &Jid,
    plain: &[u8],
) -> Result<Option<Vec<u8>>, Failure> {
    if plain.len() > CONTENT_BYTES {
        // It would not fit into a row; kept back, it would come again for ever.
        return Err(Failure::Refuse(NACK_PROTOBUF));
    }
    let decode = |bytes| decode_within::<e2e::Message>(bytes, MESSAGE_PARTS);
    let message = decode(plain).map_err(|_| Failure::Refuse(NACK_PROTOBUF))?;
    if let Some(distribution) = &message.sender_key_distribution_message {
        sender_key(cx, incoming, address, distribution);
    }
    if let Some(copy) = message.device_sent_message {
        if !incoming.from_me {
            // Only our own devices may say what we said.
            return Err(Failure::Refuse(NACK_PROTOBUF));
        }
        let inner = copy.message.unwrap_or_default();
        decode(inner.as_slice()).map_err(|_| Failure::Refuse(NACK_PROTOBUF))?;
        return Ok(Some(inner));
    }
    if let Some(protocol) = message
        .protocol_message
        .as_ref()
        .filter(|_| incoming.from_me && incoming.sender.device() == 0)
        && from_phone(cx, &incoming.id, protocol)
    {
        return Ok(None);
    }
    let bare = e2e::Message {
        sender_key_distribution_message: message.sender_key_distribution_message,
        message_context_info: message.message_context_info,
        ..Default::default()
    };
    Ok((bare.encoded_len() != plain.len()).then(|| plain.to_vec()))
}

fn sender_key(
    cx: &mut Context,
    incoming: &Incoming,
    address: &Jid,
    distribution: &e2e::SenderKeyDistributionMessage,
) {
    let group = distribution
        .group_id
        .as_deref()
        .and_then(|id| id.parse::<Jid>().ok());
    if group.as_ref() != Some(&incoming.chat)
        || !(incoming.chat.is_group() || incoming.chat.is_broadcast())
    {
        cx.protocol_error("a sender key for another chat");
        return;
    }
    let key = Key::SenderKey {
        group: incoming.chat.clone(),
        sender: address.clone(),
    };
    let mut sender_key = cx.read_with(&key, sender_key_from).unwrap_or_default();
    let bytes = distribution
        .axolotl_sender_key_distribution_message
        .as_deref()
        .unwrap_or_default();
    match sender_key.process(bytes) {
        Ok(()) => cx.put(key, codec::wrap(&sender_key.encode())),
        Err(_) => cx.protocol_error("a malformed sender key"),
    }
}

/// What the own phone tells its companions: keys for app state, chunks of history, LIDs of contacts. Returns whether it is
/// for the engine alone: it has keys in it, and is not to be shown.
fn from_phone(cx: &mut Context, id: &MessageId, protocol: &e2e::ProtocolMessage) -> bool {
    let mut taken = false;
    if let Some(share) = &protocol.app_state_sync_key_share {
        sync::keys_shared(cx, share);
        taken = true;
    }
    if let Some(notification) = &protocol.history_sync_notification {
        sync::history_announced(cx, id, notification);
        taken = true;
    }
    let answer = protocol
        .peer_data_operation_request_response_message
        .as_deref();
    if let Some(answer) = answer {
        taken |= sync::phone_answered(cx, answer);
    }
    let payload = protocol.lid_migration_mapping_sync_message.as_ref();
    let payload = payload.and_then(|message| message.encoded_mapping_payload.as_deref());
    let Some(payload) = payload else { return taken };
    match decode_within::<e2e::LidMigrationMappingSyncPayload>(payload, MESSAGE_PARTS) {
        Ok(payload) => {
            for pair in payload.pn_to_lid_mappings {
                if let (Some(phone), Some(lid)) = (pair.pn, pair.latest_lid.or(pair.assigned_lid)) {
                    devices::learn(cx, &phone.to_string(), &lid.to_string());
                }
            }
        }
        Err(_) => cx.protocol_error("a malformed LID mapping"),
    }
    taken
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES
}

fn show(
    cx: &mut Context,
    stanza: &Node,
    incoming: &Incoming,
    content: Vec<u8>,
) -> crate::state::EventSeq {
    cx.stats.messages_in += 1;
    let at = stanza
        .get_u64("t")
        .and_then(|t| i64::try_from(t).ok())
        .unwrap_or_else(|| cx.unix());
    if let Ok(decoded) = e2e::Message::decode(content.as_slice()) {
        let Incoming {
            id, chat, sender, ..
        } = incoming;
        sync::secret_shown(cx, chat, sender, id, &decoded);
    }
    let name = stanza.get_string("notify").filter(|name| name != "-");
    if name.as_ref().is_some_and(|name| !is_name(name)) {
        cx.protocol_error("a message whose author's name is too long, which is left out");
    }
    let message = Message {
        id: incoming.id.clone(),
        chat: incoming.chat.clone(),
        sender: incoming.sender.clone(),
        sender_alt: incoming.alt.clone(),
        from_me: incoming.from_me,
        at,
        push_name: name.filter(|name| is_name(name)),
        offline: stanza.get("offline").is_some(),
        peer: incoming.peer,
        text: inbox::text_of(&content),
        content: content.into(),
    };
    cx.emit(Event::Message(Box::new(message)))
}

/// Tells the service (and the author) that we have the message (fact sheets 04.8, 07.8).
fn receipt(cx: &mut Context, stanza: &Node, incoming: &Incoming) {
    let in_group = incoming.chat.is_group() || incoming.chat.is_broadcast();
    let kind = if incoming.peer {
        Some("peer_msg")
    } else if incoming.from_me {
        Some("sender")
    } else if cx.available {
        None
    } else {
        Some("inactive")
    };
    let recipient = stanza
        .get_jid("recipient")
        .filter(|_| incoming.from_me && !incoming.peer);
    let status = incoming.chat.is_broadcast() && incoming.chat.user() == "status";
    let receipt = Node::new("receipt")
        .attr("id", incoming.id.clone())
        .attr("to", &incoming.from)
        .attr_opt("type", kind)
        .attr_opt(
            "participant",
            stanza.get_jid("participant").filter(|_| in_group),
        )
        .attr_opt("recipient", recipient)
        .attr_opt("context", status.then_some("status"));
    cx.send(&receipt);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::NAME;

    #[test]
    fn only_own_devices_may_jump_far() {
        let me: Jid = "100000000000001:2@lid".parse().unwrap();
        let mut incoming = Incoming {
            id: "x".into(),
            from: me.clone(),
            chat: me.bare(),
            sender: me,
            alt: None,
            from_me: false,
            peer: false,
        };
        assert_eq!(limits(&incoming), signal::Limits::PEER);
        incoming.from_me = true;
        assert_eq!(limits(&incoming), signal::Limits::OWN_DEVICE);
        let far = [signal::Limits::PEER, signal::Limits::OWN_DEVICE];
        assert_eq!(
            far.map(|limits| limits.forward_jump),
            [crate::limits::FORWARD_JUMP, crate::limits::FORWARD_JUMP_OWN]
        );
    }

    #[test]
    fn ciphertexts_end_at_their_limit() {
        for (count, refused) in [
            (CIPHERTEXTS - 1, false),
            (CIPHERTEXTS, false),
            (CIPHERTEXTS + 1, true),
        ] {
            let enc = Node::new("enc").attr("type", "msg").bytes(vec![1]);
            let stanza = Node::new("message").children(vec![enc; count]);
            assert_eq!(has_too_many_ciphertexts(&stanza), refused, "{count}");
            assert_eq!(ciphertexts(&stanza).count(), count.min(CIPHERTEXTS));
        }
        assert_eq!(CIPHERTEXTS, crate::limits::CIPHERTEXTS);
    }

    #[test]
    fn a_name_ends_at_its_limit() {
        assert!(is_name(&"x".repeat(NAME - 1)) && is_name(&"x".repeat(NAME)));
        assert!(!is_name(&"x".repeat(NAME + 1)));
    }
}
