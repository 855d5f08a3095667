//! One account on one host: claimed, loaded, connected, doubted, handed on.
//!
//! The engine knows how to be an account; this machine knows whether to be it *here and now*. It sits above the engine
//! and says when one is built, when it may connect, how much of what it does may leave the process ([`Gate`]), and when
//! it has to go. Three principles make up most of it:
//!
//! * **In doubt, be silent and ask.** After a commit without an answer, after a time without a lease, after the service
//!   reported another connection: nothing leaves until the store has said, by a write, whose the account is.
//! * **Never fight.** `stream replaced` is evidence that somebody else has the account. If the store says so too, go
//!   without a word. If it does not, a stranger uses the same keys: wait, longer each time, and tell somebody.
//! * **A new engine gets a new term.** Batches of an engine that is gone may still be on their way; under the next epoch
//!   they cannot land in the new one's history.

mod api;

pub use api::{Action, Gate, Input, Need, Output, State, Step, Verdict};

use super::host::{Order, State as HostState};
use crate::{
    flow::StopReason,
    state::{Claim, Epoch, HandOver, Incarnation, Lease, Micros, Term},
};
use std::collections::VecDeque;

/// Pauses after failed starts, from the first on: a poisoned account must not keep a host busy, nor walk through a fleet.
const FAILURES: [Micros; 6] = [
    Micros::from_secs(1),
    Micros::from_secs(1),
    Micros::from_secs(5),
    Micros::from_secs(30),
    Micros::from_secs(120),
    Micros::from_secs(900),
];
/// Pauses after the service preferred a stranger's connection.
const CONFLICTS: [Micros; 3] = [
    Micros::from_secs(5),
    Micros::from_secs(30),
    Micros::from_secs(120),
];
/// From so many conflicts in a row on, somebody should know.
const ALERT: u32 = 3;
/// What was up for so long starts with a clean sheet.
const GOOD: Micros = Micros::from_secs(300);
/// After so long without a connection, another host may do better.
const STUCK: Micros = Micros::from_secs(60);
/// For the successor to prepare, and for the engine to finish.
const PREPARE: Micros = Micros::from_millis(300);
const STOP: Micros = Micros::from_secs(1);
/// Between questions to a store that does not answer.
const AGAIN: Micros = Micros::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Standby,
    Claiming { at: Micros, asked: bool },
    Loading,
    Waiting { priority: u64, queued: bool },
    Connecting,
    Live { since: Micros },
    Backoff,
    Paused { until: Micros, conflict: bool },
    LoggedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    replaced: bool,
    /// Asked under the current number.
    asked: bool,
    at: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaving {
    to: Option<Incarnation>,
    step: Step,
    /// When the step ends by itself; in the last one, when to ask again.
    at: Micros,
    /// The store was asked, and whether `to` has to be replaced before it is asked again.
    asked: bool,
    refused: bool,
}

/// The account machine.
#[derive(Debug)]
pub struct Device {
    life: Life,
    lease: Option<Lease>,
    engine: bool,
    /// What the host's lease allows.
    host: Gate,
    doubt: Option<Doubt>,
    ask: u32,
    leaving: Option<Leaving>,
    failures: u32,
    conflicts: u32,
    attempts: u32,
    stuck_at: Option<Micros>,
    gate: Gate,
    state: State,
    out: VecDeque<Output>,
}

