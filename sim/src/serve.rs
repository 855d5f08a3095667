//! The service on real sockets: a WebSocket for clients, a small HTTP interface for whoever plays the phone's owner.
//!
//! ```text
//! ws://ADDR/ws/chat                                     what clients connect to
//! GET  /v/sim/…  POST /mms/…                            files, at an address of their own (`media_conn` names it)
//! POST /phone/scan   {"qr": "…", "phone": "1555…"?}     → {"jid": "…", "lid": "…"}
//! POST /phone/send   {"phone": "…", "to": "…", "text": "…"}  → {"id": "…"}
//! POST /phone/add    {"phone": "…", "name": "…"?}       → {"lid": "…"}
//! POST /phone/unlink {"phone": "…", "device": 1}        → {}
//! POST /phone/change {"phone": "…", "changes": [{"change": "mute", "chat": "…", "until": -1}]}  → versions
//! POST /phone/history {"device": "1555…:1", "kind": "recent", "chunks": 2, "bytes": 100000}     → {}
//! GET  /phone/settings?phone=…                          what the phone knows of its settings, and every change of them
//! POST /fault        {"fault": "corrupt", "device": "1555…:1", "count": 1}  → {}     also {"fault": "heal"}
//! GET  /books        counts per message, violations, anomalies; with ?full=1 everything
//! ```
//! Errors are 4xx with `{"error": "…"}`.
//!
//! The service itself is behind one lock, taken for the time of one input and never across an await. Effects are
//! handed to the connections' tasks before the lock is given back, so that frames leave in the order they were sealed.

pub(crate) mod files;
mod http;
pub(crate) mod hub;
pub(crate) mod socket;
mod state;

pub use state::StateError;

use crate::service::{Now, Options, Service};
use baton_core::crypto::PublicKey;
use baton_core::flow::Endpoint;
use baton_core::state::{Micros, UnixMillis};
use baton_tokio::{ConnectError, Connector};
use hub::Hub;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Timers of the service are late by this much at most.
const TICK: Duration = Duration::from_millis(20);

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address of the WebSocket. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the HTTP interface. Port 0 takes a free one.
    pub phone: SocketAddr,
    /// Address of the media host. Port 0 takes a free one.
    pub media: SocketAddr,
    /// Whether any may be something else than loopback: whoever reaches the HTTP interface owns every account.
    pub allow_remote: bool,
    /// Directory in which keys, accounts and queues survive; without it they end with the process.
    pub state: Option<PathBuf>,
    /// Seed of all keys; without it the operating system's randomness.
    pub seed: Option<[u8; 32]>,
    /// How the service behaves.
    pub service: Options,
}

impl Default for ServeOptions {
    /// Free ports on loopback, nothing kept.
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            phone: any,
            media: any,
            allow_remote: false,
            state: None,
            seed: None,
            service: Options::default(),
        }
    }
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is not loopback, and that was not asked for.
    #[error("{0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The operating system gave no randomness.
    #[error("no randomness: {0}")]
    Seed(getrandom::Error),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A running service. Ends when it is dropped; [`Self::shutdown`] also saves.
#[derive(Debug)]
pub struct SimServer {
    /// `ws://…/ws/chat`
    pub ws_url: String,
    /// `http://…`
    pub phone_url: String,
    /// `http://…`
    pub media_url: String,
    /// What clients must trust instead of WhatsApp's root key.
    pub root_public_key: PublicKey,
    host: Arc<Hub>,
    tasks: JoinSet<()>,
    store: Option<Arc<state::Directory>>,
    stop: watch::Sender<bool>,
}

