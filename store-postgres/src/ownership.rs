//! Fences: who may write which account, and how it changes hands. The rules are those of
//! [`Fence`](baton_core::state::Fence).
//!
//! These transactions are the fleet's: a host works for all tenants, and a fence holds nothing of theirs.

use crate::{
    accounts::business,
    error::Failure,
    hosts::{NEWS, fleet},
    pool::{Mode, Pool, Run as _, Transaction},
    rows::{begin, fence},
    schema::{account_query, holder, incarnation, number, seal, unsigned},
};
use baton_core::state::{
    AccountId, Claim, Epoch, HandOver, Incarnation, Lease, Micros, Orphan, Placement, Seq,
    StoreError, Term,
};
use sqlx::{Row as _, postgres::PgRow};
use std::{collections::BTreeSet, sync::Arc};

/// Fences that one transaction claims or frees. They are locked until it ends, so it had better be short.
const TOGETHER: usize = 1024;

/// See [`Store::claim`](baton_core::state::Store::claim).
pub(crate) async fn claim(
    pool: &Arc<Pool>,
    who: Incarnation,
    accounts: &[AccountId],
) -> Result<Vec<Claim>, Failure> {
    let mut claims = vec![Claim::Missing; accounts.len()];
    let mut rest: Vec<(usize, &AccountId)> = accounts.iter().enumerate().collect();
    loop {
        // An account that is named twice is claimed twice, one after the other.
        let mut seen = BTreeSet::new();
        let mut group = Vec::new();
        rest.retain(|&(place, account)| {
            let now = group.len() < TOGETHER && seen.insert(account);
            if now {
                group.push((place, account));
            }
            !now
        });
        let mut transaction = fleet(pool, Mode::Write).await?;
        let result = claim_group(&mut transaction, who, &group).await;
        for (place, claim) in transaction.finish(result).await? {
            if let Some(slot) = claims.get_mut(place) {
                *slot = claim;
            }
        }
        if rest.is_empty() {
            return Ok(claims);
        }
    }
}

async fn claim_group(
    transaction: &mut Transaction,
    who: Incarnation,
    accounts: &[(usize, &AccountId)],
) -> Result<Vec<(usize, Claim)>, Failure> {
    // A frozen process may sit inside an open transaction with a fence locked: the others must not wait for it.
    let (businesses, devices) = columns(accounts.iter().map(|&(_, account)| account));
    let rows = sqlx::query(
        "WITH w AS (SELECT * FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(business_id, device_id, n)), \
         l AS MATERIALIZED (SELECT w.n FROM w JOIN baton_fence f \
           ON f.business_id = w.business_id AND f.device_id = w.device_id \
           ORDER BY f.business_id, f.device_id FOR UPDATE OF f SKIP LOCKED) \
         SELECT m.lives, w.n, l.n IS NOT NULL, f.device_id IS NOT NULL \
         FROM (SELECT EXISTS (SELECT FROM baton_host \
           WHERE incarnation = $1 AND state IN ('active', 'draining')) AS lives) m \
         LEFT JOIN w ON true LEFT JOIN l ON l.n = w.n LEFT JOIN baton_fence f \
           ON l.n IS NULL AND f.business_id = w.business_id AND f.device_id = w.device_id",
    )
    .bind(holder(who))
    .bind(businesses)
    .bind(devices)
    .all(transaction)
    .await?;
    let mut claims = Vec::with_capacity(accounts.len());
    let mut locked = Vec::new();
    for row in rows {
        if !row.try_get::<bool, _>(0)? {
            return Err(StoreError::NotMember.into());
        }
        let Some(n) = row.try_get::<Option<i64>, _>(1)? else {
            continue;
        };
        let Some(&(place, account)) = nth(accounts, n) else {
            continue;
        };
        if row.try_get(2)? {
            locked.push((place, account));
        } else if row.try_get(3)? {
            claims.push((place, Claim::Locked));
        } else {
            claims.push((place, Claim::Missing));
        }
    }
    if !locked.is_empty() {
        claims.extend(take(transaction, who, &locked).await?);
    }
    Ok(claims)
}

