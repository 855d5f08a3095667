//! The fleet against a store that answers at once.

use super::*;
use crate::{
    flow::StopReason,
    state::{
        Beaten, BusinessId, Change, HandOver, HostInfo, HostState, HostView, Orphan, Seal, Seq,
        Term, View,
    },
};

const ME: &str = "one";

fn account(device: u64) -> AccountId {
    AccountId {
        business: BusinessId::default(),
        device,
    }
}

fn info(name: &str) -> HostInfo {
    HostInfo {
        name: name.into(),
        address: "".into(),
        zone: "".into(),
        version: "".into(),
        capacity: 100_000,
    }
}

/// Another host: there, and without accounts.
fn second(who: Incarnation) -> HostView {
    HostView {
        slot: 2,
        who,
        info: info("two"),
        state: HostState::Active,
        accounts: 0,
        live: 0,
        drain: false,
        remaining: Micros::from_secs(6),
    }
}

struct Bench {
    fleet: Fleet,
    now: Micros,
    orphans: BTreeMap<AccountId, Option<Incarnation>>,
    others: Vec<HostView>,
    claims: Vec<(Micros, usize)>,
    asked: usize,
    connects: Vec<(Micros, AccountId)>,
    actions: usize,
    /// The answer to a claim gets lost, and nothing else is claimed.
    lossy: bool,
    held: Vec<AccountId>,
    handed: Vec<AccountId>,
    released: Vec<AccountId>,
    wishes: Vec<(AccountId, Placement)>,
    drain: bool,
    /// Of what is claimed.
    epoch: u64,
    /// What the last renewal said about us.
    draining: bool,
    /// What the next renewals say that we were given.
    gifts: u64,
    /// And what database they come from.
    history: Seal,
    /// Only joining and renewing is answered; the rest piles up here.
    unanswered: Option<Vec<Call>>,
    /// What claims are answered with, one after the other, before any is granted.
    verdicts: VecDeque<Vec<Claim>>,
    /// How often it looked for orphans.
    looks: usize,
}

impl Bench {
    fn new(orphans: u64) -> Self {
        let fleet = Fleet::new(info(ME), Timing::default(), [3; 32], Micros(0)).unwrap();
        let mut bench = Self {
            fleet,
            now: Micros(0),
            orphans: (1..=orphans).map(|n| (account(n), None)).collect(),
            others: Vec::new(),
            claims: Vec::new(),
            asked: 0,
            connects: Vec::new(),
            actions: 0,
            lossy: false,
            held: Vec::new(),
            handed: Vec::new(),
            released: Vec::new(),
            wishes: Vec::new(),
            drain: false,
            epoch: 1,
            draining: false,
            gifts: 0,
            history: Seal::default(),
            unanswered: None,
            verdicts: VecDeque::new(),
            looks: 0,
        };
        bench.host(host::Input::Start);
        bench
    }

