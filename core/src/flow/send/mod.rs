//! Sending to a user, once and under one id, whatever crashes.
//!
//! A send is a row from the moment it is accepted. It is encrypted when the recipient's devices and sessions are known;
//! the finished stanza goes into the row in the same batch as the ratchets it used. From then on exactly these bytes
//! go out, on every connection and from every owner, until the service has acknowledged the id: recipients refuse a
//! repeated counter, the service a repeated id, and no key ever meets a second plaintext.
//!
//! Sends to one chat are encrypted in the order of acceptance; chats do not wait for each other.
//!
//! Here: the outbox, from acceptance to the service's acknowledgement. `plan`: how a send becomes a sealed stanza.
//! `receipts`: what recipients say. `stanza`: the pieces of a message. `rows`: what others than the owner write and read.

mod plan;
mod receipts;
mod rows;
mod stanza;

pub(crate) use plan::has_session;
pub use rows::{SendStatus, mailbox_request, sent_status};
pub(crate) use rows::{mailbox_from, requested};
pub use stanza::message_id;
pub(crate) use stanza::{device_sent, encrypt, stanza_type};

use super::{
    CommandError, CommandId, Content, Context, Event, Reply, SendRequest, devices, link::Link, sync,
};
use crate::{
    jid::Jid,
    proto::{
        e2e,
        record::{Outbound, outbound::State},
    },
    state::{Key, MessageId, Micros, Row, codec, codec::RowError, rules},
    wire::node::Node,
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Largest serialized message. The service takes less; media travel elsewhere.
pub(crate) const CONTENT_BYTES: usize = crate::limits::MESSAGE_SENT;

/// How often the service may fail to answer a question, or refuse for the moment, before a send fails.
const ATTEMPTS: u32 = 5;

/// Pause after such a failure; grows with their number.
const PAUSE: Micros = Micros::from_secs(2);

#[derive(Debug)]
struct Job {
    row: Outbound,
    to: Jid,
    /// Waiting for an answer of the service.
    asking: bool,
    asked_devices: bool,
    attempts: u32,
    /// Nothing happens before.
    not_before: Option<Micros>,
    /// Devices whose bundle could not be had.
    unreachable: BTreeSet<Jid>,
    /// The connection that carried the stanza last, and when to repeat it there.
    sent_on: Option<(u64, Micros)>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    jobs: BTreeMap<MessageId, Job>,
    /// Sends that are not sealed, by chat.
    queues: BTreeMap<Jid, VecDeque<MessageId>>,
    /// Bytes of all of them, as rows.
    bytes: usize,
    /// Bytes of the stanzas of those that are sealed.
    sealed: usize,
    /// A request from the mailbox found no room: those behind it wait as well, or they would overtake it.
    mailbox_full: bool,
}

impl Sends {
    /// How many are not acknowledged by the service.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// An empty outbox has room for one message of any size, which is what a message may have at most: `Busy` says that
    /// it will be otherwise later, and for a message larger than the room it never would be.
    fn has_room(&self, cx: &Context, bytes: usize) -> bool {
        let most = cx.config.limits.outbox.get();
        u64::try_from(self.jobs.len()).is_ok_and(|len| len < u64::from(most))
            && (self.jobs.is_empty()
                || u64::try_from(self.bytes + bytes)
                    .is_ok_and(|bytes| bytes <= u64::from(cx.config.limits.gate_bytes.get())))
    }

    /// How large a stanza becomes is the service's word: so many devices, so many ciphertexts. Messages that would fit
    /// the outbox many times over as they are wait with their encryption until the service has taken some.
    fn may_seal(&self, cx: &Context) -> bool {
        u64::try_from(self.sealed)
            .is_ok_and(|bytes| bytes < u64::from(cx.config.limits.gate_bytes.get()))
    }

    /// Takes in the rows that a previous owner left.
    pub(crate) fn start(&mut self, cx: &mut Context, rows: Vec<(Key, Row)>) {
        for (key, row) in rows {
            let Key::Outbox(id) = &key else { continue };
            let decoded = match &row {
                Row::Present(record) => codec::decode::<Outbound>(record).and_then(|row| {
                    let to: Jid = row
                        .to
                        .as_deref()
                        .unwrap_or_default()
                        .parse()
                        .map_err(|_| RowError::Malformed)?;
                    if is_pending(&row, &to) && !self.jobs.contains_key(id) {
                        Ok((row, to))
                    } else {
                        Err(RowError::Malformed)
                    }
                }),
                _ => Err(RowError::Malformed),
            };
            match decoded {
                Ok((row, to)) => self.insert(id.clone(), row, to),
                Err(_) => cx.corrupt(key),
            }
        }
        // Queues in the order of acceptance, not of ids.
        for queue in self.queues.values_mut() {
            let jobs = &self.jobs;
            queue
                .make_contiguous()
                .sort_by_key(|id| jobs.get(id).and_then(|job| job.row.order));
        }
    }

    fn insert(&mut self, id: MessageId, row: Outbound, to: Jid) {
        self.bytes += row.encoded_len();
        self.sealed += stanza_bytes(&row);
        if row.state() == State::Queued {
            self.queues
                .entry(to.clone())
                .or_default()
                .push_back(id.clone());
        }
        let job = Job {
            row,
            to,
            asking: false,
            asked_devices: false,
            attempts: 0,
            not_before: None,
            unreachable: BTreeSet::new(),
            sent_on: None,
        };
        self.jobs.insert(id, job);
    }

    fn remove(&mut self, id: &MessageId) -> Option<Job> {
        let job = self.jobs.remove(id)?;
        self.bytes = self.bytes.saturating_sub(job.row.encoded_len());
        self.sealed = self.sealed.saturating_sub(stanza_bytes(&job.row));
        self.leave_queue(&job.to, id);
        Some(job)
    }

    fn leave_queue(&mut self, chat: &Jid, id: &MessageId) {
        if let Some(queue) = self.queues.get_mut(chat) {
            queue.retain(|other| other != id);
            if queue.is_empty() {
                self.queues.remove(chat);
            }
        }
    }

    /// The mailbox is read anew.
    pub(crate) fn mailbox_read(&mut self) {
        self.mailbox_full = false;
    }

    /// Rows that [`accept`](Self::accept) reads.
    pub(crate) fn accept_needs(request: &SendRequest) -> Vec<Key> {
        request.id.iter().map(|id| Key::Sent(id.clone())).collect()
    }

    /// What is wrong with a request, whatever the state of the account.
    pub(crate) fn check(request: &SendRequest) -> Result<(), CommandError> {
        let is_id = |id: &MessageId| rules::key(&Key::Sent(id.clone())).is_ok();
        if !request.id.as_ref().is_none_or(is_id) {
            return Err(CommandError::Invalid(
                "a message id has 1 to 255 bytes, none of them NUL",
            ));
        }
        if !request.to.is_user() {
            return Err(CommandError::Invalid("the recipient is not a user"));
        }
        let bytes = match &request.content {
            Content::Text(text) if text.is_empty() => {
                return Err(CommandError::Invalid("the text is empty"));
            }
            Content::Text(text) => text.len(),
            Content::Message(bytes) => bytes.len(),
        };
        if bytes > CONTENT_BYTES {
            return Err(CommandError::Invalid("the message is too large"));
        }
        Ok(())
    }

    /// Accepts a send: from a command, or from the mailbox (then its row is deleted in the same batch).
    pub(crate) fn accept(
        &mut self,
        cx: &mut Context,
        command: Option<CommandId>,
        request: SendRequest,
    ) {
        let given = request.id.clone();
        if command.is_none() && self.mailbox_full {
            return;
        }
        let result = self.try_accept(cx, request);
        match (command, result) {
            (Some(command), result) => cx.reply(command, result),
            // From the mailbox: what can be tried again stays there.
            (None, Err(error)) if error.is_retryable() || error == CommandError::NotLinked => {
                self.mailbox_full = true
            }
            (None, result) => {
                let Some(id) = given else { return };
                if let Err(error) = result {
                    cx.protocol_error(format!("a request in the mailbox is refused: {error}"));
                    let row = Outbound {
                        state: Some(State::Failed.into()),
                        code: Some(400),
                        ..Default::default()
                    };
                    cx.put(Key::Sent(id.clone()), codec::encode(&row));
                }
                cx.delete(Key::Mailbox(id));
            }
        }
    }

    fn try_accept(
        &mut self,
        cx: &mut Context,
        request: SendRequest,
    ) -> Result<Reply, CommandError> {
        if !cx.account.is_linked() {
            return Err(CommandError::NotLinked);
        }
        Self::check(&request)?;
        let (content, decoded) = encoded(request.content)?;
        let id = match request.id {
            Some(id) => {
                if self.jobs.contains_key(&id) || cx.rows.get(&Key::Sent(id.clone())).is_some() {
                    return Ok(Reply::Accepted { id });
                }
                id
            }
            None => {
                let user = cx.account.jid.as_ref().map_or("", Jid::user).to_owned();
                message_id(&user, cx.unix(), &cx.rng.bytes())
            }
        };
        if !self.has_room(cx, content.len()) {
            return Err(CommandError::Busy);
        }
        let order = cx.counters.next_order.unwrap_or(1);
        cx.counters.next_order = Some(order + 1);
        cx.save_counters();
        let to = request.to.bare();
        let row = Outbound {
            state: Some(State::Queued.into()),
            to: Some(to.to_string()),
            content: Some(content),
            order: Some(order),
            accepted_at: Some(cx.now.unix.0),
            ..Default::default()
        };
        cx.put(Key::Outbox(id.clone()), codec::encode(&row));
        if let Some(decoded) = decoded
            && let Some(own) = cx.account.address().cloned()
        {
            sync::secret_shown(cx, &to, &own, &id, &decoded);
        }
        self.insert(id.clone(), row, to);
        Ok(Reply::Accepted { id })
    }

    /// The sends that can be worked on now: the head of each chat that waits for nothing, oldest first.
    pub(crate) fn ready(&self, cx: &Context) -> Vec<MessageId> {
        if !self.may_seal(cx) {
            return Vec::new();
        }
        let mut heads: Vec<(Option<u64>, &MessageId)> = self
            .queues
            .values()
            .filter_map(VecDeque::front)
            .filter_map(|id| {
                let job = self.jobs.get(id)?;
                let due = job.not_before.is_none_or(|at| at <= cx.now.mono);
                (!job.asking && due).then_some((job.row.order, id))
            })
            .collect();
        heads.sort();
        heads.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// The account is online: everything sealed goes out again, oldest first.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        let mut sealed: Vec<(Option<u64>, MessageId)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.row.state() == State::Sealed)
            .map(|(id, job)| (job.row.order, id.clone()))
            .collect();
        sealed.sort();
        for (_, id) in sealed {
            self.transmit(cx, &id);
        }
        for job in self.jobs.values_mut() {
            job.asking = false;
        }
    }

    fn transmit(&mut self, cx: &mut Context, id: &MessageId) {
        let (Some(job), Some(connection)) = (self.jobs.get_mut(id), cx.connection) else {
            return;
        };
        if let Some(stanza) = job.row.stanza.clone() {
            job.sent_on = Some((connection, cx.now.mono.plus(cx.config.timing.query)));
            cx.send_encoded(stanza);
        }
    }

    /// `<ack class="message">`: the service has the message, or refuses it.
    pub(crate) fn acknowledged(&mut self, cx: &mut Context, stanza: &Node) {
        let Some(id) = stanza.get_string("id").map(MessageId::from) else {
            return;
        };
        let Some(job) = self
            .jobs
            .get_mut(&id)
            .filter(|job| job.row.state() == State::Sealed)
        else {
            return;
        };
        let at = stanza
            .get_u64("t")
            .and_then(|t| i64::try_from(t).ok())
            .unwrap_or_else(|| cx.unix());
        match stanza
            .get_u64("error")
            .and_then(|code| u16::try_from(code).ok())
            .unwrap_or(0)
        {
            0 => {
                if stanza.get_str("phash").is_some_and(|hash| !hash.is_empty()) {
                    // The service reached another set of devices than we thought.
                    let users = [Some(job.to.clone()), cx.account.address().cloned()];
                    let lid = known_lid(cx, &job.to);
                    devices::forget(cx, users.into_iter().flatten().chain(lid));
                }
                self.sent(cx, &id, at);
            }
            429 | 500 | 503 if job.attempts < ATTEMPTS => {
                job.attempts += 1;
                let connection = cx.connection.unwrap_or(0);
                job.sent_on = Some((
                    connection,
                    cx.now.mono.plus(Micros(PAUSE.0 << job.attempts)),
                ));
            }
            code => self.fail(cx, &id, code),
        }
    }

    /// The service has a message: it leaves the outbox, but is kept to answer retry receipts.
    fn sent(&mut self, cx: &mut Context, id: &MessageId, at: i64) {
        let Some(job) = self.remove(id) else { return };
        let mut row = job.row;
        row.state = Some(State::Sent.into());
        row.stanza = None;
        row.sent_at = Some(at);
        cx.delete(Key::Outbox(id.clone()));
        cx.put(Key::Sent(id.clone()), codec::encode(&row));
        cx.emit(Event::Sent {
            id: id.clone(),
            to: job.to,
            at,
        });
    }

    fn fail(&mut self, cx: &mut Context, id: &MessageId, code: u16) {
        let Some(job) = self.remove(id) else { return };
        let mut row = job.row;
        row.state = Some(State::Failed.into());
        row.stanza = None;
        row.code = Some(code.into());
        cx.delete(Key::Outbox(id.clone()));
        cx.put(Key::Sent(id.clone()), codec::encode(&row));
        cx.emit(Event::Failed {
            id: id.clone(),
            to: job.to,
            code,
        });
    }

    /// A send that is still in the outbox.
    pub(crate) fn pending(&self, id: &MessageId) -> Option<&Outbound> {
        self.jobs.get(id).map(|job| &job.row)
    }

    /// When something has to be done.
    pub(crate) fn wake(&self) -> Option<Micros> {
        self.jobs
            .values()
            .flat_map(|job| {
                [
                    job.not_before.filter(|_| !job.asking),
                    job.sent_on.map(|(_, at)| at),
                ]
            })
            .flatten()
            .min()
    }

    /// Time has passed: what the service has not acknowledged in time is said again, the same bytes. Not while much waits
    /// at the gate, where it would only stand beside what has not left yet, once more for each time that passes.
    pub(crate) fn tick(&mut self, cx: &mut Context, link: &Link) {
        let crowded = u64::try_from(cx.gate.bytes())
            .is_ok_and(|bytes| bytes >= u64::from(cx.config.limits.gate_bytes.get()));
        let late: Vec<MessageId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.sent_on.is_some_and(|(_, at)| at <= cx.now.mono))
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            if let Some(job) = self.jobs.get_mut(&id) {
                let here =
                    job.sent_on.is_some_and(|(on, _)| on == link.generation()) && link.is_up();
                job.sent_on = None;
                if here && crowded {
                    job.sent_on =
                        Some((link.generation(), cx.now.mono.plus(cx.config.timing.query)));
                } else if here {
                    self.transmit(cx, &id);
                }
            }
        }
        for job in self.jobs.values_mut() {
            if job.not_before.is_some_and(|at| at <= cx.now.mono) {
                job.not_before = None;
            }
        }
    }
}

