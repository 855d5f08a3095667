//! The account's rows of the transition table, one by one.

use super::*;
use crate::state::{Seal, Seq};

const A: Incarnation = Incarnation(1);
const B: Incarnation = Incarnation(2);
const C: Incarnation = Incarnation(3);
const ONE: Seal = Seal {
    timeline: 1,
    generation: 1,
};

fn lease(epoch: u64) -> Lease {
    Lease {
        term: Term {
            epoch: Epoch(epoch),
            holder: A,
            history: ONE,
        },
        applied: Seq(7),
        sealed: ONE,
    }
}

struct Bench {
    device: Device,
    now: Micros,
    acts: Vec<Action>,
    needs: Vec<Need>,
}

impl Bench {
    fn new(host: HostState) -> Self {
        Self {
            device: Device::new(host),
            now: Micros(0),
            acts: Vec::new(),
            needs: Vec::new(),
        }
    }

    /// Loaded, connected, logged in, under epoch 1.
    fn live() -> Self {
        let mut bench = Self::new(HostState::Active);
        bench.tell(Input::Owned(lease(1)));
        bench.connect();
        bench
    }

    fn connect(&mut self) {
        self.tell(Input::Wants { priority: 5 });
        self.tell(Input::Permit);
        self.tell(Input::Up);
        assert_eq!(self.device.state(), State::Live);
        self.forget();
    }

    fn tell(&mut self, input: Input) {
        self.device.handle(input, self.now);
        while let Some(output) = self.device.poll() {
            match output {
                Output::Do(Action::State(_)) => {}
                Output::Do(action) => self.acts.push(action),
                Output::Need(need) => self.needs.push(need),
            }
        }
    }

    fn forget(&mut self) {
        self.acts.clear();
        self.needs.clear();
    }

    /// What came out since the last time, and where it stands.
    fn take(&mut self) -> (Vec<Action>, Vec<Need>, State) {
        let acts = std::mem::take(&mut self.acts);
        (acts, std::mem::take(&mut self.needs), self.device.state())
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(Micros::from_millis(millis));
        self.tell(Input::Tick);
    }

    /// Waits for whatever it waits for; says how many milliseconds.
    fn sleep(&mut self) -> u64 {
        let wake = self.device.wake().expect("something to wait for");
        let slept = wake.since(self.now).0 / 1_000;
        self.now = wake.max(self.now);
        self.tell(Input::Tick);
        slept
    }
}

#[test]
fn from_standby_to_live() {
    let mut bench = Bench::new(HostState::Active);
    assert_eq!(bench.device.state(), State::Standby);
    bench.tell(Input::Take);
    assert_eq!(bench.take(), (vec![], vec![Need::Claim], State::Claiming));
    bench.tell(Input::Owned(lease(1)));
    let build = vec![Action::Build(lease(1)), Action::Gate(Gate::Open)];
    assert_eq!(bench.take(), (build, vec![], State::Loading));
    bench.tell(Input::Wants { priority: 5 });
    assert_eq!(
        bench.take(),
        (vec![], vec![Need::Turn(5)], State::Connecting)
    );
    bench.tell(Input::Permit);
    assert_eq!(
        bench.take(),
        (vec![Action::Connect], vec![], State::Connecting)
    );
    bench.tell(Input::Up);
    assert_eq!(bench.take(), (vec![], vec![], State::Live));
    assert_eq!(bench.device.gate(), Gate::Open);
}

#[test]
fn a_claim_that_brings_nothing_ends_or_is_repeated() {
    for (claim, again) in [
        (Claim::Held { by: B }, false),
        (Claim::Missing, false),
        (Claim::Retired, false),
        (Claim::Locked, true),
    ] {
        let mut bench = Bench::new(HostState::Active);
        bench.tell(Input::Take);
        bench.forget();
        bench.tell(Input::NotOwned(claim));
        if again {
            assert_eq!(bench.take(), (vec![], vec![], State::Claiming));
            assert_eq!(bench.sleep(), 500);
            assert_eq!(bench.take(), (vec![], vec![Need::Claim], State::Claiming));
        } else {
            assert_eq!(
                bench.take(),
                (vec![], vec![Need::Gone(Epoch(0))], State::Standby)
            );
        }
    }
}

#[test]
fn fenced_it_goes_without_a_word() {
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::Fenced(Epoch(2))));
    assert_eq!(
        bench.take(),
        (vec![], vec![Need::Gone(Epoch(1))], State::Standby)
    );
    assert_eq!(bench.device.gate(), Gate::Shut);
}

#[test]
fn abandoned_it_drops_everything() {
    let mut bench = Bench::live();
    bench.tell(Input::Order(Order::Abandon));
    let gone = vec![Need::Gone(Epoch(1))];
    assert_eq!(bench.take(), (vec![Action::Drop], gone, State::Standby));
}

