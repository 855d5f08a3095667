//! Who may act: hosts, fences, and the rules by which an account changes hands.
//!
//! Three things are kept apart. The **fence** of an account (epoch, holder, seal) decides whose batches count; it is
//! checked in the transaction that writes, and no clock is involved. The **roster** of hosts says who is alive: one row
//! per host, renewed by that host however many accounts it holds; it decides when an account may be *claimed*. And the
//! **history** of the database ([`Seal`]) tells whether commits that were confirmed have been lost since.
//!
//! [`Fence`] and [`Roster`] are those rules as plain data without I/O: [`MemoryStore`](super::memory::MemoryStore)
//! consists of them, and a store that keeps rows rather than SQL can be built on them.

use super::{AccountId, Batch, Epoch, Micros, Outcome, Seq};
use smol_str::SmolStr;
use std::collections::BTreeMap;

/// One life of a host. Random, so that a restarted process never trusts what its predecessor held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// A database's history. While it is the same, everything that was reported as committed is there. It changes when
/// commits may have been lost: a failover begins a new timeline, a restored backup a new generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seal {
    /// As the server counts its failovers; 1 where there are none.
    pub timeline: u32,
    /// As the operator, or a store that notices by itself, counts restores.
    pub generation: u32,
}

impl Seal {
    /// Of a database that has never lost anything.
    pub const FIRST: Self = Self {
        timeline: 1,
        generation: 1,
    };

    /// How many times commits may have been lost between `self` and `later`; at least 1 if they differ. The distance
    /// matters, not only the difference: a second loss can undo what was done about the first.
    #[must_use]
    pub const fn losses_until(self, later: Self) -> u64 {
        later.timeline.abs_diff(self.timeline) as u64
            + later.generation.abs_diff(self.generation) as u64
    }

    /// The lowest epoch of this timeline. Epochs of a timeline start above all those of the one before, so that a
    /// database that has forgotten a claim does not give its epoch again.
    #[must_use]
    pub const fn epoch_floor(self) -> Epoch {
        Epoch(((self.timeline as u64).saturating_sub(1) << 40) + 1)
    }
}

/// The right to write: carried by every batch and compared with the fence, whole, by every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// Fencing token.
    pub epoch: Epoch,
    /// Who it was given to. A database that went back in time can give an epoch twice, but not to the same life.
    pub holder: Incarnation,
    /// The history it was given in.
    pub history: Seal,
}

/// The right to act for an account, as the store gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What every batch has to carry.
    pub term: Term,
    /// The last batch of the account's history.
    pub applied: Seq,
    /// The history in which the account's keys are known not to have gone back. If it is not the term's, the first
    /// batch has to be one that [re-seals](Batch::reseal).
    pub sealed: Seal,
}

/// The answer to [`Store::claim`](super::Store::claim), per account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The account is yours.
    Granted(Lease),
    /// A live host has it.
    Held {
        /// Who.
        by: Incarnation,
    },
    /// Somebody is in the middle of a transaction on it; ask again.
    Locked,
    /// It was moved to another database ([`Store::retire`](super::Store::retire)) and runs there.
    Retired,
    /// There is no such account.
    Missing,
}

/// The answer to [`Store::hand_over`](super::Store::hand_over).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// It is the successor's, under this epoch.
    Done {
        /// The successor's.
        epoch: Epoch,
    },
    /// It was not yours to give.
    Fenced {
        /// The epoch in force.
        by: Epoch,
    },
    /// The successor is not a live, active host. It is still yours.
    Refused,
}

/// What a host says about itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// What people call it, 1 to 64 characters of `A-Z a-z 0-9 _ - .`; placement goes by it, so it should survive
    /// restarts. Not unique: identity is the [`Incarnation`].
    pub name: SmolStr,
    /// Where it can be reached, for people and for calls between hosts; may be empty.
    pub address: SmolStr,
    /// Failure domain; may be empty.
    pub zone: SmolStr,
    /// Of the program.
    pub version: SmolStr,
    /// How many accounts it wants at most.
    pub capacity: u32,
}

impl HostInfo {
    /// A host that only has a name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            address: SmolStr::default(),
            zone: SmolStr::default(),
            version: env!("CARGO_PKG_VERSION").into(),
            capacity: u32::MAX >> 1,
        }
    }
}

/// Whether a host counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostState {
    /// Takes accounts.
    Active,
    /// Keeps what it has until it has handed it over; takes nothing new.
    Draining,
    /// Has left properly.
    Released,
    /// Was declared dead. Terminal for its incarnation.
    Dead,
}

impl HostState {
    /// Whether its accounts are out of reach for others.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Active | Self::Draining)
    }
}

