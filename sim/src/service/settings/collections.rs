//! The service's half of settings (chapters 08.7, 08.9): sealed records, counted.
//!
//! A patch is taken if it was made on top of the version there is, and refused with what its maker has missed if not.
//! Nothing is verified: the service has no keys. From time to time the records are put into a snapshot, a file; a device
//! that has nothing gets the snapshot and what came after it, or everything if it is little.

use super::super::faults::{Kind, SettingsFault};
use super::super::files::{FileKind, Files, Reference};
use super::super::iq::{Answer, IqError};
use super::super::queue::Class;
use super::super::{DeviceId, Now, Options, Service};
use super::collection_of;
use baton_core::crypto::Rng;
use baton_core::jid::Jid;
use baton_core::proto::sync::{
    ExternalBlobReference, KeyId, SyncdMutations, SyncdPatch, SyncdRecord, SyncdSnapshot,
    SyncdVersion,
};
use baton_core::wire::node::Node;
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;

/// All five of one account.
#[derive(Default)]
pub(crate) struct Collections(pub(super) BTreeMap<&'static str, Log>);

/// One of them.
#[derive(Default)]
pub(crate) struct Log {
    pub(super) version: u64,
    /// By version; the oldest may have been dropped.
    pub(super) patches: BTreeMap<u64, Patch>,
    /// What there is now, by the MAC of its name.
    pub(super) records: BTreeMap<Bytes, SyncdRecord>,
    /// MAC of the last patch's state, and the key it is under.
    pub(super) mac: Option<(Bytes, Option<KeyId>)>,
    snapshot: Option<Snapshot>,
}

/// An accepted patch, its mutations in it.
pub(super) struct Patch {
    pub(super) by: DeviceId,
    pub(super) patch: SyncdPatch,
    /// Where its mutations are, if they are too many.
    file: Option<Reference>,
}

struct Snapshot {
    version: u64,
    content: SyncdSnapshot,
    file: Option<Reference>,
}

impl Log {
    /// Takes a patch whose mutations are in it; its version is the next.
    pub(super) fn append(&mut self, by: &DeviceId, mut patch: SyncdPatch, snapshot_every: u64) {
        self.version += 1;
        for mutation in &patch.mutations {
            let Some(record) = &mutation.record else {
                continue;
            };
            let name = record.index.as_ref().and_then(|index| index.blob.clone());
            let Some(name) = name else { continue };
            match mutation.operation {
                Some(1) => self.records.remove(&name),
                _ => self.records.insert(name, record.clone()),
            };
        }
        let mac = patch.snapshot_mac.clone().unwrap_or_default();
        self.mac = Some((mac.into(), patch.key_id.clone()));
        patch.version = Some(SyncdVersion {
            version: Some(self.version),
        });
        let by = by.clone();
        self.patches.insert(
            self.version,
            Patch {
                by,
                patch,
                file: None,
            },
        );
        if snapshot_every > 0 && self.version.is_multiple_of(snapshot_every) {
            self.take_snapshot();
        }
    }

    fn take_snapshot(&mut self) {
        let Some((mac, key_id)) = &self.mac else {
            return;
        };
        self.snapshot = Some(Snapshot {
            version: self.version,
            content: SyncdSnapshot {
                version: Some(SyncdVersion {
                    version: Some(self.version),
                }),
                records: self.records.values().cloned().collect(),
                mac: Some(mac.to_vec()),
                key_id: key_id.clone(),
            },
            file: None,
        });
    }

    /// Forgets all patches; whoever has not seen them needs a snapshot.
    pub(super) fn drop_patches(&mut self) {
        self.take_snapshot();
        self.patches.clear();
    }
}

/// A collection as bytes.
pub(crate) struct SavedLog<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: u64,
    /// `SyncdRecord`s, if not all patches are kept.
    pub(crate) records: Vec<Vec<u8>>,
    /// MAC of the last state, and the id of its key.
    pub(crate) mac: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// `SyncdPatch`es with their makers.
    pub(crate) patches: Vec<(DeviceId, Vec<u8>)>,
}

