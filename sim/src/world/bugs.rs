//! Old mistakes, put back one at a time, to see which judge finds them. A judge that cannot find anybody guilty proves
//! nothing when it is silent.
//!
//! None of them is in the product. What goes wrong inside an engine shows in what it writes, asks for and says: so rows
//! are left out of its batches or changed in them, answers come too early, loads bring what was there before, stanzas
//! that it should have sent are kept from the service and stanzas that it should have heeded from it. What goes wrong in
//! a driver is done by the world, which is one. Many are from the field; what others have called them stands beside them.

use super::World;
use crate::service::Tamper;
use baton_core::{
    proto::record::{self, outbound::State},
    state::{Batch, Key, Lease, Record, Row, Seq, Table, codec},
    wire::node::{Content, Node},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Which.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What is wrong.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

bugs! {
    // ---- what is written
    /// Sessions are not kept: the next owner encrypts with keys that were used (any file store that saves now and then).
    ForgetsSessions,
    /// The ratchet of a message that came in is not kept, the event is.
    ForgetsRatchets,
    /// Private halves of pre-keys are not kept ("invalid pre-key id" after a restart).
    ForgetsPreKeys,
    /// Duplicate marks and ratchets of incoming messages are not kept.
    ForgetsMarks,
    /// Events are acknowledged and not kept.
    ForgetsEvents,
    /// Sends that are sealed are not kept: gone with the process.
    ForgetsOutbox,
    /// What was sent is not kept: retry receipts cannot be answered ("waiting for this message").
    ForgetsSent,
    /// Numbers are not kept.
    ForgetsCounters,
    /// The device's row is not kept: linked, and unlinked after a restart.
    ForgetsDevice,
    /// Versions of collections are not kept.
    ForgetsCollections,
    /// Settings are not kept, versions are ("LTHash mismatch").
    ForgetsSettings,
    /// Keys for settings are not kept.
    ForgetsSettingsKeys,
    /// Contacts are not kept.
    ForgetsContacts,
    /// Settings of chats are not kept.
    ForgetsChats,
    /// Identities of others are not kept.
    ForgetsIdentities,
    /// Events that were acknowledged are not deleted.
    KeepsEvents,
    /// Sends that the service has are not deleted.
    KeepsOutbox,
    /// Requests that were accepted are not deleted.
    KeepsMail,
    /// Settings that were removed are not deleted.
    KeepsSettings,
    /// Used pre-keys are not deleted, and the session that was made is not written.
    KeepsPreKeys,
    /// The next event's number is written one behind.
    CountersLag,
    /// The next pre-key's number is not written: after a restart it begins at 1.
    PreKeysFromOne,
    /// That message keys have to be skipped after a loss is not written.
    BurnForgotten,
    /// A sealed message is kept unsealed: the next owner encrypts it again.
    SealForgotten,
    /// The plaintext of what was sent is not kept.
    PlainForgotten,
    /// Changes of settings that wait are not kept.
    PendingForgotten,
    /// The hash of a collection is not kept.
    HashForgotten,
    /// Of a batch whose owner has died only the first half is written.
    HalfBatch,

    // ---- when it is written
    /// A send leaves before it is durable.
    SentBeforeCommit,
    /// A message is acknowledged before it is durable (any client that acknowledges before its callback returns).
    AckBeforeKeep,
    /// Pre-keys are uploaded before they are durable.
    UploadBeforeKeep,
    /// Settings are announced before they are durable.
    AnnouncedBeforeKeep,
    /// Nothing waits for the store (write-behind).
    WriteBehind,

    // ---- what is read
    /// A new owner reads sessions as they were one write ago (a replica that is behind).
    StaleSessions,
    /// A new owner reads numbers as they were some writes ago.
    StaleCounters,
    /// A new owner reads collections as they were two writes ago.
    StaleCollections,
    /// A new owner reads the send queue as it was.
    StaleOutbox,
    /// A new owner does not look for sends of the former one.
    OutboxNotScanned,
    /// A new owner does not look for events of the former one.
    InboxNotScanned,
    /// A page of a table misses its last row.
    ShortPages,
    /// The mailbox gives the last request first.
    MailboxBackwards,
    /// Rows come in another order than they were asked for.
    RowsReversed,
    /// A large read misses its last row.
    RowsShort,

    // ---- whose it is
    /// Whoever sends a batch may write it.
    NoFence,
    /// A refused commit is taken for a good one.
    FencedIgnored,
    /// A process that was declared dead goes on.
    DeadIgnored,
    /// A lease is believed to last for ever.
    LeaseForever,
    /// A loss of commits is not noticed.
    LossUnnoticed,
    /// A new owner numbers its batches from one behind where they stand.
    AppliedBehind,
    /// The generator of a new owner begins where the last began (a virtual machine that was cloned).
    SeedReused,

    // ---- the driver
    /// Now and then a write is lost.
    LostWrite,
    /// Now and then a write is made twice.
    TwiceWritten,
    /// The mailbox is not looked at.
    MailboxForgotten,
    /// Of a large message only the first kilobyte is read.
    ShortBuffer,
    /// Batches of one commit are written in the wrong order.
    BatchesReversed,
    /// A commit that failed is taken for a good one.
    ErrorSwallowed,
    /// A commit whose outcome is unknown is made again as another one.
    RetriedAsNew,
    /// The consumer is shown an event twice.
    ShownTwice,

    // ---- the protocol
    /// Retry receipts are not heeded (Baileys without `getMessage`).
    IgnoresRetry,
    /// What cannot be decrypted is not asked for again.
    RetryNeverAsked,
    /// What cannot be decrypted is acknowledged as if it could.
    AcksUndecryptable,
    /// Retry receipts carry no keys.
    RetryWithoutKeys,
    /// Messages are not acknowledged (the offline queue comes again and again).
    NoReceipts,
    /// Notifications are not acknowledged.
    NotificationsUnacked,
    /// Receipts are not acknowledged.
    ReceiptsUnacked,
    /// Acknowledgements name another stanza.
    WrongAckId,
    /// Acknowledgements of sends are not heeded.
    AckIgnored,
    /// A message that is repeated gets a new id (a retry loop around `sendMessage`).
    NewIdOnRepeat,
    /// Own devices get no copy of what is sent.
    OwnCopiesForgotten,
    /// Only one device of the recipient gets a message.
    OneDeviceOnly,
    /// Pre-key ids begin again (whatsmeow's wrap-around at 2^24, here at 16).
    PreKeyIdsWrap,
    /// Running out of pre-keys is not noticed.
    PreKeyNoticeIgnored,
    /// That settings have changed is not noticed.
    SettingsNoticeIgnored,
    /// A receipt of history is not sent: the phone never sends the next chunk.
    HistoryUnreceipted,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{self:?}");
        for (at, letter) in name.char_indices() {
            if at > 0 && letter.is_uppercase() {
                f.write_str("-")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|bug| bug.to_string() == text);
        found
            .copied()
            .ok_or_else(|| format!("there is no bug {text}"))
    }
}

/// What bugs have to remember.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Rows as they were, the latest last.
    before: BTreeMap<(usize, Key), Vec<Option<Record>>>,
    /// Rows that a life has read already.
    served: BTreeSet<(usize, u64, Key)>,
    writes: u64,
}

