//! Journals: what happened to the engines of chosen accounts, as encrypted files that `sim replay --record` does again.
//!
//! A file a life of an engine. It is written as things happen, in pieces of a drain each, to the system's cache: a process
//! that dies leaves all but the last moment of it. When it cannot be written any more, the account goes on without.

use baton_core::{
    crypto::{Rng, SecretKey},
    engine::{Appetite, Engine, Input, Now, Output},
    journal::{Birth, Writer},
    state::AccountId,
};
use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use tracing::warn;

/// Where journals go, and of whom.
#[derive(Clone)]
pub struct Journals(Arc<Place>);

struct Place {
    directory: PathBuf,
    master: SecretKey,
    only: BTreeSet<AccountId>,
}

impl fmt::Debug for Journals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journals({})", self.0.directory.display())
    }
}

impl Journals {
    /// Files in `directory`, which is made if need be, under the key that rows are encrypted under; of these accounts, or of
    /// all if there are none.
    ///
    /// # Errors
    ///
    /// If there is no such directory and none can be made.
    pub fn new(
        directory: &Path,
        master: SecretKey,
        only: impl IntoIterator<Item = AccountId>,
    ) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self(Arc::new(Place {
            directory: directory.to_owned(),
            master,
            only: only.into_iter().collect(),
        })))
    }

    fn begin(&self, birth: &Birth) -> io::Result<Option<Journal>> {
        let Place {
            directory,
            master,
            only,
        } = &*self.0;
        let account = &birth.account;
        if !only.is_empty() && !only.contains(account) {
            return Ok(None);
        }
        let term = birth.grant.lease.term;
        // A host can own an account twice under one epoch: when its engine stopped and the account was not given away.
        let name = format!(
            "{}-{}.epoch-{}.{:016x}.{}.journal",
            account.business, account.device, term.epoch.0, term.holder.0, birth.now.mono.0
        );
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(directory.join(name))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let mut buffer = Vec::new();
        let writer = Writer::begin(master, birth, &mut Rng::from_seed(seed), &mut buffer);
        file.write_all(&buffer)?;
        buffer.clear();
        Ok(Some(Journal {
            writer,
            file,
            buffer,
        }))
    }
}

struct Journal {
    writer: Writer,
    file: File,
    buffer: Vec<u8>,
}

impl Journal {
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// An engine, and perhaps its journal.
pub struct Recorded {
    engine: Engine,
    journal: Option<Journal>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

impl From<Engine> for Recorded {
    fn from(engine: Engine) -> Self {
        Self {
            engine,
            journal: None,
        }
    }
}

impl Recorded {
    /// The engine that is born so, with a journal if there is to be one.
    pub(crate) fn new(birth: Birth, journals: Option<&Journals>) -> Self {
        let journal = journals.map_or(Ok(None), |journals| journals.begin(&birth));
        let journal = journal.unwrap_or_else(|error| {
            warn!(account = %birth.account, %error, "no journal is kept");
            None
        });
        Self {
            engine: birth.build(),
            journal,
        }
    }

    pub(crate) fn handle(&mut self, input: Input<'_>, now: Now) {
        if let Some(journal) = &mut self.journal {
            journal.writer.input(&input, now, &mut journal.buffer);
        }
        self.engine.handle(input, now);
    }

    pub(crate) fn poll(&mut self, wire: &mut Vec<u8>) -> Output {
        let output = self.engine.poll(wire);
        if let Some(journal) = &mut self.journal {
            journal.writer.output(&output, wire, &mut journal.buffer);
            if matches!(output, Output::Idle { .. } | Output::Stopped(_))
                && let Err(error) = journal.flush()
            {
                warn!(%error, "the journal ends here");
                self.journal = None;
            }
        }
        output
    }

    pub(crate) fn appetite(&self) -> Appetite {
        self.engine.appetite()
    }
}
