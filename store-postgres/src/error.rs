//! What PostgreSQL says, as an instruction.

use baton_core::state::{StoreError, rules::Refusal};
use sqlx::postgres::PgDatabaseError;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call's own answer; the connection is fine.
    Answer(StoreError),
    /// The server or the way to it.
    Sql(sqlx::Error),
}

/// Whose fault an error of the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// A value that the tables do not take: trying again is no use, others are not concerned.
    Value,
    /// A record on a damaged page: others are not concerned.
    Damage,
    /// Everybody.
    All,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Answer(refusal.into())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Failure {
    /// Whatever is wrong with the beginning of a transaction is not the fault of what would have come.
    pub(crate) fn begin(error: sqlx::Error) -> Self {
        Self::Answer(explain(&error))
    }

    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Answer(_) => Blame::All,
            Self::Sql(error) => match (class(error), state(error)) {
                ("22" | "23" | "54", _) => Blame::Value,
                (_, "XX001" | "XX002") => Blame::Damage,
                _ => Blame::All,
            },
        }
    }

    /// The server has answered, so the connection can go on once it has rolled back.
    pub(crate) fn leaves_connection_usable(&self) -> bool {
        match self {
            Self::Answer(_) => true,
            Self::Sql(error) => {
                let fatal = matches!(class(error), "" | "08" | "57" | "25" | "XX");
                !fatal || state(error) == "57014" || matches!(state(error), "XX001" | "XX002")
            }
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Answer(error) => error,
            Failure::Sql(error) => explain(&error),
        }
    }
}

/// Messages of the server name tables and constraints, never values: details, which may hold a row, are left out.
pub(crate) fn explain(error: &sqlx::Error) -> StoreError {
    let said = || match error.as_database_error() {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    };
    let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
    let refused = |why: &str| StoreError::Refused(why.to_owned());
    match (class(error), state(error)) {
        // Not from the server: the connection.
        ("", _) => StoreError::Unavailable(said()),
        (_, "53100") => refused("no space left for the database"),
        (_, "53200") => unavailable("the server is out of memory"),
        (_, "53300") => unavailable("the server has no connection left"),
        (_, "55P03") => unavailable("another process keeps a row of the account locked"),
        (_, "57014") => unavailable("the statement took too long"),
        (_, "25006") => {
            unavailable("the server has become read-only: a standby has taken over, or will")
        }
        (_, "XX001" | "XX002") => refused("the database is damaged: restore a backup"),
        ("08" | "25" | "40" | "53" | "55" | "57" | "58", _) => StoreError::Unavailable(said()),
        _ => StoreError::Refused(said()),
    }
}

/// The five characters of the SQLSTATE; empty if the server has not said anything.
pub(crate) fn state(error: &sqlx::Error) -> &str {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .map_or("", PgDatabaseError::code)
}

fn class(error: &sqlx::Error) -> &str {
    state(error).get(..2).unwrap_or("")
}
