//! What an account does when its database has lost commits: the table of losses, as code.
//!
//! A failover to a standby that was behind, or a restored backup, brings rows back as they were. Every number in them
//! that only goes up may have been further already, and what was counted by it has been seen by others. So before
//! anything else, in the first batch of the first engine that finds out, every such number is moved to where it cannot
//! have been. That is a few rows, however large the account: a session is brought up to date when it is used.
//!
//! How far each moves does not depend on what was lost, which nobody knows, but on **how often**: the distance between
//! the history the account was sealed in last and the one there is now. A constant distance would not do. If the second
//! loss takes the first one's repairs back, the same constant leads to the same numbers again. With the distance, each
//! history has a range of its own, and it takes more than the width of a range, used in one history and lost, to meet a
//! number twice. Failovers and restores count differently for the same reason: a failover that takes a restore back is
//! as far away as that restore was.
//!
//! | what goes back | what would happen | what is done |
//! |---|---|---|
//! | sending chains | a message key encrypts twice | burn: each chain is skipped ahead at its next use, or a new session made ([`Session::at_burn`]) |
//! | one-time pre-key ids | an id is bound twice; private halves are gone | ids jump, a fresh batch is uploaded; who uses a lost one is asked to retry |
//! | signed pre-key | its id is bound twice; the private half is gone | its ids jump, a new one is offered; the upload names one that is there |
//! | event numbers | a number means two events | numbers jump, an event says so ([`Event::HistoryLost`]) |
//! | receiving chains | behind: later messages step them ahead; a lost turn makes messages unreadable | nothing: retry receipts exist for that |
//! | members' sender keys | the same | nothing, for the same reason |
//! | versions and hashes of settings | behind, whole: rows and hash went back together | nothing: the patches in between come again; a patch of ours that is among them is somebody's like any other, one that is not yet is refused as a conflict and made anew |
//! | keys of settings, announced history | gone | nothing: a key is asked for when it is missed; what was announced is not announced again |
//! | outbox | sealed: the same bytes again; queued: encrypted anew under the same id | nothing: service and recipients go by the id |
//!
//! Own sender keys do not exist yet: nothing sends to groups. When something does, its row has to remember the
//! [burn](Context::burn) it was made under, as chains do, and be replaced when that is lower than the account's.
//!
//! [`Session::at_burn`]: crate::signal::SessionRecord::at_burn

use super::{Context, Event, pre_keys};
use crate::{
    crypto::Rng,
    proto::record::Counters,
    signal::MAX_SKIP,
    state::{EventSeq, Seal},
};

/// Message keys that one failover burns on each chain: so many may have been used to one device in what was lost. A
/// standby that is behind is behind by seconds; chains start over whenever the other side answers. It is as far as
/// recipients are sure to follow, so two failovers without a message in between make a new session.
const KEYS: u32 = MAX_SKIP;

/// A restored backup can be of any age, and the own phone's session, which gets a copy of everything and seldom
/// answers, has no bound that would fit: every session is made anew.
const KEYS_RESTORED: u32 = 1 << 16;

/// One-time pre-key ids. An upload is of some 800; a backup can be older than ten of them, but then most have been used
/// up since. There are only sixteen million, which is eight hundred failovers. A failover is further than a restore, as
/// it can lose the record of one.
const PRE_KEYS: u32 = 20_000;
const PRE_KEYS_RESTORED: u32 = 10_000;

/// How far apart ids can be that two imports of one file go on from. A quarter of all: older ids stay behind.
const MOVED: u64 = 1 << 22;

/// Signed pre-keys come once a week, and once with each loss.
const SIGNED_PRE_KEYS: u32 = 2_000;
const SIGNED_PRE_KEYS_RESTORED: u32 = 1_000;

/// Events. These also have to be in order, for consumers that remember the highest number. A failover outranks restores,
/// because it can lose the record of nine of them, while nothing loses a failover. Round, so that people see what
/// happened, and small enough for nine hundred thousand failovers within the integers of JavaScript.
const EVENTS: u64 = 10_000_000_000;
const EVENTS_RESTORED: u64 = 1_000_000_000;

