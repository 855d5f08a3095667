use super::*;
use crate::engine::LoadId;
use crate::{
    appstate::{Collection, action::Action},
    crypto::KeyPair,
    flow::{
        Command, CommandId, Content, Endpoint, FetchId, Fetched, Limits, PreKeyPolicy, Profile,
        SendRequest, ServiceConfig, Timing,
    },
    jid::Jid,
    state::{
        BusinessId, Epoch, EventSeq, Incarnation, Key, Lease, Micros, Record, Row, Seal, Seq, Term,
        UnixMillis,
    },
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

fn master() -> SecretKey {
    SecretKey::from_bytes(std::array::from_fn(|n| u8::try_from(n).unwrap()))
}

fn rng(seed: u8) -> Rng {
    Rng::from_seed([seed; 32])
}

fn at(micros: u64) -> Now {
    Now {
        mono: Micros(micros),
        unix: UnixMillis(1_767_225_600_000 + i64::try_from(micros / 1000).unwrap()),
    }
}

fn grant() -> Grant {
    Grant {
        lease: Lease {
            term: Term {
                epoch: Epoch(7),
                holder: Incarnation(u64::MAX),
                history: Seal::FIRST,
            },
            applied: Seq(0),
            sealed: Seal::FIRST,
        },
        until: Micros::from_secs(3_600),
    }
}

fn birth() -> Birth {
    Birth {
        account: AccountId {
            business: BusinessId::new("acme").unwrap(),
            device: 3,
        },
        config: Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint("ws://127.0.0.1:1/ws/chat".into()),
                root: KeyPair::generate(&mut rng(9)).public,
            },
            profile: Profile {
                push_name: Some("Grüße".into()),
                platform: -1,
                ..Profile::default()
            },
            timing: Timing::default(),
            pre_keys: PreKeyPolicy::default(),
            available: true,
        },
        grant: grant(),
        seed: Seed([5; 32]),
        now: at(1_000),
    }
}

/// An engine that is driven by hand, and its journal.
struct Run {
    engine: Engine,
    writer: Writer,
    file: Vec<u8>,
    wire: Vec<u8>,
}

impl Run {
    fn begin() -> Self {
        let mut file = Vec::new();
        let writer = Writer::begin(&master(), &birth(), &mut rng(1), &mut file);
        Self {
            engine: birth().build(),
            writer,
            file,
            wire: Vec::new(),
        }
    }

    fn give(&mut self, input: Input<'_>, now: Now) {
        self.writer.input(&input, now, &mut self.file);
        self.engine.handle(input, now);
    }

    fn poll(&mut self) -> Output {
        let output = self.engine.poll(&mut self.wire);
        self.writer.output(&output, &self.wire, &mut self.file);
        self.wire.clear();
        output
    }

    /// A new account that is to be linked, up to the first bytes of its handshake and a bad answer.
    fn live(&mut self) {
        let mut time = 2_000;
        self.give(Input::Command(CommandId(1), Command::Link), at(time));
        let mut hellos = 0;
        while hellos < 3 {
            time += 1_000;
            match self.poll() {
                Output::Load(id, keys) => {
                    let rows = keys.iter().map(|_| Row::Absent).collect();
                    self.give(Input::Loaded(id, rows), at(time));
                }
                Output::Scan(id, _) => self.give(Input::Scanned(id, Vec::new()), at(time)),
                Output::Commit(batch) => {
                    let (epoch, upto) = (batch.term.epoch, batch.seq);
                    self.give(Input::Committed { epoch, upto }, at(time));
                }
                Output::Open(_) => self.give(Input::Opened, at(time)),
                Output::Transmit => {
                    hellos += 1;
                    self.give(Input::Received(&[0, 0, 3, 1, 2, 3]), at(time));
                }
                Output::Close => self.give(Input::Closed, at(time)),
                Output::Idle {
                    wake: Some(wake), ..
                } => {
                    time = time.max(wake.0);
                    self.give(Input::Tick, at(time));
                }
                Output::Stopped(reason) => panic!("{reason}"),
                _ => {}
            }
        }
        while !is_last(&self.poll()) {}
    }
}

