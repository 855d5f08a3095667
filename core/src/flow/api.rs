//! What goes into an engine and what comes out, apart from bytes and rows: commands, events, notices.

use super::sync::{Chat, Contact, HistoryKind, HistoryPart, Setting, SyncState};
use crate::{
    appstate::{Collection, action::Action},
    jid::Jid,
    state::{Epoch, EventSeq, Key, MessageId, Micros, Seal},
};
use bytes::Bytes;
use std::fmt;

/// The caller's number for a command; comes back with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What a caller can ask for.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Link this account: connect, show QR codes ([`Notice::Qr`]) until the phone has scanned one. Answered with
    /// [`Reply::Linked`] when the account is durable, at once if it is linked already. An account that was logged out
    /// gets new keys: the service has forgotten the device that the old ones belonged to.
    Link,
    /// Send a message. Answered with [`Reply::Accepted`] when it is durable; from then on it is sent exactly once under
    /// that id, whatever crashes. Progress comes as events.
    Send(SendRequest),
    /// The consumer has kept all events up to this one; they will not be shown again.
    Acknowledge(EventSeq),
    /// Tell the sender that these messages of a chat were read. `sender` is their author in groups.
    MarkRead {
        /// Chat they are in.
        chat: Jid,
        /// Author, in groups.
        sender: Option<Jid>,
        /// At most 256.
        ids: Vec<MessageId>,
    },
    /// Announce `available` or `unavailable`, under this name.
    Presence {
        /// Available?
        available: bool,
        /// New push name, if it changes.
        name: Option<String>,
    },
    /// Look for requests that other processes have left in the mailbox.
    CheckMailbox,
    /// Change settings. Answered with [`Reply::Done`] when that is durable; from then on it is announced until the
    /// service has taken it, whatever crashes and whoever changes something at the same time. It shows in queries, and
    /// as [`Event::Setting`], when the service has it. A later change of the same setting replaces one that waits.
    Change(Vec<Action>),
    /// Fetch settings now, those of one collection or of all. Answered with [`Reply::Done`] at once.
    Sync(Option<Collection>),
    /// People the account knows, in the order of their addresses.
    Contacts {
        /// Start behind this one.
        after: Option<Jid>,
        /// At most so many, up to 1024.
        limit: u32,
    },
    /// Chats with settings, in the order of their addresses.
    Chats {
        /// Start behind this one.
        after: Option<Jid>,
        /// At most so many, up to 1024.
        limit: u32,
    },
    /// Everything in a collection that is neither a contact nor a chat's setting: labels, stars, and all that is not
    /// understood.
    Settings {
        /// Which.
        collection: Collection,
        /// Start behind what [`Reply::Settings`] said.
        after: Option<[u8; 32]>,
        /// Look at no more than so many, up to 1024.
        limit: u32,
    },
    /// Unlink at the service, mark the account as logged out, stop. Keys are kept; deleting an account is the store's
    /// business.
    Logout,
    /// Finish what is in flight, close the connection, stop.
    Shutdown,
}

/// Says which command, never to whom or what.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("Link"),
            Self::Send(request) => write!(f, "Send({:?})", request.id),
            Self::Acknowledge(seq) => write!(f, "Acknowledge({})", seq.0),
            Self::MarkRead { ids, .. } => write!(f, "MarkRead({} ids)", ids.len()),
            Self::Presence { available, .. } => write!(f, "Presence({available})"),
            Self::CheckMailbox => f.write_str("CheckMailbox"),
            Self::Change(actions) => write!(f, "Change({actions:?})"),
            Self::Sync(collection) => write!(f, "Sync({collection:?})"),
            Self::Contacts { limit, .. } => write!(f, "Contacts({limit})"),
            Self::Chats { limit, .. } => write!(f, "Chats({limit})"),
            Self::Settings { collection, .. } => write!(f, "Settings({collection})"),
            Self::Logout => f.write_str("Logout"),
            Self::Shutdown => f.write_str("Shutdown"),
        }
    }
}

/// A message to send.
#[derive(Clone, PartialEq, Eq)]
pub struct SendRequest {
    /// Chosen by the caller to make a repeated request harmless, or by the engine if absent. A request under an id
    /// that is known already changes nothing and is accepted.
    pub id: Option<MessageId>,
    /// A user, by phone number or LID.
    pub to: Jid,
    /// What.
    pub content: Content,
}

/// What a message says.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// Plain text.
    Text(String),
    /// A serialized `Message` protobuf, sent as it is.
    Message(Bytes),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Message(bytes) => write!(f, "Message({} bytes)", bytes.len()),
        }
    }
}

impl fmt::Debug for SendRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendRequest")
            .field("id", &self.id)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