/// Moves everything to where it has not been between `sealed` and `history`. The caller sees to it that this is in the
/// first batch, and that the numbers still fit the tables.
pub(crate) fn reseal(cx: &mut Context, sealed: Seal, history: Seal) {
    let losses = sealed.losses_until(history);
    cx.stats.losses += losses;
    let keys = cx.account.signed_pre_keys.iter().chain(&cx.account.staged);
    let newest = keys.map(|key| key.id).max().unwrap_or(0);
    let after = jump(&mut cx.counters, newest, sealed, history);
    if cx.account.is_linked() {
        // One that waits for the service's word stays in use: the service may have given it out.
        cx.account.promote_staged();
        pre_keys::stage(cx);
    }
    // Writes the counters too.
    cx.emit(Event::HistoryLost { after, losses });
}

/// The numbers. `newest` is the id of the newest signed pre-key. Returns the last event number before the gap.
fn jump(counters: &mut Counters, newest: u32, sealed: Seal, history: Seal) -> EventSeq {
    let failovers = history.timeline.abs_diff(sealed.timeline);
    let restores = history.generation.abs_diff(sealed.generation);
    let by = |per_failover: u32, per_restore: u32| {
        let failovers = failovers.saturating_mul(per_failover);
        failovers.saturating_add(restores.saturating_mul(per_restore))
    };

    let burn = counters.burn.unwrap_or(0);
    counters.burn = Some(burn.saturating_add(by(KEYS, KEYS_RESTORED)));

    let next = counters.next_pre_key.unwrap_or(1);
    let next = ahead(next, by(PRE_KEYS, PRE_KEYS_RESTORED));
    counters.next_pre_key = Some(next);
    // What was offered and not confirmed is still there for whoever got it, but is not offered again: the service may
    // have heard of it, and of its being used up.
    counters.first_unconfirmed_pre_key = Some(next);
    counters.pre_keys_due = Some(true);

    let next = counters.next_signed_pre_key.unwrap_or(0);
    let next = next.max(newest.saturating_add(1));
    let next = ahead(next, by(SIGNED_PRE_KEYS, SIGNED_PRE_KEYS_RESTORED));
    counters.next_signed_pre_key = Some(next);

    let next = counters.next_event.unwrap_or(1).max(1);
    let by = u64::from(failovers) * EVENTS + u64::from(restores) * EVENTS_RESTORED;
    counters.next_event = Some(next.saturating_add(by));
    EventSeq(next - 1)
}

/// An account that comes out of an export file. Nothing was lost; but whoever has the file can open it twice, and the two
/// must not meet. Every session is made anew, from randomness of each side's own, and ids that are bound to keys go on
/// from places that are far apart, most likely. Event numbers go on: their consumer moves along.
pub(crate) fn moved(counters: &mut Counters, newest: u32, rng: &mut Rng) {
    let far = |rng: &mut Rng| {
        let further = u32::try_from(rng.below(MOVED)).unwrap_or(0);
        PRE_KEYS_RESTORED + further
    };
    let burn = counters.burn.unwrap_or(0);
    counters.burn = Some(burn.saturating_add(KEYS_RESTORED));

    let next = ahead(counters.next_pre_key.unwrap_or(1), far(rng));
    counters.next_pre_key = Some(next);
    // What the source has offered stays usable, but is not offered from here.
    counters.first_unconfirmed_pre_key = Some(next);
    counters.pre_keys_due = Some(true);

    let next = counters.next_signed_pre_key.unwrap_or(0);
    let next = ahead(next.max(newest.saturating_add(1)), far(rng));
    counters.next_signed_pre_key = Some(next);
}

