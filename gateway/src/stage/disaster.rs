//! What happens to the hosts, as a script of steps.

use super::{
    Beat, Plan, Stage,
    node::{Switch, node_name},
    takeover::Takeover,
};
use crate::setup::Failure;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::{collections::VecDeque, path::PathBuf, process::Stdio, time::Duration};
use tokio::time::Instant;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[non_exhaustive]
pub enum Disaster {
    /// SIGKILL of an owner.
    Kill,
    /// SIGSTOP of an owner; when others have taken over, SIGCONT.
    Pause,
    /// `baton drain` of a host.
    Drain,
    /// An owner is cut off from the database, and keeps its connections to the service.
    Partition,
    /// Every host is replaced by a new one, one after another.
    Rolling,
    /// The database answers nobody for some seconds.
    StoreStall,
    /// Pause, without fencing: shows what the fences prevent.
    Naive,
}

/// How long the database answers nobody.
const STALL: Duration = Duration::from_secs(3);
/// How long a host that came back is left alone with what it believes.
const ZOMBIE: Duration = Duration::from_secs(4);
/// How long a host that came back is in the fleet before the other one goes: a lease, so that it may judge.
const WHOLE: Duration = Duration::from_secs(7);
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One step.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// When so many messages were handed over, and so much later; which of the living is the victim.
    Moment {
        after: usize,
        delay: Duration,
        node: usize,
    },
    Kill,
    Freeze,
    Thaw,
    Drain,
    CutOff,
    Reconnect,
    Stall(bool),
    /// A new host, under this name or, with `None`, under that of the victim.
    Start(Option<String>),
    /// Until the host started last has joined.
    Joined,
    /// This host, by number, is told to go.
    Retire(usize),
    /// Until the accounts of the victim are online elsewhere.
    TakenOver,
    /// Until the victim has said that the store refuses it.
    Refused,
    /// Until the victim has said its last word.
    Ended,
    /// Until `baton drain` has come back.
    Drained,
    Sleep(Duration),
}

impl Disaster {
    /// What a host has to be cut off by.
    pub(super) const fn switch(self) -> Switch {
        match self {
            Self::Partition => Switch::Network,
            Self::StoreStall => Switch::Silence,
            _ => Switch::None,
        }
    }

    /// Whether the victim still has its connections when others take over: it is frozen and cannot close them, or it
    /// holds them for when the database is back, and lets nothing out.
    pub(super) const fn keeps_connections(self) -> bool {
        matches!(self, Self::Pause | Self::Partition)
    }

    pub(super) fn script(self, plan: &Plan, revive: bool) -> VecDeque<Step> {
        let mut script = VecDeque::new();
        for (n, kill) in plan.kills.iter().enumerate() {
            script.push_back(Step::Moment {
                after: kill.after,
                delay: kill.delay,
                node: kill.node,
            });
            match self {
                Self::Kill => {
                    script.push_back(Step::Kill);
                    // Somebody has to be there to take over.
                    let fresh = plan.nodes == 1 || plan.kills.len() > 1;
                    let name = (!revive).then(|| node_name(plan.nodes + n));
                    if fresh && plan.nodes == 1 {
                        script.push_back(Step::Start(name));
                        script.push_back(Step::TakenOver);
                    } else if fresh {
                        script.push_back(Step::TakenOver);
                        script.push_back(Step::Start(name));
                        script.push_back(Step::Joined);
                        if revive {
                            script.push_back(Step::Sleep(WHOLE));
                        }
                    } else {
                        script.push_back(Step::TakenOver);
                    }
                }
                Self::Pause => {
                    script.extend([Step::Freeze, Step::TakenOver, Step::Thaw, Step::Refused])
                }
                Self::Naive => script.extend([
                    Step::Freeze,
                    Step::TakenOver,
                    Step::Thaw,
                    Step::Sleep(ZOMBIE),
                ]),
                Self::Drain => script.extend([Step::Drain, Step::TakenOver, Step::Drained]),
                Self::Partition => {
                    script.extend([
                        Step::CutOff,
                        Step::TakenOver,
                        Step::Reconnect,
                        Step::Refused,
                    ]);
                }
                Self::StoreStall => {
                    script.extend([Step::Stall(true), Step::Sleep(STALL), Step::Stall(false)]);
                }
                Self::Rolling => {
                    for old in 0..plan.nodes {
                        script.extend([
                            Step::Start(Some(node_name(plan.nodes + old))),
                            Step::Joined,
                            Step::Retire(old),
                            Step::TakenOver,
                            Step::Ended,
                        ]);
                    }
                }
            }
        }
        script
    }
}

