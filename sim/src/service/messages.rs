//! Messages: accepted once, fanned out by device, delivered once per connection until answered.
//!
//! The service reads no plaintext. What it can see, it books: for each ciphertext the ratchet key and the counter it
//! claims, so that a key used twice is found out whoever else noticed (see [`books`](super::books)).

use super::accounts::{DeviceId, Form};
use super::queue::{Class, Entry};
use super::{ConnId, Now, Service, Timer, books, faults};
use baton_core::crypto::sha256;
use baton_core::jid::{Jid, participant_hash};
use baton_core::signal::{self, CiphertextKind};
use baton_core::wire::node::{Content, Node};
use smol_str::SmolStr;
use std::collections::{BTreeSet, VecDeque};

/// Message ids that a device used lately: a client that lost its connection sends the same stanza again, and that must
/// be acked again and not delivered again (chapter 04.2).
#[derive(Debug, Default)]
pub(super) struct Recent {
    known: BTreeSet<SmolStr>,
    order: VecDeque<SmolStr>,
}

impl Recent {
    /// As many as a device remembers; a client repeats what was under way, which is far less.
    const MAX: usize = 65_536;

    /// Remembers `id`; false if it was known.
    pub(super) fn insert(&mut self, id: SmolStr) -> bool {
        if !self.known.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > Self::MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &SmolStr> {
        self.order.iter()
    }
}

/// One recipient device and what it gets.
struct Target {
    device: DeviceId,
    /// The JID it was addressed by, which decides in which form it sees the sender.
    form: Form,
    enc: Vec<Node>,
}

/// Where a message goes.
struct Route {
    targets: Vec<Target>,
    /// For one device, whoever else there is: a resend, or a message to the own phone.
    single: bool,
    /// The sender did not know all devices, or knew devices that are none.
    stale: bool,
}

impl Route {
    /// Everything that is encrypted.
    fn bytes(&self) -> Vec<&[u8]> {
        let nodes = self.targets.iter().flat_map(|target| &target.enc);
        nodes.filter_map(Node::data).collect()
    }
}

impl Service {
    /// A message of a companion or a phone.
    pub(super) fn on_message(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let Some(id) = node.get_string("id").filter(|id| !id.is_empty()) else {
            return self.anomaly(from, "message without id", now);
        };
        let Some(to) = node.get_jid("to") else {
            self.anomaly(from, format!("message {id} to nobody"), now);
            return self.refuse_message(from, &id, &Jid::service(), 400, now);
        };
        if let Some(error) = self.faults.strikes(from, faults::Kind::Refuse) {
            return self.refuse_message(from, &id, &to, error, now);
        }
        let Some(recipient) = self
            .accounts
            .resolve(&to)
            .filter(|device| self.accounts.exists(device))
        else {
            return self.refuse_message(from, &id, &to, 404, now);
        };
        let route = self.route(from, &recipient, &to, node, now);
        self.book_ciphertexts(from, &id, &route, now);
        let log = self.books.message_mut(from, &id);
        if !route.single && !log.says(sha256(&route.bytes())) {
            log.changed += 1;
        }
        if !self.first_time(from, &id, &route) {
            self.books.message_mut(from, &id).repeated += 1;
            return self.ack_message(from, &id, &to, None, now);
        }
        let category = node.get_string("category");
        self.books
            .message_mut(from, &id)
            .accepted
            .push(books::Accepted {
                at: now.into(),
                to: to.to_string(),
                category: category.clone(),
                resend: route.single && category.is_none(),
            });
        let hash = (route.stale && !route.single)
            .then(|| self.right_hash(from, &recipient, Form::of(&to)));
        self.ack_message(from, &id, &to, hash, now);
        for target in route.targets {
            let stanza = self.for_device(from, &recipient, &to, &id, node, &target, now);
            self.deliver(&target.device, Class::Message, &id, Some(from), stanza, now);
        }
    }

