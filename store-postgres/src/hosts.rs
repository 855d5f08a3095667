//! The roster and the history: who is there, and since when the database has lost nothing.
//!
//! All times are by the clock of the database, read once per statement (`t.now`), and never compared with a host's. The
//! rules are those of [`Roster`](baton_core::state::Roster).

use crate::{
    error::Failure,
    pool::{Mode, Pool, Run as _, Scope, Transaction},
    schema::{holder, incarnation, number, seal, unsigned},
};
use baton_core::state::{
    Beat, Beaten, HostInfo, HostState, HostView, Incarnation, Micros, Roster, Seal, StoreError,
    View, rules,
};
use sqlx::{Row as _, postgres::PgRow};
use std::sync::Arc;

/// Notifications go over this channel: `own` (have a look), `own HOST` (that host should), `gone HOST BY`, with
/// incarnations as in SQL. Only ever for changes of ownership: each costs a lock of the whole server at its commit.
pub(crate) const NEWS: &str = "baton";

/// The namespace of our advisory locks: (this, slot) is a host's, (this, 0) of whoever joins.
pub(crate) const LOCKS: i32 = 9177;

/// Leases and pauses are cut to this: `timestamptz` ends, and nobody means it.
const LONGEST: Micros = Micros::from_secs(100 * 365 * 86_400);

/// A length of time as a parameter, in microseconds.
pub(crate) fn span(time: Micros) -> i64 {
    number(time.min(LONGEST).0)
}

/// A host as its neighbours see it who look after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) slot: u16,
    pub(crate) who: Incarnation,
    /// It lives and holds its advisory lock.
    pub(crate) present: bool,
}

/// See [`Store::join`](baton_core::state::Store::join).
pub(crate) async fn join(
    pool: &Arc<Pool>,
    who: Incarnation,
    info: &HostInfo,
    ttl: Micros,
) -> Result<u16, Failure> {
    rules::host(info)?;
    let mut transaction = fleet(pool, Mode::Write).await?;
    let result = take_slot(&mut transaction, who, info, ttl).await;
    transaction.finish(result).await
}

async fn take_slot(
    transaction: &mut Transaction,
    who: Incarnation,
    info: &HostInfo,
    ttl: Micros,
) -> Result<u16, Failure> {
    // One at a time, so that two do not find the same slot free.
    sqlx::query("SELECT pg_advisory_xact_lock($1, 0)")
        .bind(LOCKS)
        .run(transaction)
        .await?;
    let known = sqlx::query(
        "UPDATE baton_host h SET good_since = CASE WHEN h.state NOT IN ('active', 'draining') \
             OR clock_timestamp() - (h.expires_at - h.ttl_us * interval '1 microsecond') \
               <= h.ttl_us / 2 * interval '1 microsecond' THEN h.good_since ELSE clock_timestamp() END, \
           expires_at = CASE WHEN h.state NOT IN ('active', 'draining') THEN h.expires_at \
             ELSE clock_timestamp() + $2 * interval '1 microsecond' END, \
           ttl_us = CASE WHEN h.state NOT IN ('active', 'draining') THEN h.ttl_us ELSE $2 END \
         WHERE h.incarnation = $1 RETURNING h.slot, h.state IN ('active', 'draining')",
    )
    .bind(holder(who))
    .bind(span(ttl))
    .optional(transaction)
    .await?;
    if let Some(row) = known {
        return if row.try_get(1)? {
            Ok(slot(&row, 0)?)
        } else {
            Err(StoreError::NotMember.into())
        };
    }
    let taken = sqlx::query(
        "INSERT INTO baton_host (slot, incarnation, name, address, zone, version, state, capacity, \
           expires_at, ttl_us, good_since) \
         SELECT s.slot, $1, $2, $3, $4, $5, 'active', $6, \
           clock_timestamp() + $7 * interval '1 microsecond', $7, clock_timestamp() \
         FROM generate_series(1, $8) AS s(slot) WHERE NOT EXISTS \
           (SELECT FROM baton_host h WHERE h.slot = s.slot AND h.state IN ('active', 'draining')) \
         ORDER BY s.slot LIMIT 1 \
         ON CONFLICT (slot) DO UPDATE SET incarnation = excluded.incarnation, name = excluded.name, \
           address = excluded.address, zone = excluded.zone, version = excluded.version, state = excluded.state, \
           capacity = excluded.capacity, accounts = 0, live = 0, drain = false, gifts = 0, expires_at = excluded.expires_at, \
           ttl_us = excluded.ttl_us, good_since = excluded.good_since, present = false \
         RETURNING slot",
    )
    .bind(holder(who))
    .bind(info.name.as_str())
    .bind(info.address.as_str())
    .bind(info.zone.as_str())
    .bind(info.version.as_str())
    .bind(i64::from(info.capacity))
    .bind(span(ttl))
    .bind(i32::from(Roster::SLOTS))
    .optional(transaction)
    .await?;
    match taken {
        Some(row) => Ok(slot(&row, 0)?),
        None => Err(StoreError::Refused("there is no slot left for a host".to_owned()).into()),
    }
}

