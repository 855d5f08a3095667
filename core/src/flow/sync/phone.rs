//! What the own phone is asked for: peer messages (fact sheet 07.6).
//!
//! Such a question is not kept in a row: what makes us ask is, and it is asked again when that comes up again. A key is
//! asked for at most once a day, counted from when the service has taken the question. A question that the phone cannot
//! read is asked again, under its id, in a session that it can read.

use super::phone_of;
use crate::{
    appstate::{Collection, KeyId},
    flow::{Context, devices, send},
    jid::Jid,
    proto::e2e::{self, protocol_message::Type},
    state::{Key, MessageId},
    wire::node::Node,
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The peer data operation that asks for a collection in clear.
pub(super) const RECOVERY: i32 = 8;

/// Most keys in one question.
const KEYS: usize = 256;

/// Questions that are remembered.
const SENT: usize = 64;

/// A question is asked again so often at most.
const RETRIES: u32 = 5;

/// What is asked for.
#[derive(Clone, Debug)]
enum Question {
    Keys(Vec<KeyId>),
    Recovery(Collection),
}

#[derive(Debug)]
struct Asked {
    question: Question,
    /// The service has it.
    taken: bool,
    retries: u32,
}

#[derive(Debug, Default)]
pub(super) struct Phone {
    /// Keys to ask for.
    keys: BTreeSet<KeyId>,
    /// Collections to ask for.
    recoveries: BTreeSet<Collection>,
    /// Questions that the phone could not read.
    again: VecDeque<MessageId>,
    /// Work is queued.
    queued: bool,
    /// The session is no good: another one is made first.
    fresh: bool,
    /// Keys for a session were asked for.
    bundle_asked: bool,
    asked: BTreeMap<MessageId, Asked>,
    /// Their ids, oldest first.
    order: VecDeque<MessageId>,
}

impl Phone {
    pub(super) fn ask_keys(&mut self, ids: impl Iterator<Item = KeyId>) {
        let under_way = self.asked.values().filter(|asked| !asked.taken);
        let known: BTreeSet<&KeyId> = under_way
            .flat_map(|asked| match &asked.question {
                Question::Keys(ids) => ids.as_slice(),
                Question::Recovery(_) => &[],
            })
            .collect();
        let new: Vec<KeyId> = ids.filter(|id| !known.contains(id)).collect();
        self.keys.extend(new);
    }

    pub(super) fn ask_recovery(&mut self, collection: Collection) {
        self.recoveries.insert(collection);
    }

    /// Whether there is something to say. Notes that it is being said.
    pub(super) fn is_due(&mut self) -> bool {
        let nothing = self.keys.is_empty() && self.recoveries.is_empty() && self.again.is_empty();
        let due = !nothing && !self.queued;
        self.queued |= due;
        due
    }

    /// Whether this is the id of a question of ours.
    pub(super) fn has_asked(&self, id: &str) -> bool {
        self.asked.contains_key(id)
    }

    /// The connection has ended: what was not taken is said again.
    pub(super) fn closed(&mut self) {
        self.queued = false;
        self.bundle_asked = false;
        let lost: Vec<MessageId> = self
            .asked
            .iter()
            .filter(|(_, asked)| !asked.taken)
            .map(|(id, _)| id.clone())
            .collect();
        for id in lost {
            self.order.retain(|other| *other != id);
            match self.asked.remove(&id).map(|asked| asked.question) {
                Some(Question::Keys(ids)) => self.keys.extend(ids),
                Some(Question::Recovery(collection)) => {
                    self.recoveries.insert(collection);
                }
                None => {}
            }
        }
    }

    pub(super) fn needs(&self, cx: &Context) -> Vec<Key> {
        let phone = phone_of(cx).into_iter().collect::<Vec<_>>();
        devices::bundle_needs(&phone)
    }

    /// Says it.
    pub(super) fn speak(&mut self, cx: &mut Context) {
        let Some(phone) = phone_of(cx) else { return };
        if cx.connection.is_none() {
            self.queued = false;
            return;
        }
        let has_session = send::has_session(cx, &phone);
        if self.fresh || !has_session {
            // Stays queued until the answer has come: then it is tried once more.
            if !std::mem::replace(&mut self.bundle_asked, true) {
                devices::ask_bundles(cx, vec![phone]);
                return;
            }
            if !has_session {
                // The service has none either. What waits for the phone waits for the next connection.
                return;
            }
        }
        self.fresh = false;
        self.bundle_asked = false;
        self.queued = false;
        if let Some(id) = self.again.pop_front() {
            let question = self.asked.get(&id).map(|asked| asked.question.clone());
            if let Some(question) = question {
                cx.stats.sync.phone_retries += 1;
                say(cx, &phone, id, &question);
            }
            return;
        }
        let question = match self.recoveries.pop_first() {
            Some(collection) => Question::Recovery(collection),
            None => {
                let ids: Vec<KeyId> = self.keys.iter().take(KEYS).cloned().collect();
                self.keys.retain(|id| !ids.contains(id));
                if ids.is_empty() {
                    return;
                }
                cx.stats.sync.key_requests += 1;
                Question::Keys(ids)
            }
        };
        let Some(own) = cx.account.jid.clone() else {
            return;
        };
        let id = send::message_id(own.user(), cx.unix(), &cx.rng.bytes());
        if say(cx, &phone, id.clone(), &question) {
            if self.order.len() >= SENT
                && let Some(oldest) = self.order.pop_front()
            {
                self.asked.remove(&oldest);
            }
            self.order.push_back(id.clone());
            let asked = Asked {
                question,
                taken: false,
                retries: 0,
            };
            self.asked.insert(id, asked);
        }
    }

    /// The phone says that it cannot read a question: with keys for a new session in its receipt, or without. Needs the
    /// rows of [`needs`](Self::needs).
    pub(super) fn again(&mut self, cx: &mut Context, stanza: &Node) {
        cx.acknowledge(stanza, None);
        let id = MessageId::from(stanza.get_string("id").unwrap_or_default());
        let (Some(asked), Some(phone)) = (self.asked.get_mut(&id), phone_of(cx)) else {
            return;
        };
        asked.retries += 1;
        if asked.retries > RETRIES || self.again.contains(&id) {
            return;
        }
        let proof = stanza
            .path(&["keys", "device-identity"])
            .and_then(Node::data);
        let bundle = stanza
            .find("keys")
            .and_then(|_| devices::parse_bundle(stanza, stanza));
        let started =
            bundle.is_some_and(|bundle| devices::start_session(cx, &phone, &bundle, proof));
        self.fresh = !started;
        self.again.push_back(id);
    }

    /// The service has answered about the phone's keys: another try.
    pub(super) fn bundles_answered(&mut self) {
        if self.bundle_asked {
            self.queued = false;
        }
    }

    /// The service has taken a question, or refused it. Returns the keys that were asked for.
    pub(super) fn acknowledged(&mut self, id: &str, refused: bool) -> Vec<KeyId> {
        let Some(asked) = self.asked.get_mut(id) else {
            return Vec::new();
        };
        if refused {
            self.asked.remove(id);
            self.order.retain(|other| other != id);
            return Vec::new();
        }
        if std::mem::replace(&mut asked.taken, true) {
            return Vec::new();
        }
        match &asked.question {
            Question::Keys(ids) => ids.clone(),
            Question::Recovery(_) => Vec::new(),
        }
    }
}

fn content(cx: &Context, question: &Question) -> e2e::ProtocolMessage {
    match question {
        Question::Keys(ids) => e2e::ProtocolMessage {
            r#type: Some(Type::AppStateSyncKeyRequest.into()),
            app_state_sync_key_request: Some(e2e::AppStateSyncKeyRequest {
                key_ids: ids
                    .iter()
                    .map(|id| e2e::AppStateSyncKeyId {
                        key_id: Some(id.as_bytes().to_vec()),
                    })
                    .collect(),
            }),
            ..Default::default()
        },
        Question::Recovery(collection) => {
            let request = e2e::PeerDataOperationRequestMessage {
                r#type: Some(RECOVERY),
                syncd_collection_fatal_recovery_request: Some(
                    e2e::SyncdCollectionFatalRecoveryRequest {
                        collection_name: Some(collection.to_string()),
                        timestamp: Some(cx.unix()),
                    },
                ),
            };
            e2e::ProtocolMessage {
                r#type: Some(Type::PeerDataOperationRequestMessage.into()),
                peer_data_operation_request_message: Some(request.encode_to_vec()),
                ..Default::default()
            }
        }
    }
}

/// Encrypts a question for the phone and sends it. `false` if there is no session after all.
fn say(cx: &mut Context, phone: &Jid, id: MessageId, question: &Question) -> bool {
    let Some(own) = cx.account.jid.clone() else {
        return false;
    };
    let content = e2e::Message {
        protocol_message: Some(Box::new(content(cx, question))),
        ..Default::default()
    };
    let mut first = false;
    let Some(enc) = send::encrypt(cx, phone, &content.encode_to_vec(), &mut first) else {
        return false;
    };
    let priority = match question {
        Question::Keys(_) => "high",
        Question::Recovery(_) => "high_force",
    };
    let mut stanza = Node::new("message")
        .attr("id", id)
        .attr("to", own.bare())
        .attr("type", "text")
        .attr("category", "peer")
        .attr("push_priority", priority)
        .child(Node::new("meta").attr("appdata", "default"))
        .child(enc);
    if let Some(proof) = cx.account.adv.clone().filter(|_| first) {
        stanza = stanza.child(Node::new("device-identity").bytes(proof));
    }
    cx.send(&stanza);
    true
}
