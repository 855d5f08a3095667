//! The store that `--store` names: one type for whatever it is, so that the verbs are compiled once.

use crate::{cli::Common, key, setup::Failure};
use baton_core::state::{
    Store, StoreError,
    sealed::{self, PlainRows, Sealed, is_encrypted},
};
use baton_store_postgres::PgStore;
use baton_store_sqlite::SqliteStore;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What `--store` says.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// A URL, which may have a password in it.
    Postgres(String),
}

impl Place {
    /// Reads the flag.
    pub fn of(common: &Common) -> Result<Self, Failure> {
        let text = &common.store;
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(text.clone())),
            // The text is not repeated: it could be a URL with a password and a typing mistake.
            _ => Err(Failure::setup(
                "--store is neither sqlite:PATH nor postgres://USER@HOST/DATABASE",
            )),
        }
    }

    /// Where the master key of a SQLite database is, if nothing else is said: beside it, so that a backup of the
    /// database alone is worth nothing to a thief.
    #[must_use]
    pub fn key_file(&self) -> Option<PathBuf> {
        match self {
            Self::Sqlite(path) => {
                let mut file = path.clone().into_os_string();
                file.push(".key");
                Some(file.into())
            }
            Self::Postgres(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                // Whatever stands before the host can be a secret, and so can the parameters.
                let hosts = url.split_once("//").map_or("", |(_, rest)| rest);
                let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
                let hosts = hosts.split('?').next().unwrap_or_default();
                write!(f, "the database at {hosts}")
            }
        }
    }
}

/// Whether a SQLite file may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// By verbs that make accounts.
    Yes,
    /// By others it would only hide a wrong path.
    No,
}

/// Opens the store that the flags name, encrypted unless they say otherwise. Every failure is one sentence and status 2.
pub async fn open(common: &Common, create: Create) -> Result<AnyStore, Failure> {
    open_with(common, create, PlainRows::Refuse).await
}

/// The same, with a say about rows that are in the clear.
pub(crate) async fn open_with(
    common: &Common,
    create: Create,
    plain: PlainRows,
) -> Result<AnyStore, Failure> {
    open_under(common, create, None, plain).await
}

/// The same, under keys that do not come from the flags.
pub(crate) async fn open_sealed(
    common: &Common,
    create: Create,
    masters: sealed::MasterKeys,
    plain: PlainRows,
) -> Result<AnyStore, Failure> {
    open_under(common, create, Some(masters), plain).await
}

async fn open_under(
    common: &Common,
    create: Create,
    masters: Option<sealed::MasterKeys>,
    plain: PlainRows,
) -> Result<AnyStore, Failure> {
    let place = Place::of(common)?;
    match &place {
        Place::Sqlite(path) => {
            let store = open_sqlite(path, create, !common.without_presence)?;
            match encryption(common, &place, &store, masters).await? {
                None => Ok(AnyStore::Sqlite(store)),
                Some(masters) => seal(store, masters, plain)
                    .await
                    .map(AnyStore::SealedSqlite),
            }
        }
        Place::Postgres(url) => {
            let options = baton_store_postgres::Options {
                presence: !common.without_presence,
                ..Default::default()
            };
            let store = PgStore::connect(url, options)
                .await
                .map_err(|error| Failure::setup(format!("cannot open {place}: {error}")))?;
            match encryption(common, &place, &store, masters).await? {
                None => Ok(AnyStore::Postgres(store)),
                Some(masters) => seal(store, masters, plain)
                    .await
                    .map(AnyStore::SealedPostgres),
            }
        }
    }
}

fn open_sqlite(path: &Path, create: Create, presence: bool) -> Result<SqliteStore, Failure> {
    if create == Create::No && !path.is_file() {
        return Err(Failure::setup(format!(
            "there is no database {}; `baton link` makes one",
            path.display()
        )));
    }
    let options = baton_store_sqlite::Options {
        presence,
        ..Default::default()
    };
    SqliteStore::open(path, options)
        .map_err(|error| Failure::setup(format!("cannot open {}: {error}", path.display())))
}

/// The master key to use, if any: what the flags say, as long as it is what the database says.
async fn encryption<S: Store>(
    common: &Common,
    place: &Place,
    store: &S,
    masters: Option<sealed::MasterKeys>,
) -> Result<Option<sealed::MasterKeys>, Failure> {
    if masters.is_some() {
        return Ok(masters);
    }
    if !common.key.no_encryption {
        return key::masters(common, place, store).await.map(Some);
    }
    match is_encrypted(store).await {
        Ok(false) => Ok(None),
        Ok(true) => Err(Failure::setup(format!(
            "--no-encryption, but {place} is encrypted"
        ))),
        Err(error) => Err(Failure::setup(format!("cannot read {place}: {error}"))),
    }
}

async fn seal<S: Store>(
    store: S,
    masters: sealed::MasterKeys,
    plain: PlainRows,
) -> Result<Sealed<S>, Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| Failure::setup(format!("no randomness: {error}")))?;
    Sealed::open(store, masters, seed, plain)
        .await
        .map_err(|error| match error {
            sealed::OpenError::Plain(_) => Failure::setup(
                "the database is not encrypted: `baton key encrypt` changes that, --no-encryption leaves it as it is",
            ),
            error => Failure::setup(format!("cannot use the database: {error}")),
        })
}

/// SQLite or PostgreSQL, with or without encryption of what is in the rows.
#[derive(Clone)]
pub enum AnyStore {
    /// A file, rows in the clear.
    Sqlite(SqliteStore),
    /// A file.
    SealedSqlite(Sealed<SqliteStore>),
    /// A server, rows in the clear.
    Postgres(PgStore),
    /// A server.
    SealedPostgres(Sealed<PgStore>),
}

macro_rules! each {
    ($any:expr, $store:ident => $call:expr) => {
        match $any {
            AnyStore::Sqlite($store) => $call.await,
            AnyStore::SealedSqlite($store) => $call.await,
            AnyStore::Postgres($store) => $call.await,
            AnyStore::SealedPostgres($store) => $call.await,
        }
    };
}

/// Does something with the encrypting store; `None` if it is not one.
macro_rules! each_sealed {
    ($any:expr, $sealed:ident => $call:expr) => {
        match $any {
            $crate::store::AnyStore::SealedSqlite($sealed) => Some($call),
            $crate::store::AnyStore::SealedPostgres($sealed) => Some($call),
            $crate::store::AnyStore::Sqlite(_) | $crate::store::AnyStore::Postgres(_) => None,
        }
    };
}
pub(crate) use each_sealed;

macro_rules! pass_on {
    ($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty) => {
        async fn $name(&self, $($arg: $kind),*) -> Result<$answer, StoreError> {
            each!(self, store => store.$name($($arg),*))
        }
    };
}

impl Store for AnyStore {
    baton_core::delegate_store!(with pass_on: all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_without_its_secrets() {
        let url = "postgres://gateway:geh@eim@db1:5432,db2/baton?password=geheim";
        let place = Place::Postgres(url.to_owned());
        assert_eq!(place.to_string(), "the database at db1:5432,db2/baton");
        assert_eq!(place.key_file(), None);
        let place = Place::Sqlite("dir/baton.db".into());
        assert_eq!(place.to_string(), "dir/baton.db");
        assert_eq!(place.key_file(), Some("dir/baton.db.key".into()));
    }
}