/// See [`Store::beat`](baton_core::state::Store::beat): one statement, whatever the caller holds. Also who shows itself
/// present.
pub(crate) async fn beat(
    pool: &Arc<Pool>,
    who: Incarnation,
    beat: Beat,
) -> Result<(Beaten, Vec<Peer>), Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let work = async {
        // What the statement changes it does not see in `baton_host`, so the view puts it on top. Rows of others are
        // locked only if there is something to say about them, and left alone if they are locked: somebody else says
        // it, or they are being renewed.
        let rows = sqlx::query(
            "WITH t AS MATERIALIZED (SELECT clock_timestamp() AS now), \
             me AS (UPDATE baton_host h SET \
                 good_since = CASE WHEN t.now - (h.expires_at - h.ttl_us * interval '1 microsecond') \
                   > h.ttl_us / 2 * interval '1 microsecond' THEN t.now ELSE least(h.good_since, t.now) END, \
                 state = CASE WHEN $2 THEN 'draining' ELSE 'active' END, accounts = $3, live = $6, ttl_us = $4, \
                 expires_at = t.now + $4 * interval '1 microsecond' \
               FROM t WHERE h.incarnation = $1 AND h.state IN ('active', 'draining') \
               RETURNING h.slot, h.state, h.accounts, h.live, h.expires_at, h.good_since, h.gifts, t.now), \
             seen AS MATERIALIZED (SELECT h.slot, h.expires_at <= me.now AS dead, \
                 least(h.expires_at, me.now + h.ttl_us * interval '1 microsecond') AS expires_at \
               FROM me, baton_host h WHERE h.incarnation <> $1 AND h.state IN ('active', 'draining') \
               AND (h.expires_at > me.now + h.ttl_us * interval '1 microsecond' \
                 OR h.expires_at <= me.now AND me.now - me.good_since >= h.ttl_us * interval '1 microsecond') \
               FOR UPDATE OF h SKIP LOCKED), \
             judged AS (UPDATE baton_host h SET expires_at = seen.expires_at, \
                 state = CASE WHEN seen.dead THEN 'dead' ELSE h.state END \
               FROM seen WHERE h.slot = seen.slot RETURNING h.slot, h.state, h.expires_at, seen.dead) \
             SELECT h.slot, h.incarnation, h.name, h.address, h.zone, h.version, h.capacity, \
               coalesce(mine.state, j.state, h.state), coalesce(mine.accounts, h.accounts), \
               coalesce(mine.live, h.live), h.drain, \
               greatest(0, extract(epoch FROM coalesce(mine.expires_at, j.expires_at, h.expires_at) - me.now) \
                 * 1000000)::bigint, \
               h.present, coalesce(j.dead, false), \
               CASE WHEN j.dead THEN pg_notify($5, 'gone ' || h.incarnation || ' ' || $1)::text END, \
               me.gifts, baton_timeline(), c.generation \
             FROM me CROSS JOIN baton_cluster c CROSS JOIN baton_host h \
             LEFT JOIN me mine ON mine.slot = h.slot LEFT JOIN judged j ON j.slot = h.slot ORDER BY h.slot",
        )
        .bind(holder(who))
        .bind(beat.draining)
        .bind(i64::from(beat.accounts))
        .bind(span(beat.ttl))
        .bind(NEWS)
        .bind(i64::from(beat.live))
        .all(&mut transaction)
        .await?;
        let Some(first) = rows.first() else {
            return Ok((Beaten::Dead, Vec::new()));
        };
        let mut view = View {
            gifts: unsigned(first.try_get(15)?),
            history: seal(first, 16)?,
            ..View::default()
        };
        let mut peers = Vec::with_capacity(rows.len());
        for row in &rows {
            let host = host_view(row)?;
            peers.push(Peer {
                slot: host.slot,
                who: host.who,
                present: row.try_get::<bool, _>(12)? && host.state.is_live(),
            });
            if row.try_get(13)? {
                view.newly_dead.push(host.who);
            }
            view.hosts.push(host);
        }
        Ok((Beaten::Renewed(view), peers))
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::hosts`](baton_core::state::Store::hosts).
pub(crate) async fn hosts(pool: &Arc<Pool>) -> Result<Vec<HostView>, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let work = async {
        let rows = sqlx::query(
            "SELECT slot, incarnation, name, address, zone, version, capacity, state, accounts, live, drain, \
               greatest(0, extract(epoch FROM expires_at - clock_timestamp()) * 1000000)::bigint \
             FROM baton_host ORDER BY slot",
        )
        .all(&mut transaction)
        .await?;
        rows.iter().map(host_view).collect()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// On what ground a host is declared dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The caller's word.
    Word,
    /// Its session has ended, and it has not said that it lives on without.
    Presence,
}

/// See [`Store::declare_dead`](baton_core::state::Store::declare_dead).
pub(crate) async fn declare_dead(
    pool: &Arc<Pool>,
    by: Incarnation,
    dead: Incarnation,
    ground: Ground,
) -> Result<bool, Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let declared = sqlx::query(
        "WITH d AS (UPDATE baton_host d SET state = 'dead' WHERE d.incarnation = $2 AND $1 <> $2 \
           AND d.state IN ('active', 'draining') AND (d.present OR NOT $3) AND EXISTS \
             (SELECT FROM baton_host b WHERE b.incarnation = $1 AND b.state IN ('active', 'draining')) RETURNING 1) \
         SELECT pg_notify($4, 'gone ' || $2 || ' ' || $1)::text FROM d",
    )
    .bind(holder(by))
    .bind(holder(dead))
    .bind(ground == Ground::Presence)
    .bind(NEWS)
    .optional(&mut transaction)
    .await;
    let result = declared.map(|row| row.is_some()).map_err(Failure::from);
    transaction.finish(result).await
}

/// See [`Store::leave`](baton_core::state::Store::leave).
pub(crate) async fn leave(pool: &Arc<Pool>, who: Incarnation) -> Result<(), Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let left = sqlx::query(
        "WITH l AS (UPDATE baton_host SET state = 'released', present = false \
           WHERE incarnation = $1 AND state IN ('active', 'draining') RETURNING 1) \
         SELECT pg_notify($2, 'own')::text FROM l",
    )
    .bind(holder(who))
    .bind(NEWS)
    .optional(&mut transaction)
    .await;
    let result = left.map(|_| ()).map_err(Failure::from);
    transaction.finish(result).await
}

/// See [`Store::drain`](baton_core::state::Store::drain).
pub(crate) async fn drain(
    pool: &Arc<Pool>,
    who: Incarnation,
    drain: bool,
) -> Result<bool, Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let wished = sqlx::query(
        "WITH d AS (UPDATE baton_host SET drain = $2 WHERE incarnation = $1 AND state IN ('active', 'draining') \
           RETURNING 1) \
         SELECT pg_notify($3, 'own ' || $1)::text FROM d",
    )
    .bind(holder(who))
    .bind(drain)
    .bind(NEWS)
    .optional(&mut transaction)
    .await;
    let result = wished.map(|row| row.is_some()).map_err(Failure::from);
    transaction.finish(result).await
}

/// Says whether a host holds its advisory lock. `false` if the host does not live.
pub(crate) async fn show(
    pool: &Arc<Pool>,
    who: Incarnation,
    present: bool,
) -> Result<bool, Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let shown = sqlx::query(
        "UPDATE baton_host SET present = $2 WHERE incarnation = $1 AND state IN ('active', 'draining')",
    )
    .bind(holder(who))
    .bind(present)
    .run(&mut transaction)
    .await;
    let result = shown.map(|rows| rows > 0).map_err(Failure::from);
    transaction.finish(result).await
}

/// See [`Store::history`](baton_core::state::Store::history).
pub(crate) async fn history(pool: &Arc<Pool>) -> Result<Seal, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let result = history_now(&mut transaction).await;
    transaction.finish(result).await
}

async fn history_now(transaction: &mut Transaction) -> Result<Seal, Failure> {
    let row = sqlx::query("SELECT baton_timeline(), generation FROM baton_cluster")
        .one(transaction)
        .await?;
    Ok(seal(&row, 0)?)
}

/// See [`Store::renew_history`](baton_core::state::Store::renew_history).
pub(crate) async fn renew_history(pool: &Arc<Pool>, now: Seal) -> Result<Seal, Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    let work = async {
        sqlx::query(
            "UPDATE baton_cluster SET generation = generation + 1 \
             WHERE baton_timeline() = $1 AND generation = $2",
        )
        .bind(i64::from(now.timeline))
        .bind(i64::from(now.generation))
        .run(&mut transaction)
        .await?;
        history_now(&mut transaction).await
    };
    let result = work.await;
    transaction.finish(result).await
}

/// Begins a transaction that sees what hosts see.
pub(crate) async fn fleet(pool: &Arc<Pool>, mode: Mode) -> Result<Transaction, Failure> {
    pool.begin(mode, Scope::Fleet).await.map_err(Failure::begin)
}

/// Slot, incarnation, name, address, zone, version, capacity, state, accounts, live, drain, remaining.
fn host_view(row: &PgRow) -> Result<HostView, Failure> {
    let text = |at: usize| row.try_get::<&str, _>(at);
    let small = |at: usize| {
        let n: i64 = row.try_get(at)?;
        Ok::<_, sqlx::Error>(u32::try_from(n).unwrap_or(u32::MAX))
    };
    let state = match text(7)? {
        "active" => HostState::Active,
        "draining" => HostState::Draining,
        "released" => HostState::Released,
        "dead" => HostState::Dead,
        _ => {
            let why = "a host is in a state that this version does not know";
            return Err(StoreError::Refused(why.to_owned()).into());
        }
    };
    Ok(HostView {
        slot: slot(row, 0)?,
        who: incarnation(row.try_get(1)?),
        info: HostInfo {
            name: text(2)?.into(),
            address: text(3)?.into(),
            zone: text(4)?.into(),
            version: text(5)?.into(),
            capacity: small(6)?,
        },
        state,
        accounts: small(8)?,
        live: small(9)?,
        drain: row.try_get(10)?,
        remaining: Micros(unsigned(row.try_get(11)?)),
    })
}

fn slot(row: &PgRow, at: usize) -> Result<u16, sqlx::Error> {
    let slot: i16 = row.try_get(at)?;
    Ok(u16::try_from(slot).unwrap_or(0))
}
