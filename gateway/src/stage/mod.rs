//! A stage for disasters: the simulated service in this process, host processes as real children on one store, a
//! consumer that keeps books of everything they write, and a judge.
//!
//! `baton demo` plays one plan on it and tells the story; the tests play others and look at the verdict only.

mod disaster;
mod judge;
mod ledger;
mod linking;
mod node;
pub mod plan;
mod relay;
mod takeover;

pub use disaster::Disaster;
pub use judge::Verdict;
pub use plan::{Plan, Size};
pub use takeover::Split;

use crate::{
    cli::{Common, KeyFlags},
    setup::{self, Failure, store_failed},
    store::{self, AnyStore, Create},
};
use baton_core::{
    flow::{Content, SendRequest, mailbox_request},
    jid::Jid,
    state::{BusinessId, Store as _, UnixMillis},
};
use disaster::Step;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ledger::Ledger;
use linking::Linked;
use node::{Node, Recipe, node_name, word};
use serde_json::{Value, json};
use sim::serve::{ServeOptions, SimServer};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use takeover::Takeover;
use tokio::{process::Child, sync::mpsc, time::Instant};

/// How a play is staged.
#[derive(Clone, Debug)]
pub struct Staging {
    /// The `baton` binary.
    pub program: PathBuf,
    /// Where database, key and logs go; must exist.
    pub directory: PathBuf,
    /// Another store than a SQLite file in that directory. It must be empty.
    pub store: Option<String>,
    /// One-time pre-keys that each account uploads.
    pub pre_keys: u32,
    /// What happens.
    pub disaster: Disaster,
    /// Whether hosts notice the end of others before their lease runs out.
    pub presence: bool,
    /// Whether a process that was killed comes back, under its name.
    pub revive: bool,
    /// Whether the processes log what they do.
    pub verbose: bool,
}

impl Staging {
    /// The usual: one of two hosts is killed, on SQLite.
    #[must_use]
    pub const fn new(program: PathBuf, directory: PathBuf) -> Self {
        Self {
            program,
            directory,
            store: None,
            pre_keys: 100,
            disaster: Disaster::Kill,
            presence: true,
            revive: false,
            verbose: false,
        }
    }
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

/// How long it may take until all accounts are online at the hosts.
const STARTING: Duration = Duration::from_secs(60);
/// How long until every host has seen every other: a renewal of its lease.
const ACQUAINTED: Duration = Duration::from_millis(1_200);
/// How long the end of the traffic may take after the last message was handed over.
const DRAINING: Duration = Duration::from_secs(60);
/// Between the end of the traffic and that of the hosts at most: acknowledgements are on their way.
const SETTLE: Duration = Duration::from_secs(20);
/// How often the story goes on and the roster is looked at, while there is something to wait for.
const TICK: Duration = Duration::from_millis(20);
/// Pause before a request that the store did not take is left there again.
const AGAIN: Duration = Duration::from_millis(100);

/// What a process said; `None` when it has nothing more to say.
type Said = (usize, Option<Value>);
/// Messages by the index of sender and recipient.
type PairOf = (usize, usize);

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
    let database = staging.directory.join("baton.db");
    let key_file = staging.directory.join("demo.key");
    baton_tokio::keys::generate()
        .and_then(|key| baton_tokio::keys::write_new(&key_file, &key))
        .map_err(|error| Failure::setup(error.to_string()))?;
    let recipe = Recipe {
        program: staging.program.clone(),
        directory: staging.directory.clone(),
        store: (staging.store.clone()).unwrap_or_else(|| format!("sqlite:{}", database.display())),
        key_file: key_file.clone(),
        service_url: server.ws_url.clone(),
        service_root: root.clone(),
        verbose: staging.verbose,
        presence: staging.presence,
        naive: staging.disaster == Disaster::Naive,
        switch: staging.disaster.switch(),
    };
    let common = Common {
        store: recipe.store.clone(),
        key: KeyFlags {
            key_file: Some(key_file),
            ..KeyFlags::default()
        },
        account: String::new(),
        service_url: Some(server.ws_url.clone()),
        service_root: Some(root),
        json: false,
        verbose: false,
        without_presence: false,
    };
    let store = store::open(&common, Create::Yes).await?;
    let there = store.accounts(&BusinessId::default()).await;
    if !there.map_err(store_failed)?.is_empty() {
        return Err(Failure::setup(
            "there are accounts in that database; a demonstration takes an empty one",
        ));
    }
    let (said, hearing) = mpsc::unbounded_channel();
    let mut stage = Stage {
        plan,
        staging,
        recipe,
        common,
        store,
        server,
        started,
        tell,
        nodes: Vec::new(),
        owners: vec![None; plan.accounts.len()],
        online: vec![false; plan.accounts.len()],
        linked: Vec::new(),
        ledger: Ledger::new(plan),
        pairs: BTreeMap::new(),
        leaving: FuturesUnordered::new(),
        order: 0,
        handed_over: 0,
        next: 0,
        script: VecDeque::new(),
        victim: 0,
        step_since: None,
        command: None,
        takeovers: Vec::new(),
        first_hit: None,
        refused: BTreeMap::new(),
        said,
        hearing,
    };
    stage.run().await
}

