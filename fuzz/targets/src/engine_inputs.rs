//! A whole engine, driven by any sequence of inputs: a service that says anything, a driver that stumbles, a store that
//! answers out of order or lies, clocks that jump.
//!
//! Checked: it does not panic; one input brings a bounded number of outputs and memory stays within the limits; from the
//! end of the lease on nothing leaves but pings; once stopped, it stays stopped. And as long as the store is honest,
//! however slow: an event is shown, a message sent, a request accepted only when its row is durable.

use crate::{
    input::Take,
    rig::{Peer, Rig, SECOND, ready},
    words,
};
use baton_core::{
    appstate::{
        Collection,
        action::{Action, MuteEnd},
    },
    engine::{Grant, Input, LoadId, Output},
    flow::{Command, Content, FetchId, Fetched, Limits, Reply, SendRequest, Timing},
    proto::record,
    state::{Epoch, EventSeq, Key, Micros, Record, Row, Seal, Seq, Store, UnixMillis, codec},
    wire::node::{self, Node},
};
use std::sync::OnceLock;

/// Outputs that one input may bring: a handful of effects per ciphertext, id or child that is looked at.
const OUTPUTS: usize = 4096;

/// Bytes that rows in use and unfinished writes may take beside the cache.
const SLACK: usize = 2 << 20;

/// Inputs per run: enough for every order of a few things, short enough to be fast.
const STEPS: usize = 40;

pub(crate) struct Trial<'a> {
    pub(crate) rig: Rig,
    pub(crate) take: Take<'a>,
    /// The store has said what is not so, or the driver has.
    lied: bool,
    /// The latest end of the lease that was ever granted.
    until: Micros,
    acknowledged: u64,
    said: usize,
}

/// See the module.
pub fn target(data: &[u8]) {
    let mut take = Take::new(data);
    let choice = take.u8();
    let mut rig = Rig::new(choice & 1);
    befriend(&mut rig);
    if choice & 2 != 0 {
        rig.go_online();
    }
    rig.hold = choice & 4 != 0;
    rig.answers = choice & 8 == 0;
    rig.honest = choice & 16 == 0;
    rig.confused = true;
    let until = rig.grant.until;
    let mut trial = Trial {
        rig,
        take,
        lied: false,
        until,
        acknowledged: 0,
        said: 0,
    };
    for _ in 0..STEPS {
        if trial.take.is_empty() {
            break;
        }
        trial.step();
        trial.check();
        if trial.rig.stopped.is_some() {
            break;
        }
    }
    trial.end();
}

/// Somebody who writes to the account as it was linked. Made once: keys and signatures cost more than most inputs.
pub(crate) fn befriend(rig: &mut Rig) {
    static PEER: OnceLock<Peer> = OnceLock::new();
    let peer = PEER.get_or_init(|| {
        let mut rig = Rig::new(0);
        rig.peer("800000000000005");
        rig.peers.remove(0)
    });
    rig.peers.push(peer.clone());
}

impl<'a> Trial<'a> {
    /// A trial of this rig with an honest store.
    pub(crate) const fn of(rig: Rig, take: Take<'a>) -> Self {
        let until = rig.grant.until;
        Self {
            rig,
            take,
            lied: true,
            until,
            acknowledged: 0,
            said: 0,
        }
    }

