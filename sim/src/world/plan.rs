//! What a seed has in store for a world, as data: drawn whole before the first step, printed, edited, saved and run again.
//!
//! Each concern is drawn from a stream of its own, so that another number of texts does not change the faults; and
//! nothing in the run draws from what the plan was drawn from, so that a plan with a fault less is the same run without
//! it (`chance`).

use super::{
    Crypto, Options, Step, World,
    bugs::Bug,
    cover::Point,
    weather::{Fault, Kind},
};
use crate::service::{
    self,
    history::{Damage, History, HistoryKind},
    settings::Change,
};
use baton_core::{
    crypto::Rng,
    flow::{Config, message_id},
    state::Micros,
};
use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroU32};

const SECOND: u64 = 1_000_000;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Decides everything that is not in the plan: delays within their bounds, keys.
    pub seed: u64,
    /// How many accounts.
    pub accounts: usize,
    /// Delay of the network in one direction, least and most, in microseconds.
    pub network: (u64, u64),
    /// Duration of a store call, least and most, in microseconds.
    pub store: (u64, u64),
    /// Limits of the engines that are smaller than usual.
    #[serde(default)]
    pub buggify: Buggify,
    /// A mistake of old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bug: Option<Bug>,
    /// And a layer of defence that is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_bug: Option<Bug>,
    /// Another cryptography than the seed has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crypto: Option<Crypto>,
    /// What people do.
    pub work: Vec<Task>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// When everything heals, in microseconds after everybody is linked.
    pub heals: u64,
    /// Whether everybody connects anew then. What a service has lost on the way comes again on a new connection only.
    pub reconnect: bool,
}

/// Something that somebody does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// When, in microseconds after everybody is linked.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub step: Step,
}

/// Limits and times of an engine that are unusual, and allowed: rare paths become common. What is absent is as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Buggify {
    /// Bytes of rows in memory: 1 keeps nothing that need not be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<NonZeroU32>,
    /// Batches under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batches_in_flight: Option<NonZeroU32>,
    /// Stanzas that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_queued: Option<NonZeroU32>,
    /// Bytes of stanzas and effects that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_bytes: Option<NonZeroU32>,
    /// Events that the consumer has not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_in_flight: Option<NonZeroU32>,
    /// Sends that the service has not acknowledged, and commands that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<NonZeroU32>,
    /// Times are this many times shorter: queries are given up early, pings leave often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hurry: Option<NonZeroU32>,
    /// Pre-keys in a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_keys: Option<NonZeroU32>,
}

impl Buggify {
    /// Puts the limits into a configuration.
    pub fn apply(&self, config: &mut Config) {
        let limits = &mut config.limits;
        let set = |place: &mut NonZeroU32, value: Option<NonZeroU32>| {
            if let Some(value) = value {
                *place = value;
            }
        };
        set(&mut limits.cache_bytes, self.cache_bytes);
        set(&mut limits.batches_in_flight, self.batches_in_flight);
        set(&mut limits.work_queued, self.work_queued);
        set(&mut limits.gate_bytes, self.gate_bytes);
        set(&mut limits.events_in_flight, self.events_in_flight);
        set(&mut limits.outbox, self.outbox);
        if let Some(hurry) = self.hurry {
            let timing = &mut config.timing;
            let shorter = |micros: Micros| Micros(micros.0 / u64::from(hurry.get()));
            timing.query = shorter(timing.query);
            timing.keepalive = (shorter(timing.keepalive.0), shorter(timing.keepalive.1));
            timing.silence = shorter(timing.silence);
            timing.offline = shorter(timing.offline);
        }
        if let Some(batch) = self.pre_keys {
            config.pre_keys.batch = batch.get();
            config.pre_keys.low = config.pre_keys.low.min(batch.get());
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        let mut one_in = |n: u64, value: u32| {
            let value = NonZeroU32::new(value);
            value.filter(|_| rng.below(n) == 0)
        };
        Self {
            cache_bytes: one_in(5, 1),
            batches_in_flight: one_in(5, 1),
            work_queued: one_in(8, 1),
            // Room for a message: a smaller gate never lets one through.
            gate_bytes: one_in(8, 4096),
            events_in_flight: one_in(5, 2),
            outbox: one_in(6, 2),
            hurry: one_in(6, 8),
            pre_keys: one_in(6, 3),
        }
    }
}

fn index(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap_or(0)
}

/// How much happens in a seed. What a seed costs grows with what is said in it, and what it finds hardly does: in the
/// time of one rich world ten small ones meet ten times as many combinations of faults, each with little beside them
/// that could hide what they do. But some mistakes show only where much goes on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Nearly all.
    Small,
    /// One in sixteen.
    Rich,
}

impl Size {
    fn draw(shape: &mut Rng) -> Self {
        match shape.below(16) {
            0 => Self::Rich,
            _ => Self::Small,
        }
    }

