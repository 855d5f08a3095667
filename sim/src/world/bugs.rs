//! Old mistakes, put back one at a time, to see which judge finds them. A judge that cannot find anybody guilty proves
//! nothing when it is silent.
//!
//! None of them is in the product. What goes wrong inside an engine shows in what it writes, asks for and says: so rows
//! are left out of its batches or changed in them, answers come too early, loads bring what was there before, stanzas
//! that it should have sent are kept from the service and stanzas that it should have heeded from it. What goes wrong in
//! a driver is done by the world, which is one. Many are from the field; what others have called them stands beside them,
//! and where it is a public thread, its address.
//!
//! Two at a time are a [`Pair`]: what one layer of defence makes harmless shows when that layer is off. Some entries are
//! nothing but such a layer, switched off ([`Bug::is_layer`]): alone they do no harm, or little, and nobody has to find them.
//!
//! | file | subject |
//! |---|---|
//! | `rows` | what is written and read |
//! | `stanzas` | what is said and heard |
//! | `drivers` | rights, clocks, connections, commits, the consumer |
//! | `pairs` | two at a time |

mod drivers;
mod pairs;
mod rows;
mod stanzas;

pub use pairs::Pair;

use super::World;
use baton_core::state::{Key, Record};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Which.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What is wrong.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

