//! Linking by QR code (fact sheet 03.3, 03.4).
//!
//! The service hands out references; each is shown as a QR code for a while. The phone that scans one answers through
//! the service with a signed identity for our key. We check everything, write the account, and only then say yes: the
//! confirmation stands behind the gate, so a crash leaves the account either linked on both sides or on neither.

use super::{
    CommandError, CommandId, Connection, Context, Event, Notice, Reply,
    account::LinkState,
    adv, devices,
    link::{Again, Link},
};
use crate::{
    jid::Jid,
    proto::record,
    state::{Key, Micros, codec},
    wire::node::Node,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::collections::VecDeque;

/// How often fresh codes are asked for before linking is given up: about 15 minutes.
const ROUNDS: u32 = 6;

/// References that the service gives at once; the first code is shown longer only while all are left.
const REFERENCES: usize = crate::limits::PAIRING_REFERENCES;

/// What fits into a QR code beside our keys, and far more than the service gives.
const REFERENCE_BYTES: usize = crate::limits::PAIRING_REFERENCE;

/// Longest name that is kept; the service's are shorter.
const NAME_BYTES: usize = crate::limits::NAME;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    waiting: Vec<CommandId>,
    references: VecDeque<String>,
    rotate_at: Option<Micros>,
    rounds: u32,
    /// The phone has scanned; waiting for the service to send us away.
    confirmed: bool,
}

impl Pairing {
    /// Whether somebody wants this account to be linked.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// [`Command::Link`](super::Command::Link).
    pub(crate) fn link(&mut self, cx: &mut Context, link: &mut Link, command: CommandId) {
        if let (true, Some(jid)) = (cx.account.is_linked(), cx.account.jid.clone()) {
            let lid = cx.account.lid.clone();
            cx.reply(command, Ok(Reply::Linked { jid, lid }));
            return;
        }
        self.waiting.push(command);
        self.rounds = 0;
        link.open(cx);
    }

    /// `<pair-device>`: take the references, show the first.
    pub(crate) fn pair_device(&mut self, cx: &mut Context, link: &mut Link, stanza: &Node) {
        answer(cx, stanza);
        if cx.account.is_linked() || !self.is_wanted() {
            return;
        }
        link.settled();
        cx.connection_is(Connection::Linking);
        let references = stanza
            .find("pair-device")
            .into_iter()
            .flat_map(|node| node.find_all("ref"));
        let given: Vec<&Node> = references.take(REFERENCES).collect();
        self.references = given.iter().filter_map(|node| reference(node)).collect();
        if self.references.len() < given.len() {
            cx.protocol_error("a reference that makes no code, which is left out");
        }
        self.rotate_at = None;
        self.rotate(cx, link);
    }

    fn rotate(&mut self, cx: &mut Context, link: &mut Link) {
        let (first, later) = cx.config.timing.qr;
        let valid = if self.references.len() == REFERENCES {
            first
        } else {
            later
        };
        let Some(reference) = self.references.pop_front() else {
            self.rotate_at = None;
            self.rounds += 1;
            if self.rounds >= ROUNDS {
                self.fail(cx, &CommandError::LinkExpired);
                link.end(cx, Again::Never, "no code was scanned");
            } else {
                link.end(cx, Again::AtOnce, "the codes have run out");
            }
            return;
        };
        self.rotate_at = Some(cx.now.mono.plus(valid));
        let text = format!(
            "https://wa.me/settings/linked_devices#{reference},{},{},{},1",
            BASE64.encode(cx.account.noise.public.as_bytes()),
            BASE64.encode(cx.account.identity.public.as_bytes()),
            BASE64.encode(cx.account.adv_secret.as_slice()),
        );
        cx.notice(Notice::Qr { text, valid });
    }

    /// Linking has come to nothing: says so to everybody who wanted it.
    pub(crate) fn fail(&mut self, cx: &mut Context, error: &CommandError) {
        for command in std::mem::take(&mut self.waiting) {
            cx.reply(command, Err(error.clone()));
        }
    }

    /// `<pair-success>`: check, write, confirm.
    pub(crate) fn pair_success(&mut self, cx: &mut Context, link: &mut Link, stanza: &Node) {
        if cx.account.is_linked() {
            cx.protocol_error("pair-success for a linked account");
            return;
        }
        match self.accept(cx, stanza) {
            Ok(()) => {
                self.references.clear();
                self.rotate_at = None;
                self.confirmed = true;
                // It sends us away now, to come back and log in.
                link.expect(cx);
            }
            Err(error) => {
                cx.protocol_error(format!("pairing refused: {error}"));
                let refusal = Node::new("error")
                    .attr("code", error.code())
                    .attr("text", error.to_string());
                cx.send(&reply_to(stanza, "error").child(refusal));
                link.end(cx, Again::Later, "pairing failed");
            }
        }
    }

