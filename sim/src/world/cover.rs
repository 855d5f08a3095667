//! *Sometimes* points: states that a run is worth nothing without.
//!
//! A judge that is silent says that nothing was wrong in what happened. Whether anything happened, a process that died
//! with a commit on its way, a message that came again, a lease that ran out, is counted here. `sim cover` adds the
//! counts of many seeds up, and fails if one of them is zero: then the seeds have to be drawn otherwise, or the point is
//! one that cannot be reached, and something in the engine is not needed.
//!
//! Points lie at what engines take in and put out, at the store and in the service's books: nothing is built into the
//! engine for them. Faults can [aim](Point::AIMS) at some of them.

use super::World;
use crate::service::ConnId;
use baton_core::{
    engine::Output,
    flow::{CommandError, Connection, Event, Notice, Reply, Stats, StopReason, SyncState},
    state::{Batch, Claim, Key, Table},
};
use serde::{Deserialize, Serialize};

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Point { $($(#[doc = $doc])+ $name,)+ }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What is the case there, behind "when".
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii().trim_end_matches('.'),)+ }
            }
        }
    };
}

points! {
    // ---- moments to aim at
    /// a commit is on its way.
    CommitLeaves,
    /// a commit with a sealed message is on its way.
    SealedLeaves,
    /// a commit with a decrypted message is on its way.
    DecryptedLeaves,
    /// a commit with new pre-keys is on its way.
    PreKeysLeave,
    /// a commit with settings is on its way.
    SettingsLeave,
    /// a commit is durable and the engine has not heard of it.
    CommitLands,
    /// rows are being read.
    LoadLeaves,
    /// a connection is being made.
    ConnectionOpens,
    /// the service has accepted the login.
    LoginSucceeds,
    /// an event is shown.
    EventShown,
    /// a download begins.
    DownloadBegins,
    /// the lease is about to be renewed.
    RenewalDue,
    /// an engine begins its life.
    EngineStarts,

    // ---- what engines say
    /// several batches leave in one commit.
    GroupCommit,
    /// a batch has more than fifty rows.
    LargeBatch,
    /// a table is read slice by slice.
    ScanLeaves,
    /// an engine closes its connection itself.
    CloseByEngine,
    /// a ping leaves, or the answer to one.
    KeepAlive,
    /// a download goes on.
    DownloadGoesOn,
    /// nothing leaves for want of a grant.
    IdleWithoutGrant,
    /// effects wait for a commit.
    IdleForCommit,
    /// work waits for rows.
    IdleForRows,
    /// an engine waits for its connection.
    IdleConnecting,
    /// a code is shown.
    QrShown,
    /// an engine waits for the phone to scan.
    Linking,
    /// an engine waits before it connects again.
    Backoff,
    /// a message is asked for again.
    RetryAsked,
    /// a message is asked for a second time.
    RetryAskedTwice,
    /// a collection is being fetched.
    SettingsProgress,
    /// a chunk of history is being taken in.
    HistoryProgress,
    /// a command is refused because too much waits.
    Busy,
    /// a command ends without an outcome.
    UnknownOutcome,
    /// an account is linked.
    ReplyLinked,
    /// a command is done.
    ReplyDone,

    // ---- events
    /// an account is linked, durably.
    EventLinked,
    /// a message is shown.
    EventMessage,
    /// a message from the offline queue is shown.
    EventOffline,
    /// the service has taken a message.
    EventSent,
    /// a recipient has a message.
    EventDelivered,
    /// a setting has changed.
    EventSetting,
    /// a collection was replaced.
    EventSettingsReplaced,
    /// a collection cannot be brought into order.
    EventSyncFailed,
    /// messages of the past are shown.
    EventHistory,
    /// a chunk of history is whole.
    EventHistoryEnded,
    /// a chunk of history is given up.
    EventHistoryGivenUp,
    /// numbers jump after a loss.
    EventHistoryLost,
    /// an event is shown again.
    EventAgain,

    // ---- ends
    /// an engine stops because somebody else has the account.
    StopFenced,
    /// an engine stops because the database's history has changed.
    StopHistoryChanged,
    /// an engine stops because its lease has run out.
    StopLeaseExpired,
    /// an engine stops because another connection has replaced its own.
    StopReplaced,
    /// an engine stops in good order.
    StopShutdown,

    // ---- processes
    /// a process dies.
    Dies,
    /// a process dies while it is online.
    DiesOnline,
    /// a process dies before it is online.
    DiesOffline,
    /// a process dies with a commit on its way.
    DiesWithCommit,
    /// a process dies with batches behind the commit that is on its way.
    DiesWithBatches,
    /// a process dies with events that were shown and not acknowledged.
    DiesUnacknowledged,
    /// a process dies in the middle of a download.
    DiesDownloading,
    /// a process dies soon after it was started.
    DiesYoung,
    /// an account is claimed for the first time.
    ClaimFirst,
    /// an account is claimed from somebody who is dead.
    ClaimTakeover,
    /// an account is claimed from somebody who lives and was declared dead.
    RivalClaims,
    /// a claim waits for a lease to run out.
    ClaimWaits,
    /// an account is claimed after the database has lost commits.
    ClaimAfterLoss,
    /// a process that renews its lease was declared dead.
    RenewalTooLate,
    /// a renewal arrives when the lease is over.
    GrantAfterExpiry,
    /// a renewal finds another history.
    RenewalUnsealed,

    // ---- the store
    /// a commit of a dead process is applied.
    CommitOfDead,
    /// a commit of a former owner is refused.
    CommitFenced,
    /// a commit of another history is refused.
    CommitUnsealed,
    /// a commit is sent again that was applied.
    CommitAgain,
    /// an identity is written.
    WritesIdentity,
    /// a session is written.
    WritesSession,
    /// a pre-key is written.
    WritesPreKey,
    /// a pre-key is deleted.
    DeletesPreKey,
    /// a key for settings is written.
    WritesSettingsKey,
    /// a collection is written.
    WritesCollection,
    /// a setting is written.
    WritesSetting,
    /// a setting is deleted.
    DeletesSetting,
    /// a contact is written.
    WritesContact,
    /// a chat is written.
    WritesChat,
    /// a device list is written.
    WritesDeviceList,
    /// an event is written.
    WritesEvent,
    /// an event is deleted.
    DeletesEvent,
    /// a duplicate mark is written.
    WritesMark,
    /// a send is written.
    WritesSend,
    /// a send is finished.
    DeletesSend,
    /// a send is kept for retry receipts.
    WritesSent,
    /// a request is taken from the mailbox.
    DeletesRequest,

    // ---- counted by engines
    /// a message comes again.
    Duplicate,
    /// a message cannot be decrypted.
    DecryptFailure,
    /// a retry receipt is answered.
    RetryAnswered,
    /// a loss of commits is made up for.
    LossMadeUp,
    /// a patch is taken in.
    Patch,
    /// a patch comes again.
    PatchStale,
    /// a snapshot is taken in.
    Snapshot,
    /// a setting that nobody understands is taken in.
    UnknownAction,
    /// a change is announced.
    ChangeOut,
    /// a change is refused.
    ChangeRefused,
    /// a change meets another one.
    ChangeConflict,
    /// a version is skipped.
    VersionGap,
    /// the MAC of a patch is wrong.
    BadPatchMac,
    /// the MAC of a collection is wrong.
    BadSnapshotMac,
    /// a mutation is wrong.
    BadMutation,
    /// a patch does not decode.
    MalformedPatch,
    /// a setting is removed that is not there.
    MissingRemove,
    /// a key for settings is missing.
    MissingKey,
    /// the phone is asked for a key.
    KeyRequest,
    /// keys for settings arrive.
    KeysArrive,
    /// a collection is fetched anew.
    Resync,
    /// a collection is given up.
    GivenUp,
    /// the service does not answer about settings, or refuses.
    FailedAsk,
    /// a file is fetched.
    FileFetched,
    /// a download fails.
    FailedFetch,
    /// a file is not what was announced.
    BadFile,
    /// a chunk of history is taken in.
    HistoryChunk,
    /// a chunk of history comes again.
    StaleHistory,
    /// the phone is asked to upload a file again.
    ReuploadRequest,
    /// a chunk of history cannot be read.
    BadHistory,

    // ---- the service's books
    /// a connection is resumed.
    HandshakeIk,
    /// a device logs in while its former connection stands.
    LiveTwice,
    /// pre-keys are uploaded again.
    UploadAgain,
    /// a bundle has a one-time key.
    BundleWithKey,
    /// a bundle has none left.
    BundleWithoutKey,
    /// a message is delivered from the queue.
    DeliveredOffline,
    /// a message is delivered a second time.
    DeliveredAgain,
    /// a sender repeats a message.
    SendRepeated,
    /// a message is sent again to a single device.
    Resent,
    /// a delivery has a receipt.
    Receipt,
    /// a message between devices of one account passes.
    PeerMessage,
    /// a phone reads a text.
    PhoneReads,
}

