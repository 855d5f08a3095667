//! One host process: a child that says what it does, and can be killed, frozen, cut off and told to go.

use super::{Said, relay::Relay};
use crate::setup::Failure;
use serde_json::Value;
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

/// How processes are started.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) program: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) store: String,
    pub(super) key_file: PathBuf,
    pub(super) service_url: String,
    pub(super) service_root: String,
    pub(super) verbose: bool,
    /// Switches of `baton host`. Without any it is `baton serve`.
    pub(super) presence: bool,
    pub(super) naive: bool,
    /// What a host can be cut off by.
    pub(super) switch: Switch,
}

/// How a host is cut off from its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    /// It is not.
    None,
    /// Its calls are not answered while there is a file. What else its process has to do with the database goes on: for a
    /// database that is stuck, and for SQLite.
    Silence,
    /// The network between them is cut, if there is one.
    Network,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Has not been killed or told to go.
    pub(super) alive: bool,
    /// Has said its last word.
    pub(super) ended: bool,
    /// Lives, but does nothing.
    pub(super) frozen: bool,
    /// Its life in the roster, once it has joined.
    pub(super) incarnation: Option<String>,
    child: Child,
    silence: PathBuf,
    relay: Option<Relay>,
}

impl Node {
    /// Starts process number `number` under `name`; what it says goes to `said`.
    pub(super) async fn start(
        recipe: &Recipe,
        number: usize,
        name: &str,
        said: mpsc::UnboundedSender<Said>,
    ) -> Result<Self, Failure> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(recipe.directory.join(format!("{name}.log")))
            .map_err(|error| Failure::setup(format!("cannot write a log: {error}")))?;
        let silence = recipe.directory.join(format!("{name}.silence"));
        let relay = match recipe.switch {
            Switch::Network if recipe.store.starts_with("postgres") => Relay::to(&recipe.store)
                .await
                .map_err(|error| Failure::setup(format!("no way to the database: {error}")))?,
            _ => None,
        };
        let (relay, store) = match relay {
            Some((relay, through)) => (Some(relay), through),
            None => (None, recipe.store.clone()),
        };
        let silent = recipe.switch != Switch::None && relay.is_none();
        let mut command = recipe.command_on(&store);
        let plain = recipe.presence && !recipe.naive && !silent;
        command.arg(if plain { "serve" } else { "host" });
        command.args(["--host-id", name]);
        if silent {
            command.arg("--silence").arg(&silence);
        }
        if !recipe.presence {
            command.arg("--no-presence");
        }
        if recipe.naive {
            command.arg("--naive");
        }
        if recipe.verbose {
            command.arg("--verbose");
        }
        command
            .args([
                "--service-url",
                &recipe.service_url,
                "--service-root",
                &recipe.service_root,
            ])
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().map_err(|error| {
            Failure::setup(format!(
                "cannot start {}: {error}",
                recipe.program.display()
            ))
        })?;
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
            name: name.to_owned(),
            alive: true,
            ended: false,
            frozen: false,
            incarnation: None,
            child,
            silence,
            relay,
        })
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.alive = false;
        let _ = self.child.start_kill();
    }

    /// SIGSTOP, and SIGCONT.
    pub(super) async fn freeze(&mut self, freeze: bool) -> Result<(), Failure> {
        self.frozen = freeze;
        self.signal(if freeze { "STOP" } else { "CONT" }).await
    }

    /// SIGTERM.
    pub(super) async fn terminate(&mut self) -> Result<(), Failure> {
        self.alive = false;
        self.signal("TERM").await
    }

    async fn signal(&self, signal: &str) -> Result<(), Failure> {
        let Some(pid) = self.child.id() else {
            return Ok(());
        };
        // Every shell can do it; a program of that name is not everywhere.
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{signal} {pid}"))
            .stderr(Stdio::null())
            .status()
            .await;
        match status {
            Ok(status) if status.success() => Ok(()),
            _ => Err(Failure::failed(format!(
                "cannot send SIG{signal} to {}",
                self.name
            ))),
        }
    }

    /// Cuts it off from its store, or connects it again.
    pub(super) fn cut_off(&self, silent: bool) -> Result<(), Failure> {
        if let Some(relay) = &self.relay {
            relay.cut(silent);
            return Ok(());
        }
        let done = if silent {
            std::fs::write(&self.silence, "")
        } else {
            std::fs::remove_file(&self.silence)
        };
        done.map_err(|error| Failure::failed(format!("{}: {error}", self.silence.display())))
    }

    /// Waits for its end. `false` if it had to be killed or ended with an error.
    pub(super) async fn ends_well(&mut self) -> bool {
        match tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => {
                let _ = self.child.kill().await;
                false
            }
        }
    }
}

impl Recipe {
    /// `baton` on the store of the stage.
    pub(super) fn command(&self) -> Command {
        self.command_on(&self.store)
    }

    fn command_on(&self, store: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--store", store, "--key-file"])
            .arg(&self.key_file)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// What a process said; the end has nothing to say.
pub(super) fn word<'a>(said: &'a Value, name: &str) -> &'a str {
    said[name].as_str().unwrap_or_default()
}

/// `node-a`, `node-b`, … `node-z`, `node-27`, …
pub(super) fn node_name(number: usize) -> String {
    match u8::try_from(number).ok().filter(|number| *number < 26) {
        Some(number) => format!("node-{}", char::from(b'a' + number)),
        None => format!("node-{}", number + 1),
    }
}
