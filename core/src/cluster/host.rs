//! A host's place in the cluster: joining, renewing, falling silent in time, leaving.
//!
//! A host holds one lease, however many accounts it keeps. It renews it every second and counts *on its own clock, from
//! before it sent the renewal*. Three answers are kept apart, because each means something else:
//!
//! | answer | means | then |
//! |---|---|---|
//! | renewed | others leave us alone for another while | go on |
//! | declared dead | others may have taken everything over already | drop everything, become somebody new, join again |
//! | none | nobody knows | careful after `soft`, silent after `hard`, which is before anybody may declare us dead |
//!
//! Presence (a session whose end tells others at once that we are gone) only makes others faster. Nothing here needs it.

use super::{Answer, Ask, Call, CallId, Timing, TimingError, budget::jittered};
use crate::{
    crypto::Rng,
    state::{Beat, Beaten, Change, HostInfo, HostState, Incarnation, Micros, Seal, View},
};
use std::collections::{BTreeMap, VecDeque};

/// So many times declared dead within [`WARY`] and a host stops taking accounts, as they would only be moved about.
const LOSSES: usize = 3;
const WARY: Micros = Micros::from_secs(300);

/// How long most accounts must be without a connection before it is taken for our network's fault.
const EGRESS: Micros = Micros::from_secs(15);
/// How long a host whose network fails stays away from accounts; doubles up to the second figure.
const EGRESS_PAUSE: (Micros, Micros) = (Micros::from_secs(60), Micros::from_secs(900));

/// After a notification, the next renewal (which shows gifts) is sent as soon as this long after the last.
const HASTE: Micros = Micros::from_millis(50);

/// How long a leaving host tries to say so.
const LAST_WORDS: Micros = Micros::from_secs(5);

/// Where a host's life stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Before [`Input::Start`].
    Booting,
    /// Waiting for a slot.
    Joining,
    /// Keeps accounts and takes more.
    Active,
    /// No renewal confirmed for `soft`: starts nothing new.
    Suspect,
    /// No renewal confirmed for `hard`: lets nothing out, keeps connections open.
    Quiesced,
    /// Declared dead. Will join again as somebody else.
    Fenced,
    /// Keeps what it has until others have taken it.
    Draining,
    /// Gone for good.
    Released,
}

/// Everything that can happen to a host.
#[derive(Clone, Debug)]
pub enum Input {
    /// Configuration and schema are as they should be: join.
    Start,
    /// The answer to a [`Call`] of ours. Others are ignored.
    Answer(CallId, Answer),
    /// Something told us that this incarnation does not live any more.
    Ended(Incarnation),
    /// The answer to [`Output::Watch`].
    Changed(Change),
    /// The watch could not be kept up.
    WatchFailed,
    /// Give everything away and take nothing; `leave` for good when that is done.
    Drain {
        /// Whether the process is to end.
        leave: bool,
    },
    /// Take accounts again (not after a `leave`).
    Undrain,
    /// Whoever looks after the accounts has none left: a host that is to leave goes.
    Empty,
    /// The machine was suspended for so long and the clock of `now` did not count it.
    ClockJump(Micros),
    /// Time has passed.
    Tick,
}

/// Everything a host can want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the store.
    Call(Call),
    /// `watch(who)` if the store can; answer with [`Input::Changed`] or [`Input::WatchFailed`], or never.
    Watch(Incarnation),
    /// For all accounts.
    Order(Order),
    /// There is a new [`Host::view`], or a hint that something changed hands.
    Look {
        /// Accounts have lost their holder, or may have: look for them now.
        scan: bool,
    },
    /// We may be the only ones who cannot connect: have one account tried elsewhere.
    Canary,
    /// The end. The process may exit.
    Exit,
}

