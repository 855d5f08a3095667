//! A gateway host: the real [`Host`] of `baton-tokio`, every account of the world, and the consumers of their events.
//!
//! One task, nothing spawned: tokio drops spawned tasks of a crashed host in an order that depends on numbers of the
//! whole process. Everything that is polled is in one [`FuturesUnordered`].

use super::{
    Order, Room,
    clock::{self, SimEnv, generator},
    net::SimLink,
    remote::RemoteStore,
    trace::Fnv,
};
use baton_core::{
    crypto::{Rng, sha256},
    flow::{
        Command, Config, Connection, Content, Endpoint, Event, Limits, Message, Notice,
        PreKeyPolicy, Profile, SendRequest, ServiceConfig, StopReason, Timing, message_id,
    },
    state::{AccountId, Epoch, EventSeq, HostInfo, Micros},
};
use baton_tokio::{Account, Host, Inbox, Item, MemberOptions, Options, Ownership};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::sync::watch;

/// A text that begins like this is answered by the consumer, as a bot would.
pub(crate) const ECHO: &str = "echo ";

/// The machine a gateway runs on, and what of it outlives the process.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) index: usize,
    /// How far the wall clock is off, in milliseconds.
    pub(crate) wall: Arc<AtomicI64>,
    /// Stopped by a signal, or by its hypervisor: nothing is polled while time passes.
    pub(crate) frozen: Arc<AtomicBool>,
    /// Processes so far.
    pub(crate) lives: Arc<AtomicU64>,
    /// Whether the process is asked to go.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) version: Arc<AtomicU64>,
}

impl Seat {
    pub(crate) fn new(name: &str, index: usize) -> Self {
        Self {
            name: name.into(),
            index,
            wall: Arc::default(),
            frozen: Arc::default(),
            lives: Arc::default(),
            stop: watch::Sender::new(false),
            version: Arc::default(),
        }
    }
}

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

/// The process on a gateway host, from start to end.
pub(crate) async fn process(room: Room, seat: Seat) -> turmoil::Result {
    let life = seat.lives.fetch_add(1, Ordering::Relaxed) + 1;
    seat.stop.send_replace(false);
    room.note(&seat.name, format_args!("starts, life {life}"));
    let run = run(room.clone(), seat.clone(), life);
    gated(&seat.frozen, run).await;
    room.note(&seat.name, format_args!("ends, life {life}"));
    Ok(())
}

/// Polls `inner` unless the gate is closed. Time passes meanwhile, and timers and sockets fill up.
pub(crate) async fn gated<T>(frozen: &AtomicBool, inner: impl Future<Output = T>) -> T {
    let mut inner = pin!(inner);
    let mut nap = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        while frozen.load(Ordering::Relaxed) {
            if nap.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let again = tokio::time::Instant::now() + Duration::from_millis(10);
            nap.as_mut().reset(again);
        }
        inner.as_mut().poll(cx)
    })
    .await
}

async fn run(room: Room, seat: Seat, life: u64) {
    let env = SimEnv::new(room.seed, &seat.name, life, Arc::clone(&seat.wall));
    let link = SimLink {
        network: room.network.clone(),
        from: Arc::clone(&seat.name),
    };
    let store = RemoteStore::new(
        room.network.clone(),
        room.mail.clone(),
        Arc::clone(&seat.name),
    );
    let options = options(&seat);
    let host = Host::new(store, link, env, options);
    let accounts = room.books().accounts.clone();
    let count = accounts.len();
    let hosts = room.gateways;
    let mut tasks = FuturesUnordered::new();
    let mut handles = Vec::new();
    for (index, book) in accounts.into_iter().enumerate() {
        let (handle, inbox, serve) = host.account(book.id, room.config());
        handles.push(handle.clone());
        // Each account has a host that asks for it first, so that a fleet that starts together shares them.
        let rank = (seat.index + hosts - index % hosts) % hosts;
        let wait = Duration::from_millis(400) * u32::try_from(rank).unwrap_or(0);
        let post = handle.clone();
        let ended = room.clone();
        let name = Arc::clone(&seat.name);
        tasks.push(
            async move {
                // Harmless for an account that is linked already.
                let linked = post.post(Command::Link).await;
                drop(post);
                tokio::time::sleep(wait).await;
                let end = serve.await;
                drop(linked);
                ended.note(&name, format_args!("account {index} ends: {end}"));
                true
            }
            .boxed(),
        );
        let consumer = Consumer {
            room: room.clone(),
            host: Arc::clone(&seat.name),
            life,
            index,
            last: None,
            rng: generator(room.seed, &format!("consumer {} {life} {index}", seat.name)),
        };
        tasks.push(consumer.run(handle, inbox).map(|()| false).boxed());
    }
    let mut stop = seat.stop.subscribe();
    let mut left = count;
    let work = async {
        loop {
            tokio::select! { biased;
                Ok(()) = stop.changed() => {
                    if *stop.borrow_and_update() {
                        handles.iter().for_each(Account::shutdown);
                    }
                }
                ended = tasks.next() => {
                    left -= usize::from(ended == Some(true));
                    if left == 0 {
                        return;
                    }
                }
            }
        }
    };
    let all = async {
        work.await;
        host.leave().await;
    };
    tokio::select! { biased;
        () = all => {}
        never = host.run() => match never {},
    }
}

fn options(seat: &Seat) -> Options {
    let mut info = HostInfo::named(&seat.name);
    info.version = format!("0.{}", seat.version.load(Ordering::Relaxed)).into();
    Options {
        member: MemberOptions {
            info,
            ..MemberOptions::default()
        },
        claim_every: Micros::from_millis(500),
        ..Options::default()
    }
}

impl Room {
    /// How engines of this world are set up.
    pub(crate) fn config(&self) -> Config {
        Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint("ws://service:80/ws/chat".into()),
                root: self.root,
            },
            profile: Profile {
                push_name: Some("Baton".into()),
                ..Profile::default()
            },
            timing: Timing::default(),
            // Small batches, so that the vault runs low in every run.
            pre_keys: PreKeyPolicy { low: 5, batch: 20 },
            available: true,
        }
    }
}

/// Takes events of one account in one life of one host.
struct Consumer {
    room: Room,
    host: Arc<str>,
    life: u64,
    index: usize,
    last: Option<EventSeq>,
    rng: Rng,
}

impl Consumer {
    async fn run(mut self, account: Account, mut inbox: Inbox) {
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
        if let Event::Message(message) = &event {
            self.answer(account, message).await;
        }
        if self.rng.below(3) == 0 {
            // Durable at the consumer: only from here on may it be forgotten.
            let book = &mut self.room.books().accounts[self.index];
            book.acknowledged = book.acknowledged.max(seq);
        } else {
            return;
        }
        drop(account.post(Command::Acknowledge(seq)).await);
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