impl Point {
    /// Moments in an account's life that faults wait for.
    pub const AIMS: &'static [Self] = &[
        Self::CommitLeaves,
        Self::SealedLeaves,
        Self::DecryptedLeaves,
        Self::PreKeysLeave,
        Self::SettingsLeave,
        Self::CommitLands,
        Self::LoadLeaves,
        Self::ConnectionOpens,
        Self::LoginSucceeds,
        Self::EventShown,
        Self::DownloadBegins,
        Self::RenewalDue,
        Self::EngineStarts,
    ];
}

/// How often each point was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    counts: Vec<u64>,
}

impl Default for Cover {
    fn default() -> Self {
        Self {
            counts: vec![0; Point::ALL.len()],
        }
    }
}

impl Cover {
    /// How often a point was reached.
    #[must_use]
    pub fn count(&self, point: Point) -> u64 {
        self.counts[point as usize]
    }

    /// Points that were not reached.
    pub fn missing(&self) -> impl Iterator<Item = Point> {
        let all = Point::ALL.iter().copied();
        all.filter(|point| self.count(*point) == 0)
    }

    /// Adds what another run has reached.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }

    pub(super) fn hit(&mut self, point: Point) {
        self.counts[point as usize] += 1;
    }

    fn hit_times(&mut self, point: Point, times: u64) {
        self.counts[point as usize] += times;
    }

