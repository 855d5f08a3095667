//! A stage for `kill -9`: the simulated service in this process, host processes as real children on one SQLite file, a
//! consumer that keeps books of everything they say, and a judge.
//!
//! `baton demo` plays one plan on it and tells the story; the tests play others and look at the verdict only.

mod judge;
mod ledger;
mod node;
pub mod plan;

pub use judge::Verdict;
pub use plan::{Plan, Size};

use crate::setup::Failure;
use baton_store_sqlite::SqliteStore;
use baton_tokio::End;
use ledger::Ledger;
use node::{Node, Recipe, Said};
use serde_json::{Value, json};
use sim::{
    serve::{ServeOptions, SimServer},
    service::DeviceId,
};
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// How a play is staged.
#[derive(Clone, Debug)]
pub struct Staging {
    /// The `baton` binary.
    pub program: PathBuf,
    /// Where database and logs go; must exist.
    pub directory: PathBuf,
    /// One-time pre-keys that each account uploads.
    pub pre_keys: u32,
    /// Whether the processes log what they do.
    pub verbose: bool,
}

/// One thing worth telling.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Since the start.
    pub at: Duration,
    /// Who: `service`, `traffic`, the name of a node.
    pub who: String,
    /// A word for programs.
    pub what: &'static str,
    /// A sentence for people.
    pub text: String,
    /// Numbers for programs.
    pub data: Value,
}

/// How long linking all accounts may take.
const LINKING: Duration = Duration::from_secs(60);

/// How long the end of the traffic may take after the last message was handed over.
const DRAINING: Duration = Duration::from_secs(30);

/// Pause before a command that was refused for the moment is given again.
const AGAIN: Duration = Duration::from_millis(50);

/// Plays `plan`. An error means that the play could not be given; what went wrong in it is in the verdict.
pub async fn play(
    plan: &Plan,
    staging: &Staging,
    tell: &mut (dyn FnMut(Beat) + Send),
) -> Result<Verdict, Failure> {
    let started = Instant::now();
    let server = SimServer::start(ServeOptions::default())
        .await
        .map_err(|error| {
            Failure::setup(format!("the simulated service does not start: {error}"))
        })?;
    let root = server
        .root_public_key
        .as_bytes()
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let recipe = Recipe {
        program: staging.program.clone(),
        directory: staging.directory.clone(),
        store: staging.directory.join("baton.db"),
        service_url: server.ws_url.clone(),
        service_root: root,
        pre_keys: staging.pre_keys,
        verbose: staging.verbose,
    };
    let (said, hearing) = mpsc::unbounded_channel();
    let mut stage = Stage {
        plan,
        recipe,
        server,
        started,
        tell,
        nodes: Vec::new(),
        owners: vec![0; plan.accounts.len()],
        online: vec![false; plan.accounts.len()],
        linked: vec![None; plan.accounts.len()],
        ledger: Ledger::new(plan),
        pairs: BTreeMap::new(),
        again: Vec::new(),
        handed_over: 0,
        takeovers: Vec::new(),
        takeover: Vec::new(),
        said,
        hearing,
    };
    stage.run().await
}

struct Stage<'a> {
    plan: &'a Plan,
    recipe: Recipe,
    server: SimServer,
    started: Instant,
    tell: &'a mut (dyn FnMut(Beat) + Send),
    nodes: Vec<Node>,
    /// By account: the node that serves it.
    owners: Vec<usize>,
    online: Vec<bool>,
    linked: Vec<Option<DeviceAddress>>,
    ledger: Ledger,
    /// Messages due, by (sender, recipient). Only the first of each is handed over, until it is accepted: a process
    /// that dies leaves no doubt about the order.
    pairs: BTreeMap<(usize, usize), Pair>,
    /// Messages to be handed over again, and when.
    again: Vec<(Instant, usize)>,
    handed_over: usize,
    takeovers: Vec<Duration>,
    /// Accounts of killed nodes that are not online again: since when, which.
    takeover: Vec<(Instant, usize, Vec<usize>)>,
    said: mpsc::UnboundedSender<Said>,
    hearing: mpsc::UnboundedReceiver<Said>,
}

#[derive(Clone)]
struct DeviceAddress {
    device: DeviceId,
    lid: String,
}

#[derive(Default)]
struct Pair {
    due: VecDeque<usize>,
    waiting: Option<usize>,
}

