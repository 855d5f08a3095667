//! How devices are found, and who is told when they change (chapters 07.2 and 10.8).

use super::accounts::{Account, DeviceId, Form};
use super::iq::{Answer, IqError};
use super::queue::Class;
use super::{Now, Service};
use baton_core::jid::Jid;
use baton_core::wire::node::Node;

impl Service {
    /// `xmlns="usync"`: each user is answered under the JID that was asked for, with the protocols that were asked for.
    pub(super) fn iq_usync(&mut self, by: &DeviceId, iq: &Node) -> Answer {
        let usync = iq.find("usync").ok_or(IqError::BAD_REQUEST)?;
        let protocols: Vec<&str> = usync
            .find("query")
            .map_or_else(Vec::new, |q| q.nodes().iter().map(Node::tag).collect());
        let list = usync.find("list").ok_or(IqError::BAD_REQUEST)?;
        let mut users = Vec::new();
        for user in list.find_all("user") {
            users.extend(self.usync_user(by, user, &protocols));
        }
        let echo = ["sid", "mode", "last", "index", "context"];
        let mut answer = Node::new("usync");
        for name in echo {
            answer = answer.attr_opt(name, usync.get(name).cloned());
        }
        let result = protocols.iter().map(|name| Node::new(*name));
        Ok(Some(
            answer
                .child(Node::new("result").children(result.collect::<Vec<_>>()))
                .child(Node::new("list").children(users)),
        ))
    }

    fn usync_user(&mut self, by: &DeviceId, user: &Node, protocols: &[&str]) -> Option<Node> {
        let number = user
            .find("contact")
            .and_then(Node::data)
            .and_then(|text| std::str::from_utf8(text).ok());
        let asked = match (user.get_jid("jid"), number) {
            (Some(jid), _) => jid,
            (None, Some(number)) => Jid::pn(number.trim_start_matches('+')).ok()?,
            (None, None) => return None,
        };
        let account = self
            .accounts
            .resolve(&asked)
            .and_then(|id| self.accounts.get_mut(&id.phone));
        let mut node = Node::new("user").attr("jid", &asked);
        for protocol in protocols {
            node = node.children(match (*protocol, &account) {
                ("devices", Some(account)) => Some(
                    Node::new("devices")
                        .children(account.device_list(Form::of(&asked), &mut self.rng)),
                ),
                // A user that does not exist has no devices.
                ("devices", None) => Some(Node::new("devices").child(Node::new("device-list"))),
                ("lid", Some(account)) => Some(Node::new("lid").attr("val", &account.lid)),
                ("contact", found) => {
                    let kind = if found.is_some() { "in" } else { "out" };
                    let contact = Node::new("contact").attr("type", kind);
                    Some(match number {
                        Some(number) => contact.text(number),
                        None => contact,
                    })
                }
                ("status", Some(_)) => Some(Node::new("status")),
                _ => None,
            });
        }
        if let Some(account) = account
            && account.pn.user() != by.phone
            && protocols.contains(&"devices")
        {
            account.watchers.insert(by.phone.clone());
        }
        Some(node)
    }

    /// A companion joined: its account's other devices and everybody who knows the account are told.
    pub(super) fn device_added(&mut self, id: &DeviceId, now: Now) {
        self.devices_changed(id, "add", now);
    }

    /// A companion left.
    pub(super) fn device_removed(&mut self, id: &DeviceId, now: Now) {
        self.devices_changed(id, "remove", now);
    }

    fn devices_changed(&mut self, id: &DeviceId, what: &'static str, now: Now) {
        let Some(account) = self.accounts.get_mut(&id.phone) else {
            return;
        };
        account.changed = now.secs().max(account.changed.saturating_add(1));
        let (pn, lid) = (account.pn.clone(), account.lid.clone());
        let index = account
            .devices
            .get(&id.device)
            .map(|device| device.key_index);
        let change = Node::new(what)
            .attr("device_hash", account.device_hash(Form::Pn))
            .attr("device_lid_hash", account.device_hash(Form::Lid))
            .child(
                Node::new("device")
                    .attr("jid", pn.clone().with_device(id.device))
                    .attr_opt("key-index", index)
                    .attr("lid", lid.clone().with_device(id.device)),
            )
            .child(account.key_index_node(&mut self.rng));
        let own = Node::new("devices")
            .attr("dhash", account.device_hash(Form::Pn))
            .children(account.devices_with_index(Form::Pn))
            .child(account.key_index_node(&mut self.rng));
        let own_devices: Vec<u16> = account
            .devices
            .keys()
            .copied()
            .filter(|device| *device != id.device)
            .collect();
        let watchers: Vec<_> = account.watchers.iter().cloned().collect();

        for device in own_devices {
            let (to, own, pn) = (DeviceId::new(&id.phone, device), own.clone(), pn.clone());
            self.notify(
                &to,
                "account_sync",
                |node| node.attr("from", pn).child(own),
                now,
            );
        }
        for phone in watchers {
            for to in self
                .accounts
                .devices_of(&phone)
                .into_iter()
                .filter(|to| !to.is_phone())
            {
                let (change, pn, lid) = (change.clone(), pn.clone(), lid.clone());
                self.notify(
                    &to,
                    "devices",
                    |node| node.attr("from", pn).attr("lid", lid).child(change),
                    now,
                );
            }
        }
    }

    /// Queues a notification. Without a `from` of its own it comes from the service.
    pub(super) fn notify(
        &mut self,
        to: &DeviceId,
        kind: &'static str,
        fill: impl FnOnce(Node) -> Node,
        now: Now,
    ) {
        let id = self.next_id();
        let node = Node::new("notification")
            .attr("id", id.as_str())
            .attr("type", kind)
            .attr("t", now.secs());
        let mut node = fill(node);
        if node.get("from").is_none() {
            node = node.attr("from", Jid::service());
        }
        self.deliver(to, Class::Notification, &id, None, node, now);
    }
}

impl Account {
    /// `<device-list>` and `<key-index-list>`. One client ignores a list without the latter, another every companion
    /// without a key index (chapter 10.1.6).
    fn device_list(&self, form: Form, rng: &mut baton_core::crypto::Rng) -> [Node; 2] {
        let devices = self.device_numbers().map(|device| {
            let index = self.devices.get(&device).map(|device| device.key_index);
            Node::new("device")
                .attr("id", device)
                .attr_opt("key-index", index)
        });
        let list = Node::new("device-list")
            .attr("hash", self.device_hash(form))
            .children(devices.collect::<Vec<_>>());
        [list, self.key_index_node(rng)]
    }

    fn devices_with_index(&self, form: Form) -> Vec<Node> {
        self.device_numbers()
            .map(|device| {
                let index = self.devices.get(&device).map(|device| device.key_index);
                Node::new("device")
                    .attr("jid", self.jid(form).clone().with_device(device))
                    .attr_opt("key-index", index)
            })
            .collect()
    }

    fn key_index_node(&self, rng: &mut baton_core::crypto::Rng) -> Node {
        Node::new("key-index-list")
            .attr("ts", self.changed)
            .bytes(self.key_index_list(rng))
    }
}