    pub(crate) fn step(&mut self) {
        self.said += 1;
        let n = self.said;
        let (rig, take) = (&mut self.rig, &mut self.take);
        match take.u8() % 22 {
            0..=2 => {
                let node = outer(take);
                rig.say(&node);
            }
            3 => {
                let nodes: Vec<Node> = (0..take.u8() % 4).map(|_| outer(take)).collect();
                rig.say_all(&nodes);
            }
            4 => {
                if let Ok(node) = node::decode_owned(take.short()) {
                    rig.say(&node);
                }
            }
            5 => {
                let text = rig.text(0, &format!("text-{n}"), "text");
                rig.say(&text);
            }
            6 => {
                let mut rng = rig.rng.fork("cipher");
                let (kind, bytes) = rig.peers[0].ciphertext("text", &mut rng);
                let bytes = take.forged(&bytes);
                let stanza = rig.peers[0].stanza(&format!("cipher-{n}"), kind, bytes);
                rig.say(&stanza);
            }
            7 => {
                if !rig.unanswered.is_empty() {
                    let at = usize::from(take.u8()) % rig.unanswered.len();
                    let id = rig.unanswered.remove(at);
                    let kind = *take.pick(&["result", "result", "error"]);
                    let inside = words::stanza(take, 0);
                    let answer = Node::new("iq").attr("id", id).attr("type", kind);
                    rig.say(&answer.child(inside));
                }
            }
            8 => rig.give(Input::Received(take.short())),
            9 | 10 => self.command(),
            11 => {
                rig.now.mono.0 = rig.now.mono.0.saturating_add(span(take));
                rig.give(Input::Tick);
            }
            12 => {
                // A clock that runs backwards for one input.
                let now = rig.now;
                rig.now.mono.0 = now.mono.0.saturating_sub(span(take));
                rig.give(Input::Tick);
                rig.now = now;
            }
            13 => {
                let by = i64::from(take.u16()) - 32_768;
                rig.now.unix = UnixMillis(rig.now.unix.0.saturating_add(by * 10_000_000));
                rig.give(Input::Tick);
            }
            14 | 15 => self.commit(),
            16 => self.loaded(),
            17 => self.scanned(),
            18 => match take.u8() % 3 {
                0 => rig.hang_up(),
                1 => {
                    self.lied = true;
                    rig.give(Input::Opened);
                }
                _ => rig.give(Input::Closed),
            },
            19 => self.grant(),
            20 => self.last_word(),
            _ => match take.u8() % 4 {
                0 => rig.hold = !rig.hold,
                1 => rig.honest = !rig.honest,
                2 => rig.answers = !rig.answers,
                _ => {
                    let (id, bytes) = (FetchId(take.number()), take.short());
                    let what = *take.pick(&[0, 1, 2, 3]);
                    rig.give(Input::Fetched(
                        id,
                        match what {
                            0 => Fetched::Done,
                            1 => Fetched::Failed { gone: true },
                            2 => Fetched::Failed { gone: false },
                            _ => Fetched::Chunk(bytes),
                        },
                    ));
                }
            },
        }
    }

    fn command(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        let command = match take.u8() % 14 {
            0..=3 => {
                let id = take.u8();
                Command::Send(SendRequest {
                    id: (id % 3 != 0).then(|| format!("send-{}", id % 8).into()),
                    to: words::jid(take),
                    content: match take.u8() % 3 {
                        0 => Content::Message(take.short().to_vec().into()),
                        _ => Content::Text("x".repeat(take.u8().into())),
                    },
                })
            }
            4 => {
                let upto = take.number();
                self.acknowledged = self.acknowledged.max(upto);
                Command::Acknowledge(EventSeq(upto))
            }
            5 => Command::Link,
            6 => Command::CheckMailbox,
            7 => Command::Presence {
                available: take.u8() > 99,
                name: Some(String::from_utf8_lossy(take.short()).into_owned()),
            },
            8 => Command::MarkRead {
                chat: words::jid(take),
                sender: None,
                ids: vec!["a".into(); take.u8().into()],
            },
            9 => Command::Sync(Some(*take.pick(&Collection::ALL))),
            10 => Command::Contacts {
                after: None,
                limit: take.number() as u32,
            },
            11 => Command::Chats {
                after: Some(words::jid(take)),
                limit: take.number() as u32,
            },
            12 => Command::Change(vec![Action::Mute {
                chat: words::jid(take),
                until: Some(MuteEnd::At(take.number() as i64)),
            }]),
            _ => match take.u8() {
                0..240 => Command::CheckMailbox,
                240..248 => Command::Logout,
                _ => Command::Shutdown,
            },
        };
        rig.command(command);
    }

    /// Carries out the next batches, or says that others were carried out.
    fn commit(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        match take.u8() {
            0..230 => {
                for _ in 0..=take.u8() % 3 {
                    let Some(batch) = rig.held.pop_front() else {
                        break;
                    };
                    let (epoch, upto) = (batch.term.epoch, batch.seq);
                    let outcome = ready(rig.store.commit(vec![batch]));
                    // A store can refuse what was built on lies.
                    assert!(self.lied || outcome.is_ok(), "{outcome:?}");
                    rig.give(Input::Committed { epoch, upto });
                }
            }
            230..240 => {
                // Another epoch's: says nothing about ours.
                let epoch = Epoch(rig.grant.lease.term.epoch.0.wrapping_add(1));
                let upto = Seq(take.number());
                rig.give(Input::Committed { epoch, upto });
            }
            _ => {
                self.lied = true;
                let epoch = rig.grant.lease.term.epoch;
                let upto = Seq(take.number());
                rig.give(Input::Committed { epoch, upto });
            }
        }
    }

