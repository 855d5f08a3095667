//! The host's rows of the transition table, one by one.

use super::*;
use crate::state::{HostView, Seal};

const MS: u64 = 1_000;

struct Bench {
    host: Host,
    now: u64,
    calls: Vec<Call>,
    others: Vec<Output>,
}

fn info(name: &str) -> HostInfo {
    HostInfo {
        name: name.into(),
        address: "".into(),
        zone: "".into(),
        version: "".into(),
        capacity: 100,
    }
}

fn other(n: u64, state: HostState, accounts: u32, live: u32) -> HostView {
    HostView {
        slot: n as u16,
        who: Incarnation(n),
        info: info("other"),
        state,
        accounts,
        live,
        drain: false,
        remaining: Micros::from_secs(6),
    }
}

impl Bench {
    /// Not started.
    fn new() -> Self {
        let host = Host::new(info("one"), Timing::default(), [1; 32], Micros(0)).unwrap();
        Self {
            host,
            now: 0,
            calls: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Joined and renewed at 0 ms.
    fn active() -> Self {
        let mut bench = Self::new();
        bench.input(0, Input::Start);
        bench.answer(0, Answer::Joined(3));
        bench.renew(0, View::default());
        assert_eq!(bench.host.state(), State::Active);
        bench.others.clear();
        bench
    }

    fn input(&mut self, at: u64, input: Input) {
        self.now = at;
        self.host.handle(input, Micros(at * MS));
        while let Some(output) = self.host.poll() {
            match output {
                Output::Call(call) => self.calls.push(call),
                output => self.others.push(output),
            }
        }
    }

    fn tick(&mut self, at: u64) {
        self.input(at, Input::Tick);
    }

    fn last(&self) -> &Call {
        self.calls.last().expect("a call")
    }

    fn answer(&mut self, at: u64, answer: Answer) {
        let id = self.last().id;
        self.input(at, Input::Answer(id, answer));
    }

    fn renew(&mut self, at: u64, view: View) {
        assert!(matches!(self.last().ask, Ask::Beat(_)), "{:?}", self.last());
        self.answer(at, Answer::Beaten(Beaten::Renewed(view)));
    }

    /// Goes from wake to wake up to `until`, and answers no call.
    fn starve(&mut self, until: u64) {
        while let Some(wake) = self.host.wake()
            && wake.0 <= until * MS
        {
            let at = wake.0.div_ceil(MS).max(self.now);
            self.tick(at);
        }
    }

    /// Goes from wake to wake up to `until`, and renews with `view`.
    fn feed(&mut self, until: u64, view: &View) {
        while let Some(wake) = self.host.wake()
            && wake.0 <= until * MS
        {
            let calls = self.calls.len();
            let at = wake.0.div_ceil(MS).max(self.now);
            self.tick(at);
            if self.calls.len() > calls {
                self.renew(at, view.clone());
            }
        }
    }

    fn orders(&mut self) -> Vec<Order> {
        let others = std::mem::take(&mut self.others);
        others
            .into_iter()
            .filter_map(|output| match output {
                Output::Order(order) => Some(order),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn a_timing_that_does_not_fit_builds_no_host() {
    let timing = Timing {
        hard: Micros::from_millis(5_500),
        ..Timing::default()
    };
    let host = Host::new(info("one"), timing, [1; 32], Micros(0));
    assert_eq!(host.err(), Some(TimingError::HardTooLate));
}

#[test]
fn joining_leads_to_renewing_and_watching() {
    let mut bench = Bench::new();
    assert_eq!(bench.host.state(), State::Booting);
    assert!(!bench.host.may_act(Micros(0)));
    bench.input(0, Input::Start);
    assert_eq!(bench.host.state(), State::Joining);
    assert!(matches!(bench.last().ask, Ask::Join { .. }));
    assert!(!bench.host.may_act(Micros(0)));
    bench.answer(5, Answer::Joined(3));
    assert_eq!(
        (bench.host.state(), bench.host.slot()),
        (State::Active, Some(3))
    );
    assert!(matches!(bench.last().ask, Ask::Beat(_)));
    assert_eq!(bench.others, [Output::Watch(bench.host.who())]);
}

#[test]
fn a_join_without_an_answer_is_tried_again_by_the_same_incarnation() {
    let mut bench = Bench::new();
    bench.input(0, Input::Start);
    let first = bench.last().clone();
    bench.starve(5_000);
    assert!(bench.calls.len() >= 2);
    assert_eq!(bench.last().who, first.who);
    // The first answer may still come, and is as good: but it counts from when it was asked for.
    bench.input(5_000, Input::Answer(first.id, Answer::Joined(1)));
    assert_eq!(bench.host.slot(), Some(1));
    assert_eq!(bench.host.state(), State::Quiesced);
}

#[test]
fn renewals_come_each_second_and_one_lost_changes_nothing() {
    let mut bench = Bench::active();
    bench.feed(20_000, &View::default());
    let beats = bench.calls.len();
    assert!((19..=25).contains(&beats), "{beats} in 20 s");
    // One has no answer; the next, 300 ms later, on another connection, has.
    let wake = bench.host.wake().unwrap().0 / MS + 1;
    bench.tick(wake);
    assert!(!bench.last().fresh);
    bench.answer(wake + 700, Answer::Failed);
    bench.tick(wake + 1_001);
    assert!(bench.last().fresh);
    bench.renew(wake + 1_010, View::default());
    assert_eq!(bench.orders(), []);
    assert_eq!(bench.host.state(), State::Active);
}

#[test]
fn without_answers_it_becomes_careful_then_silent_then_hangs_up() {
    let mut bench = Bench::active();
    bench.starve(2_499);
    assert_eq!(bench.host.state(), State::Active);
    bench.starve(2_500);
    assert_eq!(
        (bench.host.state(), bench.orders()),
        (State::Suspect, vec![Order::Hold])
    );
    assert!(bench.host.may_act(Micros(3_999 * MS)));
    bench.starve(4_000);
    assert_eq!(
        (bench.host.state(), bench.orders()),
        (State::Quiesced, vec![Order::Quiesce])
    );
    assert!(!bench.host.may_act(Micros(4_000 * MS)));
    bench.starve(299_999);
    assert_eq!(bench.orders(), []);
    bench.starve(300_001);
    assert_eq!(bench.orders(), [Order::Disconnect]);
    assert_eq!(
        bench.host.who(),
        bench.last().who,
        "not reachable is not dead"
    );
    assert!(bench.last().fresh);
}

#[test]
fn suspect_goes_on_quiesced_verifies() {
    let mut bench = Bench::active();
    bench.starve(3_000);
    bench.orders();
    let wake = bench.host.wake().unwrap().0 / MS + 1;
    bench.tick(wake);
    bench.renew(wake, View::default());
    assert_eq!(
        (bench.host.state(), bench.orders()),
        (State::Active, vec![Order::Resume])
    );

    let mut bench = Bench::active();
    bench.starve(10_000);
    bench.orders();
    let beats = bench.calls.len();
    let mut at = 10_000;
    while bench.calls.len() == beats {
        at += 10;
        bench.tick(at);
    }
    bench.renew(at + 5, View::default());
    assert_eq!(
        (bench.host.state(), bench.orders()),
        (State::Active, vec![Order::Verify])
    );
}

#[test]
fn time_counts_from_before_the_renewal_was_sent() {
    let mut bench = Bench::active();
    let wake = bench.host.wake().unwrap().0 / MS + 1;
    bench.tick(wake);
    let beat = bench.last().id;
    // The process sleeps; the answer has been waiting for it.
    bench.input(
        wake + 3_900,
        Input::Answer(beat, Answer::Beaten(Beaten::Renewed(View::default()))),
    );
    assert_eq!(bench.host.until(), Some(Micros((wake + 4_000) * MS)));
    // What it said when it came in was true long ago: no going on because of it.
    assert_eq!(bench.host.state(), State::Quiesced);
    assert_eq!(bench.orders(), [Order::Hold, Order::Quiesce]);
}

#[test]
fn a_clock_that_stood_still_is_put_right() {
    let mut bench = Bench::active();
    bench.input(500, Input::ClockJump(Micros::from_millis(2_100)));
    assert_eq!(bench.orders(), [Order::Hold]);
    assert_eq!(
        bench.host.until(),
        Some(Micros(1_900 * MS)),
        "on the clock that missed 2.1 s"
    );
    bench.input(600, Input::ClockJump(Micros::from_secs(60)));
    assert_eq!(bench.orders(), [Order::Quiesce]);
    assert!(!bench.host.may_act(Micros(600 * MS)));
    // Back at once, by a renewal.
    bench.starve(2_700);
    let calls = bench.calls.len();
    bench.starve(5_000);
    assert!(bench.calls.len() > calls);
    bench.renew(5_000, View::default());
    assert_eq!(bench.orders(), [Order::Verify]);
}

#[test]
fn declared_dead_it_drops_everything_and_joins_as_somebody_else() {
    let mut bench = Bench::active();
    let was = bench.host.who();
    bench.starve(1_200);
    let beat = bench.last().id;
    bench.answer(1_200, Answer::Beaten(Beaten::Dead));
    assert_eq!(bench.orders(), [Order::Abandon]);
    assert_eq!(
        (bench.host.state(), bench.host.slot()),
        (State::Fenced, None)
    );
    assert_ne!(bench.host.who(), was);
    assert!(!bench.host.may_act(Micros(1_200 * MS)));
    bench.starve(1_500);
    assert!(matches!(bench.last().ask, Ask::Join { .. }));
    assert_eq!(bench.last().who, bench.host.who());
    // Nothing that was said to the dead moves the living.
    bench.input(
        1_500,
        Input::Answer(beat, Answer::Beaten(Beaten::Renewed(View::default()))),
    );
    bench.input(1_500, Input::Ended(was));
    assert_eq!(bench.host.state(), State::Joining);
    assert!(!bench.host.may_act(Micros(1_500 * MS)));
    bench.answer(1_510, Answer::Joined(4));
    assert_eq!(bench.host.state(), State::Active);
}

#[test]
fn told_by_another_call_it_is_dead_as_well() {
    let mut bench = Bench::active();
    bench.input(100, Input::Ended(bench.host.who()));
    assert_eq!(bench.orders(), [Order::Abandon]);
    assert_eq!(bench.host.state(), State::Fenced);
}

#[test]
fn lost_history_and_the_dead_are_passed_on() {
    let mut bench = Bench::active();
    let history = Seal {
        timeline: 2,
        generation: 1,
    };
    let view = View {
        history,
        newly_dead: vec![Incarnation(9)],
        ..View::default()
    };
    bench.starve(1_200);
    bench.renew(1_200, view.clone());
    let expected = [
        Output::Order(Order::History(history)),
        Output::Look { scan: true },
    ];
    assert_eq!(bench.others, expected);
    bench.others.clear();
    bench.starve(2_400);
    bench.renew(
        2_400,
        View {
            newly_dead: Vec::new(),
            ..view
        },
    );
    assert_eq!(bench.others, [Output::Look { scan: false }]);
}

#[test]
fn news_hasten_the_next_look() {
    let mut bench = Bench::active();
    let first = bench.calls.len();
    // Another look before accounts are looked for: who joined with us is in it.
    bench.feed(450, &View::default());
    let beats = bench.calls.len();
    assert_eq!(beats, first + 1);
    bench.others.clear();
    bench.feed(500, &View::default());
    assert_eq!(bench.calls.len(), beats);
    bench.input(500, Input::Changed(Change::Ownership));
    assert_eq!(bench.calls.len(), beats + 1);
    let who = bench.host.who();
    assert_eq!(
        bench.others,
        [Output::Look { scan: true }, Output::Watch(who)]
    );
    // A watch that cannot be kept up is tried again, not at once.
    bench.others.clear();
    bench.renew(510, View::default());
    bench.input(520, Input::WatchFailed);
    bench.feed(900, &View::default());
    assert!(!bench.others.contains(&Output::Watch(who)));
    bench.feed(2_100, &View::default());
    assert!(bench.others.contains(&Output::Watch(who)));
}

#[test]
fn leaving_says_so_at_once_and_goes_when_it_has_nothing_left() {
    let mut bench = Bench::active();
    bench.input(100, Input::Drain { leave: true });
    assert_eq!(bench.host.state(), State::Draining);
    assert!(matches!(bench.last().ask, Ask::Beat(beat) if beat.draining));
    bench.renew(110, View::default());
    bench.input(120, Input::Undrain);
    assert_eq!(bench.host.state(), State::Draining, "no way back");
    bench.input(200, Input::Empty);
    assert_eq!(bench.last().ask, Ask::Leave);
    assert!(!bench.host.may_act(Micros(200 * MS)));
    bench.answer(210, Answer::Left);
    assert_eq!(bench.host.state(), State::Released);
    assert_eq!(bench.others.last(), Some(&Output::Exit));
    assert_eq!(bench.host.wake(), None);
}

#[test]
fn a_farewell_nobody_hears_ends_too() {
    let mut bench = Bench::active();
    bench.input(100, Input::Drain { leave: true });
    bench.input(200, Input::Empty);
    bench.starve(6_000);
    assert_eq!(bench.host.state(), State::Released);
    let exits = bench
        .others
        .iter()
        .filter(|output| **output == Output::Exit);
    assert_eq!(exits.count(), 1);
}

#[test]
fn draining_without_leaving_can_be_undone() {
    let mut bench = Bench::active();
    bench.input(100, Input::Drain { leave: false });
    bench.renew(100, View::default());
    bench.input(150, Input::Empty);
    assert_eq!(bench.host.state(), State::Draining);
    bench.input(200, Input::Undrain);
    assert_eq!(bench.host.state(), State::Active);
    assert!(matches!(bench.last().ask, Ask::Beat(beat) if !beat.draining));
}

#[test]
fn who_is_declared_dead_too_often_takes_nothing_for_a_while() {
    let mut bench = Bench::active();
    let view = View {
        hosts: vec![other(7, HostState::Active, 0, 0)],
        ..View::default()
    };
    let mut at = 0;
    for _ in 0..3 {
        at += 2_000;
        bench.input(at, Input::Ended(bench.host.who()));
        bench.starve(at + 300);
        bench.answer(at + 300, Answer::Joined(1));
        bench.renew(at + 310, view.clone());
    }
    assert_eq!(bench.host.state(), State::Draining);
    // Alone it has no choice.
    bench.feed(at + 2_000, &View::default());
    assert_eq!(bench.host.state(), State::Active);
    bench.feed(at + 4_000, &view);
    assert_eq!(bench.host.state(), State::Draining);
    bench.feed(at + 302_000, &view);
    assert_eq!(bench.host.state(), State::Active);
}

#[test]
fn a_host_that_cannot_reach_the_service_gives_way_to_those_who_can() {
    let dark = Load {
        accounts: 50,
        wanting: 50,
        up: 9,
    };
    let run = |hosts: Vec<HostView>| {
        let mut bench = Bench::active();
        bench.host.set_load(dark);
        let view = View {
            hosts,
            ..View::default()
        };
        bench.feed(14_000, &view);
        assert_eq!(bench.host.state(), State::Active);
        bench.feed(18_500, &view);
        let canary = bench.others.contains(&Output::Canary);
        (bench, canary, view)
    };

    let (mut bench, canary, view) = run(vec![other(7, HostState::Active, 50, 49)]);
    assert_eq!((bench.host.state(), canary), (State::Draining, false));
    // After a while it tries again; the second time it stays away for longer.
    bench.host.set_load(Load::default());
    bench.feed(85_000, &view);
    assert_eq!(bench.host.state(), State::Active);
    bench.host.set_load(dark);
    bench.feed(85_000 + 20_000 + 100_000, &view);
    assert_eq!(bench.host.state(), State::Draining);

    // Everybody is down: it is not us.
    let (bench, canary, _) = run(vec![other(7, HostState::Active, 50, 10)]);
    assert_eq!((bench.host.state(), canary), (State::Active, false));
    // Nobody to compare with: one account shall tell.
    let (bench, canary, _) = run(vec![other(7, HostState::Active, 0, 0)]);
    assert_eq!((bench.host.state(), canary), (State::Active, true));
    // Nobody to give to.
    let (bench, canary, _) = run(vec![other(7, HostState::Draining, 50, 50)]);
    assert_eq!((bench.host.state(), canary), (State::Active, false));
}

mod moments;
