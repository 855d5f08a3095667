//! Files of exported accounts on disk. Blocking: an export or import is a command's only work.

use crate::keys::{create_private, sync_directory};
use baton_core::archive::{FileError, Sink, Source};
use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

/// A new file, for its owner's eyes only. What an export that failed leaves is no valid file and can be removed.
#[derive(Debug)]
pub struct ExportFile {
    file: File,
    path: PathBuf,
}

impl ExportFile {
    /// Creates it. An existing file is not written over: it may be the only copy of an account.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let file = create_private(path).map_err(|error| trouble("create", path, &error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }
}

impl Sink for ExportFile {
    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| trouble("write", &self.path, &error))
    }

    fn keep(&mut self) -> Result<(), FileError> {
        self.file
            .sync_all()
            .and_then(|()| sync_directory(&self.path))
            .map_err(|error| trouble("sync", &self.path, &error))
    }
}

/// An existing file.
#[derive(Debug)]
pub struct ImportFile {
    file: BufReader<File>,
    path: PathBuf,
}

impl ImportFile {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| trouble("open", path, &error))?;
        Ok(Self {
            file: BufReader::new(file),
            path: path.to_owned(),
        })
    }
}

impl Source for ImportFile {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, FileError> {
        loop {
            match self.file.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| trouble("read", &self.path, &error)),
            }
        }
    }

    fn rewind(&mut self) -> Result<(), FileError> {
        let back = self.file.rewind();
        back.map_err(|error| trouble("read", &self.path, &error))
    }
}

fn trouble(what: &str, path: &Path, error: &io::Error) -> FileError {
    FileError(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_twice_and_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.baton");
        let mut file = ExportFile::create(&path).unwrap();
        file.write(b"one ").unwrap();
        file.keep().unwrap();
        file.write(b"two").unwrap();
        file.keep().unwrap();
        let again = ExportFile::create(&path).unwrap_err().to_string();
        assert!(again.starts_with("cannot create"), "{again}");
        let mut file = ImportFile::open(&path).unwrap();
        for _ in 0..2 {
            let (mut all, mut piece) = (Vec::new(), [0; 3]);
            file.rewind().unwrap();
            loop {
                match file.read(&mut piece).unwrap() {
                    0 => break,
                    read => all.extend_from_slice(&piece[..read]),
                }
            }
            assert_eq!(all, b"one two");
        }
        assert!(ImportFile::open(&directory.path().join("none")).is_err());
    }
}