impl Device {
    /// An account that is not ours, on a host in that state.
    #[must_use]
    pub fn new(host: HostState) -> Self {
        Self {
            life: Life::Standby,
            lease: None,
            engine: false,
            host: match host {
                HostState::Active | HostState::Draining => Gate::Open,
                HostState::Suspect => Gate::Committed,
                _ => Gate::Shut,
            },
            doubt: None,
            ask: 0,
            leaving: None,
            failures: 0,
            conflicts: 0,
            attempts: 0,
            stuck_at: None,
            gate: Gate::Shut,
            state: State::Standby,
            out: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input, now: Micros) {
        match input {
            Input::Take => {
                if self.life == Life::Standby {
                    self.claim(now);
                }
            }
            Input::Owned(lease) => self.owned(lease, now),
            Input::NotOwned(claim) => self.not_owned(claim, now),
            Input::ClaimFailed => self.claim_again(now),
            Input::Order(order) => self.ordered(order, now),
            Input::Stopped(reason) => self.stopped(reason, now),
            Input::Crashed => {
                if self.engine {
                    self.engine = false;
                    self.failed(now);
                }
            }
            Input::Unknown => {
                if self.engine {
                    self.doubt(false, now);
                }
            }
            Input::Unsealed => self.void(now),
            Input::Verified(ask, verdict) => self.verified(ask, verdict, now),
            Input::Wants { .. } | Input::Permit | Input::Up | Input::Down => self.link(&input, now),
            Input::Leave(to) => self.leave(to, now),
            Input::Prepared => {
                if let Some(leaving) = &mut self.leaving
                    && leaving.step == Step::Prepare
                {
                    leaving.at = now;
                }
            }
            Input::HandedOver(answer) => self.handed_over(answer, now),
            Input::Released(answered) => {
                if self
                    .leaving
                    .is_some_and(|leaving| leaving.step == Step::Release)
                {
                    if answered {
                        self.gone();
                    } else {
                        self.give_again(now);
                    }
                }
            }
            Input::Restart => match self.life {
                Life::LoggedOut | Life::Paused { .. } => {
                    self.failures = 0;
                    self.claim(now);
                }
                _ => {}
            },
            Input::Tick => {}
        }
        self.go_on(now);
    }

    /// What to do next; `None` until the next input.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to come with [`Input::Tick`] if nothing else happens.
    #[must_use]
    pub fn wake(&self) -> Option<Micros> {
        let doubt = self
            .doubt
            .filter(|doubt| !doubt.asked && self.host > Gate::Shut)
            .map(|doubt| doubt.at);
        let leaving = self
            .leaving
            .filter(|leaving| !leaving.asked && !leaving.refused && self.can_leave())
            .map(|leaving| leaving.at);
        let life = match self.life {
            Life::Claiming { at, asked: false } if self.is_calm() => Some(at),
            Life::Paused { until, .. } if self.is_calm() => Some(until),
            _ => None,
        };
        [doubt, leaving, life, self.stuck_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        match self.life {
            Life::Standby => return State::Standby,
            Life::Claiming { .. } => return State::Claiming,
            _ => {}
        }
        if let Some(leaving) = self.leaving {
            return State::HandingOver(leaving.step);
        }
        if self.host == Gate::Shut {
            return State::Quiesced;
        }
        if let Some(doubt) = self.doubt {
            return if doubt.asked {
                State::Verifying
            } else {
                State::Uncertain
            };
        }
        match self.life {
            Life::Standby => State::Standby,
            Life::Claiming { .. } => State::Claiming,
            Life::Loading => State::Loading,
            Life::Waiting { .. } | Life::Connecting => State::Connecting,
            Life::Live { .. } if self.host == Gate::Committed => State::Held,
            Life::Live { .. } => State::Live,
            Life::Backoff => State::Backoff(self.attempts),
            Life::Paused { conflict: true, .. } => State::Conflict,
            Life::Paused { .. } => State::Error,
            Life::LoggedOut => State::LoggedOut,
        }
    }

    /// How much may leave, as far as the account is concerned. The host has to agree:
    /// [`Host::may_act`](super::host::Host::may_act).
    #[must_use]
    pub fn gate(&self) -> Gate {
        let working = self.engine && self.lease.is_some() && self.doubt.is_none();
        match self.leaving.map(|leaving| leaving.step) {
            _ if !working => Gate::Shut,
            None | Some(Step::Prepare) => self.host,
            Some(Step::Stop) => self.host.min(Gate::Committed),
            Some(Step::Release) => Gate::Shut,
        }
    }

    /// Under which it is ours, as far as we know.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        self.lease.map(|lease| lease.term)
    }

    /// Whether it has or should have a connection.
    #[must_use]
    pub const fn is_wanting(&self) -> bool {
        matches!(
            self.life,
            Life::Loading
                | Life::Waiting { .. }
                | Life::Connecting
                | Life::Live { .. }
                | Life::Backoff
        )
    }

    /// Whether it has one.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.life, Life::Live { .. })
    }

