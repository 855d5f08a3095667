//! A WhatsApp for tests of your own: the simulated service, phones that scan, write and read as told, and trouble on
//! demand. Offline, in the test's process, and quick.
//!
//! ```no_run
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! use sim::kit::SimService;
//!
//! let sim = SimService::start().await?;
//! let owner = sim.phone("15550000001");
//! let customer = sim.phone("15550000002");
//! // Start what is to be tested with `sim.config()`, and when it shows a code:
//! # let qr = "";
//! owner.scan(qr)?;
//! customer.write(&owner, "hello")?;
//! assert_eq!(customer.reads().await.text.as_deref(), Some("echo: hello"));
//! sim.is_satisfied();
//! # Ok(()) }
//! ```
//!
//! Clients in other languages connect to [`SimService::url`] and trust [`SimService::root_key`]; the engine of this
//! workspace takes both from [`SimService::config`], and can do without sockets ([`SimService::connector`]).

use crate::{
    serve::{InMemory, ServeError, ServeOptions, SimServer},
    service::{
        DeviceId, PhoneSendError, ScanError, Scanned, Service,
        books::{Books, PhoneText},
        faults::Fault,
        history::History,
        settings::{Change, PhoneSettingError},
    },
};
use baton_core::{
    crypto::PublicKey,
    flow::{Config, Endpoint, Limits, PreKeyPolicy, Profile, ServiceConfig, Timing},
    state::Micros,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Between two looks at what a phone has read.
const LOOK: Duration = Duration::from_millis(1);

/// How long [`Phone::reads`] waits: longer than anything takes here, so that a test fails with words instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The service, running. Ends when it is dropped, with every connection.
#[derive(Debug)]
pub struct SimService {
    server: Arc<SimServer>,
}

impl SimService {
    /// Starts one on free ports of loopback, with nobody in it. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// If there is no port or no randomness.
    pub async fn start() -> Result<Self, ServeError> {
        Self::start_with(ServeOptions::default()).await
    }

    /// The same, with a say in how it behaves, or with a seed for its keys.
    ///
    /// # Errors
    ///
    /// As the options can be wrong.
    pub async fn start_with(options: ServeOptions) -> Result<Self, ServeError> {
        let server = Arc::new(SimServer::start(options).await?);
        Ok(Self { server })
    }

    /// Where clients connect: `ws://127.0.0.1:PORT/ws/chat`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.server.ws_url
    }

    /// What clients have to trust instead of WhatsApp's root key.
    #[must_use]
    pub fn root_key(&self) -> PublicKey {
        self.server.root_public_key
    }

    /// What an engine needs to be told to live here. It is impatient, and uploads few pre-keys, so that tests are quick.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint(self.url().to_owned()),
                root: self.root_key(),
            },
            profile: Profile::default(),
            timing: Timing {
                backoff_first: Micros::from_millis(20),
                backoff_most: Micros::from_millis(200),
                ..Timing::default()
            },
            pre_keys: PreKeyPolicy {
                batch: 30,
                ..PreKeyPolicy::default()
            },
            available: false,
        }
    }

    /// Connections without sockets, for drivers that take a [`Connector`](baton_tokio::Connector).
    #[must_use]
    pub fn connector(&self) -> InMemory {
        self.server.in_memory()
    }

    /// Somebody's phone. It begins to exist when it is first used, and a handle is as good as another.
    #[must_use]
    pub fn phone(&self, number: &str) -> Phone {
        Phone {
            server: Arc::clone(&self.server),
            number: number.trim_start_matches('+').to_owned(),
            read: Mutex::new(0),
        }
    }

    /// Orders trouble for a companion device: stanzas damaged, lost or doubled, answers withheld, connections closed.
    pub fn fault(&self, fault: Fault) {
        self.server.with(|service, now| service.fault(fault, now));
    }

    /// Withdraws the trouble that has not struck yet.
    pub fn heal(&self) {
        self.server.with(|service, _| service.heal());
    }

    /// Looks at everything the service has noted down.
    pub fn books<T>(&self, look: impl FnOnce(&Books) -> T) -> T {
        let service = self.server.service();
        look(lock(&service).books())
    }

    /// Whether clients have kept the rules: every message sealed with a key of its own, every stanza one that WhatsApp
    /// would take.
    ///
    /// # Panics
    ///
    /// If they have not, with what they did.
    pub fn is_satisfied(&self) {
        self.books(|books| assert_eq!(books.violations(), [], "the service objects"));
    }

    /// The server underneath, for everything else.
    #[must_use]
    pub fn server(&self) -> &SimServer {
        &self.server
    }
}

