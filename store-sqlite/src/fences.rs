//! Fences in SQL: [`Fence`] judges, this reads and writes its row.

use crate::{
    database::{Failure, Transaction, savepoint, unsigned},
    presence::{hex, unhex},
    roster::{self, micros},
    rows,
    schema::number,
};
use baton_core::state::{
    AccountId, AccountInfo, Batch, BusinessId, Claim, Epoch, Fence, HandOver, HostState,
    Incarnation, Lease, Micros, Orphan, Outcome, Placement, Seal, Seq, StoreError, Term, rules,
};
use rusqlite::{Connection, Row, params};

impl Transaction<'_> {
    /// See [`Store::commit`](baton_core::state::Store::commit).
    pub fn commit(&mut self, batches: &[Batch]) -> Result<Vec<Outcome>, Failure> {
        let history = self.history;
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            let outcome = match rules::batch(batch) {
                Err(refusal) => Outcome::Rejected(refusal.to_string()),
                Ok(()) => {
                    match savepoint(self.connection, |connection| {
                        apply(connection, batch, history)
                    }) {
                        Ok(outcome) => outcome,
                        Err(Failure::Answer(error)) => Outcome::Rejected(error.to_string()),
                        Err(Failure::Transaction(error)) => return Err(error.into()),
                    }
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// See [`Store::confirm`](baton_core::state::Store::confirm).
    pub fn confirm(&mut self, terms: &[(AccountId, Term)]) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = Vec::with_capacity(terms.len());
        for (account, term) in terms {
            outcomes.push(match fence(self.connection, account) {
                Ok(fence) => match fence.refusal(term, self.history) {
                    Some(refusal) => refusal,
                    None => {
                        settle(self.connection, account)?;
                        Outcome::Committed
                    }
                },
                Err(Failure::Answer(error)) => Outcome::Rejected(error.to_string()),
                Err(failure) => return Err(failure),
            });
        }
        Ok(outcomes)
    }

    /// See [`Store::claim`](baton_core::state::Store::claim).
    pub fn claim(
        &mut self,
        who: Incarnation,
        accounts: &[AccountId],
    ) -> Result<Vec<Claim>, Failure> {
        let me = self
            .connection
            .prepare_cached(
                "SELECT 1 FROM baton_host WHERE incarnation = ?1 AND state IN ('active', 'draining')",
            )?
            .exists([hex(who)])?;
        if !me {
            return Err(StoreError::NotMember.into());
        }
        // Whoever acts lives, also if it was another handle of this process that let it join.
        self.announce(who)?;
        // Holders are few, accounts may be many.
        let mut last: Option<(Incarnation, bool)> = None;
        let mut claims = Vec::with_capacity(accounts.len());
        for account in accounts {
            let mut fence = match fence(self.connection, account) {
                Ok(fence) => fence,
                Err(Failure::Answer(StoreError::NoAccount)) => {
                    claims.push(Claim::Missing);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let holder_lives = match (fence.holder, last) {
                (None, _) => false,
                (Some(holder), Some((asked, lives))) if holder == asked => lives,
                (Some(holder), _) => {
                    let lives = holder != who && self.is_live(holder)?;
                    last = Some((holder, lives));
                    lives
                }
            };
            let claim = fence.claim(who, self.history, |_| holder_lives);
            if matches!(claim, Claim::Granted(_)) {
                write(self.connection, account, &fence)?;
            }
            claims.push(claim);
        }
        Ok(claims)
    }

    /// See [`Store::release`](baton_core::state::Store::release).
    pub fn release(
        &mut self,
        who: Incarnation,
        accounts: &[(AccountId, Epoch)],
    ) -> Result<(), Failure> {
        let mut released = 0;
        for (account, epoch) in accounts {
            released += self
                .connection
                .prepare_cached(
                    "UPDATE baton_fence SET holder = NULL, commit_seq = commit_seq + 1 \
                     WHERE business_id = ?1 AND device_id = ?2 AND holder = ?3 AND epoch = ?4",
                )?
                .execute(params![
                    account.business.as_str(),
                    number(account.device),
                    hex(who),
                    number(epoch.0),
                ])?;
        }
        if released > 0 {
            self.changed()?;
        }
        Ok(())
    }

    /// See [`Store::hand_over`](baton_core::state::Store::hand_over).
    pub fn hand_over(
        &mut self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
        to: Incarnation,
    ) -> Result<HandOver, Failure> {
        if self.live_state(to)? != Some(HostState::Active) {
            return Ok(HandOver::Refused);
        }
        let mut fence = fence(self.connection, account)?;
        let answer = fence.hand_over(who, epoch, to, self.history);
        if matches!(answer, HandOver::Done { .. }) {
            write(self.connection, account, &fence)?;
            self.connection
                .prepare_cached("UPDATE baton_host SET gifts = gifts + 1 WHERE incarnation = ?1")?
                .execute([hex(to)])?;
            self.changed()?;
        }
        Ok(answer)
    }

    /// See [`Store::place`](baton_core::state::Store::place).
    pub fn place(&mut self, account: &AccountId, placement: &Placement) -> Result<(), Failure> {
        rules::placement(placement)?;
        fence(self.connection, account)?;
        self.connection
            .prepare_cached(
                "INSERT INTO baton_placement (business_id, device_id, run, pin, not_before) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT DO UPDATE SET run = excluded.run, pin = excluded.pin, not_before = excluded.not_before",
            )?
            .execute(params![
                account.business.as_str(),
                number(account.device),
                placement.run,
                placement.pin.as_deref(),
                self.micros().saturating_add(micros(placement.pause)),
            ])?;
        self.changed()
    }

    /// See [`Store::retire`](baton_core::state::Store::retire).
    pub fn retire(
        &mut self,
        who: Incarnation,
        account: &AccountId,
        epoch: Epoch,
    ) -> Result<bool, Failure> {
        let mut fence = fence(self.connection, account)?;
        let held = fence.release(who, epoch);
        if held {
            fence.retired = true;
            write(self.connection, account, &fence)?;
            self.changed()?;
        }
        Ok(held)
    }

    /// See [`Store::delete_account`](baton_core::state::Store::delete_account).
    pub fn delete_account(&mut self, account: &AccountId) -> Result<(), Failure> {
        let holder = fence(self.connection, account)?.holder;
        if let Some(holder) = holder
            && self.is_live(holder)?
        {
            return Err(StoreError::Held.into());
        }
        // Everything else of the account goes with this row.
        self.connection
            .prepare_cached("DELETE FROM baton_device WHERE business_id = ?1 AND device_id = ?2")?
            .execute(params![account.business.as_str(), number(account.device)])?;
        self.changed()
    }
}

/// Every account has a fence: without one there is no account.
pub(crate) fn fence(connection: &Connection, account: &AccountId) -> Result<Fence, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT epoch, applied, holder, sealed_timeline, sealed_generation, retired FROM baton_fence \
         WHERE business_id = ?1 AND device_id = ?2",
    )?;
    let mut rows = statement.query(params![account.business.as_str(), number(account.device)])?;
    match rows.next()? {
        Some(row) => Ok(read(row, 0)?),
        None => Err(StoreError::NoAccount.into()),
    }
}

/// See [`Store::held`](baton_core::state::Store::held).
pub(crate) fn held(
    connection: &Connection,
    who: Incarnation,
    history: Seal,
) -> Result<Vec<(AccountId, Lease)>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT business_id, device_id, epoch, applied, holder, sealed_timeline, sealed_generation, retired \
         FROM baton_fence WHERE holder = ?1 ORDER BY business_id, device_id",
    )?;
    let mut rows = statement.query([hex(who)])?;
    let mut held = Vec::new();
    while let Some(row) = rows.next()? {
        held.push((account(row)?, read(row, 2)?.lease(who, history)));
    }
    Ok(held)
}

