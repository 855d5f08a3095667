//! The service on real sockets: in this process, and as `sim serve` in another.

#[path = "support/remote.rs"]
mod remote;
mod support;

use baton_core::wire::node::Node;
use remote::Remote;
use serde_json::json;
use sim::serve::{ServeError, ServeOptions, SimServer};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use support::{Client, Net as _};

const ALICE: &str = "15550000001";
const BOB: &str = "15550000002";

/// One request to the media host: head and body of what came before the connection ended.
fn media(host: &str, head: &str, body: &[u8]) -> (String, Vec<u8>) {
    let host = host.strip_prefix("http://").expect("http");
    let mut stream = TcpStream::connect(host).expect("connected");
    let length = body.len();
    let rest = format!("Host: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(format!("{head}\r\n{rest}").as_bytes())
        .expect("sent");
    stream.write_all(body).expect("sent");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    // A file without end is left, one that breaks off ends in an error.
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..read]);
        if answer.len() > 1 << 20 {
            break;
        }
    }
    let at = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let body = answer.split_off(at + 4);
    (
        String::from_utf8(answer).expect("text").to_lowercase(),
        body,
    )
}

#[test]
fn files_are_left_and_read_whole_or_in_part() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime
        .block_on(SimServer::start(ServeOptions::default()))
        .expect("started");
    let host = server.media_url.clone();
    let file: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let token = URL_SAFE_NO_PAD.encode(baton_core::crypto::sha256(&[&file]));
    let leave = format!("POST /mms/md-app-state/{token}?auth=sim HTTP/1.1");
    let (head, body) = media(&host, &leave, &file);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    let path = told["direct_path"].as_str().expect("a path").to_owned();
    assert!(
        told["url"]
            .as_str()
            .is_some_and(|url| url.starts_with(&host))
    );
    let (head, _) = media(&host, &leave, b"another file");
    assert!(head.starts_with("http/1.1 400"), "{head}");

    let (head, body) = media(&host, &format!("GET {path}&hash=x HTTP/1.1"), b"");
    assert!(
        head.contains("content-length: 100000") && body == file,
        "{head}"
    );
    let part = format!("GET {path} HTTP/1.1\r\nRange: bytes=70000-70099");
    let (head, body) = media(&host, &part, b"");
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert!(
        head.contains("content-range: bytes 70000-70099/100000"),
        "{head}"
    );
    assert_eq!(body, file[70_000..70_100]);
    let (head, _) = media(&host, "GET /v/sim/none.enc HTTP/1.1", b"");
    assert!(head.starts_with("http/1.1 404"), "{head}");
    runtime
        .block_on(server.shutdown())
        .expect("nothing to save");
}

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