    /// What an engine has counted in its life.
    pub(super) fn life(&mut self, stats: &Stats) {
        let sync = &stats.sync;
        for (point, times) in [
            (Point::Duplicate, stats.duplicates),
            (Point::DecryptFailure, stats.decrypt_failures),
            (Point::RetryAnswered, stats.retries_answered),
            (Point::LossMadeUp, stats.losses),
            (Point::Patch, sync.patches),
            (Point::PatchStale, sync.stale_patches),
            (Point::Snapshot, sync.snapshots),
            (Point::UnknownAction, sync.unknown_actions),
            (Point::ChangeOut, sync.changes_out),
            (Point::ChangeRefused, sync.changes_refused),
            (Point::ChangeConflict, sync.conflicts),
            (Point::VersionGap, sync.version_gaps),
            (Point::BadPatchMac, sync.bad_patch_macs),
            (Point::BadSnapshotMac, sync.bad_snapshot_macs),
            (Point::BadMutation, sync.bad_mutations),
            (Point::MalformedPatch, sync.malformed),
            (Point::MissingRemove, sync.missing_removes),
            (Point::MissingKey, sync.missing_keys),
            (Point::KeyRequest, sync.key_requests),
            (Point::KeysArrive, sync.keys),
            (Point::Resync, sync.resyncs),
            (Point::GivenUp, sync.given_up),
            (Point::FailedAsk, sync.failed_asks),
            (Point::FileFetched, sync.fetches),
            (Point::FailedFetch, sync.failed_fetches),
            (Point::BadFile, sync.bad_files),
            (Point::HistoryChunk, sync.history_chunks),
            (Point::StaleHistory, sync.stale_history),
            (Point::ReuploadRequest, sync.reupload_requests),
            (Point::BadHistory, sync.bad_history),
        ] {
            self.hit_times(point, times);
        }
    }

    /// What was written.
    pub(super) fn batch(&mut self, batch: &Batch) {
        if batch.rows.len() > 50 {
            self.hit(Point::LargeBatch);
        }
        for (key, row) in &batch.rows {
            let written = row.is_some();
            self.hit(match (key.table(), written) {
                (Table::Identity, true) => Point::WritesIdentity,
                (Table::Session, true) => Point::WritesSession,
                (Table::PreKey, true) => Point::WritesPreKey,
                (Table::PreKey, false) => Point::DeletesPreKey,
                (Table::AppStateSyncKey, true) => Point::WritesSettingsKey,
                (Table::AppStateVersion, true) => Point::WritesCollection,
                (Table::AppStateMutationMac, true) => Point::WritesSetting,
                (Table::AppStateMutationMac, false) => Point::DeletesSetting,
                (Table::Contact, true) => Point::WritesContact,
                (Table::ChatSettings, true) => Point::WritesChat,
                (Table::DeviceList, true) => Point::WritesDeviceList,
                (Table::Inbox, true) => Point::WritesEvent,
                (Table::Inbox, false) => Point::DeletesEvent,
                (Table::Seen, true) => Point::WritesMark,
                (Table::Outbox, true) => Point::WritesSend,
                (Table::Outbox, false) => Point::DeletesSend,
                (Table::Sent, true) => Point::WritesSent,
                (Table::Mailbox, false) => Point::DeletesRequest,
                _ => continue,
            });
        }
    }

