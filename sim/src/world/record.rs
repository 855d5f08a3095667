//! Makes a timeline of a world while it runs. A world that nobody records has no recorder, and is the same world.
//!
//! The world tells the recorder what it does, a line of code at a time: what engines take in and say, what sets out and
//! arrives, what is claimed, shown and found. An arrow begins when something is sent and ends when whoever it is for
//! takes it in, which may be later than it came: a process may stand still.

use super::{Step, Verdict, World, account::Recorded, cover, judges::Judge, plan::Plan, subject};
use crate::{
    service::{
        ConnId,
        tap::{Stanza, Tap},
    },
    timeline::{Arrow, ArrowKind, Bar, BarKind, Fault, Lane, LaneKind, Mark, MarkKind, Timeline},
};
use baton_core::{
    engine::{LoadId, Output},
    flow::{Connection, Event, Notice},
    state::{Batch, EventSeq, Key, Micros, Outcome, Seq},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// Longer lines are cut: they are read by people, and kept by the thousand.
const LINE: usize = 500;

/// What has no end yet.
const OPEN: u64 = u64::MAX;

/// What a load or a batch is known by while it is under way: account, life, number.
type Call = (usize, u64, u64);

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(super) timeline: Timeline,
    lines: Arc<Mutex<Vec<String>>>,
    now: u64,
    accounts: Vec<Owner>,
    /// The lane of each process of an account.
    processes: BTreeMap<(usize, u64), usize>,
    /// Arrows of connections, by direction: nothing overtakes there.
    flying: BTreeMap<(ConnId, bool), VecDeque<usize>>,
    loads: BTreeMap<Call, usize>,
    /// Of what was sent to the store: the arrow that is on its way, and of what reached it, when and where.
    commits: BTreeMap<Call, usize>,
    /// The commit that has just reached the store.
    reached: Option<usize>,
    /// What the next message to a client is.
    next: Option<Stanza>,
    /// When the times of faults came, whether they were to wait for a moment, and the lines that say so.
    struck: BTreeMap<(usize, bool), (u64, usize)>,
    healed: Option<u64>,
    /// What judges found while the world ran: account, number of its complaint, mark.
    pub(super) found: Vec<(usize, usize, Judge, usize)>,
}

/// What the recorder knows of an account's present owner.
#[derive(Debug)]
struct Owner {
    service: usize,
    store: usize,
    /// The last process that had it; of none, the service's.
    process: usize,
    life: u64,
    owner: Option<usize>,
    connection: Option<usize>,
    state: Option<usize>,
    lease: Option<usize>,
    batches: VecDeque<(Seq, usize)>,
    conn: Option<ConnId>,
}

impl World {
    /// Keeps a record of everything from now on, for [`timeline`](Self::timeline). Nothing happens differently for it.
    pub fn record(&mut self) {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (kept, mut before) = (Arc::clone(&lines), self.listener.take());
        self.listen(move |line| {
            if let Some(listener) = &mut before {
                listener(line);
            }
            let line = match line.char_indices().nth(LINE) {
                Some((end, _)) => format!("{}…", &line[..end]),
                None => line.to_owned(),
            };
            kept.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        });
        self.service.tap = Some(Tap::default());
        self.recorder = Some(Box::new(Recorder::new(lines, self.accounts.len())));
    }

    /// Something happens that a recorder wants to know.
    #[inline]
    pub(crate) fn mark(&mut self, what: impl FnOnce(&mut Recorder)) {
        if let Some(recorder) = &mut self.recorder {
            recorder.now = self.now.0;
            what(recorder);
        }
    }