    /// Who gets what. Participants are routed by account and device, in whichever form they are named; anybody who is
    /// neither the recipient nor the sender's own account has no business in a direct message.
    fn route(
        &mut self,
        from: &DeviceId,
        recipient: &DeviceId,
        to: &Jid,
        node: &Node,
        now: Now,
    ) -> Route {
        let peer = node.get_str("category") == Some("peer");
        let Some(participants) = node.find("participants") else {
            let enc: Vec<Node> = node.find_all("enc").cloned().collect();
            let counted = enc.iter().any(|enc| enc.get("count").is_some());
            let single = peer
                || counted
                || to.device() != 0
                || node.get_str("device_fanout") == Some("false");
            let target = Target {
                device: recipient.clone(),
                form: Form::of(to),
                enc,
            };
            let stale =
                !single && self.expected(from, recipient) != BTreeSet::from([recipient.clone()]);
            return Route {
                targets: vec![target],
                single,
                stale,
            };
        };
        let mut targets: Vec<Target> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut counted = false;
        let mut stale = false;
        for participant in participants.find_all("to") {
            let Some(jid) = participant.get_jid("jid") else {
                self.anomaly(from, "participant without jid", now);
                continue;
            };
            let device = self
                .accounts
                .resolve(&jid)
                .filter(|device| self.accounts.exists(device));
            let Some(device) = device else {
                stale = true;
                continue;
            };
            if device == *from || (device.phone != recipient.phone && device.phone != from.phone) {
                self.anomaly(
                    from,
                    format!("participant {device} has no business in a message to {recipient}"),
                    now,
                );
                continue;
            }
            if !seen.insert(device.clone()) {
                self.anomaly(from, format!("participant {device} twice"), now);
                continue;
            }
            let enc: Vec<Node> = participant.find_all("enc").cloned().collect();
            counted |= enc.iter().any(|enc| enc.get("count").is_some());
            targets.push(Target {
                device,
                form: Form::of(&jid),
                enc,
            });
        }
        // One client writes its resends with participants; the retry count gives them away (chapter 07.10).
        let single = counted || to.device() != 0;
        stale |= !single && seen != self.expected(from, recipient);
        Route {
            targets,
            single,
            stale,
        }
    }

    /// The devices a message from `from` to `recipient`'s account should have been encrypted for.
    fn expected(&self, from: &DeviceId, recipient: &DeviceId) -> BTreeSet<DeviceId> {
        let mut devices: BTreeSet<_> = self
            .accounts
            .devices_of(&recipient.phone)
            .into_iter()
            .collect();
        devices.extend(self.accounts.devices_of(&from.phone));
        devices.remove(from);
        devices
    }

    /// The participant hash over the devices of both accounts. It is only sent when the sender's set was wrong, and
    /// only has to differ from the sender's (chapter 07.3).
    fn right_hash(&self, from: &DeviceId, recipient: &DeviceId, form: Form) -> String {
        let accounts = BTreeSet::from([&from.phone, &recipient.phone]);
        let jids: Vec<Jid> = accounts
            .into_iter()
            .filter_map(|phone| self.accounts.get(phone))
            .flat_map(|a| a.device_jids(form))
            .collect();
        participant_hash(jids.iter())
    }

    /// Whether this stanza is new. A resend has the id of its first copy, so there the ciphertext counts as well.
    fn first_time(&mut self, from: &DeviceId, id: &str, route: &Route) -> bool {
        let recent = self.recent.entry(from.clone()).or_default();
        if !route.single {
            return recent.insert(id.into());
        }
        let mut fresh = false;
        for target in &route.targets {
            let parts: Vec<&[u8]> = target.enc.iter().filter_map(Node::data).collect();
            let hash = books::hex(sha256(&parts).get(..8).unwrap_or_default());
            fresh |= recent.insert(format!("{id}/{}/{hash}", target.device).into());
        }
        fresh
    }

    /// Books the ratchet key and counter of every ciphertext, also of those that are not delivered: the network has
    /// seen them.
    fn book_ciphertexts(&mut self, from: &DeviceId, id: &str, route: &Route, now: Now) {
        for target in &route.targets {
            for enc in &target.enc {
                let (Some(kind), Some(bytes)) = (enc.get_str("type"), enc.data()) else {
                    self.anomaly(
                        from,
                        format!("message {id}: enc without type or content"),
                        now,
                    );
                    continue;
                };
                let kind = match kind {
                    "pkmsg" => CiphertextKind::PreKey,
                    "msg" => CiphertextKind::Message,
                    _ => continue,
                };
                match signal::peek_counter(kind, bytes) {
                    Ok(place) => {
                        self.books
                            .relay(from, &target.device, place, sha256(&[bytes]), id, now)
                    }
                    Err(error) => {
                        self.anomaly(from, format!("message {id}: ciphertext: {error}"), now)
                    }
                }
            }
        }
    }