/// A host as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Its place in the roster, from 1.
    pub slot: u16,
    /// This life of it.
    pub who: Incarnation,
    /// What it says about itself.
    pub info: HostInfo,
    /// Whether it counts.
    pub state: HostState,
    /// Accounts it said it holds.
    pub accounts: u32,
    /// How many of them it said have a connection.
    pub live: u32,
    /// Somebody wishes that it gives everything away ([`Store::drain`](super::Store::drain)). It obeys by saying
    /// [`Beat::draining`]; one that does not know of such wishes takes no notice.
    pub drain: bool,
    /// Until its lease runs out, by the store's clock; 0 if it has.
    pub remaining: Micros,
}

/// What a host says with each renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Takes no new accounts any more.
    pub draining: bool,
    /// How many it holds.
    pub accounts: u32,
    /// How many of them have a connection.
    pub live: u32,
    /// How long its lease holds from now on, unless renewed.
    pub ttl: Micros,
}

/// The answer to [`Store::beat`](super::Store::beat). "Could not reach the database" is neither: it is an `Err`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beaten {
    /// Alive for another while. Count from *before* the call was sent.
    Renewed(View),
    /// Somebody has declared this incarnation dead, or it has left, or never joined. It holds nothing.
    Dead,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The database's history now.
    pub history: Seal,
    /// Everybody in the roster, by slot; also those who are gone, until their slot is used again.
    pub hosts: Vec<HostView>,
    /// Who was declared dead by this very call.
    pub newly_dead: Vec<Incarnation>,
    /// Goes up with every account that is handed over to the caller: when it has changed, ask
    /// [`Store::held`](super::Store::held).
    pub gifts: u64,
}

/// What is wished for an account. Facts are in the fence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Whether a fleet should run it.
    pub run: bool,
    /// The name of the host that should, if it can.
    pub pin: Option<SmolStr>,
    /// Not within this time from now, after failures.
    pub pause: Micros,
}

impl Placement {
    /// Whether a host of that name should not have it.
    #[must_use]
    pub fn is_elsewhere(&self, name: Option<&str>) -> bool {
        !self.run || (self.pin.is_some() && self.pin.as_deref() != name)
    }
}

/// An account that should run and has no live host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Which.
    pub account: AccountId,
    /// The name of the host that should have it.
    pub pin: Option<SmolStr>,
    /// Who had it last, if anybody.
    pub last: Option<Incarnation>,
}

/// News of [`Store::watch`](super::Store::watch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This host has provably ended and was declared dead.
    Gone(Incarnation),
    /// Accounts were handed over, released, or wished elsewhere: have a look.
    Ownership,
}

/// Who may write one account, and how far its history has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The epoch in force, or the last one.
    pub epoch: Epoch,
    /// The last applied batch.
    pub applied: Seq,
    /// Who it was given to last; whether that still counts is in the roster.
    pub holder: Option<Incarnation>,
    /// The history in which the account's keys are known not to have gone back.
    pub sealed: Seal,
    /// Moved to another database.
    pub retired: bool,
}

impl Fence {
    /// Of a new account.
    #[must_use]
    pub const fn new(history: Seal) -> Self {
        Self {
            epoch: Epoch(0),
            applied: Seq(0),
            holder: None,
            sealed: history,
            retired: false,
        }
    }

    /// The one rule of writing: `None` if the rows of `batch` have to be written now (the fence has moved on already),
    /// otherwise what to answer.
    ///
    /// The order of the questions matters. Epoch and holder come first: a deposed holder that sends its last batch
    /// again must not take the successor's batch of the same number for its own. Then the history: in one that lost
    /// commits, numbers mean something else.
    pub fn admit(&mut self, batch: &Batch, history: Seal) -> Option<Outcome> {
        if let Some(refusal) = self.refusal(&batch.term, history) {
            return Some(refusal);
        }
        let seq = batch.seq;
        if self.sealed != history && !batch.reseal {
            Some(Outcome::Unsealed { history })
        } else if seq <= self.applied {
            Some(Outcome::Committed)
        } else if seq.0 - self.applied.0 > 1 {
            Some(Outcome::Rejected(format!(
                "batch {} does not follow {}",
                seq.0, self.applied.0
            )))
        } else {
            self.applied = seq;
            self.sealed = history;
            None
        }
    }

    /// Whether `term` is in force in `history`; what to answer if not.
    #[must_use]
    pub fn refusal(&self, term: &Term, history: Seal) -> Option<Outcome> {
        if term.epoch < self.epoch {
            Some(Outcome::Fenced { by: self.epoch })
        } else if term.epoch > self.epoch {
            // In a database that went back in time an epoch can be unknown that was granted; the history tells.
            Some(if term.history == history {
                Outcome::Rejected(format!(
                    "epoch {} was never granted; {} is in force",
                    term.epoch.0, self.epoch.0
                ))
            } else {
                Outcome::Unsealed { history }
            })
        } else if self.holder != Some(term.holder) {
            Some(Outcome::Fenced { by: self.epoch })
        } else if term.history != history {
            Some(Outcome::Unsealed { history })
        } else {
            None
        }
    }