#[test]
fn an_unknown_outcome_shuts_the_gate_until_the_store_has_spoken() {
    let mut bench = Bench::live();
    bench.tell(Input::Unknown);
    let verify = vec![Action::Verify(1, lease(1).term), Action::Gate(Gate::Shut)];
    assert_eq!(bench.take(), (verify, vec![], State::Verifying));
    bench.tell(Input::Verified(1, Verdict::Unreachable));
    assert_eq!(bench.take(), (vec![], vec![], State::Uncertain));
    assert_eq!(bench.sleep(), 500);
    assert_eq!(bench.take().0, [Action::Verify(2, lease(1).term)]);
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(
        bench.device.state(),
        State::Verifying,
        "an old question's answer"
    );
    bench.tell(Input::Verified(2, Verdict::Ours));
    assert_eq!(
        bench.take(),
        (vec![Action::Gate(Gate::Open)], vec![], State::Live)
    );
}

#[test]
fn an_unknown_outcome_can_end_fenced() {
    let mut bench = Bench::live();
    bench.tell(Input::Unknown);
    bench.forget();
    bench.tell(Input::Verified(1, Verdict::Fenced));
    let gone = vec![Need::Gone(Epoch(1))];
    assert_eq!(bench.take(), (vec![Action::Drop], gone, State::Standby));
}

#[test]
fn a_new_doubt_is_not_settled_by_an_old_question() {
    let mut bench = Bench::live();
    bench.tell(Input::Unknown);
    bench.tell(Input::Unknown);
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(bench.device.gate(), Gate::Shut);
    bench.tell(Input::Verified(2, Verdict::Ours));
    assert_eq!(bench.device.gate(), Gate::Open);
}

#[test]
fn hold_and_resume() {
    let mut bench = Bench::live();
    bench.tell(Input::Order(Order::Hold));
    assert_eq!(
        bench.take(),
        (vec![Action::Gate(Gate::Committed)], vec![], State::Held)
    );
    bench.tell(Input::Order(Order::Resume));
    assert_eq!(
        bench.take(),
        (vec![Action::Gate(Gate::Open)], vec![], State::Live)
    );
}

#[test]
fn quiesced_it_keeps_its_connection_and_asks_before_it_goes_on() {
    let mut bench = Bench::live();
    bench.tell(Input::Order(Order::Hold));
    bench.tell(Input::Order(Order::Quiesce));
    let shut = vec![Action::Gate(Gate::Committed), Action::Gate(Gate::Shut)];
    assert_eq!(bench.take(), (shut, vec![], State::Quiesced));
    assert_eq!(bench.device.wake(), None);
    bench.tell(Input::Order(Order::Resume));
    assert_eq!(bench.device.gate(), Gate::Shut, "only verifying opens it");
    bench.tell(Input::Order(Order::Verify));
    assert_eq!(bench.take().0, [Action::Verify(1, lease(1).term)]);
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(
        bench.take(),
        (vec![Action::Gate(Gate::Open)], vec![], State::Live)
    );
}

#[test]
fn after_long_quiet_the_connection_goes_and_none_is_made() {
    let mut bench = Bench::live();
    bench.tell(Input::Order(Order::Quiesce));
    bench.forget();
    bench.tell(Input::Order(Order::Disconnect));
    bench.tell(Input::Down);
    bench.tell(Input::Wants { priority: 5 });
    assert_eq!(
        bench.take(),
        (vec![Action::Disconnect], vec![], State::Quiesced)
    );
    bench.tell(Input::Order(Order::Verify));
    bench.forget();
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(bench.take().1, [Need::Turn(5)]);
}

#[test]
fn what_is_granted_to_a_silent_host_waits() {
    let mut bench = Bench::new(HostState::Quiesced);
    bench.tell(Input::Owned(lease(1)));
    assert_eq!(bench.take(), (vec![], vec![], State::Quiesced));
    bench.tell(Input::Order(Order::Verify));
    assert_eq!(bench.take().0, [Action::Verify(1, lease(1).term)]);
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(bench.take().0[0], Action::Build(lease(1)));
}

#[test]
fn replaced_by_the_successor_it_goes() {
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::Replaced));
    assert_eq!(
        bench.take(),
        (
            vec![Action::Verify(1, lease(1).term)],
            vec![],
            State::Verifying
        )
    );
    bench.tell(Input::Verified(1, Verdict::Fenced));
    assert_eq!(
        bench.take(),
        (vec![], vec![Need::Gone(Epoch(1))], State::Standby)
    );
}