    /// Whether it is being given away.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// What follows by itself from how things stand.
    fn go_on(&mut self, now: Micros) {
        self.depart(now);
        if let (Some(doubt), Some(lease)) = (&mut self.doubt, self.lease)
            && !doubt.asked
            && self.host > Gate::Shut
            && doubt.at <= now
        {
            doubt.asked = true;
            self.ask += 1;
            self.act(Action::Verify(self.ask, lease.term));
        }
        let calm = self.is_calm();
        if let Life::Paused { until, .. } = self.life
            && calm
            && until <= now
        {
            self.claim(now);
        }
        if let Life::Claiming { at, asked: false } = self.life
            && calm
            && at <= now
        {
            self.life = Life::Claiming { at, asked: true };
            self.need(Need::Claim);
        }
        if let (Life::Loading, Some(lease)) = (self.life, self.lease)
            && !self.engine
            && calm
        {
            self.engine = true;
            self.gate = Gate::Shut;
            self.act(Action::Build(lease));
        }
        if let Life::Waiting { priority, queued } = self.life
            && queued != calm
        {
            self.life = Life::Waiting {
                priority,
                queued: calm,
            };
            self.need(if calm {
                Need::Turn(priority)
            } else {
                Need::NoTurn
            });
        }
        if self.stuck_at.is_some_and(|at| at <= now) {
            self.stuck_at = Some(now.plus(STUCK));
            if calm {
                self.need(Need::Stuck);
            }
        }
        let gate = self.gate();
        if gate != self.gate {
            self.gate = gate;
            if self.engine {
                self.act(Action::Gate(gate));
            }
        }
        let state = self.state();
        if state != self.state {
            self.state = state;
            self.act(Action::State(state));
        }
    }

    /// Whether something new may be started.
    fn is_calm(&self) -> bool {
        self.host == Gate::Open && self.doubt.is_none() && self.leaving.is_none()
    }

    fn act(&mut self, action: Action) {
        self.out.push_back(Output::Do(action));
    }

    fn need(&mut self, need: Need) {
        self.out.push_back(Output::Need(need));
    }

    /// Sets the life, and with it what depends on it.
    fn live(&mut self, life: Life) {
        if let Life::Waiting { queued: true, .. } = self.life
            && !matches!(life, Life::Waiting { .. })
        {
            self.need(Need::NoTurn);
        }
        if !matches!(
            life,
            Life::Waiting { .. } | Life::Connecting | Life::Backoff
        ) {
            self.stuck_at = None;
            self.attempts = 0;
        }
        self.life = life;
    }

    fn drop_engine(&mut self) {
        if std::mem::take(&mut self.engine) {
            self.gate = Gate::Shut;
            self.act(Action::Drop);
        }
    }

    /// Not ours any more, or given away.
    fn gone(&mut self) {
        self.drop_engine();
        self.live(Life::Standby);
        self.doubt = None;
        self.leaving = None;
        let epoch = self.lease.take().map_or(Epoch(0), |lease| lease.term.epoch);
        self.need(Need::Gone(epoch));
    }

    /// A (new) term, and after it a new engine.
    fn claim(&mut self, now: Micros) {
        self.drop_engine();
        self.doubt = None;
        self.live(Life::Claiming {
            at: now,
            asked: false,
        });
    }

    fn claim_again(&mut self, now: Micros) {
        if let Life::Claiming { asked: true, .. } = self.life {
            self.life = Life::Claiming {
                at: now.plus(AGAIN),
                asked: false,
            };
        }
    }

    fn owned(&mut self, lease: Lease, now: Micros) {
        // News of a term that is over, or that we have already.
        if self
            .lease
            .is_some_and(|old| lease.term.epoch <= old.term.epoch)
        {
            return;
        }
        self.drop_engine();
        self.lease = Some(lease);
        self.doubt = None;
        self.live(Life::Loading);
        if self.host == Gate::Shut {
            self.doubt(false, now);
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.asked = false;
        }
    }

    fn not_owned(&mut self, claim: Claim, now: Micros) {
        if !matches!(self.life, Life::Claiming { asked: true, .. }) {
            return;
        }
        match claim {
            // The fleet takes `Granted` apart; it cannot come here.
            Claim::Granted(lease) => self.owned(lease, now),
            Claim::Locked => self.claim_again(now),
            Claim::Held { .. } | Claim::Retired | Claim::Missing => self.gone(),
        }
    }

