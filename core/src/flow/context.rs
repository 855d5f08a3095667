//! What all flows share: the account, its rows, the gate through which effects leave, the clock, the generator.
//!
//! A flow never talks to the world. It changes rows ([`Context::put`]) and queues effects ([`Context::send`],
//! [`Context::emit`], …). Each effect is stamped with the position in the write history that it depends on: everything
//! written so far. The engine lets it out when that is durable, so a flow cannot get the order of "persist, then show"
//! wrong.

use super::{
    CommandError, CommandId, Config, Connection, Event, Notice, Reply,
    account::Account,
    inbox::Inbox,
    query::{Queries, Query},
    sync::{FetchId, FromPhone, MediaRequest, SyncScan, SyncStats},
};
use crate::{
    crypto::Rng,
    jid::Jid,
    proto::record::Counters,
    state::{AccountId, EventSeq, Key, Micros, Now, Record, Seq, WorkingSet, codec},
    wire::node::{self, Node},
};
use std::collections::{BTreeSet, VecDeque};

/// An effect on its way out.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Ask for the connection of this generation.
    Open(u64),
    /// Close the connection of this generation.
    Close(u64),
    /// Handshake bytes, written as they are.
    Raw(u64, Vec<u8>),
    /// An encoded node for the connection of this generation. Sealed when it leaves, so that nonces follow the wire.
    Stanza(u64, Vec<u8>),
    /// As a stanza, for a ping or the answer to one: it says nothing but that the connection is in use.
    KeepAlive(u64, Vec<u8>),
    Event(EventSeq, Event),
    Notice(Notice),
    Reply(CommandId, Result<Reply, CommandError>),
    Fetch(FetchId, MediaRequest),
    FetchMore(FetchId),
    StopFetch(FetchId),
}

impl Effect {
    fn bytes(&self) -> usize {
        match self {
            Self::Raw(_, bytes) | Self::Stanza(_, bytes) | Self::KeepAlive(_, bytes) => {
                64 + bytes.len()
            }
            // The text stands in the content and beside it.
            Self::Event(_, Event::Message(message)) => 256 + 2 * message.content.len(),
            Self::Event(_, Event::History(part)) => {
                256 + part
                    .messages
                    .iter()
                    .map(|message| 100 + message.info.len())
                    .sum::<usize>()
            }
            Self::Reply(_, Ok(Reply::Contacts { contacts, .. })) => 256 * (1 + contacts.len()),
            Self::Reply(_, Ok(Reply::Chats { chats, .. })) => 256 * (1 + chats.len()),
            Self::Reply(_, Ok(Reply::Settings { settings, .. })) => 512 * (1 + settings.len()),
            Self::Notice(Notice::Qr { text, .. } | Notice::Protocol(text)) => 64 + text.len(),
            _ => 64,
        }
    }
}

/// The FIFO of effects, and a lane beside it for what depends on nothing and must not wait for a slow database: pings,
/// their answers, handshakes.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    fifo: VecDeque<(Seq, Effect)>,
    urgent: VecDeque<Effect>,
    bytes: usize,
}

impl Gate {
    fn push(&mut self, after: Seq, effect: Effect) {
        self.bytes += effect.bytes();
        self.fifo.push_back((after, effect));
    }

    fn push_urgent(&mut self, effect: Effect) {
        self.bytes += effect.bytes();
        self.urgent.push_back(effect);
    }

    /// The next effect that may leave.
    pub(crate) fn pop(&mut self, rows: &WorkingSet) -> Option<Effect> {
        if let Some(effect) = self.urgent.pop_front() {
            self.bytes -= effect.bytes();
            return Some(effect);
        }
        let (after, _) = self.fifo.front()?;
        if !rows.is_durable(*after) {
            return None;
        }
        let (_, effect) = self.fifo.pop_front()?;
        self.bytes -= effect.bytes();
        Some(effect)
    }

    /// The next effect that may leave while there is no right to act: what keeps a connection, and what ends one.
    pub(crate) fn pop_idle(&mut self) -> Option<Effect> {
        let at = self
            .urgent
            .iter()
            .position(|effect| matches!(effect, Effect::KeepAlive(..) | Effect::Close(_)))?;
        let effect = self.urgent.remove(at)?;
        self.bytes -= effect.bytes();
        Some(effect)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fifo.is_empty() && self.urgent.is_empty()
    }

    /// Bytes waiting for a commit.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What an engine counts; all of it since it was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Frames received and decrypted.
    pub frames_in: u64,
    /// Frames sealed.
    pub frames_out: u64,
    /// Messages decrypted.
    pub messages_in: u64,
    /// Messages that came again.
    pub duplicates: u64,
    /// Messages that could not be decrypted.
    pub decrypt_failures: u64,
    /// Retry receipts sent.
    pub retries_asked: u64,
    /// Retry receipts answered with a new copy.
    pub retries_answered: u64,
    /// Messages encrypted (stanzas, not devices).
    pub messages_out: u64,
    /// Rows that could not be read.
    pub corrupt_rows: u64,
    /// Things the protocol does not allow.
    pub protocol_errors: u64,
    /// Batches handed out.
    pub batches: u64,
    /// Connections asked for.
    pub connects: u64,
    /// Settings and history.
    pub sync: SyncStats,
    /// Losses of commits that were made up for when the engine started.
    pub losses: u64,
}

