//! Settings, contacts, chats and history: what the devices of an account share beside messages (fact sheets 08, 07.17).
//!
//! One collection is worked on at a time, the others wait for their turn; one that is in trouble gives it up, waits or is
//! given up, and the others go on. A round is: ask the service, judge what it answers piece by piece, write what came of
//! each piece. Version, hash and value MACs of a collection change in the batch in which the settings change that they
//! describe, and nowhere else; that batch is all there is, so a crash leaves a collection before a piece or behind it.
//!
//! Changes of ours wait in the collection's row. The patch that announces them is written into it before it leaves, and
//! leaves as the same bytes until the service has said what became of it: taken, or another device was faster. Whether a
//! patch at the next version is ours is told by its MAC, so an answer that was lost loses nothing and doubles nothing.
//!
//! Here: which collection has its turn, and why. `round`: one collection's turn. `pack`: changes of ours.
//! `settle`: writing. `settings`: what settings do to rows.
//! `rows`: events, pages, rows. `files`: downloads. `phone`: what the phone is asked for. `history`: chunks of history.

mod api;
mod files;
mod history;
mod pack;
mod phone;
mod round;
mod rows;
mod settings;
mod settle;

pub use api::{
    CHUNK_BYTES, Chat, Contact, FetchId, Fetched, HistoryKind, HistoryMessage, HistoryPart,
    MediaRequest, Setting, SyncState, SyncStats,
};
pub(crate) use rows::{SyncScan, from_row, to_row};

use super::{Command, CommandError, CommandId, Context, Event, Notice, Reply, query::Answer};
use crate::{
    appstate::{
        Change, Collection, KeyId, KeyRing, MAX_INDEX_BYTES, Operation, SyncKey, action::Action,
        read_recovery,
    },
    jid::Jid,
    proto::{e2e, record, sync::SyncdSnapshotRecovery},
    state::{Key, MessageId, Micros, Record, Row, codec},
    wire::node::Node,
};
use files::Files;
use history::History;
use phone::Phone;
use prost::Message as _;
use round::Round;
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

/// Changes of ours that may wait in a collection.
const PENDING: usize = 1024;

/// Bytes of values of such changes.
const PENDING_BYTES: usize = 1 << 20;

/// Questions for pages that may be open.
const PAGES: usize = 64;

/// Rounds of a collection that may fail before it is given up until the next login.
const ATTEMPTS: u32 = 5;

/// Pause after such a failure; doubles with each.
const PAUSE: Micros = Micros::from_secs(2);

/// Times in a day that a collection may be replaced because it has diverged. More than that, and whatever is wrong is not
/// mended by asking again.
const RESYNCS: usize = 3;

const DAY_MS: i64 = 86_400_000;

/// Older keys under which a setting is looked for. A key is replaced when a device leaves.
const OLD_KEYS: usize = 8;

/// How long the phone has to tell a collection in clear.
const RECOVERY_PATIENCE: Micros = Micros::from_secs(60);

/// It is asked again after so long, unix milliseconds.
const RECOVERY_PAUSE_MS: i64 = 3_600_000;

/// Most keys that are kept in memory while settings are worked on.
const KEYS: usize = 1024;

/// What the phone has said that is not a message.
#[derive(Debug)]
pub(crate) enum FromPhone {
    /// A key; its row is written.
    Key(SharedKey),
    /// It has announced a chunk of history; its row is written.
    History(MessageId, record::HistoryJob),
    /// It has told a collection in clear.
    Recovery(Box<SyncdSnapshotRecovery>),
}

/// A key as the phone shares it.
pub(crate) struct SharedKey {
    pub(crate) id: KeyId,
    pub(crate) data: Zeroizing<[u8; 32]>,
    /// Unix milliseconds; the newest is the one to use.
    pub(crate) at: i64,
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedKey({:?})", self.id)
    }
}

/// Work of settings and history that needs rows.
#[derive(Debug)]
pub(crate) enum SyncWork {
    /// Ask the service for a collection, or give it our changes.
    Ask(Collection),
    /// It has answered; `true` if our changes were with the question.
    Answered(Collection, bool, Answer),
    /// Judge the next piece of the answer.
    Judge(Collection),
    /// Write what came of it.
    Settle(Collection),
    /// Somebody wants to change something.
    Change(CommandId, Vec<Action>),
    /// Ask the phone for something.
    Phone,
    /// It cannot read what we asked.
    PhoneRetry(Node),
    /// Take in a part of a chunk of history.
    Part,
    /// Ask the phone once more to upload a file again: the request may have been lost with a connection.
    AskReupload(MessageId),
    /// The phone has uploaded a file again (there it is), or will not.
    Reuploaded(MessageId, Option<Node>),
}