#[test]
fn a_run_is_done_again_byte_for_byte() {
    let mut run = Run::begin();
    run.live();
    let (mut inputs, mut sent) = (0, 0);
    let done = replay(&master(), &run.file, |_, seen| match seen {
        Seen::Input(..) => inputs += 1,
        Seen::Output(output) => sent += u32::from(*output == Output::Transmit),
    });
    let done = done.unwrap();
    assert_eq!((done.inputs, sent), (inputs, 3));
    assert!(done.inputs > 10 && done.outputs > done.inputs, "{done:?}");
}

/// As when a program does something else than the one whose journal it is: here, because it was not told something.
#[test]
fn the_first_difference_is_named() {
    let mut run = Run::begin();
    run.live();
    // The journal does not know of this one.
    run.engine
        .handle(Input::Closed, at(3_600_000_000 - 2_000_000));
    while !is_last(&run.poll()) {}
    let lines = replay(&master(), &run.file, |_, _| {});
    let Err(JournalError::Differs { line, found }) = lines else {
        panic!("{lines:?}");
    };
    assert!(line > 20, "{line}");
    assert!(!found.is_empty());
}

#[test]
fn a_file_that_ends_anywhere_is_good_up_to_there() {
    let mut run = Run::begin();
    run.live();
    let whole = replay(&master(), &run.file, |_, _| {}).unwrap();
    let mut last = 0;
    for end in (PRELUDE..run.file.len()).step_by(97) {
        match replay(&master(), &run.file[..end], |_, _| {}) {
            Ok(done) => {
                assert!(done.lines >= last && done.lines <= whole.lines);
                last = done.lines;
            }
            // Not even the first line.
            Err(error) => {
                assert_eq!(error, JournalError::NotAJournal);
                assert_eq!(last, 0);
            }
        }
    }
    assert!(last > whole.lines - 5);
}

#[test]
fn a_changed_file_and_another_key_are_noticed() {
    let mut run = Run::begin();
    run.live();
    let other = SecretKey::from_bytes([7; 32]);
    let read = |master: &SecretKey, file: &[u8]| replay(master, file, |_, _| {}).err();
    assert_eq!(read(&other, &run.file), Some(JournalError::WrongKey));
    assert_eq!(read(&master(), b"BATON"), Some(JournalError::NotAJournal));
    let mut newer = run.file.clone();
    newer[9] = 2;
    assert_eq!(read(&master(), &newer), Some(JournalError::Newer(2)));
    let mut damaged = run.file.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(matches!(
        read(&master(), &damaged),
        Some(JournalError::Damaged(_))
    ));
}

#[test]
fn nothing_of_an_account_is_in_the_clear() {
    let mut run = Run::begin();
    run.give(
        Input::Command(
            CommandId(1),
            Command::Presence {
                available: true,
                name: Some("Wilhelmina".into()),
            },
        ),
        at(5_000),
    );
    let holds = |needle: &[u8]| run.file.windows(needle.len()).any(|part| part == needle);
    assert!(!holds(b"Wilhelmina") && !holds(b"acme") && !holds(&[5; 32]));
    assert_eq!(format!("{:?}", birth().seed), "Seed(..)");
}

fn jid() -> Jid {
    Jid::pn("15550001111").unwrap()
}