/// What holds for all accounts of a host at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Finish what is committed, start nothing.
    Hold,
    /// Go on after [`Order::Hold`].
    Resume,
    /// Let nothing out but what keeps the connection alive.
    Quiesce,
    /// Go on after [`Order::Quiesce`], each once the store has confirmed that it is still ours.
    Verify,
    /// The store is away for too long: close connections.
    Disconnect,
    /// They are not ours any more: drop them without another word.
    Abandon,
    /// The database lost commits, or may have: terms of another history are void.
    History(Seal),
}

/// What a host tells others about its accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// It holds so many.
    pub accounts: u32,
    /// Of those, so many want a connection,
    pub wanting: u32,
    /// and so many have one.
    pub up: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Booting,
    /// Asks when?
    Joining {
        at: Micros,
    },
    In,
    Fenced {
        until: Micros,
    },
    Leaving {
        at: Micros,
        until: Micros,
    },
    Released,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Fresh,
    Suspect,
    Quiesced,
}

/// The host machine. [`Fleet`](super::fleet::Fleet) drives one; it can be driven alone as well.
#[derive(Debug)]
pub struct Host {
    info: HostInfo,
    timing: Timing,
    rng: Rng,
    who: Incarnation,
    phase: Phase,
    slot: Option<u16>,
    /// What the clock of `now` missed. All times in here have it added.
    missed: Micros,
    now: Micros,
    /// When the last renewal that was confirmed was sent.
    confirmed: Micros,
    health: Health,
    disconnected: bool,
    /// Joins, renewals and farewells that were asked for in the name of `who`, and when.
    asked: BTreeMap<CallId, Micros>,
    /// The one that is waited for.
    waiting: Option<(CallId, Micros)>,
    next_beat: Micros,
    last_beat: Micros,
    failing: bool,
    next_call: u64,
    view: View,
    /// The renewal that showed it.
    viewed: CallId,
    load: Load,
    /// Whether to leave after it.
    drain: Option<bool>,
    /// Somebody has left the wish in the store that everything be given away.
    wished_away: bool,
    losses: VecDeque<Micros>,
    /// Since when most accounts are without a connection.
    dark: Option<Micros>,
    egress_until: Micros,
    egress_pause: Micros,
    /// `None` while a watch is out.
    watch_at: Option<Micros>,
    out: VecDeque<Output>,
}

impl Host {
    /// A host that has not joined yet. `seed` also makes its incarnations, so it has to be unique to this process start.
    pub fn new(
        info: HostInfo,
        timing: Timing,
        seed: [u8; 32],
        now: Micros,
    ) -> Result<Self, TimingError> {
        timing.check()?;
        let mut rng = Rng::from_seed(seed);
        let who = incarnation(&mut rng);
        Ok(Self {
            info,
            timing,
            rng,
            who,
            phase: Phase::Booting,
            slot: None,
            missed: Micros(0),
            now,
            confirmed: now,
            health: Health::Fresh,
            disconnected: false,
            asked: BTreeMap::new(),
            waiting: None,
            next_beat: now,
            last_beat: now,
            failing: false,
            next_call: 1,
            view: View::default(),
            viewed: CallId(0),
            load: Load::default(),
            drain: None,
            wished_away: false,
            losses: VecDeque::new(),
            dark: None,
            egress_until: Micros(0),
            egress_pause: EGRESS_PAUSE.0,
            watch_at: None,
            out: VecDeque::new(),
        })
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input, now: Micros) {
        self.now = self.now.max(now.plus(self.missed));
        if let Input::ClockJump(by) = input {
            self.missed = self.missed.plus(by);
            self.now = self.now.plus(by);
        }
        // Time first: an answer that was waiting while the process slept must not hide how long that was.
        self.pass();
        match input {
            Input::Start => {
                if self.phase == Phase::Booting {
                    self.phase = Phase::Joining { at: self.now };
                }
            }
            Input::Answer(id, answer) => self.answered(id, answer),
            Input::Ended(who) => self.ended(who),
            Input::Changed(change) => self.changed(change),
            Input::WatchFailed => {
                let pause = jittered(Micros::from_secs(1), 50, &mut self.rng);
                self.watch_at = Some(self.now.plus(pause));
            }
            Input::Drain { leave } => {
                self.drain = Some(leave || self.drain == Some(true));
                if matches!(
                    self.phase,
                    Phase::Booting | Phase::Joining { .. } | Phase::Fenced { .. }
                ) && leave
                {
                    self.exit();
                }
                self.next_beat = self.now;
            }
            Input::Undrain => {
                if self.drain == Some(false) {
                    self.drain = None;
                    self.next_beat = self.now;
                }
                self.egress_until = Micros(0);
            }
            Input::Empty => {
                if self.phase == Phase::In && self.drain == Some(true) {
                    self.phase = Phase::Leaving {
                        at: self.now,
                        until: self.now.plus(LAST_WORDS),
                    };
                    self.waiting = None;
                }
            }
            Input::ClockJump(_) | Input::Tick => {}
        }
        self.pass();
    }

