//! Old mistakes, put back into the database host, or into what runs on the hosts, to see which judge finds them.
//!
//! None of them is in the product: they are done to its answers, here.

use super::judge::Ledger;
use baton_core::state::{
    AccountId, Batch, Claim, Epoch, Incarnation, Key, Lease, Outcome, Record, Row, Seq, StoreError,
    Table,
};
use std::collections::BTreeMap;

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Batches with a send in them are answered before they are written, as if the gate were open: what they allow is
    /// on the wire before it is durable.
    SentBeforeCommit,
    /// The same for batches with an event in them: acknowledged before it is kept.
    AckBeforeKeep,
    /// Whoever sends a batch may write it: epoch, holder and number are not looked at.
    NoFence,
    /// A new owner is given the sessions as they were one write ago.
    StaleSession,
    /// A new owner is given the counters as they were some writes ago.
    StaleCounters,
    /// Ratchets and marks of messages that were taken in are left out of batches; the events are in them.
    ForgottenRatchets,
    /// Sends that are sealed are left out of batches.
    ForgottenOutbox,
    /// One request in eight is accepted into the mailbox, and is not there.
    ForgottenRequest,
    /// Nobody's lease ends before its time: releasing and leaving are ignored.
    IgnoredRelease,
    /// A claim takes an account away from a live host.
    GreedyClaim,
    /// The database's clock stands still: no lease ever runs out.
    StoppedClock,
    /// A new owner is given the collections of settings as they were one write ago.
    StaleCollections,
    /// Value MACs are left out of batches; the version that they belong to is in them.
    ForgottenMacs,
    /// The consumer acknowledges a question before it has answered.
    HastyConsumer,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::SentBeforeCommit,
        Self::AckBeforeKeep,
        Self::NoFence,
        Self::StaleSession,
        Self::StaleCounters,
        Self::ForgottenRatchets,
        Self::ForgottenOutbox,
        Self::ForgottenRequest,
        Self::IgnoredRelease,
        Self::GreedyClaim,
        Self::StoppedClock,
        Self::StaleCollections,
        Self::ForgottenMacs,
        Self::HastyConsumer,
    ];

    /// Whether these batches are answered before they are written.
    pub(crate) fn answers_early(self, batches: &[Batch]) -> bool {
        let table = match self {
            Self::SentBeforeCommit => Table::Outbox,
            Self::AckBeforeKeep => Table::Seen,
            _ => return false,
        };
        let mut keys = batches.iter().flat_map(|batch| batch.rows.keys());
        keys.any(|key| key.table() == table)
    }

    /// Leaves rows out.
    pub(crate) fn thin_out(self, batches: &mut [Batch]) {
        for batch in batches {
            let has = |table| batch.rows.keys().any(|key| key.table() == table);
            let forgotten: &[Table] = match self {
                Self::ForgottenRatchets if has(Table::Seen) => &[Table::Seen, Table::Session],
                Self::ForgottenOutbox => &[Table::Outbox],
                Self::ForgottenMacs => &[Table::AppStateMutationMac],
                _ => continue,
            };
            batch
                .rows
                .retain(|key, _| !forgotten.contains(&key.table()));
        }
    }

    /// How many writes ago a new owner sees such a row; 0 for as it is.
    fn age(self, key: &Key) -> usize {
        match (self, key) {
            (Self::StaleSession, Key::Session(_)) => 1,
            (Self::StaleCounters, Key::Counters) => 4,
            (Self::StaleCollections, Key::AppStateVersion(_)) => 2,
            _ => 0,
        }
    }
}

/// What bugs have to remember.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The rights given last.
    given: BTreeMap<AccountId, Lease>,
    /// Rows as they were, the latest last.
    before: BTreeMap<(AccountId, Key), Vec<Option<Record>>>,
    /// Under which epoch a row was loaded last.
    served: BTreeMap<(AccountId, Key), Epoch>,
    requests: u64,
    /// What has been answered and not been written, and when it will be.
    pub(crate) early: Vec<(u64, Vec<Batch>)>,
}

impl Memory {
    pub(crate) fn granted(&mut self, account: &AccountId, lease: &Lease) {
        self.given.insert(account.clone(), *lease);
    }

    /// [`Bug::NoFence`]: batches as the last owner would have sent them.
    pub(crate) fn forge(&self, batches: &mut [Batch], ledger: &Ledger) {
        for batch in batches {
            if let Some(lease) = self.given.get(&batch.account) {
                let applied = ledger.applied(&batch.account).unwrap_or(lease.applied);
                batch.term = lease.term;
                batch.seq = Seq(applied.0 + 1);
            }
        }
    }

    /// Keeps what is written, as far as the bug needs it.
    pub(crate) fn written(&mut self, bug: Bug, batch: &Batch, outcome: &Outcome) {
        if *outcome != Outcome::Committed {
            return;
        }
        for (key, record) in batch.rows.iter().filter(|(key, _)| bug.age(key) > 0) {
            let place = (batch.account.clone(), key.clone());
            let history = self.before.entry(place).or_default();
            history.push(record.clone());
        }
    }

    /// [`Bug::StaleSession`], [`Bug::StaleCounters`]: the first load of a new owner is given an old row.
    pub(crate) fn age(&mut self, bug: Bug, account: &AccountId, keys: Vec<Key>, rows: &mut [Row]) {
        let Some(epoch) = self.given.get(account).map(|lease| lease.term.epoch) else {
            return;
        };
        for (key, row) in keys.into_iter().zip(rows) {
            let age = bug.age(&key);
            let place = (account.clone(), key);
            let served = self.served.insert(place.clone(), epoch);
            let history = self.before.get(&place).map(Vec::as_slice);
            let history = history.unwrap_or_default();
            if age > 0
                && served.is_some_and(|before| before < epoch)
                && let Some(Some(old)) = history.iter().rev().nth(age)
            {
                *row = Row::Present(old.clone());
            }
        }
    }

    /// [`Bug::ForgottenRequest`].
    pub(crate) fn forgets_request(&mut self) -> bool {
        self.requests += 1;
        self.requests.is_multiple_of(8)
    }

    /// [`Bug::GreedyClaim`]: whose account is to be given up, under which epoch.
    pub(crate) fn victim(
        &self,
        account: &AccountId,
        claim: &Claim,
    ) -> Option<(Incarnation, Epoch)> {
        let Claim::Held { by } = claim else {
            return None;
        };
        let lease = self.given.get(account)?;
        Some((*by, lease.term.epoch))
    }
}

/// What a call is answered that was not carried out.
pub(crate) const IGNORED: Result<(), StoreError> = Ok(());