/// A pre-key id so much further on; after the last one comes the first.
fn ahead(id: u32, by: u32) -> u32 {
    let place = u64::from(id.clamp(1, pre_keys::LAST_ID) - 1) + u64::from(by);
    let place = place % u64::from(pre_keys::LAST_ID);
    u32::try_from(place).map_or(1, |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_start_over_behind_the_last_one() {
        assert_eq!(ahead(1, 10), 11);
        assert_eq!(ahead(pre_keys::LAST_ID, 0), pre_keys::LAST_ID);
        assert_eq!(ahead(pre_keys::LAST_ID, 1), 1);
        assert_eq!(ahead(pre_keys::LAST_ID - 1, 3), 2);
    }

    /// What a database holds of an account, as far as numbers go.
    #[derive(Clone)]
    struct Database {
        counters: Counters,
        sealed: Seal,
        history: Seal,
    }

    impl Database {
        /// What the next engine does: makes up for losses, then uses so many of each number.
        fn live(&mut self, used: &mut Used, count: u32) {
            if self.sealed != self.history {
                jump(&mut self.counters, 1, self.sealed, self.history);
                self.sealed = self.history;
            }
            let burn = self.counters.burn.unwrap_or(0);
            for _ in 0..count {
                let event = self.counters.next_event.unwrap_or(1);
                assert!(event > used.event, "event {event} after {}", used.event);
                used.event = event;
                self.counters.next_event = Some(event + 1);
                let id = self.counters.next_pre_key.unwrap_or(1);
                assert!(used.pre_keys.insert(id), "pre-key {id} twice");
                self.counters.next_pre_key = Some(id + 1);
            }
            let id = self.counters.next_signed_pre_key.unwrap_or(2);
            assert!(used.signed.insert(id), "signed pre-key {id} twice");
            self.counters.next_signed_pre_key = Some(id + 1);
            // A chain that has been in use from the beginning, without a turn. The place of the next counter is kept in
            // a field that `jump` leaves alone.
            let (index, under) = chain(&self.counters);
            if burn - under <= MAX_SKIP {
                let index = index + burn - under;
                for index in index..index + count {
                    assert!(used.keys.insert(index), "key {index} twice");
                }
                set_chain(&mut self.counters, index + count, burn);
            }
        }
    }

    fn chain(counters: &Counters) -> (u32, u32) {
        let both = counters.next_order.unwrap_or(0);
        ((both >> 32) as u32, both as u32)
    }

    fn set_chain(counters: &mut Counters, index: u32, burn: u32) {
        counters.next_order = Some(u64::from(index) << 32 | u64::from(burn));
    }

    #[derive(Default)]
    struct Used {
        event: u64,
        pre_keys: BTreeSet<u32>,
        signed: BTreeSet<u32>,
        keys: BTreeSet<u32>,
    }

    proptest! {
        /// Whatever is lost, how often, and whether or not what was done about it was lost again: no number comes twice.
        #[test]
        fn no_number_comes_twice(steps in proptest::collection::vec((0..400u32, 0..5usize, any::<bool>()), 1..60)) {
            let mut used = Used::default();
            let mut now = Database { counters: Counters::default(), sealed: Seal::FIRST, history: Seal::FIRST };
            let mut copies = vec![now.clone()];
            // Used since each copy was made: a failover loses no more keys of a chain than it burns.
            let mut since = vec![0];
            for (count, back, restore) in steps {
                now.live(&mut used, count);
                since.iter_mut().for_each(|since| *since += count);
                let back = back.min(copies.len() - 1);
                let at = copies.len() - 1 - back;
                // A failover loses the record of one restore at most.
                let lost = now.history.generation - copies[at].history.generation;
                let restore = restore || lost > 1;
                if back > 0 && (restore || since[at] <= KEYS) {
                    let history = now.history;
                    now = copies[at].clone();
                    // A generation is a row like others, and can be lost; a timeline is not.
                    now.history.timeline = history.timeline;
                    if restore {
                        now.history.generation = history.generation + 1;
                    } else {
                        now.history.timeline += 1;
                    }
                    // Copies of what was lost are no copies of this database.
                    copies.truncate(at + 1);
                    since.truncate(at + 1);
                }
                copies.push(now.clone());
                since.push(0);
            }
        }
    }
}