/// The good answers to commands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Done, or under way with nothing more to report.
    Done,
    /// The account is linked under these addresses.
    Linked {
        /// Phone-number address with device.
        jid: Jid,
        /// LID with device, if the service uses LIDs.
        lid: Option<Jid>,
    },
    /// The message is durable and will be sent under this id.
    Accepted {
        /// Its id.
        id: MessageId,
    },
    /// A page of contacts.
    Contacts {
        /// In the order of their addresses.
        contacts: Vec<Contact>,
        /// Ask again with this; `None` if that was all.
        next: Option<Jid>,
    },
    /// A page of chats.
    Chats {
        /// In the order of their addresses.
        chats: Vec<Chat>,
        /// Ask again with this; `None` if that was all.
        next: Option<Jid>,
    },
    /// A page of settings.
    Settings {
        /// In no order that means anything.
        settings: Vec<Setting>,
        /// Ask again with this; `None` if that was all.
        next: Option<[u8; 32]>,
    },
}

/// Why a command was not carried out. What to do is in each variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// Try again when something has been acknowledged.
    #[error("too much work is queued; retry later")]
    Busy,
    /// The command can never succeed as it is.
    #[error("the command is malformed: {0}")]
    Invalid(&'static str),
    /// Link the account first.
    #[error("the account is not linked")]
    NotLinked,
    /// The service said no.
    #[error("the service refused with code {0}")]
    Refused(u16),
    /// Nobody scanned a code.
    #[error("no code was scanned in time")]
    LinkExpired,
    /// Ask the next owner: the outcome is in the store.
    #[error("the engine stopped before the outcome was known")]
    Unknown,
}

impl CommandError {
    /// Whether the same command can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy | Self::Unknown | Self::LinkExpired)
    }
}

/// Something that happened to the account: durable, numbered without gaps (except before [`Event::HistoryLost`]), shown
/// again after a crash until the consumer acknowledges its number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The account was linked.
    Linked {
        /// Phone-number address with device.
        jid: Jid,
        /// LID with device.
        lid: Option<Jid>,
        /// What the phone runs, as it says.
        platform: String,
    },
    /// The phone or the service ended the link. Keys are kept, the engine stops.
    LoggedOut {
        /// The service's code.
        code: u16,
    },
    /// A message was decrypted.
    Message(Box<Message>),
    /// The service has taken over a message of ours.
    Sent {
        /// Which.
        id: MessageId,
        /// To which chat.
        to: Jid,
        /// The service's time, unix seconds.
        at: i64,
    },
    /// The service refused a message of ours; it was not delivered.
    Failed {
        /// Which.
        id: MessageId,
        /// To which chat.
        to: Jid,
        /// The service's code; 0 if the engine gave up by itself (no device of the recipient could be reached).
        code: u16,
    },
    /// A device of the recipient has a message of ours.
    Delivered {
        /// Which.
        id: MessageId,
        /// Who.
        by: Jid,
        /// Unix seconds.
        at: i64,
    },
    /// The recipient has read a message of ours.
    Read {
        /// Which.
        id: MessageId,
        /// Who.
        by: Jid,
        /// Unix seconds.
        at: i64,
    },
    /// A message could not be decrypted, and asking for it again did not help.
    Undecryptable {
        /// Which.
        id: MessageId,
        /// In which chat.
        chat: Jid,
        /// By whom.
        sender: Jid,
    },
    /// A device of somebody has a new identity key: a new phone or a re-installation.
    IdentityChanged {
        /// Whose.
        user: Jid,
    },
    /// A setting was changed: by the phone, by another device, or by us and the service has it now.
    Setting(Box<Setting>),
    /// So much has changed in a collection that it is not listed (it was fetched whole, or in a large step): ask
    /// again for contacts, chats or settings.
    SettingsReplaced {
        /// Which.
        collection: Collection,
        /// At this version.
        version: u64,
        /// How many settings were set or removed.
        settings: u64,
    },
    /// A collection could not be brought into order. It stays as it was; messages are not concerned. It is tried again
    /// at the next login.
    SyncFailed {
        /// Which.
        collection: Collection,
        /// Why.
        why: String,
    },
    /// Messages of the past.
    History(Box<HistoryPart>),
    /// A chunk of history has been taken in, or given up.
    HistoryEnded {
        /// The phone's announcement that it came with.
        source: MessageId,
        /// What kind of chunk it is.
        kind: HistoryKind,
        /// Messages, chats and names in it.
        items: u64,
        /// Why the rest of it is missing; `None` if it is whole.
        why: Option<String>,
    },
    /// The database lost commits that it had confirmed: a failover to a standby that was behind, or a restored backup.
    ///
    /// Numbers between `after` and this event's are never used again. Events that were shown under them were true, but
    /// some of what they told may come again under other numbers: compare message ids. Messages that were acknowledged
    /// to the service in what was lost, and not shown yet, are gone here; the phone still has them. Requests to send
    /// that were accepted in it may be gone too: ask again under the same ids.
    HistoryLost {
        /// The last number before the gap: events up to it were not lost.
        after: EventSeq,
        /// How often commits may have been lost since the account was last known to be whole.
        losses: u64,
    },
}