/// Writes of a table that are left out.
fn forgotten(bug: Bug) -> &'static [Table] {
    match bug {
        Bug::ForgetsSessions => &[Table::Session],
        Bug::ForgetsPreKeys => &[Table::PreKey],
        Bug::ForgetsEvents => &[Table::Inbox],
        Bug::ForgetsOutbox => &[Table::Outbox],
        Bug::ForgetsSent => &[Table::Sent],
        Bug::ForgetsCounters => &[Table::Counters],
        Bug::ForgetsDevice => &[Table::Device],
        Bug::ForgetsCollections => &[Table::AppStateVersion],
        Bug::ForgetsSettings => &[Table::AppStateMutationMac],
        Bug::ForgetsSettingsKeys => &[Table::AppStateSyncKey],
        Bug::ForgetsContacts => &[Table::Contact],
        Bug::ForgetsChats => &[Table::ChatSettings],
        Bug::ForgetsIdentities => &[Table::Identity],
        _ => &[],
    }
}

/// Deletions from a table that are left out.
fn kept(bug: Bug) -> &'static [Table] {
    match bug {
        Bug::KeepsEvents => &[Table::Inbox],
        Bug::KeepsOutbox => &[Table::Outbox],
        Bug::KeepsMail => &[Table::Mailbox],
        Bug::KeepsSettings => &[Table::AppStateMutationMac],
        Bug::KeepsPreKeys => &[Table::PreKey],
        _ => &[],
    }
}

