//! Accounts without a holder: who should take them, and when it is our turn.
//!
//! Every host sees the same orphans and ranks itself for each. The first choice claims at once, the second after a
//! grace, the third after two: so the death of a host is settled in one round without a word between the survivors, and
//! if the first choice is not able, somebody else is.

use super::{Budget, Timing, placement::Layout};
use crate::{
    crypto::Rng,
    state::{AccountId, Incarnation, Micros, Orphan},
};
use std::collections::{BTreeMap, BTreeSet};

/// Accounts asked for at once.
pub(super) const PAGE: u32 = 500;

/// A host that dies takes its accounts with it. An account that was with so many dead hosts in a row may be what they
/// died of: others first.
const SUSPICIOUS: u32 = 3;
/// How long that is remembered.
const MEMORY: Micros = Micros::from_secs(900);
/// How long a suspicious account waits, by the number of hosts that died with it.
const DELAYS: [Micros; 4] = [
    Micros::from_secs(5),
    Micros::from_secs(30),
    Micros::from_secs(120),
    Micros::from_secs(900),
];

/// What is known of the accounts that nobody has.
#[derive(Debug)]
pub(super) struct Claims {
    orphans: BTreeMap<AccountId, Waiting>,
    due: BTreeSet<(Micros, AccountId)>,
    deaths: BTreeMap<AccountId, Deaths>,
    budget: Budget,
    /// Nothing is claimed before: hosts that start together shall all have seen the same orphans before the first of
    /// them takes some. Whoever saw only what others had left would share that out once more.
    not_before: Micros,
    /// Which look at all orphans this is.
    pass: u64,
    layout: Layout,
    /// What hosts that are gone said they had, and how many of theirs this look has found.
    estates: BTreeMap<Incarnation, (u32, u32)>,
}

#[derive(Debug)]
struct Waiting {
    since: Micros,
    pass: u64,
    /// When we claim it, if it is not for others.
    due: Option<Micros>,
}

#[derive(Debug)]
struct Deaths {
    count: u32,
    last: Incarnation,
    at: Micros,
}

impl Claims {
    pub(super) fn new(timing: &Timing, now: Micros) -> Self {
        Self {
            orphans: BTreeMap::new(),
            due: BTreeSet::new(),
            deaths: BTreeMap::new(),
            budget: Budget::new(timing.claims, now),
            not_before: now,
            pass: 0,
            layout: Layout::default(),
            estates: BTreeMap::new(),
        }
    }

    /// We have just come: claim nothing before.
    pub(super) fn wait(&mut self, not_before: Micros) {
        self.not_before = not_before;
    }

    /// A new look begins, with everybody's accounts as they are known now.
    pub(super) fn begin(
        &mut self,
        layout: Layout,
        gone: impl Iterator<Item = (Incarnation, u32)>,
        now: Micros,
    ) {
        self.pass += 1;
        self.layout = layout;
        self.estates = gone.map(|(who, had)| (who, (had, 0))).collect();
        self.deaths
            .retain(|_, deaths| now.since(deaths.at) < MEMORY);
    }

    /// A page of orphans. Returns the last of them.
    pub(super) fn page(
        &mut self,
        orphans: Vec<Orphan>,
        me: Incarnation,
        grace: Micros,
        now: Micros,
    ) -> Option<AccountId> {
        let shared = orphans.iter().map(|orphan| self.weight(orphan.last)).sum();
        self.layout.add_orphans(shared);
        let mut last = None;
        for orphan in orphans {
            let account = orphan.account;
            let rank = self.layout.assign(&account, orphan.pin.as_deref(), me);
            let pass = self.pass;
            let is_new = !self.orphans.contains_key(&account);
            let delay = self.suspicion(&account, orphan.last, is_new, now);
            let waiting = self.orphans.entry(account.clone()).or_insert(Waiting {
                since: now,
                pass,
                due: None,
            });
            waiting.pass = pass;
            let due = rank.map(|rank| {
                let rank = u64::try_from(rank).unwrap_or(u64::MAX);
                waiting
                    .since
                    .max(self.not_before)
                    .plus(Micros(grace.0.saturating_mul(rank)))
                    .plus(delay)
            });
            let old = std::mem::replace(&mut waiting.due, due);
            if old != due {
                if let Some(old) = old {
                    self.due.remove(&(old, account.clone()));
                }
                if let Some(due) = due {
                    self.due.insert((due, account.clone()));
                }
            }
            last = Some(account);
        }
        last
    }