/// A decrypted message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Stanza id.
    pub id: MessageId,
    /// The conversation: the other user without device, or the group.
    pub chat: Jid,
    /// The author's device.
    pub sender: Jid,
    /// The author's other address (phone number for a LID, LID for a phone number), if known.
    pub sender_alt: Option<Jid>,
    /// Written by this account on another device.
    pub from_me: bool,
    /// The service's time, unix seconds.
    pub at: i64,
    /// What the author calls themselves.
    pub push_name: Option<String>,
    /// Came from the queue that the service kept while we were offline.
    pub offline: bool,
    /// From the own phone to this device, not for people.
    pub peer: bool,
    /// The text, if it is one.
    pub text: Option<String>,
    /// The serialized `Message` protobuf, with everything we do not know.
    pub content: Bytes,
}

/// Never shows addresses or text.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.id, self.content.len())
    }
}

/// Something worth knowing now and worth nothing later: not durable, not numbered.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Show this as a QR code, for so long.
    Qr {
        /// The text to encode.
        text: String,
        /// How long it is valid.
        valid: Micros,
    },
    /// The connection changed its state.
    Connection(Connection),
    /// A row could not be read and is treated as missing.
    CorruptRow(Key),
    /// A message could not be decrypted; it has been asked for again. The reason is the protocol's code.
    RetryAsked {
        /// Which message.
        id: MessageId,
        /// Reason code, 0 if none fits.
        reason: u8,
        /// How often so far.
        count: u32,
    },
    /// The service or a peer did something the protocol does not allow; it was dropped.
    Protocol(String),
    /// How a collection of settings is getting on.
    Sync(Collection, SyncState),
    /// How a chunk of history is getting on.
    History {
        /// The phone's announcement that it came with.
        source: MessageId,
        /// What kind of chunk it is.
        kind: HistoryKind,
        /// How much of all its history the phone has sent with this chunk, in per cent, if it says so.
        progress: Option<u32>,
        /// Messages, chats and names taken in so far.
        items: u64,
    },
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The code carries the secret that the phone proves itself with.
            Self::Qr { .. } => f.write_str("Qr(…)"),
            Self::Connection(state) => write!(f, "Connection({state:?})"),
            Self::CorruptRow(key) => write!(f, "CorruptRow({key:?})"),
            Self::RetryAsked { id, reason, count } => {
                write!(f, "RetryAsked({id}, reason {reason}, count {count})")
            }
            Self::Protocol(what) => write!(f, "Protocol({what})"),
            Self::Sync(collection, state) => write!(f, "Sync({collection}, {state:?})"),
            Self::History { source, items, .. } => write!(f, "History({source}, {items} items)"),
        }
    }
}

/// States of the connection, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connection {
    /// Connecting and shaking hands.
    Connecting,
    /// Waiting for the phone to scan a code.
    Linking,
    /// Logged in; the service is delivering what it kept.
    LoggedIn,
    /// Everything kept has been delivered; messages flow.
    Online,
    /// Not connected; trying again after this pause.
    Waiting {
        /// The pause.
        pause: Micros,
        /// Why the last connection ended.
        why: &'static str,
    },
}

/// Why an engine stopped. None of them touches the account's keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// The store has a later epoch: somebody else owns the account.
    #[error("fenced: epoch {} is in force", .0.0)]
    Fenced(Epoch),
    /// The database's history is not the one that the grant was given in: commits may have been lost, and what this
    /// engine knows of the account may never have been. Claim anew; the next engine [re-seals](crate::state::Batch).
    #[error("the database began another history (timeline {}, generation {})", .0.timeline, .0.generation)]
    HistoryChanged(Seal),
    /// The grant ran out, and there was no connection to keep for the while that
    /// [`Timing::hold`](crate::flow::Timing) says, or it was over.
    #[error("the lease ran out")]
    LeaseExpired,
    /// The service has another connection of this device. Somebody else owns the account: check the lease, never fight.
    #[error("another connection of this account replaced ours")]
    Replaced,
    /// Unlinked by the phone, the service or a logout command.
    #[error("logged out (code {0})")]
    LoggedOut(u16),
    /// Banned for a while.
    #[error("temporarily banned (code {code}, {seconds} s)")]
    Banned {
        /// The service's reason.
        code: u16,
        /// For how long.
        seconds: u64,
    },
    /// The service wants a newer client version: change [`Profile::version`](crate::flow::Profile).
    #[error("the service refuses this client version")]
    Outdated,
    /// The service refused the login for another reason.
    #[error("the service refused the login (code {0})")]
    Refused(u16),
    /// The store refused a batch or a row of the account itself is unreadable.
    #[error("the store cannot serve this account: {0}")]
    Store(String),
    /// As commanded.
    #[error("shut down")]
    Shutdown,
}

impl StopReason {
    /// Whether the same owner may build a new engine for the account and go on.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::LeaseExpired | Self::HistoryChanged(_))
    }

    /// Whether somebody else owns the account now, as far as we know.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced(_) | Self::Replaced)
    }
}
