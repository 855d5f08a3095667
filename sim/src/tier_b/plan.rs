//! What a seed has in store: drawn before the first step, plain data, printable.

use super::{Kind, Setup, clock::generator};
use crate::{
    service::{
        DeviceId,
        faults::{Fault, FileFault, SettingsFault},
        settings::Change,
    },
    world::Crypto,
};
use baton_core::crypto::Rng;
use std::fmt;

/// A whole run, as data.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The world.
    pub setup: Setup,
    /// Requests to send: when (milliseconds after everybody is linked), from, to; phones are numbered behind accounts.
    pub texts: Vec<(u64, usize, usize)>,
    /// Changes of settings: when, of which account, by whom, what.
    pub changes: Vec<(u64, usize, By, Vec<Change>)>,
    /// When, and what.
    pub troubles: Vec<(u64, Trouble)>,
    /// When everything heals.
    pub span: u64,
}

/// Who changes settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The owner of the phone.
    Phone,
    /// Somebody who asks the process that has the account.
    Engine,
}

/// Something that goes wrong, for so many milliseconds where that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The process on a host is killed; another is started after a while.
    Kill { host: String, down: u64 },
    /// The machine loses its power.
    PowerLoss { host: String, down: u64 },
    /// The machine stands still.
    Freeze { host: String, millis: u64 },
    /// Nothing passes between two hosts.
    Cut { a: String, b: String, millis: u64 },
    /// Connections between two hosts break.
    Reset { a: String, b: String },
    /// Connections between two hosts die without a word.
    Silence { a: String, b: String },
    /// The database does not answer.
    Stall { millis: u64 },
    /// The database carries out what it does not answer.
    LoseAnswers { count: u32 },
    /// The database loses what it is asked.
    DropRequests { count: u32 },
    /// The wall clock of a host is set.
    Jump { host: String, millis: i64 },
    /// The service's process is replaced.
    RestartService { down: u64 },
    /// The process on the host is asked to go, and another version is started after a while.
    Upgrade { host: String, pause: u64 },
    /// The service misbehaves.
    Service(Fault),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { host, down } => write!(f, "{host} is killed and back after {down} ms"),
            Self::PowerLoss { host, down } => {
                write!(f, "{host} loses its power and is back after {down} ms")
            }
            Self::Freeze { host, millis } => write!(f, "{host} stands still for {millis} ms"),
            Self::Cut { a, b, millis } => write!(f, "{a} and {b} are cut off for {millis} ms"),
            Self::Reset { a, b } => write!(f, "connections between {a} and {b} are reset"),
            Self::Silence { a, b } => write!(f, "connections between {a} and {b} fall silent"),
            Self::Stall { millis } => write!(f, "the database stalls for {millis} ms"),
            Self::LoseAnswers { count } => write!(f, "{count} answers of the database are lost"),
            Self::DropRequests { count } => write!(f, "{count} requests to the database are lost"),
            Self::Jump { host, millis } => {
                write!(f, "the wall clock of {host} jumps by {millis} ms")
            }
            Self::RestartService { down } => write!(f, "the service is gone for {down} ms"),
            Self::Upgrade { host, pause } => {
                write!(f, "{host} is upgraded, {pause} ms between the versions")
            }
            Self::Service(fault) => write!(f, "the service misbehaves: {fault:?}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup {
            seed,
            hosts,
            accounts,
            phones,
            backend,
            tick,
            latency,
            slow,
            chunks,
            shuffle,
            bug,
            crypto,
        } = &self.setup;
        writeln!(
            f,
            "seed {seed} on {backend}: {hosts} hosts, {accounts} accounts, {phones} phones; tick {tick} ms, latency {} to \
             {} ms, store calls up to {slow} µs{}{}, {}; {} texts, {} changes of settings",
            latency.0,
            latency.1,
            if *chunks { ", streams in pieces" } else { "" },
            if *shuffle { ", hosts shuffled" } else { "" },
            crypto.words(),
            self.texts.len(),
            self.changes.len()
        )?;
        if let Some(bug) = bug {
            writeln!(f, "  with a bug: {bug:?}")?;
        }
        for (at, trouble) in &self.troubles {
            writeln!(f, "  at {at} ms: {trouble}")?;
        }
        writeln!(f, "  at {} ms: everything heals", self.span)
    }
}

