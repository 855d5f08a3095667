//! The service's half of settings, in the test's hand: a log of patches per collection, another device that writes into
//! it, files. Whatever the engine uploads is verified by the other device, as a real one would.

use baton_core::{
    appstate::{
        Change, Collection, KeyId, KeyRing, MacChange, Mutation, Operation, State, SyncKey,
        action::Action, build_patch_over, verify_patch, verify_snapshot,
    },
    crypto::{Rng, sha256},
    media::{self, MediaKind},
    proto::sync::{
        ExternalBlobReference, SyncdMutations, SyncdPatch, SyncdPlainTextRecord, SyncdRecord,
        SyncdSnapshot, SyncdSnapshotRecovery, SyncdVersion,
    },
    wire::node::Node,
};
use prost::Message as _;
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

pub(crate) type Files = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

/// One collection, as the other device sees it.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) state: State,
    pub(crate) macs: BTreeMap<[u8; 32], [u8; 32]>,
    pub(crate) patches: Vec<SyncdPatch>,
    records: BTreeMap<[u8; 32], SyncdRecord>,
    /// MAC of the collection as it is, whatever the last patch says.
    mac: Option<Vec<u8>>,
    /// What every setting says, by its name.
    pub(crate) values: BTreeMap<Vec<u8>, Action>,
    /// What the engine has uploaded, in order.
    pub(crate) ours: Vec<Action>,
}

/// See the module documentation.
pub(crate) struct Cloud {
    pub(crate) logs: BTreeMap<Collection, Log>,
    pub(crate) key: (KeyId, [u8; 32]),
    pub(crate) others: Vec<(KeyId, [u8; 32])>,
    /// Whether the other device takes a setting out of its place under an older key when it changes it.
    pub(crate) tidy: bool,
    pub(crate) files: Files,
    /// Patches in one answer.
    pub(crate) page: usize,
    /// Mutations travel as files.
    pub(crate) external: bool,
    /// A conflict is answered without the missing patches.
    pub(crate) terse: bool,
    /// So many answers get lost on their way.
    pub(crate) lose: u32,
    /// Rewrites what is answered about a collection.
    pub(crate) bend: Option<Box<dyn FnMut(Collection, Node) -> Node>>,
    pub(crate) asked: VecDeque<(Collection, Option<u64>, bool, bool)>,
    pub(crate) conflicts: u32,
    rng: Rng,
}

impl Cloud {
    pub(crate) fn new(key: (KeyId, [u8; 32]), files: Files) -> Self {
        Self {
            logs: Collection::ALL
                .map(|collection| (collection, Log::default()))
                .into(),
            key,
            others: Vec::new(),
            tidy: false,
            files,
            page: 1000,
            external: false,
            terse: false,
            lose: 0,
            bend: None,
            asked: VecDeque::new(),
            conflicts: 0,
            rng: Rng::from_seed([77; 32]),
        }
    }

    fn ring(&self) -> KeyRing {
        let all = self.others.iter().chain([&self.key]);
        all.map(|(id, data)| SyncKey::expand(id.clone(), data))
            .collect()
    }

    pub(crate) fn log(&self, collection: Collection) -> &Log {
        &self.logs[&collection]
    }

    /// The other device changes something.
    pub(crate) fn remote(&mut self, actions: &[Action]) -> Collection {
        let seed = self.rng.bytes();
        let (collection, patch) = self.build(actions, None, seed);
        self.append(collection, patch, false).expect("sound");
        collection
    }

    /// Another device that has lost its way changes something. Its patch is well signed; the collection that it vouches
    /// for is not the one that there is.
    pub(crate) fn remote_astray(&mut self, actions: &[Action]) -> Collection {
        let seed = self.rng.bytes();
        let (collection, sound) = self.build(actions, None, seed);
        let version = self.log(collection).state.version;
        let lost = State {
            version,
            ..State::default()
        };
        let (_, astray) = self.build(actions, Some(lost), seed);
        assert_eq!(sound.mutations, astray.mutations);
        assert_ne!(sound.snapshot_mac, astray.snapshot_mac);
        self.append(collection, sound, false).expect("sound");
        let log = self.logs.get_mut(&collection).expect("one of five");
        let last = log.patches.last_mut().expect("just appended");
        last.snapshot_mac = astray.snapshot_mac;
        last.patch_mac = astray.patch_mac;
        collection
    }