/// Takes what is free of fences that are locked. A statement of its own, so that it sees every host that had joined
/// when the fences were locked: one that it did not see would be taken for dead.
async fn take(
    transaction: &mut Transaction,
    who: Incarnation,
    accounts: &[(usize, &AccountId)],
) -> Result<Vec<(usize, Claim)>, Failure> {
    let (businesses, devices) = columns(accounts.iter().map(|&(_, account)| account));
    let rows = sqlx::query(
        "WITH w AS (SELECT * FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(business_id, device_id, n)), \
         h AS MATERIALIZED (SELECT baton_timeline() AS timeline, generation FROM baton_cluster LIMIT 1), \
         m AS (UPDATE baton_fence f SET epoch = greatest(f.epoch + 1, (greatest(h.timeline - 1, 0) << 40) + 1), \
             holder = $1, commit_seq = f.commit_seq + 1 FROM w, h \
           WHERE f.business_id = w.business_id AND f.device_id = w.device_id AND NOT f.retired \
           AND (f.holder = $1 OR NOT EXISTS (SELECT FROM baton_host b \
             WHERE b.incarnation = f.holder AND b.state IN ('active', 'draining'))) \
           RETURNING w.n, f.epoch) \
         SELECT w.n, m.epoch, f.applied, f.sealed_timeline, f.sealed_generation, h.timeline, h.generation, \
           f.holder, f.retired \
         FROM h CROSS JOIN w JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
         LEFT JOIN m ON m.n = w.n",
    )
    .bind(holder(who))
    .bind(businesses)
    .bind(devices)
    .all(transaction)
    .await?;
    let mut claims = Vec::with_capacity(rows.len());
    for row in rows {
        let Some(&(place, _)) = nth(accounts, row.try_get(0)?) else {
            continue;
        };
        let held = || {
            let by: Option<i64> = row.try_get(7)?;
            Ok::<_, Failure>(by.map_or(Claim::Locked, |by| Claim::Held {
                by: incarnation(by),
            }))
        };
        let claim = match row.try_get::<Option<i64>, _>(1)? {
            Some(_) => Claim::Granted(lease(&row, who)?),
            None if row.try_get(8)? => Claim::Retired,
            None => held()?,
        };
        claims.push((place, claim));
    }
    Ok(claims)
}

/// Epoch, applied, sealed (2) and history (2), from column 1.
fn lease(row: &PgRow, who: Incarnation) -> Result<Lease, sqlx::Error> {
    Ok(Lease {
        term: Term {
            epoch: Epoch(unsigned(row.try_get(1)?)),
            holder: who,
            history: seal(row, 5)?,
        },
        applied: Seq(unsigned(row.try_get(2)?)),
        sealed: seal(row, 3)?,
    })
}

/// See [`Store::release`](baton_core::state::Store::release).
pub(crate) async fn release(
    pool: &Arc<Pool>,
    who: Incarnation,
    accounts: &[(AccountId, Epoch)],
) -> Result<(), Failure> {
    for accounts in accounts.chunks(TOGETHER) {
        let (businesses, devices) = columns(accounts.iter().map(|(account, _)| account));
        let epochs: Vec<i64> = accounts.iter().map(|(_, epoch)| number(epoch.0)).collect();
        let mut transaction = fleet(pool, Mode::Write).await?;
        let released = sqlx::query(
            "WITH l AS MATERIALIZED (SELECT f.business_id, f.device_id \
               FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS w(business_id, device_id, epoch) \
               JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
                 AND f.holder = $1 AND f.epoch = w.epoch \
               ORDER BY f.business_id, f.device_id FOR UPDATE OF f), \
             m AS (UPDATE baton_fence f SET holder = NULL, commit_seq = f.commit_seq + 1 FROM l \
               WHERE f.business_id = l.business_id AND f.device_id = l.device_id RETURNING 1) \
             SELECT pg_notify($5, 'own')::text FROM m LIMIT 1",
        )
        .bind(holder(who))
        .bind(businesses)
        .bind(devices)
        .bind(epochs)
        .bind(NEWS)
        .optional(&mut transaction)
        .await;
        let result = released.map(|_| ()).map_err(Failure::from);
        transaction.finish(result).await?;
    }
    Ok(())
}

/// See [`Store::hand_over`](baton_core::state::Store::hand_over).
pub(crate) async fn hand_over(
    pool: &Arc<Pool>,
    who: Incarnation,
    account: &AccountId,
    epoch: Epoch,
    to: Incarnation,
) -> Result<HandOver, Failure> {
    let mut transaction = fleet(pool, Mode::Write).await?;
    match give(&mut transaction, who, account, epoch, to).await {
        Ok(done @ HandOver::Done { .. }) => transaction.finish(Ok(done)).await,
        // The gift was counted before it could be given.
        Ok(refused) => {
            transaction.roll_back().await;
            Ok(refused)
        }
        Err(failure) => transaction.finish(Err(failure)).await,
    }
}