    /// The timeline of what has happened since [`record`](Self::record), with what the judges say of it.
    #[must_use]
    pub fn timeline(&mut self, plan: &Plan, verdict: &Verdict) -> Option<Timeline> {
        let mut recorder = self.recorder.take()?;
        self.service.tap = None;
        recorder.close(self.now.0);
        recorder.faults(plan, &self.effects());
        let mut timeline = std::mem::take(&mut recorder.timeline);
        timeline.lines = std::mem::take(
            &mut *recorder
                .lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        timeline.title = match plan.bug {
            Some(bug) => format!("seed {} with the bug {bug}", plan.seed),
            None => format!("seed {}", plan.seed),
        };
        timeline.plan = plan.to_string();
        timeline.accounts = (self.accounts.iter().enumerate())
            .map(|(index, account)| format!("account {index} · {}", account.phone))
            .collect();
        timeline.good = verdict.is_good();
        timeline.verdict = format!(
            "{} of {} texts, {} settings, {} messages of the past",
            verdict.received, verdict.asked, verdict.settings, verdict.history,
        );
        timeline.findings = subject::findings(self, verdict, &timeline, &recorder.found);
        timeline.opens = opens(&timeline);
        Some(timeline)
    }
}

/// What to look at first: where the two facts of the first finding are, if they are not far from each other; of a world
/// in which all is well, everything before it came to rest.
fn opens(timeline: &Timeline) -> (u64, u64) {
    const SECOND: u64 = 1_000_000;
    let Some(finding) = timeline.failing() else {
        let busy = timeline.faults.iter().filter_map(|fault| fault.at);
        let last = (timeline.marks.iter())
            .filter(|mark| matches!(mark.kind, MarkKind::Asked | MarkKind::Step))
            .map(|mark| mark.at);
        let until = busy.chain(last).max().unwrap_or(timeline.end);
        return (0, (until + SECOND).min(timeline.end));
    };
    let times = || finding.facts.iter().map(|fact| fact.at);
    let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
    // Both, if they can be read together; else the one in which it came out.
    let first = if last - first > 4 * SECOND {
        last
    } else {
        first
    };
    let margin = ((last - first) / 3).max(150_000);
    (first.saturating_sub(margin), last + margin)
}

impl Recorder {
    fn new(lines: Arc<Mutex<Vec<String>>>, accounts: usize) -> Self {
        let mut timeline = Timeline::default();
        let mut lane = |account, kind, name: String| {
            let lane = Lane {
                account,
                kind,
                name,
            };
            timeline.lanes.push(lane);
            timeline.lanes.len() - 1
        };
        lane(None, LaneKind::World, "people and faults".to_owned());
        let accounts = (0..accounts).map(|account| {
            let service = lane(Some(account), LaneKind::Service, "service".to_owned());
            let store = lane(Some(account), LaneKind::Store, "store".to_owned());
            Owner {
                service,
                store,
                process: service,
                life: 0,
                owner: None,
                connection: None,
                state: None,
                lease: None,
                batches: VecDeque::new(),
                conn: None,
            }
        });
        let accounts = accounts.collect();
        Self {
            timeline,
            lines,
            now: 0,
            accounts,
            processes: BTreeMap::new(),
            flying: BTreeMap::new(),
            loads: BTreeMap::new(),
            commits: BTreeMap::new(),
            reached: None,
            next: None,
            struck: BTreeMap::new(),
            healed: None,
            found: Vec::new(),
        }
    }