/// See [`Store::misplaced`](baton_core::state::Store::misplaced). An account that nobody ever wished anything for has
/// no wish to run.
pub(crate) fn misplaced(
    connection: &Connection,
    who: Incarnation,
) -> Result<Vec<(AccountId, Placement)>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT f.business_id, f.device_id, coalesce(p.run, 0), p.pin \
         FROM baton_fence f LEFT JOIN baton_placement p USING (business_id, device_id) \
         WHERE f.holder = ?1 AND (p.run IS NOT 1 OR p.pin <> (SELECT name FROM baton_host WHERE incarnation = ?1)) \
         ORDER BY f.business_id, f.device_id",
    )?;
    let mut rows = statement.query([hex(who)])?;
    let mut misplaced = Vec::new();
    while let Some(row) = rows.next()? {
        let pin: Option<String> = row.get(3)?;
        let placement = Placement {
            run: row.get(2)?,
            pin: pin.map(Into::into),
            pause: Micros(0),
        };
        misplaced.push((account(row)?, placement));
    }
    Ok(misplaced)
}

/// See [`Store::mail`](baton_core::state::Store::mail). From one account with mail to the next, by a jump in the index.
pub(crate) fn mail(connection: &Connection, who: Incarnation) -> Result<Vec<AccountId>, Failure> {
    let mut next = connection.prepare_cached(
        "SELECT m.business_id, m.device_id, \
           (SELECT holder FROM baton_fence f WHERE f.business_id = m.business_id AND f.device_id = m.device_id) \
         FROM baton_mailbox m WHERE (m.business_id, m.device_id) > (?1, ?2) \
         ORDER BY m.business_id, m.device_id LIMIT 1",
    )?;
    let who = hex(who);
    let mut mail = Vec::new();
    let mut after = (String::new(), 0);
    loop {
        let mut rows = next.query(params![after.0, after.1])?;
        let Some(row) = rows.next()? else {
            return Ok(mail);
        };
        let account = account(row)?;
        after = (account.business.as_str().to_owned(), number(account.device));
        if row.get::<_, Option<String>>(2)?.as_ref() == Some(&who) {
            mail.push(account);
        }
    }
}

