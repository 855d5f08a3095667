//! A service on loopback, a store in memory, hosts that are tasks, and a consumer that books everything it is shown.

use baton_core::{
    cluster::{Timing, device, host},
    flow::{
        self, Command, Config, Content, Endpoint, Event, Limits, Notice, PreKeyPolicy, Profile,
        SendRequest, ServiceConfig,
    },
    jid::Jid,
    state::{
        AccountId, BusinessId, EventSeq, Incarnation, MessageId, Micros, Placement, Store,
        UnixMillis, memory::MemoryStore,
    },
};
use baton_tokio::{
    Account, AccountStatus, Connector, DriveOptions, Fleet, FleetEnd, FleetEvent, FleetEvents,
    FleetHandle, FleetOptions, Inbox, Item, SystemEnv, TcpConnector,
};
use sim::serve::{ServeOptions, SimServer};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Longer than anything here takes, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const RUN: Placement = Placement {
    run: true,
    pin: None,
    pause: Micros(0),
};

/// What the accounts' consumers were shown, whichever host showed it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) events: BTreeMap<AccountId, BTreeMap<EventSeq, String>>,
    pub(crate) texts: BTreeMap<AccountId, Vec<String>>,
    pub(crate) complaints: Vec<String>,
    /// Account, host it went from, and to whom.
    pub(crate) lost: Vec<(AccountId, &'static str, Option<Incarnation>)>,
    /// Host and status, in the order in which accounts came.
    pub(crate) gained: Vec<(&'static str, AccountStatus)>,
    pub(crate) up: Vec<(&'static str, AccountStatus)>,
}

impl Book {
    fn show(&mut self, account: &AccountId, seq: EventSeq, event: &Event) {
        let known = self.events.entry(account.clone()).or_default();
        let next = known.keys().next_back().map_or(1, |last| last.0 + 1);
        let text = format!("{event:?}");
        match known.get(&seq) {
            Some(before) if *before != text => {
                let complaint = format!("{account}: event {} has changed", seq.0);
                self.complaints.push(complaint);
            }
            Some(_) => {}
            None => {
                if seq.0 != next {
                    let complaint = format!("{account}: event {} came, {next} was next", seq.0);
                    self.complaints.push(complaint);
                }
                known.insert(seq, text);
                if let Event::Message(message) = event
                    && let Some(text) = &message.text
                {
                    let texts = self.texts.entry(account.clone()).or_default();
                    texts.push(text.clone());
                }
            }
        }
    }
}

pub(crate) struct Rig<S> {
    pub(crate) server: Arc<SimServer>,
    pub(crate) store: S,
    pub(crate) ids: Vec<AccountId>,
    pub(crate) book: Arc<Mutex<Book>>,
}

/// A host: a task, and what is known of it.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) handle: FleetHandle,
    frozen: Arc<AtomicBool>,
    task: JoinHandle<FleetEnd>,
}

pub(crate) fn memory() -> MemoryStore {
    let origin = Instant::now();
    MemoryStore::new(move || Micros(u64::try_from(origin.elapsed().as_micros()).unwrap()))
}

pub(crate) fn phone(account: &AccountId) -> String {
    format!("1555{:07}", account.device)
}

/// Leases of three seconds: short, but longer than a busy machine lets a host wait for its turn.
pub(crate) fn timing() -> Timing {
    Timing {
        renew: Micros::from_millis(300),
        deadline: Micros::from_millis(400),
        retry: Micros::from_millis(100),
        soft: Micros::from_millis(1_200),
        hard: Micros::from_millis(2_000),
        ttl: Micros::from_millis(3_000),
        step: Micros::from_millis(200),
        scan: Micros::from_millis(500),
        settle: Micros::from_millis(300),
        ..Timing::default()
    }
}

pub(crate) fn options(name: &str) -> FleetOptions {
    FleetOptions {
        timing: timing(),
        drive: DriveOptions {
            mailbox: Some(Micros::from_millis(100)),
            ..DriveOptions::default()
        },
        ..FleetOptions::named(name)
    }
}

pub(crate) fn config(server: &SimServer) -> Config {
    Config {
        limits: Limits::gateway(),
        service: ServiceConfig {
            endpoint: Endpoint(server.ws_url.clone()),
            root: server.root_public_key,
        },
        profile: Profile::default(),
        timing: flow::Timing {
            backoff_first: Micros::from_millis(50),
            backoff_most: Micros::from_millis(500),
            ..flow::Timing::default()
        },
        pre_keys: PreKeyPolicy {
            batch: 30,
            ..PreKeyPolicy::default()
        },
        available: false,
    }
}

impl<S: Store> Rig<S> {
    /// Accounts of two businesses, wished to run, not linked.
    pub(crate) async fn new(store: S, accounts: usize) -> Self {
        // `FLEET_LOG=1` shows what the hosts say.
        if std::env::var_os("FLEET_LOG").is_some() {
            let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        }
        let server = SimServer::start(ServeOptions::default()).await.unwrap();
        let mut ids = Vec::new();
        for n in 0..accounts {
            let business = BusinessId::new(["acme", "other"][n % 2]).unwrap();
            let id = store.create_account(&business, &format!("a{n}")).await;
            let id = id.unwrap();
            store.place(&id, RUN).await.unwrap();
            ids.push(id);
        }
        Self {
            server: Arc::new(server),
            store,
            ids,
            book: Arc::default(),
        }
    }

    pub(crate) fn start(&self, name: &'static str) -> Host {
        self.start_with(options(name), name)
    }

    pub(crate) fn start_with(&self, options: FleetOptions, name: &'static str) -> Host {
        self.start_over(TcpConnector::new(), options, name)
    }

    pub(crate) fn start_over(
        &self,
        connector: impl Connector,
        options: FleetOptions,
        name: &'static str,
    ) -> Host {
        let server = Arc::clone(&self.server);
        let (fleet, handle, events) = Fleet::new(
            self.store.clone(),
            connector,
            SystemEnv::new(),
            options,
            move |_| config(&server),
        )
        .unwrap();
        let frozen = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(gated(Arc::clone(&frozen), fleet.run()));
        tokio::spawn(consume(
            name,
            events,
            handle.clone(),
            Arc::clone(&self.book),
            Arc::clone(&self.server),
        ));
        Host {
            name,
            handle,
            frozen,
            task,
        }
    }

    /// Waits until every account is live on one of these hosts.
    pub(crate) async fn all_live(&self, hosts: &[&Host]) {
        let what = || {
            let live: Vec<usize> = hosts.iter().map(|host| host.live().len()).collect();
            format!("{live:?} of {} live", self.ids.len())
        };
        let live = || hosts.iter().map(|host| host.live().len()).sum::<usize>();
        until(|| live() == self.ids.len(), what).await;
    }

    /// Somebody writes to every account; returns the texts by account.
    pub(crate) fn write_to_all(&self, round: &str) -> Vec<(AccountId, String)> {
        let texts = self.ids.iter().map(|id| {
            let text = format!("{round} to {}", id.device);
            self.server.with(|service, now| {
                service.add_phone("15550999999", None, now).unwrap();
                let (from, to) = ("15550999999", phone(id));
                service.phone_send(from, &to, &text, now).unwrap();
            });
            (id.clone(), text)
        });
        texts.collect()
    }

    /// Waits until each of these was shown, then checks that nothing was shown that should not have been.
    pub(crate) async fn shown(&self, sent: &[(AccountId, String)]) {
        let mut expected: BTreeMap<AccountId, Vec<String>> = BTreeMap::new();
        for (id, text) in sent {
            expected.entry(id.clone()).or_default().push(text.clone());
        }
        let missing = || {
            let book = self.book.lock().unwrap();
            let count = |id: &AccountId| book.texts.get(id).map_or(0, Vec::len);
            let missing = expected
                .iter()
                .filter(|(id, texts)| count(id) < texts.len());
            missing.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        until(
            || missing().is_empty(),
            || format!("missing {:?}", missing()),
        )
        .await;
        let book = self.book.lock().unwrap();
        assert_eq!(book.complaints, Vec::<String>::new());
        assert_eq!(book.texts, expected, "each once, in order");
    }

    pub(crate) fn request(&self, id: &str, to: &AccountId, text: &str) -> SendRequest {
        SendRequest {
            id: Some(id.into()),
            to: Jid::pn(&phone(to)).unwrap(),
            content: Content::Text(text.into()),
        }
    }

    /// Leaves a request to send, as a process does that owns nothing.
    pub(crate) async fn enqueue(&self, from: &AccountId, to: &AccountId, id: &str, text: &str) {
        let request = flow::mailbox_request(&self.request(id, to, text), 1);
        let left = self
            .store
            .enqueue(from, MessageId::from(id), request, UnixMillis(1));
        assert_eq!(left.await, Ok(true));
    }

    /// What the service saw wrong.
    pub(crate) fn judge(&self) {
        let service = self.server.service();
        let service = service.lock().unwrap();
        assert_eq!(service.books().violations(), []);
    }

    /// And that no device had two connections at a time.
    pub(crate) fn judge_connections(&self) {
        self.judge();
        let service = self.server.service();
        let service = service.lock().unwrap();
        for (device, log) in service.books().devices() {
            assert!(log.live_twice.is_empty(), "{device:?} had two connections");
        }
    }

    /// How often anybody has logged in so far.
    pub(crate) fn logins(&self) -> usize {
        let service = self.server.service();
        let service = service.lock().unwrap();
        let devices = service.books().devices();
        devices.map(|(_, log)| log.connections.len()).sum()
    }

    pub(crate) fn book<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock().unwrap())
    }
}