/// See the module documentation.
pub(crate) struct Context {
    pub(crate) id: AccountId,
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) now: Now,
    pub(crate) rows: WorkingSet,
    pub(crate) account: Account,
    pub(crate) counters: Counters,
    pub(crate) gate: Gate,
    pub(crate) queries: Queries,
    pub(crate) inbox: Inbox,
    /// Generation of the connection that stanzas go to; `None` while there is none.
    pub(crate) connection: Option<u64>,
    /// Announced as available on this connection.
    pub(crate) available: bool,
    /// Rows to ask the store for.
    pub(crate) wanted: BTreeSet<Key>,
    /// Slices of tables to ask the store for, once everything up to there is durable: a scan sees nothing else.
    pub(crate) scans: VecDeque<(Seq, SyncScan)>,
    /// What the phone has said that is not a message: for settings and history.
    pub(crate) from_phone: VecDeque<FromPhone>,
    pub(crate) stats: Stats,
}

impl Context {
    /// Writes a row.
    pub(crate) fn put(&mut self, key: Key, record: Record) {
        self.rows.put(key, Some(record));
    }

    /// Deletes a row.
    pub(crate) fn delete(&mut self, key: Key) {
        self.rows.put(key, None);
    }

    /// Reads a row that was loaded, and decodes it. A row that does not decode is reported, counted and treated as
    /// absent: one bad row must not take the account, or anybody else, down with it.
    pub(crate) fn read<M: prost::Message + Default>(&mut self, key: &Key) -> Option<M> {
        self.read_with(key, codec::decode)
    }

    /// As [`read`](Self::read), for rows with a format of their own.
    pub(crate) fn read_with<T, E>(
        &mut self,
        key: &Key,
        decode: impl FnOnce(&Record) -> Result<T, E>,
    ) -> Option<T> {
        let decoded = decode(self.rows.get(key)?);
        match decoded {
            Ok(value) => Some(value),
            Err(_) => {
                // Said once for each time it was loaded.
                self.rows.disregard(key);
                self.corrupt(key.clone());
                None
            }
        }
    }

    /// Reports a row that cannot be read.
    pub(crate) fn corrupt(&mut self, key: Key) {
        self.stats.corrupt_rows += 1;
        self.notice(Notice::CorruptRow(key));
    }

    /// Writes the account row.
    pub(crate) fn save_account(&mut self) {
        let record = self.account.to_record();
        self.put(Key::Device, record);
    }

    /// Message keys that the account has burnt in all, because its store lost commits. For sessions; and, since it grows
    /// with every loss, for whatever else has to be verified once after one: a row that remembers the burn it was last
    /// verified under is verified again when this is higher.
    pub(crate) const fn burn(&self) -> u32 {
        match self.counters.burn {
            Some(burn) => burn,
            None => 0,
        }
    }

    /// Writes the counters.
    pub(crate) fn save_counters(&mut self) {
        let record = codec::encode(&self.counters);
        self.put(Key::Counters, record);
    }

    fn queue(&mut self, effect: Effect) {
        self.gate.push(self.rows.position(), effect);
    }

    /// Sends a stanza once everything written so far is durable. Dropped if the connection ends before that: whatever
    /// must survive a connection is kept in a row, and said again on the next one.
    pub(crate) fn send(&mut self, node: &Node) {
        if let (Some(connection), Some(payload)) = (self.connection, self.encode(node)) {
            self.queue(Effect::Stanza(connection, payload));
        }
    }

    /// Sends a stanza that was encoded before.
    pub(crate) fn send_encoded(&mut self, payload: Vec<u8>) {
        if let Some(connection) = self.connection {
            self.queue(Effect::Stanza(connection, payload));
        }
    }

    /// Sends a stanza past the gate. Only for what depends on no row.
    pub(crate) fn send_urgent(&mut self, node: &Node) {
        if let (Some(connection), Some(payload)) = (self.connection, self.encode(node)) {
            self.gate.push_urgent(Effect::Stanza(connection, payload));
        }
    }

    /// Writes handshake bytes past the gate.
    pub(crate) fn send_raw(&mut self, connection: u64, bytes: Vec<u8>) {
        self.gate.push_urgent(Effect::Raw(connection, bytes));
    }

    fn encode(&mut self, node: &Node) -> Option<Vec<u8>> {
        // Most have less, so that it is not moved while it grows.
        let mut payload = Vec::with_capacity(128);
        match node::encode(node, &mut payload) {
            Ok(()) => Some(payload),
            Err(error) => {
                self.protocol_error(format!("a stanza of ours cannot be encoded: {error}"));
                None
            }
        }
    }

    /// Asks the service; the answer (or its absence) comes back with `query`.
    pub(crate) fn ask(&mut self, node: Node, query: Query) {
        let (id, _) = self
            .queries
            .open(query, self.now.mono.plus(self.config.timing.query));
        self.send(&node.attr("id", id));
    }

