//! Lines of a journal: a kind, numbers and blobs, in an order that each kind has for itself.

use super::{Birth, Seed};
use crate::{
    appstate::{Collection, action::Action},
    crypto::PublicKey,
    engine::{Grant, Input, LoadId, Now},
    flow::{
        Command, CommandId, Config, Content, Endpoint, FetchId, Fetched, Limits, PreKeyPolicy,
        Profile, SendRequest, ServiceConfig, Timing,
    },
    jid::Jid,
    state::{
        AccountId, BusinessId, Epoch, EventSeq, Incarnation, Key, Lease, Micros, Record, Row, Seal,
        Seq, Term, UnixMillis,
    },
};
use std::num::NonZeroU32;

/// One line.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Line {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) numbers: Vec<u64>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(super) blobs: Vec<Vec<u8>>,
}

/// Lines have keys and messages in them.
impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({:?})", self.kind())
    }
}

macro_rules! numbered {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name { $($variant = $number,)* }

        impl $name {
            fn of(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// What a line is.
    pub(super) enum Kind {
        Birth = 1,
        Done = 2,
        Opened = 3,
        Received = 4,
        Closed = 5,
        Loaded = 6,
        Scanned = 7,
        Committed = 8,
        Fenced = 9,
        Unsealed = 10,
        StoreRefused = 11,
        Fetched = 12,
        Granted = 13,
        Command = 14,
        Reseed = 15,
        Tick = 16,
    }
}

numbered! {
    enum Verb {
        Link = 1,
        Send = 2,
        Acknowledge = 3,
        MarkRead = 4,
        Presence = 5,
        CheckMailbox = 6,
        Change = 7,
        Sync = 8,
        Contacts = 9,
        Chats = 10,
        Settings = 11,
        Logout = 12,
        Shutdown = 13,
    }
}

impl Line {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind: kind as u32,
            numbers: Vec::new(),
            blobs: Vec::new(),
        }
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        Kind::of(self.kind.into())
    }

    fn number(&mut self, number: impl Into<u64>) {
        self.numbers.push(number.into());
    }

    fn blob(&mut self, blob: impl Into<Vec<u8>>) {
        self.blobs.push(blob.into());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.number(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn time(&mut self, now: Now) {
        self.number(now.mono.0);
        self.number(now.unix.0.cast_unsigned());
    }

    /// Exactly as it is; the text of an address is read more liberally.
    fn jid(&mut self, jid: &Jid) {
        self.blob(Key::Contact(jid.clone()).to_bytes());
    }

    fn seal(&mut self, seal: Seal) {
        self.number(seal.timeline);
        self.number(seal.generation);
    }

    fn grant(&mut self, grant: &Grant) {
        let Grant {
            lease:
                Lease {
                    term,
                    applied,
                    sealed,
                },
            until,
        } = grant;
        self.number(term.epoch.0);
        self.number(term.holder.0);
        self.seal(term.history);
        self.number(applied.0);
        self.seal(*sealed);
        self.number(until.0);
    }

    fn row(&mut self, row: &Row) {
        match row {
            Row::Absent => self.number(0_u64),
            Row::Present(record) => {
                self.number(1_u64);
                self.blob(&*record.0);
            }
            Row::Corrupt => self.number(2_u64),
        }
    }
}

/// Takes a line apart, from the front.
struct Parts<'a> {
    numbers: &'a [u64],
    blobs: &'a [Vec<u8>],
}

impl<'a> Parts<'a> {
    fn of(line: &'a Line) -> Self {
        Self {
            numbers: &line.numbers,
            blobs: &line.blobs,
        }
    }

    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.numbers.split_first()?;
        self.numbers = rest;
        Some(*first)
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        self.number()?.try_into().ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.number()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn micros(&mut self) -> Option<Micros> {
        self.number().map(Micros)
    }

    fn blob(&mut self) -> Option<&'a [u8]> {
        let (first, rest) = self.blobs.split_first()?;
        self.blobs = rest;
        Some(first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.blob()?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.blob()?.to_vec()).ok()
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        Some(match self.flag()? {
            true => Some(read(self)?),
            false => None,
        })
    }

    fn time(&mut self) -> Option<Now> {
        Some(Now {
            mono: self.micros()?,
            unix: UnixMillis(self.number()?.cast_signed()),
        })
    }

    fn jid(&mut self) -> Option<Jid> {
        match Key::from_bytes(self.blob()?) {
            Ok(Key::Contact(jid)) => Some(jid),
            _ => None,
        }
    }

    fn key(&mut self) -> Option<Key> {
        Key::from_bytes(self.blob()?).ok()
    }

    fn collection(&mut self) -> Option<Collection> {
        self.text()?.parse().ok()
    }

    fn seal(&mut self) -> Option<Seal> {
        Some(Seal {
            timeline: self.small()?,
            generation: self.small()?,
        })
    }

    fn grant(&mut self) -> Option<Grant> {
        Some(Grant {
            lease: Lease {
                term: Term {
                    epoch: Epoch(self.number()?),
                    holder: Incarnation(self.number()?),
                    history: self.seal()?,
                },
                applied: Seq(self.number()?),
                sealed: self.seal()?,
            },
            until: self.micros()?,
        })
    }

    fn row(&mut self) -> Option<Row> {
        Some(match self.number()? {
            0 => Row::Absent,
            1 => Row::Present(Record(self.blob()?.to_vec().into())),
            2 => Row::Corrupt,
            _ => return None,
        })
    }

    /// Nothing that nobody has asked for.
    fn end<T>(self, value: T) -> Option<T> {
        (self.numbers.is_empty() && self.blobs.is_empty()).then_some(value)
    }
}

