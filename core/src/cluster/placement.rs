//! Which host should have which account: pure functions of the view that every host has.
//!
//! Think of a party where everybody has written down, for each coat, in which order the pegs would suit it. When a peg
//! breaks, nobody has to call a meeting: each coat goes to the next peg on its list, and since every guest holds the
//! same lists, nobody reaches for the same coat twice.
//!
//! * **Order** ([`Layout::order`]). Weighted rendezvous hashing: each host draws a number for each account, the best draw
//!   comes first; a host of twice the capacity wins twice as often. Taking a host away moves only its own accounts,
//!   adding one moves only those that it wins. The second choice is in another zone, if there is one.
//! * **Load** ([`Layout::rank`]). Hosts that have 5 % more than their share stand behind those that have not, and hosts
//!   that are full are not asked at all.
//! * **Stickiness** ([`Layout::surplus`]). An account stays where it is unless its host is gone or has too much.
//!
//! Views of different hosts differ by a second or so. Then two hosts may claim the same account, or both wait for each
//! other: the fence settles the first, the grace of the next choice the second.

use crate::state::{AccountId, HostState, HostView, Incarnation};
use std::cmp::Reverse;

/// A host may have so many per cent of its share before others come first.
const SLACK: u64 = 105;

/// The hosts that keep accounts, as one view shows them, and how much each has.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    members: Vec<Member>,
    /// Of the members that take accounts.
    capacity: u64,
    /// Accounts there are, as far as the view and the caller know.
    accounts: u64,
}

#[derive(Clone, Debug)]
struct Member {
    who: Incarnation,
    name: smol_str::SmolStr,
    zone: smol_str::SmolStr,
    /// What it draws with.
    key: u64,
    capacity: u32,
    accounts: u32,
    /// Takes accounts.
    open: bool,
}

impl Layout {
    /// From what the store shows, and the number of accounts that nobody has.
    #[must_use]
    pub fn new(hosts: &[HostView], orphans: u32) -> Self {
        let mut live: Vec<&HostView> = hosts.iter().filter(|host| host.state.is_live()).collect();
        live.sort_by(|a, b| (&a.info.name, a.slot, a.who).cmp(&(&b.info.name, b.slot, b.who)));
        let mut layout = Self {
            accounts: u64::from(orphans),
            ..Self::default()
        };
        let mut namesakes = 0;
        for host in live {
            // A cloned image gives two hosts one name: they must not draw the same numbers.
            let again = layout
                .members
                .last()
                .is_some_and(|last| last.name == host.info.name);
            namesakes = if again { namesakes + 1 } else { 0 };
            let open = host.state == HostState::Active && host.info.capacity > 0;
            layout.accounts += u64::from(host.accounts);
            if open {
                layout.capacity += u64::from(host.info.capacity);
            }
            layout.members.push(Member {
                who: host.who,
                name: host.info.name.clone(),
                zone: host.info.zone.clone(),
                key: mix(text(&host.info.name) ^ mix(namesakes)),
                capacity: host.info.capacity,
                accounts: host.accounts,
                open,
            });
        }
        layout
    }

    /// Corrects what the view says of one host: everybody knows their own number best.
    pub fn set(&mut self, who: Incarnation, accounts: u32) {
        if let Some(member) = self.members.iter_mut().find(|member| member.who == who) {
            self.accounts = self.accounts - u64::from(member.accounts) + u64::from(accounts);
            member.accounts = accounts;
        }
    }

    /// Who should have `account`, best first, whatever they have already. Only hosts that take accounts.
    #[must_use]
    pub fn order(&self, account: &AccountId) -> Vec<Incarnation> {
        self.ordered(account)
            .iter()
            .map(|member| member.who)
            .collect()
    }

    /// How many hosts should claim `account` before `who` does; `None` if `who` should not at all. `pin` names the host
    /// that comes first if it is there.
    #[must_use]
    pub fn rank(&self, account: &AccountId, pin: Option<&str>, who: Incarnation) -> Option<usize> {
        self.choices(account, pin)
            .iter()
            .position(|choice| *choice == who)
    }

