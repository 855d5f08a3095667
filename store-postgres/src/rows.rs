//! Rows of one account: reading them, and the writes that need no fence.

use crate::{
    error::{Blame, Failure},
    pool::{Mode, Pool, Run as _, Scope, Transaction},
    schema::{Keys, account_query, bind_key, read_key, statements, width},
};
use baton_core::state::{
    AccountId, Key, MessageId, Record, Row, Scan, StoreError, Table, UnixMillis, rules,
};
use bytes::Bytes;
use sqlx::{Row as _, postgres::PgRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
pub(crate) async fn load_alone(
    pool: &Arc<Pool>,
    account: &AccountId,
    key: &Key,
) -> Result<Row, Failure> {
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
    let work = async {
        // The lock makes whoever moves the account away wait, so that its last look at the requests shows this one.
        let inserted = account_query(
            "INSERT INTO baton_mailbox (business_id, device_id, message_id, record, written_at) \
             SELECT $1, $2, $3, $4, $5 FROM (SELECT FROM baton_fence \
               WHERE business_id = $1 AND device_id = $2 AND NOT retired FOR SHARE) f \
             ON CONFLICT DO NOTHING",
            account,
        )
        .bind(id.as_str())
        .bind(&request.0[..])
        .bind(at.0)
        .run(&mut transaction)
        .await?;
        if inserted > 0 {
            return Ok(true);
        }
        let retired = account_query(
            "SELECT retired FROM baton_fence WHERE business_id = $1 AND device_id = $2",
            account,
        )
        .optional(&mut transaction)
        .await?;
        match retired.map(|row| row.try_get(0)).transpose()? {
            None => Err(StoreError::NoAccount.into()),
            Some(true) => Err(StoreError::Retired.into()),
            Some(false) => Ok(false),
        }
    };
    let result = work.await;
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

/// See [`Store::swap_records`](baton_core::state::Store::swap_records).
pub(crate) async fn swap_records(
    pool: &Arc<Pool>,
    account: &AccountId,
    records: &[(Key, Record, Record)],
) -> Result<u32, Failure> {
    for (key, _, new) in records {
        rules::key(key)?;
        rules::record(key.table(), new)?;
    }
    match swap_together(pool, account, records).await {
        Err(failure) if failure.blame() == Blame::Damage => {
            let mut swapped = 0;
            for record in records {
                match swap_together(pool, account, std::slice::from_ref(record)).await {
                    // What cannot be read is not what the caller has read.
                    Err(failure) if failure.blame() == Blame::Damage => {}
                    other => swapped += other?,
                }
            }
            Ok(swapped)
        }
        result => result,
    }
}

async fn swap_together(
    pool: &Arc<Pool>,
    account: &AccountId,
    records: &[(Key, Record, Record)],
) -> Result<u32, Failure> {
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        // Commits of the account lock its fence first and then rows in another order than we do.
        let row = account_query(
            "SELECT 1 FROM baton_fence WHERE business_id = $1 AND device_id = $2 FOR UPDATE",
            account,
        )
        .optional(&mut transaction)
        .await?;
        if row.is_none() {
            return Err(StoreError::NoAccount.into());
        }
        let mut swapped: u64 = 0;
        let mut rest: Vec<&(Key, Record, Record)> = records.iter().collect();
        // A key that comes twice is swapped twice, in order; one statement cannot do that.
        while !rest.is_empty() {
            let mut seen = BTreeSet::new();
            let (round, again): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|record| seen.insert(&record.0));
            swapped += swap_round(&mut transaction, account, &round).await?;
            rest = again;
        }
        Ok(u32::try_from(swapped).unwrap_or(u32::MAX))
    };
    let result = work.await;
    transaction.finish(result).await
}

/// Keys that are all different, one statement per table.
async fn swap_round(
    transaction: &mut Transaction,
    account: &AccountId,
    records: &[&(Key, Record, Record)],
) -> Result<u64, Failure> {
    let mut tables: BTreeMap<Table, Vec<&(Key, Record, Record)>> = BTreeMap::new();
    for record in records {
        tables.entry(record.0.table()).or_default().push(record);
    }
    let mut swapped = 0;
    for (table, records) in tables {
        let mut keys = Keys::new(table);
        for (key, ..) in &records {
            keys.push(key);
        }
        let column = |value: fn(&(Key, Record, Record)) -> &Record| {
            let column = records.iter().map(|record| &value(record).0[..]);
            column.collect::<Vec<&[u8]>>()
        };
        let query = account_query(&statements(table).swap, account)
            .bind(column(|record| &record.1))
            .bind(column(|record| &record.2));
        swapped += keys.bind(query).run(transaction).await?;
    }
    Ok(swapped)
}

/// Every account has a fence: without one there is no account.
pub(crate) async fn fence(
    transaction: &mut Transaction,
    account: &AccountId,
) -> Result<(), Failure> {
    let row = account_query(
        "SELECT 1 FROM baton_fence WHERE business_id = $1 AND device_id = $2",
        account,
    )
    .optional(transaction)
    .await?;
    row.map(|_| ()).ok_or_else(|| StoreError::NoAccount.into())
}

/// Begins a transaction that sees the tenant of `account`.
pub(crate) async fn begin(
    pool: &Arc<Pool>,
    mode: Mode,
    account: &AccountId,
) -> Result<Transaction, Failure> {
    pool.begin(mode, Scope::tenant(&account.business))
        .await
        .map_err(Failure::begin)
}

/// Only the device row has a record that may be missing.
pub(crate) fn read(row: &PgRow, column: usize) -> Result<Row, sqlx::Error> {
    let record: Option<&[u8]> = row.try_get(column)?;
    Ok(record.map_or(Row::Absent, |bytes| {
        Row::Present(Record(Bytes::copy_from_slice(bytes)))
    }))
}
