//! A collection in trouble: tried again, replaced, told by the phone, or given up. The others go on.

use super::{DAY_MS, SyncState};
use crate::{
    appstate::Collection,
    flow::{Context, Event, Notice},
    proto::record,
    state::{Key, Micros, codec},
};

/// Rounds of a collection that may fail before it is given up until the next login.
const ATTEMPTS: u32 = 5;

/// Pause after such a failure; doubles with each.
const PAUSE: Micros = Micros::from_secs(2);

/// Times in a day that a collection may be replaced because it has diverged. More than that, and whatever is wrong is not
/// mended by asking again.
const RESYNCS: usize = 3;

/// How long the phone has to tell a collection in clear.
pub(super) const RECOVERY_PATIENCE: Micros = Micros::from_secs(60);

/// It is asked again after so long, unix milliseconds.
const RECOVERY_PAUSE_MS: i64 = 3_600_000;

impl super::Sync {
    /// A round has failed for a reason that may pass. The collection is tried again later, a few times.
    pub(super) fn failed(&mut self, cx: &mut Context, collection: Collection, why: &str) {
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

    pub(super) fn give_up(&mut self, cx: &mut Context, collection: Collection, why: &str) {
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
    pub(super) fn diverged(
        &mut self,
        cx: &mut Context,
        collection: Collection,
        why: &str,
        digest: [u8; 32],
    ) {
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
    pub(super) fn recover(&mut self, cx: &mut Context, collection: Collection) {
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
}
