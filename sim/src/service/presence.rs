//! Who is there, who is typing, who is calling: forwarded to whoever is connected, queued for nobody.

use super::accounts::Form;
use super::{DeviceId, Now, Service};
use baton_core::jid::Jid;
use baton_core::wire::node::Node;
use smol_str::SmolStr;
use std::collections::BTreeMap;

/// By account: the devices that want to know about it, and under which name they asked.
pub(super) type Subscriptions = BTreeMap<SmolStr, BTreeMap<DeviceId, Jid>>;

/// More subscriptions of one device than this are not kept.
const SUBSCRIPTIONS_MAX: usize = 10_000;

impl Service {
    /// Own state, own name, or a subscription (chapter 04.13). Nothing is answered.
    pub(super) fn on_presence(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let kind = node.get_str("type");
        if let Some(to) = node.get_jid("to") {
            let Some(target) = self.accounts.resolve(&to) else {
                return;
            };
            match kind {
                Some("subscribe") => {
                    if self
                        .subscriptions
                        .values()
                        .map(|who| usize::from(who.contains_key(from)))
                        .sum::<usize>()
                        < SUBSCRIPTIONS_MAX
                    {
                        self.subscriptions
                            .entry(target.phone.clone())
                            .or_default()
                            .insert(from.clone(), to.bare());
                        self.tell_presence(&target.phone, Some(from), now);
                    }
                }
                Some("unsubscribe") => {
                    if let Some(who) = self.subscriptions.get_mut(&target.phone) {
                        who.remove(from);
                    }
                }
                _ => self.anomaly(from, "presence to somebody of unknown type", now),
            }
            return;
        }
        let Some(device) = self.accounts.device_mut(from) else {
            return;
        };
        if let Some(name) = node.get_string("name").filter(|name| !name.is_empty()) {
            device.push_name = Some(name.into());
        }
        let available = match kind {
            Some("available") => true,
            Some("unavailable") => false,
            _ => return,
        };
        if std::mem::replace(&mut device.available, available) != available {
            self.tell_presence(&from.phone, None, now);
        }
    }

    /// The device's connection is gone, and its presence with it.
    pub(super) fn went_offline(&mut self, device: &DeviceId, now: Now) {
        for who in self.subscriptions.values_mut() {
            who.remove(device);
        }
        if let Some(known) = self.accounts.device_mut(device)
            && std::mem::take(&mut known.available)
        {
            self.tell_presence(&device.phone, None, now);
        }
    }

    /// Tells the subscribers of an account, or one of them, whether anybody is there.
    fn tell_presence(&mut self, phone: &str, only: Option<&DeviceId>, now: Now) {
        let available = self
            .accounts
            .get(phone)
            .is_some_and(|a| a.devices.values().any(|device| device.available));
        let Some(who) = self.subscriptions.get(phone) else {
            return;
        };
        let who: Vec<_> = who
            .iter()
            .filter(|(device, _)| only.is_none_or(|only| only == *device))
            .map(|(device, jid)| (device.clone(), jid.clone()))
            .collect();
        for (device, jid) in who {
            let node = Node::new("presence").attr("from", jid);
            let node = if available {
                node
            } else {
                node.attr("type", "unavailable")
            };
            self.tell(&device, &node, now);
        }
    }

    /// `<chatstate>`: to every connected device of the other account.
    pub(super) fn on_chatstate(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let Some(to) = node.get_jid("to") else {
            return self.anomaly(from, "chatstate to nobody", now);
        };
        let Some(target) = self.accounts.resolve(&to) else {
            return;
        };
        let (Some(user), Some(child)) = (
            self.accounts.user(&from.phone, Form::of(&to)),
            node.nodes().first(),
        ) else {
            return;
        };
        let forward = Node::new("chatstate")
            .attr("from", user)
            .child(child.clone());
        for device in self.accounts.devices_of(&target.phone) {
            self.tell(&device, &forward, now);
        }
    }

    /// `<call>` is acknowledged and goes nowhere.
    pub(super) fn on_call(&mut self, from: &DeviceId, node: &Node, now: Now) {
        let Some(id) = node.get_str("id") else { return };
        let ack = Node::new("ack")
            .attr("class", "call")
            .attr("id", id)
            .attr_opt("from", node.get("to").cloned())
            .attr_opt("type", node.nodes().first().map(|child| child.tag.clone()));
        self.reply(from, &ack, now);
    }

    /// Sends to a device that is past its offline phase; for others the moment has passed.
    fn tell(&mut self, to: &DeviceId, node: &Node, now: Now) {
        if let Some(conn) = self.live.get(to).copied()
            && self
                .connections
                .get(&conn)
                .is_some_and(|connection| connection.active)
        {
            self.send(conn, node, now);
        }
    }
}
