//! One collection's turn: ask, judge, write (fact sheets 08.7 to 08.9).

use super::{
    Keys, SyncState, SyncWork,
    files::{Download, Progress},
    pack::pack,
    rows::{self, mac_key, state_of, timestamp},
    settings,
    settle::{is_ours, official_order, resolve},
};
use crate::{
    appstate::{
        Applied, Collection, KeyRing, Mutation, MutationError, Operation, PatchError, Replaced,
        SnapshotError, State, action::Action, patch_keys, patch_touches, recovery_keys,
        snapshot_keys, verify_patch, verify_recovery, verify_snapshot,
    },
    crypto::sha256,
    flow::{
        Context, FetchId, Fetched, Notice,
        query::{Answer, Query, iq},
    },
    media::MediaKind,
    proto::{
        record,
        sync::{
            ExternalBlobReference, SyncdMutation, SyncdMutations, SyncdPatch, SyncdSnapshot,
            SyncdSnapshotRecovery, SyncdVersion,
        },
    },
    state::{Key, Micros, Row, codec},
    wire::node::Node,
};
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Questions in one turn: pages of a long history, conflicts. Whatever is left is for the next turn.
const QUESTIONS: u32 = 500;

/// Conflicts in one turn before it is somebody else's.
const CONFLICTS: u32 = 5;

/// Longest file of app state. Two hundred thousand settings of three hundred bytes.
const FILE_BYTES: u64 = 64 << 20;

/// Patches in one answer that are looked at.
const PATCHES: usize = 4096;

/// Mutations of a step that are shown one by one; what is larger is announced as a whole.
pub(super) const SHOWN: usize = 512;

/// Rows of one portion.
const PORTION: usize = 4096;

/// A piece of an answer.
#[derive(Debug)]
pub(super) enum Item {
    /// Its file, until it is here; then what was in it.
    Snapshot(ExternalBlobReference, Option<Box<SyncdSnapshot>>),
    /// With its mutations: its own, or those of the file, once it is here.
    Patch(Box<SyncdPatch>, Option<Vec<SyncdMutation>>),
    /// From the phone, in clear.
    Recovery(Box<SyncdSnapshotRecovery>),
}

/// What came of a piece, before it is written.
#[derive(Debug)]
pub(super) enum Staged {
    Patch(Applied, Vec<Action>, Vec<u8>),
    Snapshot(Replaced, Vec<Action>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The next question is to be asked.
    Start,
    /// Work of this round is queued, or the service was asked.
    Waiting,
    /// There are pieces to judge.
    Pieces,
}

/// Settings of a collection, as the store has them: names by their MACs.
#[derive(Debug, Default)]
pub(super) struct Existing {
    complete: bool,
    pub(super) names: BTreeMap<[u8; 32], Vec<u8>>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) collection: Collection,
    pub(super) stage: Stage,
    pub(super) items: VecDeque<Item>,
    /// The service has more.
    pub(super) more: bool,
    /// Only ask: our changes were refused for the moment.
    only_read: bool,
    questions: u32,
    conflicts: u32,
    gaps: u32,
    /// What the snapshot will replace, once that was asked for.
    pub(super) existing: Option<Existing>,
    download: Option<Download>,
    pub(super) staged: Option<Staged>,
}

