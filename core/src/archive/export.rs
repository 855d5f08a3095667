//! Out of a database.

use super::{
    BEAT_EVERY, ExportId, FileError, FileKey, LEASE, PAGE, Sink,
    format::{self, Writer},
    owner::owner,
};
use crate::{
    crypto::{PassphraseCost, Rng},
    proto::{archive, record::Counters},
    state::{
        AccountId, AccountInfo, Beat, Beaten, BusinessId, Claim, Epoch, HostInfo, Incarnation, Key,
        Record, Row, Scan, Store, StoreError, Table, UnixMillis, codec,
    },
};
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

/// How to export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// What the file is locked with.
    pub key: FileKey<'a>,
    /// Leave out rows that cannot be read, and count them, instead of refusing.
    pub leave_out_corrupt: bool,
    /// Write the file of an account that is retired already: for when an export was interrupted, or its file is lost.
    /// Only right if no file of it was imported anywhere.
    pub again: bool,
    /// What guessing the passphrase costs, if there is one.
    pub cost: PassphraseCost,
}

impl<'a> ExportOptions<'a> {
    /// The usual: everything, once.
    #[must_use]
    pub const fn new(key: FileKey<'a>) -> Self {
        Self {
            key,
            leave_out_corrupt: false,
            again: false,
            cost: PassphraseCost::RECOMMENDED,
        }
    }
}

/// An export that is complete: the account cannot run at its source any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// This file among all others.
    pub id: ExportId,
    /// Rows in it.
    pub rows: u64,
    /// Rows that could not be read and are missing.
    pub left_out: u64,
}

/// Why there is no complete file. Unless it says otherwise, the account is where it was, and what was written of the file
/// is worthless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The database.
    #[error("the export failed, the account is where it was: {0}")]
    Store(#[from] StoreError),
    /// The file.
    #[error("the export failed, the account is where it was: {0}")]
    File(#[from] FileError),
    /// Nobody of that name.
    #[error("there is no account of that name")]
    NoAccount,
    /// It runs.
    #[error("the account is running; stop it first")]
    Held,
    /// Somebody is in the middle of a write to it.
    #[error("the account is busy; try again")]
    Busy,
    /// It was moved already.
    #[error(
        "the account was moved away from here; export it again only if that file was never imported anywhere"
    )]
    Retired,
    /// To export it again it has to be retired.
    #[error("the account was not moved away; export it without saying that it is again")]
    NotRetired,
    /// A row cannot be read.
    #[error("a row of table {0} cannot be read; leave such rows out, or restore a backup")]
    Corrupt(&'static str),
    /// Too easy to guess.
    #[error("a passphrase has at least 12 characters")]
    Passphrase,
    /// The parameters of Argon2id are out of its range or of ours.
    #[error("the cost of the passphrase cannot be paid")]
    Cost,
    /// The export took so long that somebody else has the account.
    #[error("somebody took the account while it was exported; it is with them")]
    Taken,
    /// The account may be retired or not; the file is not valid.
    #[error(
        "whether the account left is not known ({0}); see whether it is marked as moved, and export it again"
    )]
    Unknown(StoreError),
    /// The account is retired; the file is not valid.
    #[error(
        "the account is marked as moved, but its file could not be finished ({0}); export it again"
    )]
    Unfinished(String),
}

/// Moves the account `name` out of `store`: writes it to `sink`, and retires it. `rng` has to be seeded by the operating
/// system, afresh.
///
/// While it writes it is a host of its own, that nobody gives anything to. A file is valid once this has returned.
pub async fn export<S: Store, F: Sink>(
    store: &S,
    business: &BusinessId,
    name: &str,
    sink: &mut F,
    options: ExportOptions<'_>,
    rng: &mut Rng,
    now: UnixMillis,
) -> Result<Exported, ExportError> {
    if let FileKey::Passphrase(text) = options.key
        && text.chars().count() < FileKey::PASSPHRASE
    {
        return Err(ExportError::Passphrase);
    }
    let accounts = store.accounts(business).await?;
    let account = accounts
        .into_iter()
        .find(|account| account.name == name)
        .ok_or(ExportError::NoAccount)?;
    match (account.retired, options.again) {
        (true, false) => return Err(ExportError::Retired),
        (false, true) => return Err(ExportError::NotRetired),
        _ => {}
    }
    if !options.cost.is_bearable() {
        return Err(ExportError::Cost);
    }
    let writer = Writer::new(options.key, options.cost, rng).ok_or(ExportError::Cost)?;
    let mut export = Export {
        id: ExportId(rng.bytes()),
        store,
        account: account.id.clone(),
        sink,
        writer,
        leave_out_corrupt: options.leave_out_corrupt,
        host: None,
        calls: 0,
    };
    if options.again {
        // Its fence is closed for ever: nobody can write while we read, and there is nothing to claim.
        let written = export.write(&account, now).await?;
        return export.finish(written).await;
    }
    let who = Incarnation(rng.next_u64());
    let done = export.as_host(who, &account, now).await;
    // Whoever does not leave is declared dead in a minute: leaving is a courtesy.
    let _ = store.leave(who).await;
    done
}

