//! Faults to order: what a real service, a bad network or a bad day does to its clients. All off by default.
//!
//! A fault is counted where it acts ([`Faults::acted`]): a scenario that planned one and never met it proves nothing.

use super::DeviceId;
use baton_core::state::Micros;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One order. In JSON: `{"fault": "corrupt", "device": "15550000001:1", "count": 1}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// Damage the ciphertext of the next `count` messages to `device`.
    Corrupt {
        /// The receiver.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Lose the next `count` messages to `device` on the way; they come again on its next connection.
    Drop {
        /// The receiver.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Send the next `count` messages to `device` twice on one connection, which the real service never does.
    Duplicate {
        /// The receiver.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Hold each of the next `count` messages to `device` back until the one after it was sent.
    Reorder {
        /// The receiver.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Never ack the next `count` messages from `device`, though they are delivered.
    WithholdAck {
        /// The sender.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Ack the next `count` messages from `device` only after `micros`.
    DelayAck {
        /// The sender.
        device: DeviceId,
        /// How many.
        count: u32,
        /// How late.
        micros: u64,
    },
    /// Refuse the next `count` messages from `device` with an ack carrying this error.
    Refuse {
        /// The sender.
        device: DeviceId,
        /// How many.
        count: u32,
        /// The code, 479 for example.
        error: u16,
    },
    /// Cut `device`'s connection without a word.
    Close {
        /// Whose.
        device: DeviceId,
    },
    /// Send `<stream:error>` and close.
    StreamError {
        /// To whom.
        device: DeviceId,
        /// The `code`, if any.
        #[serde(default)]
        code: Option<u16>,
        /// The `type` of a `<conflict>` child, if any.
        #[serde(default)]
        conflict: Option<String>,
    },
    /// Answer the next `count` logins of `device` with `<failure>`.
    FailLogin {
        /// Whose.
        device: DeviceId,
        /// The `reason`.
        reason: u16,
        /// How many.
        count: u32,
    },
    /// Throw away `device`'s one-time pre-keys but the last `keep`.
    ExpirePreKeys {
        /// Whose.
        device: DeviceId,
        /// How many stay.
        #[serde(default)]
        keep: usize,
    },
    /// Leave the next `count` IQs of `device` without an answer.
    IgnoreIq {
        /// Whose.
        device: DeviceId,
        /// How many.
        count: u32,
    },
    /// Do something wrong about settings, `count` times.
    Settings {
        /// The companion that it happens to.
        device: DeviceId,
        /// What.
        what: SettingsFault,
        /// How many.
        count: u32,
    },
    /// Spoil the next `count` downloads of files that were left for an account's devices.
    File {
        /// Any device of it.
        device: DeviceId,
        /// How.
        what: FileFault,
        /// How many.
        count: u32,
    },
    /// The phone makes a new key for settings and writes under it.
    RotateKey {
        /// Any device of the account.
        device: DeviceId,
    },
    /// The phone loses its keys for settings, but for the newest.
    ForgetKeys {
        /// Any device of the account.
        device: DeviceId,
    },
    /// The service forgets all patches of settings: who is behind needs a snapshot.
    DropPatches {
        /// Any device of the account.
        device: DeviceId,
    },
}

/// What can go wrong about settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingsFault {
    /// The phone changes the collection just before the device's patch arrives.
    Overtake,
    /// A patch is refused as a conflict though there is none.
    FalseConflict,
    /// A patch is taken, and the device does not hear of it.
    LostAnswer,
    /// A collection is refused with an error.
    Refuse,
    /// The MAC of a patch is wrong.
    PatchMac,
    /// The MAC of the whole collection is wrong, in a patch or a snapshot.
    SnapshotMac,
    /// A value is not what its MAC says.
    ValueMac,
    /// A name is not what its MAC says.
    IndexMac,
    /// The first patch of an answer is missing.
    Skip,
    /// An answer begins with patches that the device has.
    Stale,
    /// A patch that is none.
    Garbage,
    /// The phone does not send keys that it should.
    NoKeys,
    /// The phone sends keys twenty seconds late.
    LateKeys,
}

impl SettingsFault {
    /// Those that spoil what is read.
    pub const ANSWERS: [Self; 7] = [
        Self::PatchMac,
        Self::SnapshotMac,
        Self::ValueMac,
        Self::IndexMac,
        Self::Skip,
        Self::Stale,
        Self::Garbage,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Overtake => "settings_overtake",
            Self::FalseConflict => "settings_false_conflict",
            Self::LostAnswer => "settings_lost_answer",
            Self::Refuse => "settings_refuse",
            Self::PatchMac => "settings_patch_mac",
            Self::SnapshotMac => "settings_snapshot_mac",
            Self::ValueMac => "settings_value_mac",
            Self::IndexMac => "settings_index_mac",
            Self::Skip => "settings_skip",
            Self::Stale => "settings_stale",
            Self::Garbage => "settings_garbage",
            Self::NoKeys => "settings_no_keys",
            Self::LateKeys => "settings_late_keys",
        }
    }
}

/// What can be wrong with a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFault {
    /// There is no such file.
    Gone,
    /// It ends in the middle, as if that were all.
    Truncated,
    /// The connection breaks in the middle.
    BreaksOff,
    /// Its MAC is wrong.
    WrongMac,
    /// It never ends.
    Endless,
    /// Half a second for each piece.
    Slow,
}

impl FileFault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Gone,
        Self::Truncated,
        Self::BreaksOff,
        Self::WrongMac,
        Self::Endless,
        Self::Slow,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gone => "file_gone",
            Self::Truncated => "file_truncated",
            Self::BreaksOff => "file_breaks_off",
            Self::WrongMac => "file_wrong_mac",
            Self::Endless => "file_endless",
            Self::Slow => "file_slow",
        }
    }
}

/// Orders not yet carried out, and how many were.
#[derive(Debug, Default)]
pub struct Faults {
    pending: BTreeMap<(DeviceId, Kind), Pending>,
    acted: BTreeMap<&'static str, u64>,
    on: BTreeMap<(DeviceId, &'static str), u64>,
}

/// The faults that lie in wait; the others act at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Corrupt,
    Drop,
    Duplicate,
    Reorder,
    WithholdAck,
    DelayAck,
    Refuse,
    FailLogin,
    IgnoreIq,
    Settings(SettingsFault),
    File(FileFault),
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::WithholdAck => "withhold_ack",
            Self::DelayAck => "delay_ack",
            Self::Refuse => "refuse",
            Self::FailLogin => "fail_login",
            Self::IgnoreIq => "ignore_iq",
            Self::Settings(what) => what.name(),
            Self::File(what) => what.name(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    count: u32,
    argument: u64,
}

impl Faults {
    /// How often each kind of fault really happened.
    #[must_use]
    pub fn acted(&self) -> &BTreeMap<&'static str, u64> {
        &self.acted
    }

    /// How often a kind of fault that lies in wait has happened to a device.
    #[must_use]
    pub fn acted_on(&self, device: &DeviceId, name: &'static str) -> u64 {
        let key = (device.clone(), name);
        self.on.get(&key).copied().unwrap_or_default()
    }

    /// Withdraws everything that has not happened yet: the world heals.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    pub(super) fn arm(&mut self, device: DeviceId, kind: Kind, count: u32, argument: u64) {
        if count > 0 {
            self.pending
                .insert((device, kind), Pending { count, argument });
        }
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.acted.entry(name).or_default() += 1;
    }

    /// Whether the fault happens now; its argument if it does.
    pub(super) fn strikes(&mut self, device: &DeviceId, kind: Kind) -> Option<u64> {
        // The common case, no faults at all, must not cost a key.
        if self.pending.is_empty() {
            return None;
        }
        let key = (device.clone(), kind);
        let pending = self.pending.get_mut(&key)?;
        pending.count -= 1;
        let argument = pending.argument;
        if pending.count == 0 {
            self.pending.remove(&key);
        }
        self.count(kind.name());
        *self.on.entry((device.clone(), kind.name())).or_default() += 1;
        Some(argument)
    }

    /// As [`Self::strikes`], for a fault whose argument is a time.
    pub(super) fn delays(&mut self, device: &DeviceId) -> Option<Micros> {
        self.strikes(device, Kind::DelayAck).map(Micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_ordered() {
        let (mut faults, device) = (Faults::default(), DeviceId::new("15550000001", 1));
        faults.arm(device.clone(), Kind::Corrupt, 2, 0);
        faults.arm(device.clone(), Kind::DelayAck, 1, 7);
        assert_eq!(
            faults.strikes(&DeviceId::new("15550000001", 2), Kind::Corrupt),
            None
        );
        assert_eq!(faults.strikes(&device, Kind::Corrupt), Some(0));
        assert_eq!(faults.strikes(&device, Kind::Corrupt), Some(0));
        assert_eq!(faults.strikes(&device, Kind::Corrupt), None);
        assert_eq!(faults.delays(&device), Some(Micros(7)));
        assert_eq!(faults.acted().get("corrupt"), Some(&2));
    }

    #[test]
    fn orders_are_json() {
        let order = r#"{"fault":"stream_error","device":"15550000001:1","code":503}"#;
        let fault: Fault = serde_json::from_str(order).expect("parsed");
        assert_eq!(
            fault,
            Fault::StreamError {
                device: DeviceId::new("15550000001", 1),
                code: Some(503),
                conflict: None
            }
        );
    }
}
