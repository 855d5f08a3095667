//! Chunks of history: announced by the phone, fetched, inflated and taken in part by part (fact sheet 07.17).
//!
//! An announcement is a row until its chunk has been taken in. Of a chunk, no more is in memory than the part that is
//! being written: a part is at most 64 KiB of messages, and the download goes on when that part is durable. How
//! many items are taken in stands in the row and changes with them, so a chunk that is read again after a crash shows
//! nothing twice. The phone hears that it was received when all of it is durable, and not before.
//!
//! Here: which chunk has its turn, and its end. `run`: reading it. `learn`: what it does to rows. `reupload`: files that
//! are gone.

mod learn;
mod reupload;
mod run;

pub(super) use learn::{keep_secret, secret_in};

use super::{
    Fetched, HistoryKind, HistoryPart, SyncWork,
    files::{Fetch, FileRef, Files},
    rows::HISTORY,
};
use crate::{
    crypto::sha256,
    flow::{Context, Event, FetchId, Notice},
    history::{HistoryReader, Piece},
    jid::Jid,
    media::{MediaKind, Survey},
    proto::{e2e, record},
    state::{Key, MessageId, Micros, Row, codec},
    wire::node::Node,
};
use learn::{address, learn};
use prost::Message as _;
use reupload::{Waiting, ask_reupload, can_ask, read_reupload};
use run::{Failure, Run, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Longest chunk, compressed. The phone cuts at a tenth of that.
const FILE_BYTES: u64 = 512 << 20;

/// Announcements that wait in memory; more are found by the next owner.
const JOBS: usize = 256;

/// Times that a chunk may fail.
const FAILURES: u32 = 3;

/// Pause after a failure.
const PAUSE: Micros = Micros::from_secs(10);

/// Times that the phone is told, if the service does not confirm it.
const TOLD: u32 = 3;

pub(super) fn job_key(id: &str) -> Key {
    Key::AppStateVersion(format!("{HISTORY}{id}").into())
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// By place in the queue.
    jobs: BTreeMap<u64, MessageId>,
    /// Their files are gone: the phone is asked to upload them again, or will be as soon as there is a connection.
    waiting: BTreeMap<MessageId, Waiting>,
    /// Those to be asked for on this connection.
    unasked: BTreeSet<MessageId>,
    /// There is a connection, and the login came through.
    online: bool,
    /// Taken in, and told to the phone so often.
    finished: BTreeMap<MessageId, u32>,
    run: Option<Run>,
    starting: bool,
    not_before: Option<Micros>,
}

impl History {
    /// Takes in what a previous owner left.
    pub(super) fn start(&mut self, cx: &mut Context, rows: Vec<(Key, Row)>) {
        for (key, row) in rows {
            let Key::AppStateVersion(name) = &key else {
                continue;
            };
            let Some(id) = name.strip_prefix(HISTORY).map(MessageId::from) else {
                continue;
            };
            let job: Option<record::HistoryJob> = match &row {
                Row::Present(record) => codec::decode(record).ok(),
                _ => None,
            };
            match job {
                Some(job) if job.finished() => {
                    self.tell(cx, &id);
                }
                Some(job) => self.announced(id, job),
                None => cx.corrupt(key),
            }
        }
    }

    pub(super) fn announced(&mut self, id: MessageId, job: record::HistoryJob) {
        let known = self.jobs.values().any(|known| *known == id) || self.waiting.contains_key(&id);
        if known || self.jobs.len() + self.waiting.len() >= JOBS {
            return;
        }
        if job.unanswered() {
            // What the phone has answered to a previous owner may have gone with that one.
            self.wait(id, job.order());
        } else {
            self.jobs.insert(job.order(), id);
        }
    }

    /// The phone has to upload a file again. It is asked at once, or when the account is online.
    fn wait(&mut self, id: MessageId, order: u64) {
        if self.online {
            self.unasked.insert(id.clone());
        }
        self.waiting.insert(id, Waiting::new(order));
    }

    /// The account is online: what the phone may not have heard is said again.
    pub(super) fn online(&mut self, cx: &mut Context) {
        self.online = true;
        let ids: Vec<MessageId> = self.finished.keys().cloned().collect();
        for id in ids {
            self.tell(cx, &id);
        }
        let again = self.waiting.iter_mut();
        let again = again.filter_map(|(id, file)| file.ask_again().then(|| id.clone()));
        self.unasked = again.collect();
        self.not_before = None;
    }

    /// The connection has ended. The phone cannot be asked, and what it answers comes on the next one.
    pub(super) fn closed(&mut self) {
        self.online = false;
        self.unasked.clear();
    }

    /// Tells the phone that a chunk was received: then it sends the next one.
    fn tell(&mut self, cx: &mut Context, id: &MessageId) {
        let told = self.finished.entry(id.clone()).or_default();
        if *told >= TOLD {
            self.finished.remove(id);
            cx.delete(job_key(id));
            return;
        }
        let Some(own) = cx.account.jid.as_ref().map(Jid::bare) else {
            return;
        };
        if self.online {
            *told += 1;
            let receipt = Node::new("receipt").attr("id", id.clone()).attr("to", own);
            cx.send(&receipt.attr("type", "hist_sync"));
        }
    }

    pub(super) fn receipt_acknowledged(&mut self, cx: &mut Context, id: &str) {
        if self.finished.remove(id).is_some() {
            cx.delete(job_key(id));
        }
    }

    /// The next work.
    pub(super) fn advance(&mut self, cx: &mut Context, files: &mut Files) -> Option<SyncWork> {
        let Some(run) = &mut self.run else {
            let now = cx.now.mono;
            if let Some(id) = self.unasked.pop_first() {
                return Some(SyncWork::AskReupload(id));
            }
            let mut files = self.waiting.iter_mut().filter(|_| self.online);
            if let Some((id, file)) = files.find(|(_, file)| file.is_late(now)) {
                // Not again, however long that work waits for its row.
                file.give_up();
                return Some(SyncWork::Reuploaded(id.clone(), None));
            }
            let due = self.not_before.is_none_or(|at| at <= cx.now.mono);
            if self.starting || self.jobs.is_empty() || !due {
                return None;
            }
            self.starting = true;
            return Some(SyncWork::Part);
        };
        if run.queued {
            return None;
        }
        if run.failed.is_none() {
            run.fill();
        }
        if run.failed.is_some()
            || run.ended
            || !run.part.is_empty() && (run.is_full() || run.is_dry())
        {
            run.queued = true;
            run.fetch.pause();
            return Some(SyncWork::Part);
        }
        if let Some(file) = &run.file
            && !matches!(run.source, Source::Here)
        {
            if !run.fetch.runs() {
                run.fetch.start(cx, files, MediaKind::History, file);
            } else if std::mem::take(&mut run.owed) {
                run.fetch.more(cx);
            }
        }
        None
    }

    pub(super) fn is_fetching(&self, id: FetchId) -> bool {
        self.run.as_ref().is_some_and(|run| run.fetch.is(id))
    }

    pub(super) fn fetched(&mut self, cx: &mut Context, files: &mut Files, what: Fetched<'_>) {
        let _ = files;
        let Some(run) = &mut self.run else { return };
        match what {
            Fetched::Chunk(bytes) => {
                run.owed = true;
                run.fetch.pause();
                run.take(cx, bytes);
            }
            Fetched::Done => {
                run.fetch.end(cx, true);
                run.finish(cx);
            }
            Fetched::Failed { gone } => {
                cx.stats.sync.failed_fetches += 1;
                run.fetch.end(cx, true);
                run.failed = Failure::of_file("a file that cannot be had", gone);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Micros> {
        let fetch = self.run.as_ref().and_then(|run| run.fetch.deadline());
        let start = self
            .not_before
            .filter(|_| self.run.is_none() && !self.jobs.is_empty());
        let waits = self.run.is_none() && self.online;
        let waiting = self.waiting.values().filter(|_| waits);
        let waiting = waiting.filter_map(Waiting::deadline);
        [fetch, start].into_iter().flatten().chain(waiting).min()
    }

    pub(super) fn tick(&mut self, cx: &mut Context, files: &mut Files) {
        let _ = files;
        if self.not_before.is_some_and(|at| at <= cx.now.mono) {
            self.not_before = None;
        }
        if let Some(run) = self.run.as_mut().filter(|run| run.fetch.is_late(cx)) {
            cx.stats.sync.failed_fetches += 1;
            run.fetch.end(cx, false);
            run.failed = Failure::of_file("a file does not come", false);
        }
    }

    // ---- rows -------------------------------------------------------------------------------------------------

    pub(super) fn needs(&self, cx: &mut Context) -> Vec<Key> {
        let Some(run) = &self.run else {
            let Some(id) = self.jobs.values().next() else {
                return Vec::new();
            };
            let key = job_key(id);
            if !cx.rows.knows(&key) {
                return vec![key];
            }
            let job: record::HistoryJob = cx.read(&key).unwrap_or_default();
            return notification_of(&job).iter().map(mark_of).collect();
        };
        let mut keys = vec![job_key(&run.id)];
        for piece in &run.part {
            match piece {
                Piece::Chat(chat) => {
                    keys.extend(address(chat.id.as_deref()).map(Key::ChatSettings))
                }
                Piece::Name(name) => keys.extend(address(name.id.as_deref()).map(Key::Contact)),
                Piece::Message(..) | Piece::Lid(_) => {}
            }
        }
        keys
    }

    /// Starts a chunk, takes in a part of it, or ends it.
    pub(super) fn take_part(&mut self, cx: &mut Context) {
        if self.run.is_none() {
            self.starting = false;
            if let Some((order, id)) = self.jobs.first_key_value().map(|(n, id)| (*n, id.clone())) {
                self.begin(cx, order, id);
            }
            return;
        }
        let Some(run) = &mut self.run else { return };
        run.queued = false;
        let key = job_key(&run.id);
        let mut job: record::HistoryJob = cx.read(&key).unwrap_or_default();
        if let Some(failure) = run.failed.take() {
            job.failures = Some(job.failures().saturating_add(1));
            let (id, order) = (run.id.clone(), run.order);
            run.fetch.end(cx, false);
            self.run = None;
            if failure.hopeless || job.failures() >= FAILURES {
                self.jobs.remove(&order);
                if failure.file && !job.reupload() && can_ask(cx, &job) {
                    // Noted before it is asked: the connection may be gone at this moment, or go with the question.
                    job.reupload = Some(true);
                    job.unanswered = Some(true);
                    job.failures = None;
                    cx.put(key, codec::encode(&job));
                    self.wait(id, order);
                } else {
                    give_up(cx, id, &job, failure.why);
                }
            } else {
                self.not_before = Some(cx.now.mono.plus(PAUSE));
                cx.put(key, codec::encode(&job));
            }
            return;
        }
        let pieces = std::mem::take(&mut run.part);
        run.bytes = 0;
        let count = pieces.len() as u64;
        let mut messages = Vec::new();
        for piece in pieces {
            learn(cx, piece, &mut messages);
        }
        job.done = Some(job.done() + count);
        if !messages.is_empty() {
            cx.stats.sync.history_messages += messages.len() as u64;
            let part = job.parts();
            job.parts = Some(part.saturating_add(1));
            cx.emit(Event::History(Box::new(HistoryPart {
                source: run.id.clone(),
                kind: run.kind,
                part,
                messages,
            })));
        }
        let items = job.done();
        cx.notice(Notice::History {
            source: run.id.clone(),
            kind: run.kind,
            progress: run.progress,
            items,
        });
        if !run.ended {
            cx.put(key, codec::encode(&job));
            return;
        }
        cx.stats.sync.history_skipped += run.reader.skipped();
        cx.stats.sync.history_chunks += 1;
        let (id, order, kind) = (run.id.clone(), run.order, run.kind);
        self.run = None;
        if let Some(notification) = notification_of(&job) {
            let mark = mark_of(&notification);
            cx.put(mark, codec::encode(&record::Seen::default()));
        }
        self.end(cx, order, &id, kind, items);
    }

    /// Whether the phone was asked to upload the file of this announcement again.
    pub(super) fn has_asked(&self, id: &MessageId) -> bool {
        self.waiting.contains_key(id)
    }

    /// Asks for a file that is waited for, if there is a connection. Needs the job's row.
    pub(super) fn ask_upload(&mut self, cx: &mut Context, id: &MessageId) {
        let Some(file) = self.waiting.get_mut(id).filter(|_| self.online) else {
            return;
        };
        let job: record::HistoryJob = cx.read(&job_key(id)).unwrap_or_default();
        file.asked(cx.now.mono);
        ask_reupload(cx, id, &job);
    }

    /// The phone has uploaded a file again, or says that it will not, or does not answer. Needs the job's row.
    pub(super) fn reuploaded(&mut self, cx: &mut Context, id: &MessageId, answer: Option<&Node>) {
        let Some(file) = self.waiting.remove(id) else {
            return;
        };
        self.unasked.remove(id);
        let key = job_key(id);
        let mut job: record::HistoryJob = cx.read(&key).unwrap_or_default();
        let Some(mut notification) = notification_of(&job) else {
            return;
        };
        let path = answer.and_then(|answer| read_reupload(id, &notification, answer));
        match path {
            Some(path) => {
                notification.direct_path = Some(path);
                job.notification = Some(notification.encode_to_vec());
                job.unanswered = None;
                cx.put(key, codec::encode(&job));
                self.jobs.insert(file.order(), id.clone());
            }
            None => give_up(
                cx,
                id.clone(),
                &job,
                "a file that cannot be had, and the phone does not upload it again".into(),
            ),
        }
    }

    fn begin(&mut self, cx: &mut Context, order: u64, id: MessageId) {
        let job: record::HistoryJob = cx.read(&job_key(&id)).unwrap_or_default();
        let Some(notification) = notification_of(&job) else {
            self.jobs.remove(&order);
            cx.stats.sync.bad_history += 1;
            cx.delete(job_key(&id));
            return;
        };
        let kind = HistoryKind::of(notification.sync_type.unwrap_or(0));
        let inline = notification.initial_hist_bootstrap_inline_payload.clone();
        let file: Option<FileRef> = (&notification).into();
        // The same chunk, announced again; what was begun before is gone on with.
        if job.done() == 0 && cx.rows.get(&mark_of(&notification)).is_some() {
            cx.stats.sync.stale_history += 1;
            return self.end(cx, order, &id, kind, 0);
        }
        let no_history =
            notification.sync_type() == e2e::history_sync_notification::SyncType::NoHistory;
        let source = match (&inline, &file) {
            (Some(_), _) => Source::Here,
            (None, Some(file)) if file.length.is_none_or(|length| length <= FILE_BYTES) => {
                let expected = file.expected(FILE_BYTES);
                let survey = Survey::new(MediaKind::History, &file.key, expected);
                Source::First(Box::new(survey), Some(Vec::new()))
            }
            _ if no_history => return self.end(cx, order, &id, kind, 0),
            _ => {
                cx.stats.sync.bad_history += 1;
                self.jobs.remove(&order);
                cx.delete(job_key(&id));
                let why = Some("neither a file nor its content".into());
                cx.emit(Event::HistoryEnded {
                    source: id,
                    kind,
                    items: 0,
                    why,
                });
                return;
            }
        };
        let mut reader = HistoryReader::default();
        if let Some(inline) = inline {
            *reader.input() = inline;
        }
        self.run = Some(Run {
            order,
            id,
            kind,
            progress: notification.progress,
            file,
            source,
            fetch: Fetch::default(),
            owed: false,
            reader,
            part: Vec::new(),
            bytes: 0,
            done: job.done(),
            seen: 0,
            queued: false,
            ended: false,
            failed: None,
        });
    }

    /// All of a chunk is taken in.
    fn end(&mut self, cx: &mut Context, order: u64, id: &MessageId, kind: HistoryKind, items: u64) {
        self.jobs.remove(&order);
        // The announcement itself is not needed any more, only that the phone has to hear of its end.
        let job = record::HistoryJob {
            finished: Some(true),
            order: Some(order),
            ..Default::default()
        };
        cx.put(job_key(id), codec::encode(&job));
        cx.emit(Event::HistoryEnded {
            source: id.clone(),
            kind,
            items,
            why: None,
        });
        self.tell(cx, id);
    }
}

/// A chunk cannot be taken in. The phone does not hear that we have it; what of it was taken in stays.
fn give_up(cx: &mut Context, id: MessageId, job: &record::HistoryJob, why: String) {
    cx.stats.sync.bad_history += 1;
    cx.delete(job_key(&id));
    let kind = notification_of(job).and_then(|notification| notification.sync_type);
    cx.emit(Event::HistoryEnded {
        source: id,
        kind: HistoryKind::of(kind.unwrap_or(0)),
        items: job.done(),
        why: Some(why),
    });
}

fn notification_of(job: &record::HistoryJob) -> Option<e2e::HistorySyncNotification> {
    e2e::HistorySyncNotification::decode(job.notification.as_deref()?).ok()
}

/// A chunk is known by its content, whatever it was announced as.
fn mark_of(notification: &e2e::HistorySyncNotification) -> Key {
    let inline = notification
        .initial_hist_bootstrap_inline_payload
        .as_deref();
    let file = notification
        .file_enc_sha256
        .as_deref()
        .or(notification.direct_path.as_deref().map(str::as_bytes));
    let content = inline
        .map(|bytes| sha256(&[bytes]).to_vec())
        .or(file.map(<[u8]>::to_vec));
    Key::Seen(sha256(&[
        b"history",
        &notification.sync_type.unwrap_or(0).to_be_bytes(),
        &content.unwrap_or_default(),
    ]))
}