    fn ordered(&mut self, order: Order, now: Micros) {
        match order {
            Order::Hold => self.host = self.host.min(Gate::Committed),
            Order::Resume => {
                // What is shut is opened by `Verify` alone.
                if self.host == Gate::Committed {
                    self.host = Gate::Open;
                }
            }
            Order::Quiesce => {
                self.host = Gate::Shut;
                self.doubt(false, now);
            }
            Order::Verify => {
                self.host = Gate::Open;
                if let Some(doubt) = &mut self.doubt {
                    (doubt.asked, doubt.at) = (false, now);
                }
            }
            Order::Disconnect => {
                if self.engine {
                    self.act(Action::Disconnect);
                }
            }
            Order::Abandon => {
                if self.life != Life::Standby {
                    self.gone();
                }
                self.host = Gate::Shut;
            }
            Order::History(history) => {
                if self
                    .lease
                    .is_some_and(|lease| lease.term.history != history)
                {
                    self.void(now);
                }
            }
        }
    }

    /// The term does not count in the database's new history.
    fn void(&mut self, now: Micros) {
        if self.lease.is_some() && !matches!(self.life, Life::Claiming { .. }) {
            self.claim(now);
        }
    }

    /// Silence until the store has spoken.
    fn doubt(&mut self, replaced: bool, now: Micros) {
        if self.lease.is_none() || matches!(self.life, Life::Claiming { .. }) {
            return;
        }
        // An answer to an earlier question knows nothing of what made us doubt now.
        let replaced = replaced || self.doubt.is_some_and(|doubt| doubt.replaced);
        self.doubt = Some(Doubt {
            replaced,
            asked: false,
            at: now,
        });
    }

    fn verified(&mut self, ask: u32, verdict: Verdict, now: Micros) {
        let Some(doubt) = self.doubt.filter(|doubt| doubt.asked && ask == self.ask) else {
            return;
        };
        match verdict {
            Verdict::Ours => {
                self.doubt = None;
                if doubt.replaced {
                    self.conflict(now);
                }
            }
            Verdict::Fenced => self.gone(),
            Verdict::Unsealed => self.void(now),
            Verdict::Unreachable => {
                self.doubt = Some(Doubt {
                    asked: false,
                    at: now.plus(AGAIN),
                    ..doubt
                });
            }
        }
    }

    /// Ours, says the store; a stranger's, says the service.
    fn conflict(&mut self, now: Micros) {
        self.drop_engine();
        let pause = step(&CONFLICTS, self.conflicts);
        self.conflicts = self.conflicts.saturating_add(1);
        if self.conflicts >= ALERT {
            self.act(Action::Alert(self.conflicts));
        }
        self.live(Life::Paused {
            until: now.plus(pause),
            conflict: true,
        });
    }

