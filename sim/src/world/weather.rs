//! Everything that can go wrong around an engine, by kind, and what of it really happened.
//!
//! A [`Fault`] is planned: when, to whom, what, for how long. When its time comes it strikes at once (a process is
//! killed), or lies over an account for a while (its connections are slow). Each time that something comes out
//! differently because of it, that is an *effect*, and is counted: a fault that was planned and had none has tested
//! nothing, and the report of the seed says so.

use super::{Happening, Step, World, account::ToEngine, chance::Stream, cover::Point};
use crate::service::faults::{Fault as Order, FileFault, SettingsFault};
use baton_core::{flow::Command, state::Micros};
use serde::{Deserialize, Serialize};
use std::fmt;

const SECOND: u64 = 1_000_000;

macro_rules! kinds {
    ($($family:literal { $($(#[doc = $doc:literal])+ $name:ident,)+ })+) => {
        /// What goes wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind { $($($(#[doc = $doc])+ $name,)+)+ }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// In words, to stand behind the name of an account.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $($(Self::$name => concat!($($doc),+).trim_ascii(),)+)+ }
            }

            /// Where it happens: `network`, `host`, `clock`, `database`, `service`, `settings`, `files`.
            #[must_use]
            pub const fn family(self) -> &'static str {
                match self { $($(Self::$name => $family,)+)+ }
            }
        }
    };
}

kinds! {
    "network" {
        /// Its messages take up to two seconds longer.
        Latency,
        /// Every third packet is lost and sent again later; what was sent behind it waits.
        Loss,
        /// Nothing from the service arrives until it is over.
        HoldIn,
        /// Nothing from the client arrives until it is over.
        HoldOut,
        /// Its connection dies without a word to either side.
        HalfOpen,
        /// Its connection is reset.
        Reset,
        /// Its connection breaks in the middle of a message from the client.
        BreakOut,
        /// Its connection breaks in the middle of a message from the service.
        BreakIn,
        /// Messages arrive in pieces.
        Pieces,
        /// Connections are refused.
        RefuseConnect,
        /// A connection is neither made nor refused.
        HangConnect,
        /// Connections are accepted, and closed at once.
        AcceptClose,
        /// A thin line: each message takes as long as it is large.
        SlowLink,
    }
    "host" {
        /// Its process is killed.
        Crash,
        /// Its machine loses its power: nobody closes its connection.
        PowerLoss,
        /// Its process stands still, about as long as a lease.
        Freeze,
        /// Its process stands still for a moment, again and again.
        Stutter,
        /// Its process is killed, and again whenever it has come up.
        RestartStorm,
        /// Its process stands still until it is declared dead, and another has had the account when it goes on.
        Rival,
        /// It is handed over in good order.
        HandOver,
    }
    "clock" {
        /// Its wall clock goes back.
        WallBack,
        /// Its wall clock goes forward.
        WallForward,
        /// Its lease is renewed, and it hears of it just before or after it is over.
        LateRenewal,
        /// Renewals of its lease are lost.
        LostRenewal,
    }
    "database" {
        /// Its store calls take long.
        Slow,
        /// The database answers nobody until it is over.
        Stall,
        /// Commits fail and change nothing.
        CommitError,
        /// Commits are carried out, and nobody hears of it.
        AnswerLost,
        /// Commits are rolled back for another's sake.
        Serialization,
        /// Reads fail.
        ReadError,
        /// The database takes no writes.
        ReadOnly,
        /// The disk is full: commits fail, leases are renewed.
        FullDisk,
        /// The database starts again: what it was asked is lost.
        DatabaseRestart,
        /// A commit arrives when another process has the account.
        LateCommit,
        /// The database fails over to a standby that is behind.
        FailOver,
        /// The database is restored from a backup.
        Restore,
    }
    "service" {
        /// The service says that another connection has replaced it.
        Replaced,
        /// The service ends the stream with 515.
        Restream,
        /// The service ends the stream with 503.
        Unavailable,
        /// The service refuses logins with 503.
        FailLogin,
        /// The service closes its connection.
        Close,
        /// The service is gone for a while, and has kept everything.
        ServiceRestart,
        /// Ciphertexts to it are damaged.
        Corrupt,
        /// Messages to it are lost; they come again on its next connection.
        Drop,
        /// Messages to it come twice.
        Duplicate,
        /// Messages to it overtake each other.
        Reorder,
        /// Its messages are taken and not acknowledged.
        WithholdAck,
        /// Its messages are acknowledged late.
        DelayAck,
        /// Its queries are not answered.
        IgnoreIq,
        /// Its one-time pre-keys are thrown away.
        ExpirePreKeys,
    }
    "settings" {
        /// The phone changes a collection just before its patch arrives.
        Overtake,
        /// A patch is refused as a conflict though there is none.
        FalseConflict,
        /// A patch is taken, and it does not hear of it.
        LostPatch,
        /// A collection is refused.
        RefuseSettings,
        /// The MAC of a patch is wrong.
        PatchMac,
        /// The MAC of a collection is wrong.
        SnapshotMac,
        /// A value is not what its MAC says.
        ValueMac,
        /// A name is not what its MAC says.
        IndexMac,
        /// A patch is left out.
        SkipPatch,
        /// Patches come again.
        StalePatch,
        /// A patch is none.
        GarbagePatch,
        /// The phone sends no keys.
        NoKeys,
        /// The phone sends keys late.
        LateKeys,
        /// The phone makes a new key.
        RotateKey,
        /// The service forgets all patches.
        DropPatches,
    }
    "files" {
        /// A file is cut off.
        FileTruncated,
        /// The MAC of a file is wrong.
        FileWrongMac,
        /// A file is gone.
        FileGone,
        /// A download breaks off.
        FileBreaksOff,
        /// A download is slow.
        FileSlow,
    }
}

impl Kind {
    /// How often it is drawn, beside the others.
    pub(crate) const fn weight(self) -> u64 {
        match self {
            Self::Crash => 16,
            Self::Reset | Self::PowerLoss | Self::Freeze | Self::Overtake => 4,
            Self::FailOver => 6,
            Self::Rival | Self::Slow | Self::LateRenewal | Self::LostRenewal | Self::LateCommit => {
                3
            }
            _ => 2,
        }
    }

    /// Whether what was sent first may arrive later than what was sent after it. A ciphertext that is damaged or lost on
    /// the way comes later, and what was sent after it does not wait for it; so does one that a session which went back
    /// in time cannot read.
    #[must_use]
    pub const fn reorders(self) -> bool {
        matches!(
            self,
            Self::Corrupt | Self::Drop | Self::Reorder | Self::FailOver | Self::Restore
        )
    }

    /// Whether it happens to a certain number of things, and not for a certain time.
    const fn is_counted(self) -> bool {
        matches!(
            self,
            Self::BreakOut
                | Self::BreakIn
                | Self::CommitError
                | Self::AnswerLost
                | Self::Serialization
                | Self::LateRenewal
                | Self::LateCommit
                | Self::HangConnect
                | Self::AcceptClose
        )
    }

    /// Whether it concerns everybody.
    pub(super) const fn is_everywhere(self) -> bool {
        matches!(
            self,
            Self::Stall
                | Self::ReadOnly
                | Self::FullDisk
                | Self::DatabaseRestart
                | Self::ServiceRestart
                | Self::FailOver
                | Self::Restore
        )
    }

    const fn settings(self) -> Option<SettingsFault> {
        Some(match self {
            Self::Overtake => SettingsFault::Overtake,
            Self::FalseConflict => SettingsFault::FalseConflict,
            Self::LostPatch => SettingsFault::LostAnswer,
            Self::RefuseSettings => SettingsFault::Refuse,
            Self::PatchMac => SettingsFault::PatchMac,
            Self::SnapshotMac => SettingsFault::SnapshotMac,
            Self::ValueMac => SettingsFault::ValueMac,
            Self::IndexMac => SettingsFault::IndexMac,
            Self::SkipPatch => SettingsFault::Skip,
            Self::StalePatch => SettingsFault::Stale,
            Self::GarbagePatch => SettingsFault::Garbage,
            Self::NoKeys => SettingsFault::NoKeys,
            Self::LateKeys => SettingsFault::LateKeys,
            _ => return None,
        })
    }

    const fn file(self) -> Option<FileFault> {
        Some(match self {
            Self::FileTruncated => FileFault::Truncated,
            Self::FileWrongMac => FileFault::WrongMac,
            Self::FileGone => FileFault::Gone,
            Self::FileBreaksOff => FileFault::BreaksOff,
            Self::FileSlow => FileFault::Slow,
            _ => return None,
        })
    }
}

/// Something that is planned to go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When, in microseconds after everybody is linked.
    pub at: u64,
    /// Not then, but at the next such moment in the account's life. If there is none, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aim: Option<Point>,
    /// To which account. What happens to the database or to the service happens to all.
    pub account: usize,
    /// What.
    pub kind: Kind,
    /// For how long, in microseconds: of the fault, or until somebody takes over.
    pub lasts: u64,
    /// To how many things, where that is what ends it.
    pub count: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |micros: u64| micros as f64 / 1e6;
        write!(f, "at {:.3} s", seconds(self.at))?;
        if let Some(point) = self.aim {
            write!(f, ", when {}", point.words())?;
        }
        if self.kind.is_everywhere() {
            write!(f, ": {}", self.kind.words())?;
        } else {
            write!(f, ", account {}: {}", self.account, self.kind.words())?;
        }
        if self.count > 1 {
            write!(f, " {} times.", self.count)?;
        }
        if self.lasts > 0 {
            write!(f, " [{:.3} s]", seconds(self.lasts))?;
        }
        Ok(())
    }
}

