//! The master key: where it comes from, and `baton key`, which makes one, encrypts a database with it, and rotates keys.

use crate::{
    cli::Common,
    setup::Failure,
    store::{self, AnyStore, Create, Place},
};
use baton_core::{
    crypto::SecretKey,
    state::{
        BusinessId, Micros, Store, StoreError, UnixMillis,
        sealed::{self, GRACE, MasterKey, MasterKeys, PlainRows, Progress, Sealed},
    },
};
use baton_tokio::keys::{self, KeyError, KeySource, Loaded};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::{info, warn};

/// Rows looked at between two breaths.
const SLICE: u32 = 200;
/// How often a process that serves accounts looks whether rows are to be brought under a newer key.
const LOOK: Duration = Duration::from_secs(600);

/// `baton key`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a master key.
    Generate {
        /// File to write it to; standard output if there is none. A file that exists is left alone.
        #[arg(long, value_name = "PATH")]
        out: Option<PathBuf>,
    },
    /// Encrypt a database that was kept in the clear. Accounts may run meanwhile, with the key.
    Encrypt,
    /// Make new data keys and bring all rows under them. Accounts may run meanwhile.
    Rotate,
    /// Wrap the data keys with another master key. Rows stay as they are.
    Rewrap {
        /// File with the new master key, which --key-file has to name from then on.
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
    },
}

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    match flags.what {
        What::Generate { out: Some(path) } => {
            keys::write_new(&path, &keys::generate().map_err(setup)?).map_err(setup)?;
            say(common, json!({ "key_file": path }), || {
                format!(
                    "A new master key is in {}. Keep a copy elsewhere: without it, what it encrypts is lost.",
                    path.display()
                )
            });
            Ok(())
        }
        What::Generate { out: None } => {
            println!("{}", keys::generate().map_err(setup)?.to_hex().as_str());
            Ok(())
        }
        What::Encrypt => {
            let store = store::open_with(common, Create::No, PlainRows::Convert).await?;
            wants_keys(common, &store)?;
            // Somebody who runs could still write with an older key, if there is one: then nothing is removed yet.
            let hosts = store.hosts().await.map_err(failed)?;
            let alone = hosts.iter().all(|host| !host.state.is_live());
            let grace = if alone { Micros(0) } else { GRACE };
            let rewritten = pass_over(&store, grace).await?;
            say(common, json!({ "encrypted": rewritten }), || {
                format!(
                    "{rewritten} rows are encrypted. Old copies of the database, and free pages in it, are not."
                )
            });
            Ok(())
        }
        What::Rotate => {
            let store = store::open(common, Create::No).await?;
            wants_keys(common, &store)?;
            for business in tenants(&store).await? {
                store::each_sealed!(&store, sealed => sealed.rotate(&business, now()).await)
                    .transpose()
                    .map_err(failed)?;
            }
            let rewritten = pass_over(&store, GRACE).await?;
            say(common, json!({ "rewritten": rewritten }), || {
                format!(
                    "{rewritten} rows are under new keys. The old keys are removed within the hour by any process that serves accounts, or by `baton key rotate` then."
                )
            });
            Ok(())
        }
        What::Rewrap { to } => rewrap(common, &to).await,
    }
}

async fn rewrap(common: &Common, to: &Path) -> Result<(), Failure> {
    let place = Place::of(common)?;
    let old = MasterKey::new(&load(&source(common, &place)?).await?);
    let new = MasterKey::new(&load(&KeySource::File(to.to_owned())).await?);
    let masters = MasterKeys::new(new).and(old);
    let store = store::open_sealed(common, Create::No, masters, PlainRows::Refuse).await?;
    let wrapped = store::each_sealed!(&store, sealed => sealed.rewrap_all().await)
        .transpose()
        .map_err(failed)?
        .unwrap_or(0);
    say(common, json!({ "rewrapped": wrapped }), || {
        format!(
            "{wrapped} data keys are wrapped with the key in {}. Processes that run know the old one; restart them with the new one.",
            to.display()
        )
    });
    Ok(())
}

fn wants_keys(common: &Common, store: &AnyStore) -> Result<(), Failure> {
    match store {
        AnyStore::SealedSqlite(_) | AnyStore::SealedPostgres(_) => Ok(()),
        AnyStore::Sqlite(_) | AnyStore::Postgres(_) => Err(Failure::setup(format!(
            "--no-encryption and `baton key` do not go together ({})",
            Place::of(common)?
        ))),
    }
}

fn say(common: &Common, object: serde_json::Value, text: impl FnOnce() -> String) {
    if common.json {
        println!("{object}");
    } else {
        println!("{}", text());
    }
}

// ---- the key ---------------------------------------------------------------------------------------------------