bugs! {
    // ---- what is written
    /// Sessions are not kept: the next owner encrypts with keys that were used (any file store that saves now and then).
    ForgetsSessions,
    /// The ratchet of a message that came in is not kept, the event is.
    ForgetsRatchets,
    /// Private halves of pre-keys are not kept ("invalid pre-key id" after a restart; WhiskeySockets/Baileys#1663).
    ForgetsPreKeys,
    /// Duplicate marks and ratchets of incoming messages are not kept.
    ForgetsMarks,
    /// Events are acknowledged and not kept.
    ForgetsEvents,
    /// Sends that are sealed are not kept: gone with the process.
    ForgetsOutbox,
    /// What was sent is not kept: retry receipts cannot be answered ("waiting for this message";
    /// WhiskeySockets/Baileys#617).
    ForgetsSent,
    /// Numbers are not kept.
    ForgetsCounters,
    /// The device's row is not kept: linked, and unlinked after a restart.
    ForgetsDevice,
    /// Versions of collections are not kept.
    ForgetsCollections,
    /// Settings are not kept, versions are ("mismatching LTHash"; tulir/whatsmeow#858).
    ForgetsSettings,
    /// Keys for settings are not kept ("didn't find app state key"; tulir/whatsmeow#883).
    ForgetsSettingsKeys,
    /// Contacts are not kept.
    ForgetsContacts,
    /// Settings of chats are not kept.
    ForgetsChats,
    /// Identities of others are not kept.
    ForgetsIdentities,
    /// What of a past is still to be fetched is not kept.
    ForgetsHistory,
    /// Events that were acknowledged are not deleted.
    KeepsEvents,
    /// Sends that the service has are not deleted.
    KeepsOutbox,
    /// Requests that were accepted are not deleted.
    KeepsMail,
    /// Settings that were removed are not deleted.
    KeepsSettings,
    /// Used pre-keys are not deleted, and the session that was made is not written.
    KeepsPreKeys,
    /// The next event's number is written one behind.
    CountersLag,
    /// The next pre-key's number is not written: after a restart it begins at 1.
    PreKeysFromOne,
    /// That message keys have to be skipped after a loss is not written.
    BurnForgotten,
    /// A sealed message is kept unsealed: the next owner encrypts it again.
    SealForgotten,
    /// The plaintext of what was sent is not kept.
    PlainForgotten,
    /// Changes of settings that wait are not kept.
    PendingForgotten,
    /// The hash of a collection is not kept.
    HashForgotten,
    /// Of a batch whose owner has died only the first half is written.
    HalfBatch,
    /// What was sent is kept as an empty message, and that is what a retry receipt brings
    /// (evolution-foundation/evolution-api#2705).
    EmptyWhenAsked,
    /// A column is too short: what is longer than 512 bytes is cut off.
    ShortColumn,
    /// Now and then a batch is written into another account.
    WrongTenant,
    /// Which phone number belongs to which LID is not kept.
    ForgetsLids,
    /// Device lists are not kept.
    ForgetsDeviceLists,

    // ---- when it is written
    /// A send leaves before it is durable.
    SentBeforeCommit,
    /// A message is acknowledged before it is durable (any client that acknowledges before its callback returns).
    AckBeforeKeep,
    /// Pre-keys are uploaded before they are durable.
    UploadBeforeKeep,
    /// Settings are announced before they are durable.
    AnnouncedBeforeKeep,
    /// Nothing waits for the store (write-behind).
    WriteBehind,

    // ---- what is read
    /// A new owner reads sessions as they were one write ago (a replica that is behind).
    StaleSessions,
    /// A new owner reads numbers as they were some writes ago.
    StaleCounters,
    /// A new owner reads collections as they were two writes ago.
    StaleCollections,
    /// A new owner reads the send queue as it was.
    StaleOutbox,
    /// A new owner does not look for sends of the former one.
    OutboxNotScanned,
    /// A new owner does not look for events of the former one.
    InboxNotScanned,
    /// A page of a table misses its last row.
    ShortPages,
    /// The mailbox gives the last request first.
    MailboxBackwards,
    /// Rows come in another order than they were asked for.
    RowsReversed,
    /// A large read misses its last row.
    RowsShort,
    /// Duplicate marks are not found (looked for under another address of the sender).
    MarksUnread,

    // ---- whose it is
    /// Whoever sends a batch may write it.
    NoFence,
    /// A commit that is refused for the sake of another owner is taken for a good one.
    FencedIgnored,
    /// A commit that is refused because the database went back is taken for a good one.
    UnsealedIgnored,
    /// A renewal that finds that the database went back is taken for a good one.
    HistoryIgnored,
    /// A loss of commits is made up that never happened.
    LossInvented,
    /// An epoch is given to two owners.
    EpochReused,
    /// A process that was declared dead goes on.
    DeadIgnored,
    /// A lease is believed to last for ever.
    LeaseForever,
    /// A loss of commits is not noticed.
    LossUnnoticed,
    /// A new owner numbers its batches from one behind where they stand.
    AppliedBehind,
    /// The generator of a new owner begins where the last began (a virtual machine that was cloned).
    SeedReused,

    // ---- the driver
    /// Now and then a write is lost.
    LostWrite,
    /// Now and then a write is made twice.
    TwiceWritten,
    /// The mailbox is not looked at.
    MailboxForgotten,
    /// Of a large message only the first kilobyte is read.
    ShortBuffer,
    /// Batches of one commit are written in the wrong order.
    BatchesReversed,
    /// A commit that failed is taken for a good one.
    ErrorSwallowed,
    /// A commit whose outcome is unknown is made again as another one.
    RetriedAsNew,
    /// The consumer is shown an event twice (avoylenko/wwebjs-api#68).
    ShownTwice,
    /// Now and then an event is shown to the consumer of another account as well (one callback for all).
    EventsMixed,
    /// What came from the offline queue is taken for history, and not shown (rmyndharis/OpenWA#1662).
    OfflineSkipped,
    /// After a connection has ended, events are not passed on until the next start (devlikeapro/waha#2151).
    EventsStop,
    /// Commits reach the store a second time, a while later (a proxy that repeats).
    CommitTwice,
    /// The store takes a batch whatever its number.
    SeqIgnored,
    /// Requests are looked for when some arrive, not when an owner begins.
    MailUnreadAtStart,
    /// Requests are looked for when an owner begins, not when some arrive.
    MailNotNoticed,
    /// Each request is left in the mailbox again when it is done (a retry loop around the whole call).
    AskedAgain,
    /// A connection that the engine has ended is left open.
    ConnectionLeaked,
    /// Timers fire a little too early, again and again, or too late (a clock that is rounded to its tick).
    EarlyTimers,
    /// The clock is read once for the record and once for the engine.
    ClockReadTwice,
    /// Now and then a command does not reach the engine, and nobody is told.
    CommandsLost,
    /// The limit of batches under way is not passed on.
    BatchesUnlimited,
    /// The limit of events with the consumer is not passed on.
    EventsUnlimited,
    /// The limit of the cache is not passed on.
    CacheUnlimited,

    // ---- the protocol
    /// Retry receipts are not heeded (Baileys without `getMessage`; WhiskeySockets/Baileys#557).
    IgnoresRetry,
    /// What cannot be decrypted is not asked for again.
    RetryNeverAsked,
    /// What cannot be decrypted is acknowledged as if it could (oxidezap/whatsapp-rust#987).
    AcksUndecryptable,
    /// Retry receipts carry no keys (oxidezap/whatsapp-rust#470).
    RetryWithoutKeys,
    /// The keys in retry receipts are not used (WhiskeySockets/Baileys#2506).
    RetryKeysUnused,
    /// What is sent again cannot be read either (canove/whaileys#45).
    ResendsGarbled,
    /// The user part of a LID is written with the server of phone numbers (wppconnect-team/wa-js#2816).
    LidAsPhone,
    /// A pre-key upload has another identity than the pairing.
    IdentityRemade,
    /// Patches carry a MAC that does not fit (WhiskeySockets/Baileys#1286).
    PatchMacWrong,
    /// Pre-keys are uploaded once, and never again.
    UploadsOnce,
    /// Messages are not acknowledged (the offline queue comes again and again).
    NoReceipts,
    /// Notifications are not acknowledged.
    NotificationsUnacked,
    /// Receipts are not acknowledged.
    ReceiptsUnacked,
    /// Acknowledgements name another stanza.
    WrongAckId,
    /// Acknowledgements of sends are not heeded.
    AckIgnored,
    /// A message that is repeated gets a new id (a retry loop around `sendMessage`).
    NewIdOnRepeat,
    /// Own devices get no copy of what is sent.
    OwnCopiesForgotten,
    /// Only one device of the recipient gets a message.
    OneDeviceOnly,
    /// Pre-key ids begin again (whatsmeow's wrap-around at 2^24, here at 16).
    PreKeyIdsWrap,
    /// Running out of pre-keys is not noticed.
    PreKeyNoticeIgnored,
    /// That settings have changed is not noticed.
    SettingsNoticeIgnored,
    /// A receipt of history is not sent: the phone never sends the next chunk.
    HistoryUnreceipted,

    // ---- layers of defence that are off: alone they do no harm, or little
    /// That pre-keys run out is acknowledged and not heeded.
    PreKeyNoticeTaken,
    /// That few pre-keys are left at a login is not heeded.
    PreKeyCountIgnored,
    /// The service does not remember which message ids it has had.
    ServiceForgetsIds,
    /// The service gives a one-time pre-key out again and again.
    PreKeyGivenAgain,
    /// The service gives no bundle to who is about to answer a retry receipt.
    RetryBundlesRefused,
    /// The first receipts of a device are lost: the service delivers again what was taken.
    ReceiptsLost,
    /// The service says once who has which devices.
    DevicesOnce,
    /// Receipts of recipients are acknowledged and not heeded.
    ReceiptsTaken,
    /// Phones tell each key for settings once, and answer no questions.
    KeysToldOnce,
}

