//! What drivers do wrong: rights, clocks, connections, commits, limits, the mailbox, the consumer.

use super::{Bug, World};
use crate::world::{Happening, account::Recorded};
use baton_core::{
    engine::Now,
    flow::{Config, Event, Limits, SendRequest},
    state::{AccountId, Batch, EventSeq, Lease, Micros, Seal, Table},
};
use bytes::Bytes;

/// How long after it was carried out a commit comes a second time: soon, or when somebody else may have the account.
const REPEATED: [Micros; 2] = [Micros::from_millis(700), Micros::from_secs(9)];

/// How often in a row a timer fires too early, if it does.
const EARLY: u64 = 120;

impl World {
    /// Whose a batch is, and which, as a bug has it.
    pub(super) fn mislead(&mut self, bug: Bug, account: usize, batch: &mut Batch) {
        match (bug, self.accounts[account].watched.given()) {
            (Bug::NoFence, Some((term, applied))) if term != batch.term => {
                batch.term = term;
                batch.seq = applied.next();
            }
            (Bug::SeqIgnored, Some((term, applied)))
                if term == batch.term && batch.seq <= applied =>
            {
                batch.seq = applied.next();
            }
            (Bug::WrongTenant, _) => {
                self.memory.batches += 1;
                let other = (account + 1) % self.accounts.len();
                if self.memory.batches.is_multiple_of(64)
                    && let Some((term, applied)) = self.accounts[other].watched.given()
                {
                    batch.account = AccountId::clone(&self.accounts[other].id);
                    batch.term = term;
                    batch.seq = applied.next();
                }
            }
            _ => {}
        }
    }

    /// Whether a commit is answered before it is written.
    pub(crate) fn answers_early(&self, batches: &[Batch]) -> bool {
        self.bugs().any(|bug| {
            let table = match bug {
                Bug::SentBeforeCommit => Table::Outbox,
                Bug::AckBeforeKeep => Table::Seen,
                Bug::UploadBeforeKeep => Table::PreKey,
                Bug::AnnouncedBeforeKeep => Table::AppStateVersion,
                Bug::WriteBehind => return true,
                _ => return false,
            };
            let mut keys = batches.iter().flat_map(|batch| batch.rows.keys());
            keys.any(|key| key.table() == table)
        })
    }

    /// A commit was carried out: it may come again. Returns whether this is the second time, to which nobody listens.
    pub(crate) fn repeats(&mut self, account: usize, life: u64, batches: &[Batch]) -> bool {
        let Some(last) = batches.last().filter(|_| self.has(Bug::CommitTwice)) else {
            return false;
        };
        let losses = self.ledger.losses();
        let which = (account, losses, last.term.epoch.0, last.seq.0);
        let first = self.memory.commits.insert(which);
        if first {
            let batches = batches.to_vec();
            self.later(
                REPEATED[usize::from(last.seq.0.is_multiple_of(8))],
                Happening::Store {
                    account,
                    life,
                    batches,
                },
            );
        }
        !first
    }

    /// A right as the store gives it.
    pub(crate) fn bugged_claim(&self, account: usize, mut lease: Lease) -> Lease {
        if self.has(Bug::EpochReused)
            && let Some((term, _)) = self.accounts[account].watched.given()
        {
            lease.term.epoch = term.epoch;
        }
        lease
    }

    /// A right as a new owner understands it.
    pub(crate) fn bugged_lease(&self, lease: &mut Lease) {
        for bug in self.bugs() {
            match bug {
                Bug::LossUnnoticed => lease.sealed = lease.term.history,
                Bug::AppliedBehind => lease.applied.0 = lease.applied.0.saturating_sub(1),
                Bug::LossInvented if lease.applied.0 > 0 && lease.sealed == lease.term.history => {
                    lease.sealed = Seal {
                        generation: lease.sealed.generation.saturating_sub(1),
                        ..lease.sealed
                    };
                }
                _ => {}
            }
        }
    }

    /// The configuration that engines really get.
    pub(crate) fn engine_config(&self) -> Config {
        let mut config = self.config();
        let usual = Limits::gateway();
        for bug in self.bugs() {
            let limits = &mut config.limits;
            match bug {
                Bug::BatchesUnlimited => limits.batches_in_flight = usual.batches_in_flight,
                Bug::EventsUnlimited => limits.events_in_flight = usual.events_in_flight,
                Bug::CacheUnlimited => limits.cache_bytes = usual.cache_bytes,
                _ => {}
            }
        }
        config
    }

    /// The time that an engine is told with an input.
    pub(crate) fn bugged_now(&mut self, input: &Recorded, mut now: Now) -> Now {
        if self.has(Bug::EarlyTimers) && matches!(input, Recorded::Tick) {
            self.memory.timers += 1;
            now.mono.0 = match self.memory.timers % (8 * EARLY) < EARLY {
                true => now.mono.0.saturating_sub(1),
                false => now.mono.0 + 1000,
            };
        }
        now
    }

    /// The time that an engine is told, when its record has this.
    pub(crate) fn second_look(&self, mut now: Now) -> Now {
        if self.has(Bug::ClockReadTwice) {
            now.mono.0 += 7;
            now.unix.0 += 1;
        }
        now
    }

    /// Bytes as they leave a host.
    pub(crate) fn bugged_write(&mut self, bytes: Bytes) -> Vec<Bytes> {
        self.memory.writes += 1;
        let now_and_then = self.memory.writes.is_multiple_of(40);
        if self.has(Bug::ServiceForgetsIds) {
            self.service.forget_ids();
        }
        if now_and_then && self.has(Bug::LostWrite) {
            return Vec::new();
        }
        if now_and_then && self.has(Bug::TwiceWritten) {
            return vec![bytes.clone(), bytes];
        }
        vec![bytes]
    }

    /// Whether an event never gets to the consumer.
    pub(crate) fn hides(&self, account: usize, event: &Event) -> bool {
        match event {
            Event::Message(message) if self.has(Bug::OfflineSkipped) => message.offline,
            _ => self.has(Bug::EventsStop) && self.accounts[account].watched.opened() > 2,
        }
    }

    /// An event gets to the consumer of another account, behind all of its own.
    pub(crate) fn mix(&mut self, account: usize, seq: EventSeq, event: &Event) {
        let other = (account + 1) % self.accounts.len();
        let behind = EventSeq(seq.0.saturating_add(1 << 40));
        self.note(&[b"event", &other.to_le_bytes(), &behind.0.to_le_bytes()]);
        self.accounts[other].events.insert(behind, event.clone());
    }

    /// A request was left in a mailbox: it may be left again, when it is long done.
    pub(crate) fn asks_again(&mut self, account: usize, request: &SendRequest) {
        if !self.has(Bug::AskedAgain) {
            return;
        }
        let Some(id) = &request.id else { return };
        if self.memory.requests.insert((account, id.to_string())) {
            let request = request.clone();
            self.later(
                Micros::from_secs(6),
                Happening::Request { account, request },
            );
        }
    }
}