/// A fault that lies over an account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    fault: usize,
    kind: Kind,
    pub(crate) until: Micros,
    left: u32,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    faults: Vec<Fault>,
    fronts: Vec<Vec<Front>>,
    /// What each fault of the plan has done.
    effects: Vec<u64>,
    /// Faults that wait for their moment.
    pub(crate) armed: Vec<(usize, Point, usize)>,
    /// What the service had done of a kind to a device when a fault was ordered: found again at the end.
    orders: Vec<(usize, &'static str, crate::service::DeviceId, u64)>,
}

impl Weather {
    /// What lies over an account, if it strikes now. Counts it.
    pub(crate) fn strikes(&mut self, account: usize, kind: Kind, now: Micros) -> Option<Front> {
        let fronts = self.fronts.get_mut(account)?;
        // The common case, fair weather, has to cost nothing.
        if fronts.is_empty() {
            return None;
        }
        let front = fronts
            .iter_mut()
            .find(|front| front.kind == kind && front.left > 0 && now < front.until)?;
        front.left -= u32::from(kind.is_counted());
        self.effects[front.fault] += 1;
        Some(*front)
    }

    /// What lies over an account, without an effect.
    pub(crate) fn lies(&self, account: usize, kind: Kind, now: Micros) -> bool {
        self.fronts.get(account).is_some_and(|fronts| {
            let mut fronts = fronts.iter();
            fronts.any(|front| front.kind == kind && front.left > 0 && now < front.until)
        })
    }