impl Collections {
    /// What is to survive a restart. Snapshots and files are made again.
    pub(crate) fn saved(&self) -> impl Iterator<Item = SavedLog<'_>> {
        self.0.iter().map(|(name, log)| {
            let key =
                |id: &Option<KeyId>| id.as_ref().and_then(|id| Some(id.id.as_ref()?.to_vec()));
            SavedLog {
                name,
                version: log.version,
                records: log
                    .records
                    .values()
                    .map(prost::Message::encode_to_vec)
                    .collect(),
                mac: log.mac.as_ref().map(|(mac, id)| (mac.to_vec(), key(id))),
                patches: log
                    .patches
                    .values()
                    .map(|held| (held.by.clone(), held.patch.encode_to_vec()))
                    .collect(),
            }
        })
    }

    /// Takes one back; none if it is damaged.
    pub(crate) fn restore(&mut self, saved: SavedLog<'_>) -> Option<()> {
        let mut log = Log {
            version: saved.version,
            ..Log::default()
        };
        for record in saved.records {
            let record = SyncdRecord::decode(Bytes::from(record)).ok()?;
            let name = record.index.as_ref()?.blob.clone()?;
            log.records.insert(name, record);
        }
        let key = |id: Vec<u8>| KeyId {
            id: Some(id.into()),
        };
        log.mac = saved.mac.map(|(mac, id)| (mac.into(), id.map(key)));
        let first = (saved.version + 1).checked_sub(saved.patches.len() as u64)?;
        for (version, (by, patch)) in (first..).zip(saved.patches) {
            let patch = SyncdPatch::decode(Bytes::from(patch)).ok()?;
            log.patches.insert(
                version,
                Patch {
                    by,
                    patch,
                    file: None,
                },
            );
        }
        if first > 1 {
            log.take_snapshot();
        }
        self.0.insert(collection_of(saved.name)?, log);
        Some(())
    }
}

impl Reference {
    fn to_syncd(&self) -> ExternalBlobReference {
        ExternalBlobReference {
            media_key: Some(self.key.to_vec()),
            direct_path: Some(self.path.clone()),
            handle: None,
            file_size_bytes: Some(self.length),
            file_sha256: Some(self.sha256.to_vec()),
            file_enc_sha256: Some(self.enc_sha256.to_vec()),
        }
    }
}

/// What is to be changed about an answer before it goes out.
#[derive(Clone, Copy, Default)]
struct Spoil(Option<SettingsFault>);

impl Spoil {
    /// True once: it strikes the first piece of the answer that it fits.
    fn is(&mut self, fault: SettingsFault) -> bool {
        let hit = self.0 == Some(fault);
        if hit {
            self.0 = None;
        }
        hit
    }

    fn record(&mut self, record: &mut SyncdRecord) {
        let flip = |blob: &mut Option<Bytes>, at: usize| {
            let mut bytes = blob.take().unwrap_or_default().to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            *blob = Some(bytes.into());
        };
        if let Some(value) = &mut record.value
            && self.is(SettingsFault::ValueMac)
        {
            flip(&mut value.blob, 20);
        }
        if let Some(index) = &mut record.index
            && self.is(SettingsFault::IndexMac)
        {
            flip(&mut index.blob, 20);
        }
    }

    fn mac(&mut self, fault: SettingsFault, mac: &mut Option<Vec<u8>>) {
        if self.is(fault)
            && let Some(byte) = mac.as_mut().and_then(|mac| mac.first_mut())
        {
            *byte ^= 1;
        }
    }
}

impl Service {
    /// `<iq xmlns="w:sync:app:state">`: every collection that is named is answered (chapter 10.9). None if the answer is
    /// to be lost.
    pub(in super::super) fn iq_settings(
        &mut self,
        device: &DeviceId,
        iq: &Node,
        now: Now,
    ) -> Option<Answer> {
        let Some(asked) = iq.find("sync") else {
            return Some(Err(IqError::BAD_REQUEST));
        };
        let mut collections = Vec::new();
        let mut lost = false;
        for collection in asked.find_all("collection") {
            let Some(name) = collection.get_string("name") else {
                return Some(Err(IqError::BAD_REQUEST));
            };
            let answer = Node::new("collection").attr("name", name.as_str());
            let Some(name) = collection_of(&name) else {
                let error = IqError::BAD_REQUEST.node();
                collections.push(answer.attr("type", "error").child(error));
                continue;
            };
            let (answer, gone) = self.answer_collection(device, name, collection, answer, now);
            lost |= gone;
            collections.push(answer);
        }
        (!lost).then(|| Ok(Some(Node::new("sync").children(collections))))
    }

