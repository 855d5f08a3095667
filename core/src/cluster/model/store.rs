//! The store's promises about ownership, in a page: the oracle of the tests. Its clock is the one that counts.

use crate::{
    cluster::{Answer, Ask},
    state::{
        AccountId, Beaten, Claim, Epoch, HandOver, HostInfo, HostState, HostView, Incarnation,
        Lease, Micros, Orphan, Seal, Seq, Term, View,
    },
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) who: Incarnation,
    pub(super) state: HostState,
    info: HostInfo,
    accounts: u32,
    live: u32,
    gifts: u64,
    ttl: Micros,
    expires: Micros,
    good_since: Micros,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Fence {
    pub(super) epoch: Epoch,
    pub(super) holder: Option<Incarnation>,
    pub(super) applied: Seq,
    sealed: Seal,
    /// Which engine wrote which batch: a batch of one must never be taken for another's.
    writers: BTreeMap<Seq, u64>,
}

/// What is answered to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Fenced(Epoch),
    Unsealed,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Db {
    pub(super) hosts: BTreeMap<u16, Row>,
    pub(super) fences: BTreeMap<AccountId, Fence>,
    pub(super) history: Seal,
    /// Survives a loss of history: epochs are never given twice, not even then.
    pub(super) given: BTreeSet<(AccountId, Epoch)>,
    pub(super) broken: Option<String>,
    /// Since the last look: presence and notifications.
    pub(super) changed: bool,
    pub(super) hand_overs: u32,
    pub(super) deaths: u32,
}

impl Db {
    pub(super) fn new(accounts: u64) -> Self {
        let mut db = Self {
            history: Seal {
                timeline: 1,
                generation: 1,
            },
            ..Self::default()
        };
        for device in 1..=accounts {
            let fence = Fence {
                sealed: db.history,
                ..Fence::default()
            };
            db.fences.insert(super::account(device), fence);
        }
        db
    }

    pub(super) fn state(&self, who: Incarnation) -> Option<HostState> {
        let row = self.hosts.values().find(|row| row.who == who)?;
        Some(row.state)
    }

    pub(super) fn is_live(&self, who: Incarnation) -> bool {
        self.state(who).is_some_and(HostState::is_live)
    }

    pub(super) fn declare_dead(&mut self, who: Incarnation) {
        if let Some(row) = self.live(who) {
            row.state = HostState::Dead;
            self.deaths += 1;
            self.changed = true;
        }
    }

    fn live(&mut self, who: Incarnation) -> Option<&mut Row> {
        self.hosts
            .values_mut()
            .find(|row| row.who == who && row.state.is_live())
    }

    pub(super) fn ask(&mut self, who: Incarnation, ask: Ask, now: Micros) -> Answer {
        match ask {
            Ask::Join { info, ttl } => self.join(who, info, ttl, now),
            Ask::Beat(beat) => {
                let Some(row) = self.live(who) else {
                    return Answer::Beaten(Beaten::Dead);
                };
                // Written some time after the last renewal: a gap.
                if now.0 > row.expires.0 - row.ttl.0 + row.ttl.0 / 2 {
                    row.good_since = now;
                }
                row.state = if beat.draining {
                    HostState::Draining
                } else {
                    HostState::Active
                };
                (row.accounts, row.live) = (beat.accounts, beat.live);
                (row.ttl, row.expires) = (beat.ttl, now.plus(beat.ttl));
                let (good, gifts) = (now.since(row.good_since), row.gifts);
                let mut newly_dead = Vec::new();
                for row in self.hosts.values_mut() {
                    if row.who != who && row.state.is_live() && row.expires < now && good >= row.ttl
                    {
                        row.state = HostState::Dead;
                        newly_dead.push(row.who);
                        self.deaths += 1;
                    }
                }
                Answer::Beaten(Beaten::Renewed(View {
                    history: self.history,
                    hosts: self.view(now),
                    newly_dead,
                    gifts,
                }))
            }
            Ask::Leave => {
                if let Some(row) = self.live(who) {
                    row.state = HostState::Released;
                    self.changed = true;
                }
                Answer::Left
            }
            Ask::Orphans { after, limit } => Answer::Orphans(
                self.fences
                    .iter()
                    .filter(|(account, fence)| {
                        after.as_ref().is_none_or(|after| *account > after)
                            && fence.holder.is_none_or(|holder| !self.is_live(holder))
                    })
                    .take(limit as usize)
                    .map(|(account, fence)| Orphan {
                        account: account.clone(),
                        pin: None,
                        last: fence.holder,
                    })
                    .collect(),
            ),
            // Nobody wishes anything here.
            Ask::Misplaced => Answer::Misplaced(Vec::new()),
            _ if !self.is_live(who) => Answer::NotMember,
            Ask::Claim(accounts) => {
                Answer::Claimed(accounts.iter().map(|a| self.claim(who, a)).collect())
            }
            Ask::Release(accounts) => {
                for (account, epoch) in accounts {
                    if let Some(fence) = self.held(&account, who, epoch) {
                        fence.holder = None;
                        self.changed = true;
                    }
                }
                Answer::Released
            }
            Ask::HandOver { account, epoch, to } => {
                let active = self.state(to) == Some(HostState::Active);
                let by = self.fences[&account].epoch;
                Answer::HandedOver(if self.held(&account, who, epoch).is_none() {
                    HandOver::Fenced { by }
                } else if !active {
                    HandOver::Refused
                } else {
                    let lease = self.give(to, &account);
                    if let Some(row) = self.live(to) {
                        row.gifts += 1;
                    }
                    self.changed = true;
                    self.hand_overs += 1;
                    HandOver::Done {
                        epoch: lease.term.epoch,
                    }
                })
            }
            Ask::Held => Answer::Held(
                self.fences
                    .iter()
                    .filter(|(_, fence)| fence.holder == Some(who))
                    .map(|(account, fence)| (account.clone(), self.lease(who, fence)))
                    .collect(),
            ),
        }
    }