    fn effect(&mut self, fault: usize) {
        if let Some(count) = self.effects.get_mut(fault) {
            *count += 1;
        }
    }

    fn clear(&mut self) {
        self.fronts.iter_mut().for_each(Vec::clear);
        self.armed.clear();
    }
}

impl World {
    /// Puts the faults of a plan in their places.
    pub(crate) fn expect(&mut self, faults: &[Fault]) {
        self.weather.faults = faults.to_vec();
        self.weather.effects = vec![0; faults.len()];
        self.weather.fronts = vec![Vec::new(); self.accounts.len()];
        for (index, fault) in faults.iter().enumerate() {
            self.plan(fault.at, Step::Strike { fault: index });
        }
    }

    /// The time of a fault has come; if it aims, it waits for its moment.
    pub(crate) fn come(&mut self, index: usize) {
        let Some(fault) = self.weather.faults.get(index) else {
            return;
        };
        match fault.aim {
            Some(point) => self.weather.armed.push((fault.account, point, index)),
            None => self.strike(index),
        }
    }

    /// Everything is over.
    pub(crate) fn fair_weather(&mut self) {
        self.weather.clear();
        for account in &mut self.accounts {
            account.slow = 0;
        }
    }

    /// A fault happens.
    pub(crate) fn strike(&mut self, index: usize) {
        let Some(fault) = self.weather.faults.get(index).cloned() else {
            return;
        };
        let Fault {
            account,
            kind,
            lasts,
            count,
            ..
        } = fault;
        if account >= self.accounts.len() {
            return;
        }
        self.tell("weather", || format!("account {account}: {}", kind.words()));
        self.note(&[b"strike", &(index as u64).to_le_bytes()]);
        let until = self.now.plus(Micros(lasts));
        let everywhere = kind.is_everywhere();
        let device = self.companion(account);
        if let Some(what) = kind.settings() {
            let of = device.clone();
            self.order(
                index,
                Order::Settings {
                    device,
                    what,
                    count,
                },
            );
            // Keys that everybody has are not asked for.
            if matches!(kind, Kind::NoKeys | Kind::LateKeys) {
                let now = self.service_now();
                self.service.fault(Order::RotateKey { device: of }, now);
                self.drain_service();
            }
            return;
        }
        if let Some(what) = kind.file() {
            self.order(
                index,
                Order::File {
                    device,
                    what,
                    count,
                },
            );
            return;
        }
        match kind {
            Kind::Crash | Kind::PowerLoss => {
                if kind == Kind::PowerLoss
                    && let Some(conn) = self.accounts[account].conn
                {
                    self.dead.insert(conn);
                }
                if self.accounts[account].engine.is_some() {
                    self.weather.effect(index);
                }
                self.crash(account, lasts);
            }
            Kind::RestartStorm => {
                for n in 0..3 {
                    let pause = lasts / 3;
                    let step = Step::Crash { account, pause };
                    self.plan(n * (pause + SECOND), step);
                    self.weather.effect(index);
                }
            }
            Kind::Reset => {
                if self.accounts[account].conn.is_some() {
                    self.weather.effect(index);
                }
                self.cut(account);
            }
            Kind::HalfOpen => {
                if let Some(conn) = self.accounts[account].conn {
                    self.dead.insert(conn);
                    self.weather.effect(index);
                }
            }
            Kind::Stutter => {
                let front = |until| Front {
                    fault: index,
                    kind: Kind::Freeze,
                    until,
                    left: 1,
                };
                // The moments between the standstills are when it works.
                self.weather.fronts[account].push(front(self.now.plus(Micros(lasts / 8))));
                if count > 0 {
                    let mut again = fault.clone();
                    again.count -= 1;
                    self.weather.faults[index] = again;
                    self.plan(lasts / 4, Step::Strike { fault: index });
                }
            }
            Kind::Rival => {
                // Long enough for the watching host to notice, whenever the last renewal was.
                let lasts = lasts.max(8 * SECOND);
                let front = Front {
                    fault: index,
                    kind: Kind::Freeze,
                    until: self.now.plus(Micros(lasts)),
                    left: 1,
                };
                self.weather.fronts[account].push(front);
                self.plan(lasts - SECOND / 10, Step::Rival { account });
            }
            Kind::HandOver => {
                if self.accounts[account].engine.is_some() {
                    self.weather.effect(index);
                    self.command(account, Command::Shutdown);
                    self.later(Micros(lasts + 1), Happening::Start { account });
                }
            }
            Kind::WallBack | Kind::WallForward => {
                let by = i64::try_from(lasts / 1000).unwrap_or(0);
                let by = if kind == Kind::WallBack { -by } else { by };
                self.accounts[account].wall += by;
                self.weather.effect(index);
            }
            Kind::FailOver | Kind::Restore => {
                self.plan(0, Step::Copy);
                let step = if kind == Kind::FailOver {
                    Step::FailOver
                } else {
                    Step::Restore
                };
                for n in 0..u64::from(count) {
                    self.plan(lasts + n * SECOND / 2, step.clone());
                    self.weather.effect(index);
                }
            }
            Kind::ServiceRestart => {
                self.service_restarts(index, until);
            }
            Kind::LateCommit => {
                // The process dies with the commit on its way: whoever comes next has the account when it arrives.
                self.front(index, account, kind, self.now.plus(Micros(SECOND)), 1);
                self.plan(
                    SECOND / 4,
                    Step::Crash {
                        account,
                        pause: lasts,
                    },
                );
            }
            Kind::Replaced => {
                let conflict = Some("replaced".to_owned());
                let fault = Order::StreamError {
                    device,
                    code: None,
                    conflict,
                };
                self.order(index, fault);
            }
            Kind::Restream | Kind::Unavailable => {
                let code = Some(if kind == Kind::Restream { 515 } else { 503 });
                self.order(
                    index,
                    Order::StreamError {
                        device,
                        code,
                        conflict: None,
                    },
                );
            }
            Kind::FailLogin => {
                let reason = 503;
                self.order(
                    index,
                    Order::FailLogin {
                        device,
                        reason,
                        count,
                    },
                );
                self.cut(account);
            }
            Kind::Close => self.order(index, Order::Close { device }),
            Kind::Corrupt => self.order(index, Order::Corrupt { device, count }),
            Kind::Drop => self.order(index, Order::Drop { device, count }),
            Kind::Duplicate => self.order(index, Order::Duplicate { device, count }),
            Kind::Reorder => self.order(index, Order::Reorder { device, count }),
            Kind::WithholdAck => self.order(index, Order::WithholdAck { device, count }),
            Kind::DelayAck => {
                let micros = lasts;
                self.order(
                    index,
                    Order::DelayAck {
                        device,
                        count,
                        micros,
                    },
                );
            }
            Kind::IgnoreIq => self.order(index, Order::IgnoreIq { device, count }),
            Kind::ExpirePreKeys => {
                let keep = 0;
                self.order(index, Order::ExpirePreKeys { device, keep });
            }
            Kind::RotateKey => self.order(index, Order::RotateKey { device }),
            Kind::DropPatches => self.order(index, Order::DropPatches { device }),
            Kind::HangConnect | Kind::AcceptClose | Kind::RefuseConnect => {
                self.front(index, account, kind, until, count);
                self.cut(account);
            }
            _ if everywhere => {
                for account in 0..self.accounts.len() {
                    self.front(index, account, kind, until, count);
                }
            }
            _ => {
                let until = if kind.is_counted() {
                    Micros(u64::MAX)
                } else {
                    until
                };
                self.front(index, account, kind, until, count);
            }
        }
    }

