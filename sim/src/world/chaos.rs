//! A world with trouble in it, drawn from a seed: owners killed in the middle of anything, connections cut, slow stores,
//! a service that damages, loses and withholds. Then everything heals, and the judge compares the books.

use super::{Options, Step, Verdict, World, judge};
use crate::service::{
    DeviceId,
    faults::{Fault, FileFault, SettingsFault},
    history::{Damage, History, HistoryKind},
    settings::Change,
};
use baton_core::crypto::Rng;

const SECOND: u64 = 1_000_000;

/// Long enough for every retry, time-out and backoff to have had its turn after the last trouble.
const REST: u64 = 240 * SECOND;

/// Texts in all directions over `span` microseconds.
pub fn talk(world: &mut World, rng: &mut Rng, texts: u64, span: u64) {
    let count = world.accounts.len();
    for n in 0..texts {
        let from = index(rng, count);
        let to = (from + 1 + index(rng, count - 1)) % count;
        world.plan_text(n * span / texts, from, to, &format!("text {n}"));
    }
}

fn index(rng: &mut Rng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap_or(0)
}

/// Settings that are changed over `span` microseconds, on phones and through engines.
pub fn settle_down(world: &mut World, rng: &mut Rng, times: u64, span: u64) {
    let count = world.accounts.len();
    for _ in 0..times {
        let account = index(rng, count);
        let changes = Change::draw_some(rng);
        let step = if rng.below(2) == 0 {
            Step::Phone { account, changes }
        } else {
            Step::Change { account, changes }
        };
        world.plan(rng.below(span), step);
    }
}

/// What phones hand over in the course of `span` microseconds: most of it short, some of it twice, some of it damaged.
pub fn remember(world: &mut World, rng: &mut Rng, times: u64, span: u64) {
    let count = world.accounts.len();
    for _ in 0..times {
        let account = index(rng, count);
        let kinds = [
            HistoryKind::Initial,
            HistoryKind::Status,
            HistoryKind::Full,
            HistoryKind::Recent,
            HistoryKind::PushNames,
        ];
        let damages = [Damage::NotDeflate, Damage::Cut, Damage::NotHistory];
        let bytes = 1 << (4 + rng.below(13));
        let history = History {
            kind: kinds[index(rng, kinds.len())],
            chunks: 1 + u32::try_from(rng.below(3)).unwrap_or(0),
            bytes,
            inline: bytes < 4096 && rng.below(2) == 0,
            seed: rng.next_u64(),
            damage: (rng.below(8) == 0).then(|| damages[index(rng, damages.len())]),
        };
        let at = rng.below(span);
        world.plan(at, Step::History { account, history });
        if rng.below(3) == 0 {
            world.plan(at + rng.below(span), Step::HistoryAgain { account });
        }
    }
}

