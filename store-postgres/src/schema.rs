//! Tables and their columns: how a [`Key`] becomes the columns of a row and comes back.

use baton_core::{
    jid::Server,
    state::{
        AccountId, Incarnation, Key, Seal, Table,
        columns::{self, Column, Kind, Value},
    },
};

pub(crate) use baton_core::state::columns::number;

use sqlx::{Postgres, Row as _, postgres::PgArguments, postgres::PgRow, query::Query};
use std::sync::LazyLock;

/// The statements of one table. Keys travel as one array per column, so that any number of rows is one statement.
pub(crate) struct Statements {
    /// Records of one account (1, 2) under keys (arrays from 3). Columns: position of the key from 1, record.
    pub(crate) get: String,
    /// Writes rows of many accounts: businesses 1, devices 2, records 3, times 4, keys from 5, all arrays.
    pub(crate) put: String,
    /// Deletes rows of many accounts: businesses 1, devices 2, keys from 3, all arrays.
    pub(crate) delete: String,
    /// At most limit 3 rows of one account (1, 2). Columns: key, record.
    pub(crate) scan: String,
    /// The same from behind a key (single values from 4).
    pub(crate) scan_after: String,
    /// [`scan`](Self::scan) without the record, for tables in which a record cannot be read.
    pub(crate) keys: String,
    /// [`scan_after`](Self::scan_after) without the record.
    pub(crate) keys_after: String,
    /// Replaces records (array 3) of one account (1, 2) by others (array 4), under keys (arrays from 5); ages stay.
    pub(crate) swap: String,
    /// Deletes at most limit 4 rows of one account (1, 2) written before 3, oldest first.
    pub(crate) retain: String,
}

/// The statements of `table`, made once per process; a connection prepares those it uses and keeps them.
pub(crate) fn statements(table: Table) -> &'static Statements {
    static ALL: LazyLock<Vec<Statements>> =
        LazyLock::new(|| Table::ALL.iter().map(|&table| make(table)).collect());
    // `Table::ALL` lists the variants in the order of their discriminants, so this is the table's own entry.
    &ALL[table as usize]
}

/// The keys of several rows of one table, column by column.
#[derive(Debug)]
pub(crate) struct Keys<'a>(Vec<Array<'a>>);

