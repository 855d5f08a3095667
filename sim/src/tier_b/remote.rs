//! A [`Store`] at the other end of a network: what a gateway host has of the database.
//!
//! What travels over the simulated sockets is the number of a call, there and back; the call and its answer lie in
//! memory meanwhile ([`Mail`]). So the *network* decides whether and when anything arrives, and none of the 28 calls
//! needs an encoding. A connection carries one call at a time, as with a real pool; a call whose caller goes away closes
//! its connection, and the database carries it out all the same if the number has arrived.

use super::{
    backend::Backend,
    net::{Network, SimStream},
    trace::Fnv,
};
use baton_core::state::{
    AccountId, AccountInfo, Batch, Beat, Beaten, BusinessId, Claim, Epoch, HandOver, HostInfo,
    HostView, Incarnation, Key, Lease, MessageId, Micros, Orphan, Outcome, Placement, Record, Row,
    Scan, Seal, Store, StoreError, Table, Term, UnixMillis,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
};

/// The database host and its port.
pub(crate) const DATABASE: (&str, u16) = ("db", 5432);

/// Connections of one host, beside those for its lease.
const POOL: usize = 8;

/// How long a call may take; then its connection is closed, not used again.
const DEADLINE: Duration = Duration::from_secs(5);

/// A call as the database host gets it.
pub(crate) struct Request {
    pub(crate) from: Arc<str>,
    pub(crate) name: &'static str,
    /// Its arguments, for the trace.
    pub(crate) words: String,
    pub(crate) ask: Ask,
}

/// What is asked. The calls that the database host looks into are spelt out.
pub(crate) enum Ask {
    Commit(Vec<Batch>),
    Load(AccountId, Vec<Key>),
    Claim(Incarnation, Vec<AccountId>),
    Release(Incarnation, Vec<(AccountId, Epoch)>),
    Leave(Incarnation),
    Other(Job),
}

pub(crate) type Job = Box<dyn FnOnce(Backend) -> BoxFuture<'static, Answer> + Send>;

/// An answer and what the trace says of it.
pub(crate) struct Answer {
    pub(crate) value: Box<dyn Any + Send>,
    pub(crate) words: String,
}

impl Answer {
    pub(crate) fn of<T: Words + Send + 'static>(value: Result<T, StoreError>) -> Self {
        let words = match &value {
            Ok(value) => value.words(),
            Err(error) => format!("error: {}", kind(error)),
        };
        Self {
            value: Box::new(value),
            words,
        }
    }
}

/// Which error, without the words that each store chooses for itself.
fn kind(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Refused(_) => "refused",
        StoreError::NoAccount => "no account",
        StoreError::Exists => "exists",
        StoreError::Held => "held",
        StoreError::NotMember => "not a member",
        _ => "another",
    }
}

/// Calls and answers that are on their way.
#[derive(Clone, Default)]
pub(crate) struct Mail {
    inner: Arc<Mutex<Letters>>,
}

#[derive(Default)]
struct Letters {
    last: u64,
    requests: BTreeMap<u64, Request>,
    answers: BTreeMap<u64, Answer>,
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mail")
    }
}

impl Mail {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, request: Request) -> u64 {
        let mut letters = self.letters();
        letters.last += 1;
        let number = letters.last;
        letters.requests.insert(number, request);
        number
    }

    pub(crate) fn take(&self, number: u64) -> Option<Request> {
        self.letters().requests.remove(&number)
    }

    pub(crate) fn answer(&self, number: u64, answer: Answer) {
        self.letters().answers.insert(number, answer);
    }

    fn answered(&self, number: u64) -> Option<Answer> {
        self.letters().answers.remove(&number)
    }
}

/// See the module documentation. One per life of a host; clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct RemoteStore {
    network: Network,
    mail: Mail,
    from: Arc<str>,
    idle: Arc<Mutex<Vec<SimStream>>>,
    permits: Arc<Semaphore>,
}