/// See [`Store::orphans`](baton_core::state::Store::orphans). `living` are the hosts whose accounts are none.
///
/// Goes holder by holder, not account by account: where everything runs, this costs as much as there are hosts.
pub(crate) fn orphans(
    connection: &Connection,
    after: Option<&AccountId>,
    limit: u32,
    now: i64,
    living: &[Incarnation],
) -> Result<Vec<Orphan>, Failure> {
    let after = after.map_or(("", 0), |after| {
        (after.business.as_str(), number(after.device))
    });
    let mut orphans = Vec::new();
    for holder in holders(connection)? {
        if holder.is_some_and(|holder| living.contains(&holder)) {
            continue;
        }
        let mut statement = connection.prepare_cached(
            "SELECT f.business_id, f.device_id, p.pin \
             FROM baton_fence f CROSS JOIN baton_placement p USING (business_id, device_id) \
             WHERE f.holder IS ?1 AND (f.business_id, f.device_id) > (?2, ?3) \
             AND f.retired = 0 AND p.run = 1 AND p.not_before <= ?4 \
             ORDER BY f.business_id, f.device_id LIMIT ?5",
        )?;
        let mut rows = statement.query(params![holder.map(hex), after.0, after.1, now, limit])?;
        while let Some(row) = rows.next()? {
            let pin: Option<String> = row.get(2)?;
            orphans.push(Orphan {
                account: account(row)?,
                pin: pin.map(Into::into),
                last: holder,
            });
        }
    }
    orphans.sort_by(|a, b| a.account.cmp(&b.account));
    orphans.truncate(limit as usize);
    Ok(orphans)
}

/// Everybody to whom some account was given last, and nobody, from one jump in the index to the next.
fn holders(connection: &Connection) -> Result<Vec<Option<Incarnation>>, Failure> {
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE step (holder) AS ( \
             SELECT min(holder) FROM baton_fence \
             UNION ALL SELECT (SELECT min(holder) FROM baton_fence WHERE holder > step.holder) \
             FROM step WHERE step.holder IS NOT NULL) \
         SELECT holder FROM step WHERE holder IS NOT NULL",
    )?;
    let mut rows = statement.query([])?;
    let mut holders = vec![None];
    while let Some(row) = rows.next()? {
        holders.push(Some(roster::incarnation(row, 0)?));
    }
    Ok(holders)
}

/// See [`Store::accounts`](baton_core::state::Store::accounts).
pub(crate) fn accounts(
    connection: &Connection,
    business: &BusinessId,
    now: i64,
    living: &[Incarnation],
) -> Result<Vec<AccountInfo>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT f.business_id, f.device_id, epoch, applied, holder, sealed_timeline, sealed_generation, retired, \
         name, record, run, pin, not_before \
         FROM baton_device JOIN baton_fence f USING (business_id, device_id) \
         LEFT JOIN baton_placement USING (business_id, device_id) WHERE business_id = ?1 ORDER BY name",
    )?;
    let mut rows = statement.query([business.as_str()])?;
    let mut accounts = Vec::new();
    while let Some(row) = rows.next()? {
        let fence = read(row, 2)?;
        let (run, pin): (Option<bool>, Option<String>) = (row.get(10)?, row.get(11)?);
        let not_before: Option<i64> = row.get(12)?;
        accounts.push(AccountInfo {
            id: account(row)?,
            name: row.get(8)?,
            epoch: fence.epoch,
            holder: fence.holder.filter(|holder| living.contains(holder)),
            retired: fence.retired,
            placement: Placement {
                run: run.unwrap_or_default(),
                pin: pin.map(Into::into),
                pause: Micros(unsigned(not_before.unwrap_or(0).saturating_sub(now))),
            },
            device: rows::content(row.get_ref(9)?),
        });
    }
    Ok(accounts)
}

