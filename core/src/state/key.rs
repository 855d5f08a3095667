//! Row names. One variant of [`Key`] is one table; the order of keys is the order of rows in a scan.

use crate::jid::Jid;
use bytes::Bytes;
use smol_str::SmolStr;
use std::fmt;

/// Position of an event in an account's history: from 1, without gaps, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventSeq(pub u64);

impl EventSeq {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A stanza id of a message: opaque text of 1 to 255 bytes.
pub type MessageId = SmolStr;

macro_rules! tables {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The tables of an account. The SQL stores put the prefix `baton_` in front of [`Table::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Table { $($(#[$doc])* $variant,)* }

        impl Table {
            /// Every table, in the order of [`Key`].
            pub const ALL: &'static [Table] = &[$(Table::$variant,)*];

            /// Its name in SQL, logs and error messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Table::$variant => $name,)* }
            }
        }
    };
}

tables! {
    /// One row: keys, addresses and state of the account itself.
    Device = "device",
    /// One row: the numbers that only go up (events, queue positions, pre-key ids).
    Counters = "counters",
    /// Identity keys of other devices.
    Identity = "identity_keys",
    /// Signal sessions.
    Session = "sessions",
    /// Private halves of one-time pre-keys.
    PreKey = "pre_keys",
    /// Sender keys of groups.
    SenderKey = "sender_keys",
    /// Keys that the phone shares for app state.
    AppStateSyncKey = "app_state_sync_keys",
    /// Version and LTHash of a collection; chunks of history that are not taken in yet.
    AppStateVersion = "app_state_version",
    /// Value MACs of a collection, by index MAC.
    AppStateMutationMac = "app_state_mutation_macs",
    /// Contacts.
    Contact = "contacts",
    /// Phone numbers known only in shortened form.
    RedactedPhone = "redacted_phones",
    /// Mute, pin, archive.
    ChatSettings = "chat_settings",
    /// Secrets of messages that votes, reactions and edits refer to.
    MessageSecret = "message_secrets",
    /// Privacy tokens of contacts.
    PrivacyToken = "privacy_tokens",
    /// Phone number to LID.
    LidMap = "lid_map",
    /// Decrypted events until acknowledged.
    Inbox = "event_buffer",
    /// Marks of messages that were decrypted once.
    Seen = "seen",
    /// Sends that the service has not acknowledged yet.
    Outbox = "outbox",
    /// Sends that the service has, kept to answer retry receipts.
    Sent = "sent",
    /// Device lists of users.
    DeviceList = "device_lists",
    /// Requests to send, left by processes that do not own the account.
    Mailbox = "mailbox",
}

/// The name of a row of one account.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// See [`Table::Device`].
    Device,
    /// See [`Table::Counters`].
    Counters,
    /// Of this device address.
    Identity(Jid),
    /// With this device address; under the LID as soon as it is known.
    Session(Jid),
    /// By id, 1 to 2^24 - 1.
    PreKey(u32),
    /// Of this sender device in this group.
    SenderKey {
        /// Group or broadcast list.
        group: Jid,
        /// Device that encrypts with it.
        sender: Jid,
    },
    /// By key id, 1 to 64 bytes.
    AppStateSyncKey(Bytes),
    /// By collection name, or `history/` and the id of an announcement.
    AppStateVersion(SmolStr),
    /// By collection and index MAC.
    AppStateMutationMac {
        /// Collection name.
        collection: SmolStr,
        /// HMAC of the index.
        index_mac: [u8; 32],
    },
    /// By user.
    Contact(Jid),
    /// By user.
    RedactedPhone(Jid),
    /// By chat.
    ChatSettings(Jid),
    /// By chat, sender and message.
    MessageSecret {
        /// Chat the message is in.
        chat: Jid,
        /// Its author, without device.
        sender: Jid,
        /// Its id.
        id: MessageId,
    },
    /// By user.
    PrivacyToken(Jid),
    /// By user part of the phone-number address.
    LidMap(SmolStr),
    /// By event number.
    Inbox(EventSeq),
    /// By SHA-256 of sender device and message id.
    Seen([u8; 32]),
    /// By message id.
    Outbox(MessageId),
    /// By message id.
    Sent(MessageId),
    /// By user, without device.
    DeviceList(Jid),
    /// By message id.
    Mailbox(MessageId),
}

impl Key {
    /// The table this row is in.
    #[must_use]
    pub const fn table(&self) -> Table {
        match self {
            Self::Device => Table::Device,
            Self::Counters => Table::Counters,
            Self::Identity(_) => Table::Identity,
            Self::Session(_) => Table::Session,
            Self::PreKey(_) => Table::PreKey,
            Self::SenderKey { .. } => Table::SenderKey,
            Self::AppStateSyncKey(_) => Table::AppStateSyncKey,
            Self::AppStateVersion(_) => Table::AppStateVersion,
            Self::AppStateMutationMac { .. } => Table::AppStateMutationMac,
            Self::Contact(_) => Table::Contact,
            Self::RedactedPhone(_) => Table::RedactedPhone,
            Self::ChatSettings(_) => Table::ChatSettings,
            Self::MessageSecret { .. } => Table::MessageSecret,
            Self::PrivacyToken(_) => Table::PrivacyToken,
            Self::LidMap(_) => Table::LidMap,
            Self::Inbox(_) => Table::Inbox,
            Self::Seen(_) => Table::Seen,
            Self::Outbox(_) => Table::Outbox,
            Self::Sent(_) => Table::Sent,
            Self::DeviceList(_) => Table::DeviceList,
            Self::Mailbox(_) => Table::Mailbox,
        }
    }
}

/// Names table and kind of row without the address in it: phone numbers of users do not belong into logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table().name();
        match self {
            Self::PreKey(id) => write!(f, "{table}[{id}]"),
            Self::Inbox(seq) => write!(f, "{table}[{}]", seq.0),
            Self::Outbox(id) | Self::Sent(id) | Self::Mailbox(id) => write!(f, "{table}[{id}]"),
            Self::AppStateVersion(name) => write!(f, "{table}[{name}]"),
            Self::Device | Self::Counters => f.write_str(table),
            _ => write!(f, "{table}[…]"),
        }
    }
}