/// One of each kind, with everything in it that can be there or not.
fn inputs() -> Vec<Input<'static>> {
    let lid: Jid = "123456:7@lid".parse().unwrap();
    let commands = vec![
        Command::Link,
        Command::Send(SendRequest {
            id: Some("3EB0".into()),
            to: jid(),
            content: Content::Text("hé".into()),
        }),
        Command::Send(SendRequest {
            id: None,
            to: lid.clone(),
            content: Content::Message(vec![1, 2].into()),
        }),
        Command::Acknowledge(EventSeq(9)),
        Command::MarkRead {
            chat: jid(),
            sender: Some(lid.clone()),
            ids: vec!["a".into(), "b".into()],
        },
        Command::MarkRead {
            chat: jid(),
            sender: None,
            ids: vec![],
        },
        Command::Presence {
            available: false,
            name: None,
        },
        Command::CheckMailbox,
        Command::Change(vec![
            Action::Pin {
                chat: jid(),
                pinned: true,
            },
            Action::Unknown {
                index: vec![1].into(),
                data: vec![2, 3].into(),
                removed: true,
            },
        ]),
        Command::Sync(None),
        Command::Sync(Some(Collection::RegularHigh)),
        Command::Contacts {
            after: Some(jid()),
            limit: 4,
        },
        Command::Chats {
            after: None,
            limit: u32::MAX,
        },
        Command::Settings {
            collection: Collection::Regular,
            after: Some([3; 32]),
            limit: 1,
        },
        Command::Logout,
        Command::Shutdown,
    ];
    let rows = || {
        vec![
            Row::Absent,
            Row::Present(Record(vec![1, 2, 3].into())),
            Row::Corrupt,
            Row::Present(Record(vec![].into())),
        ]
    };
    let keys = [
        Key::Device,
        Key::Session(lid),
        Key::PreKey(9),
        Key::Counters,
    ];
    let mut all = vec![
        Input::Opened,
        Input::Received(b"bytes"),
        Input::Received(b""),
        Input::Closed,
        Input::Loaded(LoadId(3), rows()),
        Input::Loaded(LoadId(4), vec![]),
        Input::Scanned(LoadId(5), keys.into_iter().zip(rows()).collect()),
        Input::Committed {
            epoch: Epoch(1),
            upto: Seq(2),
        },
        Input::Fenced { by: Epoch(3) },
        Input::Unsealed {
            history: Seal {
                timeline: 4,
                generation: 5,
            },
        },
        Input::StoreRefused("no".into()),
        Input::Fetched(FetchId(1), Fetched::Chunk(b"piece")),
        Input::Fetched(FetchId(1), Fetched::Done),
        Input::Fetched(FetchId(1), Fetched::Failed { gone: false }),
        Input::Fetched(FetchId(1), Fetched::Failed { gone: true }),
        Input::Granted(grant()),
        Input::Reseed([8; 32]),
        Input::Tick,
    ];
    let commands = commands.into_iter().enumerate();
    all.extend(commands.map(|(n, command)| Input::Command(CommandId(n as u64), command)));
    all
}

#[test]
fn every_input_comes_back_as_it_was() {
    for input in inputs() {
        let line = codec::input(&input, at(77_000));
        let bytes = line.encode_to_vec();
        let read = Line::decode(&*bytes).unwrap();
        let (back, now) = codec::read_input(&read).unwrap_or_else(|| panic!("{input:?}"));
        assert_eq!(now, at(77_000));
        // Inputs cannot be compared; their lines can, and so can what they show.
        assert_eq!(codec::input(&back, now), line, "{input:?}");
        assert_eq!(format!("{back:?}"), format!("{input:?}"));
    }
}

#[test]
fn a_birth_comes_back_as_it_was() {
    let line = codec::birth(&birth());
    let back = codec::read_birth(&line).unwrap();
    assert_eq!(format!("{back:?}"), format!("{:?}", birth()));
    assert_eq!(codec::birth(&back), line);
}

proptest! {
    /// Lines are authenticated, but an older or newer release may have written them.
    #[test]
    fn a_line_of_anything_is_refused_or_understood(
        kind in 0_u32..20,
        numbers in proptest::collection::vec(0_u64..20, 0..40),
        blobs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
    ) {
        let mut line = Line::new(Kind::Tick);
        line.numbers = numbers;
        line.blobs = blobs;
        // The kind is the first field: one byte of tag, one of value.
        let mut bytes = line.encode_to_vec();
        bytes[1] = u8::try_from(kind).unwrap();
        let line = Line::decode(&*bytes).unwrap();
        let _ = codec::read_birth(&line);
        if let Some((input, now)) = codec::read_input(&line) {
            let again = codec::input(&input, now);
            let (same, _) = codec::read_input(&again).unwrap();
            prop_assert_eq!(format!("{same:?}"), format!("{input:?}"));
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_journal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&VERSION.to_be_bytes());
        file.extend_from_slice(&bytes);
        let fails = |file: &[u8]| replay(&master(), file, |_, _| {}).is_err();
        prop_assert!(fails(&file) && fails(&bytes));
    }
}
