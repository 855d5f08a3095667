//! The consumers of events, and their books.

use super::{Bug, Order, Room, clock, clock::generator, trace::Fnv};
use baton_core::{
    crypto::{Rng, sha256},
    flow::{
        Command, Connection, Content, Event, Message, Notice, SendRequest, StopReason, message_id,
    },
    state::{AccountId, Epoch, EventSeq},
};
use baton_tokio::{Account, Inbox, Item, Ownership};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A text that begins like this is answered by the consumer, as a bot would.
pub(crate) const ECHO: &str = "echo ";

/// One account's consumer: what it was shown, by whichever host. It survives all of them.
#[derive(Clone, Debug)]
pub struct Book {
    /// The account's number in the store.
    pub id: AccountId,
    /// Its phone's number.
    pub phone: String,
    /// Every event it was ever shown, by number.
    pub events: BTreeMap<EventSeq, Event>,
    /// When each was shown first, in virtual microseconds.
    pub shown_at: BTreeMap<EventSeq, u64>,
    /// What is wrong with what it was shown.
    pub complaints: Vec<String>,
    /// Where it is online now: host and life.
    pub online: Option<(String, u64)>,
    /// Each time an engine was built for it: when, on which host, in which life of it, under which epoch.
    pub owners: Vec<(u64, String, u64, Epoch)>,
    /// Why engines stopped: when, where, why.
    pub stops: Vec<(u64, String, StopReason)>,
    /// When it came online: when, where.
    pub onlines: Vec<(u64, String)>,
    /// What any engine found out of order in protocol or store.
    pub notices: Vec<String>,
    /// Answers that were accepted for sending: id of the answer, to whom, text.
    pub(crate) answered: Vec<(String, String, String)>,
    acknowledged: EventSeq,
    /// After the database has lost commits numbers may be given again; see [`Book::forgive`].
    forgiving: bool,
}

impl Book {
    pub(crate) fn new(id: AccountId, phone: String) -> Self {
        Self {
            id,
            phone,
            events: BTreeMap::new(),
            shown_at: BTreeMap::new(),
            complaints: Vec::new(),
            online: None,
            owners: Vec::new(),
            stops: Vec::new(),
            onlines: Vec::new(),
            notices: Vec::new(),
            answered: Vec::new(),
            acknowledged: EventSeq(0),
            forgiving: false,
        }
    }

    /// The database has lost commits: gaps are allowed from now on.
    pub(crate) fn forgive(&mut self) {
        self.forgiving = true;
    }

    fn show(&mut self, seq: EventSeq, event: &Event, last: Option<EventSeq>) {
        // Another host may have shown, and had acknowledged, what this one never saw.
        let next = last.unwrap_or_default().max(self.acknowledged).next();
        // A new process is shown everything that was not acknowledged again.
        let in_order = seq <= next && last.is_none_or(|last| seq > last);
        if !in_order && !self.forgiving {
            self.complaints
                .push(format!("event {} was shown, {} was next", seq.0, next.0));
        }
        match self.events.get(&seq) {
            Some(known) if known != event => self
                .complaints
                .push(format!("event-once: event {} has changed", seq.0)),
            Some(_) => {}
            None => {
                self.events.insert(seq, event.clone());
                self.shown_at.insert(seq, clock::now());
            }
        }
    }
}

/// Takes events of one account in one life of one host.
pub(crate) struct Consumer {
    room: Room,
    host: Arc<str>,
    life: u64,
    index: usize,
    last: Option<EventSeq>,
    rng: Rng,
}

impl Consumer {
    /// Of the account with this index, in a life of `host`.
    pub(crate) fn new(room: &Room, host: &Arc<str>, life: u64, index: usize) -> Self {
        Self {
            rng: generator(room.seed, &format!("consumer {host} {life} {index}")),
            room: room.clone(),
            host: Arc::clone(host),
            life,
            index,
            last: None,
        }
    }

