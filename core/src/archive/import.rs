//! Into a database.

use super::{
    BEAT_EVERY, ExportId, FileKey, Manifest, Source,
    export::{beat, join},
    format::{Chunk, ReadError, Reader},
    owner::{Owner, Resident, residents},
};
use crate::{
    crypto::Rng,
    flow::reseal,
    proto::{
        archive,
        record::{Counters, Device, Origin},
    },
    state::{
        AccountId, Batch, BusinessId, Claim, Incarnation, Key, Lease, Outcome, Record, Seq, Store,
        StoreError, Table, UnixMillis, codec, rules,
    },
};
use std::collections::BTreeMap;

/// How to import.
#[derive(Clone, Copy, Debug)]
pub struct ImportOptions<'a> {
    /// What the file is locked with.
    pub key: FileKey<'a>,
    /// What the account is to be called; its name at the source if `None`.
    pub name: Option<&'a str>,
    /// Take the place of a *retired* account of that name, which is deleted.
    pub replace: bool,
    /// Take a file that does not say that the account cannot run at its source: only right if the source is destroyed.
    pub unreleased: bool,
}

impl<'a> ImportOptions<'a> {
    /// The usual: under its own name, where there is none of it.
    #[must_use]
    pub const fn new(key: FileKey<'a>) -> Self {
        Self {
            key,
            name: None,
            replace: false,
            unreleased: false,
        }
    }
}

/// An account that is here now. It is not wished to run yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its number here.
    pub account: AccountId,
    /// The file it comes from.
    pub manifest: Manifest,
}

/// Why an account was not imported. Unless it says otherwise nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read, or is not what it was.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database. What was written is no account yet: import again to go on.
    #[error("the import failed, import again: {0}")]
    Store(#[from] StoreError),
    /// Its export was not finished.
    #[error(
        "the export of this file was not finished: the account may still run at its source; export it again there"
    )]
    Unreleased,
    /// It is here, or has been here.
    #[error("this file was imported already, as account {0}")]
    AlreadyImported(AccountId),
    /// The same linked device runs here already.
    #[error("account {0} is the same linked device")]
    SameDevice(AccountId),
    /// The account has been here later than this file was written, and has moved on.
    #[error("account {0}, which was moved away from here, is later than this file")]
    Outdated(AccountId),
    /// There is another account of that name.
    #[error("an account of that name exists; give another name")]
    NameTaken,
    /// There is one that was moved away.
    #[error(
        "an account of that name was moved away from here; it can be replaced, or give another name"
    )]
    NameRetired,
    /// Another import of the account is under way, or was interrupted less than a minute ago.
    #[error("an import of this account is under way or was interrupted; try again in a minute")]
    UnderWay,
    /// The import took so long that its account was taken. What was written is no account; delete it.
    #[error("the account was taken while it was imported; delete it and import again")]
    Taken,
    /// The database does not take what is in the file.
    #[error("the database does not take what is in the file: {0}")]
    Rejected(String),
}

/// Reads a whole file and says what is in it.
pub fn inspect<F: Source>(source: &mut F, key: FileKey<'_>) -> Result<Manifest, ReadError> {
    Ok(Reader::open(source, key)?.survey()?.manifest)
}

/// Brings the account in `source` into `store`. `rng` has to be seeded by the operating system, afresh: what it draws
/// keeps two imports of one file apart.
///
/// The whole file is read before anything is written. An import that was interrupted leaves no account that could be
/// taken for one, and is begun again by calling again.
pub async fn import<S: Store, F: Source>(
    store: &S,
    business: &BusinessId,
    source: &mut F,
    options: ImportOptions<'_>,
    rng: &mut Rng,
    now: UnixMillis,
) -> Result<Imported, ImportError> {
    let mut reader = Reader::open(source, options.key)?;
    let survey = reader.survey()?;
    if !survey.manifest.released && !options.unreleased {
        return Err(ImportError::Unreleased);
    }
    let name = options.name.unwrap_or(&survey.manifest.name);
    rules::account_name(name).map_err(StoreError::from)?;
    let who = Incarnation(rng.next_u64());
    join(store, who, "baton-import").await?;
    let place = Place {
        business,
        name,
        replace: options.replace,
        who,
    };
    let done = place.import(store, &mut reader, &survey, rng, now).await;
    // Whoever does not leave is declared dead in a minute: leaving is a courtesy.
    let _ = store.leave(who).await;
    Ok(Imported {
        account: done?,
        manifest: survey.manifest,
    })
}

