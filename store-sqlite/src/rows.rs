//! Single rows and scans, as plain functions on a connection.

use crate::{
    database::Failure,
    schema::{self, statements},
};
use baton_core::{
    flow::describe_device,
    state::{AccountId, Key, Record, Row, Scan, StoreError, UnixMillis},
};
use bytes::Bytes;
use rusqlite::{Connection, types::ValueRef};

/// The row under a key.
pub(crate) fn get(connection: &Connection, account: &AccountId, key: &Key) -> Result<Row, Failure> {
    let mut statement = connection.prepare_cached(&statements(key.table()).get)?;
    bind_account(&mut statement, account)?;
    schema::bind(&mut statement, 3, key)?;
    let mut rows = statement.raw_query();
    Ok(match rows.next()? {
        Some(row) => content(row.get_ref(0)?),
        None => Row::Absent,
    })
}

/// Writes the row, or writes it anew.
pub(crate) fn put(
    connection: &Connection,
    account: &AccountId,
    key: &Key,
    record: &Record,
    at: UnixMillis,
) -> Result<(), Failure> {
    let mut statement = connection.prepare_cached(&statements(key.table()).put)?;
    bind_account(&mut statement, account)?;
    statement.raw_bind_parameter(3, &record.0[..])?;
    statement.raw_bind_parameter(4, at.0)?;
    bind_key(&mut statement, key, record)?;
    statement.raw_execute()?;
    Ok(())
}

/// Replaces the row's record if it is `old`; its age stays.
pub(crate) fn swap(
    connection: &Connection,
    account: &AccountId,
    key: &Key,
    old: &Record,
    new: &Record,
) -> Result<bool, Failure> {
    let mut statement = connection.prepare_cached(&statements(key.table()).swap)?;
    bind_account(&mut statement, account)?;
    statement.raw_bind_parameter(3, &new.0[..])?;
    statement.raw_bind_parameter(4, &old.0[..])?;
    bind_key(&mut statement, key, new)?;
    Ok(statement.raw_execute()? > 0)
}

/// Binds the key from parameter 5; of the device row, which has no key, what its `record` tells.
fn bind_key(
    statement: &mut rusqlite::Statement<'_>,
    key: &Key,
    record: &Record,
) -> rusqlite::Result<()> {
    if *key != Key::Device {
        return schema::bind(statement, 5, key);
    }
    // For people who look into the file; nothing of ours reads them back. A row that is encrypted, or that only a
    // newer release understands, has none.
    let told = describe_device(record).ok();
    let addresses = told.map_or([None, None], |device| [device.jid, device.lid]);
    for (at, address) in (5..).zip(addresses) {
        statement.raw_bind_parameter(at, address.map(|jid| jid.to_string()))?;
    }
    Ok(())
}

/// Deletes the row if there is one.
pub(crate) fn delete(
    connection: &Connection,
    account: &AccountId,
    key: &Key,
) -> Result<(), Failure> {
    let mut statement = connection.prepare_cached(&statements(key.table()).delete)?;
    bind_account(&mut statement, account)?;
    schema::bind(&mut statement, 3, key)?;
    statement.raw_execute()?;
    Ok(())
}

/// SQL gives rows in the order of the leading user part; those that share one are put in the order of [`Key`] here.
/// Rows are read as they are needed, so a page costs a page and the rest of one user.
pub(crate) fn scan(
    connection: &Connection,
    account: &AccountId,
    scan: &Scan,
) -> Result<Vec<(Key, Row)>, Failure> {
    let limit = scan.limit as usize;
    let sql = statements(scan.table);
    let mut statement;
    match &scan.after {
        None => {
            statement = connection.prepare_cached(&sql.scan)?;
            bind_account(&mut statement, account)?;
        }
        Some(key) => {
            statement = connection.prepare_cached(&sql.scan_from)?;
            bind_account(&mut statement, account)?;
            schema::bind_ordered(&mut statement, 3, key)?;
        }
    }
    let mut rows = statement.raw_query();
    let mut found: Vec<(Key, Row)> = Vec::new();
    // Where the rows that share a user with the last one begin.
    let mut group = 0;
    while let Some(row) = rows.next()? {
        let Some(key) = schema::read_key(scan.table, row) else {
            let why = format!(
                "table {} has a row whose key cannot be read",
                scan.table.name()
            );
            return Err(StoreError::Refused(why).into());
        };
        let same = match (schema::leading_user(&key), found.last()) {
            (Some(user), Some((last, _))) => schema::leading_user(last) == Some(user),
            _ => false,
        };
        if !same {
            found[group..].sort_by(|a, b| a.0.cmp(&b.0));
            if found.len() >= limit {
                break;
            }
            group = found.len();
        }
        if scan.after.as_ref().is_none_or(|after| key > *after) {
            found.push((key, content(row.get_ref(0)?)));
        }
    }
    found[group..].sort_by(|a, b| a.0.cmp(&b.0));
    found.truncate(limit);
    Ok(found)
}

fn bind_account(
    statement: &mut rusqlite::Statement<'_>,
    account: &AccountId,
) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(1, account.business.as_str())?;
    statement.raw_bind_parameter(2, schema::number(account.device))
}

/// The tables are STRICT, so a record of another type means that the file was damaged or edited.
pub(crate) fn content(value: ValueRef<'_>) -> Row {
    match value {
        ValueRef::Blob(bytes) => Row::Present(Record(Bytes::copy_from_slice(bytes))),
        // Only the device row has a record that may be missing.
        ValueRef::Null => Row::Absent,
        _ => Row::Corrupt,
    }
}
