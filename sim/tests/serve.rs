//! The service on real sockets: in this process, and as `sim serve` in another.

mod support;

use baton_core::wire::node::Node;
use serde_json::json;
use sim::serve::{ServeError, ServeOptions, SimServer};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use support::remote::Remote;
use support::{Client, Net as _};

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

#[test]
fn two_companions_talk_through_real_sockets() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime
        .block_on(SimServer::start(ServeOptions::default()))
        .expect("started");
    let mut net = Remote::new(&server.ws_url, &server.phone_url, server.root_public_key);
    let mut alice = Client::online(&mut net, 1, ALICE);
    let mut bob = Client::online(&mut net, 2, BOB);
    alice.text(&mut net, &bob.user(), "3EB0A1", "hello");
    let message = bob.find(&mut net, "message", |n| {
        n.tag() == "message" && n.get("category").is_none()
    });
    assert_eq!(bob.open(&message).expect("readable"), "hello");
    bob.receipt(&mut net, &message, None);
    alice.find(&mut net, "receipt", |n| {
        n.get_jid("from") == Some(bob.user())
    });

    let body = json!({ "phone": ALICE, "to": BOB, "text": "from the phone" }).to_string();
    let (status, sent) = net.http("POST", "/phone/send", &body);
    assert_eq!(status, 200);
    let message = bob.find(&mut net, "message", |n| {
        n.get_str("id") == sent["id"].as_str()
    });
    assert_eq!(bob.open(&message).expect("readable"), "from the phone");

    // What harnesses and demos read.
    let (_, books) = net.http("GET", "/books", "");
    let lines = books["messages"].as_array().expect("messages");
    let line = lines
        .iter()
        .find(|line| line["id"] == "3EB0A1")
        .expect("booked");
    assert_eq!(
        (&line["sender"], &line["accepted"], &line["delivered"]),
        (&json!("15550000001:1"), &json!(1), &json!(3))
    );
    assert_eq!(books["violations"], json!([]));
    assert_eq!(books["anomalies"], json!([]));
    let (_, full) = net.http("GET", "/books?full=1", "");
    assert_eq!(full["devices"].as_array().map(Vec::len), Some(2));
    let direct = server.with(|service, _| service.books().violations().len());
    assert_eq!(direct, 0);

    // A fault by HTTP, and errors that say what is wrong.
    let (status, _) = net.http(
        "POST",
        "/fault",
        &json!({ "fault": "close", "device": bob.id() }).to_string(),
    );
    assert_eq!(status, 200);
    net.expect_close(bob.conn.expect("connected"));
    assert_eq!(
        net.http("GET", "/books", "").1["faults"],
        json!({ "close": 1 })
    );
    assert_eq!(net.http("POST", "/fault", r#"{"fault":"heal"}"#).0, 200);
    for (path, body) in [
        ("/fault", r#"{"fault":"nonsense"}"#),
        ("/phone/scan", r#"{"qr":"nonsense"}"#),
        ("/phone/scan", "nonsense"),
        ("/phone/send", r#"{"phone":"1","to":"2","text":""}"#),
        ("/phone/unlink", r#"{"phone":"1","device":1}"#),
    ] {
        let (status, answer) = net.http("POST", path, body);
        assert!(
            (400..500).contains(&status) && answer["error"].is_string(),
            "{path} {body}: {status} {answer}"
        );
    }
    runtime
        .block_on(server.shutdown())
        .expect("nothing to save");
}

#[test]
fn only_loopback_unless_told_otherwise() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let everywhere = ServeOptions {
        listen: ([0, 0, 0, 0], 0).into(),
        ..ServeOptions::default()
    };
    let refused = runtime
        .block_on(SimServer::start(everywhere))
        .expect_err("refused");
    assert!(matches!(refused, ServeError::NotLoopback(_)));
}

#[test]
fn a_restarted_process_knows_everybody() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let state = directory.path().join("state");
    let (mut process, mut net) = serve(&state);
    let mut alice = Client::online(&mut net, 1, ALICE);
    let mut bob = Client::online(&mut net, 2, BOB);
    bob.hang_up(&mut net);
    alice.text(&mut net, &bob.user(), "3EB0A1", "kept");
    let root = net.root();
    stop(&mut process);

    let (mut process, mut net) = serve(&state);
    assert_eq!(net.root(), root);
    let queued = bob.relogin(&mut net);
    assert!(bob.resumed, "the server's key is the same");
    let kept: Vec<&Node> = queued
        .iter()
        .filter(|n| n.get_str("id") == Some("3EB0A1"))
        .collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(bob.open(kept[0]).expect("readable"), "kept");
    stop(&mut process);
}

fn serve(state: &std::path::Path) -> (Child, Remote) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--phone",
            "127.0.0.1:0",
            "--state",
        ])
        .arg(state)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("stdout"))
        .read_line(&mut line)
        .expect("a line");
    (process, Remote::of_line(&line))
}

/// As an orchestrator does it: SIGTERM, and a clean end.
fn stop(process: &mut Child) {
    let told = Command::new("kill")
        .args(["-TERM", &process.id().to_string()])
        .status()
        .expect("kill");
    assert!(told.success());
    assert!(process.wait().expect("ended").success());
}