/// How many writes ago a new owner sees such a row; 0 for as it is.
fn age(bug: Bug, key: &Key) -> usize {
    match (bug, key.table()) {
        (Bug::StaleSessions | Bug::StaleOutbox, Table::Session | Table::Outbox) => {
            let fits = (bug == Bug::StaleSessions) == (key.table() == Table::Session);
            usize::from(fits)
        }
        (Bug::StaleCounters, Table::Counters) => 4,
        (Bug::StaleCollections, Table::AppStateVersion) => 2,
        _ => 0,
    }
}

fn change<M: prost::Message + Default>(record: &mut Record, with: impl FnOnce(&mut M)) {
    if let Ok(mut message) = codec::decode::<M>(record) {
        with(&mut message);
        *record = codec::encode(&message);
    }
}

/// A row as a bug writes it.
fn spoil(bug: Bug, key: &Key, record: &mut Record) {
    match (bug, key.table()) {
        (Bug::CountersLag, Table::Counters) => change(record, |row: &mut record::Counters| {
            row.next_event = row.next_event.map(|next| next.saturating_sub(1).max(1));
        }),
        (Bug::PreKeysFromOne, Table::Counters) => change(record, |row: &mut record::Counters| {
            (row.next_pre_key, row.first_unconfirmed_pre_key) = (Some(1), Some(1));
        }),
        (Bug::BurnForgotten, Table::Counters) => {
            change(record, |row: &mut record::Counters| row.burn = None);
        }
        (Bug::SealForgotten, Table::Outbox) => change(record, |row: &mut record::Outbound| {
            if row.state() == State::Sealed {
                row.set_state(State::Queued);
                row.stanza = None;
            }
        }),
        (Bug::PlainForgotten, Table::Sent) => change(record, |row: &mut record::Outbound| {
            row.content = None;
        }),
        (Bug::PendingForgotten, Table::AppStateVersion) => {
            change(record, |row: &mut record::Collection| {
                row.pending.clear();
                row.in_flight = None;
            });
        }
        (Bug::HashForgotten, Table::AppStateVersion) => {
            change(record, |row: &mut record::Collection| row.hash = None);
        }
        _ => {}
    }
}

impl World {
    fn bug(&self) -> Option<Bug> {
        self.options.bug
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.options.bug == Some(bug)
    }