impl RemoteStore {
    pub(crate) fn new(network: Network, mail: Mail, from: Arc<str>) -> Self {
        Self {
            network,
            mail,
            from,
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(POOL)),
        }
    }

    async fn call<T: 'static>(
        &self,
        name: &'static str,
        words: String,
        ask: Ask,
    ) -> Result<T, StoreError> {
        let from = Arc::clone(&self.from);
        let request = Request {
            from,
            name,
            words,
            ask,
        };
        tokio::select! { biased;
            answer = self.carry(request) => answer,
            () = tokio::time::sleep(DEADLINE) => Err(lost("no answer in time")),
        }
    }

    async fn carry<T: 'static>(&self, request: Request) -> Result<T, StoreError> {
        // A lease must not wait behind commits.
        let _permit = match request.name {
            "beat" | "join" | "leave" => None,
            _ => Some(self.permits.acquire().await.map_err(|_| lost("closed"))?),
        };
        let idle = self.idle().pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let (host, port) = DATABASE;
                let made = self.network.connect(&self.from, host, port).await;
                made.map_err(|_| lost("cannot connect"))?
            }
        };
        let number = self.mail.post(request);
        let sent = stream.write_all(&number.to_le_bytes()).await;
        sent.map_err(|_| lost("the connection broke"))?;
        let mut back = [0; 8];
        let read = stream.read_exact(&mut back).await;
        read.map_err(|_| lost("the connection broke"))?;
        let answer = self.mail.answered(u64::from_le_bytes(back));
        self.idle().push(stream);
        let value = answer.map(|answer| answer.value.downcast::<Result<T, StoreError>>());
        match value {
            Some(Ok(value)) => *value,
            _ => Err(lost("another answer")),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SimStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(why: &str) -> StoreError {
    StoreError::Unavailable(why.to_owned())
}

fn job<T, F>(call: impl FnOnce(Backend) -> F + Send + 'static) -> Ask
where
    T: Words + Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    Ask::Other(Box::new(move |backend| {
        call(backend).map(Answer::of).boxed()
    }))
}

macro_rules! calls {
    ($($name:ident($($arg:ident: $type:ty $(=> $own:ident)?),*) -> $out:ty;)*) => {
        $(async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
            #[allow(unused_mut)]
            let mut words = String::new();
            $(words.push_str(&$arg.words()); words.push(' ');)*
            $(let $arg = $arg$(.$own())?;)*
            let ask = job(move |store| async move { store.$name($(calls!(@ $arg $($own)?)),*).await });
            self.call(stringify!($name), words, ask).await
        })*
    };
    (@ $arg:ident) => { $arg };
    (@ $arg:ident clone) => { &$arg };
    (@ $arg:ident to_owned) => { &$arg };
}

impl Store for RemoteStore {
    async fn load(&self, account: &AccountId, keys: Vec<Key>) -> Result<Vec<Row>, StoreError> {
        let words = format!("{account} {}", keys.words());
        self.call("load", words, Ask::Load(account.clone(), keys))
            .await
    }

    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let words = batches.words();
        self.call("commit", words, Ask::Commit(batches)).await
    }

    async fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> Result<Vec<Claim>, StoreError> {
        let words = format!("{} {}", who.words(), accounts.words());
        self.call("claim", words, Ask::Claim(who, accounts)).await
    }

    async fn release(
        &self,
        who: Incarnation,
        accounts: Vec<(AccountId, Epoch)>,
    ) -> Result<(), StoreError> {
        let words = format!("{} {}", who.words(), accounts.words());
        self.call("release", words, Ask::Release(who, accounts))
            .await
    }

    async fn leave(&self, who: Incarnation) -> Result<(), StoreError> {
        self.call("leave", who.words(), Ask::Leave(who)).await
    }

    calls! {
        scan(account: &AccountId => clone, scan: Scan) -> Vec<(Key, Row)>;
        confirm(terms: Vec<(AccountId, Term)>) -> Vec<Outcome>;
        create_account(business: &BusinessId => clone, name: &str => to_owned) -> AccountId;
        delete_account(account: &AccountId => clone) -> ();
        accounts(business: &BusinessId => clone) -> Vec<AccountInfo>;
        tenants() -> Vec<BusinessId>;
        enqueue(account: &AccountId => clone, id: MessageId, request: Record, at: UnixMillis) -> bool;
        retain(account: &AccountId => clone, table: Table, before: UnixMillis, limit: u32) -> u32;
        join(who: Incarnation, info: HostInfo, ttl: Micros) -> u16;
        beat(who: Incarnation, beat: Beat) -> Beaten;
        hosts() -> Vec<HostView>;
        drain(who: Incarnation, drain: bool) -> bool;
        declare_dead(by: Incarnation, dead: Incarnation) -> bool;
        hand_over(who: Incarnation, account: &AccountId => clone, epoch: Epoch, to: Incarnation) -> HandOver;
        held(who: Incarnation) -> Vec<(AccountId, Lease)>;
        orphans(after: Option<AccountId>, limit: u32) -> Vec<Orphan>;
        misplaced(who: Incarnation) -> Vec<(AccountId, Placement)>;
        mail(who: Incarnation) -> Vec<AccountId>;
        place(account: &AccountId => clone, placement: Placement) -> ();
        retire(who: Incarnation, account: &AccountId => clone, epoch: Epoch) -> bool;
        history() -> Seal;
        renew_history(now: Seal) -> Seal;
        vault(business: &BusinessId => clone) -> Vec<(u32, Record)>;
        swap_vault(business: &BusinessId => clone, number: u32, old: Option<Record>, new: Option<Record>) -> bool;
        swap_records(account: &AccountId => clone, records: Vec<(Key, Record, Record)>) -> u32;
    }
}