    fn accounts(self, shape: &mut Rng) -> usize {
        match self {
            Self::Small => 2 + usize::from(shape.below(8) == 0),
            Self::Rich => 2 + index(shape, 3),
        }
    }

    /// How long people have things to say, in microseconds.
    fn span(self, shape: &mut Rng) -> u64 {
        match self {
            Self::Small => SECOND * (1 + shape.below(4)),
            Self::Rich => 8 * SECOND,
        }
    }

    fn texts(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Small => 2 + rng.below(8),
            Self::Rich => 30 + rng.below(90),
        }
    }

    /// How many of them come later, when what went wrong is over, and what was forgotten meanwhile shows.
    fn late(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Small => 1 + rng.below(3),
            Self::Rich => 0,
        }
    }

    /// How often settings are changed. A small world has something to change if there is trouble with that, else rarely.
    fn settings(self, rng: &mut Rng, trouble: bool) -> u64 {
        match self {
            Self::Small if trouble => 2 + rng.below(4),
            Self::Small => rng.below(8).saturating_sub(4),
            Self::Rich => rng.below(24),
        }
    }

    /// How many parts of their past phones hand over.
    fn histories(self, rng: &mut Rng, trouble: bool) -> u64 {
        match self {
            Self::Small => u64::from(trouble || rng.below(8) == 0),
            Self::Rich => rng.below(3),
        }
    }

    /// How many faults there are at most: those of kinds that a seed does without are not drawn again.
    fn faults(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Small => 1 + rng.below(4),
            Self::Rich => rng.below(14),
        }
    }
}

/// The stream of a concern of a seed.
fn stream(seed: u64, label: &str) -> Rng {
    let mut bytes = [0xc4; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    Rng::from_seed(bytes).fork(label)
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut shape = stream(seed, "shape");
        let size = Size::draw(&mut shape);
        let accounts = size.accounts(&mut shape);
        let span = size.span(&mut shape);
        let store = (100, 1 + 5_000 * (1 + shape.below(8)));
        let network = (500, 10_000 << shape.below(5));
        // Three of four worlds have engines as usual.
        let buggify = match shape.below(4) {
            0 => Buggify::draw(&mut stream(seed, "buggify")),
            _ => Buggify::default(),
        };
        let faults = faults(seed, size, accounts, span);
        let trouble = |family| {
            let mut faults = faults.iter();
            faults.any(|fault: &Fault| fault.kind.family() == family)
        };
        let mut rng = stream(seed, "texts");
        let count = size.texts(&mut rng);
        let late = size.late(&mut rng);
        let mut work = texts(&mut rng, accounts, (count, late), span);
        let mut rng = stream(seed, "settings");
        let count = size.settings(&mut rng, trouble("settings"));
        work.extend(settings(&mut rng, accounts, count, span));
        let mut rng = stream(seed, "histories");
        let files = faults.iter().find(|fault| fault.kind.family() == "files");
        let count = size.histories(&mut rng, files.is_some());
        let mut histories = histories(&mut rng, size, accounts, count, span);
        if let (Size::Small, Some(fault), Some(task)) = (size, files, histories.first_mut()) {
            // Into the trouble.
            task.at = fault.at + 1;
            if let Step::History { account, history } = &mut task.step {
                *account = fault.account;
                history.inline = false;
            }
        }
        work.extend(histories);
        work.sort_by_key(|task| task.at);
        Self {
            seed,
            accounts,
            network,
            store,
            buggify,
            bug: None,
            second_bug: None,
            crypto: None,
            work,
            faults,
            // What lasts as long as a lease is over by then.
            heals: span + 8 * SECOND,
            reconnect: true,
        }
    }

    /// What its world encrypts with.
    #[must_use]
    pub fn crypto(&self) -> Crypto {
        self.crypto.unwrap_or_else(|| Crypto::of_seed(self.seed))
    }

    /// Decides what its world encrypts with.
    pub fn choose(&mut self, crypto: Crypto) {
        self.crypto = (crypto != Crypto::of_seed(self.seed)).then_some(crypto);
    }

    /// The world that the plan is for, before anything has happened in it.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            seed: self.seed,
            accounts: self.accounts,
            network: self.network,
            store: self.store,
            buggify: self.buggify,
            bug: self.bug,
            second_bug: self.second_bug,
            crypto: self.crypto(),
            // It costs as much as the run, so one world in 32 has it, for the judge of replays.
            record: self.seed.is_multiple_of(32),
            service: service::Options {
                silence: Micros::from_secs(90),
                ..Options::default().service
            },
            ..Options::default()
        }
    }

    /// A world in which everybody is linked, with the plan ahead.
    #[must_use]
    pub fn prepare(&self) -> World {
        let mut world = World::new(self.options());
        self.enter(&mut world);
        world
    }

    /// Links everybody and puts the plan into a new world.
    pub fn enter(&self, world: &mut World) {
        world.link_all();
        for Task { at, step } in &self.work {
            world.plan(*at, step.clone());
        }
        world.expect(&self.faults);
        world.plan(self.heals, Step::Heal);
        if self.reconnect {
            for account in 0..self.accounts {
                world.plan(self.heals + SECOND, Step::Cut { account });
            }
        }
    }

    /// Whether what was sent first arrives first.
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        !self.faults.iter().any(|fault| fault.kind.reorders())
    }

    /// Tasks of a kind.
    fn count(&self, is: impl Fn(&Step) -> bool) -> usize {
        self.work.iter().filter(|task| is(&task.step)).count()
    }
}