/// A scripted phone: an account's primary device, and somebody to write to.
#[derive(Debug)]
pub struct Phone {
    server: Arc<SimServer>,
    number: String,
    /// How many texts of the service's books [`reads`](Self::reads) has been through.
    read: Mutex<usize>,
}

impl Phone {
    /// Its number, in digits.
    #[must_use]
    pub fn number(&self) -> &str {
        &self.number
    }

    /// The companion that was linked as number `device` (from 1 on), to order trouble for.
    #[must_use]
    pub fn companion(&self, device: u16) -> DeviceId {
        DeviceId::new(&self.number, device)
    }

    /// Scans the code that a client shows, and so links it.
    ///
    /// # Errors
    ///
    /// If it is no code, or nobody waits with it.
    pub fn scan(&self, qr: &str) -> Result<Scanned, ScanError> {
        let number = Some(self.number.as_str());
        self.server
            .with(|service, now| service.scan(qr, number, now))
    }

    /// Writes a text to somebody; returns the message's id. Companions of both get it as well.
    ///
    /// # Errors
    ///
    /// If one of the numbers is none.
    pub fn write(&self, to: &Self, text: &str) -> Result<String, PhoneSendError> {
        self.server.with(|service, now| {
            let known = service.add_phone(&self.number, None, now);
            known.map_err(|_| PhoneSendError::NoSuchPhone)?;
            let known = service.add_phone(&to.number, None, now);
            known.map_err(|_| PhoneSendError::NoSuchUser)?;
            service.phone_send(&self.number, &to.number, text, now)
        })
    }

    /// The next message that this phone could decrypt and this handle has not given out yet, copies of what its
    /// companions wrote among them. Waits for it.
    ///
    /// # Panics
    ///
    /// If none comes within [`PATIENCE`].
    pub async fn reads(&self) -> PhoneText {
        let next = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(text) = self.next() {
                    return text;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        match next.await {
            Ok(text) => text,
            Err(_) => panic!("{} has waited in vain for a message", self.number),
        }
    }

    fn next(&self) -> Option<PhoneText> {
        let service = self.server.service();
        let service = lock(&service);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = service.books().texts().iter().enumerate().skip(*read);
        let (at, text) = rest
            .filter(|(_, text)| text.phone.phone == self.number)
            .map(|(at, text)| (at, text.clone()))
            .next()?;
        *read = at + 1;
        Some(text)
    }

    /// Removes a companion. `false` if there is none of this number.
    pub fn unlink(&self, device: u16) -> bool {
        self.server
            .with(|service, now| service.unlink(&self.number, device, now))
    }

    /// Changes settings, as the owner does on the phone's screen.
    ///
    /// # Errors
    ///
    /// If there is no such phone yet, or a change makes no sense.
    pub fn change(&self, changes: &[Change]) -> Result<(), PhoneSettingError> {
        let change = |service: &mut Service, now| service.phone_change(&self.number, changes, now);
        self.server.with(change).map(drop)
    }

    /// Hands a part of its past over to a companion. `false` if there is none of this number.
    pub fn hand_over(&self, device: u16, history: &History) -> bool {
        let device = self.companion(device);
        self.server
            .with(|service, now| service.phone_history(&device, history, now))
    }
}

fn lock(service: &Mutex<Service>) -> MutexGuard<'_, Service> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}