    /// The answer about one collection, and whether it gets lost on the way.
    fn answer_collection(
        &mut self,
        device: &DeviceId,
        name: &'static str,
        asked: &Node,
        answer: Node,
        now: Now,
    ) -> (Node, bool) {
        let mut strikes = |fault| self.faults.strikes(device, Kind::Settings(fault)).is_some();
        if strikes(SettingsFault::Refuse) {
            let error = Node::new("error")
                .attr("code", 500u16)
                .attr("text", "internal-server-error");
            return (answer.attr("type", "error").child(error), false);
        }
        let have = asked.get_u64("version").unwrap_or(0);
        let snapshot = asked.get_str("return_snapshot") == Some("true");
        let Some(patch) = asked.find("patch").and_then(Node::data) else {
            return (
                self.read_collection(device, name, have, snapshot, answer),
                false,
            );
        };
        if strikes(SettingsFault::Overtake) {
            self.phone_overtakes(device, name, now);
        }
        let conflict = Node::new("error")
            .attr("code", 409u16)
            .attr("text", "conflict");
        if self
            .faults
            .strikes(device, Kind::Settings(SettingsFault::FalseConflict))
            .is_some()
        {
            let answer = answer.attr("version", have).attr("type", "error");
            return (answer.child(conflict), false);
        }
        if have != self.settings_version(&device.phone, name) {
            let answer = answer.attr("type", "error").child(conflict);
            return (
                self.read_collection(device, name, have, false, answer),
                false,
            );
        }
        let Some(patch) = self.whole_patch(patch) else {
            self.anomaly(
                device,
                format!("a patch for {name} that cannot be read"),
                now,
            );
            let error = IqError::BAD_REQUEST.node();
            return (answer.attr("type", "error").child(error), false);
        };
        let version = self.accept_patch(device, name, patch, now);
        let lost = self
            .faults
            .strikes(device, Kind::Settings(SettingsFault::LostAnswer))
            .is_some();
        (answer.attr("version", version), lost)
    }

    /// The patch with its mutations in it, wherever they were.
    fn whole_patch(&self, bytes: &[u8]) -> Option<SyncdPatch> {
        let mut patch = SyncdPatch::decode(Bytes::copy_from_slice(bytes)).ok()?;
        if let Some(file) = patch.external_mutations.take() {
            let key = file.media_key?.try_into().ok()?;
            let path = file.direct_path?;
            let content = self.files.content(FileKind::Settings, &path, &key)?;
            patch.mutations = SyncdMutations::decode(Bytes::from(content)).ok()?.mutations;
        }
        Some(patch)
    }

    /// Appends a patch, lets the phone read it, and tells the account's other devices. Returns its version.
    pub(super) fn accept_patch(
        &mut self,
        by: &DeviceId,
        name: &'static str,
        patch: SyncdPatch,
        now: Now,
    ) -> u64 {
        let every = self.options.snapshot_every;
        let Some(account) = self.accounts.get_mut(&by.phone) else {
            return 0;
        };
        let log = account.collections.0.entry(name).or_default();
        log.append(by, patch.clone(), every);
        let version = log.version;
        self.revision += 1;
        self.phone_reads_patch(by, name, version, &patch, now);
        for to in self.accounts.devices_of(&by.phone) {
            if to != *by && !to.is_phone() {
                self.announce_settings(&to, name, version, now);
            }
        }
        version
    }

    /// `<notification type="server_sync">`; one that waits is replaced.
    fn announce_settings(&mut self, to: &DeviceId, name: &str, version: u64, now: Now) {
        let id = self.next_id();
        let node = Node::new("notification")
            .attr("type", "server_sync")
            .attr("from", Jid::service())
            .attr("id", id.as_str())
            .attr("t", now.secs())
            .child(
                Node::new("collection")
                    .attr("name", name)
                    .attr("version", version),
            );
        if let Some(device) = self.accounts.device_mut(to) {
            device.queue.retain_unsent(|entry| {
                entry.node.get_str("type") != Some("server_sync")
                    || entry
                        .node
                        .find("collection")
                        .and_then(|c| c.get_str("name"))
                        != Some(name)
            });
        }
        self.deliver(to, Class::Notification, &id, None, node, now);
    }