    /// The stanza as one device sees it (chapter 10.10.2).
    #[expect(
        clippy::too_many_arguments,
        reason = "one stanza has that many sources"
    )]
    fn for_device(
        &self,
        from: &DeviceId,
        recipient: &DeviceId,
        to: &Jid,
        id: &str,
        node: &Node,
        target: &Target,
        now: Now,
    ) -> Node {
        let peer = node.get_str("category") == Some("peer");
        let other = match target.form {
            Form::Pn => ("sender_lid", Form::Lid),
            Form::Lid => ("sender_pn", Form::Pn),
        };
        let name = self
            .accounts
            .get(&from.phone)
            .map(|account| account.push_name(from.device));
        let mut stanza = Node::new("message")
            .attr_opt("from", self.accounts.jid(from, target.form))
            .attr("id", id)
            .attr("type", node.get_str("type").unwrap_or("text"))
            .attr("t", now.secs())
            .attr_opt("notify", name)
            .attr_opt("category", node.get_str("category"))
            .attr_opt("edit", node.get_str("edit"));
        if target.device.phone != from.phone || peer {
            stanza = stanza.attr_opt(other.0, self.accounts.user(&from.phone, other.1));
        } else {
            // A copy for one of the sender's own devices says whose chat it belongs to; nobody else's message may. It
            // does not name the sender's other address besides: Baileys takes that for the chat's, learns that the
            // chat's LID belongs to its own number, and from then on asks for its own devices' keys under that LID.
            let chat = node
                .get_jid("recipient")
                .unwrap_or_else(|| to.clone())
                .bare();
            let (key, form) = match Form::of(&chat) {
                Form::Pn => ("peer_recipient_lid", Form::Lid),
                Form::Lid => ("peer_recipient_pn", Form::Pn),
            };
            let phone = self
                .accounts
                .resolve(&chat)
                .map_or_else(|| recipient.phone.clone(), |device| device.phone);
            stanza = stanza
                .attr("recipient", chat)
                .attr_opt(key, self.accounts.user(&phone, form));
        }
        let first = target
            .enc
            .iter()
            .any(|enc| enc.get_str("type") == Some("pkmsg"));
        let passed_on = node.nodes().iter().filter(|child| {
            matches!(child.tag(), "meta" | "biz") || (first && child.tag() == "device-identity")
        });
        stanza
            .children(target.enc.iter().cloned())
            .children(passed_on.cloned().collect::<Vec<_>>())
    }

    /// The ack a sender waits for, unless a fault has other plans with it.
    fn ack_message(&mut self, from: &DeviceId, id: &str, to: &Jid, hash: Option<String>, now: Now) {
        let ack = Node::new("ack")
            .attr("class", "message")
            .attr("id", id)
            .attr("from", to)
            .attr("t", now.secs())
            .attr_opt("phash", hash);
        if self
            .faults
            .strikes(from, faults::Kind::WithholdAck)
            .is_some()
        {
            return;
        }
        match (self.faults.delays(from), self.live.get(from).copied()) {
            (Some(late), Some(conn)) => self.later(now.mono.plus(late), Timer::Send(conn, ack)),
            _ => self.reply(from, &ack, now),
        }
    }

    /// An ack with an error: the message counts as never sent.
    fn refuse_message(&mut self, from: &DeviceId, id: &str, to: &Jid, error: u64, now: Now) {
        self.books.message_mut(from, id).refused += 1;
        let ack = Node::new("ack")
            .attr("class", "message")
            .attr("id", id)
            .attr("from", to)
            .attr("t", now.secs())
            .attr("error", error);
        self.reply(from, &ack, now);
    }

    /// Puts a stanza into a device's queue, and on its connection if it is past the offline phase.
    pub(super) fn deliver(
        &mut self,
        to: &DeviceId,
        class: Class,
        id: &str,
        peer: Option<&DeviceId>,
        node: Node,
        now: Now,
    ) {
        if to.is_phone() {
            if let (Class::Message, Some(sender)) = (class, peer) {
                let delivery = books::Delivery {
                    at: now.into(),
                    conn: None,
                    offline: false,
                    dropped: false,
                    corrupted: false,
                };
                self.books
                    .recipient_mut(sender, id, to)
                    .deliveries
                    .push(delivery);
            }
            return self.inbox.push_back((to.clone(), node));
        }
        let Some(device) = self.accounts.device_mut(to) else {
            return;
        };
        device.queue.push(Entry {
            class,
            id: id.into(),
            peer: peer.cloned(),
            node,
            sent: 0,
            sent_on: None,
        });
        let Some(conn) = self.live.get(to).copied() else {
            return;
        };
        if !self
            .connections
            .get(&conn)
            .is_some_and(|connection| connection.active)
        {
            return;
        }
        if class == Class::Message && self.faults.strikes(to, faults::Kind::Reorder).is_some() {
            if let Some(device) = self.accounts.device_mut(to) {
                device.queue.held += 1;
            }
            return;
        }
        let Some(device) = self.accounts.device_mut(to) else {
            return;
        };
        let newest = device.queue.last_mut().map(|entry| entry.mark(conn));
        let held = std::mem::take(&mut device.queue.held);
        let mut due: Vec<Entry> = newest.into_iter().collect();
        if held > 0 {
            due.extend(
                device
                    .queue
                    .iter_mut()
                    .filter(|entry| entry.sent_on != Some(conn))
                    .map(|entry| entry.mark(conn)),
            );
        }
        for entry in due {
            self.put(to, conn, entry, None, now);
        }
    }

    /// The offline phase: what is queued, in order, between a preview and an end (chapter 10.6.3). Both come also when
    /// there is nothing, because one client waits a minute for the end.
    pub(super) fn drain_offline(&mut self, to: &DeviceId, conn: ConnId, now: Now) {
        let Some(device) = self.accounts.device_mut(to) else {
            return;
        };
        device.queue.held = 0;
        let entries: Vec<Entry> = device
            .queue
            .iter_mut()
            .map(|entry| entry.mark(conn))
            .collect();
        let count = |class| entries.iter().filter(|entry| entry.class == class).count() as u64;
        let preview = Node::new("offline_preview")
            .attr("count", entries.len() as u64)
            .attr("appdata", 0u64)
            .attr("message", count(Class::Message))
            .attr("notification", count(Class::Notification))
            .attr("receipt", count(Class::Receipt))
            .attr("call", 0u64);
        let end = Node::new("offline").attr("count", entries.len() as u64);
        self.send(
            conn,
            &Node::new("ib").attr("from", Jid::service()).child(preview),
            now,
        );
        for (number, entry) in entries.into_iter().enumerate() {
            self.put(to, conn, entry, Some(number as u64), now);
        }
        self.send(
            conn,
            &Node::new("ib").attr("from", Jid::service()).child(end),
            now,
        );
    }

    /// Sends one queued stanza, through whatever faults were ordered, and books it.
    fn put(&mut self, to: &DeviceId, conn: ConnId, entry: Entry, offline: Option<u64>, now: Now) {
        let mut node = entry.node;
        if let Some(number) = offline {
            node = node.attr("offline", number);
        }
        let sender = match (entry.class, &entry.peer) {
            (Class::Message, Some(sender)) => sender,
            _ => return self.send(conn, &node, now),
        };
        let corrupted =
            self.faults.strikes(to, faults::Kind::Corrupt).is_some() && corrupt(&mut node);
        let dropped = self.faults.strikes(to, faults::Kind::Drop).is_some();
        let twice = !dropped && self.faults.strikes(to, faults::Kind::Duplicate).is_some();
        for _ in 0..=usize::from(twice) {
            let delivery = books::Delivery {
                at: now.into(),
                conn: Some(conn),
                offline: offline.is_some(),
                dropped,
                corrupted,
            };
            self.books
                .recipient_mut(sender, &entry.id, to)
                .deliveries
                .push(delivery);
            if !dropped {
                self.send(conn, &node, now);
            }
        }
    }
}

