//! Retry receipts, both ways (fact sheet 07.10).
//!
//! *We cannot read a message*: ask its sender again, a few times, from the second time on with a fresh bundle of ours.
//! *Somebody cannot read a message of ours*: encrypt it again, for that device alone, under the same id. The message is
//! still in the store for that; a request for something we never sent to that user is dropped.

use super::{
    Context, Event, Notice, devices, pre_keys,
    query::{Answer, Query},
    receive::{self, Incoming},
    send::{self, Sends},
};
use crate::{
    jid::Jid,
    proto::record::Outbound,
    state::{Key, MessageId, Micros, rules},
    wire::node::Node,
};
use std::collections::{BTreeMap, VecDeque};

/// A message is asked for this often at most, and answered this often at most to one device.
const MOST: u32 = 5;

/// Counts are kept for so many messages; older ones start over.
const REMEMBERED: usize = crate::limits::RETRIES_COUNTED;

/// So many requests wait for bundles at most.
const WAITING: usize = crate::limits::RETRIES_WAITING;

/// Without keys in the request, a session is replaced at most once in this time.
const RECREATE: Micros = Micros::from_secs(3600);

/// Counts by (device, message), forgetting the oldest.
#[derive(Debug, Default)]
struct Counts {
    by_message: BTreeMap<(Jid, MessageId), u32>,
    order: VecDeque<(Jid, MessageId)>,
}

impl Counts {
    fn raise(&mut self, device: &Jid, id: &MessageId, at_least: u32) -> u32 {
        let key = (device.clone(), id.clone());
        if let Some(count) = self.by_message.get_mut(&key) {
            *count = (*count).max(at_least).saturating_add(1);
            return *count;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_message.remove(&oldest);
        }
        self.order.push_back(key.clone());
        let count = at_least.saturating_add(1);
        self.by_message.insert(key, count);
        count
    }
}

/// What the service was asked before a request could be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    /// Whether the user we wrote to and the device that asks are the same one.
    Devices,
    /// The keys of the device.
    Bundle,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    asked: Counts,
    answered: Counts,
    /// When the session with a device was last replaced for want of a better idea.
    recreated: BTreeMap<Jid, Micros>,
    /// Requests that wait for a bundle of the device that made them.
    waiting: Vec<(Jid, Node)>,
    /// Requests that wait to hear under which other address a user goes.
    unmapped: Vec<(Jid, Node)>,
}

impl Retries {
    /// Asks for a message again that could not be decrypted, or gives it up.
    pub(crate) fn ask(
        &mut self,
        cx: &mut Context,
        stanza: &Node,
        incoming: &Incoming,
        reason: u8,
        with_keys: bool,
    ) {
        let seed = stanza
            .find("enc")
            .and_then(|enc| enc.get_u64("count"))
            .unwrap_or(0);
        let seed = u32::try_from(seed).unwrap_or(MOST).min(MOST);
        let count = self.asked.raise(&incoming.sender, &incoming.id, seed);
        if count > MOST {
            let Incoming {
                id, chat, sender, ..
            } = incoming.clone();
            cx.emit(Event::Undecryptable { id, chat, sender });
            cx.acknowledge(stanza, None);
            return;
        }
        cx.stats.retries_asked += 1;
        let id = incoming.id.clone();
        cx.notice(Notice::RetryAsked {
            id: id.clone(),
            reason,
            count,
        });
        let retry = Node::new("retry")
            .attr("v", "1")
            .attr("count", count)
            .attr("id", id.clone())
            .attr_opt("t", stanza.get_string("t"))
            .attr_opt("error", (reason != 0).then_some(u64::from(reason)));
        let mut receipt = Node::new("receipt")
            .attr("id", id)
            .attr("to", &incoming.from)
            .attr("type", "retry")
            .attr_opt("participant", stanza.get_jid("participant"))
            .attr_opt("recipient", stanza.get_jid("recipient"))
            .attr_opt("category", incoming.peer.then_some("peer"))
            .child(retry)
            .child(
                Node::new("registration").bytes(cx.account.registration_id.to_be_bytes().to_vec()),
            );
        if with_keys || count > 1 {
            receipt = receipt.children(keys(cx));
        }
        cx.send(&receipt);
        cx.acknowledge(stanza, None);
    }