impl Round {
    /// Begins with what the phone has told, if it has; then the service is asked for what is newer.
    pub(super) fn new(collection: Collection, told: Option<Box<SyncdSnapshotRecovery>>) -> Self {
        let (stage, more) = if told.is_some() {
            (Stage::Pieces, true)
        } else {
            (Stage::Start, false)
        };
        Self {
            collection,
            stage,
            items: told.into_iter().map(Item::Recovery).collect(),
            more,
            only_read: false,
            questions: 0,
            conflicts: 0,
            gaps: 0,
            existing: None,
            download: None,
            staged: None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Micros> {
        self.download.as_ref().and_then(Download::deadline)
    }
}

pub(super) fn version_key(collection: Collection) -> Key {
    Key::AppStateVersion(collection.name())
}

impl super::Sync {
    pub(super) fn end_round(&mut self, cx: &mut Context) {
        if let Some(round) = self.round.take()
            && let Some(download) = round.download
        {
            download.stop(cx);
        }
    }

    /// The next work of the round.
    pub(super) fn round_on(&mut self, cx: &mut Context, online: bool) -> Option<SyncWork> {
        let round = self.round.as_mut()?;
        let collection = round.collection;
        match round.stage {
            Stage::Waiting => None,
            Stage::Start => {
                if !online {
                    return None;
                }
                round.stage = Stage::Waiting;
                Some(SyncWork::Ask(collection))
            }
            Stage::Pieces => {
                let file = match round.items.front() {
                    None => {
                        round.stage = Stage::Start;
                        if round.more && round.questions < QUESTIONS {
                            return self.round_on(cx, online);
                        }
                        let track = self.tracks.entry(collection).or_default();
                        track.wanted |= round.more;
                        track.attempts = 0;
                        let version = track.version.unwrap_or(0);
                        cx.notice(Notice::Sync(collection, SyncState::Current { version }));
                        self.end_round(cx);
                        return None;
                    }
                    Some(Item::Snapshot(reference, None)) => Some(reference.clone()),
                    Some(Item::Patch(patch, None)) => patch.external_mutations.clone(),
                    Some(
                        Item::Snapshot(_, Some(_)) | Item::Patch(_, Some(_)) | Item::Recovery(_),
                    ) => None,
                };
                if let Some(reference) = file {
                    if round.download.is_none() {
                        match Download::new(MediaKind::AppState, &reference.into(), FILE_BYTES) {
                            Some(download) => round.download = Some(download),
                            None => {
                                cx.stats.sync.malformed += 1;
                                self.failed(cx, collection, "a file without key or path");
                                return None;
                            }
                        }
                    }
                    if let Some(download) = &mut round.download {
                        download.start(cx, &mut self.files);
                    }
                    return None;
                }
                // What the collection has now, before a snapshot takes its place.
                if matches!(
                    round.items.front(),
                    Some(Item::Snapshot(..) | Item::Recovery(_))
                ) {
                    match &round.existing {
                        None => {
                            round.existing = Some(Existing::default());
                            cx.ask_scan(rows::SyncScan::Macs(collection, None));
                            return None;
                        }
                        Some(existing) if !existing.complete => return None,
                        Some(_) => {}
                    }
                }
                round.stage = Stage::Waiting;
                Some(SyncWork::Judge(collection))
            }
        }
    }

    /// Settings that a snapshot will replace.
    pub(super) fn existing(
        &mut self,
        cx: &mut Context,
        collection: Collection,
        found: Vec<(Key, Row)>,
        full: bool,
    ) {
        let Some(round) = self
            .round
            .as_mut()
            .filter(|round| round.collection == collection)
        else {
            return;
        };
        let Some(existing) = &mut round.existing else {
            return;
        };
        let mut last = None;
        let name = collection.name();
        for (key, row) in found {
            let Key::AppStateMutationMac {
                collection,
                index_mac,
            } = &key
            else {
                continue;
            };
            if *collection != name {
                last = None;
                break;
            }
            let setting = match &row {
                Row::Present(record) => codec::decode::<record::Setting>(record).ok(),
                _ => None,
            };
            // A row that cannot be read is replaced all the same.
            existing.names.insert(
                *index_mac,
                setting
                    .and_then(|setting| setting.index)
                    .unwrap_or_default(),
            );
            last = Some(key);
        }
        match last.filter(|_| full) {
            Some(last) => cx.ask_scan(rows::SyncScan::Macs(collection, Some(last))),
            None => existing.complete = true,
        }
    }

    // ---- files ------------------------------------------------------------------------------------------------

    pub(super) fn round_fetched(&mut self, cx: &mut Context, id: FetchId, what: Fetched<'_>) {
        let Some(round) = &mut self.round else { return };
        let collection = round.collection;
        let Some(download) = round.download.as_mut().filter(|download| download.is(id)) else {
            return;
        };
        let file = match download.fetched(cx, what) {
            Progress::More => return,
            Progress::Failed(why) => {
                round.download = None;
                return self.failed(cx, collection, why);
            }
            Progress::Done(file) => file,
        };
        round.download = None;
        let good = match round.items.front_mut() {
            Some(Item::Snapshot(_, slot)) => match SyncdSnapshot::decode(file) {
                Ok(snapshot) => {
                    *slot = Some(Box::new(snapshot));
                    true
                }
                Err(_) => false,
            },
            Some(Item::Patch(_, slot)) => match SyncdMutations::decode(file) {
                Ok(mutations) if !mutations.mutations.is_empty() => {
                    *slot = Some(mutations.mutations);
                    true
                }
                _ => false,
            },
            Some(Item::Recovery(_)) | None => true,
        };
        if !good {
            cx.stats.sync.malformed += 1;
            self.failed(cx, collection, "a file that does not decode");
        }
    }

    pub(super) fn round_tick(&mut self, cx: &mut Context) {
        let Some(round) = &mut self.round else { return };
        let collection = round.collection;
        if round
            .download
            .as_ref()
            .is_some_and(|download| download.is_late(cx))
        {
            cx.stats.sync.failed_fetches += 1;
            self.failed(cx, collection, "a file does not come");
        }
    }

    // ---- rows -------------------------------------------------------------------------------------------------

    pub(super) fn round_needs(
        &self,
        cx: &mut Context,
        work: &SyncWork,
        collection: Collection,
    ) -> Vec<Key> {
        let row = version_key(collection);
        if !cx.rows.knows(&row) {
            return vec![row];
        }
        let Some(round) = self
            .round
            .as_ref()
            .filter(|round| round.collection == collection)
        else {
            return Vec::new();
        };
        let unknown = |cx: &Context, keys: &mut dyn Iterator<Item = Key>| {
            keys.filter(|key| !cx.rows.knows(key))
                .take(PORTION)
                .collect()
        };
        match work {
            SyncWork::Ask(_) => {
                let row: record::Collection = cx.read(&row).unwrap_or_default();
                let Keys::Ready(ring) = &self.keys else {
                    return Vec::new();
                };
                let indexes = row
                    .pending
                    .iter()
                    .filter_map(|change| change.index.as_deref());
                let mut keys = indexes
                    .flat_map(|index| ring.names(index))
                    .map(|(_, mac)| mac_key(collection, mac));
                unknown(cx, &mut keys)
            }
            SyncWork::Judge(_) => match round.items.front() {
                Some(Item::Patch(_, Some(mutations))) => {
                    let touched = patch_touches(mutations);
                    let mut keys = touched.into_iter().map(|mac| mac_key(collection, mac));
                    unknown(cx, &mut keys)
                }
                _ => Vec::new(),
            },
            SyncWork::Settle(_) => {
                let actions: &[Action] = match &round.staged {
                    Some(Staged::Patch(_, actions, _) | Staged::Snapshot(_, actions)) => actions,
                    None => &[],
                };
                // What is removed may still stand under another key.
                let removed: &[Mutation] = match &round.staged {
                    Some(Staged::Patch(applied, ..)) => &applied.mutations,
                    _ => &[],
                };
                let removed = removed
                    .iter()
                    .filter(|mutation| mutation.operation == Operation::Remove);
                let ring = match &self.keys {
                    Keys::Ready(ring) => Some(ring),
                    _ => None,
                };
                let names = removed.flat_map(|m| ring.into_iter().flat_map(|r| r.names(&m.index)));
                let names = names.map(|(_, mac)| mac_key(collection, mac));
                let mut keys = actions.iter().filter_map(settings::row_of).chain(names);
                unknown(cx, &mut keys)
            }
            _ => Vec::new(),
        }
    }

    // ---- the question -----------------------------------------------------------------------------------------

    pub(super) fn ask(&mut self, cx: &mut Context, collection: Collection) {
        let Some(round) = self
            .round
            .as_mut()
            .filter(|round| round.collection == collection)
        else {
            return;
        };
        if cx.connection.is_none() {
            round.stage = Stage::Start;
            return;
        }
        round.questions += 1;
        let mut row: record::Collection = cx.read(&version_key(collection)).unwrap_or_default();
        let state = match state_of(&row) {
            Some(state) => state,
            None => {
                // Half a row: begin anew.
                row.diverged = Some(true);
                State::default()
            }
        };
        let mut patch = None;
        if row.fetched() && !row.diverged() && !round.only_read {
            if row
                .in_flight
                .as_ref()
                .is_some_and(|flight| flight.base() != state.version)
            {
                row.in_flight = None;
            }
            if row.in_flight.is_none()
                && !row.pending.is_empty()
                && let Keys::Ready(ring) = &self.keys
                && let Some(key) = ring.newest()
            {
                pack(cx, collection, &state, key, ring, &mut row);
                cx.put(version_key(collection), codec::encode(&row));
            }
            patch = row
                .in_flight
                .as_ref()
                .and_then(|flight| flight.patch.clone());
        }
        let upload = patch.is_some();
        let snapshot = row.diverged() || (state.version == 0 && !upload);
        let known = (!snapshot).then_some(state.version);
        let node = Node::new("collection")
            .attr("name", collection.as_str())
            .attr_opt("version", known)
            .attr("return_snapshot", if snapshot { "true" } else { "false" })
            .children(patch.map(|patch| Node::new("patch").bytes(patch)));
        let question = iq("w:sync:app:state", "set").child(Node::new("sync").child(node));
        cx.notice(Notice::Sync(collection, SyncState::Asking));
        cx.ask(question, Query::Sync(collection, upload));
    }

    // ---- the answer -------------------------------------------------------------------------------------------

    pub(super) fn answered(
        &mut self,
        cx: &mut Context,
        collection: Collection,
        upload: bool,
        answer: &Answer,
    ) {
        let Some(round) = self
            .round
            .as_mut()
            .filter(|round| round.collection == collection)
        else {
            return;
        };
        let stanza = match answer {
            Answer::Result(stanza) => stanza,
            Answer::Lost => {
                // Asked again on the next connection; what became of a patch of ours is found out then.
                self.end_round(cx);
                self.track(collection).wanted = true;
                return;
            }
            Answer::Error(_) | Answer::TimedOut => {
                cx.stats.sync.failed_asks += 1;
                return self.failed(cx, collection, "the service does not answer the question");
            }
        };
        let found = stanza
            .find("sync")
            .into_iter()
            .flat_map(|sync| sync.find_all("collection"));
        let named = |node: &&Node| node.get_string("name").as_deref() == Some(collection.as_str());
        let Some(node) = found.take(PATCHES).find(named) else {
            cx.stats.sync.malformed += 1;
            return self.failed(cx, collection, "an answer without the collection");
        };
        let row: record::Collection = cx.read(&version_key(collection)).unwrap_or_default();
        let have = row.version.unwrap_or(0);
        let version = node.get_u64("version");
        let error = node.find("error").and_then(|error| error.get_u64("code"));
        let is_error = node.get_str("type") == Some("error") || error.is_some();
        let conflict = is_error && error == Some(409);
        if is_error && !conflict {
            cx.stats.sync.failed_asks += 1;
            let code = error.unwrap_or(0);
            return self.failed(
                cx,
                collection,
                &format!("the service refuses with code {code}"),
            );
        }
        round.more = node.get_str("has_more_patches") == Some("true");
        let asked_for_snapshot = row.diverged() || have == 0;
        let mut items = VecDeque::new();
        if let Some(bytes) = node.find("snapshot").and_then(Node::data) {
            match ExternalBlobReference::decode(bytes) {
                Ok(reference) if asked_for_snapshot => {
                    items.push_back(Item::Snapshot(reference, None))
                }
                // One that nobody asked for would undo what we know.
                _ => cx.stats.sync.malformed += 1,
            }
        }
        let listed = node.find("patches").unwrap_or(node);
        for bytes in listed
            .find_all("patch")
            .take(PATCHES)
            .filter_map(Node::data)
        {
            let Ok(patch) = SyncdPatch::decode(Bytes::copy_from_slice(bytes)) else {
                cx.stats.sync.malformed += 1;
                return self.failed(cx, collection, "a patch that does not decode");
            };
            let mut patch = patch;
            let mutations = match &patch.external_mutations {
                Some(_) => None,
                None => Some(std::mem::take(&mut patch.mutations)),
            };
            items.push_back(Item::Patch(Box::new(patch), mutations));
        }
        let listed = node
            .find("patches")
            .unwrap_or(node)
            .find_all("patch")
            .count();
        if listed > PATCHES {
            round.more = true;
        }
        if asked_for_snapshot && !upload && matches!(items.front(), Some(Item::Patch(..))) {
            // A short history comes as a whole instead: from nothing on.
            items.push_front(nothing());
        }
        if conflict {
            round.conflicts += 1;
            if upload {
                cx.notice(Notice::Sync(collection, SyncState::Conflict));
            }
            if round.conflicts > CONFLICTS {
                return self.failed(cx, collection, "other devices are always faster");
            }
            // The missing patches may be in the answer; if not, they are asked for before we try again.
            round.only_read = items.is_empty();
            round.more = true;
        } else {
            round.only_read = false;
        }
        if upload && !conflict && items.is_empty() {
            let ours = row
                .in_flight
                .as_ref()
                .filter(|flight| flight.base() == have && version == have.checked_add(1));
            match ours.and_then(|flight| SyncdPatch::decode(flight.patch.as_deref()?).ok()) {
                Some(mut patch) => {
                    patch.version = Some(SyncdVersion { version });
                    let mutations = std::mem::take(&mut patch.mutations);
                    items.push_back(Item::Patch(Box::new(patch), Some(mutations)));
                    // There may be more to announce than fits into one patch.
                    round.more |= row.pending.len()
                        > row.in_flight.as_ref().map_or(0, |f| f.changes() as usize);
                }
                // Whatever that answer means, the log of patches says what happened.
                None => {
                    round.conflicts += 1;
                    if round.conflicts > CONFLICTS {
                        return self.failed(
                            cx,
                            collection,
                            "an answer to a patch that makes no sense",
                        );
                    }
                    round.only_read = true;
                    round.more = true;
                }
            }
        } else if items.is_empty() && !conflict {
            if asked_for_snapshot {
                if version.unwrap_or(0) != 0 {
                    cx.stats.sync.malformed += 1;
                    return self.failed(cx, collection, "no snapshot came");
                }
                // There is nothing under this name: the collection begins.
                items.push_back(nothing());
            }
            if items.is_empty() && version.is_some_and(|version| version < have) {
                cx.stats.sync.version_gaps += 1;
                return self.diverged(cx, collection, "the service has an older version", [0; 32]);
            }
            if items.is_empty() && !round.more && version.is_some_and(|version| version > have) {
                // It says that there is more, and does not show it.
                cx.stats.sync.version_gaps += 1;
                round.gaps += 1;
                if round.gaps > 1 {
                    let why = "the service has a newer version and does not show it";
                    return self.diverged(cx, collection, why, [0; 32]);
                }
                round.more = true;
                round.only_read = true;
            } else if items.is_empty() && !row.pending.is_empty() {
                // Now that we are up to date.
                round.more = true;
                round.only_read = false;
                round.conflicts += u32::from(row.in_flight.is_some());
            }
        }
        if let Some(round) = &mut self.round {
            round.items = items;
            round.stage = Stage::Pieces;
        }
        let known = row.version.filter(|_| row.fetched());
        if let Some(version) = known {
            self.track(collection).version = Some(version);
        }
    }

    // ---- judgement --------------------------------------------------------------------------------------------

    pub(super) fn judge(&mut self, cx: &mut Context, collection: Collection) -> Option<SyncWork> {
        let round = self
            .round
            .as_mut()
            .filter(|round| round.collection == collection)?;
        let Keys::Ready(keys) = &self.keys else {
            // They were let go: the round begins again when they are here.
            self.end_round(cx);
            self.track(collection).wanted = true;
            return None;
        };
        let row: record::Collection = cx.read(&version_key(collection)).unwrap_or_default();
        match round.items.front() {
            Some(Item::Snapshot(reference, Some(snapshot))) => {
                // One that came from the service has a key; what has none is the place that a short log begins at.
                let verdict = if reference.media_key.is_some() {
                    verify_snapshot(collection, snapshot, &keys.ring)
                } else if let Err(error) = begins(collection, round.items.get(1), &keys.ring) {
                    count_patch(cx, &error);
                    let digest = sha256(&[error.to_string().as_bytes()]);
                    self.diverged(cx, collection, &error.to_string(), digest);
                    return None;
                } else {
                    Ok(Replaced {
                        state: State::default(),
                        mutations: Vec::new(),
                    })
                };
                match verdict {
                    Ok(replaced) => {
                        round.stage_replacement(replaced);
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(SnapshotError::MissingKey(_)) => {
                        let mut missing = snapshot_keys(snapshot);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(error) => {
                        let digest = sha256(&[&snapshot.encode_to_vec()]);
                        match &error {
                            SnapshotError::SnapshotMac => cx.stats.sync.bad_snapshot_macs += 1,
                            SnapshotError::Record(inner) => count(cx, inner),
                            _ => cx.stats.sync.malformed += 1,
                        }
                        self.diverged(cx, collection, &error.to_string(), digest);
                    }
                }
            }
            Some(Item::Patch(patch, Some(mutations))) => {
                let Some(state) = state_of(&row).filter(|_| !row.diverged() && row.fetched())
                else {
                    // A patch on top of nothing: only a snapshot helps.
                    cx.stats.sync.version_gaps += 1;
                    self.diverged(cx, collection, "a patch came before a snapshot", [0; 32]);
                    return None;
                };
                let name = collection;
                let previous = |mac: &[u8; 32]| {
                    let row: record::Setting = cx.read(&mac_key(name, *mac))?;
                    row.value_mac?.try_into().ok()
                };
                match verify_patch(collection, &state, patch, mutations, &keys.ring, previous) {
                    Ok(applied) => {
                        let actions = official_order(&applied.mutations).map(Action::of).collect();
                        let mac = patch.patch_mac.clone().unwrap_or_default();
                        round.staged = Some(Staged::Patch(applied, actions, mac));
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(PatchError::MissingKey(_)) => {
                        let mut missing = patch_keys(patch, mutations);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(PatchError::Version { have, got }) if got <= have => {
                        cx.stats.sync.stale_patches += 1;
                        round.items.pop_front();
                        round.stage = Stage::Pieces;
                    }
                    Err(PatchError::Version { .. }) if round.gaps == 0 => {
                        // Asked once more from where we stand: the answer may have been made for somebody else.
                        cx.stats.sync.version_gaps += 1;
                        round.gaps += 1;
                        round.items.clear();
                        round.more = true;
                        round.only_read = true;
                        round.stage = Stage::Pieces;
                    }
                    Err(error) => {
                        count_patch(cx, &error);
                        // Damaged on its way to us, ours has been taken all the same: the snapshot need not show that.
                        let version = patch.version.as_ref().and_then(|v| v.version);
                        let mac = patch.patch_mac.as_deref().unwrap_or_default();
                        let mut row = row;
                        if let Some(version) = version.filter(|v| is_ours(&row, *v, mac)) {
                            resolve(cx, &mut row, version, mac);
                            cx.put(version_key(collection), codec::encode(&row));
                        }
                        let digest = sha256(&[&patch.encode_to_vec()]);
                        self.diverged(cx, collection, &error.to_string(), digest);
                    }
                }
            }
            Some(Item::Recovery(recovery)) => {
                let version = recovery.version.as_ref().and_then(|v| v.version);
                if !row.diverged() || version < row.version {
                    // Mended meanwhile, or the phone is behind: nothing that would help.
                    round.items.pop_front();
                    round.stage = Stage::Pieces;
                    return None;
                }
                match verify_recovery(collection, recovery, &keys.ring) {
                    Ok(replaced) => {
                        cx.stats.sync.recoveries += 1;
                        round.stage_replacement(replaced);
                        return Some(SyncWork::Settle(collection));
                    }
                    Err(SnapshotError::MissingKey(_)) => {
                        let mut missing = recovery_keys(recovery);
                        missing.retain(|id| !keys.ring.has(id));
                        self.wait_for_keys(cx, collection, missing);
                    }
                    Err(error) => {
                        match &error {
                            SnapshotError::SnapshotMac => cx.stats.sync.bad_snapshot_macs += 1,
                            SnapshotError::Record(inner) => count(cx, inner),
                            _ => cx.stats.sync.malformed += 1,
                        }
                        // There is nobody else to ask.
                        self.give_up(cx, collection, &format!("what the phone tells: {error}"));
                    }
                }
            }
            _ => round.stage = Stage::Pieces,
        }
        None
    }
}

impl Round {
    /// A whole collection was found sound: what it says, in the order in which it is carried out.
    fn stage_replacement(&mut self, replaced: Replaced) {
        let mut actions: Vec<Action> = Vec::new();
        // What is not in it any more is removed, before what is in it is set.
        let kept: BTreeSet<[u8; 32]> = replaced.mutations.iter().map(|m| m.index_mac).collect();
        let gone = self.existing.iter().flat_map(|existing| &existing.names);
        for (index_mac, index) in gone.filter(|(mac, _)| !kept.contains(*mac)) {
            actions.push(Action::of(&Mutation {
                operation: Operation::Remove,
                index_mac: *index_mac,
                value_mac: [0; 32],
                index: index.clone().into(),
                data: Bytes::new(),
            }));
        }
        // One that stands under two keys: what was said last counts.
        let mut last: BTreeMap<&[u8], usize> = BTreeMap::new();
        for (n, mutation) in replaced.mutations.iter().enumerate() {
            let before = last
                .get(&*mutation.index)
                .and_then(|n| replaced.mutations.get(*n));
            if before.is_none_or(|before| timestamp(before) <= timestamp(mutation)) {
                last.insert(&mutation.index, n);
            }
        }
        let said = replaced.mutations.iter().enumerate();
        let said = said.filter(|(n, mutation)| last.get(&*mutation.index) == Some(n));
        actions.extend(said.map(|(_, mutation)| Action::of(mutation)));
        self.staged = Some(Staged::Snapshot(replaced, actions));
    }
}

/// The piece that a collection without settings begins with.
fn nothing() -> Item {
    Item::Snapshot(ExternalBlobReference::default(), Some(Box::default()))
}

/// Whether a log that takes the place of a snapshot has a sound beginning: what we have is not given up for less. One that
/// comes as a file is looked at when it is here.
fn begins(collection: Collection, first: Option<&Item>, ring: &KeyRing) -> Result<(), PatchError> {
    let Some(Item::Patch(patch, Some(mutations))) = first else {
        return Ok(());
    };
    let state = State::default();
    match verify_patch(collection, &state, patch, mutations, ring, |_| None) {
        Ok(_) | Err(PatchError::MissingKey(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn count_patch(cx: &mut Context, error: &PatchError) {
    match error {
        PatchError::PatchMac => cx.stats.sync.bad_patch_macs += 1,
        PatchError::SnapshotMac => cx.stats.sync.bad_snapshot_macs += 1,
        PatchError::Version { .. } => cx.stats.sync.version_gaps += 1,
        PatchError::Mutation(inner) => count(cx, inner),
        _ => cx.stats.sync.malformed += 1,
    }
}

fn count(cx: &mut Context, error: &MutationError) {
    match error {
        MutationError::ValueMac | MutationError::IndexMac => cx.stats.sync.bad_mutations += 1,
        MutationError::Malformed(_) | MutationError::MissingKey(_) => cx.stats.sync.malformed += 1,
    }
}