// ---- birth ----------------------------------------------------------------------------------------------------------

pub(super) fn birth(birth: &Birth) -> Line {
    let mut line = Line::new(Kind::Birth);
    line.time(birth.now);
    line.blob(birth.account.business.to_string());
    line.number(birth.account.device);
    line.grant(&birth.grant);
    line.blob(birth.seed.0);
    config(&mut line, &birth.config);
    line
}

pub(super) fn read_birth(line: &Line) -> Option<Birth> {
    let mut parts = Parts::of(line);
    if line.kind() != Some(Kind::Birth) {
        return None;
    }
    let birth = Birth {
        now: parts.time()?,
        account: AccountId {
            business: BusinessId::new(&parts.text()?).ok()?,
            device: parts.number()?,
        },
        grant: parts.grant()?,
        seed: Seed(parts.array()?),
        config: read_config(&mut parts)?,
    };
    parts.end(birth)
}

fn config(line: &mut Line, config: &Config) {
    let Config {
        limits,
        service,
        profile,
        timing,
        pre_keys,
        available,
    } = config;
    let Limits {
        batches_in_flight,
        work_queued,
        cache_bytes,
        gate_bytes,
        frame_bytes,
        outbox,
        events_in_flight,
    } = limits;
    for limit in [
        batches_in_flight,
        work_queued,
        cache_bytes,
        gate_bytes,
        frame_bytes,
        outbox,
        events_in_flight,
    ] {
        line.number(limit.get());
    }
    line.blob(service.endpoint.0.as_bytes());
    line.blob(*service.root.as_bytes());
    let Profile {
        version,
        os,
        platform,
        locale,
        push_name,
    } = profile;
    for part in version {
        line.number(*part);
    }
    line.blob(os.as_bytes());
    line.number(platform.cast_unsigned());
    line.blob(locale.0.as_bytes());
    line.blob(locale.1.as_bytes());
    line.option(push_name.as_ref(), |line, name| line.blob(name.as_bytes()));
    let Timing {
        handshake,
        query,
        keepalive,
        silence,
        backoff_first,
        backoff_most,
        stable,
        offline,
        grant_margin,
        hold,
        qr,
    } = timing;
    for time in [
        *handshake,
        *query,
        keepalive.0,
        keepalive.1,
        *silence,
        *backoff_first,
        *backoff_most,
        *stable,
        *offline,
        *grant_margin,
        *hold,
        qr.0,
        qr.1,
    ] {
        line.number(time.0);
    }
    let PreKeyPolicy { low, batch } = pre_keys;
    line.number(*low);
    line.number(*batch);
    line.number(*available);
}

fn read_config(parts: &mut Parts<'_>) -> Option<Config> {
    let limit = |parts: &mut Parts<'_>| NonZeroU32::new(parts.small()?);
    Some(Config {
        limits: Limits {
            batches_in_flight: limit(parts)?,
            work_queued: limit(parts)?,
            cache_bytes: limit(parts)?,
            gate_bytes: limit(parts)?,
            frame_bytes: limit(parts)?,
            outbox: limit(parts)?,
            events_in_flight: limit(parts)?,
        },
        service: ServiceConfig {
            endpoint: Endpoint(parts.text()?),
            root: PublicKey::from_bytes(parts.array()?),
        },
        profile: Profile {
            version: [parts.small()?, parts.small()?, parts.small()?],
            os: parts.text()?,
            platform: parts.small::<u32>()?.cast_signed(),
            locale: (parts.text()?, parts.text()?),
            push_name: parts.option(Parts::text)?,
        },
        timing: Timing {
            handshake: parts.micros()?,
            query: parts.micros()?,
            keepalive: (parts.micros()?, parts.micros()?),
            silence: parts.micros()?,
            backoff_first: parts.micros()?,
            backoff_most: parts.micros()?,
            stable: parts.micros()?,
            offline: parts.micros()?,
            grant_margin: parts.micros()?,
            hold: parts.micros()?,
            qr: (parts.micros()?, parts.micros()?),
        },
        pre_keys: PreKeyPolicy {
            low: parts.small()?,
            batch: parts.small()?,
        },
        available: parts.flag()?,
    })
}

