//! Inputs at odd moments: while a claim is out, while the host is silent, while the account is being given away.

use super::*;

/// Our turn is over in the database's new history; the host is held or silent meanwhile.
fn claiming_in_silence(order: Order) -> Bench {
    let mut bench = Bench::live();
    bench.tell(Input::Order(order));
    bench.tell(Input::Unsealed);
    bench.forget();
    bench
}

#[test]
fn what_may_not_begin_waits_without_a_timer() {
    for order in [Order::Hold, Order::Quiesce] {
        let bench = claiming_in_silence(order);
        assert_eq!(bench.device.wake(), None, "a claim under {order:?}");
        let mut bench = Bench::live();
        bench.tell(Input::Stopped(StopReason::Outdated));
        assert!(bench.device.wake().is_some());
        bench.tell(Input::Order(order));
        assert_eq!(bench.device.wake(), None, "a pause under {order:?}");
    }
    let mut bench = claiming_in_silence(Order::Hold);
    bench.tell(Input::Order(Order::Resume));
    assert_eq!(bench.take().1, [Need::Claim]);
}

#[test]
fn a_claim_is_called_one_whatever_the_host_does() {
    let mut bench = claiming_in_silence(Order::Quiesce);
    assert_eq!(bench.device.state(), State::Claiming);
    bench.tell(Input::Leave(None));
    assert_eq!(bench.device.state(), State::Claiming);
}

#[test]
fn one_claim_is_out_at_a_time() {
    let mut bench = Bench::live();
    bench.tell(Input::Unsealed);
    assert_eq!(bench.take().1, [Need::Claim]);
    bench.tell(Input::Unsealed);
    bench.tell(Input::Take);
    assert_eq!(bench.take().1, []);
    // And nothing is claimed back that is not ours.
    let mut bench = Bench::new(HostState::Active);
    bench.tell(Input::Unsealed);
    assert_eq!(bench.take(), (vec![], vec![], State::Standby));
}

#[test]
fn without_a_term_that_counts_there_is_nothing_to_doubt() {
    // A claim is out: what it brings is new.
    let mut bench = Bench::live();
    bench.tell(Input::Unsealed);
    bench.tell(Input::Order(Order::Quiesce));
    bench.forget();
    bench.tell(Input::Order(Order::Verify));
    assert_eq!(bench.take(), (vec![], vec![], State::Claiming));
    bench.tell(Input::Owned(lease(2)));
    assert_eq!(bench.take().0[0], Action::Build(lease(2)));
    // Nothing is ours yet.
    let mut bench = Bench::new(HostState::Active);
    bench.tell(Input::Order(Order::Quiesce));
    bench.tell(Input::Order(Order::Verify));
    bench.tell(Input::Take);
    assert_eq!(bench.take(), (vec![], vec![Need::Claim], State::Claiming));
}

#[test]
fn every_change_of_state_is_said_once() {
    let mut device = Device::new(HostState::Active);
    let mut said = Vec::new();
    for input in [
        Input::Take,
        Input::Owned(lease(1)),
        Input::Wants { priority: 1 },
        Input::Permit,
        Input::Up,
        Input::Tick,
        Input::Up,
        Input::Order(Order::Hold),
        Input::Order(Order::Abandon),
    ] {
        device.handle(input, Micros(0));
        while let Some(output) = device.poll() {
            if let Output::Do(Action::State(state)) = output {
                assert_eq!(state, device.state());
                said.push(state);
            }
        }
    }
    assert_eq!(
        said,
        [
            State::Claiming,
            State::Loading,
            State::Connecting,
            State::Live,
            State::Held,
            State::Standby
        ]
    );
}

#[test]
fn good_time_counts_from_the_first_word_of_a_connection() {
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::Replaced));
    bench.tell(Input::Verified(1, Verdict::Ours));
    assert_eq!(bench.sleep(), 5_000);
    bench.tell(Input::Owned(lease(2)));
    bench.connect();
    bench.wait(200_000);
    bench.tell(Input::Up);
    bench.wait(100_000);
    bench.tell(Input::Stopped(StopReason::Replaced));
    bench.tell(Input::Verified(2, Verdict::Ours));
    assert_eq!(bench.sleep(), 5_000);
}

#[test]
fn another_successor_has_the_time_that_is_left() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(Some(B)));
    bench.wait(100);
    bench.forget();
    bench.tell(Input::Leave(Some(C)));
    assert_eq!(bench.take().0, [], "it may still prepare");
    assert_eq!(bench.sleep(), 200);
    assert_eq!(
        bench.take().0,
        [Action::Stop, Action::Gate(Gate::Committed)]
    );
    // The engine has its second, whoever comes after it.
    bench.wait(400);
    bench.tell(Input::Leave(None));
    assert_eq!(bench.device.state(), State::HandingOver(Step::Stop));
    assert_eq!(bench.sleep(), 600);
    assert_eq!(bench.take().1, [Need::Release(Epoch(1))]);
}

#[test]
fn without_a_successor_nobody_prepares() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(None));
    assert_eq!(
        bench.take().0,
        [Action::Stop, Action::Gate(Gate::Committed)]
    );
    assert_eq!(bench.sleep(), 1_000);
    // Nor for an account that has no engine to wait for.
    let mut bench = Bench::live();
    bench.tell(Input::Stopped(StopReason::LoggedOut(401)));
    bench.forget();
    bench.tell(Input::Leave(Some(B)));
    assert_eq!(bench.take().0, []);
    // One that was preparing for somebody stops at once when there is nobody any more.
    let mut bench = Bench::live();
    bench.tell(Input::Leave(Some(B)));
    bench.forget();
    bench.tell(Input::Leave(None));
    assert_eq!(bench.take().0[0], Action::Stop);
}

#[test]
fn one_question_is_out_at_a_time() {
    let mut bench = Bench::live();
    bench.tell(Input::Leave(None));
    bench.tell(Input::Stopped(StopReason::Shutdown));
    assert_eq!(bench.take().1, [Need::Release(Epoch(1))]);
    bench.wait(10_000);
    assert_eq!(bench.take().1, []);
}