    /// A patch of the other device, on top of what there is or of something else.
    fn build(
        &self,
        actions: &[Action],
        state: Option<State>,
        seed: [u8; 32],
    ) -> (Collection, SyncdPatch) {
        let (collection, _) = actions[0].change(0).expect("known");
        let key = SyncKey::expand(self.key.0.clone(), &self.key.1);
        let log = &self.logs[&collection];
        let changes = actions.iter().map(|action| action.change(5));
        let mut changes: Vec<Change> = changes.map(|change| change.expect("known").1).collect();
        let mut old = Vec::new();
        let ring: Vec<SyncKey> = (self.others.iter().filter(|_| self.tidy))
            .map(|(id, data)| SyncKey::expand(id.clone(), data))
            .collect();
        for older in &ring {
            for change in &changes {
                if log.macs.contains_key(&older.index_mac(&change.index)) {
                    let removal = Change {
                        operation: Operation::Remove,
                        ..change.clone()
                    };
                    old.push((older, removal));
                }
            }
        }
        // What stands under an older key alone is gone with that.
        changes.retain(|change| {
            let here = log.macs.contains_key(&key.index_mac(&change.index));
            let elsewhere = old.iter().any(|(_, removal)| removal.index == change.index);
            change.operation == Operation::Set || here || !elsewhere
        });
        let built = build_patch_over(
            collection,
            &state.unwrap_or(log.state),
            &key,
            &old,
            &changes,
            |mac| log.macs.get(mac).copied(),
            &mut Rng::from_seed(seed),
        );
        (collection, built.expect("sound").patch)
    }

    /// A patch follows the last one, if the other device finds it sound.
    fn append(
        &mut self,
        collection: Collection,
        mut patch: SyncdPatch,
        ours: bool,
    ) -> Result<(), String> {
        let ring = self.ring();
        let log = self.logs.get_mut(&collection).expect("one of five");
        patch.version = Some(SyncdVersion {
            version: Some(log.state.version + 1),
        });
        let applied = verify_patch(
            collection,
            &log.state,
            &patch,
            &patch.mutations,
            &ring,
            |mac| log.macs.get(mac).copied(),
        )
        .map_err(|error| error.to_string())?;
        for (mac, value) in &applied.macs as &[MacChange] {
            match value {
                Some(value) => {
                    log.macs.insert(*mac, *value);
                }
                None => {
                    log.macs.remove(mac);
                    log.records.remove(mac);
                }
            }
        }
        for (mutation, sealed) in applied.mutations.iter().zip(&patch.mutations) {
            let mutation: &Mutation = mutation;
            let action = Action::of(mutation);
            if ours {
                log.ours.push(action.clone());
            }
            match mutation.operation {
                Operation::Set => {
                    log.records
                        .insert(mutation.index_mac, sealed.record.clone().expect("verified"));
                    log.values.insert(mutation.index.to_vec(), action);
                }
                Operation::Remove => {
                    log.values.remove(mutation.index.as_ref());
                }
            }
        }
        log.state = applied.state;
        log.mac.clone_from(&patch.snapshot_mac);
        log.patches.push(patch);
        Ok(())
    }

    /// Forgets the log of a collection: from here on only a snapshot leads to the present.
    pub(crate) fn compact(&mut self, collection: Collection) {
        let log = self.logs.get_mut(&collection).expect("one of five");
        let last = log.patches.pop();
        log.patches = last.into_iter().collect();
    }

    pub(crate) fn put_file(&mut self, plain: &[u8]) -> ExternalBlobReference {
        let key: [u8; 32] = self.rng.bytes();
        let file = media::encrypt(MediaKind::AppState, &key, plain);
        let path = format!("/f/{}", self.files.borrow().len());
        let reference = ExternalBlobReference {
            media_key: Some(key.to_vec()),
            direct_path: Some(path.clone()),
            file_size_bytes: Some(plain.len() as u64),
            file_sha256: Some(sha256(&[plain]).to_vec()),
            file_enc_sha256: Some(sha256(&[&file]).to_vec()),
            ..Default::default()
        };
        self.files.borrow_mut().insert(path, file);
        reference
    }

    fn snapshot(&mut self, collection: Collection) -> Option<ExternalBlobReference> {
        let log = self.log(collection);
        let last = log.patches.last()?;
        let snapshot = SyncdSnapshot {
            version: last.version,
            records: log.records.values().cloned().collect(),
            mac: last.snapshot_mac.clone(),
            key_id: last.key_id.clone(),
        };
        let plain = snapshot.encode_to_vec();
        Some(self.put_file(&plain))
    }