// ---- inputs ---------------------------------------------------------------------------------------------------------

pub(super) fn input(input: &Input<'_>, now: Now) -> Line {
    let kind = match input {
        Input::Opened => Kind::Opened,
        Input::Received(_) => Kind::Received,
        Input::Closed => Kind::Closed,
        Input::Loaded(..) => Kind::Loaded,
        Input::Scanned(..) => Kind::Scanned,
        Input::Committed { .. } => Kind::Committed,
        Input::Fenced { .. } => Kind::Fenced,
        Input::Unsealed { .. } => Kind::Unsealed,
        Input::StoreRefused(_) => Kind::StoreRefused,
        Input::Fetched(..) => Kind::Fetched,
        Input::Granted(_) => Kind::Granted,
        Input::Command(..) => Kind::Command,
        Input::Reseed(_) => Kind::Reseed,
        Input::Tick => Kind::Tick,
    };
    let mut line = Line::new(kind);
    line.time(now);
    match input {
        Input::Opened | Input::Closed | Input::Tick => {}
        Input::Received(bytes) => line.blob(*bytes),
        Input::Loaded(id, rows) => {
            line.number(id.0);
            for row in rows {
                line.row(row);
            }
        }
        Input::Scanned(id, rows) => {
            line.number(id.0);
            for (key, row) in rows {
                line.blob(key.to_bytes());
                line.row(row);
            }
        }
        Input::Committed { epoch, upto } => {
            line.number(epoch.0);
            line.number(upto.0);
        }
        Input::Fenced { by } => line.number(by.0),
        Input::Unsealed { history } => line.seal(*history),
        Input::StoreRefused(why) => line.blob(why.as_bytes()),
        Input::Fetched(id, fetched) => {
            line.number(id.0);
            match fetched {
                Fetched::Chunk(bytes) => {
                    line.number(0_u64);
                    line.blob(*bytes);
                }
                Fetched::Done => line.number(1_u64),
                Fetched::Failed { gone } => line.number(2 + u64::from(*gone)),
            }
        }
        Input::Granted(grant) => line.grant(grant),
        Input::Command(id, what) => {
            line.number(id.0);
            command(&mut line, what);
        }
        Input::Reseed(seed) => line.blob(*seed),
    }
    line
}

/// What [`input`] has written.
pub(super) fn read_input(line: &Line) -> Option<(Input<'_>, Now)> {
    let mut parts = Parts::of(line);
    let now = parts.time()?;
    let input = match line.kind()? {
        Kind::Birth | Kind::Done => return None,
        Kind::Opened => Input::Opened,
        Kind::Received => Input::Received(parts.blob()?),
        Kind::Closed => Input::Closed,
        Kind::Loaded => {
            let id = LoadId(parts.number()?);
            let mut rows = Vec::new();
            while !parts.numbers.is_empty() {
                rows.push(parts.row()?);
            }
            Input::Loaded(id, rows)
        }
        Kind::Scanned => {
            let id = LoadId(parts.number()?);
            let mut rows = Vec::new();
            while !parts.numbers.is_empty() {
                rows.push((parts.key()?, parts.row()?));
            }
            Input::Scanned(id, rows)
        }
        Kind::Committed => Input::Committed {
            epoch: Epoch(parts.number()?),
            upto: Seq(parts.number()?),
        },
        Kind::Fenced => Input::Fenced {
            by: Epoch(parts.number()?),
        },
        Kind::Unsealed => Input::Unsealed {
            history: parts.seal()?,
        },
        Kind::StoreRefused => Input::StoreRefused(parts.text()?),
        Kind::Fetched => {
            let id = FetchId(parts.number()?);
            let fetched = match parts.number()? {
                0 => Fetched::Chunk(parts.blob()?),
                1 => Fetched::Done,
                2 => Fetched::Failed { gone: false },
                3 => Fetched::Failed { gone: true },
                _ => return None,
            };
            Input::Fetched(id, fetched)
        }
        Kind::Granted => Input::Granted(parts.grant()?),
        Kind::Command => Input::Command(CommandId(parts.number()?), read_command(&mut parts)?),
        Kind::Reseed => Input::Reseed(parts.array()?),
        Kind::Tick => Input::Tick,
    };
    parts.end((input, now))
}