fn index(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap_or(0)
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64, backend: Kind) -> Self {
        let mut rng = generator(seed, "plan");
        let accounts = 2 + index(&mut rng, 3);
        let setup = Setup {
            seed,
            hosts: 2 + index(&mut rng, 3),
            accounts,
            phones: 1 + index(&mut rng, 2),
            backend,
            // Each tick polls every host, whether there is anything to do or not: it is what an idle world costs.
            tick: [10, 10, 10, 10, 20, 5, 5, 2][index(&mut rng, 8)],
            latency: (1, 2 + rng.below(60)),
            slow: 500 * (1 + rng.below(30)),
            chunks: rng.below(3) > 0,
            shuffle: rng.below(4) > 0,
            bug: None,
            crypto: Crypto::of_seed(seed),
        };
        // Most worlds are small: in the time of one rich world three small ones meet three times as much trouble.
        let rich = rng.below(4) == 0;
        let (span, count) = match rich {
            true => (10_000 + rng.below(10_000), 20 + rng.below(40)),
            false => (4_000 + rng.below(6_000), 6 + rng.below(14)),
        };
        let mut texts = Vec::new();
        for _ in 0..count {
            let parties = accounts + setup.phones;
            let from = index(&mut rng, parties);
            // Phones do not write to each other.
            let to = match from {
                phone if phone >= accounts => index(&mut rng, accounts),
                _ => (from + 1 + index(&mut rng, parties - 1)) % parties,
            };
            texts.push((rng.below(span), from, to));
        }
        texts.sort_unstable();
        // Whole kinds of trouble are left out of a run, so that they do not mask each other.
        let kinds: Vec<u64> = (0..14).filter(|_| rng.below(3) == 0).collect();
        let mut troubles = Vec::new();
        if !kinds.is_empty() {
            for _ in 0..1 + rng.below(7) {
                let kind = kinds[index(&mut rng, kinds.len())];
                let at = rng.below(span);
                troubles.push((at, trouble(&mut rng, &setup, kind)));
            }
        }
        // Settings have draws of their own.
        let mut rng = generator(seed, "plan of settings");
        let mut changes = Vec::new();
        for _ in 0..rng.below(if rich { 24 } else { 8 }) {
            let by = [By::Phone, By::Engine][index(&mut rng, 2)];
            let account = index(&mut rng, accounts);
            let what = Change::draw_some(&mut rng);
            changes.push((rng.below(span), account, by, what));
        }
        changes.sort_by_key(|(at, ..)| *at);
        for _ in 0..rng.below(6) {
            let device = companion(index(&mut rng, accounts));
            let fault = trouble_with_settings(&mut rng, device);
            troubles.push((rng.below(span), Trouble::Service(fault)));
        }
        troubles.sort_by_key(|(at, _)| *at);
        Self {
            setup,
            texts,
            changes,
            troubles,
            span,
        }
    }

    /// Whether the service loses messages on the way, or acknowledgements.
    pub(crate) fn is_lossy(&self) -> bool {
        let mut troubles = self.troubles.iter();
        troubles.any(|(_, trouble)| matches!(trouble, Trouble::Service(_)))
    }

    /// Whether what was sent first arrives first. A ciphertext that is damaged or lost on the way comes later, and what
    /// was sent after it does not wait for it.
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        !self.troubles.iter().any(|(_, trouble)| {
            matches!(
                trouble,
                Trouble::Service(Fault::Corrupt { .. } | Fault::Drop { .. })
            )
        })
    }
}

fn companion(account: usize) -> DeviceId {
    DeviceId::new(&format!("1555000{account:04}"), 1)
}

fn trouble(rng: &mut Rng, setup: &Setup, kind: u64) -> Trouble {
    let host = super::host_name(index(rng, setup.hosts));
    let far = || super::service::SERVICE.0.to_owned();
    let db = || super::remote::DATABASE.0.to_owned();
    let device = companion(index(rng, setup.accounts));
    let long = 500 + rng.below(9_000);
    let count = 1 + u32::try_from(rng.below(4)).unwrap_or(0);
    match kind {
        0 => Trouble::Kill { host, down: long },
        1 => Trouble::PowerLoss { host, down: long },
        2 => Trouble::Freeze { host, millis: long },
        3 => Trouble::Cut {
            a: host,
            b: db(),
            millis: long,
        },
        4 => Trouble::Cut {
            a: host,
            b: far(),
            millis: long,
        },
        5 => Trouble::Reset { a: host, b: db() },
        6 => Trouble::Reset { a: host, b: far() },
        7 => Trouble::Silence { a: host, b: far() },
        8 => Trouble::Stall { millis: long / 2 },
        9 => Trouble::LoseAnswers { count },
        10 => Trouble::DropRequests { count },
        11 => Trouble::Jump {
            host,
            millis: i64::try_from(rng.below(7_200_000)).unwrap_or(0) - 3_600_000,
        },
        12 if rng.below(2) == 0 => Trouble::RestartService { down: long / 2 },
        12 => Trouble::Upgrade {
            host,
            pause: long / 2,
        },
        _ => Trouble::Service(match rng.below(5) {
            0 => Fault::Corrupt { device, count },
            1 => Fault::Drop { device, count },
            2 => Fault::WithholdAck { device, count },
            3 => Fault::IgnoreIq { device, count },
            _ => Fault::Close { device },
        }),
    }
}

/// What can go wrong about settings and files, and heals.
fn trouble_with_settings(rng: &mut Rng, device: DeviceId) -> Fault {
    let count = 1 + u32::try_from(rng.below(2)).unwrap_or(0);
    let settings = |what| Fault::Settings {
        device: device.clone(),
        what,
        count,
    };
    let file = |what| Fault::File {
        device: device.clone(),
        what,
        count,
    };
    match rng.below(21) {
        0..4 => settings(SettingsFault::Overtake),
        4 => settings(SettingsFault::FalseConflict),
        5 | 6 => settings(SettingsFault::LostAnswer),
        7 => settings(SettingsFault::Refuse),
        8..13 => settings(SettingsFault::ANSWERS[index(rng, SettingsFault::ANSWERS.len())]),
        13 => settings(SettingsFault::NoKeys),
        14 => settings(SettingsFault::LateKeys),
        15 => Fault::RotateKey { device },
        16 => Fault::DropPatches { device },
        17 => file(FileFault::Truncated),
        18 => file(FileFault::WrongMac),
        // The phone uploads it again, once.
        19 => Fault::File {
            device,
            what: FileFault::Gone,
            count: 1,
        },
        _ => file(if rng.below(2) == 0 {
            FileFault::BreaksOff
        } else {
            FileFault::Slow
        }),
    }
}