impl Bug {
    /// Whether it is a layer of defence that is off, which by itself does no harm, or little.
    #[must_use]
    pub const fn is_layer(self) -> bool {
        matches!(
            self,
            Self::PreKeyNoticeTaken
                | Self::PreKeyCountIgnored
                | Self::ServiceForgetsIds
                | Self::PreKeyGivenAgain
                | Self::RetryBundlesRefused
                | Self::ReceiptsLost
                | Self::AskedAgain
                | Self::DevicesOnce
                | Self::ReceiptsTaken
                | Self::KeysToldOnce
                | Self::HistoryIgnored
                | Self::CommitTwice
                | Self::SeqIgnored
                | Self::FencedIgnored
                | Self::ForgetsLids
                | Self::ForgetsDeviceLists
                | Self::RetryKeysUnused
        )
    }

    /// The mistakes: all that somebody has to find.
    pub fn mistakes() -> impl Iterator<Item = Self> {
        let all = Self::ALL.iter().copied();
        all.filter(|bug| !bug.is_layer())
    }
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{self:?}");
        for (at, letter) in name.char_indices() {
            if at > 0 && letter.is_uppercase() {
                f.write_str("-")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|bug| bug.to_string() == text);
        found
            .copied()
            .ok_or_else(|| format!("there is no bug {text}"))
    }
}

/// What bugs have to remember.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Rows as they were, the latest last.
    before: BTreeMap<(usize, Key), Vec<Option<Record>>>,
    /// Rows that a life has read already.
    served: BTreeSet<(usize, u64, Key)>,
    /// Frames that left, batches that were written, timers that fired, commits and requests that were repeated.
    writes: u64,
    batches: u64,
    timers: u64,
    commits: BTreeSet<(usize, usize, u64, u64)>,
    requests: BTreeSet<(usize, String)>,
}

impl World {
    fn bugs(&self) -> impl Iterator<Item = Bug> + use<> {
        [self.options.bug, self.options.second_bug]
            .into_iter()
            .flatten()
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.options.bug == Some(bug) || self.options.second_bug == Some(bug)
    }

    /// Whether there is no bug at all: the common case.
    const fn is_well(&self) -> bool {
        self.options.bug.is_none() && self.options.second_bug.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for bug in Bug::ALL {
            assert_eq!(bug.to_string().parse(), Ok(*bug));
            assert_eq!(serde_json::to_string(bug).unwrap(), format!("\"{bug}\""));
        }
    }

    #[test]
    fn every_layer_is_half_of_a_pair() {
        for layer in Bug::ALL.iter().filter(|bug| bug.is_layer()) {
            let of = |pair: &&Pair| pair.bug == *layer || pair.off == *layer;
            assert!(Pair::ALL.iter().any(|pair| of(&pair)), "{layer}");
        }
        for pair in Pair::ALL {
            assert_ne!(pair.bug, pair.off);
        }
    }
}