fn stanza_bytes(row: &Outbound) -> usize {
    row.stanza.as_ref().map_or(0, Vec::len)
}

/// A message as bytes; and as what it is, if it came as bytes.
fn encoded(content: Content) -> Result<(Vec<u8>, Option<e2e::Message>), CommandError> {
    let (content, decoded) = match content {
        Content::Text(text) => {
            let message = e2e::Message {
                conversation: Some(text),
                ..Default::default()
            };
            (message.encode_to_vec(), None)
        }
        Content::Message(bytes) => {
            let decoded = e2e::Message::decode(bytes.clone())
                .map_err(|_| CommandError::Invalid("not a message"))?;
            (bytes.to_vec(), Some(decoded))
        }
    };
    if content.len() > CONTENT_BYTES {
        return Err(CommandError::Invalid("the message is too large"));
    }
    Ok((content, decoded))
}

/// Whether a row of the outbox says everything that is needed to go on with it. What is sent goes to a user, not to one of
/// the user's devices.
fn is_pending(row: &Outbound, to: &Jid) -> bool {
    let complete = match row.state() {
        State::Queued => row.content.is_some(),
        State::Sealed => row.content.is_some() && row.stanza.is_some(),
        _ => false,
    };
    let for_user = to.is_user() && to.device() == 0;
    complete && for_user && row.order.is_some_and(|order| order <= rules::MAX_NUMBER)
}

/// The LID of a phone number, if its row happens to be at hand.
fn known_lid(cx: &mut Context, user: &Jid) -> Option<Jid> {
    let phone = user.phone()?;
    cx.rows
        .knows(&Key::LidMap(phone.into()))
        .then(|| devices::lid_of(cx, user))
        .flatten()
}