    /// That was all of them: others have somebody.
    pub(super) fn end(&mut self) {
        let pass = self.pass;
        let gone: Vec<AccountId> = self
            .orphans
            .iter()
            .filter(|(_, waiting)| waiting.pass != pass)
            .map(|(account, _)| account.clone())
            .collect();
        for account in gone {
            self.forget(&account);
        }
    }

    /// Accounts whose time has come, as many as the budget allows. They are ours to claim now: report each with
    /// [`forget`](Self::forget) or [`later`](Self::later).
    pub(super) fn take(&mut self, most: u32, now: Micros, rng: &mut Rng) -> Vec<AccountId> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let due = due
            .take(usize::try_from(most).unwrap_or(usize::MAX))
            .count();
        let got = self
            .budget
            .take(u32::try_from(due).unwrap_or(u32::MAX), now, rng);
        let mut taken = Vec::new();
        for _ in 0..got {
            if let Some((_, account)) = self.due.pop_first() {
                if let Some(waiting) = self.orphans.get_mut(&account) {
                    waiting.due = None;
                }
                taken.push(account);
            }
        }
        taken
    }

    /// When there is something to claim.
    pub(super) fn wake(&self, now: Micros) -> Option<Micros> {
        self.due
            .first()
            .map(|(due, _)| (*due).max(self.budget.ready(now)))
    }

    /// It has somebody, or is not to have.
    pub(super) fn forget(&mut self, account: &AccountId) {
        if let Some(Waiting { due: Some(due), .. }) = self.orphans.remove(account) {
            self.due.remove(&(due, account.clone()));
        }
    }

    /// To be claimed at `at`.
    pub(super) fn later(&mut self, account: AccountId, at: Micros) {
        let pass = self.pass;
        let waiting = self.orphans.entry(account.clone()).or_insert(Waiting {
            since: at,
            pass,
            due: None,
        });
        if let Some(old) = waiting.due.replace(at) {
            self.due.remove(&(old, account.clone()));
        }
        self.due.insert((at, account));
    }

    /// Everything is different now.
    pub(super) fn clear(&mut self) {
        self.orphans.clear();
        self.due.clear();
    }

    /// How many are waiting, for others too.
    pub(super) fn len(&self) -> usize {
        self.orphans.len()
    }

    /// What an orphan adds to the accounts that there are to share. Of a host that is gone, all that it had counts with
    /// the first: others may have taken some already, and have not said so yet.
    fn weight(&mut self, last: Option<Incarnation>) -> u32 {
        match last.and_then(|last| self.estates.get_mut(&last)) {
            Some((had, found)) => {
                *found = found.saturating_add(1);
                match *found {
                    1 => (*had).max(1),
                    n => u32::from(n > *had),
                }
            }
            None => 1,
        }
    }

    /// How much longer an account waits that may kill its hosts.
    fn suspicion(
        &mut self,
        account: &AccountId,
        last: Option<Incarnation>,
        is_new: bool,
        now: Micros,
    ) -> Micros {
        if let Some(last) = last
            && is_new
        {
            let deaths = self.deaths.entry(account.clone()).or_insert(Deaths {
                count: 0,
                last,
                at: now,
            });
            if deaths.count == 0 || deaths.last != last {
                deaths.count += 1;
                (deaths.last, deaths.at) = (last, now);
            }
        }
        let count = self.deaths.get(account).map_or(0, |deaths| deaths.count);
        let Some(beyond) = count.checked_sub(SUSPICIOUS) else {
            return Micros(0);
        };
        let step = usize::try_from(beyond).unwrap_or(usize::MAX);
        DELAYS
            .get(step)
            .or(DELAYS.last())
            .copied()
            .unwrap_or(Micros(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{BusinessId, HostInfo, HostState, HostView};

    const ME: Incarnation = Incarnation(1);
    const GRACE: Micros = Micros::from_millis(300);

    fn account(device: u64) -> AccountId {
        AccountId {
            business: BusinessId::default(),
            device,
        }
    }

    fn orphan(device: u64, last: Option<Incarnation>) -> Orphan {
        Orphan {
            account: account(device),
            pin: None,
            last,
        }
    }

    /// Alone, so every account is ours to claim.
    fn layout() -> Layout {
        let me = HostView {
            slot: 1,
            who: ME,
            info: HostInfo {
                name: "one".into(),
                address: "".into(),
                zone: "".into(),
                version: "".into(),
                capacity: 1_000,
            },
            state: HostState::Active,
            accounts: 0,
            live: 0,
            drain: false,
            remaining: Micros::from_secs(6),
        };
        Layout::new(&[me], 0)
    }

    struct Bench {
        claims: Claims,
        rng: Rng,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                claims: Claims::new(&Timing::default(), Micros(0)),
                rng: Rng::from_seed([5; 32]),
            }
        }

        /// A look that finds just these.
        fn look(&mut self, orphans: Vec<Orphan>, now: Micros) {
            self.claims.begin(layout(), std::iter::empty(), now);
            self.claims.page(orphans, ME, GRACE, now);
            self.claims.end();
        }

        fn take(&mut self, now: Micros) -> Vec<u64> {
            let taken = self.claims.take(100, now, &mut self.rng);
            taken.into_iter().map(|account| account.device).collect()
        }
    }

    #[test]
    fn what_a_look_does_not_find_any_more_has_somebody() {
        let mut bench = Bench::new();
        let all = (1..=3).map(|n| orphan(n, None)).collect();
        bench.look(all, Micros(0));
        assert_eq!(bench.claims.len(), 3);
        bench.look(vec![orphan(2, None)], Micros(1));
        assert_eq!(bench.claims.len(), 1);
        assert_eq!(bench.take(Micros(1)), [2]);
        bench.look(Vec::new(), Micros(2));
        assert_eq!(bench.claims.len(), 0);
        assert_eq!(bench.claims.wake(Micros(2)), None);
    }

    #[test]
    fn nothing_is_claimed_before_everybody_has_looked() {
        let mut bench = Bench::new();
        bench.claims.wait(Micros(500));
        bench.look(vec![orphan(1, None)], Micros(0));
        assert_eq!(bench.claims.wake(Micros(0)), Some(Micros(500)));
        assert!(bench.take(Micros(499)).is_empty());
        assert_eq!(bench.take(Micros(500)), [1]);
    }

    #[test]
    fn later_is_later_and_only_once() {
        let mut bench = Bench::new();
        bench.look(vec![orphan(1, None)], Micros(0));
        bench.claims.later(account(1), Micros(70));
        bench.claims.later(account(2), Micros(60));
        assert!(bench.take(Micros(59)).is_empty());
        assert_eq!(bench.take(Micros(80)), [2, 1]);
        assert!(bench.take(Micros(90)).is_empty());
    }

    #[test]
    fn who_is_somebody_else_now_claims_nothing_of_before() {
        let mut bench = Bench::new();
        bench.look(vec![orphan(1, None)], Micros(0));
        bench.claims.later(account(2), Micros(0));
        bench.claims.clear();
        assert_eq!(bench.claims.len(), 0);
        assert!(bench.take(Micros(100)).is_empty());
    }

    /// What a host had when it died is to be shared at once, though others have taken some of it already; only what is
    /// found beyond that is more.
    #[test]
    fn the_accounts_of_the_dead_count_with_the_first_of_them() {
        let dead = Incarnation(9);
        let mut claims = Claims::new(&Timing::default(), Micros(0));
        claims.begin(layout(), [(dead, 10)].into_iter(), Micros(0));
        let mut find = |devices: std::ops::RangeInclusive<u64>, last| {
            let orphans = devices.map(|n| orphan(n, last)).collect();
            claims.page(orphans, ME, GRACE, Micros(0));
            claims.layout.accounts()
        };
        assert_eq!(find(1..=1, Some(dead)), 10);
        assert_eq!(find(2..=10, Some(dead)), 10);
        assert_eq!(find(11..=13, Some(dead)), 13);
        // Of whoever is not known to be gone, each counts for itself.
        assert_eq!(find(21..=22, None), 15);
        assert_eq!(find(31..=32, Some(Incarnation(8))), 17);
        // A host that said it had none had one after all.
        let mut claims = Claims::new(&Timing::default(), Micros(0));
        claims.begin(layout(), [(dead, 0)].into_iter(), Micros(0));
        claims.page(vec![orphan(1, Some(dead))], ME, GRACE, Micros(0));
        assert_eq!(claims.layout.accounts(), 1);
    }

    #[test]
    fn deaths_are_remembered_for_a_quarter_of_an_hour() {
        for (pause, waits) in [(MEMORY.0 - 1, true), (MEMORY.0, false)] {
            let mut bench = Bench::new();
            for death in 1..=2 {
                bench.look(vec![orphan(1, Some(Incarnation(death)))], Micros(0));
                bench.look(Vec::new(), Micros(0));
            }
            let now = Micros(pause);
            bench.look(vec![orphan(1, Some(Incarnation(3)))], now);
            assert_eq!(bench.take(now).is_empty(), waits, "after {pause}");
        }
    }
}
