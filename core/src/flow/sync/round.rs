//! One collection's turn: its pieces, their files and rows (fact sheets 08.7 to 08.9).

use super::{
    SyncState, SyncWork,
    files::{Download, Progress},
    keys::Keys,
    rows::{self, mac_key},
    settings,
};
use crate::{
    appstate::{
        Applied, Collection, MAX_MUTATIONS, MAX_RECORDS, Mutation, Operation, Replaced,
        action::Action, patch_touches,
    },
    flow::{Context, FetchId, Fetched, Notice},
    media::MediaKind,
    proto::{
        bounded::decode_list,
        record,
        sync::{
            ExternalBlobReference, SyncdMutation, SyncdMutations, SyncdPatch, SyncdSnapshot,
            SyncdSnapshotRecovery,
        },
    },
    state::{Key, Micros, Row, codec},
};
use std::collections::{BTreeMap, VecDeque};

/// Questions in one turn: pages of a long history, conflicts. Whatever is left is for the next turn.
const QUESTIONS: u32 = 500;

/// Questions of one turn, one after the other, that bring no new version. Conflicts and gaps need fewer.
const BARREN: u32 = 20;

/// Answers of one turn that end before the version that they name.
const GAPS: u32 = 3;

/// Longest file of app state. Two hundred thousand settings of three hundred bytes.
const FILE_BYTES: u64 = 64 << 20;

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
    pub(super) only_read: bool,
    questions: u32,
    /// The last so many of them were asked from this version.
    barren: (u32, u64),
    /// Changes wait that cannot be announced, for want of a key.
    pub(super) keyless: bool,
    pub(super) conflicts: u32,
    pub(super) gaps: u32,
    /// The version that the service says it has.
    pub(super) leads_to: u64,
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
            barren: (0, 0),
            keyless: false,
            conflicts: 0,
            gaps: 0,
            leads_to: 0,
            existing: None,
            download: None,
            staged: None,
        }
    }

    /// The turn, if it is this collection's: what comes late belongs to one that has ended.
    pub(super) fn of(turn: &mut Option<Self>, collection: Collection) -> Option<&mut Self> {
        turn.as_mut().filter(|turn| turn.collection == collection)
    }

    pub(super) fn deadline(&self) -> Option<Micros> {
        self.download.as_ref().and_then(Download::deadline)
    }

    /// Counts a question from this version. Says whether there were too many that led nowhere.
    pub(super) fn asks_from(&mut self, version: u64) -> bool {
        self.questions += 1;
        let (barren, from) = &mut self.barren;
        *barren = if *from == version { *barren + 1 } else { 1 };
        *from = version;
        *barren > BARREN
    }

    /// Changes wait, and are to be announced with the next question.
    pub(super) fn announces(&self, waiting: &[record::PendingChange]) -> bool {
        !waiting.is_empty() && !self.keyless
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
                        let version = self.tracks.of(collection).version.unwrap_or(0);
                        if !round.more && round.leads_to > version {
                            // The pieces end before the version that the answer names: the last is missing.
                            cx.stats.sync.version_gaps += 1;
                            round.gaps += 1;
                            if round.gaps > GAPS {
                                let why = "the service has a newer version and does not show it";
                                self.failed(cx, collection, why);
                                return None;
                            }
                            round.more = true;
                            round.only_read = true;
                        }
                        if round.more && round.questions < QUESTIONS {
                            return self.round_on(cx, online);
                        }
                        let track = self.tracks.of(collection);
                        track.wanted |= round.more;
                        track.keyless = round.keyless;
                        track.attempts = 0;
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
        let Some(round) = Round::of(&mut self.round, collection) else {
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
            Some(Item::Snapshot(_, slot)) => {
                match decode_list::<SyncdSnapshot>(file, 2, MAX_RECORDS) {
                    Ok(snapshot) => {
                        *slot = Some(Box::new(snapshot));
                        true
                    }
                    Err(_) => false,
                }
            }
            Some(Item::Patch(_, slot)) => {
                match decode_list::<SyncdMutations>(file, 1, MAX_MUTATIONS) {
                    Ok(mutations) if !mutations.mutations.is_empty() => {
                        *slot = Some(mutations.mutations);
                        true
                    }
                    _ => false,
                }
            }
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
}