    /// Batches as they reach the store.
    pub(crate) fn bugged_batches<'a>(
        &mut self,
        account: usize,
        alive: bool,
        batches: &'a [Batch],
    ) -> Cow<'a, [Batch]> {
        let Some(bug) = self.bug() else {
            return Cow::Borrowed(batches);
        };
        let mut batches = batches.to_vec();
        let given = self.accounts[account].watched.given();
        for batch in &mut batches {
            let has = |table| batch.rows.keys().any(|key| key.table() == table);
            let incoming = has(Table::Seen);
            let takes_key =
                (batch.rows.iter()).any(|(key, row)| key.table() == Table::PreKey && row.is_none());
            let mut left = batch.rows.len().div_ceil(2);
            batch.rows.retain(|key, row| {
                left = left.saturating_sub(1);
                let table = key.table();
                let out = match row {
                    Some(_) => forgotten(bug).contains(&table),
                    None => kept(bug).contains(&table),
                };
                let out = out
                    || match bug {
                        Bug::ForgetsRatchets => incoming && table == Table::Session,
                        Bug::ForgetsMarks => {
                            incoming && matches!(table, Table::Session | Table::Seen)
                        }
                        Bug::KeepsPreKeys => takes_key && table == Table::Session,
                        Bug::HalfBatch => !alive && left == 0,
                        _ => false,
                    };
                !out
            });
            for (key, row) in &mut batch.rows {
                if let Some(row) = row {
                    spoil(bug, key, row);
                }
                if age(bug, key) > 0 {
                    let place = (account, key.clone());
                    self.memory
                        .before
                        .entry(place)
                        .or_default()
                        .push(row.clone());
                }
            }
            if bug == Bug::NoFence
                && let Some((term, applied)) = given
                && term != batch.term
            {
                batch.term = term;
                batch.seq = applied.next();
            }
        }
        if bug == Bug::BatchesReversed && batches.len() > 1 {
            let numbers: Vec<Seq> = batches.iter().map(|batch| batch.seq).collect();
            batches.reverse();
            for (batch, seq) in batches.iter_mut().zip(numbers) {
                batch.seq = seq;
            }
        }
        Cow::Owned(batches)
    }

    /// Whether a commit is answered before it is written.
    pub(crate) fn answers_early(&self, batches: &[Batch]) -> bool {
        let table = match self.bug() {
            Some(Bug::SentBeforeCommit) => Table::Outbox,
            Some(Bug::AckBeforeKeep) => Table::Seen,
            Some(Bug::UploadBeforeKeep) => Table::PreKey,
            Some(Bug::AnnouncedBeforeKeep) => Table::AppStateVersion,
            Some(Bug::WriteBehind) => return true,
            _ => return false,
        };
        let mut keys = batches.iter().flat_map(|batch| batch.rows.keys());
        keys.any(|key| key.table() == table)
    }

    /// Rows as an engine gets them.
    pub(crate) fn bugged_rows(&mut self, account: usize, keys: &[Key], rows: &mut Vec<Row>) {
        let Some(bug) = self.bug() else {
            return;
        };
        let life = self.accounts[account].life;
        for (key, row) in keys.iter().zip(rows.iter_mut()) {
            self.memory.age(bug, (account, life), key, row);
        }
        match bug {
            Bug::RowsReversed => rows.reverse(),
            Bug::RowsShort if rows.len() > 8 => drop(rows.pop()),
            _ => {}
        }
    }

    /// A slice of a table as an engine gets it.
    pub(crate) fn bugged_scan(&mut self, account: usize, table: Table, rows: &mut Vec<(Key, Row)>) {
        let Some(bug) = self.bug() else {
            return;
        };
        let life = self.accounts[account].life;
        for (key, row) in rows.iter_mut() {
            self.memory.age(bug, (account, life), key, row);
        }
        match (bug, table) {
            (Bug::OutboxNotScanned, Table::Outbox) | (Bug::InboxNotScanned, Table::Inbox) => {
                rows.clear()
            }
            (Bug::ShortPages, _) => drop(rows.pop()),
            (Bug::MailboxBackwards, Table::Mailbox) => {
                // As if each had been left when its mirror image was.
                let content: Vec<Row> = rows.iter().rev().map(|(_, row)| row.clone()).collect();
                for ((_, row), other) in rows.iter_mut().zip(content) {
                    *row = other;
                }
            }
            _ => {}
        }
    }

    /// A right as a new owner understands it.
    pub(crate) fn bugged_lease(&self, lease: &mut Lease) {
        match self.bug() {
            Some(Bug::LossUnnoticed) => lease.sealed = lease.term.history,
            Some(Bug::AppliedBehind) => lease.applied.0 = lease.applied.0.saturating_sub(1),
            _ => {}
        }
    }

    /// Bytes as they leave a host.
    pub(crate) fn bugged_write(&mut self, bytes: Bytes) -> Vec<Bytes> {
        self.memory.writes += 1;
        let now_and_then = self.memory.writes.is_multiple_of(40);
        match self.bug() {
            Some(Bug::LostWrite) if now_and_then => Vec::new(),
            Some(Bug::TwiceWritten) if now_and_then => vec![bytes.clone(), bytes],
            _ => vec![bytes],
        }
    }

    /// Puts deaf and mute clients between the service and the engines.
    pub(crate) fn installs(&mut self) {
        let Some(bug) = self.bug() else {
            return;
        };
        if let Some(deaf) = deaf(bug) {
            self.service.tamper(Some(deaf));
        }
        if let Some(mute) = mute(bug) {
            self.service.overhear(Some(mute));
        }
    }
}

impl Memory {
    /// The first read of a row in a life brings what was there before.
    fn age(&mut self, bug: Bug, (account, life): (usize, u64), key: &Key, row: &mut Row) {
        let age = age(bug, key);
        if age == 0 || life == 0 || !self.served.insert((account, life, key.clone())) {
            return;
        }
        let history = self.before.get(&(account, key.clone()));
        if let Some(Some(old)) = history.and_then(|history| history.iter().rev().nth(age)) {
            *row = Row::Present(old.clone());
        }
    }
}

fn kind(node: &Node) -> Option<String> {
    node.get_string("type")
}

/// What the service says, as a client hears it that does not listen.
fn deaf(bug: Bug) -> Option<Tamper> {
    let ignored: fn(&Node) -> bool = match bug {
        Bug::IgnoresRetry => {
            |node| node.tag() == "receipt" && kind(node).as_deref() == Some("retry")
        }
        Bug::AckIgnored => |node| node.tag() == "ack" && node.get_str("class") == Some("message"),
        Bug::PreKeyNoticeIgnored => {
            |node| node.tag() == "notification" && kind(node).as_deref() == Some("encrypt")
        }
        Bug::SettingsNoticeIgnored => {
            |node| node.tag() == "notification" && kind(node).as_deref() == Some("server_sync")
        }
        _ => return None,
    };
    Some(Box::new(move |_, node| {
        if ignored(&node) {
            Vec::new()
        } else {
            vec![node]
        }
    }))
}

