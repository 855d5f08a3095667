//! Encryption at rest and the way from one database to another, by the commands.

use crate::{
    support::{Owner, baton, config, run, service},
    verbs::{Talking, link},
};
use baton_core::state::{Micros, memory::MemoryStore};
use sim::serve::SimServer;
use std::{fs, path::Path};

const SECRET: &str = "the word that must not be found on the disk";

/// What a command said, and that it said it with this status.
async fn ends(status: i32, server: Option<&SimServer>, store: &Path, arguments: &[&str]) -> String {
    let output = run(baton(server, store, arguments)).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?}: {output:?}"
    );
    said + &String::from_utf8_lossy(&output.stdout)
}

fn on_disk(directory: &Path, word: &str) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap();
    files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .filter(|path| {
            let bytes = fs::read(path).unwrap();
            bytes
                .windows(word.len())
                .any(|window| window == word.as_bytes())
        })
        .map(|path| path.display().to_string())
        .collect()
}

async fn friend(server: &SimServer) -> Owner {
    let memory = MemoryStore::new(|| Micros(0));
    let id = baton_tokio::account_named(&memory, "friend").await.unwrap();
    let mut friend = Owner::start(&memory, &id, config(server));
    friend.link(server, "15550000002").await;
    friend
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_the_disk_is_encrypted_unless_one_says_otherwise() {
    let server = service().await;
    let mut friend = friend(&server).await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    let key = directory.path().join("baton.db.key");
    link(&server, &store, "shop", "15550000001").await;
    assert!(key.is_file(), "made with the database");
    // A process that owns the account gets the message and is killed before anybody has taken it.
    let arguments = ["send", "shop", "15550000002", SECRET];
    ends(0, Some(&server), &store, &arguments).await;
    assert_eq!(friend.message().await.text.as_deref(), Some(SECRET));
    assert_eq!(on_disk(directory.path(), SECRET), Vec::<String>::new());

    // Another key is no key, no key is no key, and in the clear there is nothing to be had.
    let other = directory.path().join("other");
    let path = other.to_str().unwrap();
    ends(0, None, &store, &["key", "generate", "--out", path]).await;
    let exists = ends(2, None, &store, &["key", "generate", "--out", path]).await;
    assert!(exists.contains("exists"), "{exists}");
    let wrong = ends(
        2,
        Some(&server),
        &store,
        &["tail", "shop", "--key-file", path],
    )
    .await;
    assert!(wrong.contains("is encrypted under master key"), "{wrong}");
    let clear = ends(
        2,
        Some(&server),
        &store,
        &["tail", "shop", "--no-encryption"],
    )
    .await;
    assert!(clear.contains("is encrypted"), "{clear}");
    let kept = directory.path().join("kept");
    fs::rename(&key, &kept).unwrap();
    let lost = ends(2, Some(&server), &store, &["tail", "shop"]).await;
    assert!(lost.contains("its master key is not in"), "{lost}");
    assert!(
        !key.exists(),
        "no new key takes the place of one that is lost"
    );
    fs::rename(&kept, &key).unwrap();

    // The master key can be changed without touching a row, the data keys without stopping anybody.
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    tail.until_that(|object| object["state"] == "online").await;
    let rotated = ends(0, None, &store, &["key", "rotate"]).await;
    assert!(rotated.contains("rows are under new keys"), "{rotated}");
    friend
        .send("BESIDE", "15550000001", "beside the rotation")
        .await;
    tail.until_text("beside the rotation").await;
    tail.child.start_kill().unwrap();
    tail.child.wait().await.unwrap();
    ends(0, None, &store, &["key", "rewrap", "--to", path]).await;
    let old = ends(2, Some(&server), &store, &["tail", "shop"]).await;
    assert!(old.contains("is encrypted under master key"), "{old}");
    let mut tail = Talking::start(baton(
        Some(&server),
        &store,
        &["tail", "shop", "--key-file", path],
    ));
    friend
        .send("AFTER", "15550000001", "after the rotation")
        .await;
    tail.until_text("after the rotation").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_the_clear_stays_so_until_it_is_told() {
    let server = service().await;
    let friend = friend(&server).await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    let clear = ["link", "--account", "shop", "--no-encryption"];
    let mut linking = Talking::start(baton(Some(&server), &store, &clear));
    let qr = linking.until("qr").await;
    let qr = qr["qr"].as_str().unwrap();
    server
        .with(|service, now| service.scan(qr, Some("15550000001"), now))
        .unwrap();
    linking.until("linked").await;
    assert_eq!(linking.status().await, Some(0));
    let refused = ends(2, Some(&server), &store, &["tail", "shop"]).await;
    assert!(refused.contains("is not encrypted"), "{refused}");

    let key = directory.path().join("baton.db.key");
    let path = key.to_str().unwrap();
    ends(0, None, &store, &["key", "generate", "--out", path]).await;
    let refused = ends(2, Some(&server), &store, &["tail", "shop"]).await;
    assert!(
        refused.contains("`baton key encrypt` changes that"),
        "{refused}"
    );
    let done = ends(0, None, &store, &["key", "encrypt"]).await;
    assert!(done.contains("rows are encrypted"), "{done}");
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    friend.send("ENCRYPTED", "15550000001", SECRET).await;
    tail.until_text(SECRET).await;
    tail.child.start_kill().unwrap();
    tail.child.wait().await.unwrap();
    assert_eq!(on_disk(directory.path(), SECRET), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_moves_to_another_database_and_runs_in_one() {
    let server = service().await;
    let mut friend = friend(&server).await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = here.path().join("baton.db");
    let target = there.path().join("baton.db");
    link(&server, &source, "shop", "15550000001").await;
    let (lock, file) = (here.path().join("lock"), here.path().join("shop.baton"));
    let (lock, file) = (lock.to_str().unwrap(), file.to_str().unwrap());
    ends(0, None, &source, &["key", "generate", "--out", lock]).await;
    let export = ["export", file, "--account", "shop", "--with-key", lock];

    // Not while it runs.
    let mut tail = Talking::start(baton(Some(&server), &source, &["tail", "shop"]));
    tail.until_that(|object| object["state"] == "online").await;
    let running = ends(2, None, &source, &export).await;
    assert!(running.contains("stop it first"), "{running}");
    tail.child.start_kill().unwrap();
    tail.child.wait().await.unwrap();
    let text = "written before the move";
    ends(
        0,
        Some(&server),
        &source,
        &["send", "shop", "15550000002", text],
    )
    .await;
    assert_eq!(friend.message().await.text.as_deref(), Some(text));

    let done = ends(0, None, &source, &export).await;
    assert!(done.contains("cannot run here any more"), "{done}");
    let gone = ends(1, Some(&server), &source, &["tail", "shop"]).await;
    assert!(gone.contains("was exported to another database"), "{gone}");
    let import = ["import", file, "--with-key", lock];
    let looked = ends(
        0,
        None,
        &target,
        &["import", file, "--with-key", lock, "--look"],
    )
    .await;
    assert!(looked.contains("linked"), "{looked}");
    ends(0, None, &target, &import).await;
    let again = ends(2, None, &target, &import).await;
    assert!(again.contains("imported already"), "{again}");

    let mut tail = Talking::start(baton(Some(&server), &target, &["tail", "shop"]));
    friend.send("MOVED", "15550000001", "found you").await;
    tail.until_text("found you").await;
    let text = "written after the move";
    ends(
        0,
        Some(&server),
        &target,
        &["send", "shop", "15550000002", text],
    )
    .await;
    assert_eq!(friend.message().await.text.as_deref(), Some(text));
    let service = server.service();
    assert_eq!(service.lock().unwrap().books().violations(), []);
}

/// The operator says so, and the account goes on under keys and numbers that nobody has used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_goes_on_with_a_gap_and_without_a_key_used_twice() {
    let server = service().await;
    let mut friend = friend(&server).await;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("baton.db");
    link(&server, &store, "shop", "15550000001").await;
    let send = |text| ["send", "shop", "15550000002", text];
    ends(0, Some(&server), &store, &send("before")).await;
    assert_eq!(friend.message().await.text.as_deref(), Some("before"));

    let said = ends(0, None, &store, &["restored"]).await;
    assert!(said.contains("generation 2"), "{said}");
    ends(0, Some(&server), &store, &send("after")).await;
    assert_eq!(friend.message().await.text.as_deref(), Some("after"));
    let mut tail = Talking::start(baton(Some(&server), &store, &["tail", "shop"]));
    let gap = tail.until("history_lost").await;
    assert_eq!(gap["losses"], 1);
    assert!(gap["seq"].as_u64() > gap["after"].as_u64(), "{gap}");
    friend.send("BACK", "15550000001", "and back").await;
    tail.until_text("and back").await;
    let service = server.service();
    assert_eq!(service.lock().unwrap().books().violations(), []);
}
