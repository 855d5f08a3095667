//! The phone's half of settings: it has the keys, shares them, changes things itself, and reads what others change.
//!
//! It reads each patch at the moment it is accepted, by the plain rules of [`syncd`](super::super::syncd). So what it
//! knows is what every device has to arrive at, version by version; a companion's patch that does not add up is booked as
//! a violation.

use super::super::books::{Stamp, Violation, hex};
use super::super::faults::{Kind, SettingsFault};
use super::super::{DeviceId, Now, Service, Timer};
use super::super::{accounts::Account, phone, syncd};
use super::{COLLECTIONS, Change, collection_of};
use baton_core::crypto::{KeyPair, Rng, hkdf_sha256};
use baton_core::proto::e2e;
use baton_core::proto::sync::{
    KeyId, SyncActionData, SyncdMutation, SyncdPatch, SyncdPlainTextRecord, SyncdSnapshotRecovery,
    SyncdVersion,
};
use baton_core::state::{Micros, UnixMillis};
use flate2::{Compression, write::GzEncoder};
use prost::Message as _;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

/// The peer data operation that asks for a collection in clear.
pub(in super::super) const RECOVERY: i32 = 8;

/// How late a key comes that comes late.
const LATE: Micros = Micros::from_secs(20);

/// What one account's phone knows of settings.
#[derive(Default)]
pub(crate) struct Primary {
    /// By epoch, from 1.
    keys: BTreeMap<u32, SharedKey>,
    ledgers: BTreeMap<&'static str, Ledger>,
    changes: Vec<SettingChange>,
}

/// A key that companions are given. Its content follows from the account's identity and the epoch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SharedKey {
    /// Since when, unix milliseconds.
    pub(super) at: i64,
    /// The phone does not have it any more.
    pub(super) forgotten: bool,
}

/// One collection.
#[derive(Default)]
struct Ledger {
    state: syncd::State,
    /// The hash at every version it has had.
    hashes: BTreeMap<u64, [u8; 128]>,
    /// The mutation that each setting was set by, by the MAC of its name.
    settings: BTreeMap<[u8; 32], (Vec<u8>, Vec<u8>)>,
    /// Somebody's patch did not add up; nothing after it can be verified.
    broken: bool,
}

/// One mutation, as the phone understood it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// In which collection.
    pub collection: &'static str,
    /// With which patch.
    pub version: u64,
    /// By which device.
    pub by: DeviceId,
    /// It was removed.
    pub removed: bool,
    /// Its name, a JSON array.
    #[serde(serialize_with = "as_text")]
    pub index: Vec<u8>,
    /// The serialized `SyncActionData`.
    #[serde(serialize_with = "as_hex")]
    pub data: Vec<u8>,
    /// When.
    pub at: Stamp,
}

fn as_text<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&String::from_utf8_lossy(bytes))
}

fn as_hex<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex(bytes))
}

/// Why a phone could not change a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhoneSettingError {
    /// No account has this phone number.
    #[error("there is no such phone")]
    NoSuchPhone,
    /// It names no collection.
    #[error("there is no such collection")]
    NoSuchCollection,
}

fn key_id(epoch: u32) -> Vec<u8> {
    // Two bytes of the device that made it, four of the epoch.
    [&[0, 0], epoch.to_be_bytes().as_slice()].concat()
}

fn key_data(identity: &KeyPair, epoch: u32) -> [u8; 32] {
    let secret = identity.private.to_bytes();
    let salt = if epoch == 1 {
        Vec::new()
    } else {
        epoch.to_be_bytes().to_vec()
    };
    *hkdf_sha256::<32>(&salt, secret.as_slice(), b"sim app state key")
}

impl Primary {
    /// The key of this id, if this phone has ever shared one.
    fn key(&self, identity: &KeyPair, id: &[u8]) -> Option<syncd::Keys> {
        let epoch = self.epoch(id)?;
        Some(syncd::Keys::expand(&key_data(identity, epoch)))
    }