struct Stage<'a> {
    plan: &'a Plan,
    staging: &'a Staging,
    recipe: Recipe,
    common: Common,
    store: AnyStore,
    server: SimServer,
    started: Instant,
    tell: &'a mut (dyn FnMut(Beat) + Send),
    nodes: Vec<Node>,
    /// By account: the node that serves it.
    owners: Vec<Option<usize>>,
    online: Vec<bool>,
    linked: Vec<Linked>,
    ledger: Ledger,
    /// Messages due, by (sender, recipient). Only the first of each is handed over at a time.
    pairs: BTreeMap<PairOf, Pair>,
    /// Requests on their way into the store: whose turn is over, and whether it was taken.
    leaving: FuturesUnordered<BoxFuture<'static, PairOf>>,
    order: u64,
    handed_over: usize,
    /// The next message of the plan.
    next: usize,
    script: VecDeque<Step>,
    /// The node that was hit last.
    victim: usize,
    /// Since when the first step of the script is waited for.
    step_since: Option<Instant>,
    /// `baton drain`, while it runs.
    command: Option<Child>,
    takeovers: Vec<Takeover>,
    /// When trouble began, by the service's clock.
    first_hit: Option<u64>,
    /// By account: epochs of a term that was refused, and of the one in force.
    refused: BTreeMap<usize, (u64, u64)>,
    said: mpsc::UnboundedSender<Said>,
    hearing: mpsc::UnboundedReceiver<Said>,
}

#[derive(Default)]
struct Pair {
    due: VecDeque<usize>,
    waiting: bool,
}

