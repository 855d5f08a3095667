//! What goes in and comes out about settings, contacts, chats and history.

use crate::{
    appstate::{
        Collection,
        action::{Action, ContactCard, MuteEnd},
    },
    jid::Jid,
    media::MediaKind,
    proto::e2e::history_sync_notification::SyncType,
    state::MessageId,
};
use bytes::Bytes;
use std::fmt;

/// The engine's number for a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// A file to download. `GET` the path from the hosts, in their order, until one has it.
#[derive(Clone, PartialEq, Eq)]
pub struct MediaRequest {
    /// Host names, some with a port.
    pub hosts: Vec<String>,
    /// Path and query, from the slash on.
    pub path: String,
    /// What it is.
    pub kind: MediaKind,
}

/// The path is as good as a password to the file's ciphertext.
impl fmt::Debug for MediaRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MediaRequest({:?}, {} hosts)",
            self.kind,
            self.hosts.len()
        )
    }
}

/// How a download goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fetched<'a> {
    /// The next bytes of the file, at most [`CHUNK_BYTES`]. No more may come before
    /// [`Output::FetchMore`](crate::engine::Output::FetchMore) asks for it.
    Chunk(&'a [u8]),
    /// That was all.
    Done,
    /// It failed. `gone` if every host says that there is no such file: trying again is no use.
    Failed {
        /// No such file?
        gone: bool,
    },
}

/// Most bytes in one [`Fetched::Chunk`].
pub const CHUNK_BYTES: usize = 64 << 10;

impl fmt::Debug for Fetched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chunk(bytes) => write!(f, "Chunk({} bytes)", bytes.len()),
            Self::Done => f.write_str("Done"),
            Self::Failed { gone } => write!(f, "Failed(gone: {gone})"),
        }
    }
}

/// A setting that was changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// In which collection.
    pub collection: Collection,
    /// What it says.
    pub action: Action,
    /// When it was changed, unix milliseconds, as the device says that changed it.
    pub at: i64,
    /// By this device.
    pub own: bool,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setting({}, {:?})", self.collection, self.action)
    }
}

/// Somebody whom the account knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Contact {
    /// Who: phone number or LID.
    pub user: Jid,
    /// What the address book says; `None` if it does not have them.
    pub card: Option<ContactCard>,
    /// What they call themselves.
    pub push_name: Option<String>,
    /// Their status updates are not shown.
    pub status_muted: bool,
}

/// A chat and its settings.
#[derive(Clone, PartialEq, Eq)]
pub struct Chat {
    /// Which.
    pub chat: Jid,
    /// Silent until then.
    pub muted: Option<MuteEnd>,
    /// At the top of the list.
    pub pinned: bool,
    /// Out of the way.
    pub archived: bool,
    /// Marked as unread by hand.
    pub marked_unread: bool,
    /// Opens only with the owner's proof.
    pub locked: bool,
    /// Ids of its labels.
    pub labels: Vec<String>,
    /// Name of a group, as the phone knew it.
    pub name: Option<String>,
    /// Unread messages, when the phone handed its history over.
    pub unread: u32,
    /// Messages disappear after so many seconds; 0 is never.
    pub expiration: u32,
    /// Time of the last message in the phone's history, unix seconds.
    pub last_at: Option<i64>,
}

/// Which part of the past a chunk of history has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HistoryKind {
    /// The chats, for a new device.
    Initial,
    /// Status updates.
    Status,
    /// Everything.
    Full,
    /// The last months.
    Recent,
    /// What people call themselves.
    PushNames,
    /// Settings that nobody waits for.
    NonBlocking,
    /// What was asked for.
    OnDemand,
    /// Something else, by the protocol's number.
    Other(i32),
}

impl HistoryKind {
    pub(crate) fn of(wire: i32) -> Self {
        match SyncType::try_from(wire) {
            Ok(SyncType::InitialBootstrap) => Self::Initial,
            Ok(SyncType::InitialStatusV3) => Self::Status,
            Ok(SyncType::Full) => Self::Full,
            Ok(SyncType::Recent) => Self::Recent,
            Ok(SyncType::PushName) => Self::PushNames,
            Ok(SyncType::NonBlockingData) => Self::NonBlocking,
            Ok(SyncType::OnDemand) => Self::OnDemand,
            _ => Self::Other(wire),
        }
    }

    pub(crate) const fn wire(self) -> i32 {
        match self {
            Self::Initial => SyncType::InitialBootstrap as i32,
            Self::Status => SyncType::InitialStatusV3 as i32,
            Self::Full => SyncType::Full as i32,
            Self::Recent => SyncType::Recent as i32,
            Self::PushNames => SyncType::PushName as i32,
            Self::NonBlocking => SyncType::NonBlockingData as i32,
            Self::OnDemand => SyncType::OnDemand as i32,
            Self::Other(wire) => wire,
        }
    }
}