/// What the first reading of a file finds.
struct Survey {
    manifest: Manifest,
    owner: Option<Owner>,
    device: Option<Record>,
    counters: Option<Record>,
}

impl<F: Source> Reader<'_, F> {
    /// Reads everything, and keeps little.
    fn survey(&mut self) -> Result<Survey, ReadError> {
        let Some(Chunk::Header(header)) = self.next()? else {
            return Err(ReadError::Truncated);
        };
        let id = header.export.as_deref().and_then(|id| id.try_into().ok());
        let mut survey = Survey {
            manifest: Manifest {
                id: ExportId(id.ok_or(ReadError::Unknown)?),
                name: header.name.unwrap_or_default(),
                business: header.business.unwrap_or_default(),
                made_at: UnixMillis(header.made_at.unwrap_or(0)),
                moves: header.moves.unwrap_or(1),
                linked: header.owner.is_some(),
                rows: 0,
                left_out: 0,
                released: false,
            },
            owner: header.owner.and_then(|owner| owner.try_into().ok()),
            device: None,
            counters: None,
        };
        let mut counts = BTreeMap::new();
        let end = loop {
            match self.next()? {
                Some(Chunk::Rows(rows)) => survey.take(rows, &mut counts),
                Some(Chunk::End(end)) => break end,
                Some(Chunk::Header(_) | Chunk::Release(_)) => {
                    return Err(ReadError::Damaged(self.at()));
                }
                None => return Err(ReadError::Truncated),
            }
        };
        let said = |count: archive::TableCount| Some((count.table?, count.rows?));
        let said: BTreeMap<String, u64> = end.tables.into_iter().filter_map(said).collect();
        if said != counts {
            return Err(ReadError::Damaged(self.at()));
        }
        survey.manifest.left_out = end.left_out.unwrap_or(0);
        let mut late = 0;
        loop {
            match self.next()? {
                // As far as the last word: everything is there but that.
                None => return Ok(survey),
                Some(Chunk::Rows(rows)) => {
                    late += rows.len() as u64;
                    survey.take(rows, &mut BTreeMap::new());
                }
                Some(Chunk::Release(release))
                    if release.export == Some(survey.manifest.id.0.to_vec())
                        && release.late.unwrap_or(0) == late =>
                {
                    break;
                }
                Some(_) => return Err(ReadError::Damaged(self.at())),
            }
        }
        survey.manifest.released = true;
        // Nothing comes after the last word.
        match self.next() {
            Ok(None) => Ok(survey),
            Ok(Some(_)) | Err(_) => Err(ReadError::Damaged(self.at() + 1)),
        }
    }
}

impl Survey {
    fn take(&mut self, rows: Vec<(Key, Record)>, counts: &mut BTreeMap<String, u64>) {
        for (key, record) in rows {
            *counts.entry(key.table().name().to_owned()).or_insert(0) += 1;
            self.manifest.rows += 1;
            match key {
                Key::Device => self.device = Some(record),
                Key::Counters => self.counters = Some(record),
                _ => {}
            }
        }
    }