#[test]
fn replaced_by_a_stranger_it_waits_longer_each_time_and_never_fights() {
    let mut bench = Bench::live();
    for (n, pause) in [(1, 5_000), (2, 30_000), (3, 120_000), (4, 120_000)] {
        bench.tell(Input::Stopped(StopReason::Replaced));
        bench.forget();
        bench.tell(Input::Verified(n, Verdict::Ours));
        let (acts, needs, state) = bench.take();
        assert_eq!((needs, state), (vec![], State::Conflict));
        let alert = (n >= 3).then_some(Action::Alert(n));
        assert_eq!(acts, alert.into_iter().collect::<Vec<_>>());
        assert_eq!(bench.sleep(), pause);
        // A new engine, and with it a new term.
        assert_eq!(bench.take().1, [Need::Claim]);
        bench.tell(Input::Owned(lease(u64::from(n) + 1)));
        bench.connect();
    }
    // Five good minutes, and it begins anew.
    bench.wait(300_000);
    bench.tell(Input::Stopped(StopReason::Replaced));
    bench.tell(Input::Verified(5, Verdict::Ours));
    assert_eq!(bench.sleep(), 5_000);
}

#[test]
fn a_lost_connection_loses_no_ownership() {
    let mut bench = Bench::live();
    for n in 1..=3 {
        bench.tell(Input::Down);
        assert_eq!(bench.take(), (vec![], vec![], State::Backoff(n)));
        bench.tell(Input::Wants { priority: 5 });
        bench.tell(Input::Permit);
        bench.forget();
        bench.wait(10_000);
    }
    assert_eq!(bench.device.term(), Some(lease(1).term));
    bench.tell(Input::Up);
    bench.tell(Input::Down);
    assert_eq!(bench.device.state(), State::Backoff(1));
}

#[test]
fn a_minute_without_a_connection_is_reported() {
    let mut bench = Bench::live();
    bench.tell(Input::Down);
    bench.forget();
    for _ in 0..2 {
        assert_eq!(bench.sleep(), 60_000);
        assert_eq!(bench.take().1, [Need::Stuck]);
    }
    bench.tell(Input::Wants { priority: 1 });
    bench.tell(Input::Permit);
    bench.tell(Input::Up);
    assert_eq!(bench.device.wake(), None);
}

#[test]
fn what_does_not_start_is_tried_less_and_less() {
    let mut bench = Bench::live();
    for (n, pause) in [
        (1, 1_000),
        (2, 1_000),
        (3, 5_000),
        (4, 30_000),
        (5, 120_000),
        (6, 900_000),
        (7, 900_000),
    ] {
        bench.forget();
        if n % 2 == 0 {
            bench.tell(Input::Crashed);
        } else {
            bench.tell(Input::Stopped(StopReason::Store("no such row".into())));
        }
        assert_eq!(bench.take(), (vec![], vec![], State::Error));
        assert_eq!(bench.sleep(), pause);
        assert_eq!(bench.take().1, [Need::Claim]);
        bench.tell(Input::Owned(lease(1 + n)));
    }
}

#[test]
fn a_ban_is_sat_out_and_a_logout_is_final_until_somebody_acts() {
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::Banned {
        code: 1,
        seconds: 60,
    }));
    assert_eq!(bench.device.state(), State::Error);
    assert_eq!(bench.sleep(), 60_000);
    bench.tell(Input::Owned(lease(2)));
    bench.connect();

    bench.tell(Input::Stopped(StopReason::LoggedOut(401)));
    assert_eq!(bench.take(), (vec![], vec![], State::LoggedOut));
    assert_eq!(bench.device.wake(), None);
    assert!(!bench.device.is_wanting());
    bench.tell(Input::Restart);
    assert_eq!(bench.take(), (vec![], vec![Need::Claim], State::Claiming));
}

#[test]
fn a_void_term_is_claimed_anew() {
    let two = Seal {
        timeline: 2,
        generation: 1,
    };
    for input in [Input::Order(Order::History(two)), Input::Unsealed] {
        let mut bench = Bench::live();
        bench.tell(input);
        assert_eq!(
            bench.take(),
            (vec![Action::Drop], vec![Need::Claim], State::Claiming)
        );
        assert_eq!(bench.device.gate(), Gate::Shut);
    }
    let mut bench = Bench::live();
    bench.tell(Input::Order(Order::History(ONE)));
    assert_eq!(bench.take(), (vec![], vec![], State::Live));
    bench.tell(Input::Unknown);
    bench.forget();
    bench.tell(Input::Verified(1, Verdict::Unsealed));
    assert_eq!(
        bench.take(),
        (vec![Action::Drop], vec![Need::Claim], State::Claiming)
    );
}