#[derive(Debug)]
enum Array<'a> {
    Text(Vec<&'a str>),
    Number(Vec<i64>),
    Bytes(Vec<&'a [u8]>),
}

impl<'a> Keys<'a> {
    pub(crate) fn new(table: Table) -> Self {
        let empty = |column: &Column| match column.kind {
            Kind::Text | Kind::Server => Array::Text(Vec::new()),
            Kind::Number => Array::Number(Vec::new()),
            Kind::Bytes => Array::Bytes(Vec::new()),
        };
        Self(columns::columns(table).iter().map(empty).collect())
    }

    /// Adds a row. `key` has to be of the table that this was made for.
    pub(crate) fn push(&mut self, key: &'a Key) {
        for (array, value) in self.0.iter_mut().zip(columns::values(key).iter()) {
            match (array, *value) {
                (Array::Text(array), Value::Text(value)) => array.push(value),
                (Array::Number(array), Value::Number(value)) => array.push(value),
                (Array::Bytes(array), Value::Bytes(value)) => array.push(value),
                (array, value) => unreachable!("{value:?} for {array:?}: a key of another table"),
            }
        }
    }

    /// Binds one array per column.
    pub(crate) fn bind(self, mut query: SqlQuery) -> SqlQuery {
        for column in self.0 {
            query = match column {
                Array::Text(values) => query.bind(values),
                Array::Number(values) => query.bind(values),
                Array::Bytes(values) => query.bind(values),
            };
        }
        query
    }
}

pub(crate) type SqlQuery = Query<'static, Postgres, PgArguments>;

/// Binds business and device of one account.
pub(crate) fn account_query(sql: &'static str, account: &AccountId) -> SqlQuery {
    sqlx::query(sql)
        .bind(account.business.as_str())
        .bind(number(account.device))
}

/// Binds the values of one key.
pub(crate) fn bind_key(mut query: SqlQuery, key: &Key) -> SqlQuery {
    for value in columns::values(key).iter() {
        query = match *value {
            Value::Text(value) => query.bind(value),
            Value::Number(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        };
    }
    query
}

/// The key of a scanned row, whose columns begin at 0. `None` if they hold what no key has: a server that this
/// version does not know, or what got past the constraints.
pub(crate) fn read_key(table: Table, row: &PgRow) -> Option<Key> {
    let columns = columns::columns(table).iter().enumerate();
    let value = |(at, column): (usize, &Column)| match column.kind {
        Kind::Text | Kind::Server => row.try_get(at).ok().map(Value::Text),
        // Some columns are integers of 64 bits and some of 32.
        Kind::Number => {
            let small = || row.try_get::<i32, _>(at).map(i64::from);
            row.try_get(at).or_else(|_| small()).ok().map(Value::Number)
        }
        Kind::Bytes => row.try_get(at).ok().map(Value::Bytes),
    };
    // What cannot be read ends the row early, and a row that ends early is no key.
    columns::key(table, columns.map_while(value))
}

/// How many columns a key of `table` has.
pub(crate) fn width(table: Table) -> usize {
    columns::columns(table).len()
}

/// Constraints keep the columns that are read by this at zero or above.
pub(crate) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// An incarnation is 64 bits; SQL integers are signed: the same bits.
pub(crate) const fn holder(who: Incarnation) -> i64 {
    who.0.cast_signed()
}

/// The other way round.
pub(crate) const fn incarnation(holder: i64) -> Incarnation {
    Incarnation(holder.cast_unsigned())
}

/// A history in two columns, timeline first.
pub(crate) fn seal(row: &PgRow, at: usize) -> Result<Seal, sqlx::Error> {
    let number = |at: usize| {
        let n: i64 = row.try_get(at)?;
        Ok::<_, sqlx::Error>(u32::try_from(n).unwrap_or(0))
    };
    Ok(Seal {
        timeline: number(at)?,
        generation: number(at + 1)?,
    })
}

fn make(table: Table) -> Statements {
    let name = format!("baton_{}", table.name());
    let columns = columns::columns(table);
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let key = names.join(", ");
    // `$n::type[], …` for the columns of a key.
    let arrays = |from: usize| {
        join(columns, from, ", ", |_, kind, n| {
            format!("${n}::{}[]", sql_type(kind))
        })
    };
    let same = |left: &str, right: &str| {
        let equal = |name: &&str| format!(" AND {left}.{name} = {right}.{name}");
        names.iter().map(equal).collect::<String>()
    };
    let mine = "t.business_id = $1 AND t.device_id = $2";
    let theirs = "t.business_id = k.business_id AND t.device_id = k.device_id";
    let scans = |content: &str, and: &str| {
        let selected: Vec<String> = names
            .iter()
            .map(|name| format!("t.{name}"))
            .chain((!content.is_empty()).then(|| content.to_owned()))
            .collect();
        // A table without key columns still has to select something.
        let selected = if selected.is_empty() {
            "1".to_owned()
        } else {
            selected.join(", ")
        };
        let order = match columns {
            [] => String::new(),
            _ => format!(
                " ORDER BY {}",
                join(columns, 0, ", ", |name, kind, _| ordered(
                    kind,
                    &format!("t.{name}")
                ))
            ),
        };
        let filter = if table == Table::Device {
            " AND t.record IS NOT NULL"
        } else {
            ""
        };
        format!("SELECT {selected} FROM {name} t WHERE {mine}{filter}{and}{order} LIMIT $3")
    };
    let after = match columns {
        // Nothing is behind the only row.
        [] => " AND false".to_owned(),
        // The first comparison says again what the second implies, in a form that the index understands.
        [first, ..] => format!(
            " AND t.{} >= $4::{} AND ({}) > ({})",
            first.name,
            sql_type(first.kind),
            join(columns, 0, ", ", |name, kind, _| ordered(
                kind,
                &format!("t.{name}")
            )),
            join(columns, 4, ", ", |_, kind, n| ordered(
                kind,
                &format!("${n}::{}", sql_type(kind))
            )),
        ),
    };
    let (get, put, delete) = match (table, columns) {
        // The account's own row exists before its record does, and outlives it.
        (Table::Device, _) => (
            format!("SELECT 1::bigint, t.record FROM {name} t WHERE {mine}"),
            format!(
                "UPDATE {name} t SET record = k.record, written_at = k.written_at \
                 FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[]) \
                 AS k(business_id, device_id, record, written_at) WHERE {theirs}"
            ),
            format!(
                "UPDATE {name} t SET record = NULL, written_at = NULL \
                 FROM unnest($1::text[], $2::bigint[]) AS k(business_id, device_id) WHERE {theirs}"
            ),
        ),
        (_, columns) => {
            let get = if columns.is_empty() {
                format!("SELECT 1::bigint, t.record FROM {name} t WHERE {mine}")
            } else {
                format!(
                    "SELECT k.n, t.record FROM unnest({}) WITH ORDINALITY AS k({key}, n) \
                     JOIN {name} t ON {mine}{}",
                    arrays(3),
                    same("t", "k")
                )
            };
            let (comma, arrays_put, arrays_delete) = match columns {
                [] => ("", String::new(), String::new()),
                _ => (", ", arrays(5), arrays(3)),
            };
            let put = format!(
                "INSERT INTO {name} (business_id, device_id, record, written_at{comma}{key}) \
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[]{comma}{arrays_put}) \
                 ON CONFLICT (business_id, device_id{comma}{key}) \
                 DO UPDATE SET record = excluded.record, written_at = excluded.written_at"
            );
            let delete = format!(
                "DELETE FROM {name} t USING unnest($1::text[], $2::bigint[]{comma}{arrays_delete}) \
                 AS k(business_id, device_id{comma}{key}) WHERE {theirs}{}",
                same("t", "k")
            );
            (get, put, delete)
        }
    };
    Statements {
        get,
        put,
        delete,
        scan: scans("t.record", ""),
        scan_after: scans("t.record", &after),
        keys: scans("", ""),
        keys_after: scans("", &after),
        swap: {
            let (comma, arrays) = match columns {
                [] => ("", String::new()),
                _ => (", ", arrays(5)),
            };
            format!(
                "UPDATE {name} t SET record = k.after FROM unnest($3::bytea[], $4::bytea[]{comma}{arrays}) \
                 AS k(before, after{comma}{key}) WHERE {mine}{} AND t.record = k.before",
                same("t", "k")
            )
        },
        // The age is asked again when the row is locked: one that was written in the meantime is young again.
        retain: format!(
            "DELETE FROM {name} t USING \
             (SELECT {key} FROM {name} t WHERE {mine} AND t.written_at < $3 ORDER BY t.written_at LIMIT $4) old \
             WHERE {mine}{} AND t.written_at < $3",
            same("t", "old")
        ),
    }
}

fn join(
    columns: &[Column],
    from: usize,
    separator: &str,
    write: impl Fn(&str, Kind, usize) -> String,
) -> String {
    let parts = columns.iter().zip(from..);
    let parts: Vec<_> = parts
        .map(|(column, n)| write(column.name, column.kind, n))
        .collect();
    parts.join(separator)
}

const fn sql_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Server => "text",
        Kind::Number => "bigint",
        Kind::Bytes => "bytea",
    }
}

/// An expression by which SQL sorts as [`Key`] does. A server that this version does not know comes last.
fn ordered(kind: Kind, expression: &str) -> String {
    if kind != Kind::Server {
        return expression.to_owned();
    }
    let mut servers = Server::ALL;
    servers.sort();
    let names: Vec<&str> = servers.iter().map(|server| server.as_str()).collect();
    format!(
        "coalesce(array_position('{{{}}}'::text[], {expression}), 99)",
        names.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_core::state::conformance::samples;

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

    #[test]
    fn every_sample_key_fills_the_columns_of_its_table() {
        for &table in Table::ALL {
            let samples = samples::keys(table);
            let mut keys = Keys::new(table);
            samples.iter().for_each(|key| keys.push(key));
            for column in &keys.0 {
                let rows = match column {
                    Array::Text(rows) => rows.len(),
                    Array::Number(rows) => rows.len(),
                    Array::Bytes(rows) => rows.len(),
                };
                assert_eq!(rows, samples.len(), "{}", table.name());
            }
        }
    }
}