impl Entry {
    /// Notes that `conn` carries the stanza, and returns what it carries.
    fn mark(&mut self, conn: ConnId) -> Self {
        self.sent += 1;
        self.sent_on = Some(conn);
        self.clone()
    }
}

/// Flips a bit of the MAC in the first ciphertext, so that nothing else about it looks wrong. False if there is none.
fn corrupt(node: &mut Node) -> bool {
    let Content::Nodes(children) = &mut node.content else {
        return false;
    };
    let Some(enc) = children.iter_mut().find(|child| child.tag == "enc") else {
        return false;
    };
    let mut bytes = enc.data().unwrap_or_default().to_vec();
    // In a pre-key message the MAC is the end of the message inside, not of the whole.
    let end = match signal::PreKeyMessage::parse(&bytes) {
        Ok(outer) if enc.get_str("type") == Some("pkmsg") => {
            let inner = outer.message.as_slice();
            bytes
                .windows(inner.len())
                .position(|window| window == inner)
                .map(|at| at + inner.len())
        }
        _ => Some(bytes.len()),
    };
    let Some(last) = end
        .and_then(|end| end.checked_sub(1))
        .and_then(|last| bytes.get_mut(last))
    else {
        return false;
    };
    *last ^= 1;
    enc.content = Content::Bytes(bytes.into());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_remembered_up_to_a_limit() {
        let mut recent = Recent::default();
        assert!(recent.insert("A".into()));
        assert!(!recent.insert("A".into()));
        for n in 0..Recent::MAX {
            assert!(recent.insert(n.to_string().into()));
        }
        assert!(recent.insert("A".into()), "the oldest is forgotten");
        assert_eq!(recent.ids().count(), Recent::MAX);
    }

    #[test]
    fn corruption_changes_one_bit_of_one_ciphertext() {
        let enc = |bytes: &[u8]| Node::new("enc").bytes(bytes.to_vec());
        let mut node = Node::new("message").child(enc(&[1, 2, 3])).child(enc(&[4]));
        assert!(corrupt(&mut node));
        assert_eq!(
            node.nodes()
                .iter()
                .map(|e| e.data().unwrap_or_default().to_vec())
                .collect::<Vec<_>>(),
            [vec![1, 2, 2], vec![4]]
        );
        assert!(!corrupt(&mut Node::new("message")));
    }
}
