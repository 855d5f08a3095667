//! The roster in SQL: [`Roster`](baton_core::state::Roster) says in plain data what happens here row by row.

use crate::{
    database::{Failure, Transaction, unsigned},
    presence::{Observer, hex, unhex},
};
use baton_core::state::{
    Beat, Beaten, HostInfo, HostState, HostView, Incarnation, Micros, Roster, StoreError, View,
    rules,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

impl Transaction<'_> {
    /// See [`Store::join`](baton_core::state::Store::join).
    pub fn join(&mut self, who: Incarnation, info: &HostInfo, ttl: Micros) -> Result<u16, Failure> {
        rules::host(info)?;
        let now = self.micros();
        let until = now.saturating_add(micros(ttl));
        let known: Option<(u16, String)> = self
            .connection
            .prepare_cached("SELECT slot, state FROM baton_host WHERE incarnation = ?1")?
            .query_row([hex(who)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((slot, state)) = known {
            if !parse(&state).is_live() {
                return Err(StoreError::NotMember.into());
            }
            let locked = self.announce(who)?;
            self.connection
                .prepare_cached(
                    "UPDATE baton_host SET expires_at = ?2, locked = max(locked, ?3) WHERE slot = ?1",
                )?
                .execute(params![slot, until, locked])?;
            return Ok(slot);
        }
        let taken: Vec<u16> = self
            .connection
            .prepare_cached(
                "SELECT slot FROM baton_host WHERE state IN ('active', 'draining') ORDER BY slot",
            )?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let slot = (1..=Roster::SLOTS).find(|slot| taken.binary_search(slot).is_err());
        let Some(slot) = slot else {
            let why = "there is no slot left for a host";
            return Err(StoreError::Refused(why.to_owned()).into());
        };
        let locked = self.announce(who)?;
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO baton_host (slot, incarnation, name, address, zone, version, state, capacity, \
                 accounts, gifts, locked, ttl, expires_at, good_since) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'active', ?7, 0, 0, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                slot,
                hex(who),
                info.name.as_str(),
                info.address.as_str(),
                info.zone.as_str(),
                info.version.as_str(),
                info.capacity,
                locked,
                micros(ttl),
                until,
                now,
            ])?;
        Ok(slot)
    }

    /// See [`Store::beat`](baton_core::state::Store::beat).
    pub fn beat(&mut self, who: Incarnation, beat: Beat) -> Result<Beaten, Failure> {
        let now = self.micros();
        let me: Option<(i64, i64, i64, i64)> = self
            .connection
            .prepare_cached(
                "SELECT ttl, expires_at, good_since, gifts FROM baton_host \
                 WHERE incarnation = ?1 AND state IN ('active', 'draining')",
            )?
            .query_row([hex(who)], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((old_ttl, expires, good_since, gifts)) = me else {
            return Ok(Beaten::Dead);
        };
        let renewed = expires.saturating_sub(old_ttl);
        let good_since = if now.saturating_sub(renewed) > old_ttl / 2 {
            now
        } else {
            // A clock that was set back must not keep a judge from judging until it has caught up.
            good_since.min(now)
        };
        let ttl = micros(beat.ttl);
        let locked = self.announce(who)?;
        self.connection
            .prepare_cached(
                "UPDATE baton_host SET state = ?2, accounts = ?3, ttl = ?4, expires_at = ?5, good_since = ?6, \
                 locked = max(locked, ?7), live = ?8 WHERE incarnation = ?1",
            )?
            .execute(params![
                hex(who),
                if beat.draining { "draining" } else { "active" },
                beat.accounts,
                ttl,
                now.saturating_add(ttl),
                good_since,
                locked,
                beat.live,
            ])?;
        // A clock that was set back must not keep the dead alive for longer than a lease.
        self.connection
            .prepare_cached(
                "UPDATE baton_host SET expires_at = ?1 + ttl WHERE expires_at > ?1 + ttl",
            )?
            .execute([now])?;
        let newly_dead = self.judge(who, now, now - good_since)?;
        for &dead in &newly_dead {
            self.end(dead, HostState::Dead)?;
        }
        Ok(Beaten::Renewed(View {
            history: self.history,
            hosts: view(self.connection, now)?,
            newly_dead,
            gifts: unsigned(gifts),
        }))
    }

    /// Whose lease has run out as `who` may tell, having beaten without a gap for `good_for`; and whose lock is free.
    fn judge(
        &self,
        who: Incarnation,
        now: i64,
        good_for: i64,
    ) -> Result<Vec<Incarnation>, Failure> {
        let mut statement = self.connection.prepare_cached(
            "SELECT incarnation, locked, expires_at <= ?2 AND ttl <= ?3 FROM baton_host \
             WHERE incarnation <> ?1 AND state IN ('active', 'draining') ORDER BY slot",
        )?;
        let mut rows = statement.query(params![hex(who), now, good_for])?;
        let mut dead = Vec::new();
        while let Some(row) = rows.next()? {
            let other = incarnation(row, 0)?;
            let (locked, silent): (bool, bool) = (row.get(1)?, row.get(2)?);
            if silent || (locked && self.is_provably_dead(other)) {
                dead.push(other);
            }
        }
        Ok(dead)
    }

    /// See [`Store::declare_dead`](baton_core::state::Store::declare_dead).
    pub fn declare_dead(&mut self, by: Incarnation, dead: Incarnation) -> Result<bool, Failure> {
        if by == dead || !state(self.connection, by)?.is_some_and(HostState::is_live) {
            return Ok(false);
        }
        self.end(dead, HostState::Dead)
    }

    /// Declares dead whose lock is free: what a thread that watches found out. `false` if it was known, or is not so.
    pub(crate) fn bury(&mut self, dead: Incarnation) -> Result<bool, Failure> {
        Ok(self.is_provably_dead(dead) && self.end(dead, HostState::Dead)?)
    }

    /// See [`Store::drain`](baton_core::state::Store::drain).
    pub fn drain(&mut self, who: Incarnation, drain: bool) -> Result<bool, Failure> {
        let wished = self
            .connection
            .prepare_cached(
                "UPDATE baton_host SET drain = ?2 WHERE incarnation = ?1 AND state IN ('active', 'draining')",
            )?
            .execute(params![hex(who), drain])?;
        if wished > 0 {
            self.changed()?;
        }
        Ok(wished > 0)
    }

    /// See [`Store::leave`](baton_core::state::Store::leave).
    pub fn leave(&mut self, who: Incarnation) -> Result<(), Failure> {
        self.end(who, HostState::Released)?;
        if let Some(presence) = &mut self.presence {
            presence.withdraw(who);
        }
        Ok(())
    }

    /// Whether accounts of `who` are out of reach for others. Declares dead who provably is.
    pub(crate) fn is_live(&mut self, who: Incarnation) -> Result<bool, Failure> {
        Ok(self.live_state(who)?.is_some())
    }

    /// The state of `who` if it lives.
    pub(crate) fn live_state(&mut self, who: Incarnation) -> Result<Option<HostState>, Failure> {
        let found: Option<(String, bool)> = self
            .connection
            .prepare_cached("SELECT state, locked FROM baton_host WHERE incarnation = ?1")?
            .query_row([hex(who)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((state, locked)) = found else {
            return Ok(None);
        };
        let state = parse(&state);
        if !state.is_live() {
            return Ok(None);
        }
        if locked && self.is_provably_dead(who) {
            self.end(who, HostState::Dead)?;
            return Ok(None);
        }
        Ok(Some(state))
    }

    /// `false` if it had ended before.
    fn end(&mut self, who: Incarnation, state: HostState) -> Result<bool, Failure> {
        let ended = self
            .connection
            .prepare_cached(
                "UPDATE baton_host SET state = ?2 WHERE incarnation = ?1 AND state IN ('active', 'draining')",
            )?
            .execute(params![hex(who), name(state)])?;
        if ended > 0 {
            // Those who watch see by the roster itself who has died.
            if state == HostState::Released {
                self.changed()?;
            }
            tracing::info!(host = %hex(who), state = name(state), "a host has ended");
        }
        Ok(ended > 0)
    }

    /// Makes `who`, for whom this process acts, visibly alive. `false` if this store does without.
    pub(crate) fn announce(&mut self, who: Incarnation) -> Result<bool, Failure> {
        let Some(presence) = &mut self.presence else {
            return Ok(false);
        };
        presence.announce(who).map_err(|error| {
            StoreError::Refused(format!("no lock file beside the database: {error}"))
        })?;
        Ok(true)
    }

    fn is_provably_dead(&self, who: Incarnation) -> bool {
        self.presence
            .as_ref()
            .is_some_and(|presence| presence.is_dead(who))
    }
}

/// Everybody, by slot.
pub(crate) fn view(connection: &Connection, now: i64) -> Result<Vec<HostView>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT slot, incarnation, name, address, zone, version, capacity, state, accounts, expires_at, live, drain \
         FROM baton_host ORDER BY slot",
    )?;
    let mut rows = statement.query([])?;
    let mut hosts = Vec::new();
    while let Some(row) = rows.next()? {
        let text = |at| -> rusqlite::Result<_> { Ok(row.get_ref(at)?.as_str()?.into()) };
        let expires: i64 = row.get(9)?;
        hosts.push(HostView {
            slot: row.get(0)?,
            who: incarnation(row, 1)?,
            info: HostInfo {
                name: text(2)?,
                address: text(3)?,
                zone: text(4)?,
                version: text(5)?,
                capacity: row.get(6)?,
            },
            state: parse(row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?),
            accounts: row.get(8)?,
            live: row.get(10)?,
            drain: row.get(11)?,
            remaining: Micros(unsigned(expires.saturating_sub(now))),
        });
    }
    Ok(hosts)
}

/// A host, its state, and whether it keeps a lock that can be looked at.
pub(crate) type Member = (Incarnation, HostState, bool);

/// Everybody, in short.
pub(crate) fn members(connection: &Connection) -> Result<Vec<Member>, Failure> {
    let mut statement = connection
        .prepare_cached("SELECT incarnation, state, locked FROM baton_host ORDER BY slot")?;
    let mut rows = statement.query([])?;
    let mut hosts = Vec::new();
    while let Some(row) = rows.next()? {
        let state = parse(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
        hosts.push((incarnation(row, 0)?, state, row.get(2)?));
    }
    Ok(hosts)
}

/// Who lives as far as anybody can see from here.
pub(crate) fn visibly_living(
    connection: &Connection,
    observer: Option<&Observer>,
) -> Result<Vec<Incarnation>, Failure> {
    let is_dead = |who| observer.is_some_and(|observer| observer.is_dead(who));
    let mut members = members(connection)?;
    members.retain(|&(who, state, locked)| state.is_live() && !(locked && is_dead(who)));
    Ok(members.into_iter().map(|(who, ..)| who).collect())
}

/// What is known of `who`.
fn state(connection: &Connection, who: Incarnation) -> Result<Option<HostState>, Failure> {
    Ok(connection
        .prepare_cached("SELECT state FROM baton_host WHERE incarnation = ?1")?
        .query_row([hex(who)], |row| Ok(parse(row.get_ref(0)?.as_str()?)))
        .optional()?)
}

/// A column that holds an incarnation.
pub(crate) fn incarnation(row: &Row<'_>, at: usize) -> rusqlite::Result<Incarnation> {
    let hex = row.get_ref(at)?.as_str()?;
    unhex(hex).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            at,
            rusqlite::types::Type::Text,
            "not an incarnation".into(),
        )
    })
}

const fn name(state: HostState) -> &'static str {
    match state {
        HostState::Active => "active",
        HostState::Draining => "draining",
        HostState::Released => "released",
        HostState::Dead => "dead",
    }
}

/// A constraint keeps everything else out.
fn parse(state: &str) -> HostState {
    match state {
        "active" => HostState::Active,
        "draining" => HostState::Draining,
        "released" => HostState::Released,
        _ => HostState::Dead,
    }
}

/// Durations beyond a thousand years are as good as that, and leave room to add the time of day.
pub(crate) fn micros(duration: Micros) -> i64 {
    const MOST: i64 = 1_000 * 366 * 86_400 * 1_000_000;
    i64::try_from(duration.0).unwrap_or(MOST).min(MOST)
}