    /// Where the service stands with a collection of an account.
    #[must_use]
    pub fn settings_version(&self, phone: &str, name: &str) -> u64 {
        let account = self.accounts.get(phone);
        account
            .and_then(|account| account.collections.0.get(name))
            .map_or(0, |log| log.version)
    }

    /// Patches behind `have`, or a snapshot and what follows it.
    fn read_collection(
        &mut self,
        device: &DeviceId,
        name: &'static str,
        have: u64,
        snapshot: bool,
        answer: Node,
    ) -> Node {
        let spoil = SettingsFault::ANSWERS.into_iter().find(|fault| {
            self.faults
                .strikes(device, Kind::Settings(*fault))
                .is_some()
        });
        let (options, files, rng) = (self.options, &mut self.files, &mut self.rng);
        let Some(account) = self.accounts.get_mut(&device.phone) else {
            return answer;
        };
        let log = account.collections.0.entry(name).or_default();
        log.read(
            (have, snapshot),
            Spoil(spoil),
            answer,
            &device.phone,
            &options,
            files,
            rng,
        )
    }

    /// Makes it so that only a snapshot helps whoever is behind, in all collections of an account.
    pub(in super::super) fn drop_patches(&mut self, phone: &str) {
        if let Some(account) = self.accounts.get_mut(phone) {
            account
                .collections
                .0
                .values_mut()
                .for_each(Log::drop_patches);
            self.faults.count("drop_patches");
        }
    }
}

impl Log {
    #[expect(
        clippy::too_many_arguments,
        reason = "parts of the service beside the account"
    )]
    fn read(
        &mut self,
        (have, wants_snapshot): (u64, bool),
        mut spoil: Spoil,
        answer: Node,
        phone: &str,
        options: &Options,
        files: &mut Files,
        rng: &mut Rng,
    ) -> Node {
        let mut answer = answer.attr("version", self.version);
        let mut from = have;
        if let Some(snapshot) = &mut self.snapshot
            && wants_snapshot
        {
            from = snapshot.version;
            let reference = if spoil.0.is_some() {
                // One that is not what it should be is nobody else's.
                let mut content = snapshot.content.clone();
                spoil.mac(SettingsFault::SnapshotMac, &mut content.mac);
                content
                    .records
                    .iter_mut()
                    .for_each(|record| spoil.record(record));
                files.hold(phone, FileKind::Settings, &content.encode_to_vec(), rng)
            } else {
                let make = || {
                    files.hold(
                        phone,
                        FileKind::Settings,
                        &snapshot.content.encode_to_vec(),
                        rng,
                    )
                };
                snapshot.file.get_or_insert_with(make).clone()
            };
            answer =
                answer.child(Node::new("snapshot").bytes(reference.to_syncd().encode_to_vec()));
        } else if wants_snapshot {
            from = 0;
        }
        if spoil.is(SettingsFault::Stale) {
            from = from.saturating_sub(2);
        }
        let mut due = self.patches.range_mut(from + 1..);
        if spoil.is(SettingsFault::Skip) {
            due.next();
        }
        let mut patches = Vec::new();
        for (_, held) in due.by_ref().take(options.patches_per_answer) {
            let mut patch = held.patch.clone();
            spoil.mac(SettingsFault::PatchMac, &mut patch.patch_mac);
            spoil.mac(SettingsFault::SnapshotMac, &mut patch.snapshot_mac);
            let spoilt = spoil.0;
            for record in patch.mutations.iter_mut().filter_map(|m| m.record.as_mut()) {
                spoil.record(record);
            }
            let mutations = SyncdMutations {
                mutations: patch.mutations.clone(),
            };
            if mutations.encoded_len() > options.external_above {
                let mut make =
                    || files.hold(phone, FileKind::Settings, &mutations.encode_to_vec(), rng);
                let reference = if spoilt == spoil.0 {
                    held.file.get_or_insert_with(make).clone()
                } else {
                    make()
                };
                patch.external_mutations = Some(reference.to_syncd());
                patch.mutations.clear();
            }
            let mut bytes = patch.encode_to_vec();
            if spoil.is(SettingsFault::Garbage) {
                bytes = vec![0xff; 40];
            }
            patches.push(Node::new("patch").bytes(bytes));
        }
        if due.next().is_some() {
            answer = answer.attr("has_more_patches", "true");
        }
        if patches.is_empty() {
            return answer;
        }
        answer.child(Node::new("patches").children(patches))
    }
}