async fn give(
    transaction: &mut Transaction,
    who: Incarnation,
    account: &AccountId,
    epoch: Epoch,
    to: Incarnation,
) -> Result<HandOver, Failure> {
    // The successor's row is locked with this: it is not declared dead before it has got what it is given.
    let counted = sqlx::query(
        "UPDATE baton_host SET gifts = gifts + 1 WHERE incarnation = $1 AND state = 'active'",
    )
    .bind(holder(to))
    .run(transaction)
    .await?;
    if counted == 0 {
        return Ok(HandOver::Refused);
    }
    let given = account_query(
        "WITH m AS (UPDATE baton_fence f SET holder = $5, commit_seq = f.commit_seq + 1, \
           epoch = greatest(f.epoch + 1, (greatest(baton_timeline() - 1, 0) << 40) + 1) \
           WHERE f.business_id = $1 AND f.device_id = $2 AND f.holder = $3 AND f.epoch = $4 RETURNING f.epoch) \
         SELECT m.epoch, pg_notify($6, 'own ' || $5)::text FROM m",
        account,
    )
    .bind(holder(who))
    .bind(number(epoch.0))
    .bind(holder(to))
    .bind(NEWS)
    .optional(transaction)
    .await?;
    if let Some(row) = given {
        let epoch = Epoch(unsigned(row.try_get(0)?));
        return Ok(HandOver::Done { epoch });
    }
    let row = account_query(
        "SELECT epoch FROM baton_fence WHERE business_id = $1 AND device_id = $2",
        account,
    )
    .optional(transaction)
    .await?;
    match row {
        Some(row) => Ok(HandOver::Fenced {
            by: Epoch(unsigned(row.try_get(0)?)),
        }),
        None => Err(StoreError::NoAccount.into()),
    }
}

/// See [`Store::held`](baton_core::state::Store::held).
pub(crate) async fn held(
    pool: &Arc<Pool>,
    who: Incarnation,
) -> Result<Vec<(AccountId, Lease)>, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let work = async {
        let rows = sqlx::query(
            "SELECT f.device_id, f.epoch, f.applied, f.sealed_timeline, f.sealed_generation, \
               h.timeline, h.generation, f.business_id \
             FROM (SELECT baton_timeline() AS timeline, generation FROM baton_cluster LIMIT 1) h CROSS JOIN baton_fence f \
             WHERE f.holder = $1 ORDER BY f.business_id, f.device_id",
        )
        .bind(holder(who))
        .all(&mut transaction)
        .await?;
        rows.iter()
            .map(|row| Ok((account(row, 7, 0)?, lease(row, who)?)))
            .collect()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::misplaced`](baton_core::state::Store::misplaced).
pub(crate) async fn misplaced(
    pool: &Arc<Pool>,
    who: Incarnation,
) -> Result<Vec<(AccountId, Placement)>, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let work = async {
        let rows = sqlx::query(
            "SELECT f.business_id, f.device_id, coalesce(p.run, false), p.pin FROM baton_fence f \
             LEFT JOIN baton_placement p ON p.business_id = f.business_id AND p.device_id = f.device_id \
             WHERE f.holder = $1 AND (p.run IS NOT TRUE \
               OR p.pin <> (SELECT h.name FROM baton_host h WHERE h.incarnation = $1)) \
             ORDER BY f.business_id, f.device_id",
        )
        .bind(holder(who))
        .all(&mut transaction)
        .await?;
        rows.iter()
            .map(|row| {
                let placement = Placement {
                    run: row.try_get(2)?,
                    pin: row.try_get::<Option<&str>, _>(3)?.map(Into::into),
                    pause: Micros(0),
                };
                Ok((account(row, 0, 1)?, placement))
            })
            .collect()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::mail`](baton_core::state::Store::mail).
