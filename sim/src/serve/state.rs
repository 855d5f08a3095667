//! The state directory: one file, replaced whole, so that a crash leaves the old one or the new one.

use super::Hub;
use crate::service::RestoreError;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Changes are saved this long after they happened, together with all others of that time.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("state in {0}: {1}")]
    Io(PathBuf, io::Error),
    /// What is in it is not a saved service.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn open(path: PathBuf) -> Result<Self, StateError> {
        fs::create_dir_all(&path).map_err(|error| StateError::Io(path.clone(), error))?;
        Ok(Self(path))
    }

    /// The saved state; none in a new directory.
    pub(super) fn load(&self) -> Result<Option<Vec<u8>>, StateError> {
        match fs::read(self.file()) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::Io(self.file(), error)),
        }
    }

    pub(super) fn save(&self, bytes: &[u8]) -> Result<(), StateError> {
        let temporary = self.0.join("service.json.new");
        write_private(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, self.file()))
            .map_err(|error| StateError::Io(self.file(), error))
    }

    fn file(&self) -> PathBuf {
        self.0.join("service.json")
    }
}

/// There are private keys in it.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Saves what changed, every now and then, until told to stop; the last save is the caller's.
pub(super) async fn keep(
    host: Arc<Hub>,
    directory: Arc<Directory>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut saved = None;
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => return,
            () = tokio::time::sleep(DEBOUNCE) => {}
        }
        let (revision, bytes) = {
            let service = host.lock();
            let revision = service.revision();
            (revision, (saved != Some(revision)).then(|| service.save()))
        };
        let Some(bytes) = bytes else { continue };
        let directory = Arc::clone(&directory);
        match tokio::task::spawn_blocking(move || directory.save(&bytes)).await {
            Ok(Ok(())) => saved = Some(revision),
            Ok(Err(error)) => tracing::error!(%error, "cannot save"),
            Err(error) => tracing::error!(%error, "cannot save"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_replaced_whole() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let state = Directory::open(directory.path().join("new")).expect("opened");
        assert_eq!(state.load().expect("readable"), None);
        state.save(b"first, and longer").expect("saved");
        state.save(b"second").expect("saved");
        assert_eq!(
            state.load().expect("readable").as_deref(),
            Some(&b"second"[..])
        );
        let names: Vec<_> = fs::read_dir(&state.0)
            .expect("listed")
            .filter_map(|e| Some(e.ok()?.file_name()))
            .collect();
        assert_eq!(names, ["service.json"]);
    }
}