    fn epoch(&self, id: &[u8]) -> Option<u32> {
        self.keys.keys().copied().find(|epoch| key_id(*epoch) == id)
    }

    /// The epoch that the phone writes under; begins with the first.
    fn newest(&mut self, now: Now) -> u32 {
        if self.keys.is_empty() {
            self.rotate(now);
        }
        self.keys.last_key_value().map_or(1, |(epoch, _)| *epoch)
    }

    fn rotate(&mut self, now: Now) -> u32 {
        let epoch = self.keys.last_key_value().map_or(1, |(last, _)| last + 1);
        let at = now
            .unix
            .0
            .max(self.keys.values().map(|key| key.at + 1).max().unwrap_or(0));
        self.keys.insert(
            epoch,
            SharedKey {
                at,
                forgotten: false,
            },
        );
        epoch
    }

    pub(in super::super) fn keys(&self) -> &BTreeMap<u32, SharedKey> {
        &self.keys
    }

    pub(in super::super) fn restore_keys(&mut self, keys: BTreeMap<u32, SharedKey>) {
        self.keys = keys;
    }
}

impl Service {
    /// The phone changes settings. Returns the version that each collection has then.
    ///
    /// # Errors
    ///
    /// If there is no such phone or collection.
    pub fn phone_change(
        &mut self,
        phone: &str,
        changes: &[Change],
        now: Now,
    ) -> Result<BTreeMap<&'static str, u64>, PhoneSettingError> {
        let account = self
            .accounts
            .get_mut(phone)
            .ok_or(PhoneSettingError::NoSuchPhone)?;
        let epoch = account.primary.newest(now);
        let keys = syncd::Keys::expand(&key_data(&account.phone.identity, epoch));
        let mut made: BTreeMap<&'static str, BTreeMap<Vec<u8>, _>> = BTreeMap::new();
        for change in changes {
            let (collection, removed, data) = change
                .mutation(now.unix.0)
                .ok_or(PhoneSettingError::NoSuchCollection)?;
            let index = data.index.clone().unwrap_or_default();
            // Of two changes of one setting the later one counts.
            made.entry(collection)
                .or_default()
                .insert(index, (removed, data));
        }
        let by = DeviceId::new(phone, 0);
        let mut versions = BTreeMap::new();
        for (collection, changes) in made {
            let (moved, mut mutations): (BTreeSet<Vec<u8>>, Vec<SyncdMutation>) = self
                .old_places(phone, collection, epoch, &changes)
                .into_iter()
                .unzip();
            for (index, (removed, data)) in &changes {
                // What stands only under an older key is removed there.
                let name = keys.index_mac(index);
                if *removed && moved.contains(index) && !self.stands(phone, collection, &name) {
                    continue;
                }
                mutations.push(keys.seal(&key_id(epoch), *removed, data, self.rng.bytes()));
            }
            let Some(patch) = self.phone_patch(phone, collection, &keys, epoch, mutations) else {
                continue;
            };
            let version = self.accept_patch(&by, collection, patch, now);
            versions.insert(collection, version);
        }
        self.settle(now);
        Ok(versions)
    }

    fn stands(&self, phone: &str, collection: &str, name: &[u8; 32]) -> bool {
        let account = self.accounts.get(phone);
        let ledger = account.and_then(|account| account.primary.ledgers.get(collection));
        ledger.is_some_and(|ledger| ledger.state.macs.contains_key(name))
    }

    /// Removals of what is changed from where it stands under older keys: a name is another one under another key.
    fn old_places(
        &mut self,
        phone: &str,
        collection: &'static str,
        newest: u32,
        changes: &BTreeMap<Vec<u8>, (bool, SyncActionData)>,
    ) -> Vec<(Vec<u8>, SyncdMutation)> {
        let Some(account) = self.accounts.get(phone) else {
            return Vec::new();
        };
        let Some(ledger) = account.primary.ledgers.get(collection) else {
            return Vec::new();
        };
        let mut removals = Vec::new();
        let older = account
            .primary
            .keys
            .keys()
            .filter(|epoch| **epoch != newest);
        for epoch in older {
            let keys = syncd::Keys::expand(&key_data(&account.phone.identity, *epoch));
            for (index, (_, data)) in changes {
                if ledger.state.macs.contains_key(&keys.index_mac(index)) {
                    let removal = keys.seal(&key_id(*epoch), true, data, self.rng.bytes());
                    removals.push((index.clone(), removal));
                }
            }
        }
        removals
    }

    /// A companion cannot put a collection together: the phone tells it what is in it, in clear (chapter 08.8).
    pub(in super::super) fn tell_collection(
        &mut self,
        to: &DeviceId,
        id: &str,
        name: &str,
        now: Now,
    ) {
        let Some(account) = self.accounts.get(&to.phone) else {
            return;
        };
        let Some(ledger) = account.primary.ledgers.get(name) else {
            return;
        };
        let epochs: Vec<(u32, syncd::Keys)> = account
            .primary
            .keys
            .keys()
            .map(|epoch| {
                let data = key_data(&account.phone.identity, *epoch);
                (*epoch, syncd::Keys::expand(&data))
            })
            .collect();
        let records = ledger.settings.iter().filter_map(|(mac, (index, data))| {
            let epoch = epochs
                .iter()
                .find(|(_, keys)| keys.index_mac(index) == *mac);
            Some(SyncdPlainTextRecord {
                value: Some(data.clone()),
                key_id: Some(key_id(epoch?.0)),
                mac: Some(ledger.state.macs.get(mac)?.to_vec()),
            })
        });
        let recovery = SyncdSnapshotRecovery {
            version: Some(SyncdVersion {
                version: Some(ledger.state.version),
            }),
            collection_name: Some(name.to_owned()),
            mutation_records: records.collect(),
            collection_lthash: Some(syncd::to_bytes(&ledger.state.hash).to_vec()),
        };
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing into memory does not fail.
        let packed = match gzip.write_all(&recovery.encode_to_vec()) {
            Ok(()) => gzip.finish().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let answer = e2e::PeerDataOperationRequestResponseMessage {
            r#type: Some(RECOVERY),
            stanza_id: Some(id.to_owned()),
            results: vec![e2e::PeerDataOperationResult {
                syncd_snapshot_fatal_recovery_response: Some(
                    e2e::SyncdSnapshotFatalRecoveryResponse {
                        collection_snapshot: Some(packed),
                        is_compressed: Some(true),
                    },
                ),
            }],
        };
        let content = e2e::ProtocolMessage {
            r#type: Some(
                e2e::protocol_message::Type::PeerDataOperationRequestResponseMessage.into(),
            ),
            peer_data_operation_request_response_message: Some(answer.encode_to_vec()),
            ..Default::default()
        };
        self.faults.count("recovery_told");
        self.phone_tells(to, content, now);
    }

    /// A patch of these mutations on top of what the phone has.
    fn phone_patch(
        &self,
        phone: &str,
        collection: &'static str,
        keys: &syncd::Keys,
        epoch: u32,
        mutations: Vec<SyncdMutation>,
    ) -> Option<SyncdPatch> {
        let ledger = self.accounts.get(phone)?.primary.ledgers.get(collection);
        let empty = syncd::State::default();
        let before = ledger.map_or(&empty, |ledger| &ledger.state);
        let version = before.version + 1;
        let (mut after, mut macs) = (before.clone(), Vec::new());
        for mutation in &mutations {
            let (index, value, _) = syncd::parts(mutation.record.as_ref()?)?;
            if let Some(old) = before.macs.get(&index) {
                syncd::subtract(&mut after.hash, old);
            }
            if mutation.operation == Some(0) {
                syncd::add(&mut after.hash, &value);
            }
            macs.push(value);
        }
        let snapshot_mac = keys.snapshot_mac(&after.hash, version, collection);
        let patch_mac = keys.patch_mac(&snapshot_mac, &macs, version, collection);
        Some(SyncdPatch {
            mutations,
            snapshot_mac: Some(snapshot_mac.to_vec()),
            patch_mac: Some(patch_mac.to_vec()),
            key_id: Some(KeyId {
                id: Some(key_id(epoch).into()),
            }),
            device_index: Some(0),
            ..Default::default()
        })
    }

    /// The phone is a moment faster than a companion that is about to change something.
    pub(super) fn phone_overtakes(
        &mut self,
        device: &DeviceId,
        collection: &'static str,
        now: Now,
    ) {
        let change = Change::Other {
            collection: collection.into(),
            index: vec!["overtaken".into(), (self.rng.next_u32() % 3).to_string()],
            remove: false,
        };
        // Both could fail only if there were no such account or collection.
        let _ = self.phone_change(&device.phone, &[change], now);
    }

    /// An accepted patch reaches the phone.
    pub(super) fn phone_reads_patch(
        &mut self,
        by: &DeviceId,
        collection: &'static str,
        version: u64,
        patch: &SyncdPatch,
        now: Now,
    ) {
        let Some(account) = self.accounts.get_mut(&by.phone) else {
            return;
        };
        let Account {
            primary,
            phone: phone::Phone { identity, .. },
            ..
        } = account;
        let mut ledger = primary.ledgers.remove(collection).unwrap_or_default();
        let verdict = if ledger.broken {
            Ok(Vec::new())
        } else {
            syncd::apply(collection, &mut ledger.state, patch, version, |id| {
                primary.key(identity, id)
            })
        };
        let mut missing = 0;
        match verdict {
            Ok(mutations) => {
                ledger
                    .hashes
                    .insert(version, syncd::to_bytes(&ledger.state.hash));
                for (clear, mutation) in mutations.into_iter().zip(&patch.mutations) {
                    let name = mutation
                        .record
                        .as_ref()
                        .and_then(syncd::parts)
                        .map(|(name, ..)| name);
                    let Some(name) = name else { continue };
                    missing += u32::from(clear.missing);
                    if clear.removed {
                        ledger.settings.remove(&name);
                    } else {
                        ledger
                            .settings
                            .insert(name, (clear.index.clone(), clear.data.clone()));
                    }
                    primary.changes.push(SettingChange {
                        collection,
                        version,
                        by: by.clone(),
                        removed: clear.removed,
                        index: clear.index,
                        data: clear.data,
                        at: now.into(),
                    });
                }
            }
            Err(why) => {
                ledger.broken = true;
                self.books.violation(Violation::BadPatch {
                    device: by.clone(),
                    collection: collection.to_owned(),
                    version,
                    why,
                    at: now.into(),
                });
            }
        }
        primary.ledgers.insert(collection, ledger);
        if missing > 0 && !by.is_phone() {
            let what = format!("{missing} settings of {collection} removed that were not there");
            self.anomaly(by, what, now);
        }
    }

    // ---- keys -------------------------------------------------------------------------------------------------

    /// What the phone tells a new companion: its keys, all of them.
    pub(in super::super) fn first_keys(&mut self, device: &DeviceId, now: Now) {
        if let Some(account) = self.accounts.get_mut(&device.phone) {
            account.primary.newest(now);
        }
        self.share_keys(device, None, now);
    }

    /// What every phone has set long before it gets a companion.
    pub(in super::super) fn first_settings(&mut self, phone: &str, now: Now) {
        let Some(account) = self.accounts.get(phone) else {
            return;
        };
        if self.settings_version(phone, "critical_block") == 0 {
            let name = account.phone.push_name.to_string();
            let changes = [
                Change::PushName { name },
                Change::Locale {
                    locale: "en_US".into(),
                },
            ];
            // Both could fail only if there were no such account or collection.
            let _ = self.phone_change(phone, &changes, now);
        }
    }

    /// The phone sends keys to a companion, those of these ids or all.
    pub fn share_keys(&mut self, device: &DeviceId, wanted: Option<&[Vec<u8>]>, now: Now) {
        if self
            .faults
            .strikes(device, Kind::Settings(SettingsFault::NoKeys))
            .is_some()
        {
            return;
        }
        if self
            .faults
            .strikes(device, Kind::Settings(SettingsFault::LateKeys))
            .is_some()
        {
            let at = now.mono.plus(LATE);
            return self.later(at, Timer::Keys(device.clone(), wanted.map(<[_]>::to_vec)));
        }
        let Some(account) = self.accounts.get(&device.phone) else {
            return;
        };
        let all = || {
            account
                .primary
                .keys
                .keys()
                .map(|epoch| key_id(*epoch))
                .collect()
        };
        let wanted: Vec<Vec<u8>> = wanted.map_or_else(all, <[_]>::to_vec);
        let keys = wanted.into_iter().take(256).map(|id| {
            let epoch = account.primary.epoch(&id);
            let key = epoch.and_then(|epoch| Some((epoch, account.primary.keys.get(&epoch)?)));
            let data = key.filter(|(_, key)| !key.forgotten).map(|(epoch, key)| {
                let indexes = account.devices.values().map(|device| device.key_index);
                e2e::AppStateSyncKeyData {
                    key_data: Some(key_data(&account.phone.identity, epoch).to_vec()),
                    fingerprint: Some(e2e::AppStateSyncKeyFingerprint {
                        raw_id: Some(account.raw_id),
                        current_index: Some(account.last_index),
                        device_indexes: std::iter::once(0).chain(indexes).collect(),
                    }),
                    timestamp: Some(key.at),
                }
            });
            e2e::AppStateSyncKey {
                key_id: Some(e2e::AppStateSyncKeyId { key_id: Some(id) }),
                key_data: data,
            }
        });
        let share = e2e::AppStateSyncKeyShare {
            keys: keys.collect(),
        };
        let content = e2e::ProtocolMessage {
            r#type: Some(e2e::protocol_message::Type::AppStateSyncKeyShare.into()),
            app_state_sync_key_share: Some(share),
            ..Default::default()
        };
        self.phone_tells(device, content, now);
    }

    /// The phone makes a new key, writes under it from now on, and shares it with its companions.
    pub fn rotate_key(&mut self, phone: &str, now: Now) {
        let Some(account) = self.accounts.get_mut(phone) else {
            return;
        };
        account.primary.newest(now);
        let id = key_id(account.primary.rotate(now));
        self.revision += 1;
        self.faults.count("rotate_key");
        let companions = self.accounts.devices_of(phone).into_iter();
        for device in companions.filter(|device| !device.is_phone()) {
            self.share_keys(&device, Some(std::slice::from_ref(&id)), now);
        }
        self.settle(now);
    }

    /// The phone loses all its keys but the newest; who asks for one of them gets an empty answer.
    pub fn forget_keys(&mut self, phone: &str) {
        if let Some(account) = self.accounts.get_mut(phone) {
            let last = account.primary.keys.len().saturating_sub(1);
            account
                .primary
                .keys
                .values_mut()
                .take(last)
                .for_each(|key| key.forgotten = true);
            self.faults.count("forget_keys");
            self.revision += 1;
        }
    }

    // ---- for judges -------------------------------------------------------------------------------------------

    /// The ids of the keys that an account's phone has told its companions, and still has.
    #[must_use]
    pub fn setting_keys(&self, phone: &str) -> Vec<Vec<u8>> {
        let keys = self
            .accounts
            .get(phone)
            .map(|account| &account.primary.keys);
        let known = keys.into_iter().flatten().filter(|(_, key)| !key.forgotten);
        known.map(|(epoch, _)| key_id(*epoch)).collect()
    }

    /// Every change that an account's phone has read, in order.
    #[must_use]
    pub fn setting_changes(&self, phone: &str) -> &[SettingChange] {
        self.accounts
            .get(phone)
            .map_or(&[], |account| &account.primary.changes)
    }

    /// The hash that a collection had at a version, if it ever had that version.
    #[must_use]
    pub fn settings_hash(&self, phone: &str, collection: &str, version: u64) -> Option<[u8; 128]> {
        if version == 0 {
            return Some([0; 128]);
        }
        let ledger = self.accounts.get(phone)?.primary.ledgers.get(collection)?;
        ledger.hashes.get(&version).copied()
    }

    /// The MAC of each value in a collection, by the MAC of its name.
    #[must_use]
    pub fn setting_macs(&self, phone: &str, collection: &str) -> BTreeMap<[u8; 32], [u8; 32]> {
        let ledger = self
            .accounts
            .get(phone)
            .and_then(|account| account.primary.ledgers.get(collection));
        ledger
            .map(|ledger| ledger.state.macs.clone())
            .unwrap_or_default()
    }

    /// The settings of a collection: name (a JSON array) and serialized `SyncActionData`.
    #[must_use]
    pub fn settings(&self, phone: &str, collection: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let ledger = self
            .accounts
            .get(phone)
            .and_then(|account| account.primary.ledgers.get(collection));
        ledger
            .map(|ledger| ledger.settings.values().cloned().collect())
            .unwrap_or_default()
    }

    // ---- after a restart --------------------------------------------------------------------------------------

    /// Every phone reads again what the service has kept.
    pub(in super::super) fn reread_all_settings(&mut self) {
        let beginning = Now {
            mono: Micros(0),
            unix: UnixMillis(0),
        };
        let phones: Vec<String> = self
            .accounts
            .iter()
            .map(|a| a.pn.user().to_owned())
            .collect();
        for phone in phones {
            self.reread_settings(&phone, beginning);
        }
    }

    fn reread_settings(&mut self, phone: &str, now: Now) {
        for collection in COLLECTIONS {
            let Some(account) = self.accounts.get_mut(phone) else {
                return;
            };
            let Some(log) = account.collections.0.get(collection) else {
                continue;
            };
            let patches: Vec<_> = log
                .patches
                .values()
                .map(|held| (held.by.clone(), held.patch.clone()))
                .collect();
            let first = log
                .patches
                .keys()
                .next()
                .copied()
                .unwrap_or(log.version + 1);
            if first > 1 {
                // What came before is only known as the records that are left, so those behind it are not told apart.
                let mut ledger = Ledger::default();
                ledger.state.version = log.version;
                let identity = &account.phone.identity;
                let primary = &account.primary;
                for record in log.records.values() {
                    let keys = |id: &[u8]| primary.key(identity, id);
                    let (Some((name, value, _)), Ok(clear)) =
                        (syncd::parts(record), syncd::open(record, false, &keys))
                    else {
                        continue;
                    };
                    syncd::add(&mut ledger.state.hash, &value);
                    ledger.state.macs.insert(name, value);
                    ledger.settings.insert(name, (clear.index, clear.data));
                }
                ledger
                    .hashes
                    .insert(log.version, syncd::to_bytes(&ledger.state.hash));
                account.primary.ledgers.insert(collection, ledger);
                continue;
            }
            for (version, (by, patch)) in (1..).zip(patches) {
                self.phone_reads_patch(&by, collection, version, &patch, now);
            }
        }
    }
}

/// Draws what an owner does with the phone.
impl Change {
    /// As [`Self::draw`], several.
    pub fn draw_some(rng: &mut Rng) -> Vec<Self> {
        (0..=rng.below(4)).map(|_| Self::draw(rng)).collect()
    }

    /// Whether it names a collection that there is.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        !matches!(self, Self::Other { collection, .. } if collection_of(collection).is_none())
    }
}