    /// A collection in clear, as the phone tells it.
    pub(crate) fn recovery(&self, collection: Collection) -> SyncdSnapshotRecovery {
        let log = self.log(collection);
        let last = log.patches.last().expect("a patch");
        let snapshot = SyncdSnapshot {
            version: last.version,
            records: log.records.values().cloned().collect(),
            mac: log.mac.clone(),
            key_id: last.key_id.clone(),
        };
        let all = verify_snapshot(collection, &snapshot, &self.ring()).expect("sound");
        let records = all.mutations.iter().map(|mutation| SyncdPlainTextRecord {
            value: Some(mutation.data.to_vec()),
            key_id: log.records[&mutation.index_mac]
                .key_id
                .as_ref()
                .and_then(|id| id.id.as_ref())
                .map(|id| id.to_vec()),
            mac: Some(mutation.value_mac.to_vec()),
        });
        SyncdSnapshotRecovery {
            version: last.version,
            collection_name: Some(collection.to_string()),
            mutation_records: records.collect(),
            collection_lthash: Some(all.state.hash.to_bytes().to_vec()),
        }
    }

    /// `None` if the answer gets lost.
    pub(crate) fn answer(&mut self, iq: &Node) -> Option<Node> {
        let asked: Vec<Node> = iq.find("sync")?.find_all("collection").cloned().collect();
        let answers: Vec<Node> = asked
            .iter()
            .filter_map(|node| self.collection(node))
            .collect();
        if self.lose > 0 {
            self.lose -= 1;
            return None;
        }
        let sync = Node::new("sync").children(answers);
        Some(Node::new("iq").attr("type", "result").child(sync))
    }

    fn collection(&mut self, node: &Node) -> Option<Node> {
        let collection: Collection = node.get_string("name")?.parse().ok()?;
        let version = node.get_u64("version");
        let wants_snapshot = node.get_str("return_snapshot") == Some("true");
        let upload = node.find("patch").and_then(Node::data).map(<[u8]>::to_vec);
        self.asked
            .push_back((collection, version, wants_snapshot, upload.is_some()));
        let mut answer = Node::new("collection").attr("name", collection.as_str());
        let have = version.unwrap_or(0);
        let current = self.log(collection).state.version;
        let mut with_patches = true;
        if let Some(bytes) = upload {
            let patch = SyncdPatch::decode(bytes.as_slice()).expect("our own patch decodes");
            assert!(patch.version.is_none(), "an uploaded patch has no version");
            if have == current {
                // Nothing of ours may be unsound.
                self.append(collection, patch, true)
                    .expect("our patch is sound");
                answer = answer.attr("version", current + 1);
                with_patches = false;
            } else {
                self.conflicts += 1;
                with_patches = !self.terse;
                answer = answer.attr("type", "error").child(
                    Node::new("error")
                        .attr("code", 409u64)
                        .attr("text", "conflict"),
                );
            }
        } else if wants_snapshot && current > 0 {
            let reference = self.snapshot(collection)?;
            answer = answer
                .attr("version", current)
                .child(Node::new("snapshot").bytes(reference.encode_to_vec()));
            with_patches = false;
        } else {
            answer = answer.attr("version", current);
        }
        if with_patches {
            let missing: Vec<SyncdPatch> = self
                .log(collection)
                .patches
                .iter()
                .filter(|patch| {
                    patch
                        .version
                        .and_then(|v| v.version)
                        .is_some_and(|v| v > have)
                })
                .cloned()
                .collect();
            if missing.len() > self.page {
                answer = answer.attr("has_more_patches", "true");
            }
            let mut nodes = Vec::new();
            for mut patch in missing.into_iter().take(self.page) {
                if self.external {
                    let mutations = SyncdMutations {
                        mutations: std::mem::take(&mut patch.mutations),
                    };
                    patch.external_mutations = Some(self.put_file(&mutations.encode_to_vec()));
                }
                nodes.push(Node::new("patch").bytes(patch.encode_to_vec()));
            }
            if !nodes.is_empty() {
                answer = answer.child(Node::new("patches").children(nodes));
            }
        }
        Some(match &mut self.bend {
            Some(bend) => bend(collection, answer),
            None => answer,
        })
    }
}
