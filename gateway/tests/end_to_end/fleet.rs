//! `baton serve`, `hosts`, `drain`, `move`: as processes, and beside the verbs that have one account.

use crate::{
    support::{PATIENCE, baton, objects, run, service},
    verbs::{Talking, link},
};
use serde_json::Value;
use sim::serve::SimServer;
use std::path::Path;

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

fn serve(server: &SimServer, store: &Path, host: &str) -> Talking {
    Talking::start(baton(Some(server), store, &["serve", "--host-id", host]))
}

async fn terminate(host: Talking) -> Option<i32> {
    let pid = host.child.id().unwrap().to_string();
    signal(&pid, "TERM").await;
    host.status().await
}

async fn signal(pid: &str, signal: &str) {
    let mut kill = std::process::Command::new("sh");
    kill.arg("-c").arg(format!("kill -{signal} {pid}"));
    assert!(run(kill).await.status.success());
}

async fn hosts(store: &Path) -> Vec<Value> {
    objects(&run(baton(None, store, &["hosts", "--json"])).await.stdout)
}

async fn holder_of(host: &mut Talking, account: &str) {
    host.until_that(|line| line["event"] == "owner" && line["account"] == account)
        .await;
}

async fn online(host: &mut Talking, account: &str) {
    host.until_that(|line| line["state"] == "online" && line["account"] == account)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linked_account_is_served_and_shown_and_moved_and_drained() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", ALICE).await;
    let mut a = serve(&server, &store, "a");
    online(&mut a, "shop").await;
    let mut b = serve(&server, &store, "b");
    b.until("joined").await;

    // An event that was written is done with: nobody is shown it again.
    let text = |text: &str| {
        server
            .with(|service, now| service.phone_send(ALICE, ALICE, text, now))
            .unwrap();
    };
    text("to a");
    a.until_text("to a").await;

    // A table for people, objects for programs.
    let shown = hosts(&store).await;
    let names: Vec<&Value> = shown.iter().map(|host| &host["host"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(shown.iter().all(|host| host["state"] == "active"));
    let output = run(baton(None, &store, &["hosts"])).await;
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.starts_with("HOST"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");

    let output = run(baton(
        None,
        &store,
        &["move", "shop", "--to", "b", "--json"],
    ))
    .await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(objects(&output.stdout)[0]["host"], "b");
    online(&mut b, "shop").await;
    text("to b");
    b.until_text("to b").await;

    // It is pinned there, and goes all the same when that host is drained.
    let output = run(baton(None, &store, &["drain", "b"])).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    holder_of(&mut a, "shop").await;
    online(&mut a, "shop").await;
    text("to a again");
    let seen = a.until_that(|line| line["text"].is_string()).await;
    assert_eq!(
        seen["text"], "to a again",
        "what b has written is done with"
    );
    let output = run(baton(None, &store, &["move", "shop", "--to", "b"])).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    assert_eq!(terminate(b).await, Some(0));
    assert_eq!(terminate(a).await, Some(0));
    let shown = hosts(&store).await;
    assert!(
        shown.iter().all(|host| host["state"] == "left"),
        "{shown:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_verbs_work_beside_serve() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "alice", ALICE).await;
    let mut host = serve(&server, &store, "a");
    online(&mut host, "alice").await;
    // Linked while a host runs: it comes there by itself.
    link(&server, &store, "bob", BOB).await;
    online(&mut host, "bob").await;

    let send = ["send", "alice", BOB, "hello", "--wait", "delivered"];
    let output = run(baton(Some(&server), &store, &send)).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    host.until_text("hello").await;

    // `tail` borrows the account: what comes now is shown there, and afterwards at the host again.
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "bob"]));
    tail.until_that(|line| line["state"] == "online").await;
    let send = ["send", "alice", BOB, "for tail"];
    assert!(
        run(baton(Some(&server), &store, &send))
            .await
            .status
            .success()
    );
    tail.until_text("for tail").await;
    assert_eq!(terminate(tail).await, Some(0));
    online(&mut host, "bob").await;
    let send = ["send", "alice", BOB, "for the host"];
    assert!(
        run(baton(Some(&server), &store, &send))
            .await
            .status
            .success()
    );
    let seen = host
        .until_that(|line| line["event"] == "message" && line["account"] == "bob")
        .await;
    assert_eq!(seen["text"], "for the host", "the other one is done with");
    assert_eq!(terminate(host).await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_now() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", ALICE).await;
    let mut host = serve(&server, &store, "a");
    online(&mut host, "shop").await;
    let pid = host.child.id().unwrap().to_string();
    // Two at once can be one, and the first may be all it takes.
    signal(&pid, "TERM").await;
    host.until("stopping").await;
    let mut kill = std::process::Command::new("sh");
    kill.arg("-c").arg(format!("kill -TERM {pid}"));
    let _too_late = run(kill).await;
    let status = host.status().await;
    assert!(matches!(status, Some(0 | 1)), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fleet_cannot_do_is_status_2_and_one_sentence() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", ALICE).await;
    let mut host = serve(&server, &store, "a");
    online(&mut host, "shop").await;
    for (arguments, sentence) in [
        (&["drain", "b"][..], "there is no host \"b\"; running: a"),
        (
            &["move", "shop", "--to", "b"],
            "there is no host \"b\"; running: a",
        ),
        (
            &["move", "stock", "--to", "a"],
            "there is no account \"stock\"",
        ),
        (
            &["serve", "--host-id", "a"],
            "a host named \"a\" is running already",
        ),
        (
            &["serve", "--host-id", "über"],
            "--host-id has 1 to 64 characters",
        ),
        (
            &["serve", "--host-id", ""],
            "--host-id has 1 to 64 characters",
        ),
        (&["serve", "--capacity", "0"], "--capacity"),
        (&["move", "shop"], "--to"),
    ] {
        let output = run(baton(Some(&server), &store, arguments)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
    // The one that runs has noticed nothing.
    server
        .with(|service, now| service.phone_send(ALICE, ALICE, "still here", now))
        .unwrap();
    host.until_text("still here").await;
    assert_eq!(terminate(host).await, Some(0));

    let nowhere = directory.path().join("other.db");
    for verb in [&["serve"][..], &["hosts"], &["drain", "a"]] {
        let output = run(baton(Some(&server), &nowhere, verb)).await;
        assert_eq!(output.status.code(), Some(2), "{verb:?}: {output:?}");
    }
}

/// A host that was killed leaves its name in the roster for a while; its successor need not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_killed_comes_back_under_its_name() {
    let server = service().await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", ALICE).await;
    let mut first = serve(&server, &store, "a");
    let before = first.until("joined").await["incarnation"].clone();
    online(&mut first, "shop").await;
    first.child.kill().await.unwrap();
    let mut second = serve(&server, &store, "a");
    let after = second.until("joined").await["incarnation"].clone();
    assert_ne!(before, after, "two lives of one host");
    online(&mut second, "shop").await;
    let gone = tokio::time::timeout(PATIENCE, async {
        while hosts(&store).await.iter().any(|host| {
            host["incarnation"] == before && matches!(host["state"].as_str(), Some("active"))
        }) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    gone.await.expect("the first life ends");
    assert_eq!(terminate(second).await, Some(0));
}