    /// What the service has seen.
    pub(super) fn books(&mut self, books: &crate::service::books::Books) {
        for (_, log) in books.devices() {
            for connection in &log.connections {
                if connection.handshake == "IK" {
                    self.hit(Point::HandshakeIk);
                }
            }
            self.hit_times(Point::LiveTwice, log.live_twice.len() as u64);
            self.hit_times(
                Point::UploadAgain,
                log.uploads.len().saturating_sub(1) as u64,
            );
            for (_, _, key) in &log.bundles {
                self.hit(match key {
                    Some(_) => Point::BundleWithKey,
                    None => Point::BundleWithoutKey,
                });
            }
        }
        for (_, log) in books.messages() {
            self.hit_times(Point::SendRepeated, log.repeated.into());
            for accepted in &log.accepted {
                if accepted.resend {
                    self.hit(Point::Resent);
                }
                if accepted.category.as_deref() == Some("peer") {
                    self.hit(Point::PeerMessage);
                }
            }
            for recipient in log.recipients.values() {
                let offline = recipient.deliveries.iter().filter(|one| one.offline);
                self.hit_times(Point::DeliveredOffline, offline.count() as u64);
                let again = recipient.deliveries.len().saturating_sub(1);
                self.hit_times(Point::DeliveredAgain, again as u64);
                self.hit_times(Point::Receipt, recipient.receipts.len() as u64);
            }
        }
        self.hit_times(Point::PhoneReads, books.texts().len() as u64);
    }
}

impl World {
    /// How often each point has been reached so far.
    #[must_use]
    pub fn cover(&self) -> Cover {
        let mut cover = self.cover.clone();
        for account in &self.accounts {
            if let Some(engine) = &account.engine {
                cover.life(engine.stats());
            }
        }
        cover.books(self.service.books());
        cover
    }

    /// A point is reached in an account's life. What aims at it strikes as soon as what is going on is done.
    pub(crate) fn sometimes(&mut self, account: usize, point: Point) {
        self.cover.hit(point);
        // Nearly always nothing aims.
        while let Some(at) = self
            .weather
            .armed
            .iter()
            .position(|(whose, aim, _)| (*whose, *aim) == (account, point))
        {
            let (.., fault) = self.weather.armed.swap_remove(at);
            self.plan(0, super::Step::Now { fault });
        }
    }