fn command(line: &mut Line, command: &Command) {
    let verb = match command {
        Command::Link => Verb::Link,
        Command::Send(_) => Verb::Send,
        Command::Acknowledge(_) => Verb::Acknowledge,
        Command::MarkRead { .. } => Verb::MarkRead,
        Command::Presence { .. } => Verb::Presence,
        Command::CheckMailbox => Verb::CheckMailbox,
        Command::Change(_) => Verb::Change,
        Command::Sync(_) => Verb::Sync,
        Command::Contacts { .. } => Verb::Contacts,
        Command::Chats { .. } => Verb::Chats,
        Command::Settings { .. } => Verb::Settings,
        Command::Logout => Verb::Logout,
        Command::Shutdown => Verb::Shutdown,
    };
    line.number(verb as u64);
    match command {
        Command::Link | Command::CheckMailbox | Command::Logout | Command::Shutdown => {}
        Command::Send(SendRequest { id, to, content }) => {
            line.option(id.as_ref(), |line, id| line.blob(id.as_bytes()));
            line.jid(to);
            match content {
                Content::Text(text) => {
                    line.number(0_u64);
                    line.blob(text.as_bytes());
                }
                Content::Message(bytes) => {
                    line.number(1_u64);
                    line.blob(&**bytes);
                }
            }
        }
        Command::Acknowledge(seq) => line.number(seq.0),
        Command::MarkRead { chat, sender, ids } => {
            line.jid(chat);
            line.option(sender.as_ref(), Line::jid);
            for id in ids {
                line.blob(id.as_bytes());
            }
        }
        Command::Presence { available, name } => {
            line.number(*available);
            line.option(name.as_ref(), |line, name| line.blob(name.as_bytes()));
        }
        Command::Change(actions) => {
            for action in actions {
                let (removed, index, data) = action.to_parts(0);
                line.number(removed);
                line.blob(index);
                line.blob(data);
            }
        }
        Command::Sync(collection) => {
            line.option(*collection, |line, collection| {
                line.blob(collection.as_str());
            });
        }
        Command::Contacts { after, limit } | Command::Chats { after, limit } => {
            line.option(after.as_ref(), Line::jid);
            line.number(*limit);
        }
        Command::Settings {
            collection,
            after,
            limit,
        } => {
            line.blob(collection.as_str());
            line.option(*after, |line, after| line.blob(after));
            line.number(*limit);
        }
    }
}

fn read_command(parts: &mut Parts<'_>) -> Option<Command> {
    Some(match Verb::of(parts.number()?)? {
        Verb::Link => Command::Link,
        Verb::Send => Command::Send(SendRequest {
            id: parts.option(|parts| parts.text().map(Into::into))?,
            to: parts.jid()?,
            content: match parts.number()? {
                0 => Content::Text(parts.text()?),
                1 => Content::Message(parts.blob()?.to_vec().into()),
                _ => return None,
            },
        }),
        Verb::Acknowledge => Command::Acknowledge(EventSeq(parts.number()?)),
        Verb::MarkRead => {
            let chat = parts.jid()?;
            let sender = parts.option(Parts::jid)?;
            let mut ids = Vec::new();
            while !parts.blobs.is_empty() {
                ids.push(parts.text()?.into());
            }
            Command::MarkRead { chat, sender, ids }
        }
        Verb::Presence => Command::Presence {
            available: parts.flag()?,
            name: parts.option(Parts::text)?,
        },
        Verb::CheckMailbox => Command::CheckMailbox,
        Verb::Change => {
            let mut actions = Vec::new();
            while !parts.numbers.is_empty() {
                let removed = parts.flag()?;
                let (index, data) = (parts.blob()?.to_vec(), parts.blob()?.to_vec());
                actions.push(Action::from_parts(removed, index, data));
            }
            Command::Change(actions)
        }
        Verb::Sync => Command::Sync(parts.option(Parts::collection)?),
        Verb::Contacts => Command::Contacts {
            after: parts.option(Parts::jid)?,
            limit: parts.small()?,
        },
        Verb::Chats => Command::Chats {
            after: parts.option(Parts::jid)?,
            limit: parts.small()?,
        },
        Verb::Settings => Command::Settings {
            collection: parts.collection()?,
            after: parts.option(Parts::array)?,
            limit: parts.small()?,
        },
        Verb::Logout => Command::Logout,
        Verb::Shutdown => Command::Shutdown,
    })
}
