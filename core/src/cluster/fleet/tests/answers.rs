//! Answers that come late, never, too short, or to somebody who has changed meanwhile.

use super::*;
use device::{Gate, Step};

/// With so many accounts, all connected.
fn connected(accounts: u64) -> Bench {
    let mut bench = Bench::new(accounts);
    bench.run(Micros::from_secs(5));
    assert_eq!(bench.connects.len() as u64, accounts);
    bench
}

impl Bench {
    fn tell(&mut self, device: u64, input: device::Input) {
        let input = Input::Account(account(device), input);
        self.fleet.handle(input, self.now);
        self.settle();
    }

    fn wait(&mut self, millis: u64) {
        self.run(self.now.plus(Micros::from_millis(millis)));
    }

    fn epoch_of(&self, device: u64) -> Option<u64> {
        let device = self.fleet.account(&account(device))?;
        device.term().map(|term| term.epoch.0)
    }

    /// The account goes, as if somebody else had taken it.
    fn lose(&mut self, device: u64) {
        let fenced = StopReason::Fenced(Epoch(9));
        self.tell(device, device::Input::Stopped(fenced));
        assert_eq!(self.epoch_of(device), None);
    }
}

#[test]
fn what_leaves_the_process_asks_host_and_account() {
    let mut bench = connected(1);
    let may = |bench: &Bench, what| bench.fleet.may_act(&account(1), what, bench.now);
    assert!(may(&bench, Gate::Open) && may(&bench, Gate::Committed));
    assert!(!bench.fleet.may_act(&account(2), Gate::Committed, bench.now));
    // It is on its way out: what is durable may still go.
    bench.others = vec![second(Incarnation(7))];
    bench.wait(2_000);
    bench.unanswered = Some(Vec::new());
    bench.fleet.handle(
        Input::Account(account(1), device::Input::Leave(None)),
        bench.now,
    );
    let device = bench.fleet.account(&account(1)).unwrap();
    assert_eq!(
        device.state(),
        device::State::HandingOver(Step::Stop),
        "before the engine has heard of it"
    );
    assert!(!may(&bench, Gate::Open) && may(&bench, Gate::Committed));
    // The host's lease says more than any account.
    let late = bench.now.plus(Micros::from_secs(60));
    assert!(!bench.fleet.may_act(&account(1), Gate::Committed, late));
}

#[test]
fn a_store_that_never_answers_is_asked_each_question_once_and_nobody_spins() {
    let mut bench = connected(3);
    bench.unanswered = Some(Vec::new());
    for gifts in 1..=3 {
        // `run` checks that it does not spin.
        bench.gifts = gifts;
        bench.tell(2, device::Input::Unsealed);
        bench.wait(10_000);
    }
    let asked = |ask: fn(&Ask) -> bool| {
        let calls = bench.unanswered.iter().flatten();
        calls.filter(|call| ask(&call.ask)).count()
    };
    assert_eq!(asked(|ask| matches!(ask, Ask::Orphans { .. })), 1);
    assert_eq!(asked(|ask| matches!(ask, Ask::Held)), 1);
    assert_eq!(asked(|ask| matches!(ask, Ask::Misplaced)), 1);
    assert_eq!(asked(|ask| matches!(ask, Ask::Claim(_))), 1);
}

#[test]
fn a_closed_host_looks_for_nothing_and_sleeps() {
    let mut bench = connected(2);
    bench.host(host::Input::Drain { leave: false });
    bench.wait(1_000);
    let looks = bench.looks;
    bench.orphans.insert(account(9), None);
    bench.wait(60_000);
    assert_eq!((bench.looks, bench.epoch_of(9)), (looks, None));
    assert_eq!(bench.fleet.accounts().count(), 2, "nobody else is there");
    bench.host(host::Input::Undrain);
    bench.wait(3_000);
    assert_eq!(bench.epoch_of(9), Some(1));
}

#[test]
fn one_call_shows_a_page_and_a_full_page_has_a_next() {
    let mut bench = Bench::new(3);
    bench.others = vec![second(Incarnation(7))];
    while bench.looks == 0 {
        bench.wait(10);
    }
    assert_eq!(bench.looks, 1);
    let page = u64::from(claims::PAGE);
    for (orphans, looks) in [(page - 1, 1), (page, 2), (page + 1, 2)] {
        let mut bench = Bench::new(0);
        // Somebody else has been there for long, and everything is theirs to claim first.
        bench.others = vec![second(Incarnation(7))];
        bench.run(Micros::from_secs(10));
        bench.orphans = (1..=orphans).map(|n| (account(n), None)).collect();
        bench.looks = 0;
        bench.host(host::Input::Changed(Change::Ownership));
        assert_eq!(bench.looks, looks, "{orphans} orphans");
    }
}

#[test]
fn an_answer_that_leaves_accounts_out_is_none() {
    let mut bench = Bench::new(2);
    bench.verdicts = VecDeque::from([vec![Claim::Missing]]);
    while bench.claims.is_empty() {
        bench.wait(10);
    }
    // No look finds them any more.
    bench.orphans.clear();
    bench.wait(1_100);
    // Nobody has guessed which of the two was missing.
    let claimed: Vec<usize> = bench.claims.iter().map(|(_, accounts)| *accounts).collect();
    assert_eq!(claimed, [2, 2]);
    assert_eq!((bench.epoch_of(1), bench.epoch_of(2)), (Some(1), Some(1)));
}