    fn front(&mut self, fault: usize, account: usize, kind: Kind, until: Micros, left: u32) {
        self.weather.fronts[account].push(Front {
            fault,
            kind,
            until,
            left: if kind.is_counted() { left } else { 1 },
        });
    }

    /// Orders trouble of the service.
    fn order(&mut self, index: usize, order: Order) {
        let before: u64 = self.service.faults().acted().values().sum();
        let waits = waiting(&order);
        if let Some((name, device)) = waits {
            let done = self.service.faults().acted_on(&device, name);
            self.weather.orders.push((index, name, device, done));
        }
        let now = self.service_now();
        self.service.fault(order.clone(), now);
        let after: u64 = self.service.faults().acted().values().sum();
        let at_once = matches!(order, Order::RotateKey { .. } | Order::DropPatches { .. });
        if after > before || at_once {
            self.weather.effect(index);
        }
        self.drain_service();
    }

    /// Everybody is thrown out and nobody is let in; keys, queues and everything else are still there afterwards.
    fn service_restarts(&mut self, index: usize, until: Micros) {
        for account in 0..self.accounts.len() {
            self.front(index, account, Kind::RefuseConnect, until, u32::MAX);
        }
        let conns: Vec<_> = self.conns.keys().copied().collect();
        for conn in conns {
            self.weather.effect(index);
            let Some((account, life)) = self.conns.remove(&conn) else {
                continue;
            };
            let now = self.service_now();
            self.service.disconnect(conn, now);
            let input = ToEngine::On(conn, Box::new(ToEngine::Closed));
            self.later(
                Micros(1000),
                Happening::Engine {
                    account,
                    life,
                    input,
                },
            );
        }
    }

