//! Receipts and acks: what ends a queued stanza, and what the sender hears of it (chapters 04.6-04.9, 10.3, 10.4).
//!
//! | type | goes to |
//! |---|---|
//! | none, `inactive` | every device of the message's author, from the receiving *account* |
//! | `read`, `played` | those, and the reader's other devices |
//! | `read-self`, `played-self` | the reader's other devices |
//! | `retry` | the one device that sent the message, from the asking *device*, children untouched |
//! | `server-error` | the phone, which uploads the file again |
//! | `sender`, `peer_msg`, `hist_sync`, … | nobody: they only end the queued copy |

use super::accounts::{DeviceId, Form};
use super::books::KeyKind;
use super::keys::read_key;
use super::queue::{Class, Entry};
use super::{Now, Service};
use baton_core::jid::Jid;
use baton_core::wire::node::Node;

impl Service {
    /// A receipt of a companion or a phone.
    pub(super) fn on_receipt(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let Some(first) = node.get_string("id").filter(|id| !id.is_empty()) else {
            return self.anomaly(from, "receipt without id", now);
        };
        let kind = node.get_string("type");
        let kind = kind.as_deref();
        let retry = kind == Some("retry");
        let more = node
            .find("list")
            .into_iter()
            .flat_map(|list| list.find_all("item"))
            .filter_map(|i| i.get_string("id"));
        let ids: Vec<String> = std::iter::once(first.clone()).chain(more).collect();
        let to = node.get_jid("to");
        let claimed = to.as_ref().and_then(|jid| self.accounts.resolve(jid));

        let mut author = None;
        for id in &ids {
            // Both names of the author's account count; without a `to` the id has to do (chapter 04.8).
            let ended = self.accounts.device_mut(from).and_then(|device| {
                device
                    .queue
                    .receipted(id, claimed.as_ref().map(|d| d.phone.as_str()), retry)
            });
            let Some(sender) = self.author_of(ended, claimed.as_ref(), id, from) else {
                continue;
            };
            if self.books.was_delivered(&sender, id, from) == Some(false)
                && !matches!(kind, Some("read" | "played"))
            {
                self.anomaly(
                    from,
                    format!("receipt for {id} of {sender}, which was never delivered to it"),
                    now,
                );
            }
            let log = self.books.recipient_mut(&sender, id, from);
            log.receipts
                .push((now.into(), kind.unwrap_or("delivered").to_owned()));
            log.retries += u32::from(retry);
            author.get_or_insert(sender);
        }
        if kind == Some("server-error") {
            self.history_is_missing(from, &first, node, now);
        }
        if kind == Some("hist_sync") {
            ids.iter()
                .for_each(|id| self.history_received(from, id, now));
        }

        let ack = Node::new("ack")
            .attr("class", "receipt")
            .attr("id", first.as_str())
            .attr("from", to.clone().unwrap_or_else(Jid::service))
            .attr_opt("type", kind)
            .attr_opt("participant", node.get("participant").cloned())
            .attr("t", now.secs());
        self.reply(from, &ack, now);

        let form = to.as_ref().map_or(Form::Lid, Form::of);
        if retry {
            let count = node.find("retry").and_then(|retry| retry.get_u64("count"));
            if count.is_some_and(|count| count > 1) && node.find("keys").is_none() {
                // Clients send a bundle along from the second time on (chapter 07.10).
                self.anomaly(from, format!("asks for {first} again, without keys"), now);
            }
            self.bind_retry_key(from, node, now);
            // The queue and the books know best which device sent the message; else `to` names it.
            let named = claimed.filter(|device| self.accounts.exists(device));
            if let Some(sender) = author.or(named) {
                self.forward_retry(from, &sender, form, node, &first, now);
            }
            return;
        }
        let Some(author) = author.or(claimed) else {
            return;
        };
        let own = author.phone == from.phone;
        match kind {
            None | Some("inactive") if !own => {
                self.forward_receipt(from, &author.phone, form, node, &first, now)
            }
            Some("read" | "played") => {
                if !own {
                    self.forward_receipt(from, &author.phone, form, node, &first, now);
                }
                self.tell_own_devices(from, &author.phone, form, node, &first, now);
            }
            Some("read-self" | "played-self") => {
                self.tell_own_devices(from, &author.phone, form, node, &first, now)
            }
            _ => {}
        }
    }