    fn loaded(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        let what = take.u8();
        if what < 200 {
            // Late, and not in the order of the questions.
            if rig.asked.is_empty() {
                return;
            }
            let at = usize::from(what) % rig.asked.len();
            let (id, keys, scan) = rig.asked.remove(at);
            match scan {
                Some(scan) => {
                    let rows = ready(rig.store.scan(&rig.account, scan)).expect("rows");
                    rig.give(Input::Scanned(id, rows));
                }
                None => {
                    let rows = ready(rig.store.load(&rig.account, keys)).expect("rows");
                    rig.give(Input::Loaded(id, rows));
                }
            }
            return;
        }
        self.lied = true;
        rig.hold = true;
        let made_up = LoadId(take.number());
        let id = match rig.asked.iter().position(|(_, _, scan)| scan.is_none()) {
            Some(at) if what < 240 => rig.asked.remove(at).0,
            _ => made_up,
        };
        let rows = (0..take.u8() % 24).map(|_| row(take)).collect();
        rig.give(Input::Loaded(id, rows));
    }

    fn scanned(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        if rig.asked.is_empty() && take.u8() < 200 {
            return;
        }
        self.lied = true;
        rig.hold = true;
        let made_up = LoadId(take.number());
        let id = match rig.asked.iter().position(|(_, _, scan)| scan.is_some()) {
            Some(at) if take.u8() < 200 => rig.asked.remove(at).0,
            _ => made_up,
        };
        let rows = (0..take.u8() % 24).map(|_| (key(take), row(take)));
        let rows = rows.collect();
        rig.give(Input::Scanned(id, rows));
    }

    fn grant(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        let mut lease = rig.grant.lease;
        let by = i64::from(take.u8()) - 40;
        let until = Micros(rig.now.mono.0.saturating_add_signed(by * 1_000_000));
        match take.u8() {
            0..180 => self.until = self.until.max(until),
            // Somebody else's.
            180..220 => lease.term.epoch.0 += 1,
            _ => {
                lease.applied = Seq(take.number());
                self.until = self.until.max(until);
            }
        }
        rig.give(Input::Granted(Grant { lease, until }));
    }

    fn last_word(&mut self) {
        let (rig, take) = (&mut self.rig, &mut self.take);
        match take.u8() {
            0..200 => rig.give(Input::Reseed([take.u8(); 32])),
            200..220 => rig.give(Input::Fenced {
                by: Epoch(take.number()),
            }),
            220..240 => rig.give(Input::Unsealed {
                history: Seal {
                    timeline: take.number() as u32,
                    generation: take.number() as u32,
                },
            }),
            _ => rig.give(Input::StoreRefused("no".into())),
        }
    }

