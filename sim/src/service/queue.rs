//! What waits for one device: a stanza stays until the device answered it, and goes out once per connection.
//!
//! Two facts make the rest of this file (chapters 04.6 and 10.6): a client that sees a stanza twice on one connection
//! misbehaves, so what was sent and not answered waits for the *next* connection; and answers come in any order, in
//! pairs, or late, so an answer finds its stanza by what the stanza was, never by its place in the line.

use super::{ConnId, DeviceId};
use baton_core::wire::node::Node;
use smol_str::SmolStr;
use std::collections::{BTreeSet, VecDeque};

/// Which kind of answer ends a stanza.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(super) enum Class {
    /// Ended by any receipt, or an ack.
    Message,
    /// Ended by an ack.
    Receipt,
    /// Ended by an ack.
    Notification,
}

impl Class {
    pub(super) fn of(text: &str) -> Option<Self> {
        match text {
            "message" => Some(Self::Message),
            "receipt" => Some(Self::Receipt),
            "notification" => Some(Self::Notification),
            _ => None,
        }
    }
}

/// One waiting stanza.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) class: Class,
    pub(super) id: SmolStr,
    /// The device it came from; none for the service's own.
    pub(super) peer: Option<DeviceId>,
    pub(super) node: Node,
    /// How often it was put on a connection.
    pub(super) sent: u32,
    /// The connection that carried it last.
    pub(super) sent_on: Option<ConnId>,
}

/// One device's line.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// Messages that a retry receipt ended, whose ack is still under way: it must not end the resent copy, which has
    /// the same id (chapter 04.6).
    acks_owed: BTreeSet<SmolStr>,
    /// Entries that a fault holds back until the next one is sent.
    pub(super) held: usize,
}

impl Queue {
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push_back(entry);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut()
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut Entry> {
        self.entries.back_mut()
    }

    /// Takes off what a receipt for `id` ends. `peer` is who the device believes the message is from, if it said.
    pub(super) fn receipted(&mut self, id: &str, peer: Option<&str>, retry: bool) -> Option<Entry> {
        let entry = self.take(Class::Message, id, peer);
        if retry && entry.is_some() {
            self.acks_owed.insert(id.into());
        }
        entry
    }

    /// Takes off what an ack ends.
    pub(super) fn acked(&mut self, class: Class, id: &str, peer: Option<&str>) -> Option<Entry> {
        if class == Class::Message && self.acks_owed.remove(id) {
            return None;
        }
        self.take(class, id, peer)
    }

    /// A new connection: nothing that the old one still owed will come.
    pub(super) fn reconnected(&mut self) {
        self.acks_owed.clear();
    }

    /// Drops entries that `keep` does not want and that no connection has carried.
    pub(super) fn retain_unsent(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(|entry| entry.sent > 0 || keep(entry));
    }

    fn take(&mut self, class: Class, id: &str, peer: Option<&str>) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| {
            entry.class == class
                && entry.id == id
                && entry.sent > 0
                && match (peer, &entry.peer) {
                    (Some(phone), Some(device)) => device.phone == phone,
                    _ => true,
                }
        })?;
        self.entries.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, phone: &str) -> Entry {
        Entry {
            class: Class::Message,
            id: id.into(),
            peer: Some(DeviceId::new(phone, 1)),
            node: Node::new("message"),
            sent: 1,
            sent_on: Some(ConnId(1)),
        }
    }

    #[test]
    fn the_late_ack_of_a_retried_message_does_not_end_its_resend() {
        let mut queue = Queue::default();
        queue.push(message("A", "15550000001"));
        assert!(queue.receipted("A", Some("15550000001"), true).is_some());
        queue.push(message("A", "15550000001"));
        assert!(
            queue.acked(Class::Message, "A", None).is_none(),
            "this ack is for the first copy"
        );
        assert_eq!(queue.iter().count(), 1);
        assert!(
            queue.acked(Class::Message, "A", None).is_some(),
            "and this one for the second"
        );
    }

    #[test]
    fn ids_are_unique_per_sender_only() {
        let mut queue = Queue::default();
        queue.push(message("A", "15550000001"));
        queue.push(message("A", "15550000002"));
        let done = queue
            .receipted("A", Some("15550000002"), false)
            .expect("found");
        assert_eq!(done.peer, Some(DeviceId::new("15550000002", 1)));
        assert!(queue.receipted("A", Some("15550000003"), false).is_none());
        assert!(queue.receipted("A", None, false).is_some());
    }

    #[test]
    fn what_was_never_sent_cannot_be_answered() {
        let mut queue = Queue::default();
        queue.push(Entry {
            sent: 0,
            sent_on: None,
            ..message("A", "15550000001")
        });
        assert!(queue.receipted("A", None, false).is_none());
        queue.retain_unsent(|_| false);
        assert_eq!(queue.iter().count(), 0);
    }
}