/// Moves the fence if everything about the batch is as it has to be, then writes its rows. Anything but `Committed`
/// has changed nothing.
fn apply(connection: &Connection, batch: &Batch, history: Seal) -> Result<Outcome, Failure> {
    let mut moved = 0;
    if batch.term.history == history {
        moved = connection
            .prepare_cached(
                "UPDATE baton_fence SET applied = ?4, commit_seq = commit_seq + 1, \
                 sealed_timeline = ?6, sealed_generation = ?7 \
                 WHERE business_id = ?1 AND device_id = ?2 AND epoch = ?3 AND applied = ?4 - 1 AND holder = ?5 \
                 AND (?8 OR (sealed_timeline = ?6 AND sealed_generation = ?7))",
            )?
            .execute(params![
                batch.account.business.as_str(),
                number(batch.account.device),
                number(batch.term.epoch.0),
                number(batch.seq.0),
                hex(batch.term.holder),
                history.timeline,
                history.generation,
                batch.reseal,
            ])?;
    }
    if moved == 0 {
        return why_not(connection, batch, history);
    }
    for (key, record) in &batch.rows {
        match record {
            Some(record) => rows::put(connection, &batch.account, key, record, batch.at)?,
            None => rows::delete(connection, &batch.account, key)?,
        }
    }
    Ok(Outcome::Committed)
}

/// The statement that moves the fence says only yes or no; the rule in words is [`Fence::admit`].
fn why_not(connection: &Connection, batch: &Batch, history: Seal) -> Result<Outcome, Failure> {
    match fence(connection, &batch.account)?.admit(batch, history) {
        Some(Outcome::Committed) => {
            settle(connection, &batch.account)?;
            Ok(Outcome::Committed)
        }
        Some(answer) => Ok(answer),
        None => {
            let why = "the fence of the account cannot be moved: the database file is damaged";
            Err(StoreError::Refused(why.to_owned()).into())
        }
    }
}

/// A write that changes nothing: the answer is then as durable as everything before it.
fn settle(connection: &Connection, account: &AccountId) -> Result<(), Failure> {
    connection
        .prepare_cached(
            "UPDATE baton_fence SET commit_seq = commit_seq + 1 WHERE business_id = ?1 AND device_id = ?2",
        )?
        .execute(params![account.business.as_str(), number(account.device)])?;
    Ok(())
}

fn write(connection: &Connection, account: &AccountId, fence: &Fence) -> Result<(), Failure> {
    let Fence {
        epoch,
        applied,
        holder,
        sealed,
        retired,
    } = fence;
    connection
        .prepare_cached(
            "UPDATE baton_fence SET epoch = ?3, applied = ?4, commit_seq = commit_seq + 1, holder = ?5, \
             sealed_timeline = ?6, sealed_generation = ?7, retired = ?8 WHERE business_id = ?1 AND device_id = ?2",
        )?
        .execute(params![
            account.business.as_str(),
            number(account.device),
            number(epoch.0),
            number(applied.0),
            holder.map(hex),
            sealed.timeline,
            sealed.generation,
            retired,
        ])?;
    Ok(())
}

/// Epoch, applied, holder, seal, retired, from column `at` on.
fn read(row: &Row<'_>, at: usize) -> rusqlite::Result<Fence> {
    let holder: Option<String> = row.get(at + 2)?;
    Ok(Fence {
        epoch: Epoch(unsigned(row.get(at)?)),
        applied: Seq(unsigned(row.get(at + 1)?)),
        holder: holder.and_then(|hex| unhex(&hex)),
        sealed: Seal {
            timeline: row.get(at + 3)?,
            generation: row.get(at + 4)?,
        },
        retired: row.get(at + 5)?,
    })
}

/// Business and device in the first two columns.
fn account(row: &Row<'_>) -> Result<AccountId, Failure> {
    let business = BusinessId::new(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)
        .map_err(|error| StoreError::Refused(error.to_string()))?;
    Ok(AccountId {
        business,
        device: unsigned(row.get(1)?),
    })
}