    fn accept(&mut self, cx: &mut Context, stanza: &Node) -> Result<(), adv::AdvError> {
        let success = stanza
            .find("pair-success")
            .ok_or(adv::AdvError::Malformed)?;
        let container = success
            .find("device-identity")
            .and_then(Node::data)
            .ok_or(adv::AdvError::Malformed)?;
        let device = success.find("device").ok_or(adv::AdvError::Malformed)?;
        let jid = device
            .get_jid("jid")
            .filter(Jid::is_pn)
            .ok_or(adv::AdvError::Malformed)?;
        let lid = device.get_jid("lid").filter(Jid::is_lid);
        let platform = name(success, "platform").unwrap_or_default();

        let accepted = adv::accept(
            container,
            &cx.account.adv_secret,
            &cx.account.identity,
            &mut cx.rng,
        )?;
        let account = &mut cx.account;
        account.state = LinkState::Linked;
        account.jid = Some(jid.clone());
        account.lid.clone_from(&lid);
        account.adv = Some(accepted.full);
        account.platform = Some(platform.clone());
        if account.push_name.is_none() {
            account.push_name = name(success, "biz");
        }
        cx.save_account();
        // Of a former life, if the account was linked before.
        devices::forget(cx, lid.iter().cloned().chain([jid.clone()]));
        // The account key is the identity of the phone, device 0.
        let phone = lid.as_ref().unwrap_or(&jid).bare();
        let identity = record::Identity {
            key: Some(accepted.account_key.as_bytes().to_vec()),
        };
        cx.put(Key::Identity(phone), codec::encode(&identity));
        cx.emit(Event::Linked {
            jid: jid.clone(),
            lid: lid.clone(),
            platform,
        });

        let identity = Node::new("device-identity")
            .attr("key-index", accepted.key_index)
            .bytes(accepted.reply);
        cx.send(&reply_to(stanza, "result").child(Node::new("pair-device-sign").child(identity)));
        for command in std::mem::take(&mut self.waiting) {
            cx.reply(
                command,
                Ok(Reply::Linked {
                    jid: jid.clone(),
                    lid: lid.clone(),
                }),
            );
        }
        Ok(())
    }

    /// The connection has ended. Returns `true` if the next one is a login that should not wait.
    pub(crate) fn closed(&mut self) -> bool {
        self.references.clear();
        self.rotate_at = None;
        std::mem::take(&mut self.confirmed)
    }

    /// When something has to be done.
    pub(crate) const fn wake(&self) -> Option<Micros> {
        self.rotate_at
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, cx: &mut Context, link: &mut Link) {
        if self.rotate_at.is_some_and(|at| at <= cx.now.mono) {
            self.rotate(cx, link);
        }
    }
}

/// What one of the first references says, if a code can be made of it. Those behind the first are for nobody: as many
/// codes as there is time for come of these.
fn reference(node: &Node) -> Option<String> {
    String::from_utf8(node.data()?.to_vec())
        .ok()
        .filter(|reference| (1..=REFERENCE_BYTES).contains(&reference.len()))
}

/// What the phone says that it or its owner is called. Only shown: one that is too long is left out.
fn name(success: &Node, tag: &str) -> Option<String> {
    let name = success.find(tag)?.get_string("name")?;
    (name.len() <= NAME_BYTES).then_some(name)
}

/// The answer to an `<iq>` of the service, without content.
pub(crate) fn reply_to(stanza: &Node, kind: &'static str) -> Node {
    Node::new("iq")
        .attr("to", stanza.get_jid("from").unwrap_or_else(Jid::service))
        .attr("type", kind)
        .attr_opt("id", stanza.get_string("id"))
}

/// Answers an `<iq>` of the service with an empty result.
pub(crate) fn answer(cx: &mut Context, stanza: &Node) {
    cx.send_urgent(&reply_to(stanza, "result"));
}

/// Tells the service that an `<iq>` of its is not understood.
pub(crate) fn decline(cx: &mut Context, stanza: &Node) {
    let error = Node::new("error")
        .attr("code", 501u64)
        .attr("text", "feature-not-implemented");
    cx.send_urgent(&reply_to(stanza, "error").child(error));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{NAME, PAIRING_REFERENCE};

    #[test]
    fn a_reference_ends_at_its_limit() {
        let of = |length: usize| reference(&Node::new("ref").bytes(vec![b'x'; length]));
        for length in [1, PAIRING_REFERENCE - 1, PAIRING_REFERENCE] {
            assert_eq!(of(length).map(|text| text.len()), Some(length));
        }
        assert_eq!((of(0), of(PAIRING_REFERENCE + 1)), (None, None));
    }

    #[test]
    fn a_name_of_the_phone_ends_at_its_limit() {
        let of = |length: usize| {
            let biz = Node::new("biz").attr("name", "x".repeat(length));
            name(&Node::new("pair-success").child(biz), "biz")
        };
        for length in [NAME - 1, NAME] {
            assert_eq!(of(length).map(|text| text.len()), Some(length));
        }
        assert_eq!(of(NAME + 1), None);
    }
}
