//! What is written and what is read: rows left out, changed, cut, mixed up, or as they were before.

use super::{Bug, Memory, World};
use baton_core::{
    proto::record::{self, outbound::State},
    state::{Batch, Key, Record, Row, Seq, Table, codec},
};
use std::borrow::Cow;

/// What a column that is too short has room for.
const COLUMN: usize = 512;

/// A part of the past that is to be fetched.
fn is_history(key: &Key) -> bool {
    matches!(key, Key::AppStateVersion(name) if name.starts_with("history/"))
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
        Bug::ForgetsLids => &[Table::LidMap],
        Bug::ForgetsDeviceLists => &[Table::DeviceList],
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
        (Bug::StaleSessions, Table::Session) | (Bug::StaleOutbox, Table::Outbox) => 1,
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
        (Bug::EmptyWhenAsked, Table::Sent) => change(record, |row: &mut record::Outbound| {
            row.content = Some(Vec::new());
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
        (Bug::ShortColumn, _) => record.0.truncate(COLUMN),
        _ => {}
    }
}

impl World {
    /// Batches as they reach the store.
    pub(crate) fn bugged_batches<'a>(
        &mut self,
        account: usize,
        alive: bool,
        batches: &'a [Batch],
    ) -> Cow<'a, [Batch]> {
        if self.is_well() {
            return Cow::Borrowed(batches);
        }
        let mut batches = batches.to_vec();
        for bug in self.bugs() {
            for batch in &mut batches {
                self.spoil_batch(bug, account, alive, batch);
            }
            if bug == Bug::BatchesReversed && batches.len() > 1 {
                let numbers: Vec<Seq> = batches.iter().map(|batch| batch.seq).collect();
                batches.reverse();
                for (batch, seq) in batches.iter_mut().zip(numbers) {
                    batch.seq = seq;
                }
            }
        }
        Cow::Owned(batches)
    }

    fn spoil_batch(&mut self, bug: Bug, account: usize, alive: bool, batch: &mut Batch) {
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
                    Bug::ForgetsHistory => row.is_some() && is_history(key),
                    Bug::ForgetsRatchets => incoming && table == Table::Session,
                    Bug::ForgetsMarks => incoming && matches!(table, Table::Session | Table::Seen),
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
                let before = self.memory.before.entry(place).or_default();
                before.push(row.clone());
            }
        }
        self.mislead(bug, account, batch);
    }

    /// Rows as an engine gets them.
    pub(crate) fn bugged_rows(&mut self, account: usize, keys: &[Key], rows: &mut Vec<Row>) {
        let life = self.accounts[account].life;
        for bug in self.bugs() {
            for (key, row) in keys.iter().zip(rows.iter_mut()) {
                self.memory.age(bug, (account, life), key, row);
                if bug == Bug::MarksUnread && key.table() == Table::Seen {
                    *row = Row::Absent;
                }
            }
            match bug {
                Bug::RowsReversed => rows.reverse(),
                Bug::RowsShort if rows.len() > 2 => drop(rows.pop()),
                _ => {}
            }
        }
    }

    /// A slice of a table as an engine gets it.
    pub(crate) fn bugged_scan(&mut self, account: usize, table: Table, rows: &mut Vec<(Key, Row)>) {
        let life = self.accounts[account].life;
        for bug in self.bugs() {
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