    /// As [`rank`](Self::rank), and counts `account` for the host that should have it, as everybody will see it there
    /// soon. Hosts that go through the same accounts in the same order come to the same result.
    pub fn assign(
        &mut self,
        account: &AccountId,
        pin: Option<&str>,
        who: Incarnation,
    ) -> Option<usize> {
        let choices = self.choices(account, pin);
        if let Some(first) = choices.first() {
            self.count(*first);
        }
        choices.iter().position(|choice| *choice == who)
    }

    /// Picks a host for `account`, which `from` has, other than that and `refused`, and counts it there.
    pub fn place(
        &mut self,
        account: &AccountId,
        from: Incarnation,
        refused: Option<Incarnation>,
    ) -> Option<Incarnation> {
        let to = self
            .choices(account, None)
            .into_iter()
            .find(|choice| *choice != from && Some(*choice) != refused)?;
        self.move_one(from, to);
        Some(to)
    }

    /// There are so many more accounts that nobody has.
    pub fn add_orphans(&mut self, orphans: u32) {
        self.accounts += u64::from(orphans);
    }

    /// Accounts there are.
    #[must_use]
    pub const fn accounts(&self) -> u64 {
        self.accounts
    }

    /// Hosts that have more than their [`cap`](Self::cap).
    #[must_use]
    pub fn overloaded(&self) -> usize {
        self.members
            .iter()
            .filter(|member| member.open && member.accounts > self.per_cent(member, SLACK))
            .count()
    }

    fn count(&mut self, who: Incarnation) {
        if let Some(member) = self.members.iter_mut().find(|member| member.who == who) {
            member.accounts = member.accounts.saturating_add(1);
        }
    }

    /// Counts an account over.
    fn move_one(&mut self, from: Incarnation, to: Incarnation) {
        for member in &mut self.members {
            if member.who == from {
                member.accounts = member.accounts.saturating_sub(1);
            }
        }
        self.count(to);
    }

    /// How many accounts `who` may have before others come first: a fair share by capacity and 5 %, rounded up, at most
    /// its capacity.
    #[must_use]
    pub fn cap(&self, who: Incarnation) -> u32 {
        self.member(who)
            .map_or(0, |member| self.per_cent(member, SLACK))
    }

    /// How many accounts `who` has beyond its [`cap`](Self::cap).
    #[must_use]
    pub fn surplus(&self, who: Incarnation) -> u32 {
        self.member(who).map_or(0, |member| {
            member.accounts.saturating_sub(self.per_cent(member, SLACK))
        })
    }

    /// Whether somebody has so much more (over 110 % of the share) or so much less (under 80 %) that moving accounts is
    /// worth a moment of silence for each.
    #[must_use]
    pub fn is_uneven(&self) -> bool {
        self.members.iter().filter(|member| member.open).any(|m| {
            let (has, share) = (u64::from(m.accounts), u64::from(self.per_cent(m, 100)));
            // A difference of one account is what rounding makes.
            has * 100 > share * 110 && has > share + 1 || has * 100 < share * 80 && has + 1 < share
        })
    }

    /// Where an account that `from` has too many of should go, and count it there: to its best choice among the hosts
    /// below their share. `None` if there is no such host.
    pub fn relieve(&mut self, account: &AccountId, from: Incarnation) -> Option<Incarnation> {
        let to = self
            .ordered(account)
            .into_iter()
            .find(|member| member.who != from && member.accounts < self.per_cent(member, 100))?
            .who;
        self.move_one(from, to);
        Some(to)
    }

    /// Whether `account` would rather be somewhere else than at `who`. Such accounts leave first.
    #[must_use]
    pub fn is_stranger(&self, account: &AccountId, who: Incarnation) -> bool {
        self.ordered(account)
            .first()
            .is_some_and(|first| first.who != who)
    }