    /// Asks the service whether it is there, past the gate.
    pub(crate) fn ping(&mut self, node: Node) {
        let (id, _) = self
            .queries
            .open(Query::Ping, self.now.mono.plus(self.config.timing.query));
        self.keep_alive(&node.attr("id", id));
    }

    /// Says that the connection is in use: past the gate, and even while there is no right to act.
    pub(crate) fn keep_alive(&mut self, node: &Node) {
        if let (Some(connection), Some(payload)) = (self.connection, self.encode(node)) {
            self.gate
                .push_urgent(Effect::KeepAlive(connection, payload));
        }
    }

    /// Asks for a connection.
    pub(crate) fn open_connection(&mut self, connection: u64) {
        self.stats.connects += 1;
        self.queue(Effect::Open(connection));
    }

    /// Closes a connection after what was queued before.
    pub(crate) fn close_connection(&mut self, connection: u64) {
        self.queue(Effect::Close(connection));
    }

    /// Closes a connection at once.
    pub(crate) fn cut_connection(&mut self, connection: u64) {
        self.gate.push_urgent(Effect::Close(connection));
    }

    /// Records an event and shows it as soon as it is durable and the consumer has room.
    pub(crate) fn emit(&mut self, event: Event) -> EventSeq {
        let seq = EventSeq(self.counters.next_event.unwrap_or(1).max(1));
        self.counters.next_event = Some(seq.0 + 1);
        self.save_counters();
        let record = codec::encode(&super::inbox::to_row(&event));
        self.put(Key::Inbox(seq), record);
        if self
            .inbox
            .takes(seq, self.config.limits.events_in_flight.get())
        {
            self.queue(Effect::Event(seq, event));
        }
        seq
    }

    /// Shows an event that is in the store already.
    pub(crate) fn show(&mut self, seq: EventSeq, event: Event) {
        self.queue(Effect::Event(seq, event));
    }

    /// Says something in passing.
    pub(crate) fn notice(&mut self, notice: Notice) {
        self.queue(Effect::Notice(notice));
    }

    /// Says how the connection is.
    pub(crate) fn connection_is(&mut self, state: Connection) {
        self.notice(Notice::Connection(state));
    }

    /// Asks for a slice of a table, as it is with everything written so far.
    pub(crate) fn ask_scan(&mut self, scan: SyncScan) {
        self.scans.push_back((self.rows.position(), scan));
    }

    /// Starts a download.
    pub(crate) fn fetch(&mut self, id: FetchId, request: MediaRequest) {
        self.stats.sync.fetches += 1;
        self.queue(Effect::Fetch(id, request));
    }

    /// Asks for the next bytes of a download, once everything that came of the last ones is durable.
    pub(crate) fn fetch_more(&mut self, id: FetchId) {
        self.queue(Effect::FetchMore(id));
    }

    /// Ends a download.
    pub(crate) fn stop_fetch(&mut self, id: FetchId) {
        self.queue(Effect::StopFetch(id));
    }

    /// Answers a command.
    pub(crate) fn reply(&mut self, command: CommandId, result: Result<Reply, CommandError>) {
        self.queue(Effect::Reply(command, result));
    }

    /// Counts and reports something the protocol does not allow. Never put addresses or text into it.
    pub(crate) fn protocol_error(&mut self, what: impl Into<String>) {
        self.stats.protocol_errors += 1;
        self.notice(Notice::Protocol(what.into()));
    }

    /// A time between two others.
    pub(crate) fn between(&mut self, (least, most): (Micros, Micros)) -> Micros {
        Micros(least.0 + self.rng.below(most.0.saturating_sub(least.0) + 1))
    }

    /// Unix seconds.
    pub(crate) fn unix(&self) -> i64 {
        self.now.unix.secs()
    }

    /// Sends an `<ack>` for a stanza that we are done with (fact sheet 04.5): ids and addresses are echoed, also
    /// `recipient`, without which the service ends the stream.
    pub(crate) fn acknowledge(&mut self, stanza: &Node, error: Option<u16>) {
        let (Some(id), Some(from)) = (stanza.get_string("id"), stanza.get_jid("from")) else {
            return;
        };
        let class = stanza.tag().to_owned();
        let is_receipt_of = |participant: &Jid| class == "receipt" && *participant == from;
        let participant = stanza
            .get_jid("participant")
            .filter(|jid| !is_receipt_of(jid));
        let kind = stanza.get_string("type");
        // WhatsApp Web leaves the type out here, and only here.
        let kind = kind.filter(|kind| {
            !(class == "notification" && kind == "encrypt" && stanza.find("identity").is_some())
        });
        let own = self.account.jid.clone().filter(|_| class == "message");
        self.send(
            &Node::new("ack")
                .attr("id", id)
                .attr("class", class)
                .attr("to", from)
                .attr_opt("participant", participant)
                .attr_opt("recipient", stanza.get_jid("recipient"))
                .attr_opt("type", kind)
                .attr_opt("from", own)
                .attr_opt("error", error.map(u64::from)),
        );
    }
}