impl Stage<'_> {
    async fn run(&mut self) -> Result<Verdict, Failure> {
        let (accounts, nodes) = (self.plan.accounts.len(), self.plan.nodes);
        let place = self
            .server
            .ws_url
            .trim_start_matches("ws://")
            .trim_end_matches("/ws/chat")
            .to_owned();
        let text = format!("simulated WhatsApp on {place}, {accounts} accounts");
        self.beat(
            "service",
            "started",
            text,
            json!({ "address": place, "accounts": accounts }),
        );
        let text = format!(
            "{} messages, plan {}",
            self.plan.messages.len(),
            self.plan.digest()
        );
        let data = json!({ "messages": self.plan.messages.len(), "digest": self.plan.digest() });
        self.beat("plan", "drawn", text, data);

        for node in 0..nodes {
            let mine = (0..accounts)
                .filter(|account| account % nodes == node)
                .collect();
            self.start_node(mine)?;
        }
        self.link().await?;
        let interrupted = self.traffic().await?;
        if interrupted {
            let text = format!(
                "{} of {} messages came through",
                self.ledger.received(),
                self.plan.messages.len()
            );
            self.beat("traffic", "stuck", text, json!({}));
        }
        self.finish().await
    }

    fn beat(&mut self, who: &str, what: &'static str, text: String, data: Value) {
        (self.tell)(Beat {
            at: self.started.elapsed(),
            who: who.to_owned(),
            what,
            text,
            data,
        });
    }

    fn start_node(&mut self, accounts: Vec<usize>) -> Result<usize, Failure> {
        let number = self.nodes.len();
        let names: Vec<&str> = accounts
            .iter()
            .filter_map(|n| self.plan.accounts.get(*n))
            .map(|account| account.name.as_str())
            .collect();
        let node = Node::start(
            &self.recipe,
            number,
            accounts.clone(),
            &names,
            self.said.clone(),
        )?;
        for account in accounts {
            self.owners[account] = number;
            self.online[account] = false;
        }
        self.nodes.push(node);
        Ok(number)
    }

    async fn tell_owner(&mut self, account: usize, order: &Value) {
        let owner = self.owners[account];
        if let Some(node) = self.nodes.get_mut(owner) {
            node.tell(order).await;
        }
    }

    // ---- first act: linking -----------------------------------------------------------------------------------

    async fn link(&mut self) -> Result<(), Failure> {
        for account in 0..self.plan.accounts.len() {
            let order = json!({ "link": { "account": self.plan.accounts[account].name } });
            self.tell_owner(account, &order).await;
        }
        let deadline = Instant::now() + LINKING;
        while !(self.online.iter().all(|online| *online) && self.linked.iter().all(Option::is_some))
        {
            match tokio::time::timeout_at(deadline, self.hearing.recv()).await {
                Ok(Some((node, Some(said)))) => self.heard(node, &said).await?,
                Ok(Some((node, None))) => {
                    return Err(Failure::setup(format!(
                        "{} ended while linking",
                        self.nodes[node].name
                    )));
                }
                _ => return Err(Failure::setup("the accounts could not be linked in time")),
            }
        }
        for node in 0..self.nodes.len() {
            let (name, count) = (
                self.nodes[node].name.clone(),
                self.nodes[node].accounts.len(),
            );
            let text = format!("owns {count} accounts, all linked and online");
            self.beat(&name, "linked", text, json!({ "accounts": count }));
        }
        Ok(())
    }

    // ---- second act: traffic and trouble ----------------------------------------------------------------------

    /// Returns `true` if it came to a standstill.
    async fn traffic(&mut self) -> Result<bool, Failure> {
        let begin = Instant::now();
        let total = self.plan.messages.len();
        let text = format!(
            "{total} messages between {} accounts",
            self.plan.accounts.len()
        );
        self.beat("traffic", "begins", text, json!({ "messages": total }));
        let mut next = 0;
        let mut kills: VecDeque<plan::Kill> = self.plan.kills.iter().copied().collect();
        let mut kill_at = None;
        let mut drained_by = None;
        loop {
            // Everything that is due.
            let now = Instant::now();
            while let Some(message) = self
                .plan
                .messages
                .get(next)
                .filter(|message| begin + message.at <= now)
            {
                if kill_at.is_none() && kills.front().is_some_and(|kill| kill.after <= next) {
                    kill_at = kills.front().map(|kill| now + kill.delay);
                }
                let pair = (message.from, message.to);
                self.pairs.entry(pair).or_default().due.push_back(next);
                next += 1;
                self.hand_over(pair).await;
            }
            while let Some(at) = self.again.iter().position(|(at, _)| *at <= now) {
                let (_, message) = self.again.swap_remove(at);
                self.send(message).await;
            }
            if kill_at.is_some_and(|at| at <= now) {
                kill_at = None;
                if let Some(kill) = kills.pop_front() {
                    self.kill(kill.node);
                }
            }
            if next == total && kills.is_empty() && self.takeover.is_empty() {
                if self.ledger.all_confirmed() {
                    return Ok(false);
                }
                let by = *drained_by.get_or_insert(now + DRAINING);
                if by <= now {
                    return Ok(true);
                }
            }

            let due = self
                .plan
                .messages
                .get(next)
                .map(|message| begin + message.at);
            let again = self.again.iter().map(|(at, _)| *at).min();
            let idle = now + Duration::from_secs(1);
            let wake = [due, again, kill_at, drained_by]
                .into_iter()
                .flatten()
                .fold(idle, Instant::min);
            tokio::select! { biased;
                // First, for what is heard in the middle of traffic does not end.
                () = tokio::time::sleep_until(kill_at.unwrap_or(now)), if kill_at.is_some() => {}
                said = self.hearing.recv() => match said {
                    Some((node, Some(said))) => self.heard(node, &said).await?,
                    Some((node, None)) => self.died(node).await?,
                    None => return Ok(true),
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Hands the next message of a pair over, if the one before is accepted.
    async fn hand_over(&mut self, pair: (usize, usize)) {
        let Some(queue) = self
            .pairs
            .get_mut(&pair)
            .filter(|queue| queue.waiting.is_none())
        else {
            return;
        };
        let Some(message) = queue.due.pop_front() else {
            return;
        };
        queue.waiting = Some(message);
        self.handed_over += 1;
        self.send(message).await;
    }

    async fn send(&mut self, n: usize) {
        let message = &self.plan.messages[n];
        let to = match &self.linked[message.to] {
            Some(linked) if message.by_lid => linked.lid.clone(),
            _ => self.plan.accounts[message.to].phone.clone(),
        };
        let account = &self.plan.accounts[message.from].name;
        let order = json!({ "send": { "account": account, "id": message.id, "to": to, "text": message.text } });
        self.tell_owner(message.from, &order).await;
    }

    fn kill(&mut self, which: usize) {
        let alive: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].alive)
            .collect();
        let Some(victim) = alive.get(which % alive.len().max(1)).copied() else {
            return;
        };
        let node = &mut self.nodes[victim];
        node.kill();
        let (name, accounts) = (node.name.clone(), node.accounts.clone());
        self.takeover.push((Instant::now(), victim, accounts));
        let in_flight = self.handed_over - self.ledger.received();
        let text = format!("killed (SIGKILL) while {in_flight} messages were in flight");
        self.beat(&name, "killed", text, json!({ "in_flight": in_flight }));
    }

    /// A process has said its last word: a new one takes its accounts.
    async fn died(&mut self, node: usize) -> Result<(), Failure> {
        if self.nodes[node].alive {
            self.nodes[node].alive = false;
            let name = self.nodes[node].name.clone();
            self.ledger.faults.push(format!("{name} ended by itself"));
        }
        let accounts = std::mem::take(&mut self.nodes[node].accounts);
        let count = accounts.len();
        let new = self.start_node(accounts.clone())?;
        let name = self.nodes[new].name.clone();
        let text = format!("started on the same store, takes {count} accounts");
        self.beat(&name, "started", text, json!({ "accounts": count }));
        // What the old one may or may not have accepted is handed over again, under the same ids.
        let doubtful: Vec<usize> = self
            .pairs
            .iter()
            .filter(|((from, _), _)| accounts.contains(from))
            .filter_map(|(_, pair)| pair.waiting)
            .collect();
        self.again
            .retain(|(_, message)| !doubtful.contains(message));
        for message in doubtful {
            self.send(message).await;
        }
        Ok(())
    }

    // ---- what processes say -----------------------------------------------------------------------------------

    async fn heard(&mut self, node: usize, said: &Value) -> Result<(), Failure> {
        let name = said["account"].as_str().unwrap_or_default();
        let Some(account) = self
            .plan
            .accounts
            .iter()
            .position(|account| account.name == name)
        else {
            if said["event"] == "error" {
                return Err(Failure::failed(format!(
                    "{}: {}",
                    self.nodes[node].name, said["error"]
                )));
            }
            return Ok(());
        };
        if let Some(seq) = said["seq"].as_u64().filter(|_| said["event"].is_string()) {
            if let Some(seq) = self.ledger.event(self.plan, account, said)
                && self.owners[account] == node
            {
                self.tell_owner(account, &json!({ "ack": { "account": name, "seq": seq } }))
                    .await;
            }
            if said["event"] == "linked" {
                self.is_linked(account, said);
            }
            debug_assert!(seq > 0);
            return Ok(());
        }
        match (said["event"].as_str(), said["reply"].as_str()) {
            (Some("qr"), _) => {
                let phone = self.plan.accounts[account].phone.clone();
                let qr = said["qr"].as_str().unwrap_or_default();
                let scanned = self
                    .server
                    .with(|service, now| service.scan(qr, Some(&phone), now));
                if let Err(error) = scanned {
                    return Err(Failure::setup(format!(
                        "the phone cannot scan the code of {name}: {error}"
                    )));
                }
            }
            (Some("connection"), _) if self.owners[account] == node => {
                let online = said["state"] == "online";
                self.online[account] = online;
                if online {
                    self.taken_over(account, node);
                }
            }
            (Some("ended"), _) if said["why"] != End::Shutdown.to_string() => {
                self.ledger.faults.push(format!(
                    "{name} ended at {}: {}",
                    self.nodes[node].name, said["why"]
                ));
            }
            (_, Some("send")) => self.replied(said).await,
            (_, Some(reply)) if said["ok"] == false && said["retry"] != true => {
                self.ledger
                    .faults
                    .push(format!("{name}: {reply} failed: {}", said["error"]));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_linked(&mut self, account: usize, said: &Value) {
        let (jid, lid) = (
            said["jid"].as_str().unwrap_or_default(),
            said["lid"].as_str().unwrap_or_default(),
        );
        self.ledger.known_as(account, jid);
        self.ledger.known_as(account, lid);
        let Ok(jid) = jid.parse::<baton_core::jid::Jid>() else {
            return;
        };
        let lid = lid
            .parse::<baton_core::jid::Jid>()
            .map_or_else(|_| String::new(), |lid| lid.bare().to_string());
        self.linked[account] = Some(DeviceAddress {
            device: DeviceId::new(jid.user(), jid.device()),
            lid,
        });
    }

    async fn replied(&mut self, said: &Value) {
        let id = said["id"].as_str().unwrap_or_default();
        let Some(n) = self
            .plan
            .messages
            .iter()
            .position(|message| message.id == id)
        else {
            return;
        };
        let pair = (self.plan.messages[n].from, self.plan.messages[n].to);
        let Some(queue) = self
            .pairs
            .get_mut(&pair)
            .filter(|pair| pair.waiting == Some(n))
        else {
            return;
        };
        if said["ok"] == true {
            queue.waiting = None;
            self.hand_over(pair).await;
        } else if said["retry"] == true {
            self.again.push((Instant::now() + AGAIN, n));
        } else {
            queue.waiting = None;
            self.ledger
                .faults
                .push(format!("message {id} was refused: {}", said["error"]));
        }
    }

    fn taken_over(&mut self, account: usize, node: usize) {
        let mut done = Vec::new();
        self.takeover.retain_mut(|(since, victim, missing)| {
            missing.retain(|other| *other != account);
            if missing.is_empty() {
                done.push((since.elapsed(), *victim));
            }
            !missing.is_empty()
        });
        let name = self.nodes[node].name.clone();
        for (took, victim) in done {
            let count = self.nodes[node].accounts.len();
            let text = format!(
                "{count}/{count} accounts of {} online, {:.2} s after the kill",
                self.nodes[victim].name,
                took.as_secs_f64()
            );
            self.takeovers.push(took);
            self.beat(
                &name,
                "took_over",
                text,
                json!({ "accounts": count, "seconds": took.as_secs_f64() }),
            );
        }
    }

    // ---- last act ---------------------------------------------------------------------------------------------

    async fn finish(&mut self) -> Result<Verdict, Failure> {
        let text = format!(
            "{} messages received, stopping the processes",
            self.ledger.received()
        );
        self.beat(
            "traffic",
            "ends",
            text,
            json!({ "received": self.ledger.received() }),
        );
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in nodes.iter_mut().filter(|node| node.alive) {
            if !node.stop().await {
                self.ledger
                    .faults
                    .push(format!("{} did not end properly", node.name));
            }
        }
        self.nodes = nodes;
        // Their last words: events of the time between the last look and the end.
        while let Ok((node, said)) = self.hearing.try_recv() {
            if let Some(said) = said {
                self.heard(node, &said).await?;
            }
        }
        let devices: Option<Vec<DeviceId>> = self
            .linked
            .iter()
            .map(|linked| linked.as_ref().map(|linked| linked.device.clone()))
            .collect();
        let devices = devices.ok_or_else(|| Failure::failed("an account is not linked"))?;
        let mut verdict = {
            let service = self.server.service();
            // A panic of the service under the lock would have ended its task; its books are still evidence.
            let service = service
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            judge::compare(self.plan, &self.ledger, service.books(), &devices)
        };
        let store = open(&self.recipe.store)?;
        verdict.left_in_store = judge::left_in_store(&store).await?;
        verdict.takeovers = std::mem::take(&mut self.takeovers);
        Ok(verdict)
    }
}

fn open(path: &Path) -> Result<SqliteStore, Failure> {
    SqliteStore::open(path, baton_store_sqlite::Options::default())
        .map_err(|error| Failure::failed(format!("cannot open {}: {error}", path.display())))
}