    /// What weather adds to the way of a message of so many bytes.
    pub(crate) fn headwind(
        &mut self,
        account: usize,
        to_service: bool,
        bytes: usize,
    ) -> (u64, Micros) {
        let now = self.now;
        let mut late = 0;
        let mut not_before = Micros(0);
        if self.weather.fronts.get(account).is_none_or(Vec::is_empty) {
            return (late, not_before);
        }
        let whose = account as u64;
        if self.weather.strikes(account, Kind::Latency, now).is_some() {
            late += self.chance.between(Stream::Weather, whose, (0, 2 * SECOND));
        }
        if self.weather.lies(account, Kind::Loss, now) {
            let draw = self.chance.between(Stream::Weather, whose, (0, 11));
            if draw < 4 {
                self.weather.strikes(account, Kind::Loss, now);
                // Sent again after 200 ms, and again after twice as long.
                late += 200_000 << (draw / 2);
            }
        }
        if self.weather.strikes(account, Kind::SlowLink, now).is_some() {
            // 16 kbit/s.
            late += bytes as u64 * 500;
        }
        let hold = if to_service {
            Kind::HoldOut
        } else {
            Kind::HoldIn
        };
        if let Some(front) = self.weather.strikes(account, hold, now) {
            not_before = front.until;
        }
        (late, not_before)
    }