impl fmt::Display for Plan {
    /// The plan in words: a line about the world and the work, a line a fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            accounts,
            network,
            store,
            buggify,
            bug,
            second_bug,
            faults,
            heals,
            ..
        } = self;
        let texts = self.count(|step| matches!(step, Step::Send { .. }));
        let settings = self.count(|step| matches!(step, Step::Phone { .. } | Step::Change { .. }));
        let histories = self.count(|step| matches!(step, Step::History { .. }));
        writeln!(
            f,
            "seed {seed}: {accounts} accounts, {texts} texts, {settings} changes of settings, {histories} histories; network \
             {:.1} to {:.1} ms, store {:.1} to {:.1} ms, {}",
            network.0 as f64 / 1e3,
            network.1 as f64 / 1e3,
            store.0 as f64 / 1e3,
            store.1 as f64 / 1e3,
            self.crypto().words(),
        )?;
        if *buggify != Buggify::default() {
            let words = serde_json::to_string(buggify).unwrap_or_default();
            writeln!(f, "  unusual limits: {words}")?;
        }
        for bug in bug.iter().chain(second_bug) {
            writeln!(f, "  with the bug {bug}: {}", bug.words())?;
        }
        if self.work.len() <= 12 {
            for Task { at, step } in &self.work {
                writeln!(f, "  at {:.3} s: {}", *at as f64 / 1e6, step.words())?;
            }
        }
        for fault in faults {
            writeln!(f, "  {fault}")?;
        }
        write!(f, "  at {:.3} s everything heals", *heals as f64 / 1e6)?;
        if self.reconnect {
            write!(f, ", and everybody connects anew")?;
        }
        writeln!(f)
    }
}

/// Texts in all directions, evenly over a time, and some in the seconds after it.
fn texts(rng: &mut Rng, accounts: usize, (count, late): (u64, u64), span: u64) -> Vec<Task> {
    let mut tasks = Vec::new();
    for n in 0..count + late {
        let from = index(rng, accounts);
        let to = (from + 1 + index(rng, accounts - 1)) % accounts;
        let at = match n < count {
            true => n * span / count,
            false => span + SECOND + rng.below(6 * SECOND),
        };
        let id = message_id("", i64::try_from(at).unwrap_or(0), &rng.bytes()).to_string();
        let text = format!("text {n}");
        let step = Step::Send { from, to, id, text };
        tasks.push(Task { at, step });
    }
    tasks
}

/// Settings that are changed, on phones and through engines, until a second after the last text.
fn settings(rng: &mut Rng, accounts: usize, count: u64, span: u64) -> Vec<Task> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let account = index(rng, accounts);
        let changes = Change::draw_some(rng);
        let step = if rng.below(2) == 0 {
            Step::Phone { account, changes }
        } else {
            Step::Change { account, changes }
        };
        tasks.push(Task {
            at: rng.below(span + SECOND),
            step,
        });
    }
    tasks
}

/// What phones hand over in the course of three quarters of a time: most of it short, some of it twice, some of it
/// damaged.
fn histories(rng: &mut Rng, size: Size, accounts: usize, count: u64, span: u64) -> Vec<Task> {
    let mut tasks = Vec::new();
    let span = span * 3 / 4;
    for _ in 0..count {
        let account = index(rng, accounts);
        let mut history = history(rng);
        if size == Size::Small {
            history.bytes = history.bytes.min(4096);
            history.chunks = history.chunks.min(2);
        }
        let at = rng.below(span);
        let step = Step::History { account, history };
        tasks.push(Task { at, step });
        if rng.below(3) == 0 {
            tasks.push(Task {
                at: at + rng.below(span),
                step: Step::HistoryAgain { account },
            });
        }
    }
    tasks
}

