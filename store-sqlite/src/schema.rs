//! Tables and their columns: how a [`Key`] becomes the columns of a row and comes back.

use baton_core::state::{
    Key, Table,
    columns::{self, Kind, Value},
};
use rusqlite::{Row, Statement, types::ValueRef};
use std::sync::LazyLock;

pub(crate) use baton_core::state::columns::number;

/// The statements of one table. Parameters 1 and 2 are always business and device.
pub(crate) struct Statements {
    /// The record under a key (from 3). Columns: record.
    pub(crate) get: String,
    /// Writes a row: record 3, time 4, key from 5.
    pub(crate) put: String,
    /// Deletes the row of a key (from 3).
    pub(crate) delete: String,
    /// All rows. Columns: record, key.
    pub(crate) scan: String,
    /// All rows from a key on, by its ordered columns (from 3). Columns: record, key.
    pub(crate) scan_from: String,
    /// Replaces record 4 by record 3 under a key (from 5) and leaves the age.
    pub(crate) swap: String,
    /// Deletes at most limit 4 rows written before 3, oldest first.
    pub(crate) retain: String,
}

/// The statements of `table`, made once per process; a connection prepares those it uses and keeps them.
pub(crate) fn statements(table: Table) -> &'static Statements {
    static ALL: LazyLock<Vec<Statements>> =
        LazyLock::new(|| Table::ALL.iter().map(|&table| make(table)).collect());
    // `Table::ALL` lists the variants in the order of their discriminants, so this is the table's own entry.
    &ALL[table as usize]
}

fn make(table: Table) -> Statements {
    let name = format!("baton_{}", table.name());
    let mine = "business_id = ?1 AND device_id = ?2";
    if table == Table::Device {
        // The account's own row exists before its record does, and outlives it.
        let get = format!("SELECT record FROM {name} WHERE {mine}");
        return Statements {
            put: format!(
                "UPDATE {name} SET record = ?3, written_at = ?4, jid = ?5, lid = ?6 WHERE {mine}"
            ),
            delete: format!(
                "UPDATE {name} SET record = NULL, written_at = NULL, jid = NULL, lid = NULL WHERE {mine}"
            ),
            scan: format!("{get} AND record IS NOT NULL"),
            scan_from: format!("{get} AND record IS NOT NULL"),
            swap: format!(
                "UPDATE {name} SET record = ?3, jid = ?5, lid = ?6 WHERE {mine} AND record = ?4"
            ),
            retain: String::new(),
            get,
        };
    }
    let columns: Vec<&str> = columns::columns(table)
        .iter()
        .map(|column| column.name)
        .collect();
    let ordered = columns::sortable(table);
    let numbered = |from: usize| -> Vec<String> {
        (0..columns.len())
            .map(|i| format!("?{}", i + from))
            .collect()
    };
    let this = |from: usize| -> String {
        let equal = |(column, parameter)| format!(" AND {column} = {parameter}");
        columns.iter().zip(numbered(from)).map(equal).collect()
    };
    let with_key = |first: &str| [&[first], &columns[..]].concat().join(", ");
    let parameters = ["?1".to_owned(), "?2".to_owned()]
        .into_iter()
        .chain(numbered(5))
        .collect::<Vec<_>>();
    let order = if ordered == 0 {
        String::new()
    } else {
        format!(" ORDER BY {}", columns[..ordered].join(", "))
    };
    let scan = format!("SELECT {} FROM {name} WHERE {mine}", with_key("record"));
    let from = if ordered == 0 {
        String::new()
    } else {
        format!(
            " AND ({}) >= ({})",
            columns[..ordered].join(", "),
            numbered(3)[..ordered].join(", ")
        )
    };
    let key = columns.join(", ");
    Statements {
        get: format!("SELECT record FROM {name} WHERE {mine}{}", this(3)),
        put: format!(
            "INSERT INTO {name} ({}, record, written_at) VALUES ({}, ?3, ?4) \
             ON CONFLICT DO UPDATE SET record = excluded.record, written_at = excluded.written_at",
            [&["business_id", "device_id"], &columns[..]]
                .concat()
                .join(", "),
            parameters.join(", "),
        ),
        delete: format!("DELETE FROM {name} WHERE {mine}{}", this(3)),
        swap: format!(
            "UPDATE {name} SET record = ?3 WHERE {mine}{} AND record = ?4",
            this(5)
        ),
        scan_from: format!("{scan}{from}{order}"),
        scan: format!("{scan}{order}"),
        retain: format!(
            "DELETE FROM {name} WHERE {mine} AND ({key}) IN \
             (SELECT {key} FROM {name} WHERE {mine} AND written_at < ?3 ORDER BY written_at LIMIT ?4)"
        ),
    }
}

/// Binds the columns of `key`, the first of them to parameter `at`.
pub(crate) fn bind(statement: &mut Statement<'_>, at: usize, key: &Key) -> rusqlite::Result<()> {
    bind_values(statement, at, &columns::values(key))
}

/// Binds the ordered columns of `key` for [`Statements::scan_from`].
pub(crate) fn bind_ordered(
    statement: &mut Statement<'_>,
    at: usize,
    key: &Key,
) -> rusqlite::Result<()> {
    let values = columns::values(key);
    let ordered = columns::sortable(key.table());
    bind_values(statement, at, values.get(..ordered).unwrap_or_default())
}

fn bind_values(
    statement: &mut Statement<'_>,
    at: usize,
    values: &[Value<'_>],
) -> rusqlite::Result<()> {
    for (at, value) in (at..).zip(values) {
        match value {
            Value::Text(text) => statement.raw_bind_parameter(at, text)?,
            Value::Number(number) => statement.raw_bind_parameter(at, number)?,
            Value::Bytes(bytes) => statement.raw_bind_parameter(at, bytes)?,
        }
    }
    Ok(())
}

/// The user part that a key begins with, if it begins with a JID: rows that share it come from SQL in an order that
/// is not the order of [`Key`]. `None` where SQL's order is the right one.
pub(crate) fn leading_user(key: &Key) -> Option<&str> {
    let begins = columns::columns(key.table()).get(1)?.kind == Kind::Server;
    match columns::values(key).first().copied() {
        Some(Value::Text(user)) if begins => Some(user),
        _ => None,
    }
}

/// The key of a scanned row, whose columns begin at 1. `None` if they hold what no key has: a server that this
/// version does not know, or what got past the constraints.
pub(crate) fn read_key(table: Table, row: &Row<'_>) -> Option<Key> {
    let width = columns::columns(table).len();
    let value = |at| match row.get_ref(at).ok()? {
        ValueRef::Text(text) => std::str::from_utf8(text).ok().map(Value::Text),
        ValueRef::Integer(number) => Some(Value::Number(number)),
        ValueRef::Blob(bytes) => Some(Value::Bytes(bytes)),
        ValueRef::Null | ValueRef::Real(_) => None,
    };
    // What cannot be read ends the row early, and a row that ends early is no key.
    columns::key(table, (1..=width).map_while(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_filed_under_their_table() {
        for &table in Table::ALL {
            let name = format!("baton_{} ", table.name());
            assert!(
                statements(table).delete.contains(&name),
                "{name}: {}",
                statements(table).delete
            );
        }
    }
}