/// Where the master key is, as the flags and the environment say.
fn source(common: &Common, place: &Place) -> Result<KeySource, Failure> {
    if let Some(path) = &common.key.key_file {
        return Ok(KeySource::File(path.clone()));
    }
    if let Some(command) = &common.key.key_command {
        return Ok(KeySource::Command(command.clone()));
    }
    let told = KeySource::from_environment().map_err(setup)?;
    let beside = || place.key_file().map(KeySource::File);
    told.or_else(beside).ok_or_else(|| {
        Failure::setup(
            "a PostgreSQL database wants a master key: --key-file, --key-command or BATON_KEY; \
             `baton key generate` makes one, --no-encryption does without",
        )
    })
}

/// The master key that the flags name, for what is no database.
pub(crate) async fn secret(common: &Common) -> Result<SecretKey, Failure> {
    load(&source(common, &Place::of(common)?)?).await
}

async fn load(source: &KeySource) -> Result<SecretKey, Failure> {
    let Loaded { key, warning } = source.load().await.map_err(setup)?;
    if let Some(warning) = warning {
        eprintln!("baton: {warning}");
    }
    Ok(key)
}

/// The master key that the flags name. A SQLite database that is in use by nobody yet gets one, beside it.
pub(crate) async fn masters<S: Store>(
    common: &Common,
    place: &Place,
    store: &S,
) -> Result<MasterKeys, Failure> {
    let source = source(common, place)?;
    let secret = match &source {
        KeySource::File(path) if place.key_file().as_ref() == Some(path) && !path.exists() => {
            let tenants = store.tenants().await.map_err(failed)?;
            if !tenants.is_empty() && sealed::is_encrypted(store).await.map_err(failed)? {
                return Err(Failure::setup(format!(
                    "{place} is encrypted, and its master key is not in {}: say where it is",
                    path.display()
                )));
            }
            if !tenants.is_empty() {
                return Err(Failure::setup(format!(
                    "{place} is not encrypted: --no-encryption leaves it so; \
                     `baton key generate --out {}` and `baton key encrypt` change that",
                    path.display()
                )));
            }
            make_or_read(path).await?
        }
        source => load(source).await?,
    };
    Ok(MasterKeys::new(MasterKey::new(&secret)))
}

/// Another process may be doing the same at this moment: whoever is first makes it.
async fn make_or_read(path: &Path) -> Result<SecretKey, Failure> {
    let key = keys::generate().map_err(setup)?;
    match keys::write_new(path, &key) {
        Ok(()) => {
            eprintln!(
                "baton: a new master key is in {}; without it the database cannot be read",
                path.display()
            );
            return Ok(key);
        }
        Err(KeyError::Exists(_)) => {}
        Err(error) => return Err(setup(error)),
    }
    let source = KeySource::File(path.to_owned());
    for _ in 0..20 {
        // It may be there and not written yet.
        if let Ok(Loaded { key, .. }) = source.load().await {
            return Ok(key);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    load(&source).await
}

fn setup(error: KeyError) -> Failure {
    Failure::setup(error.to_string())
}

// ---- rows under newer keys -------------------------------------------------------------------------------------

async fn tenants(store: &AnyStore) -> Result<Vec<BusinessId>, Failure> {
    store.tenants().await.map_err(failed)
}

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn failed(error: StoreError) -> Failure {
    Failure::failed(format!("the store failed: {error}"))
}

/// Brings every row of every tenant under its newest key; returns how many were written anew.
async fn pass_over(store: &AnyStore, grace: Micros) -> Result<u64, Failure> {
    let mut rewritten = 0;
    for business in tenants(store).await? {
        let done = store::each_sealed!(store, sealed => pass(sealed, &business, grace).await);
        rewritten += done.transpose().map_err(failed)?.unwrap_or(0);
    }
    Ok(rewritten)
}

async fn pass<S: Store>(
    sealed: &Sealed<S>,
    business: &BusinessId,
    grace: Micros,
) -> Result<u64, StoreError> {
    if !sealed.wants_pass(business).await? {
        return Ok(0);
    }
    let mut pass = sealed.pass(business, now(), grace).await?;
    loop {
        match sealed.advance(&mut pass, SLICE).await? {
            Progress::More => tokio::time::sleep(Duration::from_millis(2)).await,
            end => {
                info!(%business, ?end, rewritten = pass.rewritten, unreadable = pass.unreadable, "rows under the newest key");
                return Ok(pass.rewritten);
            }
        }
    }
}

/// Goes on with what `baton key rotate` has begun, for ever: removes old keys when nothing uses them any more.
pub(crate) async fn keep_current(store: AnyStore) {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(error) = pass_over(&store, GRACE).await {
            warn!(%error, "rows are not brought under the newest key; trying again later");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_made_once_whoever_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baton.db.key");
        let (a, b, c) = tokio::join!(
            make_or_read(&path),
            make_or_read(&path),
            make_or_read(&path)
        );
        let [a, b, c] = [a, b, c].map(|key| *key.unwrap().as_bytes());
        assert!(a == b && b == c);
    }
}
