//! Two at a time: a mistake, and the layer of defence that makes it harmless, or nearly so, switched off.
//!
//! A layer that nobody misses may not be there at all. So each pair is run four ways, without any bug, with either, with
//! both, and counts as found where a judge speaks that neither alone calls.

use super::Bug;

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What goes wrong.
    pub bug: Bug,
    /// What would have caught it.
    pub off: Bug,
    /// Which two layers these are.
    pub words: &'static str,
}

const fn pair(bug: Bug, off: Bug, words: &'static str) -> Pair {
    Pair { bug, off, words }
}

impl Pair {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        pair(
            Bug::NoFence,
            Bug::LeaseForever,
            "the store's fence; the engine's lease",
        ),
        pair(
            Bug::NoFence,
            Bug::DeadIgnored,
            "the store's fence; who was declared dead stops",
        ),
        pair(
            Bug::FencedIgnored,
            Bug::LeaseForever,
            "an engine whose commit is refused stops; the engine's lease",
        ),
        pair(
            Bug::FencedIgnored,
            Bug::DeadIgnored,
            "an engine whose commit is refused stops; who was declared dead stops",
        ),
        pair(
            Bug::UnsealedIgnored,
            Bug::HistoryIgnored,
            "a loss is noticed by commits; and by renewals",
        ),
        pair(
            Bug::LossUnnoticed,
            Bug::UnsealedIgnored,
            "a loss is noticed by claims; and by commits",
        ),
        pair(
            Bug::CommitTwice,
            Bug::SeqIgnored,
            "connections that repeat nothing; the store takes a number once",
        ),
        pair(
            Bug::CommitTwice,
            Bug::NoFence,
            "connections that repeat nothing; the store's fence",
        ),
        pair(
            Bug::MarksUnread,
            Bug::ForgetsRatchets,
            "duplicate marks; the ratchet's own refusal",
        ),
        pair(
            Bug::ReceiptsLost,
            Bug::MarksUnread,
            "receipts end the queued copy; duplicate marks",
        ),
        pair(
            Bug::SealForgotten,
            Bug::ServiceForgetsIds,
            "the same bytes again; ids at the service",
        ),
        pair(
            Bug::RetryWithoutKeys,
            Bug::RetryBundlesRefused,
            "keys in retry receipts; bundles from the service",
        ),
        pair(
            Bug::RetryKeysUnused,
            Bug::RetryBundlesRefused,
            "keys of retry receipts are used; bundles from the service",
        ),
        pair(
            Bug::PreKeyNoticeTaken,
            Bug::PreKeyCountIgnored,
            "the notice that pre-keys run out; the count at each login",
        ),
        pair(
            Bug::PreKeyGivenAgain,
            Bug::RetryNeverAsked,
            "the service's book of pre-keys; retry receipts",
        ),
        pair(
            Bug::ForgetsSessions,
            Bug::RetryNeverAsked,
            "sessions are kept; retry receipts",
        ),
        pair(
            Bug::ForgetsPreKeys,
            Bug::RetryNeverAsked,
            "private halves are kept; retry receipts",
        ),
        pair(
            Bug::ForgetsSettingsKeys,
            Bug::KeysToldOnce,
            "keys for settings are kept; the phone tells them again",
        ),
        pair(
            Bug::KeepsMail,
            Bug::ForgetsSent,
            "requests leave the mailbox; what was sent is known",
        ),
        pair(
            Bug::AskedAgain,
            Bug::ForgetsSent,
            "a request is made once; what was sent is known",
        ),
        pair(
            Bug::AckIgnored,
            Bug::ReceiptsTaken,
            "the service's acknowledgement; receipts of recipients prove as much",
        ),
        pair(
            Bug::ForgetsLids,
            Bug::DevicesOnce,
            "LIDs are kept; the service tells them again",
        ),
        pair(
            Bug::ForgetsDeviceLists,
            Bug::DevicesOnce,
            "device lists are kept; the service tells them again",
        ),
    ];
}