    /// Takes it for `who`, who is a live host. `is_live` tells that of the holder.
    pub fn claim(
        &mut self,
        who: Incarnation,
        history: Seal,
        is_live: impl Fn(Incarnation) -> bool,
    ) -> Claim {
        if self.retired {
            return Claim::Retired;
        }
        if let Some(by) = self
            .holder
            .filter(|&holder| holder != who && is_live(holder))
        {
            return Claim::Held { by };
        }
        self.give(who, history);
        Claim::Granted(self.lease(who, history))
    }

    /// Gives it from `who` to `to`, who is a live and active host.
    pub fn hand_over(
        &mut self,
        who: Incarnation,
        epoch: Epoch,
        to: Incarnation,
        history: Seal,
    ) -> HandOver {
        if !self.is_held(who, epoch) {
            return HandOver::Fenced { by: self.epoch };
        }
        self.give(to, history);
        HandOver::Done { epoch: self.epoch }
    }

    /// Frees it, if it is held by `who` under `epoch`. The epoch stays, so that the next claim raises it.
    pub fn release(&mut self, who: Incarnation, epoch: Epoch) -> bool {
        let held = self.is_held(who, epoch);
        if held {
            self.holder = None;
        }
        held
    }

    /// Whether it is held by `who` under `epoch`.
    #[must_use]
    pub fn is_held(&self, who: Incarnation, epoch: Epoch) -> bool {
        self.holder == Some(who) && self.epoch == epoch
    }

    /// What its holder `who` may know.
    #[must_use]
    pub const fn lease(&self, who: Incarnation, history: Seal) -> Lease {
        Lease {
            term: Term {
                epoch: self.epoch,
                holder: who,
                history,
            },
            applied: self.applied,
            sealed: self.sealed,
        }
    }

    fn give(&mut self, to: Incarnation, history: Seal) {
        self.epoch = Epoch(self.epoch.0 + 1).max(history.epoch_floor());
        self.holder = Some(to);
    }
}

/// The hosts of a database. All times are by its own clock.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    members: BTreeMap<u16, Member>,
}

/// A host in the [`Roster`], as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// This life of it.
    pub who: Incarnation,
    /// What it says about itself.
    pub info: HostInfo,
    /// Whether it counts.
    pub state: HostState,
    /// Accounts it said it holds.
    pub accounts: u32,
    /// How many of them it said have a connection.
    pub live: u32,
    /// Somebody wishes that it gives everything away.
    pub drain: bool,
    /// Accounts that were handed over to it so far.
    pub gifts: u64,
    /// How long its lease holds from a renewal on.
    pub ttl: Micros,
    /// When its lease runs out.
    pub expires: Micros,
    /// Since when its renewals have come without a gap.
    pub good_since: Micros,
}

impl Roster {
    /// Slots there are.
    pub const SLOTS: u16 = 1023;

    /// The roster that a store has kept.
    #[must_use]
    pub const fn new(members: BTreeMap<u16, Member>) -> Self {
        Self { members }
    }

    /// What a store has to keep, by slot.
    #[must_use]
    pub const fn members(&self) -> &BTreeMap<u16, Member> {
        &self.members
    }

    /// Lets a host in, on the first slot that is free; `None` if there is none. Joining again changes nothing but the
    /// lease.
    pub fn join(
        &mut self,
        who: Incarnation,
        info: HostInfo,
        ttl: Micros,
        now: Micros,
    ) -> Option<u16> {
        if let Some((slot, member)) = self
            .members
            .iter_mut()
            .find(|(_, member)| member.who == who)
        {
            if member.state.is_live() {
                member.expires = now.plus(ttl);
                return Some(*slot);
            }
            return None;
        }
        let is_free = |slot: &u16| {
            self.members
                .get(slot)
                .is_none_or(|member| !member.state.is_live())
        };
        let slot = (1..=Self::SLOTS).find(is_free)?;
        let member = Member {
            who,
            info,
            state: HostState::Active,
            accounts: 0,
            live: 0,
            drain: false,
            gifts: 0,
            ttl,
            expires: now.plus(ttl),
            good_since: now,
        };
        self.members.insert(slot, member);
        Some(slot)
    }

