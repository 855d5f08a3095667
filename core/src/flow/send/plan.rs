//! From an accepted send to a sealed one: which devices, which sessions, then everything in one batch.

use super::{ATTEMPTS, Job, PAUSE, Sends, device_sent, encrypt, stanza_type};
use crate::{
    flow::{
        Context, devices,
        query::{Answer, Query},
    },
    jid::Jid,
    proto::record::{self, outbound::State},
    state::{Key, MessageId, Micros, codec},
    wire::node::{self, Node},
};
use prost::Message as _;
use std::collections::BTreeSet;

/// Largest stanza that is sent: it has to fit into a frame, and with the message into a row. Only a service that lists
/// hundreds of devices for somebody makes one of this size.
const STANZA_BYTES: usize = crate::limits::STANZA_SENT;

/// An empty device list is believed for this long (seconds): somebody may install the application.
const EMPTY_LIST_SECS: i64 = 300;

/// What a send has to do next.
enum Plan {
    Load(Vec<Key>),
    AskDevices(Vec<Jid>),
    AskBundles(Vec<Jid>),
    Seal {
        target: Jid,
        devices: Vec<Jid>,
    },
    /// The recipient has no device that could be reached.
    Nobody,
    /// Nothing for now.
    Wait,
}

impl Sends {
    /// Rows that the next step of a send reads.
    pub(crate) fn needs(&self, cx: &mut Context, id: &MessageId) -> Vec<Key> {
        match self.plan(cx, id, true) {
            Plan::Load(keys) => keys,
            _ => Vec::new(),
        }
    }

    /// Does the next step of a send.
    pub(crate) fn step(&mut self, cx: &mut Context, id: &MessageId) {
        match self.plan(cx, id, false) {
            Plan::Load(_) | Plan::Wait => {}
            Plan::Nobody => self.fail(cx, id, 0),
            Plan::AskDevices(users) => {
                if let Some(job) = self.jobs.get_mut(id) {
                    job.asking = true;
                    job.asked_devices = true;
                }
                if !cx
                    .queries
                    .any(|query| *query == Query::Devices(users.clone()))
                {
                    devices::ask_devices(cx, users);
                }
            }
            Plan::AskBundles(list) => {
                if let Some(job) = self.jobs.get_mut(id) {
                    job.asking = true;
                }
                if !cx
                    .queries
                    .any(|query| *query == Query::Bundles(list.clone()))
                {
                    devices::ask_bundles(cx, list);
                }
            }
            // Others that were ready with it may have taken the room meanwhile. Then it is ready again later.
            Plan::Seal { .. } if !self.may_seal(cx) => {}
            Plan::Seal { target, devices } => self.seal(cx, id, &target, devices),
        }
    }

    /// Who only wants to know which rows it takes (`rows_only`) need not have sessions decoded, which is most of it.
    fn plan(&self, cx: &mut Context, id: &MessageId, rows_only: bool) -> Plan {
        let Some(job) = self
            .jobs
            .get(id)
            .filter(|job| job.row.state() == State::Queued && !job.asking)
        else {
            return Plan::Wait;
        };
        let Some(own) = cx.account.address().map(Jid::bare) else {
            return Plan::Wait;
        };
        // 1. The address that sessions go by.
        let mut target = job.to.clone();
        if let Some(phone) = job.to.phone() {
            let mine = cx.account.is_mine(&job.to);
            let key = Key::LidMap(phone.into());
            if mine {
                target = own.clone();
            } else if !cx.rows.knows(&key) {
                return Plan::Load(vec![key]);
            } else if let Some(lid) = devices::lid_of(cx, &job.to) {
                target = lid;
            } else if !job.asked_devices {
                return Plan::AskDevices(vec![job.to.clone()]);
            }
        }
        // 2. Device lists of both sides.
        let users: BTreeSet<Jid> = [target.clone(), own].into();
        let missing: Vec<Key> = users
            .iter()
            .map(|user| Key::DeviceList(user.clone()))
            .filter(|key| !cx.rows.knows(key))
            .collect();
        if !missing.is_empty() {
            return Plan::Load(missing);
        }
        let mut list = Vec::new();
        let mut unknown = Vec::new();
        for user in users {
            match devices::read_list(cx, &user) {
                Some(devices) if !devices.is_empty() => list.extend(devices),
                // An empty list is the answer for a while, and after having asked again.
                Some(_) if job.asked_devices || !list_is_old(cx, &user) => {}
                _ => unknown.push(user),
            }
        }
        if !unknown.is_empty() {
            return Plan::AskDevices(unknown);
        }
        let account = &cx.account;
        list.retain(|device| !account.is_me(device) && !job.unreachable.contains(device));
        // 3. A session with each.
        let missing: Vec<Key> = list
            .iter()
            .map(|device| Key::Session(device.clone()))
            .filter(|key| !cx.rows.knows(key))
            .collect();
        if !missing.is_empty() {
            return Plan::Load(missing);
        }
        if rows_only {
            return Plan::Wait;
        }
        let strangers: Vec<Jid> = list
            .iter()
            .filter(|device| !has_session(cx, device))
            .cloned()
            .collect();
        if !strangers.is_empty() {
            return Plan::AskBundles(strangers);
        }
        if list.iter().all(|device| cx.account.is_mine(device)) && !cx.account.is_mine(&target) {
            return Plan::Nobody;
        }
        Plan::Seal {
            target,
            devices: list,
        }
    }

