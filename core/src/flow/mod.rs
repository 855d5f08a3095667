//! One small machine per protocol flow, and the language in which they talk to the world.
//!
//! | file | subject |
//! |---|---|
//! | [`api`](self) | commands, replies, events, notices, reasons to stop |
//! | `config` | limits, timing, profile |
//! | `context` | what all flows share; the gate |
//! | `account` | the account's own row |
//! | `adv` | signed device identities |
//! | `link` | the connection: handshake, end, backoff |
//! | `login` | payload, success, refusals, keepalive |
//! | `pairing` | QR codes |
//! | `pre_keys` | one-time pre-keys at the service |
//! | `query` | questions to the service and their answers |
//! | `devices` | device lists, bundles, identities |
//! | `send` | the outbox |
//! | `receive` | messages coming in |
//! | `retry` | retry receipts, both ways |
//! | `notify` | notifications, and what else needs only an answer |
//! | `sync` | settings, contacts, history |
//! | `inbox` | events on their way to the consumer |

mod account;
mod adv;
mod api;
mod config;
pub(crate) mod context;
pub(crate) mod devices;
pub(crate) mod inbox;
pub(crate) mod link;
pub(crate) mod login;
pub(crate) mod notify;
pub(crate) mod pairing;
pub(crate) mod pre_keys;
pub(crate) mod query;
pub(crate) mod receive;
pub(crate) mod reseal;
pub(crate) mod retry;
pub(crate) mod send;
pub(crate) mod sync;

pub(crate) use account::Account;
pub use account::{DeviceSummary, LinkState, describe_device};
pub use api::{
    Command, CommandError, CommandId, Connection, Content, Event, Message, Notice, Reply,
    SendRequest, StopReason,
};
pub use config::{Config, Endpoint, Limits, PreKeyPolicy, Profile, ServiceConfig, Timing};
pub(crate) use context::Context;
pub use context::Stats;
pub use send::{SendStatus, mailbox_request, message_id, sent_status};
pub use sync::{
    CHUNK_BYTES, Chat, Contact, FetchId, Fetched, HistoryKind, HistoryMessage, HistoryPart,
    MediaRequest, Setting, SyncState, SyncStats,
};