    /// Renews `who`, and declares dead whose lease has run out. `None` if `who` itself does not live.
    ///
    /// Only a host whose own renewals have come without a gap for as long as the other's lease holds may judge:
    /// otherwise the first to reach a database after an outage would find everybody else's lease run out.
    pub fn beat(&mut self, who: Incarnation, beat: Beat, now: Micros) -> Option<Vec<Incarnation>> {
        let me = self.live(who)?;
        let renewed = Micros(me.expires.0.saturating_sub(me.ttl.0));
        if now.since(renewed).0 > me.ttl.0 / 2 {
            me.good_since = now;
        }
        // After a clock was set back it would be long before anybody may judge.
        me.good_since = me.good_since.min(now);
        me.state = if beat.draining {
            HostState::Draining
        } else {
            HostState::Active
        };
        (me.accounts, me.live) = (beat.accounts, beat.live);
        (me.ttl, me.expires) = (beat.ttl, now.plus(beat.ttl));
        let good_for = now.since(me.good_since);
        let mut dead = Vec::new();
        for member in self.members.values_mut() {
            // A clock that was set back must not keep the dead alive for longer than a lease.
            member.expires = member.expires.min(now.plus(member.ttl));
            if member.who != who
                && member.state.is_live()
                && member.expires <= now
                && good_for >= member.ttl
            {
                member.state = HostState::Dead;
                dead.push(member.who);
            }
        }
        Some(dead)
    }

    /// Declares `dead` dead on the word of `by`, who lives. `false` if there was nothing to declare.
    pub fn declare_dead(&mut self, by: Incarnation, dead: Incarnation) -> bool {
        if by == dead || self.live(by).is_none() {
            return false;
        }
        self.end(dead, HostState::Dead)
    }

    /// Wishes that `who` gives everything away, or takes that wish back. `false` if it does not live.
    pub fn drain(&mut self, who: Incarnation, drain: bool) -> bool {
        let member = self.live(who);
        member.map(|member| member.drain = drain).is_some()
    }

    /// `who` goes properly.
    pub fn leave(&mut self, who: Incarnation) -> bool {
        self.end(who, HostState::Released)
    }

    /// Whether `who` is somebody whose accounts are out of reach for others.
    #[must_use]
    pub fn is_live(&self, who: Incarnation) -> bool {
        self.state(who).is_some_and(HostState::is_live)
    }

    /// What is known of `who`.
    #[must_use]
    pub fn state(&self, who: Incarnation) -> Option<HostState> {
        self.members
            .values()
            .find(|member| member.who == who)
            .map(|member| member.state)
    }

    /// What people call `who`.
    #[must_use]
    pub fn name(&self, who: Incarnation) -> Option<&str> {
        self.members
            .values()
            .find(|member| member.who == who)
            .map(|member| member.info.name.as_str())
    }

    /// `to` was given an account.
    pub fn gift(&mut self, to: Incarnation) {
        if let Some(member) = self.live(to) {
            member.gifts += 1;
        }
    }

    /// How many accounts `who` was given.
    #[must_use]
    pub fn gifts(&self, who: Incarnation) -> u64 {
        self.members
            .values()
            .find(|member| member.who == who)
            .map_or(0, |member| member.gifts)
    }

    /// Everybody, by slot.
    #[must_use]
    pub fn view(&self, now: Micros) -> Vec<HostView> {
        self.members
            .iter()
            .map(|(slot, member)| HostView {
                slot: *slot,
                who: member.who,
                info: member.info.clone(),
                state: member.state,
                accounts: member.accounts,
                live: member.live,
                drain: member.drain,
                remaining: member.expires.since(now),
            })
            .collect()
    }

    fn live(&mut self, who: Incarnation) -> Option<&mut Member> {
        self.members
            .values_mut()
            .find(|member| member.who == who && member.state.is_live())
    }

    fn end(&mut self, who: Incarnation, state: HostState) -> bool {
        match self.live(who) {
            Some(member) => {
                member.state = state;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A day back: leases seem to last a day longer, and nobody seems to have beaten since.
    #[test]
    fn a_clock_set_back_costs_a_lease_and_not_more() {
        let (judge, silent) = (Incarnation(1), Incarnation(2));
        let ttl = Micros::from_secs(6);
        let mut now = Micros::from_secs(100_000);
        let mut roster = Roster::default();
        for who in [judge, silent] {
            roster.join(who, HostInfo::named("host"), ttl, now);
        }
        now = Micros::from_secs(13_600);
        let beat = Beat {
            draining: false,
            accounts: 0,
            live: 0,
            ttl,
        };
        let mut dead = Vec::new();
        for _ in 0..7 {
            dead.extend(roster.beat(judge, beat, now).unwrap());
            now = now.plus(Micros::from_secs(1));
        }
        assert_eq!(dead, [silent]);
    }
}