impl Stage<'_> {
    async fn run(&mut self) -> Result<Verdict, Failure> {
        let accounts = self.plan.accounts.len();
        let place = self
            .server
            .ws_url
            .trim_start_matches("ws://")
            .trim_end_matches("/ws/chat")
            .to_owned();
        let text = format!("simulated WhatsApp on {place}, {accounts} accounts linked");
        let mut config = setup::config(&self.common)?;
        config.pre_keys.batch = self.staging.pre_keys;
        self.linked = linking::link(self.plan, &self.store, &self.server, &config).await?;
        for (n, linked) in self.linked.iter().enumerate() {
            self.ledger.known_as(n, &linked.jid.to_string());
            if let Some(lid) = &linked.lid {
                self.ledger.known_as(n, &lid.to_string());
            }
        }
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

        for number in 0..self.plan.nodes {
            self.start_node(&node_name(number)).await?;
        }
        self.wait_until_online().await?;
        let stuck = self.traffic().await?;
        if stuck {
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

    async fn start_node(&mut self, name: &str) -> Result<usize, Failure> {
        let number = self.nodes.len();
        let node = Node::start(&self.recipe, number, name, self.said.clone()).await?;
        self.nodes.push(node);
        Ok(number)
    }

    /// Accounts that this node serves.
    fn accounts_of(&self, node: usize) -> Vec<usize> {
        let owned = self.owners.iter().enumerate();
        owned
            .filter(|(_, owner)| **owner == Some(node))
            .map(|(n, _)| n)
            .collect()
    }

    // ---- first act: everybody comes online ----------------------------------------------------------------------

    async fn wait_until_online(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + STARTING;
        // The first host would take everything before it knows of the second. From the roster on they share.
        let mut acquainted = None;
        loop {
            let all = self.nodes.iter().all(|node| node.incarnation.is_some());
            if all && acquainted.is_none() {
                acquainted = Some(Instant::now() + ACQUAINTED);
            }
            let by = acquainted.unwrap_or(deadline);
            match tokio::time::timeout_at(by, self.hearing.recv()).await {
                Ok(Some((node, Some(said)))) => self.heard(node, &said),
                Ok(Some((node, None))) => {
                    let name = &self.nodes[node].name;
                    return Err(Failure::setup(format!("{name} ended at the start")));
                }
                Err(_) if all => break,
                _ => return Err(Failure::setup("the hosts did not come up in time")),
            }
        }
        for linked in &self.linked {
            setup::wish_to_run(&self.store, &linked.id).await?;
        }
        while !self.online.iter().all(|online| *online) {
            match tokio::time::timeout_at(deadline, self.hearing.recv()).await {
                Ok(Some((node, Some(said)))) => self.heard(node, &said),
                Ok(Some((node, None))) => {
                    return Err(Failure::setup(format!(
                        "{} ended at the start",
                        self.nodes[node].name
                    )));
                }
                _ => {
                    return Err(Failure::setup(
                        "the accounts did not come online at the hosts in time",
                    ));
                }
            }
        }
        for node in 0..self.nodes.len() {
            let (name, count) = (self.nodes[node].name.clone(), self.accounts_of(node).len());
            let text = format!("owns {count} accounts, all online");
            self.beat(&name, "online", text, json!({ "accounts": count }));
        }
        Ok(())
    }

    // ---- second act: traffic and trouble ------------------------------------------------------------------------

    /// Returns `true` if it came to a standstill.
    async fn traffic(&mut self) -> Result<bool, Failure> {
        let begin = Instant::now();
        let total = self.plan.messages.len();
        let text = format!(
            "{total} messages between {} accounts",
            self.plan.accounts.len()
        );
        self.beat("traffic", "begins", text, json!({ "messages": total }));
        self.script = self.staging.disaster.script(self.plan, self.staging.revive);
        let mut over_by = None;
        loop {
            let now = Instant::now();
            while let Some(message) = self
                .plan
                .messages
                .get(self.next)
                .filter(|message| begin + message.at <= now)
            {
                let pair = (message.from, message.to);
                self.pairs.entry(pair).or_default().due.push_back(self.next);
                self.next += 1;
                self.hand_over(pair);
            }
            self.look_at_roster().await;
            self.go_on().await?;
            let quiet = self.script.is_empty() && self.takeovers.iter().all(Takeover::is_over);
            if self.next == total && quiet {
                // Without fences there is no end to wait for.
                let enough = self.staging.disaster == Disaster::Naive;
                if self.ledger.all_confirmed() || enough {
                    return Ok(false);
                }
                if *over_by.get_or_insert(now + DRAINING) <= now {
                    return Ok(true);
                }
            } else if self.next == total && begin.elapsed() > DRAINING * 4 + self.plan.length() {
                return Ok(true);
            }

            let due = self
                .plan
                .messages
                .get(self.next)
                .map(|message| begin + message.at);
            let tick = now
                + if self.script.is_empty() && quiet {
                    TICK * 10
                } else {
                    TICK
                };
            let wake = due.map_or(tick, |due| due.min(tick));
            tokio::select! { biased;
                () = tokio::time::sleep_until(wake) => {}
                Some(pair) = self.leaving.next() => {
                    if let Some(queue) = self.pairs.get_mut(&pair) {
                        queue.waiting = false;
                    }
                    self.hand_over(pair);
                }
                said = self.hearing.recv() => match said {
                    Some((node, Some(said))) => self.heard(node, &said),
                    Some((node, None)) => self.ended(node),
                    None => return Ok(true),
                },
            }
        }
    }

    /// Leaves the next message of a pair in the store, for whoever owns the sender, if the one before is there.
    fn hand_over(&mut self, pair: PairOf) {
        let Some(queue) = self.pairs.get_mut(&pair).filter(|queue| !queue.waiting) else {
            return;
        };
        let Some(n) = queue.due.pop_front() else {
            return;
        };
        let message = &self.plan.messages[n];
        let recipient = &self.linked[message.to];
        let to = match &recipient.lid {
            Some(lid) if message.by_lid => Some(lid.clone()),
            _ => Jid::pn(&self.plan.accounts[message.to].phone).ok(),
        };
        let Some(to) = to else {
            self.ledger.faults.push("a phone has no number".to_owned());
            return;
        };
        queue.waiting = true;
        self.handed_over += 1;
        self.order += 1;
        let request = SendRequest {
            id: Some(message.id.as_str().into()),
            to,
            content: Content::Text(message.text.clone()),
        };
        let row = mailbox_request(&request, self.order);
        let (store, account) = (self.store.clone(), self.linked[message.from].id.clone());
        let id = message.id.clone();
        let leave = async move {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let at = UnixMillis(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
            // Under one id, however often: whether the last try took effect does not matter.
            while store
                .enqueue(&account, id.as_str().into(), row.clone(), at)
                .await
                .is_err()
            {
                tokio::time::sleep(AGAIN).await;
            }
            pair
        };
        self.leaving
            .push(tokio::spawn(leave).map(move |_| pair).boxed());
    }

    /// Notices when the roster says that a host is gone.
    async fn look_at_roster(&mut self) {
        let open = self
            .takeovers
            .iter_mut()
            .filter(|t| t.gone.is_none() && !t.is_over());
        let open: Vec<&mut Takeover> = open.collect();
        if open.is_empty() {
            return;
        }
        let Ok(hosts) = self.store.hosts().await else {
            return;
        };
        for takeover in open {
            let life = &self.nodes[takeover.victim].incarnation;
            let is_live = hosts.iter().any(|host| {
                host.state.is_live() && life.as_deref() == Some(&format!("{:016x}", host.who.0))
            });
            if !is_live {
                takeover.gone = Some(Instant::now());
            }
        }
    }

    fn ended(&mut self, node: usize) {
        self.nodes[node].ended = true;
        if self.nodes[node].alive {
            self.nodes[node].alive = false;
            let name = self.nodes[node].name.clone();
            self.ledger.faults.push(format!("{name} ended by itself"));
        }
    }

    // ---- what processes say -------------------------------------------------------------------------------------

    fn heard(&mut self, node: usize, said: &Value) {
        let name = word(said, "account");
        let event = word(said, "event");
        let Some(account) = self
            .plan
            .accounts
            .iter()
            .position(|account| account.name == name)
        else {
            match event {
                "joined" => {
                    self.nodes[node].incarnation = Some(word(said, "incarnation").to_owned());
                }
                "lost" => {
                    let name = self.nodes[node].name.clone();
                    let text = "knows now that it was declared dead".to_owned();
                    self.beat(&name, "declared_dead", text, json!({}));
                }
                _ => {}
            }
            return;
        };
        if said["seq"].is_u64() {
            self.ledger.event(self.plan, account, said);
            if event == "message" {
                self.step_of(account, node, |steps, now| {
                    if steps.connected.is_some() && steps.message.is_none() {
                        steps.message = Some(now);
                    }
                });
            }
            return;
        }
        match event {
            "owner" => {
                self.owners[account] = Some(node);
                self.online[account] = false;
                self.step_of(account, node, |steps, now| {
                    steps.claimed.get_or_insert(now);
                });
            }
            "connection" if self.owners[account] == Some(node) => {
                let online = said["state"] == "online";
                self.online[account] = online;
                if online {
                    self.step_of(account, node, |steps, now| {
                        if steps.claimed.is_some() {
                            steps.connected.get_or_insert(now);
                        }
                    });
                    self.taken_over();
                }
            }
            "fenced" => {
                let epochs = ["epoch", "by"].map(|name| said[name].as_u64().unwrap_or_default());
                self.refused.insert(account, (epochs[0], epochs[1]));
            }
            "idle" => self.ledger.faults.push(format!(
                "{name} does not run at {}: {}",
                self.nodes[node].name, said["why"]
            )),
            _ => {}
        }
    }

    /// Notes a step of the account in the takeovers that wait for one, unless it comes from the host that was hit.
    fn step_of(
        &mut self,
        account: usize,
        node: usize,
        note: impl Fn(&mut takeover::Steps, Instant),
    ) {
        let now = Instant::now();
        if let Some(takeover) = self.takeovers.last_mut()
            && takeover.victim != node
            && let Some(steps) = takeover.accounts.get_mut(&account)
        {
            note(steps, now);
        }
    }

    fn taken_over(&mut self) {
        let mut told = Vec::new();
        for takeover in self.takeovers.iter_mut().filter(|t| !t.told && t.is_over()) {
            takeover.told = true;
            told.push((
                takeover.victim,
                takeover.accounts.len(),
                takeover.took().as_secs_f64(),
            ));
        }
        for (victim, count, seconds) in told {
            let takers: BTreeSet<&str> = self
                .owners
                .iter()
                .filter_map(|owner| self.nodes.get((*owner)?))
                .map(|node| node.name.as_str())
                .filter(|name| *name != self.nodes[victim].name)
                .collect();
            let who = takers.into_iter().next().unwrap_or_default().to_owned();
            let text = format!(
                "{count}/{count} accounts of {} online, {seconds:.2} s after it was hit",
                self.nodes[victim].name
            );
            self.beat(
                &who,
                "took_over",
                text,
                json!({ "accounts": count, "seconds": (seconds * 1e3).round() / 1e3 }),
            );
        }
    }

    // ---- last act -----------------------------------------------------------------------------------------------

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
        let naive = self.staging.disaster == Disaster::Naive;
        // What was written last is still to be acknowledged; hosts that are told to go would leave it to the next.
        let by = Instant::now() + SETTLE;
        while !naive && Instant::now() < by && judge::left_in_store(&self.store).await? > 0 {
            tokio::time::sleep(AGAIN).await;
        }
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in nodes.iter_mut().filter(|node| node.alive) {
            if naive {
                node.kill();
            } else {
                node.terminate().await?;
                if !node.ends_well().await {
                    let name = &node.name;
                    self.ledger
                        .faults
                        .push(format!("{name} did not end properly"));
                }
            }
        }
        self.nodes = nodes;
        // Their last words.
        let by = Instant::now() + Duration::from_secs(5);
        while !self.nodes.iter().all(|node| node.ended)
            && let Ok(Some((node, said))) = tokio::time::timeout_at(by, self.hearing.recv()).await
        {
            match said {
                Some(said) => self.heard(node, &said),
                None => self.nodes[node].ended = true,
            }
        }
        if self.staging.disaster.keeps_connections() && self.refused.is_empty() {
            self.ledger
                .faults
                .push("the host that came back did not learn that it is too late".to_owned());
        }
        let devices: Vec<_> = self.linked.iter().map(|l| l.device.clone()).collect();
        let mut verdict = {
            let service = self.server.service();
            // A panic of the service under the lock would have ended its task; its books are still evidence.
            let service = service
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let since = self.first_hit.unwrap_or(u64::MAX);
            let mut verdict = judge::compare(self.plan, &self.ledger, service.books(), &devices);
            verdict.silences = judge::silences(service.books(), &devices, since);
            verdict
        };
        if self.staging.disaster.keeps_connections() {
            // The service closes them when the next owner comes.
            verdict.evicted = std::mem::take(&mut verdict.two_connections);
        }
        verdict.refused = self.refused.len();
        verdict.left_in_store = judge::left_in_store(&self.store).await?;
        verdict.takeovers = self.takeovers.iter().map(Takeover::took).collect();
        verdict.splits = self.takeovers.iter().flat_map(Takeover::splits).collect();
        Ok(verdict)
    }
}
