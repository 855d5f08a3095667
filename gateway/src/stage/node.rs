//! One host process: a child that is told what to do by lines and can be killed.

use crate::setup::Failure;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

/// How processes are started.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) program: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) store: PathBuf,
    pub(super) service_url: String,
    pub(super) service_root: String,
    pub(super) pre_keys: u32,
    pub(super) verbose: bool,
}

/// What a process said; `None` when it has nothing more to say.
pub(super) type Said = (usize, Option<Value>);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Indices of its accounts.
    pub(super) accounts: Vec<usize>,
    pub(super) alive: bool,
    child: Child,
    input: Option<ChildStdin>,
}

impl Node {
    /// Starts process number `number`; what it says goes to `said`.
    pub(super) fn start(
        recipe: &Recipe,
        number: usize,
        accounts: Vec<usize>,
        names: &[&str],
        said: mpsc::UnboundedSender<Said>,
    ) -> Result<Self, Failure> {
        let name = node_name(number);
        let log = std::fs::File::create(recipe.directory.join(format!("{name}.log")))
            .map_err(|error| Failure::setup(format!("cannot write a log: {error}")))?;
        let mut command = Command::new(&recipe.program);
        command
            .arg("host")
            .arg("--accounts")
            .arg(names.join(","))
            .arg("--pre-keys")
            .arg(recipe.pre_keys.to_string())
            .arg("--store")
            .arg(store_url(&recipe.store))
            .args([
                "--service-url",
                &recipe.service_url,
                "--service-root",
                &recipe.service_root,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        if recipe.verbose {
            command.arg("--verbose");
        }
        let mut child = command.spawn().map_err(|error| {
            Failure::setup(format!(
                "cannot start {}: {error}",
                recipe.program.display()
            ))
        })?;
        let input = child.stdin.take();
        let output = child
            .stdout
            .take()
            .ok_or_else(|| Failure::setup("a process has no standard output"))?;
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The last line of a killed process may be half a line: whatever it was, it was not said.
                if let Ok(value) = serde_json::from_str(&line) {
                    let _ = said.send((number, Some(value)));
                }
            }
            let _ = said.send((number, None));
        });
        Ok(Self {
            name,
            accounts,
            alive: true,
            child,
            input,
        })
    }

    /// Tells it something. A process that is gone does not hear it, which its end will show.
    pub(super) async fn tell(&mut self, order: &Value) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(format!("{order}\n").as_bytes()).await;
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.alive = false;
        let _ = self.child.start_kill();
    }

    /// Ends its input and waits. `false` if it had to be killed or ended with an error.
    pub(super) async fn stop(&mut self) -> bool {
        self.input = None;
        match tokio::time::timeout(Duration::from_secs(12), self.child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => {
                let _ = self.child.kill().await;
                false
            }
        }
    }
}

/// `node-a`, `node-b`, … `node-z`, `node-27`, …
pub(super) fn node_name(number: usize) -> String {
    match u8::try_from(number).ok().filter(|number| *number < 26) {
        Some(number) => format!("node-{}", char::from(b'a' + number)),
        None => format!("node-{}", number + 1),
    }
}

pub(super) fn store_url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}