    /// What to do next; `None` until the next input.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to come with [`Input::Tick`] if nothing else happens, on the clock of `now`.
    #[must_use]
    pub fn wake(&self) -> Option<Micros> {
        let timing = &self.timing;
        let asking = |at: Micros| self.waiting.map_or(at, |(_, deadline)| deadline);
        let wake = match self.phase {
            Phase::Booting | Phase::Released => return None,
            Phase::Joining { at } => asking(at),
            Phase::Fenced { until } => until,
            Phase::Leaving { at, until } => asking(at).min(until),
            Phase::In => {
                let mut wake = asking(self.next_beat);
                let health = match self.health {
                    Health::Fresh => Some(timing.soft),
                    Health::Suspect => Some(timing.hard),
                    Health::Quiesced if !self.disconnected => Some(timing.hold),
                    Health::Quiesced => None,
                };
                if let Some(after) = health {
                    wake = wake.min(self.confirmed.plus(after));
                }
                wake.min(self.watch_at.unwrap_or(Micros(u64::MAX)))
            }
        };
        Some(Micros(wake.0.saturating_sub(self.missed.0)))
    }

    /// Where its life stands.
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Booting => State::Booting,
            Phase::Joining { .. } => State::Joining,
            Phase::Fenced { .. } => State::Fenced,
            Phase::Leaving { .. } => State::Draining,
            Phase::Released => State::Released,
            Phase::In => match self.health {
                Health::Quiesced => State::Quiesced,
                Health::Suspect => State::Suspect,
                Health::Fresh if self.is_closed() => State::Draining,
                Health::Fresh => State::Active,
            },
        }
    }

    /// Who it is at present. A host that was declared dead becomes somebody else.
    #[must_use]
    pub const fn who(&self) -> Incarnation {
        self.who
    }

    /// Its slot, while it is a member.
    #[must_use]
    pub const fn slot(&self) -> Option<u16> {
        self.slot
    }

    /// The cluster as the last renewal showed it.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// From when on nothing of any account may leave the process, on the clock of `now`; each renewal moves it on.
    /// `None`: nothing may leave now.
    #[must_use]
    pub fn until(&self) -> Option<Micros> {
        let until = self.confirmed.plus(self.timing.hard).0;
        (self.phase == Phase::In).then(|| Micros(until.saturating_sub(self.missed.0)))
    }

    /// Whether something may leave the process. Ask before each thing that does.
    #[must_use]
    pub fn may_act(&self, now: Micros) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Whether the store knows us: between joining and leaving.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.phase == Phase::In
    }

    /// Whether accounts may be taken and connections opened.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.phase == Phase::In && self.health == Health::Fresh
    }

    /// Whether it wants no more accounts and gives away what it has.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let wary = self.losses.len() >= LOSSES && self.has_active_others();
        self.drain.is_some() || self.wished_away || self.now < self.egress_until || wary
    }

    /// Whether it is to leave for good.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.drain == Some(true)
    }

    /// What the next renewal shall say.
    pub const fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// What the last renewal said, or the next one will say.
    #[must_use]
    pub const fn load(&self) -> Load {
        self.load
    }

    /// Whether the fleet is well connected while some of ours are not: then they may be better off elsewhere.
    #[must_use]
    pub fn others_are_better(&self) -> bool {
        let fine = u64::from(self.load.up) * 5 > u64::from(self.load.wanting) * 4;
        !fine && self.others_are_up() == Some(true) && self.has_active_others()
    }

    /// A call in our name. The caller sees to the answer.
    pub(super) fn call(&mut self, ask: Ask) -> Call {
        let id = CallId(self.next_call);
        self.next_call += 1;
        let within = match ask {
            Ask::Beat(_) => self.timing.deadline,
            _ => self.timing.call,
        };
        Call {
            id,
            who: self.who,
            ask,
            within,
            fresh: self.failing,
        }
    }

    pub(super) const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// How many calls there were so far.
    pub(super) const fn calls(&self) -> CallId {
        CallId(self.next_call)
    }

    pub(super) const fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// What time does by itself.
    fn pass(&mut self) {
        while self
            .losses
            .front()
            .is_some_and(|loss| loss.plus(WARY) <= self.now)
        {
            self.losses.pop_front();
        }
        if self
            .waiting
            .is_some_and(|(_, deadline)| deadline <= self.now)
        {
            self.failed();
        }
        match self.phase {
            Phase::Booting | Phase::Released => {}
            Phase::Joining { at } => {
                if at <= self.now && self.waiting.is_none() {
                    let (info, ttl) = (self.info.clone(), self.timing.ttl);
                    self.ask(Ask::Join { info, ttl });
                }
            }
            Phase::In => {
                self.weaken();
                if self.next_beat <= self.now && self.waiting.is_none() {
                    self.beat();
                }
                if self.watch_at.is_some_and(|at| at <= self.now) {
                    self.watch_at = None;
                    self.out.push_back(Output::Watch(self.who));
                }
            }
            Phase::Fenced { until } => {
                if until <= self.now {
                    self.phase = Phase::Joining { at: self.now };
                    self.pass();
                }
            }
            Phase::Leaving { at, until } => {
                if until <= self.now {
                    self.exit();
                } else if at <= self.now && self.waiting.is_none() {
                    self.ask(Ask::Leave);
                }
            }
        }
    }

    /// Lets the lease lose its strength.
    fn weaken(&mut self) {
        let age = self.now.since(self.confirmed);
        if self.health == Health::Fresh && age >= self.timing.soft {
            self.health = Health::Suspect;
            self.out.push_back(Output::Order(Order::Hold));
        }
        if self.health == Health::Suspect && age >= self.timing.hard {
            self.health = Health::Quiesced;
            self.out.push_back(Output::Order(Order::Quiesce));
        }
        if self.health == Health::Quiesced && age >= self.timing.hold && !self.disconnected {
            self.disconnected = true;
            self.out.push_back(Output::Order(Order::Disconnect));
        }
    }

    fn beat(&mut self) {
        let Load {
            accounts,
            wanting,
            up,
        } = self.load;
        let beat = Beat {
            draining: self.is_closed(),
            accounts,
            live: accounts.saturating_sub(wanting.saturating_sub(up)),
            ttl: self.timing.ttl,
        };
        self.last_beat = self.now;
        self.next_beat = self
            .now
            .plus(jittered(self.timing.renew, 10, &mut self.rng));
        self.ask(Ask::Beat(beat));
    }

    fn ask(&mut self, ask: Ask) {
        let call = self.call(ask);
        self.asked.insert(call.id, self.now);
        self.waiting = Some((call.id, self.now.plus(call.within)));
        // An answer can come after its deadline and still be true. Not after this, though.
        let stale = Micros(self.now.0.saturating_sub(self.timing.ttl.0));
        self.asked.retain(|_, sent| *sent >= stale);
        self.out.push_back(Output::Call(call));
    }

    /// No answer to what we wait for.
    fn failed(&mut self) {
        self.waiting = None;
        self.failing = true;
        let pause = match (self.phase, self.health) {
            (Phase::In, Health::Fresh | Health::Suspect) => self.timing.retry,
            _ => jittered(Micros::from_millis(1_250), 60, &mut self.rng),
        };
        let again = self.now.plus(pause);
        match &mut self.phase {
            Phase::In => self.next_beat = again,
            Phase::Joining { at } | Phase::Leaving { at, .. } => *at = again,
            Phase::Booting | Phase::Fenced { .. } | Phase::Released => {}
        }
    }

    fn answered(&mut self, id: CallId, answer: Answer) {
        let awaited = self.waiting.is_some_and(|(waiting, _)| waiting == id);
        if answer == Answer::Failed {
            if awaited {
                self.failed();
            }
            return;
        }
        // Not ours, or asked by who we were before.
        let Some(sent) = self.asked.remove(&id) else {
            return;
        };
        if awaited {
            self.waiting = None;
        }
        self.failing = false;
        match answer {
            Answer::Joined(slot) => self.joined(slot, sent),
            Answer::Beaten(Beaten::Renewed(view)) => self.renewed(id, view, sent),
            Answer::Beaten(Beaten::Dead) | Answer::NotMember => self.ended(self.who),
            Answer::Left => {
                if matches!(self.phase, Phase::Leaving { .. }) {
                    self.exit();
                }
            }
            _ => {}
        }
    }

    fn joined(&mut self, slot: u16, sent: Micros) {
        if !matches!(self.phase, Phase::Joining { .. }) {
            return;
        }
        self.phase = Phase::In;
        self.slot = Some(slot);
        self.confirmed = sent;
        self.health = Health::Fresh;
        self.disconnected = false;
        // At once: the first renewal shows who else is there.
        self.next_beat = self.now;
        self.watch_at = Some(self.now);
    }

    fn renewed(&mut self, id: CallId, view: View, sent: Micros) {
        if self.phase != Phase::In {
            return;
        }
        self.confirmed = self.confirmed.max(sent);
        let age = self.now.since(self.confirmed);
        // An answer that was long on its way says what was, not what is.
        if age < self.timing.soft {
            match std::mem::replace(&mut self.health, Health::Fresh) {
                Health::Fresh => {}
                Health::Suspect => self.out.push_back(Output::Order(Order::Resume)),
                Health::Quiesced => {
                    self.disconnected = false;
                    self.out.push_back(Output::Order(Order::Verify));
                }
            }
        } else if self.waiting.is_none() {
            self.next_beat = self.now;
        }
        if id > self.viewed {
            let first = self.viewed == CallId(0);
            if !first && view.history != self.view.history {
                self.out
                    .push_back(Output::Order(Order::History(view.history)));
            }
            self.viewed = id;
            if first {
                // Who joined at the same time as we is in the next view: it comes before the first look for accounts.
                let soon = Micros(self.timing.settle.0 / 5 * 4);
                self.next_beat = self.next_beat.min(self.now.plus(soon));
            }
            // Also if somebody else found out: the accounts are ours to share at once, not at the next look.
            let lived = |who| {
                let mut before = self.view.hosts.iter();
                before.any(|host| host.who == who && host.state.is_live())
            };
            let mut ended = view.hosts.iter().filter(|host| !host.state.is_live());
            let scan = first || !view.newly_dead.is_empty() || ended.any(|host| lived(host.who));
            self.view = view;
            self.hear_wish();
            self.judge_network();
            self.out.push_back(Output::Look { scan });
        }
    }

    /// What the roster says that is wished of us. The answer is the next renewal, which is sent at once: it tells those
    /// who would give us accounts.
    fn hear_wish(&mut self) {
        let me = self.view.hosts.iter().find(|host| host.who == self.who);
        let wished = me.is_some_and(|host| host.drain);
        if wished != self.wished_away {
            self.wished_away = wished;
            self.next_beat = self.now;
        }
    }

    fn changed(&mut self, change: Change) {
        self.watch_at = Some(self.now);
        if let Change::Gone(who) = change {
            for host in &mut self.view.hosts {
                if host.who == who {
                    host.state = HostState::Dead;
                }
            }
        }
        let soon = self.last_beat.plus(HASTE).max(self.now);
        self.next_beat = self.next_beat.min(soon);
        self.out.push_back(Output::Look { scan: true });
    }

    /// This incarnation is over. What it had is others' by now; nothing of it may be touched.
    fn ended(&mut self, who: Incarnation) {
        if who != self.who || matches!(self.phase, Phase::Released | Phase::Fenced { .. }) {
            return;
        }
        self.out.push_back(Output::Order(Order::Abandon));
        self.who = incarnation(&mut self.rng);
        self.slot = None;
        self.asked.clear();
        self.waiting = None;
        self.health = Health::Fresh;
        self.view = View::default();
        self.viewed = CallId(0);
        self.watch_at = None;
        self.load = Load::default();
        self.dark = None;
        // The wish was for who we were. Whoever still wishes it sees us come back, and says so again.
        self.wished_away = false;
        if self.is_leaving() {
            self.exit();
            return;
        }
        self.losses.push_back(self.now);
        let pause = jittered(self.timing.rejoin, 20, &mut self.rng);
        self.phase = Phase::Fenced {
            until: self.now.plus(pause),
        };
    }

    fn exit(&mut self) {
        if self.phase != Phase::Released {
            self.phase = Phase::Released;
            self.slot = None;
            self.waiting = None;
            self.out.push_back(Output::Exit);
        }
    }

    /// A host that reaches the database but not the service must not keep its accounts, if others can do better.
    fn judge_network(&mut self) {
        let Load { wanting, up, .. } = self.load;
        if wanting == 0 || u64::from(up) * 5 >= u64::from(wanting) {
            self.dark = None;
            return;
        }
        let since = *self.dark.get_or_insert(self.now);
        if self.now.since(since) < EGRESS || self.is_closed() || !self.has_active_others() {
            return;
        }
        match self.others_are_up() {
            Some(true) => {
                self.egress_until = self.now.plus(self.egress_pause);
                self.egress_pause =
                    Micros(self.egress_pause.0.saturating_mul(2)).min(EGRESS_PAUSE.1);
                self.dark = None;
                self.next_beat = self.now;
            }
            // Nobody else has accounts to compare with: one of ours will tell.
            None => {
                self.dark = Some(self.now);
                self.out.push_back(Output::Canary);
            }
            // Everybody is down. It is not us.
            Some(false) => {}
        }
    }

    /// Whether the accounts of others have connections; `None` if others have no accounts.
    fn others_are_up(&self) -> Option<bool> {
        let (mut accounts, mut live) = (0_u64, 0_u64);
        for host in &self.view.hosts {
            if host.who != self.who && host.state.is_live() {
                accounts += u64::from(host.accounts);
                live += u64::from(host.live);
            }
        }
        (accounts > 0).then_some(live * 5 > accounts * 4)
    }

    fn has_active_others(&self) -> bool {
        self.view
            .hosts
            .iter()
            .any(|host| host.who != self.who && host.state == HostState::Active)
    }
}

/// 63 random bits: the databases' integers are signed.
fn incarnation(rng: &mut Rng) -> Incarnation {
    Incarnation(rng.next_u64() >> 1)
}

#[cfg(test)]
mod tests;