    /// Encrypts for every device, writes stanza and ratchets in one batch, sends.
    fn seal(&mut self, cx: &mut Context, id: &MessageId, target: &Jid, devices: Vec<Jid>) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let content = job.row.content.clone().unwrap_or_default();
        let copy = device_sent(&content, target);
        let mut first = false;
        let mut recipients = Vec::new();
        for device in devices {
            let plaintext = if cx.account.is_mine(&device) {
                &copy
            } else {
                &content
            };
            if let Some(enc) = encrypt(cx, &device, plaintext, &mut first) {
                recipients.push(Node::new("to").attr("jid", device).child(enc));
            }
        }
        if recipients.is_empty() && !cx.account.is_mine(target) {
            self.fail(cx, id, 0);
            return;
        }
        let (kind, edit) = stanza_type(&content);
        let phone = Some(&job.to).filter(|to| to.is_pn() && target.is_lid());
        let mut stanza = Node::new("message")
            .attr("to", target)
            .attr("id", id.clone())
            .attr("type", kind)
            .attr_opt("peer_recipient_pn", phone)
            .attr_opt("edit", edit)
            .child(Node::new("participants").children(recipients));
        if let Some(proof) = cx.account.adv.clone().filter(|_| first) {
            stanza = stanza.child(Node::new("device-identity").bytes(proof));
        }
        let Some(payload) = sendable(&stanza) else {
            self.fail(cx, id, 0);
            return;
        };
        let before = job.row.encoded_len();
        self.sealed += payload.len();
        job.row.state = Some(State::Sealed.into());
        job.row.stanza = Some(payload);
        self.bytes = self.bytes.saturating_sub(before) + job.row.encoded_len();
        let chat = job.to.clone();
        cx.put(Key::Outbox(id.clone()), codec::encode(&job.row));
        cx.stats.messages_out += 1;
        self.leave_queue(&chat, id);
        self.transmit(cx, id);
    }

    /// The service has answered about devices.
    pub(crate) fn devices_answered(&mut self, cx: &mut Context, answer: &Answer, users: &[Jid]) {
        let concerned = |job: &Job, own: Option<&Jid>| {
            users.iter().any(|user| user.same_user(&job.to))
                || own.is_some_and(|own| users.iter().any(|u| u.same_user(own)))
                || users.iter().any(Jid::is_lid)
        };
        let own = cx.account.address().cloned();
        let failed = self.answered(cx, answer, |job| concerned(job, own.as_ref()));
        for (id, code) in failed {
            self.fail(cx, &id, code);
        }
    }

    /// The service has answered about bundles; `missing` are the devices that got no session from it.
    pub(crate) fn bundles_answered(&mut self, cx: &mut Context, answer: &Answer, missing: &[Jid]) {
        let failed = self.answered(cx, answer, |job| {
            if matches!(answer, Answer::Result(_)) {
                job.unreachable.extend(missing.iter().cloned());
            }
            true
        });
        for (id, code) in failed {
            self.fail(cx, &id, code);
        }
    }

    fn answered(
        &mut self,
        cx: &Context,
        answer: &Answer,
        mut concerned: impl FnMut(&mut Job) -> bool,
    ) -> Vec<(MessageId, u16)> {
        let mut failed = Vec::new();
        for (id, job) in &mut self.jobs {
            if !job.asking || !concerned(job) {
                continue;
            }
            job.asking = false;
            let code = match answer {
                Answer::Result(_) => continue,
                // Asked again on the next connection.
                Answer::Lost => {
                    job.asked_devices = false;
                    continue;
                }
                Answer::TimedOut => 0,
                Answer::Error(code) => *code,
            };
            job.asked_devices = false;
            job.attempts += 1;
            if job.attempts >= ATTEMPTS {
                failed.push((id.clone(), code));
            } else {
                job.not_before = Some(cx.now.mono.plus(Micros(PAUSE.0 << job.attempts)));
            }
        }
        failed
    }
}

/// The bytes of a stanza, if they may be sent.
fn sendable(stanza: &Node) -> Option<Vec<u8>> {
    let mut payload = Vec::new();
    node::encode(stanza, &mut payload).ok()?;
    (payload.len() <= STANZA_BYTES).then_some(payload)
}

fn list_is_old(cx: &mut Context, user: &Jid) -> bool {
    let list: Option<record::DeviceList> = cx.read(&Key::DeviceList(user.bare()));
    list.is_none_or(|list| list.fetched_at.unwrap_or(0).saturating_add(EMPTY_LIST_SECS) < cx.unix())
}

pub(crate) fn has_session(cx: &mut Context, device: &Jid) -> bool {
    let session = devices::session(cx, &Key::Session(device.clone()));
    session.is_some_and(|session| session.is_usable_by(&cx.account.identity.public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{FRAME, MESSAGE_SENT, ROW, STANZA_SENT},
        proto::record::Outbound,
    };

    #[test]
    fn a_stanza_ends_at_its_limit_and_fits_into_frame_and_row() {
        let of = |bytes: usize| sendable(&Node::new("a").bytes(vec![0; bytes]));
        let around = of(1 << 20).unwrap().len() - (1 << 20);
        let below = of(STANZA_SENT - around - 1).unwrap();
        assert_eq!(below.len(), STANZA_SENT - 1);
        let largest = of(STANZA_SENT - around).unwrap();
        assert_eq!(largest.len(), STANZA_SENT);
        assert_eq!(of(STANZA_SENT - around + 1), None);

        // Noise adds 16 bytes; a row has the message beside it, and what says to whom it goes.
        assert!(largest.len() + 16 <= FRAME);
        let row = Outbound {
            state: Some(State::Sealed.into()),
            to: Some("9".repeat(255)),
            content: Some(vec![0; MESSAGE_SENT]),
            stanza: Some(largest),
            order: Some(u64::MAX),
            accepted_at: Some(-1),
            ..Default::default()
        };
        assert!(codec::encode(&row).0.len() <= ROW);
    }
}