/// What the trace says of a value: everything that is in it, records and addresses as hashes.
pub(crate) trait Words {
    fn words(&self) -> String;
}

macro_rules! debug_is_enough {
    ($($type:ty),*) => {
        $(impl Words for $type {
            fn words(&self) -> String {
                format!("{self:?}")
            }
        })*
    };
}

debug_is_enough!(
    (),
    bool,
    u16,
    u32,
    str,
    AccountId,
    BusinessId,
    Beat,
    HandOver,
    HostInfo,
    Lease,
    MessageId,
    Orphan,
    Placement,
    Seal,
    Table,
    Term,
    Claim
);

impl Words for Incarnation {
    fn words(&self) -> String {
        format!("{:016x}", self.0)
    }
}

impl Words for Epoch {
    fn words(&self) -> String {
        self.0.to_string()
    }
}

impl Words for Micros {
    fn words(&self) -> String {
        self.0.to_string()
    }
}

impl Words for UnixMillis {
    fn words(&self) -> String {
        self.0.to_string()
    }
}

impl Words for Key {
    fn words(&self) -> String {
        // The address is left out of the debug form; it has to be in the hash.
        let address = match self {
            Self::Identity(jid)
            | Self::Session(jid)
            | Self::DeviceList(jid)
            | Self::Contact(jid)
            | Self::PrivacyToken(jid) => jid.to_string(),
            Self::Seen(hash) => format!("{:016x}", Fnv::short(&[hash])),
            Self::LidMap(user) => user.to_string(),
            _ => String::new(),
        };
        format!("{self:?}{address}")
    }
}

impl Words for Record {
    fn words(&self) -> String {
        format!("{:016x}", Fnv::short(&[&self.0]))
    }
}

impl Words for Row {
    fn words(&self) -> String {
        match self {
            Self::Absent => "-".to_owned(),
            Self::Present(record) => record.words(),
            Self::Corrupt => "corrupt".to_owned(),
        }
    }
}

impl Words for Outcome {
    fn words(&self) -> String {
        match self {
            // Each store has its own words for it.
            Self::Rejected(_) => "rejected".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

impl Words for Batch {
    fn words(&self) -> String {
        let mut rows = Fnv::default();
        for (key, record) in &self.rows {
            rows.feed(key.words().as_bytes());
            rows.feed(record.words().as_bytes());
        }
        let tables: Vec<String> = self.rows.keys().map(|key| format!("{key:?}")).collect();
        format!(
            "{}#{}.{}{} {} [{}]",
            self.account,
            self.term.epoch.0,
            self.seq.0,
            if self.reseal { " reseal" } else { "" },
            rows,
            tables.join(" ")
        )
    }
}

impl Words for Scan {
    fn words(&self) -> String {
        format!(
            "{} {} {}",
            self.table.name(),
            self.after.words(),
            self.limit
        )
    }
}

impl Words for AccountInfo {
    fn words(&self) -> String {
        let Self {
            id, epoch, holder, ..
        } = self;
        format!("{id} {epoch:?} {holder:?} {}", self.device.words())
    }
}

impl Words for Beaten {
    fn words(&self) -> String {
        match self {
            Self::Dead => "dead".to_owned(),
            Self::Renewed(view) => {
                let hosts: Vec<String> = view.hosts.iter().map(Words::words).collect();
                let dead = view.newly_dead.words();
                format!("{} dead {dead} gifts {}", hosts.join(", "), view.gifts)
            }
        }
    }
}

impl Words for HostView {
    fn words(&self) -> String {
        let Self {
            slot, info, state, ..
        } = self;
        format!("{slot} {} {state:?} {}", info.name, self.accounts)
    }
}

impl<T: Words> Words for Option<T> {
    fn words(&self) -> String {
        self.as_ref().map_or("none".to_owned(), Words::words)
    }
}

impl<T: Words> Words for Vec<T> {
    fn words(&self) -> String {
        let all: Vec<String> = self.iter().map(Words::words).collect();
        format!("({})", all.join(", "))
    }
}

impl<A: Words, B: Words> Words for (A, B) {
    fn words(&self) -> String {
        format!("{} {}", self.0.words(), self.1.words())
    }
}

impl<A: Words, B: Words, C: Words> Words for (A, B, C) {
    fn words(&self) -> String {
        format!("{} {} {}", self.0.words(), self.1.words(), self.2.words())
    }
}

impl<T: Words + ?Sized> Words for &T {
    fn words(&self) -> String {
        (**self).words()
    }
}