    pub(crate) async fn run(mut self, account: Account, mut inbox: Inbox) {
        while let Some(item) = inbox.next().await {
            match item {
                Item::Event(seq, event) => self.event(&account, seq, event).await,
                Item::Notice(notice) => self.notice(notice),
                Item::Ownership(ownership) => self.ownership(ownership),
                _ => {}
            }
        }
    }

    async fn event(&mut self, account: &Account, seq: EventSeq, event: Event) {
        let content = match &event {
            Event::Message(message) => Fnv::short(&[message.id.as_bytes(), &message.content]),
            other => Fnv::short(&[format!("{other:?}").as_bytes()]),
        };
        self.room.note(
            &self.host,
            format_args!("account {} event {} {content:016x}", self.index, seq.0),
        );
        let last = self.last.replace(seq);
        self.room.books().accounts[self.index].show(seq, &event, last);
        if self.room.bug == Some(Bug::HastyConsumer) {
            self.acknowledged(seq);
            drop(account.post(Command::Acknowledge(seq)).await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Event::Message(message) = &event {
            self.answer(account, message).await;
        }
        if self.rng.below(3) == 0 {
            // Durable at the consumer: only from here on may it be forgotten.
            self.acknowledged(seq);
        } else {
            return;
        }
        drop(account.post(Command::Acknowledge(seq)).await);
    }

    fn acknowledged(&self, seq: EventSeq) {
        let book = &mut self.room.books().accounts[self.index];
        book.acknowledged = book.acknowledged.max(seq);
    }

    /// What a bot does: the answer has an id that follows from the question, so asking again changes nothing; and the
    /// question is acknowledged only after the answer was accepted.
    async fn answer(&self, account: &Account, question: &Message) {
        let text = question.text.as_deref().unwrap_or_default();
        if question.from_me || !text.starts_with(ECHO) {
            return;
        }
        let [random @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
            sha256(&[b"answer", question.id.as_bytes()]);
        let id = message_id("", 0, &random);
        let text = format!("re: {text}");
        let request = SendRequest {
            id: Some(id.clone()),
            to: question.chat.clone(),
            content: Content::Text(text.clone()),
        };
        if account.send(request).await.is_ok() {
            let answered = (id.to_string(), question.id.to_string(), text);
            let mut books = self.room.books();
            let known = &mut books.accounts[self.index].answered;
            if !known.contains(&answered) {
                known.push(answered);
            }
        }
    }

    fn notice(&self, notice: Notice) {
        let mut books = self.room.books();
        let book = &mut books.accounts[self.index];
        match notice {
            Notice::Qr { text, .. } => {
                let phone = book.phone.clone();
                drop(books);
                self.room.order(Order::Scan { text, phone });
            }
            Notice::Connection(state) => {
                let here = (self.host.to_string(), self.life);
                if state == Connection::Online {
                    book.onlines.push((clock::now(), here.0.clone()));
                    book.online = Some(here);
                } else if book.online.as_ref() == Some(&here) {
                    book.online = None;
                }
                drop(books);
                self.room
                    .note(&self.host, format_args!("account {} {state:?}", self.index));
            }
            other => book
                .notices
                .push(format!("{} {}: {other:?}", clock::now(), self.host)),
        }
    }

    fn ownership(&self, ownership: Ownership) {
        let mut books = self.room.books();
        let book = &mut books.accounts[self.index];
        let (now, host) = (clock::now(), self.host.to_string());
        let words = match &ownership {
            Ownership::Ours { epoch } => {
                book.owners.push((now, host, self.life, *epoch));
                format!("owner under {}", epoch.0)
            }
            Ownership::Stopped(reason) => {
                if book.online.as_ref() == Some(&(host.clone(), self.life)) {
                    book.online = None;
                }
                book.stops.push((now, host, reason.clone()));
                format!("stopped: {reason}")
            }
            other => format!("{other:?}"),
        };
        drop(books);
        self.room
            .note(&self.host, format_args!("account {} {words}", self.index));
    }
}
