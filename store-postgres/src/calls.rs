//! The calls beside the commit: each a transaction of its own, for one account or one business.

use crate::{
    error::{Blame, Failure},
    migrate,
    open::Server,
    pool::{Mode, Pool, Run as _, Transaction},
    schema::{Keys, account_query, bind_key, number, read_key, statements, unsigned, width},
};
use baton_core::state::{
    AccountId, AccountInfo, BusinessId, Claim, Epoch, Incarnation, Key, Lease, MessageId, Micros,
    Record, Renewal, Row, Scan, Seq, StoreError, Table, UnixMillis, rules,
};
use bytes::Bytes;
use sqlx::{Row as _, postgres::PgRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Leases are cut to this: `timestamptz` ends, and nobody means it.
const LONGEST_LEASE: Micros = Micros::from_secs(100 * 365 * 86_400);

/// See [`Store::load`](baton_core::state::Store::load). All rows are of one moment, unless one of them is damaged.
pub(crate) async fn load(
    pool: &Arc<Pool>,
    account: &AccountId,
    keys: &[Key],
) -> Result<Vec<Row>, Failure> {
    match load_together(pool, account, keys).await {
        Err(failure) if failure.blame() == Blame::Damage => {
            let mut rows = Vec::with_capacity(keys.len());
            for key in keys {
                rows.push(load_alone(pool, account, key).await?);
            }
            Ok(rows)
        }
        result => result,
    }
}

async fn load_together(
    pool: &Arc<Pool>,
    account: &AccountId,
    keys: &[Key],
) -> Result<Vec<Row>, Failure> {
    let mut transaction = begin(pool, Mode::Read, account).await?;
    let result = load_rows(&mut transaction, account, keys).await;
    transaction.finish(result).await
}

/// A record that the server cannot put together is damaged, and the one that is.
async fn load_alone(pool: &Arc<Pool>, account: &AccountId, key: &Key) -> Result<Row, Failure> {
    match load_together(pool, account, std::slice::from_ref(key)).await {
        Ok(mut rows) => Ok(rows.pop().unwrap_or(Row::Absent)),
        Err(failure) if failure.blame() == Blame::Damage => {
            tracing::error!(%account, ?key, "a row is damaged");
            Ok(Row::Corrupt)
        }
        Err(failure) => Err(failure),
    }
}

async fn load_rows(
    transaction: &mut Transaction,
    account: &AccountId,
    keys: &[Key],
) -> Result<Vec<Row>, Failure> {
    let mut rows = vec![Row::Absent; keys.len()];
    let mut tables: BTreeMap<Table, Vec<usize>> = BTreeMap::new();
    for (place, key) in keys.iter().enumerate() {
        // What no table has room for is in none.
        if rules::key(key).is_ok() {
            tables.entry(key.table()).or_default().push(place);
        }
    }
    for (table, places) in tables {
        let mut columns = Keys::new(table);
        for key in places.iter().filter_map(|&place| keys.get(place)) {
            columns.push(key);
        }
        let query = columns.bind(account_query(&statements(table).get, account));
        for row in query.all(transaction).await? {
            let content = read(&row, 1)?;
            let n = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
            // The only row of a table without key columns answers whoever asked.
            let answered = if width(table) == 0 {
                &places[..]
            } else {
                nth(&places, n)
            };
            for &place in answered {
                if let Some(row) = rows.get_mut(place) {
                    row.clone_from(&content);
                }
            }
        }
    }
    // An account with a row exists: only a load that finds nothing has to ask.
    if rows.iter().all(|row| *row == Row::Absent) {
        fence(transaction, account).await?;
    }
    Ok(rows)
}

/// The one at position `n`, counted from 1.
fn nth(places: &[usize], n: usize) -> &[usize] {
    n.checked_sub(1)
        .and_then(|n| places.get(n..=n))
        .unwrap_or_default()
}

/// See [`Store::scan`](baton_core::state::Store::scan).
pub(crate) async fn scan(
    pool: &Arc<Pool>,
    account: &AccountId,
    scan: &Scan,
) -> Result<Vec<(Key, Row)>, Failure> {
    rules::cursor(scan.table, scan.after.as_ref())?;
    if let Some(after) = &scan.after {
        rules::key(after)?;
    }
    match scan_together(pool, account, scan, true).await {
        Err(failure) if failure.blame() == Blame::Damage => {
            let mut rows = scan_together(pool, account, scan, false).await?;
            for (key, row) in &mut rows {
                *row = load_alone(pool, account, key).await?;
            }
            // Deleted in the meantime.
            rows.retain(|(_, row)| *row != Row::Absent);
            Ok(rows)
        }
        result => result,
    }
}

async fn scan_together(
    pool: &Arc<Pool>,
    account: &AccountId,
    scan: &Scan,
    records: bool,
) -> Result<Vec<(Key, Row)>, Failure> {
    let mut transaction = begin(pool, Mode::Read, account).await?;
    let result = scan_rows(&mut transaction, account, scan, records).await;
    transaction.finish(result).await
}

async fn scan_rows(
    transaction: &mut Transaction,
    account: &AccountId,
    scan: &Scan,
    records: bool,
) -> Result<Vec<(Key, Row)>, Failure> {
    let statements = statements(scan.table);
    let sql = match (&scan.after, records) {
        (None, true) => &statements.scan,
        (None, false) => &statements.keys,
        (Some(_), true) => &statements.scan_after,
        (Some(_), false) => &statements.keys_after,
    };
    let mut query = account_query(sql, account).bind(i64::from(scan.limit));
    if let Some(after) = &scan.after {
        query = bind_key(query, after);
    }
    let mut found = Vec::new();
    for row in query.all(transaction).await? {
        let Some(key) = read_key(scan.table, &row) else {
            let why = format!(
                "table {} has a row whose key cannot be read",
                scan.table.name()
            );
            return Err(StoreError::Refused(why).into());
        };
        let content = if records {
            read(&row, width(scan.table))?
        } else {
            Row::Corrupt
        };
        found.push((key, content));
    }
    if found.is_empty() {
        fence(transaction, account).await?;
    }
    Ok(found)
}

/// See [`Store::create_account`](baton_core::state::Store::create_account).
pub(crate) async fn create_account(
    pool: &Arc<Pool>,
    business: &BusinessId,
    name: &str,
) -> Result<AccountId, Failure> {
    rules::account_name(name)?;
    let mut transaction = pool
        .begin(Mode::Write, [business])
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let tenant = business.as_str();
        sqlx::query("INSERT INTO baton_tenant (business_id) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(tenant)
            .run(&mut transaction)
            .await?;
        let row = sqlx::query(
            "INSERT INTO baton_device (business_id, name) VALUES ($1, $2) \
             ON CONFLICT (business_id, name) DO NOTHING RETURNING device_id",
        )
        .bind(tenant)
        .bind(name)
        .optional(&mut transaction)
        .await?;
        let Some(row) = row else {
            return Err(StoreError::Exists.into());
        };
        let device: i64 = row.try_get(0)?;
        sqlx::query("INSERT INTO baton_fence (business_id, device_id) VALUES ($1, $2)")
            .bind(tenant)
            .bind(device)
            .run(&mut transaction)
            .await?;
        Ok(AccountId {
            business: business.clone(),
            device: unsigned(device),
        })
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::accounts`](baton_core::state::Store::accounts).
pub(crate) async fn accounts(
    pool: &Arc<Pool>,
    business: &BusinessId,
) -> Result<Vec<AccountInfo>, Failure> {
    match accounts_together(pool, business, true).await {
        Err(failure) if failure.blame() == Blame::Damage => {
            let mut accounts = accounts_together(pool, business, false).await?;
            for account in &mut accounts {
                account.device = load_alone(pool, &account.id, &Key::Device).await?;
            }
            Ok(accounts)
        }
        result => result,
    }
}

async fn accounts_together(
    pool: &Arc<Pool>,
    business: &BusinessId,
    records: bool,
) -> Result<Vec<AccountInfo>, Failure> {
    macro_rules! list {
        ($record:literal) => {
            concat!(
                "SELECT d.device_id, d.name, f.epoch, \
                 CASE WHEN f.expires_at > clock_timestamp() THEN f.holder END, ",
                $record,
                " FROM baton_device d JOIN baton_fence f USING (business_id, device_id) \
                 WHERE d.business_id = $1 ORDER BY d.name"
            )
        };
    }
    let sql = if records {
        list!("d.record")
    } else {
        list!("NULL::bytea")
    };
    let mut transaction = pool
        .begin(Mode::Read, [business])
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let rows = sqlx::query(sql)
            .bind(business.as_str())
            .all(&mut transaction)
            .await?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in rows {
            accounts.push(AccountInfo {
                id: AccountId {
                    business: business.clone(),
                    device: unsigned(row.try_get(0)?),
                },
                name: row.try_get(1)?,
                epoch: Epoch(unsigned(row.try_get(2)?)),
                holder: row.try_get::<Option<i64>, _>(3)?.map(incarnation),
                device: read(&row, 4)?,
            });
        }
        Ok(accounts)
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::claim`](baton_core::state::Store::claim).
pub(crate) async fn claim(
    pool: &Arc<Pool>,
    server: Server,
    account: &AccountId,
    who: Incarnation,
    ttl: Micros,
) -> Result<Claim, Failure> {
    let ttl = ttl.min(LONGEST_LEASE);
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let result = claim_fence(&mut transaction, server, account, who, ttl).await;
    transaction.finish(result).await
}

async fn claim_fence(
    transaction: &mut Transaction,
    server: Server,
    account: &AccountId,
    who: Incarnation,
    ttl: Micros,
) -> Result<Claim, Failure> {
    let floor: i64 = if server.timeline {
        sqlx::query(migrate::TIMELINE)
            .one(transaction)
            .await?
            .try_get(0)?
    } else {
        1
    };
    // Held, and given up before one could say by whom: then it is free now.
    for _ in 0..3 {
        if let Some(claim) = try_claim(transaction, account, who, ttl, floor).await? {
            return Ok(claim);
        }
    }
    Err(StoreError::Unavailable("the account changes hands all the time".to_owned()).into())
}

/// `None` if the account was held by somebody and then by nobody.
async fn try_claim(
    transaction: &mut Transaction,
    account: &AccountId,
    who: Incarnation,
    ttl: Micros,
    floor: i64,
) -> Result<Option<Claim>, Failure> {
    // The row is locked before its lease is judged, and the clock is the one of that moment.
    let granted = account_query(
        "UPDATE baton_fence SET epoch = greatest(epoch + 1, $5), holder = $3, lease_us = $4, \
         expires_at = clock_timestamp() + $4 * interval '1 microsecond' \
         WHERE business_id = $1 AND device_id = $2 \
         AND (holder IS NULL OR holder = $3 OR expires_at <= clock_timestamp()) \
         RETURNING epoch, applied",
        account,
    )
    .bind(holder(who))
    .bind(number(ttl.0))
    .bind(floor)
    .optional(transaction)
    .await?;
    if let Some(row) = granted {
        return Ok(Some(Claim::Granted(Lease {
            epoch: Epoch(unsigned(row.try_get(0)?)),
            applied: Seq(unsigned(row.try_get(1)?)),
            ttl,
        })));
    }
    // After a failover the clock may be behind the one that the lease was given by. Its end is moved to where it can be
    // at most, or nobody could claim the account until the clock has caught up.
    let held = account_query(
        "UPDATE baton_fence SET expires_at = \
           least(expires_at, clock_timestamp() + lease_us * interval '1 microsecond') \
         WHERE business_id = $1 AND device_id = $2 AND holder IS NOT NULL \
         RETURNING holder, greatest(0, extract(epoch FROM expires_at - clock_timestamp()) * 1000000)::bigint",
        account,
    )
    .optional(transaction)
    .await?;
    match held {
        Some(row) => Ok(Some(Claim::Held {
            by: incarnation(row.try_get(0)?),
            remaining: Micros(unsigned(row.try_get(1)?)),
        })),
        None => fence(transaction, account).await.map(|()| None),
    }
}

/// See [`Store::renew`](baton_core::state::Store::renew): one statement for every `tenants` businesses.
pub(crate) async fn renew(
    pool: &Arc<Pool>,
    tenants: usize,
    who: Incarnation,
    leases: &[(AccountId, Epoch)],
    ttl: Micros,
) -> Result<Vec<Renewal>, Failure> {
    let mut renewals = Vec::with_capacity(leases.len());
    let mut rest = leases;
    while !rest.is_empty() {
        let mut seen = BTreeSet::new();
        let mut fits = 0;
        for (account, _) in rest {
            seen.insert(&account.business);
            if seen.len() > tenants.max(1) {
                break;
            }
            fits += 1;
        }
        let (group, behind) = rest.split_at(fits);
        let mut transaction = pool
            .begin(
                Mode::Write,
                group.iter().map(|(account, _)| &account.business),
            )
            .await
            .map_err(Failure::begin)?;
        let result = renew_group(&mut transaction, who, group, ttl.min(LONGEST_LEASE)).await;
        renewals.extend(transaction.finish(result).await?);
        rest = behind;
    }
    Ok(renewals)
}

async fn renew_group(
    transaction: &mut Transaction,
    who: Incarnation,
    leases: &[(AccountId, Epoch)],
    ttl: Micros,
) -> Result<Vec<Renewal>, Failure> {
    let businesses: Vec<&str> = leases
        .iter()
        .map(|(account, _)| account.business.as_str())
        .collect();
    let devices: Vec<i64> = leases
        .iter()
        .map(|(account, _)| number(account.device))
        .collect();
    let epochs: Vec<i64> = leases.iter().map(|(_, epoch)| number(epoch.0)).collect();
    let rows = sqlx::query(
        "WITH w AS (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) \
           WITH ORDINALITY AS w(business_id, device_id, epoch, n)), \
         l AS MATERIALIZED (SELECT w.n, w.epoch AS claimed, f.business_id, f.device_id, f.epoch, f.holder \
           FROM w JOIN baton_fence f ON f.business_id = w.business_id AND f.device_id = w.device_id \
           ORDER BY f.business_id, f.device_id FOR UPDATE OF f), \
         m AS (UPDATE baton_fence f \
           SET expires_at = clock_timestamp() + $5 * interval '1 microsecond', lease_us = $5 \
           FROM l WHERE f.business_id = l.business_id AND f.device_id = l.device_id \
           AND l.epoch = l.claimed AND l.holder = $4) \
         SELECT l.epoch, coalesce(l.epoch = l.claimed AND l.holder = $4, false) \
           FROM w LEFT JOIN l ON l.n = w.n ORDER BY w.n",
    )
    .bind(businesses)
    .bind(devices)
    .bind(epochs)
    .bind(holder(who))
    .bind(number(ttl.0))
    .all(transaction)
    .await?;
    let mut renewals = Vec::with_capacity(rows.len());
    for row in rows {
        renewals.push(if row.try_get(1)? {
            Renewal::Renewed
        } else {
            // An account that is gone has no epoch: whoever held it has lost it.
            let by: Option<i64> = row.try_get(0)?;
            Renewal::Lost {
                by: Epoch(unsigned(by.unwrap_or(0))),
            }
        });
    }
    Ok(renewals)
}

/// See [`Store::release`](baton_core::state::Store::release).
pub(crate) async fn release(
    pool: &Arc<Pool>,
    account: &AccountId,
    who: Incarnation,
    epoch: Epoch,
) -> Result<(), Failure> {
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        let released = account_query(
            "UPDATE baton_fence SET holder = NULL, expires_at = NULL, lease_us = NULL \
             WHERE business_id = $1 AND device_id = $2 AND holder = $3 AND epoch = $4",
            account,
        )
        .bind(holder(who))
        .bind(number(epoch.0))
        .run(&mut transaction)
        .await?;
        if released == 0 {
            fence(&mut transaction, account).await?;
        }
        Ok(())
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::enqueue`](baton_core::state::Store::enqueue).
pub(crate) async fn enqueue(
    pool: &Arc<Pool>,
    account: &AccountId,
    id: &MessageId,
    request: &Record,
    at: UnixMillis,
) -> Result<bool, Failure> {
    rules::key(&Key::Mailbox(id.clone()))?;
    rules::record(Table::Mailbox, request)?;
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let inserted = account_query(
        "INSERT INTO baton_mailbox (business_id, device_id, message_id, record, written_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        account,
    )
    .bind(id.as_str())
    .bind(&request.0[..])
    .bind(at.0)
    .run(&mut transaction)
    .await;
    let result = match inserted.map_err(Failure::from) {
        Ok(inserted) => Ok(inserted > 0),
        Err(failure) if failure.is_foreign_key() || !rules::possible_account(account) => {
            Err(StoreError::NoAccount.into())
        }
        Err(failure) => Err(failure),
    };
    transaction.finish(result).await
}

/// See [`Store::retain`](baton_core::state::Store::retain).
pub(crate) async fn retain(
    pool: &Arc<Pool>,
    account: &AccountId,
    table: Table,
    before: UnixMillis,
    limit: u32,
) -> Result<u32, Failure> {
    rules::aged(table)?;
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        let deleted = account_query(&statements(table).retain, account)
            .bind(before.0)
            .bind(i64::from(limit))
            .run(&mut transaction)
            .await?;
        if deleted == 0 {
            fence(&mut transaction, account).await?;
        }
        Ok(u32::try_from(deleted).unwrap_or(limit))
    };
    let result = work.await;
    transaction.finish(result).await
}

/// Every account has a fence: without one there is no account.
async fn fence(transaction: &mut Transaction, account: &AccountId) -> Result<(), Failure> {
    let row = account_query(
        "SELECT 1 FROM baton_fence WHERE business_id = $1 AND device_id = $2",
        account,
    )
    .optional(transaction)
    .await?;
    row.map(|_| ()).ok_or_else(|| StoreError::NoAccount.into())
}

async fn begin(pool: &Arc<Pool>, mode: Mode, account: &AccountId) -> Result<Transaction, Failure> {
    pool.begin(mode, [&account.business])
        .await
        .map_err(Failure::begin)
}

/// Only the device row has a record that may be missing.
fn read(row: &PgRow, column: usize) -> Result<Row, sqlx::Error> {
    let record: Option<&[u8]> = row.try_get(column)?;
    Ok(record.map_or(Row::Absent, |bytes| {
        Row::Present(Record(Bytes::copy_from_slice(bytes)))
    }))
}

/// SQL integers are signed: the same 64 bits.
const fn holder(who: Incarnation) -> i64 {
    who.0.cast_signed()
}

const fn incarnation(holder: i64) -> Incarnation {
    Incarnation(holder.cast_unsigned())
}
