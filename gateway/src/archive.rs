//! `baton export` and `baton import`: an account leaves one database and enters another, and is never in both.

use crate::{
    cli::Common,
    key,
    setup::Failure,
    store::{self, Create},
};
use baton_core::{
    archive::{self, ExportError, ExportOptions, FileKey, ImportError, ImportOptions, Manifest},
    crypto::Rng,
    state::{BusinessId, Placement, Store as _},
};
use baton_tokio::{ExportFile, ImportFile, keys::KeySource};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// The variable that holds a passphrase: on a command line others would see it.
const PASSPHRASE: &str = "BATON_PASSPHRASE";

/// What a file is locked with. Without it, the passphrase in the variable BATON_PASSPHRASE.
#[derive(Debug, Args)]
struct Lock {
    /// File with the key of the export (`baton key generate` makes one); otherwise BATON_PASSPHRASE is the passphrase.
    #[arg(long, value_name = "PATH")]
    with_key: Option<PathBuf>,
}

enum Unlocked {
    Key(baton_core::crypto::SecretKey),
    Passphrase(String),
}

impl Lock {
    async fn load(&self) -> Result<Unlocked, Failure> {
        if let Some(path) = &self.with_key {
            let loaded = KeySource::File(path.clone()).load().await;
            let loaded = loaded.map_err(|error| Failure::setup(error.to_string()))?;
            return Ok(Unlocked::Key(loaded.key));
        }
        std::env::var(PASSPHRASE)
            .map(Unlocked::Passphrase)
            .map_err(|_| {
                Failure::setup(format!(
                    "the file is locked: --with-key names a key, or {PASSPHRASE} holds a passphrase"
                ))
            })
    }
}

impl Unlocked {
    fn key(&self) -> FileKey<'_> {
        match self {
            Self::Key(key) => FileKey::Key(key),
            Self::Passphrase(text) => FileKey::Passphrase(text),
        }
    }
}

/// `baton export`.
#[derive(Debug, Args)]
pub(crate) struct ExportFlags {
    /// The file to write; it must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    lock: Lock,
    /// Leave out rows that cannot be read.
    #[arg(long)]
    leave_out_corrupt: bool,
    /// Write the file of an account that has left already, because its file was lost and never imported.
    #[arg(long)]
    again: bool,
}

/// `baton import`.
#[derive(Debug, Args)]
pub(crate) struct ImportFlags {
    /// The file to read.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    lock: Lock,
    /// What the account is to be called here; as it was if not said.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Take the place of an account of that name that was moved away from here.
    #[arg(long)]
    replace: bool,
    /// Take a file whose export was not finished, because its source is destroyed.
    #[arg(long)]
    unreleased: bool,
    /// Only say what is in the file.
    #[arg(long)]
    look: bool,
}

pub(crate) async fn export(common: &Common, flags: ExportFlags) -> Result<(), Failure> {
    let lock = flags.lock.load().await?;
    let store = store::open(common, Create::No).await?;
    let mut file = ExportFile::create(&flags.file).map_err(|error| {
        Failure::setup(format!("cannot write {}: {error}", flags.file.display()))
    })?;
    let options = ExportOptions {
        leave_out_corrupt: flags.leave_out_corrupt,
        again: flags.again,
        ..ExportOptions::new(lock.key())
    };
    let business = BusinessId::default();
    let done = archive::export(
        &store,
        &business,
        &common.account,
        &mut file,
        options,
        &mut rng()?,
        key::now(),
    )
    .await;
    let exported = match done {
        Ok(exported) => exported,
        Err(error) => {
            // An unfinished file is worth nothing and would be in the way of the next try.
            let _ = std::fs::remove_file(&flags.file);
            return Err(match error {
                ExportError::Store(_)
                | ExportError::Unknown(_)
                | ExportError::Unfinished(_)
                | ExportError::Taken => Failure::failed(error.to_string()),
                error => Failure::setup(format!("account {:?}: {error}", common.account)),
            });
        }
    };
    if common.json {
        println!(
            "{}",
            json!({ "event": "exported", "account": common.account, "file": flags.file, "rows": exported.rows,
                    "left_out": exported.left_out, "id": exported.id.to_string() })
        );
    } else {
        println!(
            "{} is in {} ({} rows{}) and cannot run here any more. Import the file once, in one place.",
            common.account,
            flags.file.display(),
            exported.rows,
            match exported.left_out {
                0 => String::new(),
                n => format!(", {n} unreadable ones left out"),
            }
        );
    }
    Ok(())
}

pub(crate) async fn import(common: &Common, flags: ImportFlags) -> Result<(), Failure> {
    let lock = flags.lock.load().await?;
    let mut file = ImportFile::open(&flags.file).map_err(|error| {
        Failure::setup(format!("cannot read {}: {error}", flags.file.display()))
    })?;
    if flags.look {
        let manifest = archive::inspect(&mut file, lock.key())
            .map_err(|error| Failure::setup(format!("{}: {error}", flags.file.display())))?;
        show(common, "file", &manifest);
        return Ok(());
    }
    let store = store::open(common, Create::Yes).await?;
    let options = ImportOptions {
        name: flags.name.as_deref(),
        replace: flags.replace,
        unreleased: flags.unreleased,
        ..ImportOptions::new(lock.key())
    };
    let business = BusinessId::default();
    let imported = archive::import(
        &store,
        &business,
        &mut file,
        options,
        &mut rng()?,
        key::now(),
    )
    .await;
    let imported = imported.map_err(|error| match error {
        ImportError::Store(_) | ImportError::UnderWay | ImportError::Taken => {
            Failure::failed(error.to_string())
        }
        error => Failure::setup(format!("{}: {error}", flags.file.display())),
    })?;
    if imported.manifest.linked {
        let run = Placement {
            run: true,
            ..Placement::default()
        };
        store
            .place(&imported.account, run)
            .await
            .map_err(crate::setup::store_failed)?;
    }
    show(common, "imported", &imported.manifest);
    Ok(())
}

fn show(common: &Common, event: &str, manifest: &Manifest) {
    if common.json {
        println!(
            "{}",
            json!({ "event": event, "account": manifest.name, "rows": manifest.rows, "left_out": manifest.left_out,
                    "linked": manifest.linked, "moves": manifest.moves, "released": manifest.released,
                    "id": manifest.id.to_string() })
        );
        return;
    }
    let state = if manifest.linked {
        "linked"
    } else {
        "not linked"
    };
    match event {
        "imported" => println!(
            "{} is here now ({} rows, {state}).",
            manifest.name, manifest.rows
        ),
        _ => println!(
            "{} of {}: {} rows, {state}, moved {} times{}",
            manifest.name,
            manifest.business,
            manifest.rows,
            manifest.moves,
            if manifest.released {
                ""
            } else {
                "; its export was not finished"
            }
        ),
    }
}

fn rng() -> Result<Rng, Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| Failure::setup(format!("no randomness: {error}")))?;
    Ok(Rng::from_seed(seed))
}