    fn host(&mut self, input: host::Input) {
        self.fleet.handle(Input::Host(input), self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.fleet.poll() {
            match output {
                Output::Call(call) => {
                    self.asked += 1;
                    if let Some(calls) = &mut self.unanswered
                        && !matches!(call.ask, Ask::Join { .. } | Ask::Beat(_))
                    {
                        calls.push(call);
                        continue;
                    }
                    let answer = self.answer(&call);
                    let answer = Input::Host(host::Input::Answer(call.id, answer));
                    self.fleet.handle(answer, self.now);
                }
                Output::Account(account, action) => {
                    self.actions += 1;
                    let input = match action {
                        Action::Build(_) => device::Input::Wants {
                            priority: account.device % 10,
                        },
                        Action::Stop => device::Input::Stopped(StopReason::Shutdown),
                        Action::Connect => {
                            self.connects.push((self.now, account.clone()));
                            device::Input::Up
                        }
                        _ => continue,
                    };
                    self.fleet.handle(Input::Account(account, input), self.now);
                }
                Output::Watch(_) | Output::Exit => {}
            }
        }
    }

    fn answer(&mut self, call: &Call) -> Answer {
        match &call.ask {
            Ask::Join { .. } => Answer::Joined(1),
            Ask::Beat(beat) => {
                self.draining = beat.draining;
                let mut hosts = self.others.clone();
                hosts.push(HostView {
                    slot: 1,
                    who: call.who,
                    info: info(ME),
                    state: HostState::Active,
                    accounts: beat.accounts,
                    live: beat.live,
                    drain: self.drain,
                    remaining: beat.ttl,
                });
                Answer::Beaten(Beaten::Renewed(View {
                    hosts,
                    gifts: self.gifts,
                    history: self.history,
                    ..View::default()
                }))
            }
            Ask::Orphans { after, limit } => {
                self.looks += 1;
                let orphans = self.orphans.iter();
                Answer::Orphans(
                    orphans
                        .filter(|(account, _)| after.as_ref().is_none_or(|after| *account > after))
                        .take(*limit as usize)
                        .map(|(account, last)| Orphan {
                            account: account.clone(),
                            pin: None,
                            last: *last,
                        })
                        .collect(),
                )
            }
            Ask::Claim(accounts) => {
                self.claims.push((self.now, accounts.len()));
                if let Some(verdicts) = self.verdicts.pop_front() {
                    return Answer::Claimed(verdicts);
                }
                if self.lossy {
                    self.orphans
                        .retain(|account, _| !accounts.contains(account));
                    self.held.extend(accounts.iter().cloned());
                    return Answer::Failed;
                }
                let claims = accounts.iter().map(|account| {
                    self.orphans.remove(account);
                    Claim::Granted(lease(call.who, self.epoch))
                });
                Answer::Claimed(claims.collect())
            }
            Ask::Held => {
                let held = self.held.iter().map(|a| (a.clone(), lease(call.who, 1)));
                Answer::Held(held.collect())
            }
            Ask::HandOver { account, .. } => {
                self.handed.push(account.clone());
                let epoch = Epoch(2);
                Answer::HandedOver(HandOver::Done { epoch })
            }
            Ask::Misplaced => Answer::Misplaced(self.wishes.clone()),
            Ask::Release(accounts) => {
                let accounts = accounts.iter().map(|(account, _)| account.clone());
                self.released.extend(accounts);
                Answer::Released
            }
            ask @ Ask::Leave => panic!("{ask:?}"),
        }
    }

    fn run(&mut self, until: Micros) {
        while let Some(wake) = self.fleet.wake(self.now)
            && wake <= until
        {
            assert!(wake > self.now, "it would spin");
            self.now = wake;
            self.host(host::Input::Tick);
        }
        self.now = until;
    }
}

fn lease(who: Incarnation, epoch: u64) -> Lease {
    Lease {
        term: Term {
            epoch: Epoch(epoch),
            holder: who,
            history: Seal::default(),
        },
        applied: Seq(0),
        sealed: Seal::default(),
    }
}

#[test]
fn a_thousand_accounts_do_not_stampede_and_the_active_go_first() {
    let mut bench = Bench::new(1_000);
    bench.run(Micros::from_secs(15));
    assert_eq!(bench.fleet.accounts().count(), 1_000);
    let biggest = bench.claims.iter().map(|(_, claims)| *claims).max();
    assert!(biggest <= Some(500), "{:?}", bench.claims);
    // 20 at once, then 100 a second.
    assert_eq!(bench.connects.len(), 1_000);
    for window in bench.connects.windows(121) {
        let (first, last) = (window[0].0, window[120].0);
        assert!(last.since(first) >= Micros::from_millis(800));
    }
    let took = bench.connects[999].0;
    assert!(
        (Micros::from_secs(9)..Micros::from_secs(11)).contains(&took),
        "{took:?}"
    );
    // From when all are known, those with the highest priority go first.
    let order: Vec<u64> = bench.connects[20..]
        .iter()
        .map(|(_, a)| a.device % 10)
        .collect();
    assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
}

#[test]
fn a_renewal_costs_the_same_for_ten_thousand_accounts() {
    let mut bench = Bench::new(10_000);
    bench.run(Micros::from_secs(120));
    assert_eq!(bench.connects.len(), 10_000);
    (bench.asked, bench.actions) = (0, 0);
    bench.run(Micros::from_secs(130));
    assert_eq!(bench.actions, 0);
    // Ten renewals and five looks for orphans, give or take.
    assert!(
        (12..=20).contains(&bench.asked),
        "{} calls in 10 s",
        bench.asked
    );
}

#[test]
fn accounts_are_left_to_those_who_come_first_for_a_grace() {
    let mut bench = Bench::new(0);
    bench.others = vec![second(Incarnation(7))];
    bench.run(Micros::from_secs(5));
    bench.orphans = (1..=100).map(|n| (account(n), None)).collect();
    let from = bench.now;
    bench.host(host::Input::Changed(Change::Ownership));
    // Ours at once; theirs, as they do not come, after the grace.
    let mine: usize = bench.claims.iter().map(|(_, claims)| claims).sum();
    assert!((35..=53).contains(&mine), "{mine} of 100");
    bench.run(from.plus(Micros::from_millis(299)));
    assert_eq!(bench.fleet.accounts().count(), mine);
    bench.run(from.plus(Micros::from_millis(301)));
    assert_eq!(bench.fleet.accounts().count(), 100);
}

#[test]
fn an_account_that_was_with_three_dead_hosts_in_a_row_has_to_wait() {
    let mut bench = Bench::new(0);
    bench.run(Micros::from_secs(5));
    for (death, delay) in [(1, 0), (2, 0), (3, 5), (4, 30)] {
        // One look follows another after a moment only.
        bench.run(bench.now.plus(HELD_GAP));
        let who = Incarnation(100 + death);
        bench.orphans = BTreeMap::from([(account(1), Some(who)), (account(50 + death), Some(who))]);
        let from = bench.now;
        bench.host(host::Input::Changed(Change::Gone(who)));
        bench.run(from.plus(Micros::from_secs(delay)).plus(Micros(1)));
        let claimed = bench.fleet.account(&account(1)).is_some();
        assert!(claimed, "death {death}");
        assert!(bench.fleet.account(&account(50 + death)).is_some());
        let before = bench.claims.iter().filter(|(at, _)| *at >= from).count();
        assert_eq!(
            before,
            if delay > 0 { 2 } else { 1 },
            "the innocent do not wait"
        );
        // It dies of it, as far as the others can see.
        for n in [1, 50 + death] {
            let stop = device::Input::Stopped(crate::flow::StopReason::Fenced(Epoch(9)));
            bench
                .fleet
                .handle(Input::Account(account(n), stop), bench.now);
        }
        bench.settle();
    }
}

#[test]
fn what_a_lost_claim_brought_is_found_even_by_a_host_that_claims_no_more() {
    let mut bench = Bench::new(1);
    bench.others = vec![second(Incarnation(7))];
    bench.lossy = true;
    while bench.claims.is_empty() {
        bench.run(bench.now.plus(Micros::from_millis(10)));
    }
    bench.host(host::Input::Drain { leave: false });
    bench.run(bench.now.plus(Micros::from_secs(10)));
    assert_eq!(bench.handed, [account(1)]);
    assert_eq!(bench.claims.len(), 1);
}

#[test]
fn what_the_store_holds_for_us_is_taken_or_given_back() {
    let mut bench = Bench::new(3);
    bench.run(Micros::from_secs(3));
    let who = bench.fleet.host().who();
    let now = bench.now;
    let left = account(3);
    bench.fleet.handle(
        Input::Account(
            left.clone(),
            device::Input::Stopped(crate::flow::StopReason::Fenced(Epoch(1))),
        ),
        now,
    );
    bench.settle();
    let id = bench.fleet.host.calls();
    let rows = vec![
        (account(1), lease(who, 1)),
        (account(2), lease(who, 5)),
        (left.clone(), lease(who, 1)),
        (account(4), lease(who, 1)),
    ];
    bench.fleet.reconcile(id, rows, now);
    let epoch = |n| {
        let device = bench.fleet.account(&account(n))?;
        device.term().map(|term| term.epoch.0)
    };
    assert_eq!((epoch(1), epoch(2), epoch(4)), (Some(1), Some(5), Some(1)));
    // It left before the question was asked, and is still ours in the store: nobody would run it.
    assert_eq!(epoch(3), None);
    assert_eq!(bench.fleet.releases, [(left, Epoch(1))]);
}

/// Placement is a wish that is heard while the account runs.
#[test]
fn what_is_wished_elsewhere_goes_there_and_what_is_not_to_run_stops() {
    let mut bench = Bench::new(6);
    let other = Incarnation(77);
    bench.others = vec![HostView {
        info: HostInfo {
            // It would be full: accounts come here because they are wished here.
            capacity: 1,
            ..info("two")
        },
        ..second(other)
    }];
    bench.run(Micros::from_secs(5));
    assert_eq!(bench.fleet.accounts().count(), 6);
    let wish = |run, pin: Option<&str>| Placement {
        run,
        pin: pin.map(Into::into),
        pause: Micros(0),
    };
    bench.wishes = vec![
        (account(1), wish(true, Some("two"))),
        (account(2), wish(false, None)),
        (account(3), wish(false, Some("two"))),
        (account(4), wish(true, Some("nobody"))),
    ];
    bench.run(Micros::from_secs(10));
    assert_eq!(bench.handed, [account(1)]);
    assert_eq!(bench.released, [account(2), account(3)]);
    let left: Vec<u64> = bench.fleet.accounts().map(|(id, _)| id.device).collect();
    assert_eq!(left, [4, 5, 6], "who is wished where nobody is stays");
}

/// Accounts that are pinned here are given back by whoever gets them. Without a memory of that they would go to and fro
/// for as long as the hosts are uneven, a moment of silence each time.
#[test]
fn what_is_moved_to_even_out_and_comes_back_is_not_moved_again() {
    const ACCOUNTS: u64 = 6;
    let mut bench = Bench::new(ACCOUNTS);
    bench.others = vec![second(Incarnation(77))];
    let mut returned = 0;
    for minute in 1..=100 {
        bench.run(Micros::from_secs(60 * minute));
        for account in bench.handed.iter().skip(returned) {
            bench.orphans.insert(account.clone(), None);
        }
        returned = bench.handed.len();
        bench.epoch = 10 * minute;
    }
    let moved: BTreeSet<_> = bench.handed.iter().collect();
    assert_eq!(moved.len() as u64, ACCOUNTS, "each was tried");
    assert_eq!(bench.handed.len() as u64, ACCOUNTS, "each once");
    assert_eq!(bench.fleet.accounts().count() as u64, ACCOUNTS);
}

/// `drain` from another process: heard with a renewal, obeyed, and taken back.
#[test]
fn a_host_obeys_the_wish_that_it_be_drained() {
    let mut bench = Bench::new(4);
    bench.run(Micros::from_secs(3));
    assert_eq!(bench.fleet.accounts().count(), 4);
    bench.others = vec![second(Incarnation(77))];
    bench.drain = true;
    bench.run(Micros::from_secs(6));
    assert!(bench.draining, "it says so");
    assert_eq!(bench.fleet.host().state(), State::Draining);
    assert_eq!(bench.handed.len(), 4);
    assert_eq!(bench.fleet.accounts().count(), 0);
    bench.drain = false;
    bench.run(Micros::from_secs(9));
    assert!(!bench.draining);
    assert_eq!(bench.fleet.host().state(), State::Active);
}

mod answers;
mod pace;