impl Host {
    pub(crate) fn live(&self) -> Vec<AccountId> {
        let accounts = self.handle.accounts().into_iter();
        let live = accounts.filter(|status| status.state == device::State::Live);
        live.map(|status| status.account).collect()
    }

    pub(crate) fn who(&self) -> Incarnation {
        self.handle.status().who
    }

    /// As `kill -9` would.
    pub(crate) fn kill(self) -> Instant {
        self.task.abort();
        Instant::now()
    }

    /// As `SIGSTOP` would: its sockets stay, its clock goes on.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    pub(crate) fn thaw(&self) {
        self.frozen.store(false, Ordering::Relaxed);
    }

    pub(crate) async fn ended(self) -> FleetEnd {
        let end = tokio::time::timeout(PATIENCE, self.task).await;
        end.expect("in time").unwrap()
    }

    pub(crate) async fn is(&self, state: host::State) {
        let now = || self.handle.status().state;
        until(
            || now() == state,
            || format!("{} is {:?}", self.name, now()),
        )
        .await;
    }
}

/// Looks again and again.
pub(crate) async fn until(mut wished: impl FnMut() -> bool, what: impl Fn() -> String) {
    let begin = Instant::now();
    while !wished() {
        assert!(begin.elapsed() < PATIENCE, "{}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls `inner` unless it is frozen.
async fn gated<T>(frozen: Arc<AtomicBool>, inner: impl Future<Output = T>) -> T {
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

async fn consume(
    name: &'static str,
    mut events: FleetEvents,
    handle: FleetHandle,
    book: Arc<Mutex<Book>>,
    server: Arc<SimServer>,
) {
    while let Some(event) = events.next().await {
        match event {
            FleetEvent::Gained {
                status,
                handle: account,
                inbox,
            } => {
                // Answered at once if it is linked.
                let _later = account.post(Command::Link).await;
                let id = status.account.clone();
                book.lock().unwrap().gained.push((name, status));
                let (book, server) = (Arc::clone(&book), Arc::clone(&server));
                tokio::spawn(read(id, account, inbox, book, server));
            }
            FleetEvent::Account(status) if status.state == device::State::LoggedOut => {
                if let Some(account) = handle.account(&status.account) {
                    let _later = account.post(Command::Link).await;
                    handle.restart(status.account);
                }
            }
            FleetEvent::Up(status) => book.lock().unwrap().up.push((name, status)),
            FleetEvent::Lost { account, to, .. } => {
                book.lock().unwrap().lost.push((account, name, to));
            }
            _ => {}
        }
    }
}

async fn read(
    id: AccountId,
    account: Account,
    mut inbox: Inbox,
    book: Arc<Mutex<Book>>,
    server: Arc<SimServer>,
) {
    while let Some(item) = inbox.next().await {
        match item {
            Item::Event(seq, event) => {
                book.lock().unwrap().show(&id, seq, &event);
                let acknowledged = account.post(Command::Acknowledge(seq)).await;
                // If it cannot be acknowledged any more, it is shown again.
                tokio::spawn(acknowledged);
            }
            Item::Notice(Notice::Qr { text, .. }) => {
                let phone = phone(&id);
                let done = server.with(|service, now| service.scan(&text, Some(&phone), now));
                // A code that is shown after one was scanned: linking had to begin again, or is under way.
                if let Err(error) = done {
                    tracing::info!(%id, ?error, "not scanned");
                }
            }
            _ => {}
        }
    }
}