    /// How many lines there are.
    fn count(&self) -> usize {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The last line.
    fn line(&self) -> Option<usize> {
        self.count().checked_sub(1)
    }

    fn put(&mut self, lane: usize, kind: MarkKind, words: String, id: Option<String>) -> usize {
        let line = self.line();
        self.timeline.marks.push(Mark {
            lane,
            at: self.now,
            kind,
            words,
            id,
            line,
        });
        self.timeline.marks.len() - 1
    }

    fn begin_bar(&mut self, lane: usize, kind: BarKind, words: String) -> usize {
        let line = self.line();
        self.timeline.bars.push(Bar {
            lane,
            kind,
            from: self.now,
            to: OPEN,
            words,
            line,
        });
        self.timeline.bars.len() - 1
    }

    fn end_bar(&mut self, bar: Option<usize>) {
        if let Some(bar) = bar {
            self.timeline.bars[bar].to = self.now;
        }
    }

    fn send(&mut self, from: usize, to: usize, kind: ArrowKind, words: String) -> usize {
        let line = self.line();
        self.timeline.arrows.push(Arrow {
            from,
            to,
            sent: self.now,
            arrives: OPEN,
            arrived: false,
            kind,
            words,
            id: None,
            line,
            end: None,
        });
        self.timeline.arrows.len() - 1
    }

    fn arrive(&mut self, arrow: usize) -> &mut Arrow {
        let (now, end) = (self.now, self.line());
        let arrow = &mut self.timeline.arrows[arrow];
        arrow.arrives = now;
        arrow.arrived = true;
        arrow.end = end;
        arrow
    }

    // ---- owners -----------------------------------------------------------------------------------------------

    /// A process has an engine for an account now.
    pub(super) fn begins(
        &mut self,
        (account, process, life): (usize, u64, u64),
        epoch: u64,
        until: Micros,
    ) {
        let count = self.timeline.lanes.len();
        let lane = *self.processes.entry((account, process)).or_insert(count);
        if lane == count {
            self.timeline.lanes.push(Lane {
                account: Some(account),
                kind: LaneKind::Process,
                name: format!("process {}", process + 1),
            });
        }
        let store = self.accounts[account].store;
        let words = format!("epoch {epoch} is given to process {}", process + 1);
        self.put(store, MarkKind::Claim { epoch }, words, None);
        let words = format!("owns account {account} under epoch {epoch}");
        let owner = self.begin_bar(lane, BarKind::Owner { epoch }, words);
        let this = &mut self.accounts[account];
        this.process = lane;
        this.life = life;
        this.owner = Some(owner);
        self.granted(account, until);
    }

    /// Somebody else has it for a moment.
    pub(super) fn rival(&mut self, account: usize, epoch: u64) {
        let store = self.accounts[account].store;
        let words = format!("epoch {epoch} is given to a rival, which gives it back");
        self.put(store, MarkKind::Claim { epoch }, words, None);
    }

    fn granted(&mut self, account: usize, until: Micros) {
        let Owner { process, lease, .. } = self.accounts[account];
        let over = lease.is_none_or(|bar| self.timeline.bars[bar].to < self.now);
        if over || lease.is_some_and(|bar| self.timeline.bars[bar].lane != process) {
            let bar = self.begin_bar(process, BarKind::Lease, "the right to act".to_owned());
            self.accounts[account].lease = Some(bar);
        }
        if let Some(bar) = self.accounts[account].lease {
            let bar = &mut self.timeline.bars[bar];
            // A bug may grant for ever.
            bar.to = until.0.max(bar.from);
            bar.words = format!("the right to act, granted until {}", seconds(until.0));
        }
        let words = format!("granted until {}", seconds(until.0));
        let kind = MarkKind::Grant { until: until.0 };
        self.put(process, kind, words, None);
    }

    /// A process dies.
    pub(super) fn dies(&mut self, account: usize) {
        self.ends(account, MarkKind::Death, "the process is killed".to_owned());
    }

    /// A process dies, or an engine stops by itself.
    fn ends(&mut self, account: usize, kind: MarkKind, words: String) {
        let this = &mut self.accounts[account];
        let bars = [this.owner.take(), this.connection.take(), this.state.take()];
        let batches = std::mem::take(&mut this.batches);
        let (process, lease, had) = (this.process, this.lease, bars[0]);
        this.conn = None;
        for bar in bars
            .into_iter()
            .chain(batches.into_iter().map(|(_, bar)| Some(bar)))
        {
            self.end_bar(bar);
        }
        if had.is_none() {
            return;
        }
        self.expired(lease);
        self.put(process, kind, words, None);
    }

    /// The engine was there when its right was over.
    fn expired(&mut self, lease: Option<usize>) {
        let Some(bar) = lease.map(|lease| &self.timeline.bars[lease]) else {
            return;
        };
        if bar.to < self.now {
            let bar = Bar {
                kind: BarKind::Expired,
                from: bar.to,
                to: self.now,
                words: "the right to act is over".to_owned(),
                ..bar.clone()
            };
            self.timeline.bars.push(bar);
        }
    }

    // ---- engines ----------------------------------------------------------------------------------------------

    /// An engine takes something in.
    pub(super) fn given(
        &mut self,
        now: Micros,
        account: usize,
        conn: Option<ConnId>,
        input: &Recorded,
    ) {
        self.now = now.0;
        let life = self.accounts[account].life;
        match input {
            Recorded::Received(_) => {
                if let Some(conn) = conn {
                    self.lands(conn, false, ArrowKind::Stanza);
                }
            }
            Recorded::Closed => {
                if let Some(conn) = self.accounts[account].conn.take() {
                    self.lands(conn, false, ArrowKind::Close);
                }
                self.connected(account, None);
            }
            Recorded::Opened => self.accounts[account].conn = conn,
            Recorded::Loaded(LoadId(id), _) | Recorded::Scanned(LoadId(id), _) => {
                if let Some(arrow) = self.loads.remove(&(account, life, *id)) {
                    self.arrive(arrow);
                }
            }
            Recorded::Committed { upto, .. } => {
                self.answered(account, input.words());
                while let Some((seq, bar)) = self.accounts[account].batches.front().copied()
                    && seq <= *upto
                {
                    self.end_bar(Some(bar));
                    self.accounts[account].batches.pop_front();
                }
            }
            Recorded::Fenced(_) | Recorded::Unsealed(_) | Recorded::Refused(_) => {
                self.answered(account, input.words());
            }
            Recorded::Granted(grant) => {
                if let Some(lease) = self.accounts[account].lease {
                    self.expired(Some(lease));
                }
                self.granted(account, grant.until);
            }
            Recorded::Tick | Recorded::Fetched(..) | Recorded::Command(..) => {}
        }
    }

    /// The store's word on what reached it; there may be none, for what was answered before it came.
    fn answered(&mut self, account: usize, words: String) {
        let Owner {
            store,
            process,
            life,
            ..
        } = self.accounts[account];
        let mut calls = self
            .commits
            .range((account, life, 0)..=(account, life, OPEN));
        let Some((call, sent)) = calls.next().map(|(call, sent)| (*call, *sent)) else {
            return;
        };
        let commit = &self.timeline.arrows[sent];
        if !commit.arrived {
            return;
        }
        let (at, line) = (commit.arrives, commit.end);
        self.commits.remove(&call);
        let arrow = self.send(store, process, ArrowKind::Answer, words);
        self.timeline.arrows[arrow].sent = at;
        self.timeline.arrows[arrow].line = line;
        self.arrive(arrow);
    }

    /// An engine says something.
    pub(super) fn said(&mut self, account: usize, output: &Output) {
        let Owner {
            store,
            process,
            life,
            ..
        } = self.accounts[account];
        match output {
            Output::Commit(batch) => {
                let words = format!(
                    "batch {}: {}",
                    batch.seq.0,
                    rows(std::slice::from_ref(batch))
                );
                let kind = BarKind::Batch { seq: batch.seq.0 };
                let bar = self.begin_bar(process, kind, words);
                self.accounts[account].batches.push_back((batch.seq, bar));
            }
            Output::Load(id, keys) => {
                let words = format!("load of {} rows: {keys:?}", keys.len());
                let arrow = self.send(process, store, ArrowKind::Load, words);
                self.loads.insert((account, life, id.0), arrow);
            }
            Output::Scan(id, scan) => {
                let words = format!("scan of {:?}", scan.table);
                let arrow = self.send(process, store, ArrowKind::Scan, words);
                self.loads.insert((account, life, id.0), arrow);
            }
            Output::Open(_) => {
                self.put(
                    process,
                    MarkKind::Open,
                    "opens a connection".to_owned(),
                    None,
                );
                self.connected(account, Some((BarKind::Connecting, "connecting")));
            }
            Output::Close => self.connected(account, None),
            Output::Notice(Notice::Connection(state)) => {
                let state = match state {
                    Connection::Connecting => (BarKind::Connecting, "connecting"),
                    Connection::Linking => (BarKind::Linking, "shows its code"),
                    Connection::LoggedIn => (BarKind::LoggedIn, "logged in"),
                    Connection::Online => (BarKind::Online, "online"),
                    Connection::Waiting { why, .. } => (BarKind::Waiting, *why),
                    _ => return,
                };
                self.connected(account, Some(state));
            }
            Output::Idle { why, .. } => {
                let kind = match *why {
                    "waiting for a commit" => Some(BarKind::Gate),
                    "held: no grant" => Some(BarKind::Held),
                    "waiting for rows" => Some(BarKind::Reading),
                    _ => None,
                };
                self.waits(account, kind, why);
            }
            Output::Stopped(reason) => {
                self.ends(account, MarkKind::Stop, format!("stops: {reason}"));
            }
            _ => {}
        }
    }

    fn connected(&mut self, account: usize, state: Option<(BarKind, &str)>) {
        let (process, before) = {
            let this = &self.accounts[account];
            (this.process, this.connection)
        };
        let kind = before.map(|bar| self.timeline.bars[bar].kind);
        if kind == state.map(|(kind, _)| kind) {
            return;
        }
        self.end_bar(before);
        let bar = state.map(|(kind, words)| self.begin_bar(process, kind, words.to_owned()));
        self.accounts[account].connection = bar;
    }

    fn waits(&mut self, account: usize, kind: Option<BarKind>, why: &str) {
        let (process, before) = {
            let this = &self.accounts[account];
            (this.process, this.state)
        };
        if before.map(|bar| self.timeline.bars[bar].kind) == kind {
            return;
        }
        self.end_bar(before);
        let bar = kind.map(|kind| self.begin_bar(process, kind, why.to_owned()));
        self.accounts[account].state = bar;
    }

    // ---- the network ------------------------------------------------------------------------------------------

    /// Bytes set out, or the end of a connection.
    pub(super) fn flies(&mut self, conn: ConnId, to_service: bool, bytes: usize, at: Micros) {
        let Some(Owner {
            process, service, ..
        }) = self.accounts.get(cover::owner_of(conn))
        else {
            return;
        };
        let (from, to) = match to_service {
            true => (*process, *service),
            false => (*service, *process),
        };
        let next = self.next.take_if(|_| !to_service && bytes > 0);
        let (kind, words) = match (bytes, &next) {
            (0, _) => (ArrowKind::Close, "the end of the connection".to_owned()),
            (_, Some(stanza)) => (
                ArrowKind::Stanza,
                format!("{}, {bytes} bytes", stanza.words),
            ),
            _ => (ArrowKind::Stanza, format!("{bytes} bytes")),
        };
        let arrow = self.send(from, to, kind, words);
        self.timeline.arrows[arrow].arrives = at.0;
        self.timeline.arrows[arrow].id = next.and_then(|stanza| stanza.id).map(String::from);
        let flying = self.flying.entry((conn, to_service)).or_default();
        flying.push_back(arrow);
    }

    /// What the service says next.
    pub(super) fn says(&mut self, tap: Option<&mut Tap>) {
        self.next = tap.and_then(Tap::said);
    }

    /// What set out first is taken in.
    fn lands(&mut self, conn: ConnId, to_service: bool, kind: ArrowKind) -> Option<usize> {
        let flying = self.flying.get_mut(&(conn, to_service))?;
        let first = *flying.front()?;
        if self.timeline.arrows[first].kind != kind {
            return None;
        }
        flying.pop_front();
        self.arrive(first);
        Some(first)
    }

    /// The service takes something in.
    pub(super) fn reaches(&mut self, now: Micros, conn: ConnId, tap: Option<&mut Tap>) {
        self.now = now.0;
        let heard = tap.map(Tap::heard).unwrap_or_default();
        let Some(arrow) = self.lands(conn, true, ArrowKind::Stanza) else {
            return;
        };
        let arrow = &mut self.timeline.arrows[arrow];
        let words: Vec<&str> = heard.iter().map(|stanza| stanza.words.as_str()).collect();
        if !words.is_empty() {
            arrow.words = format!("{}, {}", words.join("; "), arrow.words);
        }
        arrow.id = heard
            .into_iter()
            .find_map(|stanza| stanza.id)
            .map(String::from);
    }

    /// The service hears that a connection is gone.
    pub(super) fn hangs_up(&mut self, conn: ConnId) {
        self.lands(conn, true, ArrowKind::Close);
    }

    // ---- the store --------------------------------------------------------------------------------------------

    /// Batches set out.
    pub(super) fn commits(&mut self, account: usize, life: u64, batches: &[Batch]) {
        let Some(first) = batches.first() else { return };
        let Owner { store, process, .. } = self.accounts[account];
        let (seq, epoch) = (first.seq.0, first.term.epoch.0);
        let words = match batches {
            [_] => format!("batch {seq} under epoch {epoch}: {}", rows(batches)),
            _ => {
                let last = seq + batches.len() as u64 - 1;
                format!(
                    "batches {seq} to {last} under epoch {epoch}: {}",
                    rows(batches)
                )
            }
        };
        let arrow = self.send(process, store, ArrowKind::Commit, words);
        self.timeline.arrows[arrow].id = batches.iter().find_map(message);
        let call = (account, life, first.seq.0);
        self.commits.insert(call, arrow);
    }

    /// Batches reach the store, for the first time or again.
    pub(super) fn commit_reaches(&mut self, account: usize, life: u64, batches: &[Batch]) {
        self.reached = None;
        let call = batches.first().map(|first| (account, life, first.seq.0));
        let Some((call, arrow)) = call.and_then(|call| Some((call, *self.commits.get(&call)?)))
        else {
            return;
        };
        let first = &self.timeline.arrows[arrow];
        if !first.arrived {
            self.arrive(arrow).end = None;
            self.reached = Some(arrow);
            return;
        }
        // It was sent again when it had failed.
        let again = Arrow {
            sent: first.arrives,
            words: format!("again: {}", first.words),
            ..first.clone()
        };
        self.timeline.arrows.push(again);
        let arrow = self.timeline.arrows.len() - 1;
        self.arrive(arrow).end = None;
        self.reached = Some(arrow);
        self.commits.insert(call, arrow);
    }

    /// The store fails, and has written nothing.
    pub(super) fn fails(&mut self, account: usize, batches: &[Batch]) {
        let store = self.accounts[account].store;
        let Some(first) = batches.first() else { return };
        let (seq, epoch) = (first.seq.0, first.term.epoch.0);
        let words = format!("the commit of batch {seq} under epoch {epoch} fails");
        let kind = MarkKind::Batch {
            seq,
            epoch,
            taken: false,
        };
        self.put(store, kind, words, None);
        let line = self.line();
        if let Some(arrow) = self.reached.take() {
            self.timeline.arrows[arrow].end = line;
        }
    }

    /// The store has looked at a batch.
    pub(super) fn wrote(&mut self, account: usize, batch: &Batch, outcome: &Outcome) {
        let (seq, epoch) = (batch.seq.0, batch.term.epoch.0);
        let store = self.accounts[account].store;
        let said = match outcome {
            Outcome::Committed => "is durable".to_owned(),
            other => format!("{other:?}"),
        };
        let words = format!(
            "batch {seq} under epoch {epoch} {said}: {}",
            rows(std::slice::from_ref(batch))
        );
        let kind = MarkKind::Batch {
            seq,
            epoch,
            taken: *outcome == Outcome::Committed,
        };
        // The store says so with its first line.
        let line = self.line();
        if let Some(arrow) = self.reached.take() {
            self.timeline.arrows[arrow].end = line;
        }
        self.put(store, kind, words, message(batch));
    }

    // ---- people, faults and judges ----------------------------------------------------------------------------

    /// A step of the plan.
    pub(super) fn step(&mut self, step: &Step) {
        let (account, kind, id) = match step {
            Step::Send { from, id, .. } => (Some(*from), MarkKind::Asked, Some(id.clone())),
            Step::Strike { fault } | Step::Now { fault } => {
                // The weather says so with its next line. Some come again.
                let struck = (self.now, self.count());
                let waited = matches!(step, Step::Now { .. });
                self.struck.entry((*fault, waited)).or_insert(struck);
                return;
            }
            Step::Heal => {
                self.healed = Some(self.now);
                (None, MarkKind::Step, None)
            }
            Step::Crash { account, .. }
            | Step::Cut { account }
            | Step::Phone { account, .. }
            | Step::Change { account, .. }
            | Step::History { account, .. }
            | Step::HistoryAgain { account }
            | Step::Link { account }
            | Step::Slow { account, .. }
            | Step::Rival { account } => (Some(*account), MarkKind::Step, None),
            _ => (None, MarkKind::Step, None),
        };
        let lane = match (account.and_then(|account| self.accounts.get(account)), kind) {
            (Some(account), MarkKind::Asked) => account.store,
            (Some(account), _) => account.service,
            (None, _) => 0,
        };
        self.put(lane, kind, step.words(), id);
    }

    /// The consumer is shown an event.
    pub(super) fn shows(&mut self, account: usize, seq: EventSeq, event: &Event) {
        let id = match event {
            Event::Message(message) => Some(message.id.to_string()),
            Event::Sent { id, .. }
            | Event::Failed { id, .. }
            | Event::Delivered { id, .. }
            | Event::Read { id, .. }
            | Event::Undecryptable { id, .. } => Some(id.to_string()),
            _ => None,
        };
        let name = format!("{event:?}");
        let end = name.find(|c: char| !c.is_alphanumeric());
        let name = &name[..end.unwrap_or(name.len())];
        let words = match &id {
            Some(id) => format!("event {} is shown: {name} {id}", seq.0),
            None => format!("event {} is shown: {name}", seq.0),
        };
        let process = self.accounts[account].process;
        self.put(process, MarkKind::Shown { seq: seq.0 }, words, id);
    }

    /// A judge has found something, which is the account's complaint of this number.
    pub(super) fn finds(&mut self, account: usize, which: usize, judge: Judge, words: &str) {
        let process = self.accounts[account].process;
        let mark = self.put(process, MarkKind::Found, words.to_owned(), None);
        self.found.push((account, which, judge, mark));
    }

    // ---- the end ----------------------------------------------------------------------------------------------

    fn close(&mut self, now: u64) {
        self.now = now;
        for account in 0..self.accounts.len() {
            let lease = self.accounts[account].lease;
            if self.accounts[account].owner.is_some() {
                self.expired(lease);
            }
        }
        let timeline = &mut self.timeline;
        timeline.end = now;
        for bar in &mut timeline.bars {
            bar.to = bar.to.min(match bar.kind {
                // It may be granted for longer than the world lasts.
                BarKind::Lease => now + 10_000_000,
                _ => now,
            });
        }
        for arrow in &mut timeline.arrows {
            if !arrow.arrived {
                arrow.arrives = arrow.arrives.min(now);
            }
        }
    }

    fn faults(&mut self, plan: &Plan, effects: &[u64]) {
        let healed = self.healed.unwrap_or(self.now);
        for (index, fault) in plan.faults.iter().enumerate() {
            let struck = self.struck.get(&(index, fault.aim.is_some()));
            let at = struck.map(|(at, _)| *at);
            let until = at.map_or(0, |at| (at + fault.lasts).min(healed.max(at)));
            self.timeline.faults.push(Fault {
                account: (!fault.kind.is_everywhere()).then_some(fault.account),
                at,
                until,
                words: fault.kind.words().to_owned(),
                effects: effects.get(index).copied().unwrap_or(0),
                line: struck.map(|(_, line)| *line),
            });
        }
    }
}

fn seconds(micros: u64) -> String {
    match micros {
        // For ever.
        0x4000_0000_0000_0000.. => "the end of time".to_owned(),
        _ => format!("{}.{:06} s", micros / 1_000_000, micros % 1_000_000),
    }
}

/// How many rows of which tables.
fn rows(batches: &[Batch]) -> String {
    let mut tables: BTreeMap<_, usize> = BTreeMap::new();
    for key in batches.iter().flat_map(|batch| batch.rows.keys()) {
        *tables.entry(key.table()).or_default() += 1;
    }
    let words: Vec<String> = (tables.iter())
        .map(|(table, count)| format!("{count} {table:?}"))
        .collect();
    words.join(", ")
}

/// The first message that a batch is about.
fn message(batch: &Batch) -> Option<String> {
    batch.rows.keys().find_map(|key| match key {
        Key::Outbox(id) | Key::Mailbox(id) | Key::Sent(id) => Some(id.to_string()),
        _ => None,
    })
}