/// A message of the past.
#[derive(Clone, PartialEq, Eq)]
pub struct HistoryMessage {
    /// The chat it is in.
    pub chat: Jid,
    /// The serialized `WebMessageInfo`, with everything we do not know.
    pub info: Bytes,
}

/// Messages of the past, some of a chunk of history. A chunk that is read again shows no message twice.
#[derive(Clone, PartialEq, Eq)]
pub struct HistoryPart {
    /// The phone's announcement that it came with.
    pub source: MessageId,
    /// What kind of chunk it is.
    pub kind: HistoryKind,
    /// Number of this part of the chunk, from 0.
    pub part: u32,
    /// In the order of the chunk.
    pub messages: Vec<HistoryMessage>,
}

macro_rules! silent {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )*};
}

silent!(Contact, Chat, HistoryMessage);

impl fmt::Debug for HistoryPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "HistoryPart({}, {:?}, {} messages)",
            self.source,
            self.kind,
            self.messages.len()
        )
    }
}

/// How a collection is getting on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncState {
    /// The service was asked.
    Asking,
    /// It is as the service has it.
    Current {
        /// At this version.
        version: u64,
    },
    /// Another device was faster; our changes are put on top of its.
    Conflict,
    /// The phone was asked for keys; nothing goes on before they come.
    WaitingForKeys {
        /// How many.
        keys: usize,
    },
    /// It does not add up; a snapshot will replace it. The evidence is kept in its row.
    Diverged {
        /// What is wrong.
        why: String,
    },
    /// The service's snapshots do not add up either: the phone was asked what it has.
    AskedPhone,
    /// It did not work; tried again later.
    Later {
        /// Why.
        why: String,
    },
    /// It did not work, again and again; nothing more is tried before the next login.
    GivenUp {
        /// Why.
        why: String,
    },
}

/// What is counted about settings and history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncStats {
    /// Patches taken in, ours included.
    pub patches: u64,
    /// Patches that were had already.
    pub stale_patches: u64,
    /// Snapshots taken in.
    pub snapshots: u64,
    /// Mutations in them.
    pub mutations: u64,
    /// Mutations of a kind that we do not know.
    pub unknown_actions: u64,
    /// Changes of ours that the service has taken.
    pub changes_out: u64,
    /// Changes of ours of which it is unknown whether the service took them, and which somebody has overtaken since.
    pub changes_overtaken: u64,
    /// Changes of ours that could not be put into a patch.
    pub changes_refused: u64,
    /// Patches of ours that another device's was faster than.
    pub conflicts: u64,
    /// Patches whose number does not follow.
    pub version_gaps: u64,
    /// Patches with a wrong MAC of their own.
    pub bad_patch_macs: u64,
    /// Patches and snapshots after which the MAC of the collection is wrong.
    pub bad_snapshot_macs: u64,
    /// Mutations with a wrong MAC of value or index.
    pub bad_mutations: u64,
    /// Answers, patches and snapshots that do not decode.
    pub malformed: u64,
    /// Removed settings that were not there.
    pub missing_removes: u64,
    /// Times a collection had to wait for a key.
    pub missing_keys: u64,
    /// Requests for keys to the phone.
    pub key_requests: u64,
    /// Keys that the phone has shared.
    pub keys: u64,
    /// Collections that were replaced because they had diverged.
    pub resyncs: u64,
    /// Requests to the phone for a collection in clear.
    pub recovery_requests: u64,
    /// Collections replaced by what the phone has told.
    pub recoveries: u64,
    /// Questions to the phone that it could not read, asked again.
    pub phone_retries: u64,
    /// Collections given up.
    pub given_up: u64,
    /// Questions about collections that failed, were not answered, or were one too many that led nowhere.
    pub failed_asks: u64,
    /// Downloads asked for.
    pub fetches: u64,
    /// Downloads that failed.
    pub failed_fetches: u64,
    /// Files that are not what was announced.
    pub bad_files: u64,
    /// Chunks of history taken in.
    pub history_chunks: u64,
    /// Chunks of history that were had already.
    pub stale_history: u64,
    /// Requests to the phone to upload a file again.
    pub reupload_requests: u64,
    /// Chunks of history that were given up.
    pub bad_history: u64,
    /// Messages in them.
    pub history_messages: u64,
    /// Things in them that were left out because they are malformed or too long.
    pub history_skipped: u64,
}