    /// What each fault of the plan has done, in its order.
    #[must_use]
    pub fn effects(&self) -> Vec<u64> {
        let mut effects = self.weather.effects.clone();
        for (index, name, device, before) in &self.weather.orders {
            let after = self.service.faults().acted_on(device, name);
            effects[*index] += after.saturating_sub(*before);
        }
        effects
    }
}

/// Under which name, and for whom, the service counts an order that it carries out later.
fn waiting(order: &Order) -> Option<(&'static str, crate::service::DeviceId)> {
    let (name, device) = match order {
        Order::Corrupt { device, .. } => ("corrupt", device),
        Order::Drop { device, .. } => ("drop", device),
        Order::Duplicate { device, .. } => ("duplicate", device),
        Order::Reorder { device, .. } => ("reorder", device),
        Order::WithholdAck { device, .. } => ("withhold_ack", device),
        Order::DelayAck { device, .. } => ("delay_ack", device),
        Order::FailLogin { device, .. } => ("fail_login", device),
        Order::IgnoreIq { device, .. } => ("ignore_iq", device),
        Order::Settings { device, what, .. } => (what.name(), device),
        Order::File { device, what, .. } => {
            let owner = crate::service::DeviceId::new(&device.phone, 0);
            return Some((what.name(), owner));
        }
        _ => return None,
    };
    Some((name, device.clone()))
}
