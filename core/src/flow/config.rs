//! What the embedder decides: limits, timing, what the client calls itself, where the service is.

use crate::{crypto::PublicKey, limits, state::Micros};
use std::num::NonZeroU32;

/// Everything an engine is told before its first input.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bounds. There is no default: memory per account is the product's promise, so the embedder states it.
    pub limits: Limits,
    /// Where to connect, and whom to trust there.
    pub service: ServiceConfig,
    /// What the phone shows in its list of linked devices, and what the service sees at login.
    pub profile: Profile,
    /// When to give up, to try again, to say that we are alive.
    pub timing: Timing,
    /// How many one-time pre-keys to keep at the service.
    pub pre_keys: PreKeyPolicy,
    /// Announce `available` after each login. Delivery receipts then say "delivered" instead of "inactive", and the
    /// phone stops notifying its user.
    pub available: bool,
}

/// Every bound the engine keeps.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Batches handed out and not yet durable. More work joins the open batch.
    pub batches_in_flight: NonZeroU32,
    /// Stanzas accepted and not executed yet; beyond it no bytes are asked for.
    pub work_queued: NonZeroU32,
    /// Bytes of rows kept in memory, beside rows with an unfinished write and the rows of the work that is next.
    pub cache_bytes: NonZeroU32,
    /// Bytes of stanzas waiting for rows and of effects waiting for a commit: once they are reached no bytes are asked for,
    /// and none that are here already are looked at. Also bytes of messages in the outbox; beyond them commands are
    /// answered `Busy`. What is empty takes one thing of any size, however small this is: so nothing that is allowed at all
    /// is refused for ever, and the bound is this and one stanza, or one message of 256 KiB.
    pub gate_bytes: NonZeroU32,
    /// Largest frame accepted, at most 2^24 - 1.
    pub frame_bytes: NonZeroU32,
    /// Sends accepted and not yet acknowledged by the service; beyond it commands are answered `Busy`.
    pub outbox: NonZeroU32,
    /// Events handed out and not yet acknowledged by the consumer; beyond it they wait in the store.
    pub events_in_flight: NonZeroU32,
}

impl Limits {
    /// The values of the daemon: an idle account stays below 100 KiB, a busy one below 4 MiB.
    #[must_use]
    pub const fn gateway() -> Self {
        const fn n(value: u32) -> NonZeroU32 {
            match NonZeroU32::new(value) {
                Some(value) => value,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            batches_in_flight: n(limits::BATCHES_IN_FLIGHT),
            work_queued: n(limits::WORK_QUEUED),
            cache_bytes: n(limits::CACHE_BYTES),
            gate_bytes: n(limits::GATE_BYTES),
            frame_bytes: n(limits::FRAME as u32),
            outbox: n(limits::OUTBOX),
            events_in_flight: n(limits::EVENTS_IN_FLIGHT),
        }
    }
}

/// An address to connect to; opaque to the engine, meaningful to the driver (a `ws://` or `wss://` URL).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(pub String);

/// Which service.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Where.
    pub endpoint: Endpoint,
    /// Root key of its certificate chain.
    pub root: PublicKey,
}

impl ServiceConfig {
    /// WhatsApp's own.
    #[must_use]
    pub fn whatsapp() -> Self {
        Self {
            endpoint: Endpoint("wss://web.whatsapp.com/ws/chat".into()),
            root: crate::wire::noise::WHATSAPP_ROOT,
        }
    }
}

/// What the client says of itself (fact sheet 03, sections 3.1 and 3.2).
#[derive(Clone, Debug)]
pub struct Profile {
    /// Version of the web client, for instance `[2, 3000, 1045649367]`. Data, because the service refuses old ones
    /// (failure 405) without notice.
    pub version: [u32; 3],
    /// Name that the phone shows.
    pub os: String,
    /// `DeviceProps.platformType`; 1 is Chrome.
    pub platform: i32,
    /// ISO 3166 country, ISO 639 language.
    pub locale: (String, String),
    /// Push name to announce before the phone has told us one.
    pub push_name: Option<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            version: [2, 3000, 1_045_649_367],
            os: "Baton".into(),
            platform: 1,
            locale: ("US".into(), "en".into()),
            push_name: None,
        }
    }
}

/// Time-outs and intervals.
#[derive(Clone, Debug)]
pub struct Timing {
    /// From asking for a connection to the service's hello.
    pub handshake: Micros,
    /// For the answer to a query.
    pub query: Micros,
    /// Shortest and longest pause between pings; drawn anew each time.
    pub keepalive: (Micros, Micros),
    /// A connection that has been silent for this long after a ping is dead.
    pub silence: Micros,
    /// First pause before connecting again; doubles with each failure.
    pub backoff_first: Micros,
    /// Longest pause before connecting again.
    pub backoff_most: Micros,
    /// A connection that lasted this long forgets earlier failures.
    pub stable: Micros,
    /// Longest wait for the end of the offline queue before sends begin.
    pub offline: Micros,
    /// How long before the grant runs out the engine stops letting effects out: covers what the driver may still hold.
    pub grant_margin: Micros,
    /// How long a connection that stands is kept after the grant has run out, for a database that is away for a while:
    /// pings go on, nothing else leaves, and if the same term is granted again everything goes on where it was. After
    /// it, or when the connection breaks, the engine stops.
    pub hold: Micros,
    /// First and later QR codes are shown this long.
    pub qr: (Micros, Micros),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            handshake: Micros::from_secs(20),
            query: Micros::from_secs(60),
            keepalive: (Micros::from_secs(20), Micros::from_secs(30)),
            silence: Micros::from_secs(20),
            backoff_first: Micros::from_secs(1),
            backoff_most: Micros::from_secs(120),
            stable: Micros::from_secs(30),
            offline: Micros::from_secs(10),
            grant_margin: Micros::from_millis(250),
            hold: Micros::from_secs(300),
            qr: (Micros::from_secs(60), Micros::from_secs(20)),
        }
    }
}

/// One-time pre-keys at the service.
#[derive(Clone, Copy, Debug)]
pub struct PreKeyPolicy {
    /// Upload when the service has fewer than this.
    pub low: u32,
    /// Upload so many at once.
    pub batch: u32,
}

impl Default for PreKeyPolicy {
    /// What the official client does: below 5, upload 812.
    fn default() -> Self {
        Self { low: 5, batch: 812 }
    }
}