    /// Rows that [`answer`](Self::answer) reads. Asked again after each load.
    pub(crate) fn needs(&self, cx: &mut Context, sends: &Sends, stanza: &Node) -> Vec<Key> {
        let Some((id, device)) = request(stanza) else {
            return Vec::new();
        };
        let mut keys = Vec::new();
        if sends.pending(&id).is_none() {
            let sent = Key::Sent(id.clone());
            if cx.rows.knows(&sent) && cx.rows.get(&sent).is_none() {
                keys.push(Key::Mailbox(id.clone()));
            }
            keys.push(sent);
        }
        keys.extend(receive::address_needs(&device));
        if keys.iter().any(|key| !cx.rows.knows(key)) {
            return keys;
        }
        if let Some(to) = original(cx, sends, &id).and_then(|(_, to)| to) {
            keys.extend(receive::address_needs(&to));
            if keys.iter().any(|key| !cx.rows.knows(key)) {
                return keys;
            }
        }
        let address = receive::address(cx, &device, None);
        keys.extend(devices::bundle_needs(&[address]));
        keys
    }

    /// Answers a retry receipt.
    pub(crate) fn answer(&mut self, cx: &mut Context, sends: &Sends, stanza: &Node, asked: Asked) {
        let resent = self.try_answer(cx, sends, stanza, asked);
        if resent {
            cx.acknowledge(stanza, None);
        }
    }

    /// Returns whether the request is dealt with; `false` if it waits for an answer of the service.
    fn try_answer(&mut self, cx: &mut Context, sends: &Sends, stanza: &Node, asked: Asked) -> bool {
        let Some((id, device)) = request(stanza) else {
            cx.protocol_error("a malformed retry receipt");
            return true;
        };
        let Some((row, Some(to))) = original(cx, sends, &id) else {
            return true;
        };
        let Some(content) = row.content else {
            return true;
        };
        let address = receive::address(cx, &device, None);
        let canonical = receive::address(cx, &to, None);
        let own = cx.account.is_mine(&device);
        if !own && !address.same_user(&canonical) {
            // What was written to a phone number is asked for by a LID. That they are one was known when it was sent, but
            // a database can have lost it.
            let unmapped = [&canonical, &address].into_iter().find(|jid| jid.is_pn());
            if let Some(user) = unmapped
                .filter(|_| asked == Asked::Nothing && canonical.is_lid() != address.is_lid())
            {
                self.ask_devices(cx, user.bare(), stanza);
                return false;
            }
            cx.protocol_error("somebody asks for a message that was not sent to them");
            return true;
        }
        let count = stanza
            .find("retry")
            .and_then(|retry| retry.get_u64("count"))
            .unwrap_or(1);
        let fetched = asked == Asked::Bundle;
        if !fetched && self.answered.raise(&address, &id, 0) > MOST {
            return true;
        }
        if stanza.find("keys").is_some() {
            let proof = stanza
                .path(&["keys", "device-identity"])
                .and_then(Node::data);
            match devices::parse_bundle(stanza, stanza) {
                Some(bundle) if devices::start_session(cx, &address, &bundle, proof) => {}
                // A bundle that cannot be used: sending under the old session would fail again.
                _ => return true,
            }
        } else if !fetched && self.wants_bundle(cx, &address, count) {
            if self.waiting.len() >= WAITING {
                // Not acknowledged: it comes again on the next connection.
                return false;
            }
            self.note_recreated(address.clone(), cx.now.mono);
            self.waiting.push((address.clone(), stanza.clone()));
            if !cx
                .queries
                .any(|query| *query == Query::Bundles(vec![address.clone()]))
            {
                devices::ask_bundles(cx, vec![address]);
            }
            return false;
        }
        let plaintext = if own {
            send::device_sent(&content, &canonical)
        } else {
            content.clone()
        };
        let mut first = false;
        let Some(enc) = send::encrypt(cx, &address, &plaintext, &mut first) else {
            return true;
        };
        let (kind, edit) = send::stanza_type(&content);
        let recipient = own.then(|| canonical.bare());
        let mut copy = Node::new("message")
            .attr("to", &device)
            .attr("id", id)
            .attr("type", kind)
            .attr("device_fanout", "false")
            .attr_opt("recipient", recipient)
            .attr_opt("edit", edit)
            .child(enc.attr("count", count));
        if let Some(proof) = cx.account.adv.clone().filter(|_| first) {
            copy = copy.child(Node::new("device-identity").bytes(proof));
        }
        cx.send(&copy);
        cx.stats.retries_answered += 1;
        true
    }