/// What the engine knows of a collection that it is not working on.
#[derive(Debug, Default)]
struct Track {
    /// There is something to fetch or to announce.
    wanted: bool,
    /// Where it stood last, if that is known.
    version: Option<u64>,
    /// Keys that nothing goes on without.
    waiting: BTreeSet<KeyId>,
    attempts: u32,
    not_before: Option<Micros>,
    given_up: bool,
    /// The phone was asked for it in clear, and has so long.
    recovery_until: Option<Micros>,
    recovery: Option<Box<SyncdSnapshotRecovery>>,
}

/// The keys of the account, while they are needed.
#[derive(Debug, Default)]
enum Keys {
    #[default]
    Unloaded,
    Loading(Ring),
    Ready(Ring),
}

#[derive(Debug, Default)]
struct Ring {
    ring: KeyRing,
    /// When and what the newest is.
    newest: Option<(i64, KeyId)>,
    /// When the phone was asked for a key, unix milliseconds.
    asked: BTreeMap<KeyId, i64>,
}

impl Ring {
    fn insert(&mut self, id: KeyId, data: &[u8; 32], at: i64) {
        if self.ring.len() >= KEYS && !self.ring.has(&id) {
            return;
        }
        self.asked.remove(&id);
        let this = Some((at, id.clone()));
        if this > self.newest {
            self.newest = this;
        }
        self.ring.insert(SyncKey::expand(id, data));
    }

    fn newest(&self) -> Option<&SyncKey> {
        self.newest.as_ref().and_then(|(_, id)| self.ring.get(id))
    }