    /// The counters that the account goes on with: they know where it comes from, and are ahead of where it was.
    fn counters(&self, rng: &mut Rng) -> Result<Record, ImportError> {
        let unknown = |_| ImportError::Read(ReadError::Unknown);
        let mut counters = match &self.counters {
            Some(record) => codec::decode(record).map_err(unknown)?,
            None => Counters::default(),
        };
        if let Some(device) = &self.device {
            let device: Device = codec::decode(device).map_err(unknown)?;
            let keys = device.signed_pre_keys.iter();
            let ids = keys
                .chain(&device.staged_signed_pre_key)
                .filter_map(|key| key.id);
            reseal::moved(&mut counters, ids.max().unwrap_or(0), rng);
        }
        counters.origin = Some(Origin {
            export: Some(self.manifest.id.0.to_vec()),
            moves: Some(self.manifest.moves),
            owner: self.owner.map(Vec::from),
        });
        Ok(codec::encode(&counters))
    }

    fn is_same(&self, resident: &Resident) -> bool {
        self.owner.is_some() && self.owner == resident.owner
    }
}

/// Where the account is to be.
struct Place<'a> {
    business: &'a BusinessId,
    name: &'a str,
    replace: bool,
    /// The host that imports.
    who: Incarnation,
}

impl Place<'_> {
    async fn import<S: Store, F: Source>(
        &self,
        store: &S,
        reader: &mut Reader<'_, F>,
        survey: &Survey,
        rng: &mut Rng,
        now: UnixMillis,
    ) -> Result<AccountId, ImportError> {
        let blank = self.clear(store, survey).await?;
        let is_new = blank.is_none();
        let account = match blank {
            Some(account) => account,
            None => store
                .create_account(self.business, self.name)
                .await
                .map_err(|error| match error {
                    StoreError::Exists => ImportError::UnderWay,
                    error => ImportError::Store(error),
                })?,
        };
        let mut import = Import {
            store,
            account: &account,
            who: self.who,
            lease: None,
            seq: Seq(0),
            has_written: false,
            calls: 0,
            now,
        };
        let done = import.run(reader, survey, rng).await;
        if let Some(lease) = import.lease {
            // It is all there, or it is worth nothing.
            let mine = vec![(account.clone(), lease.term.epoch)];
            let _ = store.release(self.who, mine).await;
        }
        match done {
            Ok(()) => Ok(account),
            // After trouble with the database we do not know what is there; the next import does.
            Err(error @ (ImportError::Store(_) | ImportError::Taken)) => Err(error),
            Err(error) => {
                if is_new || import.has_written {
                    let _ = store.delete_account(&account).await;
                }
                Err(error)
            }
        }
    }

    /// Sees to it that the account is nobody's here, and that its name is free. Returns the account that has the name
    /// and nothing else: somebody has made it to be linked, or an import has ended right there.
    async fn clear<S: Store>(
        &self,
        store: &S,
        survey: &Survey,
    ) -> Result<Option<AccountId>, ImportError> {
        let (mut leftover, mut replaced, mut blank) = (Vec::new(), None, None);
        for resident in residents(store).await? {
            let id = resident.info.id.clone();
            let is_ours = resident.comes_from(&survey.manifest.id.0);
            if resident.is_unfinished() && (is_ours || survey.is_same(&resident)) {
                leftover.push(id);
                continue;
            }
            if is_ours {
                return Err(ImportError::AlreadyImported(id));
            }
            if survey.is_same(&resident) {
                if !resident.info.retired {
                    return Err(ImportError::SameDevice(id));
                }
                if resident.moves() >= survey.manifest.moves {
                    return Err(ImportError::Outdated(id));
                }
            }
            if id.business == *self.business && resident.info.name == self.name {
                match (resident.info.retired, self.replace) {
                    (true, true) => replaced = Some(id),
                    (true, false) => return Err(ImportError::NameRetired),
                    (false, _) if resident.is_blank => blank = Some(id),
                    (false, _) => return Err(ImportError::NameTaken),
                }
            }
        }
        for id in &leftover {
            // Only from a host that is gone: an import that goes on must not lose its account.
            let claims = store.claim(self.who, vec![id.clone()]).await?;
            match claims.first() {
                Some(Claim::Granted(lease)) => {
                    let mine = vec![(id.clone(), lease.term.epoch)];
                    store.release(self.who, mine).await?;
                }
                Some(Claim::Held { .. } | Claim::Locked) => return Err(ImportError::UnderWay),
                Some(Claim::Retired | Claim::Missing) | None => {}
            }
        }
        for id in leftover.into_iter().chain(replaced) {
            match store.delete_account(&id).await {
                Ok(()) | Err(StoreError::NoAccount) => {}
                Err(StoreError::Held) => return Err(ImportError::UnderWay),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(blank)
    }
}

/// What one batch holds at most, unless a single row is larger.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ROWS: usize = 500;

struct Import<'a, S> {
    store: &'a S,
    account: &'a AccountId,
    who: Incarnation,
    lease: Option<Lease>,
    seq: Seq,
    has_written: bool,
    calls: u32,
    now: UnixMillis,
}