    /// What an engine says.
    pub(super) fn cover_output(&mut self, account: usize, output: &Output) {
        let point = match output {
            Output::Commit(_)
            | Output::Transmit
            | Output::StopFetch(_)
            | Output::Reply(_, Ok(Reply::Accepted { .. })) => {
                return;
            }
            Output::Load(..) => Point::LoadLeaves,
            Output::Scan(..) => Point::ScanLeaves,
            Output::Open(_) => Point::ConnectionOpens,
            Output::Close => Point::CloseByEngine,
            Output::Fetch(..) => Point::DownloadBegins,
            Output::FetchMore(_) => Point::DownloadGoesOn,
            Output::KeepAlive => Point::KeepAlive,
            Output::Event(_, event) => {
                let point = match event {
                    Event::Linked { .. } => Point::EventLinked,
                    Event::Message(message) => {
                        if message.offline {
                            self.cover.hit(Point::EventOffline);
                        }
                        Point::EventMessage
                    }
                    Event::Sent { .. } => Point::EventSent,
                    Event::Delivered { .. } => Point::EventDelivered,
                    Event::Setting(_) => Point::EventSetting,
                    Event::SettingsReplaced { .. } => Point::EventSettingsReplaced,
                    Event::SyncFailed { .. } => Point::EventSyncFailed,
                    Event::History(_) => Point::EventHistory,
                    Event::HistoryEnded { why: None, .. } => Point::EventHistoryEnded,
                    Event::HistoryEnded { .. } => Point::EventHistoryGivenUp,
                    Event::HistoryLost { .. } => Point::EventHistoryLost,
                    _ => return,
                };
                self.cover.hit(point);
                Point::EventShown
            }
            Output::Notice(notice) => match notice {
                Notice::Qr { .. } => Point::QrShown,
                Notice::Connection(Connection::Linking) => Point::Linking,
                Notice::Connection(Connection::LoggedIn) => Point::LoginSucceeds,
                Notice::Connection(Connection::Waiting { .. }) => Point::Backoff,
                Notice::RetryAsked { count, .. } if *count > 1 => Point::RetryAskedTwice,
                Notice::RetryAsked { .. } => Point::RetryAsked,
                Notice::Sync(_, SyncState::Current { .. }) | Notice::Connection(_) => return,
                Notice::Sync(..) => Point::SettingsProgress,
                Notice::History { .. } => Point::HistoryProgress,
                _ => return,
            },
            Output::Reply(_, reply) => match reply {
                Err(CommandError::Busy) => Point::Busy,
                Err(CommandError::Unknown) => Point::UnknownOutcome,
                Ok(Reply::Linked { .. }) => Point::ReplyLinked,
                Ok(Reply::Done) => Point::ReplyDone,
                _ => return,
            },
            Output::Idle { why, .. } => match *why {
                "held: no grant" => Point::IdleWithoutGrant,
                "waiting for a commit" => Point::IdleForCommit,
                "waiting for rows" => Point::IdleForRows,
                "connecting" => Point::IdleConnecting,
                _ => return,
            },
            Output::Stopped(reason) => match reason {
                StopReason::Fenced(_) => Point::StopFenced,
                StopReason::HistoryChanged(_) => Point::StopHistoryChanged,
                StopReason::LeaseExpired => Point::StopLeaseExpired,
                StopReason::Replaced => Point::StopReplaced,
                StopReason::Shutdown => Point::StopShutdown,
                _ => return,
            },
        };
        self.sometimes(account, point);
    }

    /// A commit is on its way to the store.
    pub(super) fn cover_commit(&mut self, account: usize, batches: &[Batch]) {
        if batches.len() > 1 {
            self.cover.hit(Point::GroupCommit);
        }
        let writes = |table| {
            let mut rows = batches.iter().flat_map(|batch| &batch.rows);
            rows.any(|(key, row): (&Key, _)| key.table() == table && row.is_some())
        };
        let points = [
            (Table::Outbox, Point::SealedLeaves),
            (Table::Seen, Point::DecryptedLeaves),
            (Table::PreKey, Point::PreKeysLeave),
            (Table::AppStateVersion, Point::SettingsLeave),
        ];
        let points = points.map(|(table, point)| writes(table).then_some(point));
        for point in points.into_iter().flatten() {
            self.sometimes(account, point);
        }
        self.sometimes(account, Point::CommitLeaves);
    }

    /// A process is about to die.
    pub(super) fn cover_death(&mut self, account: usize) {
        let this = &self.accounts[account];
        let Some(engine) = &this.engine else {
            return;
        };
        let cover = &mut self.cover;
        cover.life(engine.stats());
        cover.hit(Point::Dies);
        cover.hit(if this.online {
            Point::DiesOnline
        } else {
            Point::DiesOffline
        });
        let young = this
            .birth
            .is_some_and(|(.., born)| self.now.since(born.mono).0 < 500_000);
        for (point, is) in [
            (Point::DiesWithCommit, this.committing),
            (Point::DiesWithBatches, !this.sealed.is_empty()),
            (
                Point::DiesUnacknowledged,
                this.last_shown > Some(this.acknowledged),
            ),
            (
                Point::DiesDownloading,
                self.downloads.keys().any(|(whose, _)| *whose == account),
            ),
            (Point::DiesYoung, young),
        ] {
            if is {
                cover.hit(point);
            }
        }
    }

    /// A claim is answered.
    pub(super) fn cover_claim(&mut self, claim: Option<&Claim>) {
        match claim {
            Some(Claim::Granted(lease)) => {
                let first = lease.applied.0 == 0;
                self.cover.hit(if first {
                    Point::ClaimFirst
                } else {
                    Point::ClaimTakeover
                });
                if lease.sealed != lease.term.history {
                    self.cover.hit(Point::ClaimAfterLoss);
                }
            }
            Some(Claim::Held { .. }) => self.cover.hit(Point::ClaimWaits),
            _ => {}
        }
    }
}

/// Which account a connection is of: connections are numbered per account.
pub(super) const fn owner_of(conn: ConnId) -> usize {
    (conn.0 >> 32) as usize
}
