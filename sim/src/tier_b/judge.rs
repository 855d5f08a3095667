//! The judges: the rules of the house, checked against the books of the service, the consumers and the database.
//!
//! Each complaint begins with the name of the rule it breaks.

use super::{Ask, Books, consumer::ECHO};
use crate::{
    service::{DeviceId, Service, books as service},
    world::{Case, Evidence, Losses, Places, Verdict, Witness, weigh, weigh_settings},
};
use baton_core::{
    crypto::sha256,
    flow::Event,
    jid::Jid,
    state::{
        AccountId, Batch, Epoch, EventSeq, Incarnation, Key, Lease, MessageId, Outcome, Record,
        Seq, Table,
    },
};
use std::collections::BTreeMap;

/// What the database has been told and has done, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<AccountId, History>,
    broken: Vec<String>,
    /// Batches that were refused because their epoch was over.
    pub(crate) fenced: u64,
    /// Batches refused because of the history they belong to.
    pub(crate) unsealed: u64,
    pub(crate) committed: u64,
    /// How often the database went back.
    losses: u32,
}

#[derive(Clone, Debug, Default)]
struct History {
    applied: Option<Seq>,
    /// Who was given the account: when, under which epoch.
    grants: Vec<(u64, Epoch, Incarnation)>,
    /// The epoch that was given up last.
    released: Option<Epoch>,
    outbox: BTreeMap<MessageId, u64>,
    seen: BTreeMap<[u8; 32], u64>,
    inbox: BTreeMap<EventSeq, u64>,
    /// Where its settings stand.
    places: Places,
}

impl Ledger {
    /// A claim was granted. `is_live` tells who is a live host at this moment.
    pub(crate) fn granted(
        &mut self,
        now: u64,
        account: &AccountId,
        lease: &Lease,
        is_live: impl Fn(Incarnation) -> bool,
    ) {
        let history = self.accounts.entry(account.clone()).or_default();
        if let Some((_, epoch, holder)) = history.grants.last()
            && *holder != lease.term.holder
            && history.released != Some(*epoch)
            && is_live(*holder)
        {
            self.broken.push(format!(
                "one-connection: {account} was taken from a live host that had not given it up"
            ));
        }
        if let Some((_, epoch, _)) = history.grants.last()
            && *epoch >= lease.term.epoch
        {
            self.broken.push(format!(
                "one-writer: {account} was given away under epoch {} after {}",
                lease.term.epoch.0, epoch.0
            ));
        }
        history
            .grants
            .push((now, lease.term.epoch, lease.term.holder));
    }

    pub(crate) fn released(&mut self, account: &AccountId, epoch: Epoch) {
        let history = self.accounts.entry(account.clone()).or_default();
        history.released = Some(epoch);
    }

    pub(crate) fn commit(&mut self, now: u64, batch: &Batch, outcome: &Outcome) {
        match outcome {
            Outcome::Committed => {}
            Outcome::Fenced { .. } => {
                self.fenced += 1;
                return;
            }
            Outcome::Unsealed { .. } => {
                self.unsealed += 1;
                return;
            }
            Outcome::Rejected(why) => {
                self.broken
                    .push(format!("one-writer: a batch was rejected: {why}"));
                return;
            }
        }
        let history = self.accounts.entry(batch.account.clone()).or_default();
        let given = history.grants.last();
        if given
            .is_none_or(|(_, epoch, who)| (*epoch, *who) != (batch.term.epoch, batch.term.holder))
        {
            self.broken.push(format!(
                "one-writer: batch {} of {} was written under epoch {}, which is not the last that was given",
                batch.seq.0, batch.account, batch.term.epoch.0
            ));
        }
        match history.applied {
            // Sent again: nothing was written.
            Some(applied) if batch.seq <= applied => return,
            Some(applied) if batch.seq != applied.next() => self.broken.push(format!(
                "one-writer: batch {} of {} was written after {}",
                batch.seq.0, batch.account, applied.0
            )),
            _ => {}
        }
        history.applied = Some(batch.seq);
        self.committed += 1;
        self.broken.extend(history.places.watch(batch));
        for (key, record) in &batch.rows {
            if record.is_none() {
                continue;
            }
            match key {
                Key::Outbox(id) => drop(history.outbox.entry(id.clone()).or_insert(now)),
                Key::Seen(mark) => drop(history.seen.entry(*mark).or_insert(now)),
                Key::Inbox(seq) => drop(history.inbox.entry(*seq).or_insert(now)),
                _ => {}
            }
        }
    }

    /// The last batch written.
    pub(crate) fn applied(&self, account: &AccountId) -> Option<Seq> {
        self.accounts.get(account)?.applied
    }

    /// Where the account's settings stand.
    pub(crate) fn places(&self, account: &AccountId) -> Option<&Places> {
        self.accounts.get(account).map(|history| &history.places)
    }