impl<S: Store> Import<'_, S> {
    async fn run<F: Source>(
        &mut self,
        reader: &mut Reader<'_, F>,
        survey: &Survey,
        rng: &mut Rng,
    ) -> Result<(), ImportError> {
        let claims = self
            .store
            .claim(self.who, vec![self.account.clone()])
            .await?;
        match claims.first() {
            Some(Claim::Granted(lease)) => {
                self.lease = Some(*lease);
                self.seq = lease.applied;
            }
            _ => return Err(ImportError::UnderWay),
        }
        // First what tells an import that begins again, or another one, what this is.
        let counters = survey.counters(rng)?;
        self.write(BTreeMap::from([(Key::Counters, counters)]))
            .await?;
        self.meet_others(survey).await?;

        reader.rewind()?;
        let mut rows = BTreeMap::new();
        let mut bytes = 0;
        let mut read = 0;
        while let Some(chunk) = reader.next()? {
            let Chunk::Rows(chunk) = chunk else { continue };
            for (key, record) in chunk {
                read += 1;
                if matches!(key.table(), Table::Device | Table::Counters) {
                    continue;
                }
                bytes += record.0.len();
                rows.insert(key, record);
                if bytes >= BATCH_BYTES || rows.len() >= BATCH_ROWS {
                    self.write(std::mem::take(&mut rows)).await?;
                    bytes = 0;
                }
            }
        }
        // The file was whole when it was read first.
        if read != survey.manifest.rows {
            return Err(ReadError::Damaged(reader.at()).into());
        }
        self.write(rows).await?;
        // Last what makes it an account.
        if let Some(device) = &survey.device {
            self.write(BTreeMap::from([(Key::Device, device.clone())]))
                .await?;
        }
        Ok(())
    }

    /// Two imports that began at the same moment have not seen each other before. Whoever sees the other now gives way,
    /// so that never both go on; perhaps both give way.
    async fn meet_others(&self, survey: &Survey) -> Result<(), ImportError> {
        for other in residents(self.store).await? {
            let is_same = other.comes_from(&survey.manifest.id.0) || survey.is_same(&other);
            if is_same && !other.info.retired && other.info.id != *self.account {
                return Err(ImportError::UnderWay);
            }
        }
        Ok(())
    }

    async fn write(&mut self, rows: BTreeMap<Key, Record>) -> Result<(), ImportError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.calls += 1;
        if self.calls.is_multiple_of(BEAT_EVERY) {
            beat(self.store, self.who).await?;
        }
        self.seq = self.seq.next();
        self.has_written = true;
        let batch = Batch {
            account: self.account.clone(),
            term: self.lease()?.term,
            seq: self.seq,
            reseal: false,
            at: self.now,
            rows: rows
                .into_iter()
                .map(|(key, record)| (key, Some(record)))
                .collect(),
        };
        let outcomes = self.store.commit(vec![batch]).await?;
        match outcomes.into_iter().next() {
            Some(Outcome::Committed) => Ok(()),
            Some(Outcome::Rejected(why)) => Err(ImportError::Rejected(why)),
            Some(Outcome::Fenced { .. } | Outcome::Unsealed { .. }) | None => {
                Err(ImportError::Taken)
            }
        }
    }

    fn lease(&self) -> Result<Lease, ImportError> {
        self.lease.ok_or(ImportError::Taken)
    }
}