    /// It did not start, or did not last.
    fn failed(&mut self, now: Micros) {
        self.clean_sheet(now);
        let pause = step(&FAILURES, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.pause(pause, now);
    }

    fn pause(&mut self, pause: Micros, now: Micros) {
        self.drop_engine();
        self.live(Life::Paused {
            until: now.plus(pause),
            conflict: false,
        });
    }

    fn clean_sheet(&mut self, now: Micros) {
        if let Life::Live { since } = self.life
            && now.since(since) >= GOOD
        {
            (self.failures, self.conflicts) = (0, 0);
        }
    }

    fn stopped(&mut self, reason: StopReason, now: Micros) {
        if !std::mem::take(&mut self.engine) {
            return;
        }
        self.gate = Gate::Shut;
        match reason {
            StopReason::Fenced(_) => self.gone(),
            // On its way out it does not matter any more what ended it.
            _ if self.leaving.is_some() => self.live(Life::Loading),
            StopReason::Replaced => {
                self.clean_sheet(now);
                self.live(Life::Loading);
                self.doubt(true, now);
            }
            StopReason::LoggedOut(_) => self.live(Life::LoggedOut),
            StopReason::Banned { seconds, .. } => {
                self.pause(Micros::from_secs(seconds.max(1)), now);
            }
            StopReason::LeaseExpired | StopReason::HistoryChanged(_) | StopReason::Shutdown => {
                self.claim(now);
            }
            StopReason::Outdated | StopReason::Refused(_) | StopReason::Store(_) => {
                self.failed(now);
            }
        }
    }

    fn link(&mut self, input: &Input, now: Micros) {
        if !self.engine {
            return;
        }
        match *input {
            Input::Wants { priority } => {
                let queued = matches!(self.life, Life::Waiting { queued: true, .. });
                self.live(Life::Waiting { priority, queued });
            }
            Input::Permit => {
                if let Life::Waiting { queued: true, .. } = self.life {
                    // The turn is used up, not given back.
                    self.life = Life::Connecting;
                    self.act(Action::Connect);
                }
            }
            Input::Up if !self.is_up() => self.live(Life::Live { since: now }),
            Input::Down => {
                self.clean_sheet(now);
                self.live(Life::Backoff);
                self.attempts = self.attempts.saturating_add(1);
                self.stuck_at.get_or_insert(now.plus(STUCK));
            }
            _ => {}
        }
    }

    /// Whether nothing of ours is under way that would have to end first.
    const fn can_leave(&self) -> bool {
        !matches!(self.life, Life::Claiming { asked: true, .. }) && !matches!(self.host, Gate::Shut)
    }

    fn leave(&mut self, to: Option<Incarnation>, now: Micros) {
        if self.life == Life::Standby {
            return;
        }
        match &mut self.leaving {
            None => {
                let step = if self.engine && to.is_some() {
                    Step::Prepare
                } else {
                    Step::Stop
                };
                if let (Step::Prepare, Some(to)) = (step, to) {
                    self.act(Action::Prepare(to));
                }
                self.leaving = Some(Leaving {
                    to,
                    step,
                    at: now.plus(PREPARE),
                    asked: false,
                    refused: false,
                });
                if step == Step::Stop {
                    self.stop(now);
                }
            }
            // A question that is out is answered first.
            Some(leaving) => {
                leaving.to = to;
                leaving.refused = false;
                if to.is_none() && leaving.step == Step::Prepare {
                    leaving.at = now;
                }
            }
        }
    }

    fn stop(&mut self, now: Micros) {
        if self.engine {
            self.act(Action::Stop);
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.step = Step::Stop;
            leaving.at = now.plus(STOP);
        }
    }

    /// The next step of giving it away, if it is time.
    fn depart(&mut self, now: Micros) {
        let Some(leaving) = self.leaving else {
            return;
        };
        if leaving.step == Step::Prepare && (leaving.at <= now || !self.engine) {
            self.stop(now);
        }
        let Some(leaving) = self.leaving else {
            return;
        };
        if leaving.step == Step::Stop && (leaving.at <= now || !self.engine) {
            self.drop_engine();
            self.leaving = Some(Leaving {
                step: Step::Release,
                at: now,
                ..leaving
            });
        }
        let can_leave = self.can_leave();
        let (Some(leaving), Some(lease)) = (&mut self.leaving, self.lease) else {
            // Nothing was ever ours.
            if can_leave {
                self.gone();
            }
            return;
        };
        if leaving.step == Step::Release
            && !leaving.asked
            && !leaving.refused
            && leaving.at <= now
            && can_leave
        {
            leaving.asked = true;
            let epoch = lease.term.epoch;
            let need = match leaving.to {
                Some(to) => Need::HandOver(epoch, to),
                None => Need::Release(epoch),
            };
            self.need(need);
        }
    }

    fn handed_over(&mut self, answer: Option<HandOver>, now: Micros) {
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        if leaving.step != Step::Release {
            return;
        }
        match answer {
            // Fenced also if an earlier question was carried out and its answer lost: it is not ours, that is enough.
            Some(HandOver::Done { .. } | HandOver::Fenced { .. }) => self.gone(),
            Some(HandOver::Refused) => {
                leaving.asked = false;
                if let Some(to) = leaving.to {
                    leaving.refused = true;
                    self.need(Need::Elsewhere(to));
                }
            }
            None => self.give_again(now),
        }
    }

    fn give_again(&mut self, now: Micros) {
        if let Some(leaving) = &mut self.leaving {
            (leaving.asked, leaving.at) = (false, now.plus(AGAIN));
        }
    }
}

/// The `n`th step, or the last one.
fn step(steps: &[Micros], n: u32) -> Micros {
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    steps.get(n).or(steps.last()).copied().unwrap_or(Micros(0))
}

#[cfg(test)]
mod tests;