    /// A plain ack ends what it names; for a message that could not be read it is the only answer there is.
    pub(super) fn on_ack(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let (Some(id), Some(class)) = (node.get_string("id"), node.get_str("class")) else {
            return self.anomaly(from, "ack without id or class", now);
        };
        let Some(class) = Class::of(class) else {
            return;
        };
        let claimed = node
            .get_jid("to")
            .and_then(|jid| self.accounts.resolve(&jid));
        let peer = if class == Class::Message {
            claimed.as_ref().map(|device| device.phone.as_str())
        } else {
            None
        };
        let ended = self
            .accounts
            .device_mut(from)
            .and_then(|device| device.queue.acked(class, &id, peer));
        if class == Class::Message
            && let Some(sender) = self.author_of(ended, claimed.as_ref(), &id, from)
        {
            let log = self.books.recipient_mut(&sender, &id, from);
            log.acks.push((now.into(), node.get_string("error")));
        }
    }

    /// The device that sent message `id` to `to`: as the queue says, or as the books do. `claimed` is who the receipt
    /// is addressed to, with or without the right device.
    fn author_of(
        &self,
        ended: Option<Entry>,
        claimed: Option<&DeviceId>,
        id: &str,
        to: &DeviceId,
    ) -> Option<DeviceId> {
        if let Some(sender) = ended.and_then(|entry| entry.peer) {
            return Some(sender);
        }
        let Some(claimed) = claimed else {
            return self.books.sender_of(id, to);
        };
        let account = self.accounts.devices_of(&claimed.phone);
        std::iter::once(claimed.clone())
            .chain(account)
            .find(|device| self.books.was_meant_for(device, id, to))
    }

    /// To all devices of the author: the receiving account, without device, has the message.
    fn forward_receipt(
        &mut self,
        from: &DeviceId,
        author: &str,
        form: Form,
        node: &Node,
        id: &str,
        now: Now,
    ) {
        let Some(user) = self.accounts.user(&from.phone, form) else {
            return;
        };
        let receipt = receipt(node, id, now).attr("from", user);
        for to in self.accounts.devices_of(author) {
            self.deliver(&to, Class::Receipt, id, Some(from), receipt.clone(), now);
        }
    }

    /// To the reader's other devices: this chat was read elsewhere.
    fn tell_own_devices(
        &mut self,
        from: &DeviceId,
        chat: &str,
        form: Form,
        node: &Node,
        id: &str,
        now: Now,
    ) {
        let (Some(user), Some(chat)) = (
            self.accounts.jid(from, form),
            self.accounts.user(chat, form),
        ) else {
            return;
        };
        let receipt = receipt(node, id, now)
            .attr("from", user)
            .attr("recipient", chat);
        for to in self
            .accounts
            .devices_of(&from.phone)
            .into_iter()
            .filter(|to| to != from)
        {
            self.deliver(&to, Class::Receipt, id, Some(from), receipt.clone(), now);
        }
    }

    fn forward_retry(
        &mut self,
        from: &DeviceId,
        sender: &DeviceId,
        form: Form,
        node: &Node,
        id: &str,
        now: Now,
    ) {
        let receipt = Node::new("receipt")
            .attr_opt("from", self.accounts.jid(from, form))
            .attr("id", id)
            .attr("type", "retry")
            .attr("t", now.secs())
            .attr_opt("participant", node.get("participant").cloned())
            .attr_opt("recipient", node.get("recipient").cloned())
            .attr_opt("category", node.get("category").cloned())
            .children(node.nodes().to_vec());
        self.deliver(sender, Class::Receipt, id, Some(from), receipt, now);
    }

    /// The one-time key in a retry receipt binds its id like an uploaded one.
    fn bind_retry_key(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let Some((id, key)) = node.path(&["keys", "key"]).and_then(read_key) else {
            return;
        };
        let Some(device) = self.accounts.device_mut(from) else {
            return;
        };
        if let Some(first) = device.vault.bind(KeyKind::OneTime, id, key) {
            self.books
                .rebound(from, KeyKind::OneTime, id, (first, key), now);
        }
    }
}

/// What all forwarded receipts have in common: id, time, type, and the list of further ids.
fn receipt(node: &Node, id: &str, now: Now) -> Node {
    Node::new("receipt")
        .attr("id", id)
        .attr("t", now.secs())
        .attr_opt("type", node.get("type").cloned())
        .children(node.find("list").cloned())
}