    /// Notes when a session was replaced. What is forgotten can be replaced again too early, no more than that.
    fn note_recreated(&mut self, device: Jid, now: Micros) {
        if self.recreated.len() >= REMEMBERED {
            self.recreated.retain(|_, at| now.since(*at) < RECREATE);
            if self.recreated.len() >= REMEMBERED {
                self.recreated.pop_first();
            }
        }
        self.recreated.insert(device, now);
    }

    fn ask_devices(&mut self, cx: &mut Context, user: Jid, stanza: &Node) {
        // One too many is not acknowledged: it comes again on the next connection.
        if self.unmapped.len() < WAITING {
            let query = Query::Devices(vec![user.clone()]);
            if !cx.queries.any(|other| *other == query) {
                devices::ask_devices(cx, vec![user.clone()]);
            }
            self.unmapped.push((user, stanza.clone()));
        }
    }

    /// Whether the session with a device is replaced before answering it.
    fn wants_bundle(&self, cx: &mut Context, device: &Jid, count: u64) -> bool {
        if !send::has_session(cx, device) {
            return true;
        }
        let recently = self
            .recreated
            .get(device)
            .is_some_and(|at| cx.now.mono.since(*at) < RECREATE);
        count >= 2 && !recently
    }

    /// Bundles were answered: the requests that waited for these devices go on. What the service would not give us is
    /// answered under the old session, if there is one.
    pub(crate) fn bundles_answered(&mut self, answer: &Answer, asked: &[Jid]) -> Vec<Node> {
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(device, _)| asked.contains(device));
        self.waiting = waiting;
        if matches!(answer, Answer::Lost) {
            // Not acknowledged, so the service shows them again on the next connection.
            return Vec::new();
        }
        done.into_iter().map(|(_, stanza)| stanza).collect()
    }

    /// Device lists were answered: the requests that waited for these users go on. Without an answer they are not
    /// acknowledged, and come again.
    pub(crate) fn devices_answered(&mut self, answer: &Answer, users: &[Jid]) -> Vec<Node> {
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unmapped)
            .into_iter()
            .partition(|(user, _)| users.contains(user));
        self.unmapped = waiting;
        match answer {
            Answer::Result(_) => done.into_iter().map(|(_, stanza)| stanza).collect(),
            _ => Vec::new(),
        }
    }

    /// The connection has ended.
    pub(crate) fn closed(&mut self) {
        self.waiting.clear();
        self.unmapped.clear();
    }
}

/// The id asked for, and the device that asks.
fn request(stanza: &Node) -> Option<(MessageId, Jid)> {
    let id = stanza
        .find("retry")
        .and_then(|retry| retry.get_string("id"))
        .or_else(|| stanza.get_string("id"))?;
    let device = stanza
        .get_jid("participant")
        .or_else(|| stanza.get_jid("from"))?;
    let id = MessageId::from(id);
    let usable = rules::key(&Key::Sent(id.clone())).is_ok();
    (device.is_user() && usable).then_some((id, device))
}

/// The message asked for, and where it went. One that a database has forgotten to have been sent is in the mailbox again,
/// and may have to wait there for room: the device that asks now asks no more when it is sent as if for the first time.
fn original(cx: &mut Context, sends: &Sends, id: &MessageId) -> Option<(Outbound, Option<Jid>)> {
    let row = match sends.pending(id) {
        Some(row) => row.clone(),
        None => match cx.read::<Outbound>(&Key::Sent(id.clone())) {
            Some(row) => row,
            None => {
                let record = cx.rows.get(&Key::Mailbox(id.clone()))?;
                send::requested(id, record)?
            }
        },
    };
    let to = row.to.as_deref().and_then(|to| to.parse().ok());
    Some((row, to))
}

