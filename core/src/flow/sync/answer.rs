//! The question of a turn, with changes of ours if there are some, and what the service answers (fact sheet 08.7).

use super::{
    SyncState,
    keys::Keys,
    pack::pack,
    round::{Item, Round, Stage, version_key},
    rows::state_of,
};
use crate::{
    appstate::{Collection, MAX_MUTATIONS, State},
    flow::{
        Context, Notice,
        query::{Answer, Query, iq},
    },
    proto::{
        bounded::decode_list,
        record,
        sync::{ExternalBlobReference, SyncdPatch, SyncdVersion},
    },
    state::codec,
    wire::node::Node,
};
use bytes::Bytes;
use prost::Message as _;
use std::collections::VecDeque;

/// Conflicts in one turn before it is somebody else's.
pub(super) const CONFLICTS: u32 = 5;

/// Patches in one answer that are looked at.
const PATCHES: usize = 4096;

impl super::Sync {
    pub(super) fn ask(&mut self, cx: &mut Context, collection: Collection) {
        let Some(round) = Round::of(&mut self.round, collection) else {
            return;
        };
        if cx.connection.is_none() {
            round.stage = Stage::Start;
            return;
        }
        let mut row: record::Collection = cx.read(&version_key(collection)).unwrap_or_default();
        let state = match state_of(&row) {
            Some(state) => state,
            None => {
                // Half a row: begin anew.
                row.diverged = Some(true);
                State::default()
            }
        };
        if round.asks_from(state.version) {
            cx.stats.sync.failed_asks += 1;
            return self.failed(cx, collection, "question after question leads nowhere");
        }
        let mut patch = None;
        round.keyless = false;
        if row.fetched() && !row.diverged() && !round.only_read {
            // One that was made from elsewhere, or that the row has lost, is made again.
            row.in_flight.take_if(|flight| {
                let whole = flight.patch.as_deref().map(SyncdPatch::decode);
                flight.base() != state.version || !matches!(whole, Some(Ok(_)))
            });
            if row.in_flight.is_none() && !row.pending.is_empty() {
                let ring = match &self.keys {
                    Keys::Ready(ring) => ring.newest().map(|key| (key, ring)),
                    _ => None,
                };
                round.keyless = ring.is_none();
                if let Some((key, ring)) = ring {
                    pack(cx, collection, &state, key, ring, &mut row);
                    cx.put(version_key(collection), codec::encode(&row));
                }
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
        let Some(round) = Round::of(&mut self.round, collection) else {
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
        round.leads_to = version.unwrap_or(0);
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
            let bytes = Bytes::copy_from_slice(bytes);
            let Ok(patch) = decode_list::<SyncdPatch>(bytes, 2, MAX_MUTATIONS) else {
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
            } else if items.is_empty() && round.announces(&row.pending) {
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
}

/// The piece that a collection without settings begins with.
fn nothing() -> Item {
    Item::Snapshot(ExternalBlobReference::default(), Some(Box::default()))
}
