//! `baton link`, `send` and `tail` as processes, and what they say when they cannot.

use crate::support::{Owner, PATIENCE, baton, config, objects, run, service};
use baton_core::state::{Claim, HostInfo, Incarnation, Micros, Store as _, memory::MemoryStore};
use baton_store_sqlite::{Options, SqliteStore};
use serde_json::Value;
use sim::serve::SimServer;
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// A running `baton … --json`, line by line.
pub(crate) struct Talking {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talking {
    pub(crate) fn start(command: std::process::Command) -> Self {
        let mut command = Command::from(command);
        command
            .arg("--json")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on to the object with this `event`.
    pub(crate) async fn until(&mut self, event: &str) -> Value {
        self.until_that(|object| object["event"] == event).await
    }

    pub(crate) async fn until_that(&mut self, mut pick: impl FnMut(&Value) -> bool) -> Value {
        let search = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("more lines");
                let object = serde_json::from_str(&line).unwrap();
                if pick(&object) {
                    return object;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .expect("in time")
    }

    pub(crate) async fn until_text(&mut self, text: &str) {
        self.until_that(|object| object["text"] == text).await;
    }

    pub(crate) async fn status(mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("in time")
            .unwrap()
            .code()
    }
}

pub(crate) async fn link(server: &SimServer, store: &Path, name: &str, phone: &str) -> Value {
    let mut linking = Talking::start(baton(Some(server), store, &["link", "--account", name]));
    let qr = linking.until("qr").await;
    server
        .with(|service, now| service.scan(qr["qr"].as_str().unwrap(), Some(phone), now))
        .unwrap();
    let linked = linking.until("linked").await;
    assert_eq!(linking.status().await, Some(0));
    linked
}

/// What the phone's owner has in the address book and has set for chats can be printed, whoever owns the account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_and_chats_are_what_the_phone_says() {
    use sim::service::settings::Change;
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", "15550000001").await;
    let friend = "15550000002@s.whatsapp.net".to_owned();
    let changes = [
        Change::Contact {
            user: friend.clone(),
            name: Some("Robert Friend".into()),
        },
        Change::Mute {
            chat: friend.clone(),
            until: Some(-1),
        },
        Change::Pin {
            chat: friend.clone(),
            pinned: true,
        },
    ];
    server
        .with(|service, now| service.phone_change("15550000001", &changes, now))
        .unwrap();
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    let print = |verb: &'static str| run(baton(Some(&server), &store, &[verb, "shop", "--json"]));
    // While somebody else owns the account.
    let pinned = async {
        loop {
            let chats = objects(&print("chats").await.stdout);
            if let Some(chat) = chats.into_iter().find(|chat| chat["pinned"] == true) {
                return chat;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let chat = tokio::time::timeout(PATIENCE, pinned)
        .await
        .expect("in time");
    assert_eq!(chat["chat"], friend);
    assert_eq!(
        (&chat["muted"], &chat["muted_until"]),
        (&true.into(), &Value::Null)
    );
    let contacts = objects(&print("contacts").await.stdout);
    let contact = contacts.iter().find(|contact| contact["user"] == friend);
    assert_eq!(contact.expect("it is there")["full_name"], "Robert Friend");
    tail.child.start_kill().unwrap();
    let lines = run(baton(Some(&server), &store, &["contacts", "shop"])).await;
    let lines = String::from_utf8(lines.stdout).unwrap();
    assert!(lines.contains("Robert Friend"), "{lines}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_then_send_then_tail() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    let linked = link(&server, &store, "shop", "15550000001").await;
    assert_eq!(
        (&linked["account"], &linked["jid"]),
        (&"shop".into(), &"15550000001:1@s.whatsapp.net".into())
    );
    assert!(
        linked["lid"].as_str().unwrap().ends_with("@lid"),
        "{linked}"
    );

    // Linking again changes nothing and needs no phone.
    let again = run({
        let mut again = baton(
            Some(&server),
            &store,
            &["link", "--account", "shop", "--json"],
        );
        again.stdin(Stdio::null());
        again
    })
    .await;
    assert!(again.status.success());
    assert_eq!(objects(&again.stdout)[0]["event"], "linked");

    // A friend, in this process.
    let memory = MemoryStore::new(|| Micros(0));
    let id = baton_tokio::account_named(&memory, "friend").await.unwrap();
    let mut friend = Owner::start(&memory, &id, config(&server));
    friend.link(&server, "15550000002").await;

    // Nobody owns the account: `send` does, for the duration. `delivered` comes when the friend's device has it.
    let arguments = [
        "send",
        "shop",
        "+1 555 000 0002",
        "good morning",
        "--wait",
        "delivered",
        "--json",
    ];
    let sent = run(baton(Some(&server), &store, &arguments)).await;
    assert!(sent.status.success(), "{sent:?}");
    let said = objects(&sent.stdout);
    let events: Vec<&str> = said
        .iter()
        .filter_map(|object| object["event"].as_str())
        .collect();
    assert_eq!(events, ["accepted", "sent", "delivered"]);
    let got = friend.message().await;
    assert_eq!(
        (got.text.as_deref(), got.id.as_str()),
        (Some("good morning"), said[0]["id"].as_str().unwrap())
    );

    // `tail` shows what `send` left, in order, and then what comes.
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    assert_eq!(
        tail.until_that(|object| object["seq"] == 1).await["event"],
        "linked"
    );
    assert_eq!(tail.until("sent").await["id"], said[0]["id"]);
    friend
        .send("FROM-FRIEND", "15550000001", "and to you")
        .await;
    let message = tail.until_that(|object| object["text"].is_string()).await;
    assert_eq!(
        (&message["text"], &message["id"]),
        (&"and to you".into(), &"FROM-FRIEND".into())
    );

    // While `tail` owns the account, `send` leaves its request in the mailbox; under the same id, once.
    for _ in 0..2 {
        let arguments = [
            "send",
            "shop",
            "15550000002",
            "through the mailbox",
            "--id",
            "MAILBOX-1",
            "--json",
        ];
        let sent = run(baton(Some(&server), &store, &arguments)).await;
        assert!(sent.status.success(), "{sent:?}");
    }
    assert_eq!(tail.until("sent").await["id"], "MAILBOX-1");
    let got = friend.message().await;
    assert_eq!(
        (got.text.as_deref(), got.id.as_str()),
        (Some("through the mailbox"), "MAILBOX-1")
    );

    // A `tail` that is killed shows again what it may not have shown; one that follows waits for nobody.
    tail.child.start_kill().unwrap();
    tail.child.wait().await.unwrap();
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    friend.send("AFTER", "15550000001", "still there?").await;
    let message = tail.until_that(|object| object["id"] == "AFTER").await;
    assert_eq!(message["text"], "still there?");

    let service = server.service();
    let service = service.lock().unwrap();
    assert_eq!(service.books().violations(), []);
    assert!(
        service
            .books()
            .devices()
            .all(|(_, device)| device.live_twice.is_empty())
    );
}

/// A process that is frozen keeps its lock file and its connection; the lease runs out all the same, and when the
/// process wakes up it finds that it owns nothing.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_is_replaced_and_does_not_fight() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", "15550000001").await;
    let say = |text: &str| {
        server
            .with(|service, now| service.add_phone("15550000002", None, now))
            .unwrap();
        server
            .with(|service, now| service.phone_send("15550000002", "15550000001", text, now))
            .unwrap();
    };
    let signal = |process: &Talking, name: &str| {
        let id = process.child.id().unwrap().to_string();
        assert!(
            std::process::Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    };
    let online = |object: &Value| object["state"] == "online";

    let mut first = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    first.until_that(online).await;
    // A process that is frozen in the middle of a write keeps SQLite's lock, and nobody can write until it goes on:
    // the one case in which nothing but its death helps. This is about the others.
    let options = Options {
        busy: Duration::from_millis(200),
        ..Options::default()
    };
    let probe = SqliteStore::open(&store, options).unwrap();
    let id = baton_tokio::account_named(&probe, "shop").await.unwrap();
    let (who, ttl) = (Incarnation(7), Micros::from_secs(6));
    let joined = probe.join(who, HostInfo::named("probe"), ttl).await;
    assert!(joined.is_ok());
    loop {
        signal(&first, "-STOP");
        match probe.claim(who, vec![id.clone()]).await.as_deref() {
            Ok([Claim::Held { .. }]) => break,
            Ok(other) => panic!("{other:?} of an account that is held"),
            Err(_locked) => {
                signal(&first, "-CONT");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let begin = std::time::Instant::now();
    say("while it sleeps");
    let mut second = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    second.until_text("while it sleeps").await;
    let took = begin.elapsed();
    println!("taken over from a frozen process in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");

    signal(&first, "-CONT");
    say("after it woke up");
    second.until_text("after it woke up").await;
    // It neither shows messages nor takes the account back, until the second gives it up.
    signal(&second, "-TERM");
    assert_eq!(second.status().await, Some(0));
    say("and now it is its own again");
    let next = first.until_that(|object| object["text"].is_string()).await;
    assert_eq!(next["text"], "and now it is its own again");
    let service = server.service();
    assert_eq!(service.lock().unwrap().books().violations(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_begin_is_status_2_and_one_sentence() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    let text = directory.path().join("text");
    std::fs::write(
        &text,
        "this is not a database, whatever its name says; it is long enough to be looked at",
    )
    .unwrap();
    link(&server, &store, "shop", "15550000001").await;
    // An account that was made and never linked.
    let mut linking = Talking::start(baton(Some(&server), &store, &["link", "--account", "new"]));
    linking.until("qr").await;
    linking.child.kill().await.unwrap();

    let nowhere = directory.path().join("no/such/directory/baton.db");
    let missing = directory.path().join("missing.db");
    let cases: &[(&Path, &[&str], &str)] = &[
        (&nowhere, &["link"], "baton: cannot open "),
        (&text, &["link"], "is not a SQLite database"),
        (&missing, &["tail", "shop"], "baton: there is no database "),
        (
            &missing,
            &["send", "shop", "15550000002", "x"],
            "baton: there is no database ",
        ),
        (
            &store,
            &["tail", "nobody"],
            "baton: there is no account \"nobody\" in ",
        ),
        (
            &store,
            &["send", "nobody", "15550000002", "x"],
            "baton: there is no account \"nobody\" in ",
        ),
        (
            &store,
            &["tail", "new"],
            "baton: account \"new\" is not linked; ",
        ),
        (
            &store,
            &["send", "new", "15550000002", "x"],
            "baton: account \"new\" is not linked; ",
        ),
        (
            &store,
            &["send", "shop", "not a number", "x"],
            "neither a phone number with country code nor a user's JID",
        ),
        (
            &store,
            &["send", "shop", "15550000002", ""],
            "TEXT is empty",
        ),
        (
            &store,
            &["link", "--account", "bad name"],
            "baton: cannot make account \"bad name\": ",
        ),
        (
            &store,
            &["link", "--service-url", "http://127.0.0.1/"],
            "not a ws:// or wss:// URL",
        ),
        (
            &store,
            &[
                "link",
                "--account",
                "x",
                "--service-url",
                "ws://127.0.0.1:9/",
            ],
            "cannot be reached: ",
        ),
        (
            &store,
            &["tail", "shop", "--service-root", "abcd"],
            "64 hexadecimal digits",
        ),
        (
            &store,
            &["link", "--store", "mysql://x"],
            "neither sqlite:PATH nor postgres://",
        ),
        (
            &store,
            &["link", "--store", "postgres://me:secret@127.0.0.1:1/x"],
            "cannot open the database at 127.0.0.1:1/x: no database to write to",
        ),
        (
            &store,
            &["tail", "shop", "--key-file", "/nowhere/key"],
            "cannot read the key file /nowhere/key",
        ),
        (
            &store,
            &["tail", "shop", "--key-command", "echo no key"],
            "is not a key",
        ),
    ];
    for (store, arguments, sentence) in cases {
        // Flags of the case are the last ones, and those count.
        let url = arguments.contains(&"--service-url") || arguments.contains(&"--service-root");
        let mut command = baton((!url).then_some(&server), store, &[]);
        if arguments.contains(&"--store") {
            command = std::process::Command::new(env!("CARGO_BIN_EXE_baton"));
        }
        command.args(*arguments);
        let output = run(command).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
        assert!(!said.contains("secret"), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_sent_fails_and_says_why() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", "15550000001").await;
    // Nobody has this number.
    let output = run(baton(
        Some(&server),
        &store,
        &["send", "shop", "15559999999", "x", "--json"],
    ))
    .await;
    let said = objects(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(said[0]["event"], "accepted");
    assert_eq!(said[1]["event"], "failed");
    // The service is gone: it stays queued, and the next owner sends it.
    let command = baton(
        Some(&server),
        &store,
        &[
            "send",
            "shop",
            "15550000001",
            "to myself",
            "--timeout",
            "1",
            "--json",
        ],
    );
    server.shutdown().await.unwrap();
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("stays queued"),
        "{output:?}"
    );
}