impl Stage<'_> {
    /// Takes the steps of the script that can be taken now.
    pub(super) async fn go_on(&mut self) -> Result<(), Failure> {
        while let Some(step) = self.script.front().cloned() {
            let since = *self.step_since.get_or_insert_with(Instant::now);
            if !self.take(&step, since).await? {
                if since.elapsed() > PATIENCE && !matches!(step, Step::Moment { .. }) {
                    self.ledger.faults.push(format!("waited in vain: {step:?}"));
                    self.script.clear();
                }
                return Ok(());
            }
            self.script.pop_front();
            self.step_since = None;
        }
        Ok(())
    }

    /// Whether it is done.
    async fn take(&mut self, step: &Step, since: Instant) -> Result<bool, Failure> {
        match step {
            Step::Moment { after, delay, node } => {
                if self.next < *after {
                    // The time from then on counts.
                    self.step_since = None;
                    return Ok(false);
                }
                if since.elapsed() < *delay {
                    return Ok(false);
                }
                return Ok(self.choose(*node));
            }
            Step::Kill => {
                self.hit();
                self.nodes[self.victim].kill();
                self.say("killed", "killed (SIGKILL)");
            }
            Step::Freeze => {
                self.hit();
                self.freeze().await?;
                self.say("frozen", "frozen (SIGSTOP)");
            }
            Step::Thaw => {
                self.nodes[self.victim].freeze(false).await?;
                self.say_plainly(
                    "thawed",
                    "goes on (SIGCONT), and does not know what happened",
                );
            }
            Step::Drain => {
                self.hit();
                let name = self.nodes[self.victim].name.clone();
                let mut command = self.recipe.command();
                command
                    .args(["drain", &name])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let child = command
                    .spawn()
                    .map_err(|error| Failure::failed(format!("cannot drain: {error}")))?;
                self.command = Some(child);
                self.say("draining", "baton drain: hands its accounts over");
            }
            Step::CutOff => {
                self.hit();
                self.nodes[self.victim].cut_off(true)?;
                self.say("cut_off", "cut off from the database");
            }
            Step::Reconnect => {
                self.nodes[self.victim].cut_off(false)?;
                self.say_plainly("reconnected", "reaches the database again");
            }
            Step::Stall(stall) => {
                for node in self.nodes.iter().filter(|node| node.alive) {
                    node.cut_off(*stall)?;
                }
                if *stall {
                    self.mark();
                }
                let text = if *stall {
                    "the database answers nobody"
                } else {
                    "the database answers again"
                };
                self.beat("store", "stall", text.to_owned(), json!({ "stall": stall }));
            }
            Step::Start(name) => {
                let name = match name {
                    Some(name) => name.clone(),
                    None => self.nodes[self.victim].name.clone(),
                };
                self.start_node(&name).await?;
                self.beat(&name, "started", "started".to_owned(), Value::Null);
            }
            Step::Joined => {
                return Ok(self
                    .nodes
                    .last()
                    .is_some_and(|node| node.incarnation.is_some() || node.ended));
            }
            Step::Retire(node) => {
                self.victim = *node;
                self.hit();
                self.nodes[*node].terminate().await?;
                self.say("retired", "told to go (SIGTERM): hands its accounts over");
            }
            Step::TakenOver => return Ok(self.takeovers.last().is_none_or(Takeover::is_over)),
            Step::Refused => {
                let concerned = self.takeovers.last();
                let all = concerned.is_some_and(|takeover| {
                    takeover
                        .accounts
                        .keys()
                        .all(|account| self.refused.contains_key(account))
                });
                if !all {
                    return Ok(false);
                }
                let epochs = self.refused.values().next().copied().unwrap_or_default();
                let count = self.refused.len();
                let text = format!(
                    "says: {count} commits refused, epoch {} is over, {} is in force",
                    epochs.0, epochs.1
                );
                self.say_plainly("refused", &text);
            }
            Step::Ended => return Ok(self.nodes[self.victim].ended),
            Step::Drained => {
                let Some(command) = &mut self.command else {
                    return Ok(true);
                };
                match command.try_wait() {
                    Ok(None) => return Ok(false),
                    Ok(Some(status)) if status.success() => {}
                    other => self
                        .ledger
                        .faults
                        .push(format!("baton drain failed: {other:?}")),
                }
                self.command = None;
            }
            Step::Sleep(time) => return Ok(since.elapsed() >= *time),
        }
        Ok(true)
    }

    /// Freezes the victim where it holds no lock on a SQLite file: one that is stopped in the middle of a transaction
    /// stops everybody else's writes with it, until it goes on or ends. (PostgreSQL ends such a transaction by itself.)
    async fn freeze(&mut self) -> Result<(), Failure> {
        for _ in 0..50 {
            self.nodes[self.victim].freeze(true).await?;
            let Some(path) = self.recipe.store.strip_prefix("sqlite:") else {
                break;
            };
            let path = PathBuf::from(path);
            let is_free = tokio::task::spawn_blocking(move || {
                let database = rusqlite::Connection::open(path)?;
                database.busy_timeout(Duration::from_millis(400))?;
                database.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
            });
            if matches!(is_free.await, Ok(Ok(()))) {
                break;
            }
            self.nodes[self.victim].freeze(false).await?;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        Ok(())
    }

    /// Picks the victim: somebody who lives and has accounts. `false` if there is nobody at the moment.
    fn choose(&mut self, which: usize) -> bool {
        let alive: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| self.nodes[node].alive && !self.accounts_of(node).is_empty())
            .collect();
        match alive.get(which % alive.len().max(1)) {
            Some(victim) => {
                self.victim = *victim;
                true
            }
            None => false,
        }
    }

    /// From now on the accounts of the victim are watched.
    fn hit(&mut self) {
        self.mark();
        let accounts = self.accounts_of(self.victim);
        for &account in &accounts {
            self.online[account] = false;
        }
        self.takeovers.push(Takeover::new(self.victim, accounts));
    }

    fn mark(&mut self) {
        let now = self.server.with(|_, now| now.mono.0);
        self.first_hit.get_or_insert(now);
    }

    fn say(&mut self, what: &'static str, text: &str) {
        let in_flight = self.handed_over - self.ledger.received();
        let accounts = self.takeovers.last().map_or(0, |t| t.accounts.len());
        let text = format!("{text} with {accounts} accounts, {in_flight} messages in flight");
        let data = json!({ "in_flight": in_flight, "accounts": accounts });
        let who = self.nodes[self.victim].name.clone();
        self.beat(&who, what, text, data);
    }

    fn say_plainly(&mut self, what: &'static str, text: &str) {
        let who = self.nodes[self.victim].name.clone();
        self.beat(&who, what, text.to_owned(), json!({}));
    }
}

impl Beat {
    /// Whether something bad is done here.
    #[must_use]
    pub fn is_blow(&self) -> bool {
        matches!(
            self.what,
            "killed" | "frozen" | "cut_off" | "stall" | "draining" | "retired"
        )
    }
}