    fn join(&mut self, who: Incarnation, info: HostInfo, ttl: Micros, now: Micros) -> Answer {
        if let Some((slot, row)) = self.hosts.iter_mut().find(|(_, row)| row.who == who) {
            if !row.state.is_live() {
                return Answer::NotMember;
            }
            row.expires = now.plus(ttl);
            return Answer::Joined(*slot);
        }
        let is_free = |slot: &u16| self.hosts.get(slot).is_none_or(|row| !row.state.is_live());
        let slot = (1..).find(is_free).expect("a slot");
        let row = Row {
            who,
            state: HostState::Active,
            info,
            accounts: 0,
            live: 0,
            gifts: 0,
            ttl,
            expires: now.plus(ttl),
            good_since: now,
        };
        self.hosts.insert(slot, row);
        Answer::Joined(slot)
    }

    fn claim(&mut self, who: Incarnation, account: &AccountId) -> Claim {
        let Some(fence) = self.fences.get(account) else {
            return Claim::Missing;
        };
        match fence.holder {
            Some(by) if by != who && self.is_live(by) => Claim::Held { by },
            _ => Claim::Granted(self.give(who, account)),
        }
    }

    fn held(&mut self, account: &AccountId, who: Incarnation, epoch: Epoch) -> Option<&mut Fence> {
        let fence = self.fences.get_mut(account)?;
        (fence.holder == Some(who) && fence.epoch == epoch).then_some(fence)
    }

    fn give(&mut self, who: Incarnation, account: &AccountId) -> Lease {
        let floor = Epoch(u64::from(self.history.timeline - 1) << 40);
        let fence = self.fences.get_mut(account).expect("an account");
        fence.epoch = Epoch(fence.epoch.max(floor).0 + 1);
        fence.holder = Some(who);
        if !self.given.insert((account.clone(), fence.epoch)) {
            self.broken = Some(format!("{account}: {:?} was given twice", fence.epoch));
        }
        let fence = fence.clone();
        self.lease(who, &fence)
    }

    fn lease(&self, who: Incarnation, fence: &Fence) -> Lease {
        Lease {
            term: Term {
                epoch: fence.epoch,
                holder: who,
                history: self.history,
            },
            applied: fence.applied,
            sealed: fence.sealed,
        }
    }

    /// A batch of `engine`, or with no `seq` nothing but the question whose the account is.
    pub(super) fn commit(
        &mut self,
        account: &AccountId,
        term: Term,
        seq: Option<Seq>,
        engine: u64,
    ) -> Outcome {
        let fence = self.fences.get_mut(account).expect("an account");
        if term.history != self.history {
            return Outcome::Unsealed;
        }
        if fence.epoch != term.epoch || fence.holder != Some(term.holder) {
            return Outcome::Fenced(fence.epoch);
        }
        if let Some(seq) = seq {
            if seq > fence.applied.next() {
                self.broken = Some(format!("{account}: batch {seq:?} leaves a gap"));
            } else if seq > fence.applied {
                fence.applied = seq;
                fence.sealed = self.history;
                fence.writers.insert(seq, engine);
            } else if fence.writers.get(&seq) != Some(&engine) {
                self.broken = Some(format!(
                    "{account}: batch {seq:?} of another engine was taken for this one's"
                ));
            }
        }
        Outcome::Committed
    }

    fn view(&self, now: Micros) -> Vec<HostView> {
        let rows = self.hosts.iter();
        rows.map(|(slot, row)| HostView {
            slot: *slot,
            who: row.who,
            info: row.info.clone(),
            state: row.state,
            accounts: row.accounts,
            live: row.live,
            drain: false,
            remaining: row.expires.since(now),
        })
        .collect()
    }

    /// A failover to a standby that had seen everything up to `old`.
    pub(super) fn fall_back(&mut self, old: &Self) {
        self.hosts.clone_from(&old.hosts);
        self.fences.clone_from(&old.fences);
        self.history.timeline += 1;
    }
}
