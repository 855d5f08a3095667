//! A service in another process, or behind real sockets in this one.

use crate::support::Net;
use baton_core::crypto::PublicKey;
use baton_core::jid::Jid;
use baton_core::wire::noise::Trust;
use bytes::Bytes;
use serde_json::{Value, json};
use sim::service::ConnId;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

/// How long one look takes; with [`Net::patience`] ten seconds are a failure.
const LOOK: Duration = Duration::from_millis(25);

/// The addresses that `sim serve` prints, and the connections made to them.
pub(crate) struct Remote {
    ws: String,
    phone: String,
    root: PublicKey,
    sockets: BTreeMap<ConnId, WebSocket<TcpStream>>,
    last_conn: u64,
}

impl Remote {
    pub(crate) fn new(ws: &str, phone: &str, root: PublicKey) -> Self {
        let (ws, phone) = (ws.to_owned(), phone.to_owned());
        Self {
            ws,
            phone,
            root,
            sockets: BTreeMap::new(),
            last_conn: 0,
        }
    }

    /// From the line on standard output.
    pub(crate) fn of_line(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).expect("one line of JSON");
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let root: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&text("root_public_key")[at..at + 2], 16).expect("hex"))
            .collect();
        Self::new(
            &text("ws"),
            &text("phone"),
            PublicKey::from_slice(&root).expect("32 bytes"),
        )
    }

    pub(crate) fn root(&self) -> PublicKey {
        self.root
    }

    /// One HTTP request: status and JSON body.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let host = self.phone.strip_prefix("http://").expect("http");
        let mut stream = TcpStream::connect(host).expect("connected");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

impl Net for Remote {
    fn open(&mut self) -> ConnId {
        let host = self
            .ws
            .strip_prefix("ws://")
            .and_then(|rest| rest.split('/').next())
            .expect("ws");
        let stream = TcpStream::connect(host).expect("connected");
        stream.set_nodelay(true).expect("set");
        let (mut socket, response) = client(&self.ws, stream).expect("upgraded");
        assert!(response.headers().get("sec-websocket-extensions").is_none());
        socket.get_mut().set_read_timeout(Some(LOOK)).expect("set");
        self.last_conn += 1;
        let conn = ConnId(self.last_conn);
        self.sockets.insert(conn, socket);
        conn
    }

    fn give(&mut self, conn: ConnId, bytes: &[u8]) {
        let socket = self.sockets.get_mut(&conn).expect("open");
        // A connection the service has closed takes nothing any more; the test will say what it misses.
        let _ = socket.send(Message::Binary(Bytes::copy_from_slice(bytes)));
    }

    fn messages(&mut self, conn: ConnId) -> Vec<Bytes> {
        let socket = self.sockets.get_mut(&conn).expect("open");
        let mut messages = Vec::new();
        loop {
            match socket.read() {
                Ok(Message::Binary(bytes)) => messages.push(bytes),
                Ok(other) => assert!(other.is_close(), "{other:?}"),
                Err(_) => return messages,
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        // Without a word, as a crash does.
        self.sockets.remove(&conn);
    }

    fn expect_close(&mut self, conn: ConnId) {
        let socket = self.sockets.get_mut(&conn).expect("open");
        for _ in 0..400 {
            match socket.read() {
                Err(Error::Io(_)) => {}
                Err(_) => return,
                Ok(message) => assert!(message.is_close(), "{message:?}"),
            }
        }
        panic!("still open");
    }

    fn scan(&mut self, code: &str, phone: &str) -> (Jid, Jid) {
        let body = json!({ "qr": code, "phone": phone }).to_string();
        let (status, answer) = self.http("POST", "/phone/scan", &body);
        assert_eq!(status, 200, "{answer}");
        let jid = |key: &str| {
            answer[key]
                .as_str()
                .expect("a text")
                .parse()
                .expect("a JID")
        };
        (jid("jid"), jid("lid"))
    }

    fn trust(&self) -> Trust {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        Trust {
            root: self.root,
            now_unix_secs: now.as_secs() as i64,
        }
    }

    fn patience(&self) -> usize {
        400
    }
}
