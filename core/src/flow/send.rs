//! Sending to a user, once and under one id, whatever crashes.
//!
//! A send is a row from the moment it is accepted. It is encrypted when the recipient's devices and sessions are known;
//! the finished stanza goes into the row in the same batch as the ratchets it used. From then on exactly these bytes
//! go out, on every connection and from every owner, until the service has acknowledged the id: recipients refuse a
//! repeated counter, the service a repeated id, and no key ever meets a second plaintext.
//!
//! Sends to one chat are encrypted in the order of acceptance; chats do not wait for each other.

use super::{
    CommandError, CommandId, Content, Context, Event, Reply, SendRequest, devices,
    link::Link,
    query::{Answer, Query},
};
use crate::{
    crypto::sha256,
    jid::Jid,
    proto::{
        e2e,
        record::{self, Outbound, outbound::State},
    },
    signal::{self, CiphertextKind},
    state::{Key, MessageId, Micros, Record, Row, codec, codec::RowError, rules},
    wire::node::{self, Node},
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Largest serialized message. The service takes less; media travel elsewhere.
pub(crate) const CONTENT_BYTES: usize = 256 << 10;

/// Largest stanza that is sent: it has to fit into a frame, and with the message into a row. Only a service that lists
/// hundreds of devices for somebody makes one of this size.
const STANZA_BYTES: usize = 15 << 20;

/// Ids of a receipt that are looked at in one step.
const RECEIPT_IDS: usize = 16;

/// How often the service may fail to answer a question, or refuse for the moment, before a send fails.
const ATTEMPTS: u32 = 5;

/// Pause after such a failure; grows with their number.
const PAUSE: Micros = Micros::from_secs(2);

/// An empty device list is believed for this long (seconds): somebody may install the application.
const EMPTY_LIST_SECS: i64 = 300;

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
    bytes: usize,
    /// A request from the mailbox found no room: those behind it wait as well, or they would overtake it.
    mailbox_full: bool,
}

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
    /// How many are not acknowledged by the service.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    fn has_room(&self, cx: &Context, bytes: usize) -> bool {
        let most = cx.config.limits.outbox.get();
        u64::try_from(self.jobs.len()).is_ok_and(|len| len < u64::from(most))
            && u64::try_from(self.bytes + bytes)
                .is_ok_and(|bytes| bytes <= u64::from(cx.config.limits.gate_bytes.get()))
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
        let content = match request.content {
            Content::Text(text) => e2e::Message {
                conversation: Some(text),
                ..Default::default()
            }
            .encode_to_vec(),
            Content::Message(bytes) => {
                e2e::Message::decode(bytes.clone())
                    .map_err(|_| CommandError::Invalid("not a message"))?;
                bytes.to_vec()
            }
        };
        if content.len() > CONTENT_BYTES {
            return Err(CommandError::Invalid("the message is too large"));
        }
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
        self.insert(id.clone(), row, to);
        Ok(Reply::Accepted { id })
    }

    /// The sends that can be worked on now: the head of each chat that waits for nothing, oldest first.
    pub(crate) fn ready(&self, cx: &Context) -> Vec<MessageId> {
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

    /// Rows that the next step of a send reads.
    pub(crate) fn needs(&self, cx: &mut Context, id: &MessageId) -> Vec<Key> {
        match self.plan(cx, id) {
            Plan::Load(keys) => keys,
            _ => Vec::new(),
        }
    }

    /// Does the next step of a send.
    pub(crate) fn step(&mut self, cx: &mut Context, id: &MessageId) {
        match self.plan(cx, id) {
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
            Plan::Seal { target, devices } => self.seal(cx, id, &target, devices),
        }
    }

    fn plan(&self, cx: &mut Context, id: &MessageId) -> Plan {
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
        let mut payload = Vec::new();
        if node::encode(&stanza, &mut payload).is_err() || payload.len() > STANZA_BYTES {
            self.fail(cx, id, 0);
            return;
        }
        self.bytes += payload.len();
        job.row.state = Some(State::Sealed.into());
        job.row.stanza = Some(payload);
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

    /// Rows that [`receipt`](Self::receipt) reads.
    pub(crate) fn receipt_needs(&self, stanza: &Node, from: usize) -> Vec<Key> {
        receipt_ids(stanza)
            .skip(from)
            .take(RECEIPT_IDS)
            .filter(|id| !self.jobs.contains_key(id))
            .map(Key::Sent)
            .collect()
    }

    /// `<receipt>` of a recipient: so many ids from `from` on, lest a long list bring all its rows into memory at once.
    /// Returns where to go on; the receipt is acknowledged when nothing is left.
    pub(crate) fn receipt(
        &mut self,
        cx: &mut Context,
        stanza: &Node,
        from: usize,
    ) -> Option<usize> {
        let by = stanza
            .get_jid("participant")
            .or_else(|| stanza.get_jid("from"));
        let state = match stanza.get_string("type").as_deref() {
            None | Some("" | "inactive" | "delivery") => Some(State::Delivered),
            Some("read" | "played") => Some(State::Read),
            _ => None,
        };
        // What our own devices received or read says nothing about the recipient.
        if let (Some(by), Some(state)) = (by.filter(|by| !cx.account.is_mine(by)), state) {
            let at = stanza
                .get_u64("t")
                .and_then(|t| i64::try_from(t).ok())
                .unwrap_or_else(|| cx.unix());
            for id in receipt_ids(stanza).skip(from).take(RECEIPT_IDS) {
                self.progress(cx, &id, &by, state, at);
            }
            let next = from + RECEIPT_IDS;
            if receipt_ids(stanza).nth(next).is_some() {
                return Some(next);
            }
        }
        cx.acknowledge(stanza, None);
        None
    }

    fn progress(&mut self, cx: &mut Context, id: &MessageId, by: &Jid, state: State, at: i64) {
        // A receipt proves that the service had the message, even if its ack was lost.
        if self
            .jobs
            .get(id)
            .is_some_and(|job| job.row.state() == State::Sealed)
        {
            self.sent(cx, id, at);
        }
        let key = Key::Sent(id.clone());
        if !cx.rows.knows(&key) {
            return;
        }
        let Some(mut row) = cx.read::<Outbound>(&key) else {
            return;
        };
        let news = matches!(
            (row.state(), state),
            (State::Sent, State::Delivered | State::Read) | (State::Delivered, State::Read)
        );
        if !news {
            return;
        }
        row.state = Some(state.into());
        cx.put(key, codec::encode(&row));
        let (id, by) = (id.clone(), by.clone());
        cx.emit(match state {
            State::Read => Event::Read { id, by, at },
            _ => Event::Delivered { id, by, at },
        });
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

    /// Time has passed: what the service has not acknowledged in time is said again, the same bytes.
    pub(crate) fn tick(&mut self, cx: &mut Context, link: &Link) {
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
                if here {
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

/// All ids that a receipt speaks of: the attribute, then the list.
fn receipt_ids(stanza: &Node) -> impl Iterator<Item = MessageId> {
    let listed = stanza
        .find("list")
        .into_iter()
        .flat_map(|list| list.find_all("item"));
    stanza
        .get_string("id")
        .into_iter()
        .chain(listed.filter_map(|item| item.get_string("id")))
        .take(1024)
        .map(MessageId::from)
        // Others are not ours: we never used one that no store takes.
        .filter(|id| rules::key(&Key::Sent(id.clone())).is_ok())
}

/// Whether a row of the outbox says everything that is needed to go on with it.
fn is_pending(row: &Outbound, to: &Jid) -> bool {
    let complete = match row.state() {
        State::Queued => row.content.is_some(),
        State::Sealed => row.content.is_some() && row.stanza.is_some(),
        _ => false,
    };
    complete && to.is_user() && row.order.is_some_and(|order| order <= rules::MAX_NUMBER)
}

fn list_is_old(cx: &mut Context, user: &Jid) -> bool {
    let list: Option<record::DeviceList> = cx.read(&Key::DeviceList(user.bare()));
    list.is_none_or(|list| list.fetched_at.unwrap_or(0).saturating_add(EMPTY_LIST_SECS) < cx.unix())
}

pub(crate) fn has_session(cx: &mut Context, device: &Jid) -> bool {
    let session = cx.read_with(&Key::Session(device.clone()), devices::session_from);
    session.is_some_and(|session| session.is_usable_by(&cx.account.identity.public))
}

/// The LID of a phone number, if its row happens to be at hand.
fn known_lid(cx: &mut Context, user: &Jid) -> Option<Jid> {
    let phone = user.phone()?;
    cx.rows
        .knows(&Key::LidMap(phone.into()))
        .then(|| devices::lid_of(cx, user))
        .flatten()
}

/// Encrypts for one device and writes its session; `<enc>`. `first` is set if the recipient needs to see who we are.
pub(crate) fn encrypt(
    cx: &mut Context,
    device: &Jid,
    content: &[u8],
    first: &mut bool,
) -> Option<Node> {
    let key = Key::Session(device.clone());
    let mut session = cx.read_with(&key, devices::session_from)?;
    let padded = signal::pad(content, &mut cx.rng);
    let ciphertext = match signal::encrypt(&mut session, &cx.account.local(), &padded) {
        Ok(ciphertext) => ciphertext,
        Err(error) => {
            cx.protocol_error(format!("a session cannot encrypt: {error}"));
            return None;
        }
    };
    cx.put(key, codec::wrap(&session.encode()));
    let kind = match ciphertext.kind {
        CiphertextKind::Message => "msg",
        CiphertextKind::PreKey => {
            *first = true;
            "pkmsg"
        }
    };
    Some(
        Node::new("enc")
            .attr("v", "2")
            .attr("type", kind)
            .bytes(ciphertext.bytes),
    )
}

/// The copy for our own other devices: the message, and where it went.
pub(crate) fn device_sent(content: &[u8], to: &Jid) -> Vec<u8> {
    let context = e2e::Message::decode(content)
        .ok()
        .and_then(|message| message.message_context_info);
    e2e::Message {
        device_sent_message: Some(e2e::DeviceSentMessage {
            destination_jid: Some(to.to_string()),
            message: Some(content.to_vec()),
            phash: None,
        }),
        message_context_info: context,
        ..Default::default()
    }
    .encode_to_vec()
}

/// The stanza's `type`, and its `edit` if it changes another message (fact sheet 07.4).
pub(crate) fn stanza_type(content: &[u8]) -> (&'static str, Option<&'static str>) {
    let Ok(message) = e2e::Message::decode(content) else {
        return ("text", None);
    };
    if let Some(reaction) = &message.reaction_message {
        let removed = reaction.text.as_deref().unwrap_or_default().is_empty();
        return ("reaction", removed.then_some("7"));
    }
    if let Some(protocol) = &message.protocol_message {
        // 0 revokes, 14 edits.
        return (
            "text",
            if protocol.r#type == Some(14) {
                Some("1")
            } else {
                (protocol.r#type.unwrap_or(0) == 0).then_some("7")
            },
        );
    }
    if message.edited_message.is_some() {
        return ("text", Some("1"));
    }
    let text = message.conversation.is_some()
        || message.extended_text_message.is_some()
        || message.ephemeral_message.is_some();
    (if text { "text" } else { "media" }, None)
}

/// A fresh message id (fact sheet 07.1): `3EB0` and 18 hexadecimal digits of a hash over time, user and 16 random bytes.
#[must_use]
pub fn message_id(user: &str, unix_secs: i64, random: &[u8; 16]) -> MessageId {
    use std::fmt::Write as _;
    let hash = sha256(&[&unix_secs.to_be_bytes(), user.as_bytes(), b"@c.us", random]);
    let mut id = String::with_capacity(22);
    id.push_str("3EB0");
    for byte in hash.iter().take(9) {
        let _ = write!(id, "{byte:02X}");
    }
    id.into()
}

/// The row that [`Store::enqueue`](crate::state::Store::enqueue) takes: a request for the owner, under the message id.
/// Requests that wait together are taken in the order of `order`; a wall clock in microseconds serves.
#[must_use]
pub fn mailbox_request(request: &SendRequest, order: u64) -> Record {
    let (text, content) = match &request.content {
        Content::Text(text) => (Some(text.clone()), None),
        Content::Message(bytes) => (None, Some(bytes.to_vec())),
    };
    codec::encode(&record::Mailbox {
        to: Some(request.to.to_string()),
        text,
        content,
        order: Some(order),
    })
}

/// Reads such a row.
pub(crate) fn mailbox_from(id: MessageId, row: &Record) -> Result<(u64, SendRequest), RowError> {
    let row: record::Mailbox = codec::decode(row)?;
    let to = row
        .to
        .and_then(|to| to.parse().ok())
        .ok_or(RowError::Malformed)?;
    let content = match (row.text, row.content) {
        (Some(text), _) => Content::Text(text),
        (None, Some(bytes)) => Content::Message(bytes.into()),
        (None, None) => return Err(RowError::Malformed),
    };
    let order = row.order.unwrap_or(0);
    let request = SendRequest {
        id: Some(id),
        to,
        content,
    };
    Ok((order, request))
}

/// How far a send has come, for those who do not own the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendStatus {
    /// Accepted.
    Queued,
    /// Encrypted, not acknowledged by the service.
    Sealed,
    /// The service has it.
    Sent,
    /// A device of the recipient has it.
    Delivered,
    /// The recipient has read it.
    Read,
    /// Refused with this code; not delivered.
    Failed(u16),
}

/// Reads a row under [`Key::Outbox`] or [`Key::Sent`].
pub fn sent_status(row: &Record) -> Result<SendStatus, RowError> {
    let row: Outbound = codec::decode(row)?;
    Ok(match row.state() {
        State::Queued => SendStatus::Queued,
        State::Sealed => SendStatus::Sealed,
        State::Sent => SendStatus::Sent,
        State::Delivered => SendStatus::Delivered,
        State::Read => SendStatus::Read,
        State::Failed => SendStatus::Failed(
            row.code
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_have_the_form_of_the_web_client() {
        // vectors/misc.json checks the formula; this checks the alphabet and the length.
        let id = message_id("15550000001", 1_700_000_000, &[7; 16]);
        assert_eq!(id.len(), 22);
        assert!(
            id.starts_with("3EB0")
                && id
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
        );
        assert_ne!(id, message_id("15550000001", 1_700_000_001, &[7; 16]));
    }

    #[test]
    fn mailbox_rows_say_what_was_asked() {
        for content in [
            Content::Text("hello".into()),
            Content::Message(vec![0x0a, 1, b'x'].into()),
        ] {
            let request = SendRequest {
                id: Some("3EB0".into()),
                to: Jid::pn("15550000001").unwrap(),
                content,
            };
            assert_eq!(
                mailbox_from("3EB0".into(), &mailbox_request(&request, 5)),
                Ok((5, request))
            );
        }
        assert!(mailbox_from("3EB0".into(), &codec::encode(&record::Mailbox::default())).is_err());
    }

    #[test]
    fn stanza_types_follow_the_content() {
        let kind = |message: e2e::Message| stanza_type(&message.encode_to_vec());
        assert_eq!(
            kind(e2e::Message {
                conversation: Some("x".into()),
                ..Default::default()
            }),
            ("text", None)
        );
        let reaction = |text: &str| e2e::Message {
            reaction_message: Some(e2e::ReactionMessage {
                text: Some(text.into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(kind(reaction("👍")), ("reaction", None));
        assert_eq!(kind(reaction("")), ("reaction", Some("7")));
        let protocol = |kind: i32| e2e::Message {
            protocol_message: Some(Box::new(e2e::ProtocolMessage {
                r#type: Some(kind),
                ..Default::default()
            })),
            ..Default::default()
        };
        assert_eq!(kind(protocol(0)), ("text", Some("7")));
        assert_eq!(kind(protocol(14)), ("text", Some("1")));
        // Field 3, an image: unknown to our schema, known to be no text.
        assert_eq!(stanza_type(&[0x1a, 0x00]), ("media", None));
    }
}
