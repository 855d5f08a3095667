//! Downloads from hosts that answer as hosts do, over pipes in memory.

use baton_core::{
    flow::{CHUNK_BYTES, Endpoint, FetchId, MediaRequest},
    media::MediaKind,
};
use baton_tokio::{ConnectError, Connector, Fetches, Step};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// Hosts by their endpoints.
#[derive(Clone, Default)]
struct Hosts(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    /// What each says to a request.
    answers: BTreeMap<String, Vec<u8>>,
    /// The requests.
    heard: Vec<String>,
}

impl Hosts {
    fn with(hosts: &[(&str, Vec<u8>)]) -> Self {
        let this = Self::default();
        this.0.lock().unwrap().answers = hosts
            .iter()
            .map(|(name, answer)| ((*name).to_owned(), answer.clone()))
            .collect();
        this
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().heard.clone()
    }
}

impl Connector for Hosts {
    type Stream = DuplexStream;

    async fn connect(&self, endpoint: &Endpoint) -> Result<DuplexStream, ConnectError> {
        let answer = self.0.lock().unwrap().answers.get(&endpoint.0).cloned();
        let Some(answer) = answer else {
            return Err(ConnectError::Endpoint);
        };
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                let Ok(byte) = theirs.read_u8().await else {
                    return;
                };
                heard.push(byte);
            }
            shared
                .lock()
                .unwrap()
                .heard
                .push(String::from_utf8(heard).unwrap());
            let _ = theirs.write_all(&answer).await;
        });
        Ok(ours)
    }
}

fn request(hosts: &[&str]) -> MediaRequest {
    MediaRequest {
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        path: "/v/file?hash=abc&mms-type=md-app-state".into(),
        kind: MediaKind::AppState,
    }
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
}

async fn all(fetches: &mut Fetches<Hosts>, id: FetchId) -> (Vec<u8>, Step) {
    let mut bytes = Vec::new();
    loop {
        match fetches.next().await {
            (other, Step::Chunk(chunk)) => {
                assert_eq!(other, id);
                assert!(chunk.len() <= CHUNK_BYTES);
                bytes.extend_from_slice(&chunk);
                fetches.more(id);
            }
            (_, end) => return (bytes, end),
        }
    }
}

#[tokio::test]
async fn a_file_comes_in_chunks() {
    let body: Vec<u8> = (0..300_000u32).map(|n| (n >> 3) as u8).collect();
    let length = format!("200 OK\r\nContent-Length: {}", body.len());
    let mut chunked = Vec::new();
    for part in body.chunks(100_000) {
        chunked.extend(format!("{:x}\r\n", part.len()).into_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    for sent in [
        answer(&length, &body),
        answer("200 OK\r\nTransfer-Encoding: chunked", &chunked),
        // Without a length it ends with the connection.
        answer("200 OK\r\nConnection: close", &body),
    ] {
        let hosts = Hosts::with(&[("wss://b.test/", sent)]);
        let mut fetches = Fetches::new(hosts.clone());
        // The first host cannot be reached.
        fetches.start(FetchId(1), request(&["a.test", "b.test"]));
        assert_eq!(
            all(&mut fetches, FetchId(1)).await,
            (body.clone(), Step::Done)
        );
        let heard = hosts.heard();
        assert_eq!(heard.len(), 1);
        assert!(
            heard[0].starts_with("GET /v/file?hash=abc&mms-type=md-app-state HTTP/1.1\r\n"),
            "{heard:?}"
        );
        assert!(heard[0].contains("host: b.test\r\n"), "{heard:?}");
    }
}

#[tokio::test]
async fn failures_are_told_apart() {
    let gone = |code: &str| answer(&format!("{code}\r\nContent-Length: 0"), b"");
    let cut = answer("200 OK\r\nContent-Length: 10", b"12345");
    for (hosts, expected) in [
        (vec![gone("404 Not Found")], Step::Failed { gone: true }),
        (
            vec![gone("404 Not Found"), gone("410 Gone")],
            Step::Failed { gone: true },
        ),
        // One of them may have it another time.
        (
            vec![gone("404 Not Found"), gone("503 Busy")],
            Step::Failed { gone: false },
        ),
        (
            vec![b"this is not HTTP\r\n\r\n".to_vec()],
            Step::Failed { gone: false },
        ),
        (vec![cut], Step::Failed { gone: false }),
        (vec![], Step::Failed { gone: false }),
    ] {
        let names: Vec<String> = (0..hosts.len()).map(|n| format!("h{n}")).collect();
        let known: Vec<(String, Vec<u8>)> = names
            .iter()
            .map(|name| format!("ws://{name}/"))
            .zip(hosts)
            .collect();
        let known: Vec<(&str, Vec<u8>)> =
            known.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
        let mut fetches = Fetches::new(Hosts::with(&known));
        // A service without TLS has hosts without TLS.
        fetches.speak_as(&Endpoint("ws://service.test/".into()));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        fetches.start(FetchId(7), request(&names));
        assert_eq!(all(&mut fetches, FetchId(7)).await.1, expected);
    }
}

/// One that is stopped says nothing more; others go on. Nothing is read ahead of being wanted.
#[tokio::test]
async fn a_stopped_download_is_silent() {
    let body = vec![7; 500_000];
    let sent = answer(&format!("200 OK\r\nContent-Length: {}", body.len()), &body);
    let hosts = Hosts::with(&[("wss://a/", sent)]);
    let mut fetches = Fetches::new(hosts);
    fetches.start(FetchId(1), request(&["a"]));
    let (first, _) = fetches.next().await;
    assert_eq!(first, FetchId(1));
    fetches.start(FetchId(2), request(&["a"]));
    fetches.more(FetchId(1));
    fetches.stop(FetchId(1));
    fetches.more(FetchId(1));
    assert_eq!(all(&mut fetches, FetchId(2)).await, (body, Step::Done));
}