/// A past, of any kind and size.
pub(super) fn history(rng: &mut Rng) -> History {
    let kinds = [
        HistoryKind::Initial,
        HistoryKind::Status,
        HistoryKind::Full,
        HistoryKind::Recent,
        HistoryKind::PushNames,
    ];
    let damages = [Damage::NotDeflate, Damage::Cut, Damage::NotHistory];
    let bytes = 1 << (4 + rng.below(13));
    History {
        kind: kinds[index(rng, kinds.len())],
        chunks: 1 + u32::try_from(rng.below(3)).unwrap_or(0),
        bytes,
        inline: bytes < 4096 && rng.below(2) == 0,
        seed: rng.next_u64(),
        damage: (rng.below(8) == 0).then(|| damages[index(rng, damages.len())]),
    }
}

/// Each seed has kinds of its own: most are off, so that they do not mask each other, and some come often.
fn swarm(rng: &mut Rng) -> Vec<(Kind, u64)> {
    let draw = |kind: &Kind| {
        let weight = match rng.below(8) {
            0..5 => 0,
            5 | 6 => kind.weight(),
            _ => 4 * kind.weight(),
        };
        (*kind, weight)
    };
    let mut kinds: Vec<_> = Kind::ALL.iter().map(draw).collect();
    // A database that loses commits is the strongest of all: it excuses a lot, so most seeds are without.
    if rng.below(3) > 0 {
        kinds.retain(|(kind, _)| !matches!(kind, Kind::FailOver | Kind::Restore));
    }
    kinds.retain(|(_, weight)| *weight > 0);
    kinds
}

fn faults(seed: u64, size: Size, accounts: usize, span: u64) -> Vec<Fault> {
    let kinds = swarm(&mut stream(seed, "swarm"));
    let mut rng = stream(seed, "faults");
    let mut aims = stream(seed, "aim");
    let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
    // Half of the seeds aim.
    let aiming = aims.below(2) == 0;
    let mut faults = Vec::new();
    // A file that fails again and again is given up, and then a past is lost: one trouble with files is enough.
    let mut files = false;
    for _ in 0..size.faults(&mut rng) {
        let mut point = rng.below(total.max(1));
        let account = index(&mut rng, accounts);
        let at = rng.below(span + SECOND);
        let count = 1 + u32::try_from(rng.below(3)).unwrap_or(0);
        let short = 200_000 + rng.below(4 * SECOND);
        // Around the life of a lease.
        let lease = 4 * SECOND + 800_000 + rng.below(3 * SECOND);
        let (aim, far) = (aims.below(2) == 0, index(&mut aims, Point::AIMS.len()));
        let found = kinds.iter().find(|(_, weight)| {
            let here = point < *weight;
            point = point.saturating_sub(*weight);
            here
        });
        let Some((kind, _)) = found else {
            continue;
        };
        if kind.family() == "files" && std::mem::replace(&mut files, true) {
            continue;
        }
        let lasts = match kind {
            Kind::Freeze | Kind::LostRenewal | Kind::LateCommit => lease,
            Kind::WallBack | Kind::WallForward => 1000 * short,
            Kind::FileSlow | Kind::FileGone => 0,
            _ => short,
        };
        let count = match kind {
            Kind::FileGone | Kind::Replaced => 1,
            Kind::Stutter => 3,
            // Often enough that the phone is asked in the end, and sometimes that the collection is given up.
            Kind::PatchMac | Kind::SnapshotMac | Kind::GarbagePatch => 4 * count,
            _ => count,
        };
        faults.push(Fault {
            at,
            aim: (aiming && aim).then(|| Point::AIMS[far]),
            account,
            kind: *kind,
            lasts,
            count,
        });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_data() {
        for seed in 0..200 {
            let plan = Plan::draw(seed);
            let text = serde_json::to_string_pretty(&plan).unwrap();
            assert_eq!(plan, serde_json::from_str::<Plan>(&text).unwrap());
            assert_eq!(plan, Plan::draw(seed));
        }
        assert_ne!(Plan::draw(1), Plan::draw(2));
    }

    /// No kind is forgotten, half of the seeds aim, and most kinds are off in a seed.
    #[test]
    fn seeds_swarm_and_aim() {
        let plans: Vec<Plan> = (0..1000).map(Plan::draw).collect();
        for kind in Kind::ALL {
            let with = |plan: &&Plan| plan.faults.iter().any(|fault| fault.kind == *kind);
            let count = plans.iter().filter(with).count();
            assert!(
                (5..600).contains(&count),
                "{kind:?} in {count} of 1000 seeds"
            );
        }
        for point in Point::AIMS {
            let aims = |fault: &Fault| fault.aim == Some(*point);
            assert!(
                plans.iter().any(|plan| plan.faults.iter().any(aims)),
                "{point:?}"
            );
        }
        let aiming = |plan: &&Plan| plan.faults.iter().any(|fault| fault.aim.is_some());
        let aiming = plans.iter().filter(aiming).count();
        assert!((300..600).contains(&aiming), "{aiming}");
    }
}
