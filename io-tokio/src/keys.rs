//! Where keys come from: a file, the environment, or a command that fetches one from a vault.
//!
//! A key is 32 random bytes as text: 64 hex digits, or base64. [`generate`] makes one, [`write_new`] puts it into a file
//! that only its owner can read. What was read is wiped when it is dropped; no error repeats any of it.

use baton_core::crypto::{SecretKey, SecretKeyError};
use std::{
    env, fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};
use zeroize::Zeroizing;

/// The variable that holds a key.
pub const KEY_VARIABLE: &str = "BATON_KEY";
/// The variable that names a file with a key.
pub const KEY_FILE_VARIABLE: &str = "BATON_KEY_FILE";
/// The variable that holds a command that prints a key.
pub const KEY_COMMAND_VARIABLE: &str = "BATON_KEY_COMMAND";

/// A key takes 64 characters; what is longer than this is something else.
const MAX_TEXT: u64 = 4096;
/// A command that has not answered by then never will.
const COMMAND_TIME: Duration = Duration::from_secs(10);

/// Where a key is.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In this file.
    File(PathBuf),
    /// In this environment variable.
    Environment(String),
    /// On the standard output of this command line, run by `sh`; within ten seconds.
    Command(String),
}

/// A key, and what is to be said about the way it is kept.
#[derive(Debug)]
pub struct Loaded {
    /// The key.
    pub key: SecretKey,
    /// One sentence for the log, if others can read it too.
    pub warning: Option<String>,
}

/// Why there is no key: one sentence each, for people.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("cannot read the key file {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The variable.
    #[error("the environment variable {0} is not set, or is not text")]
    Environment(String),
    /// More than one variable is set.
    #[error("{0} and {1} are both set; one of them says where the key is")]
    Ambiguous(&'static str, &'static str),
    /// The command did not start, or did not end well. The command is not repeated: there can be secrets in it.
    #[error("the command for the key failed: {0}")]
    Command(String),
    /// What was found is no key.
    #[error("what {from} holds is not a key: {error}")]
    NotAKey {
        /// Where it was found.
        from: String,
        /// Why.
        error: SecretKeyError,
    },
    /// There is a file of that name, which may be the only copy of a key.
    #[error("{} exists; a key is never written over another file", .0.display())]
    Exists(PathBuf),
    /// A new key cannot be written.
    #[error("cannot write the key file {}: {error}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The operating system has no randomness.
    #[error("there is no randomness for a key: {0}")]
    Randomness(String),
}

impl KeySource {
    /// What the environment says: [`BATON_KEY_FILE`](KEY_FILE_VARIABLE), [`BATON_KEY_COMMAND`](KEY_COMMAND_VARIABLE) or
    /// [`BATON_KEY`](KEY_VARIABLE). `None` if none of them is set, an error if two are. An empty one counts as not set.
    pub fn from_environment() -> Result<Option<Self>, KeyError> {
        let is_set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        choose([
            is_set(KEY_FILE_VARIABLE).map(|path| Self::File(path.into())),
            is_set(KEY_COMMAND_VARIABLE)
                .map(|line| Self::Command(line.to_string_lossy().into_owned())),
            is_set(KEY_VARIABLE).map(|_| Self::Environment(KEY_VARIABLE.to_owned())),
        ])
    }

    /// Fetches the key.
    pub async fn load(&self) -> Result<Loaded, KeyError> {
        match self {
            Self::File(path) => {
                let (text, warning) = read_file(path).map_err(|error| KeyError::File {
                    path: path.clone(),
                    error,
                })?;
                self.parse(&text, warning)
            }
            Self::Environment(name) => {
                let text = env::var(name).map_err(|_| KeyError::Environment(name.clone()))?;
                self.parse(&Zeroizing::new(text), None)
            }
            Self::Command(line) => self.parse(&run(line, COMMAND_TIME).await?, None),
        }
    }

    fn parse(&self, text: &str, warning: Option<String>) -> Result<Loaded, KeyError> {
        let not_a_key = |error| KeyError::NotAKey {
            from: self.to_string(),
            error,
        };
        let key = SecretKey::parse(text).map_err(not_a_key)?;
        Ok(Loaded { key, warning })
    }
}

fn choose(found: [Option<KeySource>; 3]) -> Result<Option<KeySource>, KeyError> {
    const NAMES: [&str; 3] = [KEY_FILE_VARIABLE, KEY_COMMAND_VARIABLE, KEY_VARIABLE];
    let mut set = NAMES
        .into_iter()
        .zip(found)
        .filter_map(|(name, source)| Some((name, source?)));
    match (set.next(), set.next()) {
        (Some((one, _)), Some((two, _))) => Err(KeyError::Ambiguous(one, two)),
        (one, _) => Ok(one.map(|(_, source)| source)),
    }
}

/// Names the place, not what is there.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Command(_) => f.write_str("the output of the command for the key"),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySource({self})")
    }
}

/// A new key, from the operating system's randomness.
pub fn generate() -> Result<SecretKey, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| KeyError::Randomness(error.to_string()))?;
    Ok(SecretKey::from_bytes(*bytes))
}

/// Writes a key into a new file that only its owner can read, and makes sure that it is kept: what is encrypted with it
/// must not outlive it.
pub fn write_new(path: &Path, key: &SecretKey) -> Result<(), KeyError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => KeyError::Write {
            path: path.to_owned(),
            error,
        },
    };
    let write = || {
        let mut file = create_private(path)?;
        file.write_all(key.to_hex().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        sync_directory(path)
    };
    write().map_err(failed)
}