    /// Each time the account was given to a host: when, under which epoch, to which life.
    pub(crate) fn grants(&self, account: &AccountId) -> Vec<(u64, Epoch, Incarnation)> {
        self.accounts
            .get(account)
            .map(|history| history.grants.clone())
            .unwrap_or_default()
    }

    /// The database has gone back to the moment of `copy`. What it had seen to be durable was durable when it was seen.
    pub(crate) fn went_back(&mut self, copy: &Self) {
        self.losses += 1;
        for (account, history) in &mut self.accounts {
            history.places.forget();
            let old = copy.accounts.get(account);
            history.applied = old.and_then(|old| old.applied);
            history.grants = old.map(|old| old.grants.clone()).unwrap_or_default();
        }
    }
}

/// The verdict on a world that has come to rest.
pub(crate) fn judge(books: &Books, ledger: &Ledger, directory: &Service) -> Verdict {
    let service = directory.books();
    let accounts = books.accounts.len();
    // What a database lost here is judged below, by what was acknowledged: nothing is forgiven beforehand.
    let nothing_lost = Losses::default();
    let evidence = Evidence {
        accounts: (books.accounts.iter())
            .map(|book| Witness {
                phone: &book.phone,
                events: &book.events,
                complaints: &book.complaints,
            })
            .collect(),
        asked: (books.asked.iter())
            .filter(|ask| ask.to < accounts)
            .map(|ask| (ask.from, ask.to, ask.id.as_str(), ask.text.as_str()))
            .collect(),
        books: service,
        ledger: &nothing_lost,
    };
    let mut verdict = weigh(&evidence);
    let complaints = &mut verdict.complaints;
    complaints.extend(books.complaints.iter().cloned());
    complaints.extend(ledger.broken.iter().cloned());
    durable_before_visible(books, ledger, service, complaints);
    ack_after_keep(books, ledger, directory, complaints);
    at_phones(books, service, complaints);
    answers(books, complaints);
    verdict
}

/// Adds what is wrong with settings: states that the phone never had, and at the end anything that is not as the phone
/// has it. `table` reads all rows of a table.
pub(crate) fn settings(
    books: &Books,
    ledger: &mut Ledger,
    service: &Service,
    table: impl Fn(&AccountId, Table) -> Vec<(Key, Record)>,
    verdict: &mut Verdict,
) {
    let lossy = ledger.losses > 0;
    for (index, book) in books.accounts.iter().enumerate() {
        if let Some(history) = ledger.accounts.get_mut(&book.id) {
            let forks = history.places.forks(service, &book.phone).into_iter();
            let forks = forks.map(|text| format!("{}: {text}", book.phone));
            verdict.complaints.extend(forks);
        }
        // An account that is not linked, or not any more, has nothing to arrive at.
        if book.online.is_none() {
            continue;
        }
        let asked = books.changes.iter().filter(|(whose, _)| *whose == index);
        weigh_settings(
            &Case {
                phone: &book.phone,
                service,
                table: &|which| table(&book.id, which),
                asked: &asked.map(|(_, asked)| asked).collect::<Vec<_>>(),
                lossy,
            },
            verdict,
        );
    }
}

/// A message's row is in the outbox before the service has the message, an event's in the inbox before it is shown.
fn durable_before_visible(
    books: &Books,
    ledger: &Ledger,
    service: &service::Books,
    complaints: &mut Vec<String>,
) {
    for book in &books.accounts {
        let history = ledger.accounts.get(&book.id);
        let kept = |seq| history.and_then(|history| history.inbox.get(seq));
        for (seq, shown) in &book.shown_at {
            if kept(seq).is_none_or(|kept| kept > shown) {
                complaints.push(format!(
                    "durable-before-visible: event {} of {} was shown before it was durable",
                    seq.0, book.phone
                ));
            }
        }
        let of_book =
            (service.messages()).filter(|(key, _)| key.sender.phone == book.phone.as_str());
        for (key, log) in of_book.filter(|(key, _)| !key.sender.is_phone()) {
            let Some(first) = log.accepted.first() else {
                continue;
            };
            if first.category.as_deref() == Some("peer") {
                continue;
            }
            let durable = history.and_then(|history| history.outbox.get(key.id.as_str()));
            if durable.is_none_or(|durable| *durable > first.at.micros) {
                complaints.push(format!(
                    "durable-before-visible: {} reached the service before it was durable",
                    key.id
                ));
            }
        }
    }
}