pub(crate) async fn mail(pool: &Arc<Pool>, who: Incarnation) -> Result<Vec<AccountId>, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let work = async {
        sqlx::query("SELECT set_config('baton.post', 'on', true)")
            .one(&mut transaction)
            .await?;
        // From one account with mail to the next, by a jump in the index.
        let rows = sqlx::query(
            "WITH RECURSIVE mail (business_id, device_id) AS ( \
               (SELECT m.business_id, m.device_id FROM baton_mailbox m ORDER BY m.business_id, m.device_id LIMIT 1) \
               UNION ALL SELECT n.business_id, n.device_id FROM mail CROSS JOIN LATERAL \
                 (SELECT m.business_id, m.device_id FROM baton_mailbox m \
                  WHERE (m.business_id, m.device_id) > (mail.business_id, mail.device_id) \
                  ORDER BY m.business_id, m.device_id LIMIT 1) n) \
             SELECT mail.business_id, mail.device_id FROM mail CROSS JOIN LATERAL \
               (SELECT f.holder FROM baton_fence f WHERE f.business_id = mail.business_id \
                AND f.device_id = mail.device_id OFFSET 0) theirs \
             WHERE theirs.holder = $1",
        )
        .bind(holder(who))
        .all(&mut transaction)
        .await?;
        rows.iter().map(|row| account(row, 0, 1)).collect()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::orphans`](baton_core::state::Store::orphans).
pub(crate) async fn orphans(
    pool: &Arc<Pool>,
    after: Option<&AccountId>,
    limit: u32,
) -> Result<Vec<Orphan>, Failure> {
    let mut transaction = fleet(pool, Mode::Read).await?;
    let work = async {
        // Fences of everybody who is not there are found by holder. Their names are picked out of the index one by one
        // (`holders`): that takes as many steps as there are hosts, not as many as there are accounts. What is wished is
        // asked for the few that are left; OFFSET keeps the planner, which does not see through the wall, from turning
        // all that around.
        let rows = sqlx::query(
            "WITH RECURSIVE holders (holder) AS ( \
               (SELECT f.holder FROM baton_fence f WHERE f.holder IS NOT NULL ORDER BY f.holder LIMIT 1) \
               UNION ALL SELECT (SELECT f.holder FROM baton_fence f WHERE f.holder > s.holder \
                 ORDER BY f.holder LIMIT 1) FROM holders s WHERE s.holder IS NOT NULL), \
             gone AS MATERIALIZED (SELECT s.holder FROM holders s WHERE s.holder IS NOT NULL AND NOT EXISTS \
               (SELECT FROM baton_host h WHERE h.incarnation = s.holder AND h.state IN ('active', 'draining'))), \
             free AS MATERIALIZED ( \
               SELECT theirs.business_id, theirs.device_id, gone.holder FROM gone CROSS JOIN LATERAL \
                 (SELECT f.business_id, f.device_id FROM baton_fence f WHERE f.holder = gone.holder OFFSET 0) theirs \
               UNION ALL SELECT f.business_id, f.device_id, f.holder FROM baton_fence f \
                 WHERE f.holder IS NULL AND NOT f.retired) \
             SELECT free.business_id, free.device_id, wish.pin, free.holder FROM free CROSS JOIN LATERAL \
               (SELECT p.pin FROM baton_placement p WHERE p.business_id = free.business_id \
                 AND p.device_id = free.device_id AND p.run AND p.not_before <= clock_timestamp() OFFSET 0) wish \
             WHERE $1::text IS NULL OR (free.business_id, free.device_id) > ($1 COLLATE \"C\", $2) \
             ORDER BY free.business_id, free.device_id LIMIT $3",
        )
        .bind(after.map(|after| after.business.as_str().to_owned()))
        .bind(after.map_or(0, |after| number(after.device)))
        .bind(i64::from(limit))
        .all(&mut transaction)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Orphan {
                    account: account(row, 0, 1)?,
                    pin: row.try_get::<Option<&str>, _>(2)?.map(Into::into),
                    last: row.try_get::<Option<i64>, _>(3)?.map(incarnation),
                })
            })
            .collect()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::retire`](baton_core::state::Store::retire).
pub(crate) async fn retire(
    pool: &Arc<Pool>,
    who: Incarnation,
    account: &AccountId,
    epoch: Epoch,
) -> Result<bool, Failure> {
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        let retired = account_query(
            "UPDATE baton_fence SET holder = NULL, retired = true, commit_seq = commit_seq + 1 \
             WHERE business_id = $1 AND device_id = $2 AND holder = $3 AND epoch = $4",
            account,
        )
        .bind(holder(who))
        .bind(number(epoch.0))
        .run(&mut transaction)
        .await?;
        if retired == 0 {
            fence(&mut transaction, account).await?;
        }
        Ok(retired > 0)
    };
    let result = work.await;
    transaction.finish(result).await
}

/// Businesses and devices, as arrays.
fn columns<'a>(accounts: impl Iterator<Item = &'a AccountId>) -> (Vec<&'a str>, Vec<i64>) {
    accounts
        .map(|account| (account.business.as_str(), number(account.device)))
        .unzip()
}

/// The one at position `n`, counted from 1.
fn nth<T>(values: &[T], n: i64) -> Option<&T> {
    values.get(usize::try_from(n).ok()?.checked_sub(1)?)
}

fn account(row: &PgRow, business_at: usize, device_at: usize) -> Result<AccountId, Failure> {
    Ok(AccountId {
        business: business(row.try_get(business_at)?)?,
        device: unsigned(row.try_get(device_at)?),
    })
}