#[test]
fn what_somebody_else_was_given_is_forgotten_and_what_is_locked_is_claimed_again() {
    let by = Incarnation(7);
    for (verdict, waiting) in [
        (Claim::Held { by }, 0),
        (Claim::Retired, 0),
        (Claim::Missing, 0),
        (Claim::Locked, 1),
    ] {
        let mut bench = Bench::new(1);
        bench.verdicts = VecDeque::from([vec![verdict]]);
        while bench.claims.is_empty() {
            bench.wait(10);
        }
        assert_eq!(bench.fleet.orphans(), waiting, "{verdict:?}");
        // No look finds it any more.
        bench.orphans.clear();
        bench.wait(1_100);
        assert_eq!(bench.claims.len(), 1 + waiting, "{verdict:?}");
        assert_eq!(bench.epoch_of(1).is_some(), waiting == 1);
        assert_eq!(bench.fleet.orphans(), 0);
    }
}

#[test]
fn an_account_that_is_here_hears_what_became_of_its_claim() {
    let mut bench = connected(1);
    bench.epoch = 2;
    bench.verdicts = VecDeque::from([vec![Claim::Locked]]);
    bench.tell(1, device::Input::Unsealed);
    bench.wait(600);
    assert_eq!(bench.epoch_of(1), Some(2));
    bench.verdicts = VecDeque::from([vec![Claim::Held { by: Incarnation(7) }]]);
    bench.tell(1, device::Input::Unsealed);
    assert!(bench.fleet.account(&account(1)).is_none());
    assert_eq!(bench.fleet.orphans(), 0);
}

#[test]
fn news_of_before_an_account_left_do_not_bring_it_back() {
    let mut bench = connected(2);
    let who = bench.fleet.host().who();
    bench.lose(1);
    let id = bench.fleet.host.calls();
    // What the store says of a term that came after is news, though.
    bench
        .fleet
        .reconcile(id, vec![(account(1), lease(who, 3))], bench.now);
    assert_eq!(bench.epoch_of(1), Some(3));
    assert_eq!(bench.fleet.releases, []);
    // And of one that is here again, what was before is none.
    bench.lose(2);
    bench.fleet.owned(&account(2), lease(who, 4), bench.now);
    bench
        .fleet
        .reconcile(CallId(0), vec![(account(2), lease(who, 1))], bench.now);
    assert_eq!(bench.epoch_of(2), Some(4));
    assert_eq!(bench.fleet.releases, []);
}

#[test]
fn who_has_left_is_remembered_until_a_later_question_is_answered() {
    let mut bench = connected(3);
    bench.unanswered = Some(Vec::new());
    bench.lose(1);
    let before = bench.fleet.host.calls();
    bench.fleet.host.call(Ask::Held);
    bench.lose(2);
    let after = bench.fleet.host.calls();
    let left = |bench: &Bench| -> Vec<u64> { bench.fleet.left.keys().map(|a| a.device).collect() };
    let early = CallId(before.0 - 1);
    bench.fleet.reconcile(early, Vec::new(), bench.now);
    assert_eq!(left(&bench), [1, 2]);
    bench.fleet.reconcile(before, Vec::new(), bench.now);
    assert_eq!(left(&bench), [2]);
    bench.fleet.reconcile(after, Vec::new(), bench.now);
    assert!(left(&bench).is_empty());
}

#[test]
fn a_turn_that_is_not_wanted_any_more_is_nobodys() {
    let mut bench = connected(0);
    // Held in its rate: so many turns at once.
    bench.orphans = (1..=60).map(|n| (account(n), None)).collect();
    while bench.fleet.turns.is_empty() {
        bench.wait(10);
    }
    let waiting: Vec<AccountId> = bench.fleet.turns.iter().map(|(_, a)| a.clone()).collect();
    for account in &waiting {
        bench.lose(account.device);
    }
    assert!(bench.fleet.turns.is_empty() && bench.fleet.priorities.is_empty());
}

#[test]
fn a_process_that_has_slept_is_told_the_time_first() {
    let mut bench = connected(1);
    bench.tell(1, device::Input::Down);
    bench.now = bench.now.plus(Micros::from_secs(10));
    let wants = device::Input::Wants { priority: 1 };
    bench
        .fleet
        .handle(Input::Account(account(1), wants), bench.now);
    let device = bench.fleet.account(&account(1)).unwrap();
    assert_eq!(device.gate(), Gate::Shut);
    while let Some(output) = bench.fleet.poll() {
        assert!(!matches!(output, Output::Account(_, Action::Connect)));
    }
}

#[test]
fn in_another_history_the_store_is_asked_what_is_ours() {
    let mut bench = connected(1);
    bench.unanswered = Some(Vec::new());
    bench.history = Seal {
        timeline: 2,
        generation: 1,
    };
    bench.wait(1_200);
    let asked = bench.unanswered.unwrap();
    assert!(asked.iter().any(|call| call.ask == Ask::Held), "{asked:?}");
    assert!(asked.iter().any(|call| matches!(call.ask, Ask::Claim(_))));
}

#[test]
fn what_is_on_its_way_to_somebody_is_not_called_back_by_a_wish() {
    let mut bench = connected(1);
    bench.tell(1, device::Input::Leave(Some(Incarnation(7))));
    let stop = Placement {
        run: false,
        ..Placement::default()
    };
    bench.fleet.sort_out(vec![(account(1), stop)], bench.now);
    bench.wait(2_000);
    assert_eq!(bench.handed, [account(1)]);
    assert_eq!(bench.released, []);
}

#[test]
fn who_comes_back_within_ten_minutes_stays() {
    for (later, stays) in [(RETURN.0 - 1, true), (RETURN.0, false)] {
        let mut bench = connected(0);
        bench.fleet.moved.insert(account(1), bench.now);
        let now = bench.now.plus(Micros(later));
        let lease = lease(bench.fleet.host().who(), 3);
        bench.fleet.owned(&account(1), lease, now);
        assert_eq!(bench.fleet.stays.contains(&account(1)), stays);
    }
}