impl SimServer {
    /// Binds all addresses and serves from then on, on the current tokio runtime.
    pub async fn start(options: ServeOptions) -> Result<Self, ServeError> {
        let listener = bind(options.listen, options.allow_remote).await?;
        let phone = bind(options.phone, options.allow_remote).await?;
        let media = bind(options.media, options.allow_remote).await?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(ServeError::Seed)?;
        let seed = options.seed.unwrap_or(seed);
        let clock = Clock::start();
        let store = options
            .state
            .map(state::Directory::open)
            .transpose()?
            .map(Arc::new);
        let service = match store
            .as_deref()
            .map(state::Directory::load)
            .transpose()?
            .flatten()
        {
            Some(saved) => {
                Service::restore(options.service, seed, &saved).map_err(StateError::Restore)?
            }
            None => Service::new(options.service, seed, clock.now()),
        };
        let media_host = address(&media, options.media).to_string();
        let mut service = service;
        service.set_media_host(&media_host);
        let root_public_key = service.root_public_key();
        let host = Arc::new(Hub::new(service, move || clock.now()));
        if let Some(store) = &store {
            store.save(&host.act(|service, _| service.save()))?;
        }

        let (stop, stopped) = watch::channel(false);
        let ws_url = format!("ws://{}/ws/chat", address(&listener, options.listen));
        let phone_url = format!("http://{}", address(&phone, options.phone));
        let mut tasks = JoinSet::new();
        tasks.spawn(socket::accept(Arc::clone(&host), listener, stopped.clone()));
        tasks.spawn(http::serve(Arc::clone(&host), phone, stopped.clone()));
        tasks.spawn(files::serve(Arc::clone(&host), media, stopped.clone()));
        tasks.spawn(tick(Arc::clone(&host), stopped.clone()));
        if let Some(store) = store.clone() {
            tasks.spawn(state::keep(Arc::clone(&host), store, stopped));
        }
        Ok(Self {
            ws_url,
            phone_url,
            media_url: format!("http://{media_host}"),
            root_public_key,
            host,
            tasks,
            store,
            stop,
        })
    }

    /// Does something with the service, at the present moment, and lets the consequences out.
    pub fn with<T>(&self, act: impl FnOnce(&mut Service, Now) -> T) -> T {
        self.host.act(act)
    }

    /// The service itself, to read its books. Whoever changes something must do it by [`Self::with`]: what a change
    /// wants sent stays inside until then.
    #[must_use]
    pub fn service(&self) -> Arc<Mutex<Service>> {
        self.host.service()
    }

    /// Connections to this service without a socket, for many clients in its own process. Needs its runtime.
    #[must_use]
    pub fn in_memory(&self) -> InMemory {
        InMemory {
            host: Arc::clone(&self.host),
            stop: self.stop.clone(),
        }
    }

    /// Closes all connections, and saves when everything has ended.
    pub async fn shutdown(mut self) -> Result<(), StateError> {
        // Whoever does not listen any more has ended already.
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        match &self.store {
            Some(store) => store.save(&self.host.act(|service, _| service.save())),
            None => Ok(()),
        }
    }
}

/// Bytes between a client and the service that lie in memory, in one direction.
const BUFFER: usize = 64 * 1024;

/// See [`SimServer::in_memory`]. The endpoint's host does not matter.
#[derive(Clone, Debug)]
pub struct InMemory {
    host: Arc<Hub>,
    stop: watch::Sender<bool>,
}

impl Connector for InMemory {
    type Stream = DuplexStream;

    async fn connect(&self, _endpoint: &Endpoint) -> Result<DuplexStream, ConnectError> {
        if *self.stop.borrow() {
            return Err(ConnectError::Io(io::ErrorKind::ConnectionRefused.into()));
        }
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let (host, stopped) = (Arc::clone(&self.host), self.stop.subscribe());
        tokio::spawn(socket::connection(host, theirs, stopped));
        Ok(ours)
    }
}

/// Both clocks, as the service wants them.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn now(self) -> Now {
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            mono: Micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)),
            unix: UnixMillis(i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

async fn tick(host: Arc<Hub>, mut stopped: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => return,
            _ = interval.tick() => host.act(Service::tick),
        }
    }
}

async fn bind(at: SocketAddr, allow_remote: bool) -> Result<TcpListener, ServeError> {
    if !at.ip().is_loopback() && !allow_remote {
        return Err(ServeError::NotLoopback(at));
    }
    TcpListener::bind(at)
        .await
        .map_err(|error| ServeError::Listen(at, error))
}

/// The address with the port that was really taken.
fn address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
