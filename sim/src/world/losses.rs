//! What a database that goes back in time has lost, exactly: the judge forgives that, and nothing else.

use super::{World, judges::Judge};
use baton_core::{
    crypto::sha256,
    flow::Event,
    proto::record::{self, outbound::State},
    state::{Batch, EventSeq, Key, codec, memory::MemoryStore},
};
use std::collections::{BTreeMap, BTreeSet};

/// Something that was durable for a while at least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    /// A request to send, under this id.
    Requested(usize, String),
    /// An event, with the id of the message if it is one.
    Event(usize, EventSeq, Option<String>),
    /// A stanza to send, as a hash, under this id.
    Sealed(usize, String, [u8; 32]),
}

/// Everything that was committed, in order, and what of it was lost.
#[derive(Debug, Default)]
pub struct Ledger {
    facts: Vec<Fact>,
    lost: BTreeSet<Fact>,
    /// The stanza that is to go out under an id, as far as the database knows now.
    sealed: BTreeMap<(usize, String), [u8; 32]>,
    copy: Option<(MemoryStore, usize)>,
    /// A restore was the last that happened to the copy.
    restored: bool,
    losses: usize,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn requested(&mut self, account: usize, id: &str) {
        self.facts.push(Fact::Requested(account, id.to_owned()));
    }

    /// How often the database went back.
    #[must_use]
    pub const fn losses(&self) -> usize {
        self.losses
    }

    /// Facts that were lost, ever.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Whether a request to send was lost.
    #[must_use]
    pub fn lost_request(&self, account: usize, id: &str) -> bool {
        self.lost.contains(&Fact::Requested(account, id.to_owned()))
    }

    /// Whether an event was lost, whatever it was.
    #[must_use]
    pub fn lost_event(&self, account: usize, seq: EventSeq) -> bool {
        let first = Fact::Event(account, seq, None);
        let next = self.lost.range(first..).next();
        matches!(next, Some(Fact::Event(whose, number, _)) if (*whose, *number) == (account, seq))
    }

    /// Whether an event with this message was lost.
    #[must_use]
    pub fn lost_message(&self, account: usize, id: &str) -> bool {
        self.lost
            .iter()
            .any(|fact| matches!(fact, Fact::Event(whose, _, Some(lost)) if *whose == account && lost == id))
    }
}

impl World {
    pub(super) fn copy(&mut self) {
        self.note(&[b"copy"]);
        // Nobody asks the copy for the time.
        let copy = self.store.copy(|| baton_core::state::Micros(0));
        self.ledger.copy = Some((copy, self.ledger.facts.len()));
        self.ledger.restored = false;
    }

    pub(super) fn fail_over(&mut self) {
        self.lose(MemoryStore::fail_over_to);
    }

    /// What was restored becomes the standby as well, at first without the new generation; one that is restored anew has
    /// the first one.
    pub(super) fn restore(&mut self) {
        let again = self.ledger.restored;
        self.lose(MemoryStore::restore);
        self.ledger.restored = true;
        if again {
            self.copy();
        }
    }

    /// The database goes back to the last copy, if there is one.
    fn lose(&mut self, go_back: impl FnOnce(&MemoryStore, &MemoryStore)) {
        self.note(&[b"lose"]);
        let ledger = &mut self.ledger;
        let Some((copy, len)) = &ledger.copy else {
            return;
        };
        go_back(&self.store, copy);
        // What the database says of settings is older than it was.
        for account in &mut self.accounts {
            account.places.forget();
        }
        ledger.lost.extend(ledger.facts.drain(len..));
        ledger.losses += 1;
        ledger.sealed.clear();
        for fact in &ledger.facts {
            if let Fact::Sealed(account, id, hash) = fact {
                ledger.sealed.insert((*account, id.clone()), *hash);
            }
        }
        // What was taken out of a mailbox may be in it again.
        (0..self.accounts.len()).for_each(|account| self.mail_may_have_come(account));
    }

    /// A batch has become durable.
    pub(super) fn enter(&mut self, account: usize, batch: &Batch) {
        self.watch_settings(account, batch);
        for (key, row) in &batch.rows {
            match (key, row) {
                (Key::Inbox(seq), Some(row)) => {
                    let event: Option<record::Event> = codec::decode(row).ok();
                    let id = event.and_then(|event| event.received?.id);
                    if self.ledger.lost_event(account, *seq) {
                        let words = format!("number {} was given twice", seq.0);
                        self.finds(account, Judge::EventOnce, words);
                    }
                    self.ledger.facts.push(Fact::Event(account, *seq, id));
                }
                (Key::Outbox(id), Some(row)) => {
                    let row: Option<record::Outbound> = codec::decode(row).ok();
                    let stanza = row
                        .filter(|row| row.state() == State::Sealed)
                        .and_then(|row| row.stanza);
                    if let Some(stanza) = stanza {
                        self.seal(account, id, sha256(&[&stanza]));
                    }
                }
                _ => {}
            }
        }
    }

    fn seal(&mut self, account: usize, id: &str, hash: [u8; 32]) {
        self.judged.saw(Judge::SendOnce, 1);
        let key = (account, id.to_owned());
        let first = *self.ledger.sealed.entry(key).or_insert(hash);
        if first == hash {
            let fact = Fact::Sealed(account, id.to_owned(), hash);
            self.ledger.facts.push(fact);
        } else {
            let words = format!("{id} was encrypted twice");
            self.finds(account, Judge::SendOnce, words);
        }
    }

    /// Whether `prev` may be followed by `next` in the book of a consumer: the next number, or behind a gap that says
    /// how far the numbers before it are whole.
    pub(super) fn follows(prev: EventSeq, next: EventSeq, event: &Event) -> bool {
        next == prev.next() || matches!(event, Event::HistoryLost { after, .. } if prev >= *after)
    }
}
