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
//! Here: which collection has its turn, and why. A turn: `round`, its `answer`s, how they are `judge`d, and `settle`,
//! which writes. `change` and `pack`: changes of ours. `settings`: what settings do to rows. `trouble`: what does not add
//! up. `rows`: events, pages, rows. `files`: downloads. `keys`. `phone`: what the phone is asked for. `told`: what it
//! says. `history`: its past.

mod answer;
mod api;
mod change;
mod files;
mod history;
mod judge;
mod keys;
mod pack;
mod phone;
mod round;
mod rows;
mod settings;
mod settle;
mod told;
mod trouble;

pub use api::{
    CHUNK_BYTES, Chat, Contact, FetchId, Fetched, HistoryKind, HistoryMessage, HistoryPart,
    MediaRequest, Setting, SyncState, SyncStats,
};
pub(crate) use keys::keys_shared;
pub(crate) use rows::{SyncScan, from_row, to_row};
pub(crate) use told::{FromPhone, history_announced, phone_answered};

use super::{Command, CommandError, CommandId, Context, Reply, query::Answer};
use crate::{
    appstate::{Collection, KeyId, action::Action},
    jid::Jid,
    proto::{e2e, sync::SyncdSnapshotRecovery},
    state::{Key, MessageId, Micros, Row, UnixMillis},
    wire::node::Node,
};
use files::Files;
use history::History;
use keys::{Keys, Ring, read_key};
use phone::Phone;
use round::Round;
use std::collections::BTreeSet;
use trouble::RECOVERY_PATIENCE;

/// Questions for pages that may be open.
const PAGES: usize = 64;

const DAY_MS: i64 = 86_400_000;

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
    /// Somebody has asked for changes at this time. Rows may take a while, and a wall clock may go back meanwhile.
    Change(CommandId, UnixMillis, Vec<Action>),
    /// Ask the phone for something.
    Phone,
    /// It cannot read what we asked.
    PhoneRetry(Node),
    /// Take in a part of a chunk of history.
    Part,
    /// Ask the phone to upload a file again.
    AskReupload(MessageId),
    /// The phone has uploaded a file again (there it is), or will not.
    Reuploaded(MessageId, Option<Node>),
}

/// How long the phone has after a login to share its first keys by itself.
const FIRST_KEYS: Micros = Micros::from_secs(60);

/// What the engine knows of a collection that it is not working on.
#[derive(Debug, Default)]
struct Track {
    /// There is something to fetch or to announce.
    wanted: bool,
    /// Where it stood last, if that is known.
    version: Option<u64>,
    /// Keys that nothing goes on without.
    waiting: BTreeSet<KeyId>,
    /// Changes wait for the first key, whichever that is.
    keyless: bool,
    attempts: u32,
    not_before: Option<Micros>,
    given_up: bool,
    /// The phone was asked for it in clear, and has so long.
    recovery_until: Option<Micros>,
    recovery: Option<Box<SyncdSnapshotRecovery>>,
}

/// One for each collection, in their order. They are looked through with every input.
#[derive(Debug, Default)]
struct Tracks([Track; 5]);

impl Tracks {
    fn of(&mut self, collection: Collection) -> &mut Track {
        let [block, unblock, high, regular, low] = &mut self.0;
        match collection {
            Collection::CriticalBlock => block,
            Collection::CriticalUnblockLow => unblock,
            Collection::RegularHigh => high,
            Collection::Regular => regular,
            Collection::RegularLow => low,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Collection, &Track)> {
        Collection::ALL.into_iter().zip(&self.0)
    }

    fn values(&self) -> impl Iterator<Item = &Track> {
        self.0.iter()
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut Track> {
        self.0.iter_mut()
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Sync {
    tracks: Tracks,
    keys: Keys,
    round: Option<Round>,
    phone: Phone,
    files: Files,
    history: History,
    /// The first login of this engine has come: everything is fetched once, because a notification that a previous owner
    /// has acknowledged does not come again.
    started: bool,
    /// There is not one key: the phone has so long to share its first ones …
    first_keys: Option<Micros>,
    /// … and then the service is asked all the same. What it answers says which keys to ask the phone for.
    without_keys: bool,
    pages: BTreeSet<CommandId>,
}

impl Sync {
    fn track(&mut self, collection: Collection) -> &mut Track {
        self.tracks.of(collection)
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
        self.history.closed();
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
            let turn = self.tracks.iter().find(|(_, track)| {
                let due = track.not_before.is_none_or(|at| at <= now);
                track.wanted && !track.given_up && track.waiting.is_empty() && due
            });
            let Some(collection) = turn.map(|(collection, _)| collection) else {
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
                // The phone has not shared any yet; it does so by itself after linking. If that got lost (a database that
                // lost its last commits), it does not do it again.
                Keys::Ready(ring) if ring.ring.is_empty() && !self.without_keys => {
                    self.first_keys.get_or_insert(now.plus(FIRST_KEYS));
                    return None;
                }
                Keys::Ready(_) => {}
            }
            let track = self.track(collection);
            track.wanted = false;
            self.round = Some(Round::new(collection, track.recovery.take()));
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

    /// The service has answered about keys of devices, perhaps the phone's.
    pub(crate) fn bundles_answered(&mut self) {
        self.phone.bundles_answered();
    }

    /// `<ack class="receipt" type="hist_sync">`.
    pub(crate) fn history_receipt_acknowledged(&mut self, cx: &mut Context, id: &str) {
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
                Ok(()) => return Some(SyncWork::Change(id, cx.now.unix, actions)),
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

    // ---- rows -------------------------------------------------------------------------------------------------

    /// Rows that the work reads, those that are not known yet; a large number of them comes in portions.
    pub(crate) fn needs(&self, cx: &mut Context, work: &SyncWork) -> Vec<Key> {
        match work {
            SyncWork::Change(_, _, actions) => {
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
            SyncWork::Change(id, at, actions) => self.change(cx, id, at, &actions),
            SyncWork::Phone => self.phone.speak(cx),
            SyncWork::PhoneRetry(stanza) => self.phone.again(cx, &stanza),
            SyncWork::Part => self.history.take_part(cx),
            SyncWork::AskReupload(id) => self.history.ask_upload(cx, &id),
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
            .chain(self.first_keys)
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
        if self.first_keys.is_some_and(|until| until <= now) {
            self.first_keys = None;
            self.without_keys = true;
        }
        let late = self
            .tracks
            .iter()
            .filter(|(_, track)| track.recovery_until.is_some_and(|until| until <= now));
        let late: Vec<Collection> = late.map(|(collection, _)| collection).collect();
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

/// Where the own phone listens.
fn phone_of(cx: &Context) -> Option<Jid> {
    cx.account.address().map(Jid::bare)
}