/// A fresh bundle of ours, as a retry receipt carries it. Its one-time key is written before the receipt leaves.
fn keys(cx: &mut Context) -> Option<Node> {
    let (id, pair) = pre_keys::reserve(cx);
    let signed = cx.account.signed_pre_key()?;
    let keys = Node::new("keys")
        .child(Node::new("type").bytes(vec![5]))
        .child(Node::new("identity").bytes(cx.account.identity.public.as_bytes().to_vec()))
        .child(
            Node::new("key")
                .child(Node::new("id").bytes(pre_keys::id_bytes(id).to_vec()))
                .child(Node::new("value").bytes(pair.public.as_bytes().to_vec())),
        )
        .child(pre_keys::signed_node(signed));
    Some(match &cx.account.adv {
        Some(proof) => keys.child(Node::new("device-identity").bytes(proof.clone())),
        None => keys,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_grow_start_where_the_sender_says_and_forget_the_oldest() {
        let mut counts = Counts::default();
        let device = Jid::lid("100000000000001").unwrap();
        assert_eq!(counts.raise(&device, &"a".into(), 0), 1);
        assert_eq!(counts.raise(&device, &"a".into(), 0), 2);
        assert_eq!(counts.raise(&device, &"b".into(), 3), 4);
        assert_eq!(counts.raise(&device, &"b".into(), u32::MAX), u32::MAX);
        for n in 0..REMEMBERED {
            counts.raise(&device, &format!("x{n}").into(), 0);
        }
        assert_eq!(counts.raise(&device, &"a".into(), 0), 1);
        assert_eq!(counts.by_message.len(), REMEMBERED);
    }

    #[test]
    fn counts_end_at_their_limit() {
        use crate::limits::RETRIES_COUNTED;
        let device = Jid::lid("100000000000001").unwrap();
        for (others, kept) in [
            (RETRIES_COUNTED - 2, true),
            (RETRIES_COUNTED - 1, true),
            (RETRIES_COUNTED, false),
        ] {
            let mut counts = Counts::default();
            counts.raise(&device, &"a".into(), 0);
            for n in 0..others {
                counts.raise(&device, &format!("x{n}").into(), 0);
            }
            assert_eq!(counts.by_message.len(), RETRIES_COUNTED.min(others + 1));
            let again = counts.raise(&device, &"a".into(), 0);
            assert_eq!(again == 2, kept, "{others}");
        }
    }

    #[test]
    fn replaced_sessions_end_at_the_same_limit_and_old_ones_go_first() {
        use crate::limits::RETRIES_COUNTED;
        let device = |n: usize| Jid::lid(&format!("{}", 100_000_000_000_000 + n)).unwrap();
        let mut retries = Retries::default();
        // The last one is old, the others are not.
        retries.note_recreated(device(RETRIES_COUNTED), Micros(0));
        for n in 1..RETRIES_COUNTED {
            retries.note_recreated(device(n), RECREATE);
        }
        assert_eq!(retries.recreated.len(), RETRIES_COUNTED);
        assert!(retries.recreated.contains_key(&device(RETRIES_COUNTED)));
        retries.note_recreated(device(0), RECREATE);
        assert_eq!(retries.recreated.len(), RETRIES_COUNTED);
        assert!(!retries.recreated.contains_key(&device(RETRIES_COUNTED)));
        retries.note_recreated(device(RETRIES_COUNTED + 1), RECREATE);
        assert_eq!(retries.recreated.len(), RETRIES_COUNTED);
        assert!(!retries.recreated.contains_key(&device(0)));
    }

    #[test]
    fn a_request_names_message_and_device() {
        let device: Jid = "100000000000001:2@lid".parse().unwrap();
        let receipt = Node::new("receipt")
            .attr("id", "outer")
            .attr("from", &device);
        assert_eq!(request(&receipt), Some(("outer".into(), device.clone())));
        let inner = receipt.child(Node::new("retry").attr("id", "inner"));
        assert_eq!(request(&inner), Some(("inner".into(), device)));
        assert_eq!(
            request(
                &Node::new("receipt")
                    .attr("id", "x")
                    .attr("from", Jid::service())
            ),
            None
        );
    }
}