/// A new file for its owner's eyes.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes sure that the name of a new file is kept too.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn read_file(path: &Path) -> io::Result<(Zeroizing<String>, Option<String>)> {
    let file = File::open(path)?;
    let warning = warning(path, &file.metadata()?);
    let mut text = Zeroizing::new(String::new());
    // Not to be moved while it grows: the old place would keep it.
    text.reserve_exact(MAX_TEXT as usize);
    file.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok((text, warning))
}

#[cfg(unix)]
fn warning(path: &Path, metadata: &fs::Metadata) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = metadata.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "the key file {} can be read or changed by others (mode {mode:03o}); chmod 600 keeps it to its owner",
            path.display()
        )
    })
}

#[cfg(not(unix))]
fn warning(_: &Path, _: &fs::Metadata) -> Option<String> {
    None
}

async fn run(line: &str, time: Duration) -> Result<Zeroizing<String>, KeyError> {
    let failed = |error: &dyn fmt::Display| KeyError::Command(error.to_string());
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(line)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains of is for whoever looks at our standard error.
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&error))?;
    let output = child.stdout.take();
    let answer = async {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TEXT as usize + 1));
        if let Some(output) = output {
            output.take(MAX_TEXT + 1).read_to_end(&mut bytes).await?;
        }
        if bytes.len() as u64 > MAX_TEXT {
            // It may still be writing to a pipe that nobody reads.
            child.start_kill()?;
            return Ok((None, bytes));
        }
        Ok::<_, io::Error>((Some(child.wait().await?), bytes))
    };
    let (status, bytes) = match timeout(time, answer).await {
        Err(_) => {
            let late = format!("no answer within {} seconds", time.as_secs());
            return Err(failed(&late));
        }
        Ok(answer) => answer.map_err(|error| failed(&error))?,
    };
    match status {
        None => return Err(failed(&"it printed far more than a key")),
        Some(status) if !status.success() => return Err(failed(&status)),
        Some(_) => {}
    }
    std::str::from_utf8(&bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| failed(&"it did not print text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn load(source: KeySource) -> Result<String, String> {
        let loaded = source.load().await.map_err(|error| error.to_string())?;
        Ok(loaded.key.to_hex().to_string())
    }

    fn command(line: &str) -> KeySource {
        KeySource::Command(line.to_owned())
    }

    #[tokio::test]
    async fn a_new_key_is_read_back_and_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = generate().unwrap();
        write_new(&path, &key).unwrap();
        let loaded = KeySource::File(path.clone()).load().await.unwrap();
        assert_eq!(loaded.key.as_bytes(), key.as_bytes());
        assert_eq!(loaded.warning, None);
        let again = write_new(&path, &generate().unwrap());
        assert!(matches!(again, Err(KeyError::Exists(_))));
        assert_ne!(generate().unwrap().as_bytes(), key.as_bytes());
        let nowhere = write_new(&directory.path().join("no/key"), &key);
        assert!(matches!(nowhere, Err(KeyError::Write { .. })));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_that_others_can_read_is_warned_about() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write_new(&path, &generate().unwrap()).unwrap();
        for (mode, warns) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = KeySource::File(path.clone()).load().await.unwrap();
            assert_eq!(loaded.warning.is_some(), warns, "{mode:o}");
        }
    }

    #[tokio::test]
    async fn a_command_prints_the_key() {
        let key = generate().unwrap();
        let hex = key.to_hex().to_string();
        assert_eq!(load(command(&format!("echo {hex}"))).await, Ok(hex));
    }

    #[tokio::test]
    async fn every_failure_is_one_sentence_without_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "hunter2").unwrap();
        let file = KeySource::File(path);
        let missing = KeySource::File(directory.path().join("missing"));
        let unset = KeySource::Environment("BATON_TEST_NOT_SET".to_owned());
        for (source, expected) in [
            (file, "is not a key: a key is 32 bytes"),
            (missing, "cannot read the key file"),
            (unset, "BATON_TEST_NOT_SET is not set"),
            (command("echo hunter2"), "is not a key"),
            (command("echo hunter2; exit 3"), "exit status: 3"),
            (command("true"), "the key is empty"),
            (command("yes hunter2"), "far more than a key"),
            (command("printf '\\377'"), "did not print text"),
        ] {
            let error = load(source).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(
                !error.contains("hunter2") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_given_up() {
        let hangs = run("sleep 600", Duration::from_millis(50)).await;
        assert!(matches!(hangs, Err(KeyError::Command(why)) if why.contains("no answer")));
    }

    #[test]
    fn one_place_and_not_two() {
        let file = || Some(KeySource::File("key".into()));
        let variable = || Some(KeySource::Environment(KEY_VARIABLE.to_owned()));
        assert_eq!(choose([None, None, None]).unwrap(), None);
        assert_eq!(choose([file(), None, None]).unwrap(), file());
        assert_eq!(choose([None, None, variable()]).unwrap(), variable());
        let both = choose([file(), None, variable()]).unwrap_err().to_string();
        assert!(both.starts_with("BATON_KEY_FILE and BATON_KEY are both set"));
    }

    #[test]
    fn sources_print_their_place_only() {
        let source = command("vault read --token hunter2");
        assert!(!format!("{source} {source:?}").contains("hunter2"));
    }
}