/// What can go wrong about settings and files, and heals.
fn trouble(rng: &mut Rng, device: DeviceId) -> Fault {
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

/// Lets the world come to rest and asks the judge.
pub fn rest(world: &mut World) -> Verdict {
    world.run(world.now.0 + REST);
    judge(world)
}

/// The plan of a seed, before anything of it has happened: a linked world with texts and trouble ahead.
#[must_use]
pub fn prepare(seed: u64) -> (World, Plan) {
    let mut bytes = [0xc4; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = Rng::from_seed(bytes);
    let accounts = 2 + index(&mut rng, 3);
    let store = (100, 1 + 5_000 * (1 + rng.below(8)));
    let mut world = World::new(Options {
        seed,
        accounts,
        store,
        ..Options::default()
    });
    world.link_all();
    let texts = 30 + rng.below(60);
    talk(&mut world, &mut rng.fork("texts"), texts, 8 * SECOND);
    let mut others = rng.fork("settings");
    let changes = others.below(24);
    settle_down(&mut world, &mut others, changes, 9 * SECOND);
    let histories = others.below(3);
    remember(&mut world, &mut others, histories, 6 * SECOND);
    let mut plan = Plan {
        accounts,
        texts,
        changes,
        histories,
        steps: Vec::new(),
    };
    for _ in 0..rng.below(8) {
        let account = index(&mut rng, accounts);
        let device = DeviceId::new(&world.accounts[account].phone, 1);
        let count = 1 + u32::try_from(rng.below(3)).unwrap_or(0);
        let step = match rng.below(12) {
            0..4 => Step::Crash {
                account,
                pause: rng.below(3 * SECOND),
            },
            4 | 5 => Step::Cut { account },
            6 => Step::Slow {
                account,
                by: rng.below(SECOND),
            },
            7 => Step::Fault(Fault::Corrupt { device, count }),
            8 => Step::Fault(Fault::Drop { device, count }),
            9 => Step::Fault(Fault::WithholdAck { device, count }),
            10 => Step::Fault(Fault::IgnoreIq { device, count }),
            _ => Step::Fault(Fault::Close { device }),
        };
        plan.steps.push((rng.below(9 * SECOND), step));
    }
    plan.steps.extend(losses(&mut rng.fork("losses")));
    // A file that fails again and again is given up, and then a past is lost: one trouble with files is enough.
    let mut files = false;
    for _ in 0..others.below(6) {
        let account = index(&mut others, accounts);
        let device = DeviceId::new(&world.accounts[account].phone, 1);
        let fault = trouble(&mut others, device);
        if matches!(fault, Fault::File { .. }) && std::mem::replace(&mut files, true) {
            continue;
        }
        plan.steps
            .push((others.below(9 * SECOND), Step::Fault(fault)));
    }
    for (at, step) in &plan.steps {
        world.plan(*at, step.clone());
    }
    // Then everything heals, and what was lost on the way comes again on a new connection.
    world.plan(11 * SECOND, Step::Heal);
    for account in 0..accounts {
        world.plan(12 * SECOND, Step::Slow { account, by: 0 });
        world.plan(13 * SECOND, Step::Cut { account });
    }
    (world, plan)
}

/// In one world of four the database loses commits, once or a few times: to a standby that is up to three seconds behind,
/// sometimes to the same one again, so that what was done about the first loss is lost too, and sometimes to a backup.
fn losses(rng: &mut Rng) -> Vec<(u64, Step)> {
    let mut steps = Vec::new();
    if rng.below(4) > 0 {
        return steps;
    }
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(8 * SECOND);
        steps.push((at, Step::Copy));
        let mut at = at + rng.below(3 * SECOND);
        for _ in 0..1 + rng.below(3) / 2 {
            let step = match rng.below(6) {
                0 => Step::Restore,
                _ => Step::FailOver,
            };
            steps.push((at, step));
            at += rng.below(2 * SECOND);
        }
    }
    steps
}

/// What a seed has in store, as data.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many accounts.
    pub accounts: usize,
    /// How many texts.
    pub texts: u64,
    /// How many times somebody changes settings.
    pub changes: u64,
    /// How many pasts are handed over.
    pub histories: u64,
    /// When (microseconds after everybody is linked) and what.
    pub steps: Vec<(u64, Step)>,
}

impl Plan {
    /// A ciphertext that is damaged or lost on the way comes later, and what was sent after it does not wait for it; so
    /// does one that a session which went back in time cannot read.
    fn keeps_order(&self) -> bool {
        !self.steps.iter().any(|(_, step)| {
            matches!(
                step,
                Step::Fault(Fault::Corrupt { .. } | Fault::Drop { .. })
                    | Step::FailOver
                    | Step::Restore
            )
        })
    }
}

/// Runs a seed to its end.
#[must_use]
pub fn chaos(seed: u64) -> (World, Plan, Verdict) {
    let (mut world, plan) = prepare(seed);
    let mut verdict = rest(&mut world);
    if !plan.keeps_order() {
        verdict.reordered = 0;
    }
    (world, plan, verdict)
}