/// The service is told that a message was taken over only after its mark is durable, and with it what came of it.
fn ack_after_keep(books: &Books, ledger: &Ledger, service: &Service, complaints: &mut Vec<String>) {
    for book in &books.accounts {
        let Some(history) = ledger.accounts.get(&book.id) else {
            continue;
        };
        for (key, log) in service.books().messages() {
            for (device, recipient) in &log.recipients {
                if device.phone != book.phone.as_str() || device.is_phone() {
                    continue;
                }
                let told = recipient
                    .receipts
                    .iter()
                    .filter(|(_, kind)| kind != "retry");
                // What could not be read is taken off the queue and asked for again.
                let acked = (recipient.acks.iter())
                    .filter(|(_, error)| error.is_none() && recipient.retries == 0);
                let first = told.map(|(at, _)| at.micros);
                let first = first.chain(acked.map(|(at, _)| at.micros)).min();
                let Some(first) = first else { continue };
                let marks = service.addresses(&key.sender).into_iter();
                let kept = marks.filter_map(|sender| history.seen.get(&mark(&sender, &key.id)));
                if kept.min().is_none_or(|kept| *kept > first) {
                    complaints.push(format!(
                        "ack-after-keep: {} was acknowledged by {device} before it was kept",
                        key.id
                    ));
                }
            }
        }
    }
}

/// As the engine marks a message as decrypted.
fn mark(sender: &Jid, id: &str) -> [u8; 32] {
    sha256(&[b"seen", sender.to_string().as_bytes(), &[0], id.as_bytes()])
}

/// What accounts send to phones is read there, once, with the text it had.
fn at_phones(books: &Books, service: &service::Books, complaints: &mut Vec<String>) {
    let accounts = books.accounts.len();
    let mut read: BTreeMap<(&DeviceId, &str), Vec<Option<&str>>> = BTreeMap::new();
    for text in service.texts() {
        let place = (&text.phone, text.id.as_str());
        read.entry(place).or_default().push(text.text.as_deref());
    }
    let mut check = |phone: &str, id: &str, text: &str| {
        let phone = DeviceId::new(phone, 0);
        match read.get(&(&phone, id)).map(Vec::as_slice) {
            None => complaints.push(format!("send-once: {id} never reached phone {phone}")),
            Some([Some(one)]) if *one == text => {}
            Some([_]) => {
                complaints.push(format!("send-once: {id} reached {phone} with another text"))
            }
            Some(more) => {
                complaints.push(format!("send-once: {phone} read {id} {} times", more.len()))
            }
        }
    };
    for Ask { to, id, text, .. } in &books.asked {
        if let Some(phone) = to.checked_sub(accounts) {
            check(&books.phones[phone], id, text);
        }
    }
    for book in &books.accounts {
        for (id, question, text) in &book.answered {
            let asked = books.asked.iter().find(|ask| ask.id == *question);
            if let Some(phone) = asked.and_then(|ask| ask.from.checked_sub(accounts)) {
                check(&books.phones[phone], id, text);
            }
        }
    }
}

/// Each question was answered.
fn answers(books: &Books, complaints: &mut Vec<String>) {
    let accounts = books.accounts.len();
    for ask in &books.asked {
        if ask.from < accounts || ask.to >= accounts || !ask.text.starts_with(ECHO) {
            continue;
        }
        let answered = &books.accounts[ask.to].answered;
        if !answered.iter().any(|(_, question, _)| *question == ask.id) {
            complaints.push(format!(
                "event-once: question {} was never answered",
                ask.id
            ));
        }
    }
}

/// What is still to come before a world is at rest: texts that nobody has read, accounts that are not online, settings
/// that are not where the phone has them.
pub(crate) fn unfinished(books: &Books, ledger: &Ledger, directory: &Service) -> Vec<String> {
    let service = directory.books();
    let accounts = books.accounts.len();
    let mut open = Vec::new();
    for (index, book) in books.accounts.iter().enumerate() {
        if book.online.is_none() {
            open.push(format!("account {index} is not online"));
        }
        if let Some(places) = ledger.places(&book.id) {
            open.extend(places.unfinished(directory, &book.phone));
        }
    }
    for ask in &books.asked {
        match books.accounts.get(ask.to) {
            Some(book) => {
                let arrived = |event: &Event| matches!(event, Event::Message(message) if message.id == ask.id);
                if !book.events.values().any(arrived) {
                    open.push(format!("{} has not reached account {}", ask.id, ask.to));
                } else if ask.from >= accounts && ask.text.starts_with(ECHO) {
                    let answer = book
                        .answered
                        .iter()
                        .find(|(_, question, _)| *question == ask.id);
                    let read = |id: &str| service.texts().iter().any(|text| text.id == id);
                    if answer.is_none_or(|(id, ..)| !read(id)) {
                        open.push(format!("the answer to {} has not been read", ask.id));
                    }
                }
            }
            None => {
                if !service.texts().iter().any(|text| text.id == ask.id) {
                    open.push(format!("{} has not been read by its phone", ask.id));
                }
            }
        }
    }
    open
}
