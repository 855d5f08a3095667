//! The judges, by name: what each looks at, how much of it there was, and what it found.
//!
//! A finding is a complaint that begins with the judge's name (`message-kept: …`, behind the account's phone if it is of
//! one account). A judge that had nothing to judge says nothing by being silent, so what each has looked at is counted as
//! well: a batch of seeds in which a judge was idle has failed.

use std::{collections::BTreeSet, fmt};

macro_rules! judges {
    ($($(#[doc = $doc:literal])+ $judge:ident = $name:literal,)+) => {
        /// One of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Judge { $($(#[doc = $doc])+ $judge,)+ }

        impl Judge {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$judge,)+];

            /// As findings begin.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$judge => $name,)+ }
            }

            /// What it demands.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$judge => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

judges! {
    // ---- messages
    /// What somebody asked to be sent reaches the recipient's consumer, unless the database lost it.
    MessageKept = "message-kept",
    /// It does so under one number.
    MessageOnce = "message-once",
    /// Nothing is shown that nobody asked for.
    MessageAsked = "message-asked",
    /// The phones of both sides can read what was sent, once.
    CopyKept = "copy-kept",
    /// Texts of one sender for one recipient arrive in the order in which they were asked for.
    MessageOrder = "message-order",
    /// A text arrives as it was written.
    MessageWhole = "message-whole",
    /// No message ends as undecryptable.
    MessageRead = "message-read",
    /// No send ends as failed.
    SendTaken = "send-taken",
    /// A send is reported as sent once.
    SentOnce = "sent-once",
    /// A send that the service has taken was reported as sent.
    SentTold = "sent-told",
    /// What goes out under an id is always the same bytes.
    SendOnce = "send-once",
    /// What the service has taken is kept as it was asked for, to be sent again.
    SentKept = "sent-kept",

    // ---- events
    /// Numbers in a consumer's book have no gaps, but behind a loss that was announced.
    EventGap = "event-gap",
    /// Events are shown in order.
    EventOrder = "event-order",
    /// What is shown under a number is always the same; no number is given twice.
    EventOnce = "event-once",
    /// A loss of commits is announced only when there was one.
    LossTold = "loss-told",

    // ---- durability and ownership
    /// A batch is written under the last right that was given, in the order of its numbers.
    OneWriter = "one-writer",
    /// Rights grow with each owner.
    EpochGrows = "epoch-grows",
    /// Nothing that depends on a batch is seen before the batch is durable.
    DurableBeforeVisible = "durable-before-visible",
    /// A message is acknowledged to the service after its mark is durable.
    AckAfterKeep = "ack-after-keep",
    /// An engine is told that a batch is durable when the store has it, and not before.
    CommitTold = "commit-told",
    /// An engine has one connection at most, and opens none while it has one.
    OneConnection = "one-connection",
    /// Nothing but pings leaves when the grant has run out.
    GrantHeld = "grant-held",
    /// A batch holds rows of its own account only.
    TenantWall = "tenant-wall",
    /// An engine stops for a reason that the plan explains.
    StopExplained = "stop-explained",

    // ---- keys
    /// No message key encrypts twice.
    KeyUsedOnce = "key-used-once",
    /// No pre-key id is bound to two keys.
    PreKeyOnce = "prekey-once",
    /// The private half of every pre-key that the service gives out is in the store.
    PreKeyKept = "prekey-kept",
    /// A device keeps its identity.
    IdentityKept = "identity-kept",
    /// The store has the identity of each device that it has a session with.
    IdentityKnown = "identity-known",

    // ---- settings and history
    /// What the store says of a collection is what the phone knows of that version.
    SettingsNoFork = "appstate-no-fork",
    /// Patches of a device add up.
    PatchAddsUp = "patch-adds-up",
    /// At rest, every collection is where the phone is, and nothing waits.
    SettingsArrive = "settings-arrive",
    /// Contacts and chats say what the phone's settings say.
    SettingsMean = "settings-mean",
    /// Every key for settings that the phone has told is in the store.
    SettingsKeysKept = "settings-keys-kept",
    /// A change that was accepted is announced, once.
    ChangeOnce = "change-once",
    /// Every message of a past is shown once, and the phone is told when a chunk is whole.
    HistoryOnce = "history-once",

    // ---- the engine inside its limits
    /// No more batches are under way than the limit.
    LimitBatches = "limit-batches",
    /// No more events are shown than the consumer has room for.
    LimitEvents = "limit-events",
    /// At rest, the cache is inside its limit.
    LimitCache = "limit-cache",
    /// An input is followed by a bounded number of outputs.
    LimitOutputs = "limit-outputs",
    /// Batches are numbered without gaps.
    BatchOrder = "batch-order",
    /// An engine that is idle sleeps.
    NoSpin = "no-spin",
    /// A command has one answer.
    ReplyOnce = "reply-once",
    /// No row is called unreadable in a store that is whole.
    RowsRead = "rows-read",
    /// The recorded inputs of an engine lead another one to the same outputs.
    Replays = "replays",

    // ---- the store at rest
    /// Every row decodes as what its table holds.
    RowsDecode = "rows-decode",
    /// Counters are ahead of everything that was numbered with them.
    CountersAhead = "counters-ahead",
    /// Acknowledged events are gone, the others follow each other.
    InboxTidy = "inbox-tidy",

    // ---- progress
    /// At rest, an account is online.
    LiveOnline = "live-online",
    /// At rest, no send waits.
    LiveOutbox = "live-outbox",
    /// At rest, no request waits in a mailbox.
    LiveMailbox = "live-mailbox",
    /// At rest, nothing waits at the service.
    LiveQueue = "live-queue",
    /// At rest, the service has pre-keys to give out.
    LivePreKeys = "live-prekeys",
    /// At rest, the engine takes in all there is, and no store call or download is open.
    LiveEngine = "live-engine",
    /// Connections are not opened again and again.
    LiveCalm = "live-calm",

    // ---- and beside them
    /// The service has nothing to wonder about.
    Protocol = "protocol",
    /// The scenario itself works: phones scan, requests are taken.
    Scenario = "scenario",
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Judge {
    /// Who has made a complaint.
    #[must_use]
    pub fn of(complaint: &str) -> Self {
        let mut parts: Vec<&str> = complaint.splitn(3, ": ").collect();
        // What it says, which may be the name of somebody too.
        parts.pop();
        let mut names = parts.into_iter();
        names
            .find_map(|part| Self::ALL.iter().find(|judge| judge.name() == part).copied())
            .unwrap_or(Self::Scenario)
    }

    /// Everybody who has made one of these.
    #[must_use]
    pub fn all_of(complaints: &[String]) -> BTreeSet<Self> {
        complaints.iter().map(|text| Self::of(text)).collect()
    }
}

/// How much each judge has looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    counts: Vec<u64>,
}

impl Default for Judged {
    fn default() -> Self {
        Self {
            counts: vec![0; Judge::ALL.len()],
        }
    }
}

impl Judged {
    /// How much one has looked at.
    #[must_use]
    pub fn count(&self, judge: Judge) -> u64 {
        self.counts[judge as usize]
    }

    /// Adds what there was in another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    /// Judges that had nothing to judge.
    pub fn idle(&self) -> impl Iterator<Item = Judge> {
        let all = Judge::ALL.iter().copied();
        all.filter(|judge| self.count(*judge) == 0)
    }

    pub(crate) fn saw(&mut self, judge: Judge, times: usize) {
        self.counts[judge as usize] += times as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_their_judge() {
        for judge in Judge::ALL {
            assert_eq!(Judge::of(&format!("{judge}: x: y")), *judge);
            assert_eq!(Judge::of(&format!("15550000001: {judge}: x")), *judge);
        }
        assert_eq!(Judge::of("something else: message-kept"), Judge::Scenario);
    }
}