    pub(crate) fn check(&mut self) {
        let rig = &mut self.rig;
        assert!(
            rig.outputs <= OUTPUTS,
            "{} outputs for one input",
            rig.outputs
        );
        let limit = Limits::gateway().cache_bytes.get() as usize + SLACK;
        let bytes = rig.engine.cached_bytes();
        assert!(bytes <= limit, "{bytes} bytes of rows in memory");
        let said = rig.look();
        if rig.stopped.is_some() {
            return;
        }
        if rig.now.mono.plus(Timing::default().grant_margin) >= self.until {
            assert!(said.is_silent(), "after the lease: {said:?}");
        }
        if self.lied {
            return;
        }
        for (seq, event) in &said.events {
            let kept = matches!(rig.row(Key::Inbox(*seq)), Row::Present(_));
            assert!(kept || seq.0 <= self.acknowledged, "{event:?} is not kept");
        }
        let durable = |rig: &Rig, id: &str| {
            matches!(rig.row(Key::Outbox(id.into())), Row::Present(_))
                || matches!(rig.row(Key::Sent(id.into())), Row::Present(_))
        };
        for (_, reply) in &said.replies {
            if let Ok(Reply::Accepted { id }) = reply {
                // One that failed at once is an event.
                let failed = said
                    .events
                    .iter()
                    .any(|(_, event)| format!("{event:?}").contains(id.as_str()));
                assert!(durable(rig, id) || failed, "{id} is accepted and not kept");
            }
        }
        for node in &said.nodes {
            let id = node.get_string("id").unwrap_or_default();
            if node.tag() == "message" && id.starts_with("send-") {
                assert!(durable(rig, &id), "{id} is sent and not kept");
            }
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(reason) = self.rig.stopped.clone() {
            for input in [
                Input::Opened,
                Input::Tick,
                Input::Closed,
                Input::Granted(self.rig.grant),
            ] {
                self.rig.give(input);
            }
            let mut wire = Vec::new();
            assert_eq!(self.rig.engine.poll(&mut wire), Output::Stopped(reason));
            assert!(wire.is_empty());
        }
    }
}

/// A stanza with a tag that an engine looks at.
fn outer(take: &mut Take<'_>) -> Node {
    let tag = *take.pick(words::STANZAS);
    let mut node = words::stanza(take, 0);
    node.tag = tag.into();
    node
}

/// Up to ten days, mostly seconds.
fn span(take: &mut Take<'_>) -> u64 {
    match take.u8() {
        0..100 => u64::from(take.u16()) * 1000,
        100..220 => u64::from(take.u8()) * SECOND,
        _ => u64::from(take.u16()) * 13 * SECOND,
    }
}

pub(crate) fn key(take: &mut Take<'_>) -> Key {
    let n = take.number();
    match take.u8() % 16 {
        0 => Key::Outbox(format!("send-{}", n % 8).into()),
        1 => Key::Inbox(EventSeq(n)),
        2 => Key::Mailbox(format!("{n}").into()),
        3 => Key::Device,
        4 => Key::PreKey(n as u32),
        5 => Key::Session(words::jid(take)),
        6 => Key::Counters,
        7 => Key::Identity(words::jid(take)),
        8 => Key::DeviceList(words::jid(take)),
        9 => Key::SenderKey {
            group: words::jid(take),
            sender: words::jid(take),
        },
        10 => Key::AppStateVersion(take.pick(&Collection::ALL).name()),
        11 => Key::AppStateSyncKey(vec![0, 0, 0, 0, 0, n as u8].into()),
        12 => Key::Sent(format!("send-{}", n % 8).into()),
        13 => Key::AppStateVersion(format!("history/{}", n % 4).into()),
        14 => Key::LidMap(words::jid(take).user().into()),
        _ => Key::Seen([n as u8; 32]),
    }
}

/// What a row of any table may hold: mostly something that decodes.
pub(crate) fn row(take: &mut Take<'_>) -> Row {
    match take.u8() % 8 {
        0 => Row::Absent,
        1 => Row::Corrupt,
        2 => Row::Present(Record(take.short().to_vec().into())),
        3 => Row::Present(codec::encode(&record::Counters {
            next_event: Some(take.number()),
            next_order: Some(take.number()),
            next_pre_key: Some(take.number() as u32),
            first_unconfirmed_pre_key: Some(take.number() as u32),
            burn: Some(take.number() as u32),
            next_signed_pre_key: Some(take.number() as u32),
            pre_keys_due: Some(take.u8().is_multiple_of(2)),
            origin: None,
        })),
        4 => Row::Present(codec::encode(&record::Outbound {
            state: Some(i32::from(take.u8()) % 7),
            to: Some(words::jid(take).to_string()),
            content: Some(take.short().to_vec()),
            order: Some(take.number()),
            stanza: Some(take.short().to_vec()),
            ..Default::default()
        })),
        _ => Row::Present(codec::wrap(take.short())),
    }
}

/// Sequences of every step, on an engine that is online and on one that is not.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut rng = baton_core::crypto::Rng::from_seed([6; 32]);
    let mut seeds = Vec::new();
    for choice in [0u8, 2, 6, 14, 18, 22, 30] {
        for _ in 0..3 {
            let bytes = (0..160).map(|_| rng.next_u32() as u8);
            seeds.push(std::iter::once(choice).chain(bytes).collect());
        }
        // Texts and sends, commits behind them.
        seeds.push(
            [
                &[choice][..],
                &[
                    5, 5, 9, 0, 1, 1, 3, 14, 0, 0, 5, 14, 0, 2, 11, 120, 9, 14, 0, 2,
                ],
            ]
            .concat(),
        );
    }
    seeds
}