/// What a client says, as one says it that does not know better.
fn mute(bug: Bug) -> Option<Tamper> {
    let mut sent: BTreeSet<String> = BTreeSet::new();
    let says: Box<dyn FnMut(Node) -> Option<Node> + Send> = match bug {
        Bug::RetryNeverAsked => Box::new(|node| {
            (node.tag() != "receipt" || kind(&node).as_deref() != Some("retry")).then_some(node)
        }),
        Bug::AcksUndecryptable => Box::new(|mut node| {
            if node.tag() == "receipt" && kind(&node).as_deref() == Some("retry") {
                node.attrs.retain(|(name, _)| name != "type");
                node.content = Content::None;
            }
            Some(node)
        }),
        Bug::RetryWithoutKeys => Box::new(|mut node| {
            if node.tag() == "receipt"
                && let Content::Nodes(children) = &mut node.content
            {
                children.retain(|child| child.tag() != "keys");
            }
            Some(node)
        }),
        Bug::NoReceipts => Box::new(|node| {
            let plain =
                node.tag() == "receipt" && kind(&node).is_none_or(|kind| kind == "inactive");
            (!plain).then_some(node)
        }),
        Bug::HistoryUnreceipted => Box::new(|node| {
            let of = kind(&node).is_some_and(|kind| kind == "hist_sync" || kind == "peer_msg");
            (node.tag() != "receipt" || !of).then_some(node)
        }),
        Bug::NotificationsUnacked => Box::new(|node| {
            let ack = node.tag() == "ack" && node.get_str("class") == Some("notification");
            (!ack).then_some(node)
        }),
        Bug::ReceiptsUnacked => Box::new(|node| {
            let ack = node.tag() == "ack" && node.get_str("class") == Some("receipt");
            (!ack).then_some(node)
        }),
        Bug::WrongAckId => Box::new(|mut node| {
            if node.tag() == "ack" {
                for (name, value) in &mut node.attrs {
                    if name == "id" {
                        *value = "another".into();
                    }
                }
            }
            Some(node)
        }),
        Bug::NewIdOnRepeat => Box::new(move |mut node| {
            let id = node.get_string("id").unwrap_or_default();
            if node.tag() == "message" && !sent.insert(id.clone()) {
                let again = format!("{id}B");
                for (name, value) in &mut node.attrs {
                    if name == "id" {
                        *value = again.as_str().into();
                    }
                }
            }
            Some(node)
        }),
        Bug::OwnCopiesForgotten | Bug::OneDeviceOnly => Box::new(move |mut node| {
            if node.tag() != "message" {
                return Some(node);
            }
            let to = node.get_jid("to");
            if let Content::Nodes(children) = &mut node.content {
                for child in children
                    .iter_mut()
                    .filter(|child| child.tag() == "participants")
                {
                    let Content::Nodes(devices) = &mut child.content else {
                        continue;
                    };
                    let theirs = |device: &Node| {
                        let jid = device.get_jid("jid");
                        jid.zip(to.as_ref())
                            .is_some_and(|(jid, to)| jid.same_user(to))
                    };
                    match bug {
                        Bug::OwnCopiesForgotten => devices.retain(theirs),
                        _ => {
                            let first = devices.iter().position(theirs);
                            let mut at = 0;
                            devices.retain(|device| {
                                at += 1;
                                !theirs(device) || Some(at - 1) == first
                            });
                        }
                    }
                }
            }
            Some(node)
        }),
        Bug::PreKeyIdsWrap => Box::new(|mut node| {
            if node.tag() == "iq"
                && let Content::Nodes(children) = &mut node.content
            {
                for list in children.iter_mut().filter(|child| child.tag() == "list") {
                    let Content::Nodes(keys) = &mut list.content else {
                        continue;
                    };
                    for key in keys {
                        let Content::Nodes(parts) = &mut key.content else {
                            continue;
                        };
                        for part in parts.iter_mut().filter(|part| part.tag() == "id") {
                            let last = part.data().and_then(<[u8]>::last).copied().unwrap_or(0);
                            part.content = Content::Bytes(vec![0, 0, last % 16 + 1].into());
                        }
                    }
                }
            }
            Some(node)
        }),
        _ => return None,
    };
    let mut says = says;
    Some(Box::new(move |_, node| says(node).into_iter().collect()))
}