#[test]
fn a_hand_over_prepares_stops_and_releases() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(Some(B)));
    let prepare = State::HandingOver(Step::Prepare);
    assert_eq!(bench.take(), (vec![Action::Prepare(B)], vec![], prepare));
    assert_eq!(bench.device.gate(), Gate::Open, "it goes on meanwhile");
    bench.tell(Input::Prepared);
    let stop = vec![Action::Stop, Action::Gate(Gate::Committed)];
    assert_eq!(bench.take(), (stop, vec![], State::HandingOver(Step::Stop)));
    bench.tell(Input::Stopped(StopReason::Shutdown));
    let release = vec![Need::HandOver(Epoch(1), B)];
    assert_eq!(
        bench.take(),
        (vec![], release, State::HandingOver(Step::Release))
    );
    assert_eq!(bench.device.gate(), Gate::Shut);
    bench.tell(Input::HandedOver(Some(HandOver::Done { epoch: Epoch(2) })));
    assert_eq!(
        bench.take(),
        (vec![], vec![Need::Gone(Epoch(1))], State::Standby)
    );
}

#[test]
fn a_successor_or_an_engine_that_does_not_answer_holds_nothing_up() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(Some(B)));
    assert_eq!(bench.sleep(), 300);
    assert_eq!(bench.device.state(), State::HandingOver(Step::Stop));
    bench.forget();
    assert_eq!(bench.sleep(), 1_000);
    let release = vec![Need::HandOver(Epoch(1), B)];
    assert_eq!(
        bench.take(),
        (
            vec![Action::Drop],
            release,
            State::HandingOver(Step::Release)
        )
    );
}

#[test]
fn a_hand_over_without_an_answer_is_repeated_and_refused_goes_elsewhere() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(Some(B)));
    bench.tell(Input::Prepared);
    bench.tell(Input::Stopped(StopReason::Shutdown));
    bench.forget();
    bench.tell(Input::HandedOver(None));
    assert_eq!(bench.take().1, []);
    assert_eq!(bench.sleep(), 500);
    assert_eq!(bench.take().1, [Need::HandOver(Epoch(1), B)]);
    bench.tell(Input::HandedOver(Some(HandOver::Refused)));
    assert_eq!(bench.take().1, [Need::Elsewhere(B)]);
    assert_eq!(bench.device.wake(), None);
    bench.tell(Input::Leave(Some(C)));
    assert_eq!(bench.take().1, [Need::HandOver(Epoch(1), C)]);
    bench.tell(Input::HandedOver(Some(HandOver::Refused)));
    bench.tell(Input::Leave(None));
    assert_eq!(
        bench.take().1,
        [Need::Elsewhere(C), Need::Release(Epoch(1))]
    );
    bench.tell(Input::Released(false));
    bench.sleep();
    assert_eq!(bench.take().1, [Need::Release(Epoch(1))]);
    bench.tell(Input::Released(true));
    assert_eq!(
        bench.take(),
        (vec![], vec![Need::Gone(Epoch(1))], State::Standby)
    );
}

#[test]
fn what_has_no_engine_leaves_at_once() {
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::LoggedOut(401)));
    bench.forget();
    bench.tell(Input::Leave(Some(B)));
    assert_eq!(bench.take().1, [Need::HandOver(Epoch(1), B)]);
    // And what was never ours just goes, once the claim that is out has its answer.
    let mut bench = Bench::new(HostState::Active);
    bench.tell(Input::Take);
    bench.tell(Input::Leave(None));
    bench.forget();
    bench.tell(Input::Owned(lease(4)));
    assert_eq!(bench.take().1, [Need::Release(Epoch(4))]);
}

#[test]
fn a_turn_is_given_back_when_it_cannot_be_used() {
    let mut bench = Bench::new(HostState::Active);
    bench.tell(Input::Owned(lease(1)));
    bench.tell(Input::Wants { priority: 5 });
    bench.forget();
    bench.tell(Input::Order(Order::Hold));
    assert_eq!(bench.take().1, [Need::NoTurn]);
    bench.tell(Input::Order(Order::Resume));
    assert_eq!(bench.take().1, [Need::Turn(5)]);
    bench.tell(Input::Order(Order::Abandon));
    assert_eq!(bench.take().1, [Need::NoTurn, Need::Gone(Epoch(1))]);
}

#[test]
fn an_old_lease_is_no_news() {
    let mut bench = Bench::live();
    bench.tell(Input::Owned(lease(1)));
    assert_eq!(bench.take(), (vec![], vec![], State::Live));
    // A newer one, however it came about, takes a new engine.
    bench.tell(Input::Owned(lease(3)));
    let (acts, _, state) = bench.take();
    assert_eq!(acts[..2], [Action::Drop, Action::Build(lease(3))]);
    assert_eq!(state, State::Loading);
}

mod moments;