    /// What a setting may be filed under: by the newest key, and by some older ones. Somebody who sets it again after the
    /// key was changed may leave it standing under the old one.
    fn names<'a>(&'a self, index: &[u8]) -> impl Iterator<Item = (&'a SyncKey, [u8; 32])> {
        let newest = self.newest();
        let older = self.ring.iter().rev();
        let older = older.filter(move |key| newest.is_none_or(|newest| newest.id() != key.id()));
        newest
            .into_iter()
            .chain(older.take(OLD_KEYS))
            .map(move |key| (key, key.index_mac(index)))
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Sync {
    tracks: BTreeMap<Collection, Track>,
    keys: Keys,
    round: Option<Round>,
    phone: Phone,
    files: Files,
    history: History,
    /// The first login of this engine has come: everything is fetched once, because a notification that a previous owner
    /// has acknowledged does not come again.
    started: bool,
    pages: BTreeSet<CommandId>,
}

impl Default for Sync {
    fn default() -> Self {
        let tracks = Collection::ALL.map(|collection| (collection, Track::default()));
        Self {
            tracks: tracks.into(),
            keys: Keys::default(),
            round: None,
            phone: Phone::default(),
            files: Files::default(),
            history: History::default(),
            started: false,
            pages: BTreeSet::new(),
        }
    }
}

impl Sync {
    fn track(&mut self, collection: Collection) -> &mut Track {
        self.tracks.entry(collection).or_default()
    }

    /// Something may have changed in a collection; it leads to this version, if that is known.
    pub(crate) fn want(&mut self, collection: Collection, version: Option<u64>) {
        let track = self.track(collection);
        // A notification that we caused ourselves, or that came late.
        if version.is_some() && version <= track.version {
            return;
        }
        track.wanted = true;
    }

    fn want_all(&mut self) {
        Collection::ALL
            .into_iter()
            .for_each(|collection| self.want(collection, None));
    }

    /// `<notification type="server_sync">`: collections that other devices have changed.
    pub(crate) fn heard(&mut self, collections: &[(Collection, Option<u64>)]) {
        for (collection, version) in collections {
            self.want(*collection, *version);
        }
    }

    /// The account is online.
    pub(crate) fn online(&mut self, cx: &mut Context) {
        for track in self.tracks.values_mut() {
            if track.recovery_until.is_some() {
                // The phone has not answered yet, or its answer is about to come.
                track.recovery_until = Some(cx.now.mono.plus(RECOVERY_PATIENCE));
                continue;
            }
            if std::mem::take(&mut track.given_up) {
                track.wanted = true;
            }
            track.attempts = 0;
            track.not_before = None;
            // Tried again once per login: then the phone is asked again, if that was long ago.
            track.waiting.clear();
        }
        if !self.started {
            self.started = true;
            self.want_all();
            cx.ask_scan(SyncScan::Jobs(None));
        }
        self.history.online(cx);
    }

    /// The connection has ended.
    pub(crate) fn closed(&mut self) {
        self.phone.closed();
        self.files.closed();
    }

    /// The next work, if there is some. Asked again after each.
    pub(crate) fn advance(&mut self, cx: &mut Context, online: bool) -> Option<SyncWork> {
        let work = self.next(cx, online);
        // Behind the rest, which may have found out that it needs files.
        self.files.advance(cx, online);
        work
    }

    fn next(&mut self, cx: &mut Context, online: bool) -> Option<SyncWork> {
        while let Some(told) = cx.from_phone.pop_front() {
            self.told(cx, told);
        }
        if !cx.account.is_linked() {
            return None;
        }
        if online && self.phone.is_due() {
            return Some(SyncWork::Phone);
        }
        if let Some(work) = self.history.advance(cx, &mut self.files) {
            return Some(work);
        }
        loop {
            if self.round.is_some() {
                if let Some(work) = self.round_on(cx, online) {
                    return Some(work);
                }
                if self.round.is_some() {
                    return None;
                }
            }
            if !online {
                return None;
            }
            let now = cx.now.mono;
            let mut turn = self.tracks.iter().filter(|(_, track)| {
                let due = track.not_before.is_none_or(|at| at <= now);
                track.wanted && !track.given_up && track.waiting.is_empty() && due
            });
            let Some(collection) = turn.next().map(|(collection, _)| *collection) else {
                let idle = self.tracks.values().all(|track| !track.wanted);
                if idle && matches!(self.keys, Keys::Ready(_)) {
                    // A kilobyte each, and nobody needs them.
                    self.keys = Keys::Unloaded;
                }
                return None;
            };
            match &self.keys {
                Keys::Unloaded => {
                    self.keys = Keys::Loading(Ring::default());
                    cx.ask_scan(SyncScan::Keys(None));
                    return None;
                }
                Keys::Loading(_) => return None,
                // The phone has not shared any yet; it does so by itself after linking.
                Keys::Ready(ring) if ring.ring.is_empty() => return None,
                Keys::Ready(_) => {}
            }
            let track = self.track(collection);
            track.wanted = false;
            self.round = Some(Round::new(collection, track.recovery.take()));
        }
    }

    fn told(&mut self, cx: &mut Context, told: FromPhone) {
        match told {
            FromPhone::Key(SharedKey { id, data, at }) => {
                cx.stats.sync.keys += 1;
                if let Keys::Loading(ring) | Keys::Ready(ring) = &mut self.keys {
                    ring.insert(id.clone(), &data, at);
                }
                for track in self.tracks.values_mut() {
                    if track.waiting.remove(&id) && track.waiting.is_empty() {
                        track.attempts = 0;
                        track.not_before = None;
                    }
                }
            }
            FromPhone::History(id, job) => self.history.announced(cx, id, job),
            FromPhone::Recovery(recovery) => {
                let name = recovery.collection_name.as_deref().unwrap_or_default();
                let Ok(collection) = name.parse() else {
                    return cx.protocol_error("a recovery of no collection");
                };
                let track = self.track(collection);
                // One that nobody asked for, or that came too late, would undo what we know.
                if track.recovery_until.take().is_some() {
                    track.recovery = Some(recovery);
                    track.given_up = false;
                    track.wanted = true;
                    track.attempts = 0;
                    track.not_before = None;
                }
            }
        }
    }

    /// A receipt says that our phone cannot read what we asked it. Returns the work of asking again.
    pub(crate) fn phone_retry(&self, cx: &Context, stanza: &Node) -> Option<SyncWork> {
        let from = stanza.get_jid("from")?;
        let id = stanza.get_string("id")?;
        let mine = from.device() == 0 && cx.account.is_mine(&from);
        (mine && self.phone.has_asked(&id)).then(|| SyncWork::PhoneRetry(stanza.clone()))
    }

    /// `<notification type="mediaretry">`: returns the work of taking it in, if we asked for that file.
    pub(crate) fn media_retry(&self, stanza: &Node) -> Option<SyncWork> {
        let id = MessageId::from(stanza.get_string("id")?);
        let asked = self.history.has_asked(&id);
        asked.then(|| SyncWork::Reuploaded(id, Some(stanza.clone())))
    }

    /// The service has acknowledged a message of ours, perhaps one to the phone.
    pub(crate) fn acknowledged(&mut self, cx: &mut Context, id: &str, refused: bool) {
        let keys = self.phone.acknowledged(id, refused);
        let at = cx.now.unix.0;
        for id in keys {
            if let Keys::Ready(ring) | Keys::Loading(ring) = &mut self.keys {
                ring.asked.insert(id.clone(), at);
            }
            // Until the phone answers, the row says when it was asked: not again within a day, by whatever owner.
            let row = e2e::AppStateSyncKey {
                key_id: Some(e2e::AppStateSyncKeyId {
                    key_id: Some(id.as_bytes().to_vec()),
                }),
                key_data: Some(e2e::AppStateSyncKeyData {
                    timestamp: Some(at),
                    ..Default::default()
                }),
            };
            let has = match &self.keys {
                Keys::Ready(ring) | Keys::Loading(ring) => ring.ring.has(&id),
                // Shared meanwhile, perhaps: the row of a key must not be overwritten.
                Keys::Unloaded => true,
            };
            if !has {
                cx.put(
                    Key::AppStateSyncKey(id.as_bytes().clone()),
                    codec::wrap(&row.encode_to_vec()),
                );
            }
        }
    }

    /// The service has answered about keys of devices, perhaps the phone's.
    pub(crate) fn bundles_answered(&mut self) {
        self.phone.bundles_answered();
    }

    /// `<ack class="receipt">`.
    pub(crate) fn receipt_acknowledged(&mut self, cx: &mut Context, id: &str) {
        self.history.receipt_acknowledged(cx, id);
    }

    // ---- commands ---------------------------------------------------------------------------------------------

    /// Takes a command of these floors. Returns work if it needs rows.
    pub(crate) fn command(
        &mut self,
        cx: &mut Context,
        id: CommandId,
        command: Command,
    ) -> Option<SyncWork> {
        let scan = match command {
            Command::Change(actions) => match Self::check(cx, &actions) {
                Ok(()) => return Some(SyncWork::Change(id, actions)),
                Err(error) => {
                    cx.reply(id, Err(error));
                    return None;
                }
            },
            Command::Sync(which) => {
                let result = if cx.account.is_linked() {
                    Ok(Reply::Done)
                } else {
                    Err(CommandError::NotLinked)
                };
                match which {
                    Some(collection) => self.want(collection, None),
                    None => self.want_all(),
                }
                cx.reply(id, result);
                return None;
            }
            Command::Contacts { after, limit } => {
                SyncScan::Contacts(id, after, limit.clamp(1, rows::PAGE))
            }
            Command::Chats { after, limit } => {
                SyncScan::Chats(id, after, limit.clamp(1, rows::PAGE))
            }
            Command::Settings {
                collection,
                after,
                limit,
            } => SyncScan::Settings(id, collection, after, limit.clamp(1, rows::PAGE)),
            _ => return None,
        };
        let after = scan.scan().after;
        let named = |key: &Key| crate::state::rules::key(key).is_ok();
        if !after.as_ref().is_none_or(named) {
            cx.reply(id, Err(CommandError::Invalid("no such address")));
        } else if self.pages.len() >= PAGES {
            cx.reply(id, Err(CommandError::Busy));
        } else {
            self.pages.insert(id);
            cx.ask_scan(scan);
        }
        None
    }

    /// What is wrong with changes, whatever the state of the account.
    fn check(cx: &Context, actions: &[Action]) -> Result<(), CommandError> {
        if !cx.account.is_linked() {
            return Err(CommandError::NotLinked);
        }
        if actions.is_empty() || actions.len() > PENDING {
            return Err(CommandError::Invalid("1 to 1024 changes at once"));
        }
        for action in actions {
            let Some((_, change)) = action.change(0) else {
                return Err(CommandError::Invalid("a setting that we do not understand"));
            };
            let row = settings::row_of(action);
            let named = row.is_none_or(|key| crate::state::rules::key(&key).is_ok());
            let long = change.index.len() > MAX_INDEX_BYTES
                || change.value.encoded_len() > PENDING_BYTES / 4;
            // It has to mean the same to us when it comes back.
            if long || !named || !means_the_same(action, &change) {
                return Err(CommandError::Invalid("a setting with an impossible value"));
            }
        }
        Ok(())
    }

    /// Puts changes into the rows of their collections.
    fn change(&mut self, cx: &mut Context, id: CommandId, actions: &[Action]) {
        let at = cx.now.unix.0;
        let mut rows: BTreeMap<Collection, record::Collection> = BTreeMap::new();
        for action in actions {
            let Some((collection, change)) = action.change(at) else {
                continue;
            };
            let row = rows.entry(collection).or_insert_with(|| {
                cx.read(&Key::AppStateVersion(collection.name()))
                    .unwrap_or_default()
            });
            // The patch on its way is what it is; whatever waits behind it can still be replaced.
            let fixed = row
                .in_flight
                .as_ref()
                .map_or(0, |flight| flight.changes() as usize)
                .min(row.pending.len());
            let mut waiting = row.pending.split_off(fixed);
            waiting.retain(|other| other.index.as_ref() != Some(&change.index));
            row.pending.append(&mut waiting);
            row.pending.push(pending_of(&change));
        }
        let bytes = |row: &record::Collection| {
            row.pending
                .iter()
                .map(|change| change.encoded_len())
                .sum::<usize>()
        };
        if rows
            .values()
            .any(|row| row.pending.len() > PENDING || bytes(row) > PENDING_BYTES)
        {
            cx.reply(id, Err(CommandError::Busy));
            return;
        }
        for (collection, row) in rows {
            cx.put(Key::AppStateVersion(collection.name()), codec::encode(&row));
            self.want(collection, None);
        }
        cx.reply(id, Ok(Reply::Done));
    }

    // ---- rows -------------------------------------------------------------------------------------------------

    /// Rows that the work reads, those that are not known yet; a large number of them comes in portions.
    pub(crate) fn needs(&self, cx: &mut Context, work: &SyncWork) -> Vec<Key> {
        match work {
            SyncWork::Change(_, actions) => {
                let collections: BTreeSet<Collection> =
                    actions.iter().filter_map(Action::collection).collect();
                collections
                    .into_iter()
                    .map(|c| Key::AppStateVersion(c.name()))
                    .collect()
            }
            SyncWork::Phone | SyncWork::PhoneRetry(_) => self.phone.needs(cx),
            SyncWork::Part => self.history.needs(cx),
            SyncWork::AskReupload(id) | SyncWork::Reuploaded(id, _) => vec![history::job_key(id)],
            SyncWork::Ask(collection)
            | SyncWork::Answered(collection, ..)
            | SyncWork::Judge(collection)
            | SyncWork::Settle(collection) => self.round_needs(cx, work, *collection),
        }
    }

    /// Does it. Returns what has to follow at once.
    pub(crate) fn execute(&mut self, cx: &mut Context, work: SyncWork) -> Option<SyncWork> {
        match work {
            SyncWork::Change(id, actions) => self.change(cx, id, &actions),
            SyncWork::Phone => self.phone.speak(cx),
            SyncWork::PhoneRetry(stanza) => self.phone.again(cx, &stanza),
            SyncWork::Part => self.history.take_part(cx),
            SyncWork::AskReupload(id) => self.history.ask_again(cx, &id),
            SyncWork::Reuploaded(id, answer) => self.history.reuploaded(cx, &id, answer.as_ref()),
            SyncWork::Ask(collection) => self.ask(cx, collection),
            SyncWork::Answered(collection, upload, answer) => {
                self.answered(cx, collection, upload, &answer);
            }
            SyncWork::Judge(collection) => return self.judge(cx, collection),
            SyncWork::Settle(collection) => self.settle(cx, collection),
        }
        None
    }

    /// The store has answered a scan. Returns a page for whoever asked.
    pub(crate) fn scanned(&mut self, cx: &mut Context, scan: SyncScan, rows: Vec<(Key, Row)>) {
        if let Some(id) = scan.command() {
            self.pages.remove(&id);
            if let Some(reply) = rows::page(cx, &scan, rows) {
                cx.reply(id, Ok(reply));
            }
            return;
        }
        let last = rows.last().map(|(key, _)| key.clone());
        let asked = scan.scan();
        // A store that gives the same rows again and again would keep us here for ever.
        let full = rows.len() >= asked.limit as usize && last > asked.after;
        match scan {
            SyncScan::Jobs(_) => {
                let here = |key: &Key| matches!(key, Key::AppStateVersion(name) if name.starts_with(rows::HISTORY));
                let more = full && last.as_ref().is_some_and(here);
                self.history
                    .start(cx, rows.into_iter().filter(|(key, _)| here(key)).collect());
                if more {
                    cx.ask_scan(SyncScan::Jobs(last));
                }
            }
            SyncScan::Keys(_) => {
                let Keys::Loading(mut ring) = std::mem::take(&mut self.keys) else {
                    return;
                };
                for (key, row) in rows {
                    read_key(cx, &mut ring, key, &row);
                }
                if full {
                    self.keys = Keys::Loading(ring);
                    cx.ask_scan(SyncScan::Keys(last));
                } else {
                    self.keys = Keys::Ready(ring);
                }
            }
            SyncScan::Macs(collection, _) => self.existing(cx, collection, rows, full),
            SyncScan::Contacts(..) | SyncScan::Chats(..) | SyncScan::Settings(..) => {}
        }
    }

    /// A download goes on.
    pub(crate) fn fetched(&mut self, cx: &mut Context, id: FetchId, what: Fetched<'_>) {
        if self.history.is_fetching(id) {
            self.history.fetched(cx, &mut self.files, what);
        } else {
            self.round_fetched(cx, id, what);
        }
    }

    /// The service has told where files are, or not.
    pub(crate) fn hosts_answered(&mut self, cx: &mut Context, answer: &Answer) {
        self.files.hosts_answered(cx, answer);
    }

    /// Commands that wait for something.
    pub(crate) fn abandon(&mut self) -> Vec<CommandId> {
        std::mem::take(&mut self.pages).into_iter().collect()
    }

    // ---- time -------------------------------------------------------------------------------------------------

    /// When something has to be done.
    pub(crate) fn wake(&self) -> Option<Micros> {
        let ready = self
            .tracks
            .values()
            .filter(|track| track.wanted && !track.given_up);
        let round = self.round.as_ref().and_then(Round::deadline);
        let phone = self.tracks.values().filter_map(|t| t.recovery_until);
        ready
            .filter_map(|track| track.not_before)
            .chain(phone)
            .chain(round)
            .chain(self.history.deadline())
            .min()
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, cx: &mut Context) {
        for track in self.tracks.values_mut() {
            if track.not_before.is_some_and(|at| at <= cx.now.mono) {
                track.not_before = None;
            }
        }
        let now = cx.now.mono;
        let late = self
            .tracks
            .iter()
            .filter(|(_, track)| track.recovery_until.is_some_and(|until| until <= now));
        let late: Vec<Collection> = late.map(|(collection, _)| *collection).collect();
        for collection in late {
            self.track(collection).recovery_until = None;
            self.give_up(
                cx,
                collection,
                "it does not add up, and the phone does not tell it",
            );
        }
        self.round_tick(cx);
        self.history.tick(cx, &mut self.files);
    }

    // ---- trouble ----------------------------------------------------------------------------------------------

    /// A round has failed for a reason that may pass. The collection is tried again later, a few times.
    fn failed(&mut self, cx: &mut Context, collection: Collection, why: &str) {
        self.end_round(cx);
        let now = cx.now.mono;
        let track = self.track(collection);
        track.wanted = true;
        track.attempts += 1;
        if track.attempts >= ATTEMPTS {
            return self.give_up(cx, collection, why);
        }
        track.not_before = Some(now.plus(Micros(PAUSE.0 << track.attempts)));
        cx.notice(Notice::Sync(
            collection,
            SyncState::Later { why: why.into() },
        ));
    }

    fn give_up(&mut self, cx: &mut Context, collection: Collection, why: &str) {
        self.end_round(cx);
        cx.stats.sync.given_up += 1;
        let track = self.track(collection);
        track.given_up = true;
        track.wanted = true;
        track.not_before = None;
        cx.notice(Notice::Sync(
            collection,
            SyncState::GivenUp { why: why.into() },
        ));
        cx.emit(Event::SyncFailed {
            collection,
            why: why.into(),
        });
    }

    /// A collection does not add up: what was refused is noted in its row, and nothing but a snapshot is believed from
    /// here on. Too often in a day, and it is given up. Needs the collection's row.
    fn diverged(&mut self, cx: &mut Context, collection: Collection, why: &str, digest: [u8; 32]) {
        let key = Key::AppStateVersion(collection.name());
        let mut row: record::Collection = cx.read(&key).unwrap_or_default();
        let now = cx.now.unix.0;
        row.evidence.push(record::Evidence {
            at: Some(now),
            version: row.version,
            what: Some(why.into()),
            digest: Some(digest.to_vec()),
        });
        let surplus = row.evidence.len().saturating_sub(2 * RESYNCS + 2);
        row.evidence.drain(..surplus);
        let recent = row
            .evidence
            .iter()
            .filter(|it| now.saturating_sub(it.at()) < DAY_MS)
            .count();
        row.diverged = Some(true);
        let asked = row.recovery_asked.unwrap_or(i64::MIN);
        let ask = recent > RESYNCS && now.saturating_sub(asked) >= RECOVERY_PAUSE_MS;
        if ask {
            row.recovery_asked = Some(now);
        }
        cx.put(key, codec::encode(&row));
        if ask {
            return self.recover(cx, collection);
        }
        if recent > RESYNCS {
            return self.give_up(cx, collection, why);
        }
        cx.stats.sync.resyncs += 1;
        cx.notice(Notice::Sync(
            collection,
            SyncState::Diverged { why: why.into() },
        ));
        self.end_round(cx);
        self.track(collection).wanted = true;
    }

    /// The service's snapshots do not add up either: the phone is asked what it has. Until it answers nothing is tried.
    fn recover(&mut self, cx: &mut Context, collection: Collection) {
        self.end_round(cx);
        cx.stats.sync.recovery_requests += 1;
        self.phone.ask_recovery(collection);
        let until = cx.now.mono.plus(RECOVERY_PATIENCE);
        let track = self.track(collection);
        track.wanted = true;
        track.given_up = true;
        track.recovery_until = Some(until);
        cx.notice(Notice::Sync(collection, SyncState::AskedPhone));
    }

    /// Keys are missing: the phone is asked for them, and the collection waits.
    fn wait_for_keys(&mut self, cx: &mut Context, collection: Collection, missing: Vec<KeyId>) {
        self.end_round(cx);
        cx.stats.sync.missing_keys += 1;
        let now = cx.now.unix.0;
        let asked = match &self.keys {
            Keys::Ready(ring) | Keys::Loading(ring) => &ring.asked,
            Keys::Unloaded => &BTreeMap::new(),
        };
        let recently = |id: &KeyId| {
            asked
                .get(id)
                .is_some_and(|at| now.saturating_sub(*at) < DAY_MS)
        };
        self.phone
            .ask_keys(missing.iter().filter(|id| !recently(id)).cloned());
        let track = self.track(collection);
        track.wanted = true;
        track.waiting = missing.into_iter().take(KEYS).collect();
        let keys = track.waiting.len();
        cx.notice(Notice::Sync(collection, SyncState::WaitingForKeys { keys }));
    }
}

/// Whether an action that is announced comes back as what it was.
fn means_the_same(action: &Action, change: &Change) -> bool {
    let data = crate::proto::sync::SyncActionData {
        index: Some(change.index.clone()),
        value: Some(change.value.clone()),
        ..Default::default()
    };
    let removed = change.operation == Operation::Remove;
    let setting = rows::setting_of(
        Collection::Regular,
        removed,
        change.index.clone(),
        data.encode_to_vec(),
        true,
    );
    setting.action == *action
}

fn pending_of(change: &Change) -> record::PendingChange {
    record::PendingChange {
        remove: (change.operation == Operation::Remove).then_some(true),
        index: Some(change.index.clone()),
        value: Some(change.value.encode_to_vec()),
        version: Some(change.version),
    }
}

fn read_key(cx: &mut Context, ring: &mut Ring, key: Key, row: &Row) {
    let read = |record: &Record| {
        let shared = e2e::AppStateSyncKey::decode(codec::payload(record).ok()?).ok()?;
        let id = KeyId::new(shared.key_id?.key_id?)?;
        let data = shared.key_data.unwrap_or_default();
        Some((
            id,
            data.key_data.map(Zeroizing::new),
            data.timestamp.unwrap_or(0),
        ))
    };
    let Row::Present(record) = row else {
        return cx.corrupt(key);
    };
    match read(record) {
        Some((id, None, at)) => {
            ring.asked.insert(id, at);
        }
        Some((id, Some(data), at)) => match <&[u8; 32]>::try_from(data.as_slice()) {
            Ok(data) => ring.insert(id, data, at),
            Err(_) => cx.corrupt(key),
        },
        None => cx.corrupt(key),
    }
}

/// What the own phone shares. Called where its message is taken in: the rows join the batch of the message.
pub(crate) fn keys_shared(cx: &mut Context, share: &e2e::AppStateSyncKeyShare) {
    for key in &share.keys {
        let id = key.key_id.as_ref().and_then(|id| id.key_id.clone());
        let Some(id) = id.and_then(KeyId::new) else {
            continue;
        };
        // An item without data: the phone does not have that one.
        let Some(data) = &key.key_data else { continue };
        let bytes = data.key_data.as_deref().unwrap_or_default();
        let Ok(bytes) = <[u8; 32]>::try_from(bytes) else {
            if data.key_data.is_some() {
                cx.protocol_error("an app state key of other than 32 bytes");
            }
            continue;
        };
        cx.put(
            Key::AppStateSyncKey(id.as_bytes().clone()),
            codec::wrap(&key.encode_to_vec()),
        );
        cx.from_phone.push_back(FromPhone::Key(SharedKey {
            id,
            data: Zeroizing::new(bytes),
            at: data.timestamp.unwrap_or(0),
        }));
    }
}

/// The own phone has announced a chunk of history. It is a row until it has been taken in.
pub(crate) fn history_announced(
    cx: &mut Context,
    id: &MessageId,
    notification: &e2e::HistorySyncNotification,
) {
    let order = cx.counters.next_order.unwrap_or(1);
    cx.counters.next_order = Some(order + 1);
    cx.save_counters();
    let job = record::HistoryJob {
        notification: Some(notification.encode_to_vec()),
        order: Some(order),
        ..Default::default()
    };
    let key = Key::AppStateVersion(format!("{}{id}", rows::HISTORY).into());
    if crate::state::rules::key(&key).is_err() {
        return cx.protocol_error("an announcement of history with an impossible id");
    }
    cx.put(key, codec::encode(&job));
    cx.from_phone.push_back(FromPhone::History(id.clone(), job));
}

/// Keeps the secret of a message that was just received.
pub(crate) fn secret_shown(
    cx: &mut Context,
    chat: &Jid,
    sender: &Jid,
    id: &str,
    message: &e2e::Message,
) {
    // Ours go by one address, whichever device has sent them.
    let own = cx.account.address().map(Jid::bare);
    let own = own.filter(|_| cx.account.is_mine(sender));
    let sender = own.as_ref().unwrap_or(sender);
    if let Some(secret) = history::secret_in(message) {
        history::keep_secret(cx, chat, sender, id, secret);
    }
}

/// The phone's answer to a question of ours. Anything but a collection in clear is for others. Returns whether it is
/// one.
pub(crate) fn phone_answered(cx: &mut Context, answer: &[u8]) -> bool {
    let Ok(answer) = e2e::PeerDataOperationRequestResponseMessage::decode(answer) else {
        return false;
    };
    if answer.r#type != Some(phone::RECOVERY) {
        return false;
    }
    for result in answer.results {
        let Some(told) = result.syncd_snapshot_fatal_recovery_response else {
            continue;
        };
        let bytes = told.collection_snapshot.as_deref().unwrap_or_default();
        match read_recovery(bytes, told.is_compressed.unwrap_or(false)) {
            Some(recovery) => cx
                .from_phone
                .push_back(FromPhone::Recovery(Box::new(recovery))),
            None => {
                cx.stats.sync.malformed += 1;
                cx.protocol_error("a recovery that does not decode");
            }
        }
    }
    true
}

/// Where the own phone listens.
fn phone_of(cx: &Context) -> Option<Jid> {
    cx.account.address().map(Jid::bare)
}
