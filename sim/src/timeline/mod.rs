//! What happened in a world, as typed events, and one page that shows them.
//!
//! Whoever runs a world makes a [`Timeline`] out of what it sees (worlds of tier A: `world/record.rs`); judges point at
//! the events that contradict each other. [`Timeline::page`] is one HTML file that needs nothing but itself.
//!
//! Times are microseconds of the simulated world since its beginning. Events refer to each other, to lanes and to lines
//! of the trace by their places in the lists.

mod page;

use serde::Serialize;

/// A whole run, or the beginning of one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    /// Which run it is, in a few words.
    pub title: String,
    /// What was in store, in words.
    pub plan: String,
    /// When it ended.
    pub end: u64,
    /// What the page shows at first, from and until.
    pub opens: (u64, u64),
    /// Whether nothing was wrong.
    pub good: bool,
    /// A word about what came of it.
    pub verdict: String,
    /// The accounts, by name.
    pub accounts: Vec<String>,
    /// Who does things.
    pub lanes: Vec<Lane>,
    /// What lasted.
    pub bars: Vec<Bar>,
    /// What went from one to another.
    pub arrows: Vec<Arrow>,
    /// What happened at once.
    pub marks: Vec<Mark>,
    /// What was planned to go wrong.
    pub faults: Vec<Fault>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The trace.
    pub lines: Vec<String>,
}

/// Somebody who does things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lane {
    /// Whose; none for the world as a whole.
    pub account: Option<usize>,
    /// What it is.
    pub kind: LaneKind,
    /// In a few words.
    pub name: String,
}

/// What a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneKind {
    /// What people and faults do.
    World,
    /// The service, as far as it concerns one account.
    Service,
    /// A process that owns an account for a while, or several times.
    Process,
    /// The store, as far as it concerns one account.
    Store,
}

/// Something that lasted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Whose.
    pub lane: usize,
    /// What.
    pub kind: BarKind,
    /// From when.
    pub from: u64,
    /// Until when.
    pub to: u64,
    /// In words.
    pub words: String,
    /// The line that began it.
    pub line: Option<usize>,
}

/// What lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BarKind {
    /// An engine owned the account.
    Owner {
        /// Under this epoch.
        epoch: u64,
    },
    /// Its right to act, as far as it knew.
    Lease,
    /// The right is over, and the engine still there.
    Expired,
    /// The connection was being made.
    Connecting,
    /// A phone is to scan its code.
    Linking,
    /// It stands; the service delivers what it has kept.
    LoggedIn,
    /// It stands, and everything that was kept has come.
    Online,
    /// There is none, until the next attempt.
    Waiting,
    /// Effects of the engine wait until a commit is durable.
    Gate,
    /// Nothing may leave, for want of a grant.
    Held,
    /// The engine waits for rows.
    Reading,
    /// A batch is under way: handed out, and not known to be durable.
    Batch {
        /// Its number.
        seq: u64,
    },
}

/// Something that went from one to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arrow {
    /// From whom.
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// When it left.
    pub sent: u64,
    /// When it arrived, or would have.
    pub arrives: u64,
    /// It has arrived.
    pub arrived: bool,
    /// What it is.
    pub kind: ArrowKind,
    /// In words.
    pub words: String,
    /// The message that it is about.
    pub id: Option<String>,
    /// The line where it left.
    pub line: Option<usize>,
    /// The line where it arrived.
    pub end: Option<usize>,
}

/// What goes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrowKind {
    /// Bytes of a connection: stanzas and handshakes.
    Stanza,
    /// The end of a connection.
    Close,
    /// Rows are read.
    Load,
    /// A slice of a table is read.
    Scan,
    /// Batches on their way to the store.
    Commit,
    /// What the store says of them.
    Answer,
}

/// Something that happened at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Where.
    pub lane: usize,
    /// When.
    pub at: u64,
    /// What.
    pub kind: MarkKind,
    /// In words.
    pub words: String,
    /// The message that it is about.
    pub id: Option<String>,
    /// The line that says so.
    pub line: Option<usize>,
}

/// What happens at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// The account was given to somebody.
    Claim {
        /// Under this epoch.
        epoch: u64,
    },
    /// The right to act was given, or given again.
    Grant {
        /// For so long.
        until: u64,
    },
    /// A process died.
    Death,
    /// An engine stopped by itself.
    Stop,
    /// A connection is asked for.
    Open,
    /// A text is asked to be sent.
    Asked,
    /// An event is shown to the consumer.
    Shown {
        /// Its number.
        seq: u64,
    },
    /// The store has taken a batch, or refused it.
    Batch {
        /// Its number.
        seq: u64,
        /// Under which epoch it was written.
        epoch: u64,
        /// It is durable.
        taken: bool,
    },
    /// Somebody does something else.
    Step,
    /// A judge has found something.
    Found,
}

/// Something that was planned to go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// With which account; none if with all.
    pub account: Option<usize>,
    /// When it struck; none if it never did.
    pub at: Option<u64>,
    /// Until when it lasted.
    pub until: u64,
    /// In words.
    pub words: String,
    /// How often something came out differently because of it.
    pub effects: u64,
    /// The line that says so.
    pub line: Option<usize>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Who says so.
    pub judge: String,
    /// What it demands.
    pub rule: String,
    /// What is wrong.
    pub words: String,
    /// With which account, if it is about one.
    pub account: Option<usize>,
    /// What contradicts what, in the order of time.
    pub facts: Vec<Fact>,
}

/// What a finding rests on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fact {
    /// When.
    pub at: u64,
    /// With which account, if with one.
    pub account: Option<usize>,
    /// What.
    pub words: String,
    /// The event.
    pub event: Option<Event>,
    /// The line that says so.
    pub line: Option<usize>,
}

/// An event, by its place in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// In [`Timeline::arrows`].
    Arrow(usize),
    /// In [`Timeline::marks`].
    Mark(usize),
    /// In [`Timeline::bars`].
    Bar(usize),
}

impl Timeline {
    /// The moment that the page is about: when the first thing that is wrong became so.
    #[must_use]
    pub fn failing(&self) -> Option<&Finding> {
        self.findings.first()
    }
}