struct Export<'a, S, F> {
    id: ExportId,
    store: &'a S,
    account: AccountId,
    sink: &'a mut F,
    writer: Writer,
    leave_out_corrupt: bool,
    host: Option<Incarnation>,
    calls: u32,
}

impl<S: Store, F: Sink> Export<'_, S, F> {
    async fn as_host(
        &mut self,
        who: Incarnation,
        account: &AccountInfo,
        now: UnixMillis,
    ) -> Result<Exported, ExportError> {
        join(self.store, who, "baton-export").await?;
        self.host = Some(who);
        let epoch = self.claim(who).await?;
        let written = match self.write(account, now).await {
            Ok(written) => written,
            Err(error) => {
                let _ = self
                    .store
                    .release(who, vec![(self.account.clone(), epoch)])
                    .await;
                return Err(error);
            }
        };
        match self.store.retire(who, &self.account, epoch).await {
            Ok(true) => self.finish(written).await,
            Ok(false) => Err(ExportError::Taken),
            Err(error) => Err(ExportError::Unknown(error)),
        }
    }

    async fn claim(&self, who: Incarnation) -> Result<Epoch, ExportError> {
        let claims = self.store.claim(who, vec![self.account.clone()]).await?;
        match claims.first() {
            Some(Claim::Granted(lease)) => Ok(lease.term.epoch),
            Some(Claim::Held { .. }) => Err(ExportError::Held),
            Some(Claim::Locked) | None => Err(ExportError::Busy),
            Some(Claim::Retired) => Err(ExportError::Retired),
            Some(Claim::Missing) => Err(ExportError::NoAccount),
        }
    }

    /// Everything but the last word, and made sure that it is kept.
    async fn write(
        &mut self,
        account: &AccountInfo,
        now: UnixMillis,
    ) -> Result<Written, ExportError> {
        let header = self.header(account, now).await?;
        self.sink.write(&self.writer.prelude)?;
        self.sink.write(&self.writer.header(&header))?;
        let mut written = Written::default();
        let mut rows = Zeroizing::new(Vec::new());
        for &table in Table::ALL {
            let mut after = None;
            while let Some(page) = self.page(table, &mut after).await? {
                for (key, row) in page {
                    match row {
                        Row::Present(record) => {
                            format::put_row(&mut rows, &key, &record);
                            *written.counts.entry(table).or_insert(0) += 1;
                            if table == Table::Mailbox {
                                written.requests.insert(key);
                            }
                        }
                        Row::Corrupt if self.leave_out_corrupt => written.left_out += 1,
                        Row::Corrupt => return Err(ExportError::Corrupt(table.name())),
                        Row::Absent => {}
                    }
                    if rows.len() >= format::CHUNK {
                        self.sink.write(&self.writer.rows(&rows))?;
                        rows = Zeroizing::new(Vec::new());
                    }
                }
            }
        }
        if !rows.is_empty() {
            self.sink.write(&self.writer.rows(&rows))?;
        }
        let count = |(table, rows): (&Table, &u64)| archive::TableCount {
            table: Some(table.name().to_owned()),
            rows: Some(*rows),
        };
        let end = archive::End {
            tables: written.counts.iter().map(count).collect(),
            left_out: Some(written.left_out),
        };
        self.sink.write(&self.writer.end(&end))?;
        self.sink.keep()?;
        Ok(written)
    }

    /// The next rows of a table; `None` when there are no more. Stays alive meanwhile: should that fail, the account can
    /// be taken, and the last step finds out.
    async fn page(
        &mut self,
        table: Table,
        after: &mut Option<Option<Key>>,
    ) -> Result<Option<Vec<(Key, Row)>>, StoreError> {
        let behind = match after {
            None => None,
            Some(None) => return Ok(None),
            Some(key) => key.take(),
        };
        self.calls += 1;
        if let Some(who) = self.host
            && self.calls.is_multiple_of(BEAT_EVERY)
        {
            beat(self.store, who).await?;
        }
        let scan = Scan {
            table,
            after: behind,
            limit: PAGE,
        };
        let page = self.store.scan(&self.account, scan).await?;
        let is_full = page.len() >= PAGE as usize;
        *after = Some(page.last().filter(|_| is_full).map(|(key, _)| key.clone()));
        Ok(Some(page))
    }

    async fn header(
        &self,
        account: &AccountInfo,
        now: UnixMillis,
    ) -> Result<archive::Header, ExportError> {
        let keys = vec![Key::Device, Key::Counters];
        let rows = self.store.load(&self.account, keys).await?;
        // Without these two it would be no account; they cannot be left out.
        let present = |row: Option<&Row>, table: Table| match row {
            Some(Row::Present(record)) => Ok(Some(record.clone())),
            Some(Row::Corrupt) => Err(ExportError::Corrupt(table.name())),
            Some(Row::Absent) | None => Ok(None),
        };
        let device: Option<Record> = present(rows.first(), Table::Device)?;
        let counters: Option<Counters> = present(rows.get(1), Table::Counters)?
            .map(|record| codec::decode(&record))
            .transpose()
            .map_err(|_| ExportError::Corrupt(Table::Counters.name()))?;
        let moves = counters
            .and_then(|counters| counters.origin?.moves)
            .unwrap_or(0);
        Ok(archive::Header {
            export: Some(self.id.0.to_vec()),
            name: Some(account.name.clone()),
            business: Some(self.account.business.as_str().to_owned()),
            made_at: Some(now.0),
            moves: Some(moves.saturating_add(1)),
            owner: device.and_then(|device| owner(&device)).map(Vec::from),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        })
    }

    /// The account cannot run any more where it was: takes along what was left for it since, and says the last word.
    async fn finish(&mut self, written: Written) -> Result<Exported, ExportError> {
        let unfinished = |error: &dyn std::fmt::Display| ExportError::Unfinished(error.to_string());
        let mut late = Zeroizing::new(Vec::new());
        let mut lates = 0;
        let mut after = None;
        // Not as a host any more: there is nothing to hold.
        self.host = None;
        loop {
            let page = self.page(Table::Mailbox, &mut after).await;
            let Some(page) = page.map_err(|error| unfinished(&error))? else {
                break;
            };
            for (key, row) in page {
                if let Row::Present(record) = row
                    && !written.requests.contains(&key)
                {
                    format::put_row(&mut late, &key, &record);
                    lates += 1;
                }
            }
        }
        if !late.is_empty() {
            let chunk = self.writer.rows(&late);
            self.sink
                .write(&chunk)
                .map_err(|error| unfinished(&error))?;
        }
        let release = archive::Release {
            export: Some(self.id.0.to_vec()),
            late: Some(lates),
        };
        let bytes = self.writer.release(&release);
        self.sink
            .write(&bytes)
            .and_then(|()| self.sink.keep())
            .map_err(|error| unfinished(&error))?;
        Ok(Exported {
            id: self.id,
            rows: written.counts.values().sum::<u64>() + lates,
            left_out: written.left_out,
        })
    }
}

/// What is in the file before its last word.
#[derive(Default)]
struct Written {
    counts: BTreeMap<Table, u64>,
    left_out: u64,
    requests: BTreeSet<Key>,
}

/// Joins as a host that nobody gives accounts to.
pub(super) async fn join<S: Store>(
    store: &S,
    who: Incarnation,
    name: &str,
) -> Result<(), StoreError> {
    let info = HostInfo {
        capacity: 0,
        ..HostInfo::named(name)
    };
    store.join(who, info, LEASE).await?;
    beat(store, who).await
}

pub(super) async fn beat<S: Store>(store: &S, who: Incarnation) -> Result<(), StoreError> {
    let beat = Beat {
        draining: true,
        accounts: 1,
        live: 0,
        ttl: LEASE,
    };
    match store.beat(who, beat).await? {
        Beaten::Renewed(_) => Ok(()),
        Beaten::Dead => Err(StoreError::NotMember),
    }
}