    fn member(&self, who: Incarnation) -> Option<&Member> {
        self.members.iter().find(|member| member.who == who)
    }

    /// So many per cent of a host's share, rounded up, at most its capacity.
    fn per_cent(&self, member: &Member, percent: u64) -> u32 {
        if !member.open || self.capacity == 0 {
            return 0;
        }
        let product = u128::from(self.accounts) * u128::from(member.capacity) * u128::from(percent);
        let part = product.div_ceil(u128::from(self.capacity) * 100);
        u32::try_from(part).map_or(member.capacity, |part| part.min(member.capacity))
    }

    /// The order, with the pin first, those with too much behind, and without those that are full.
    fn choices(&self, account: &AccountId, pin: Option<&str>) -> Vec<Incarnation> {
        let ordered = self.ordered(account);
        let pinned = |member: &&Member| pin.is_some_and(|pin| member.name == pin);
        let mut choices: Vec<(u8, Incarnation)> = ordered
            .iter()
            .filter(|member| member.accounts < member.capacity)
            .map(|member| {
                let class = if pinned(member) {
                    0
                } else if member.accounts < self.per_cent(member, SLACK) {
                    1
                } else {
                    2
                };
                (class, member.who)
            })
            .collect();
        choices.sort_by_key(|(class, _)| *class); // stable: the order within a class stays
        choices.into_iter().map(|(_, who)| who).collect()
    }

    fn ordered(&self, account: &AccountId) -> Vec<&Member> {
        let coat = mix(account.device);
        let mut drawn: Vec<(Draw, &Member)> = self
            .members
            .iter()
            .filter(|member| member.open)
            .map(|member| (Draw::new(member, coat), member))
            .collect();
        drawn.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut ordered: Vec<&Member> = drawn.into_iter().map(|(_, member)| member).collect();
        // The zone that loses the first choice should not lose the second with it.
        if let Some(first) = ordered.first() {
            let elsewhere = ordered.iter().position(|member| member.zone != first.zone);
            if let Some(at) = elsewhere {
                let second = ordered.remove(at);
                ordered.insert(1, second);
            }
        }
        ordered
    }
}

/// What a host draws for an account: `-log2(u) / capacity` for an even `u` between 0 and 1; the least wins. In whole
/// numbers, because every host has to come to the same order and floating-point logarithms differ between machines.
struct Draw {
    log: u64,
    capacity: u64,
    tie: Reverse<u64>,
    who: Incarnation,
}

impl Draw {
    fn new(member: &Member, coat: u64) -> Self {
        let hash = mix(member.key ^ coat);
        Self {
            log: minus_log2(hash),
            capacity: u64::from(member.capacity),
            tie: Reverse(hash),
            who: member.who,
        }
    }

    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // a.log / a.capacity < b.log / b.capacity. A log has 31 bits, a capacity 32.
        (self.log * other.capacity, self.tie, self.who).cmp(&(
            other.log * self.capacity,
            other.tie,
            other.who,
        ))
    }
}

/// `-log2(n / 2^64)` with 24 bits behind the point; at least 1.
fn minus_log2(n: u64) -> u64 {
    let n = n | 1;
    let zeros = n.leading_zeros();
    // 1 ≤ x < 2 with 31 bits behind the point. Squaring x doubles its logarithm: each overflow is one of its bits.
    let mut x = (n << zeros) >> 32;
    let mut fraction = 0_u64;
    for bit in (0..24).rev() {
        x = (x * x) >> 31;
        if x >= 1 << 32 {
            x >>= 1;
            fraction |= 1 << bit;
        }
    }
    (u64::from(zeros + 1) << 24) - fraction
}

/// Every bit of the result depends on every bit of `n` (the finalizer of SplitMix64). Placement lives as long as the
/// fleet does, so this must never change: the hosts of a rolling update have to agree.
const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// FNV-1a.
fn text(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
