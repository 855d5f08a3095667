//! An engine over `std::net` and threads: the whole job of an embedder, without any runtime.
//!
//! ```text
//! cargo run -p sim -- serve                 # prints the addresses and the root key
//! cargo run -p baton-core --example blocking -- --service-url ws://… --service-root HEX
//! curl -d '{"qr": "<the printed text>", "phone": "15550000001"}' <phone address>/phone/scan
//! curl -d '{"phone": "15550000001", "to": "15550000001", "text": "hello"}' <phone address>/phone/send
//! ```
//!
//! It links, prints what it receives, and acknowledges each event once it is printed. The store is in memory, so the
//! account ends with the process; everything else is as it would be in earnest. One rule carries it all: give the
//! engine every input with the time, then do what `poll` says, in its order, until it says `Idle`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the engine is pure; whoever drives it is not"
)]

use baton_core::{
    crypto::PublicKey,
    engine::{Engine, Grant, Input, Now, Output},
    flow::{
        Command, CommandId, Config, Endpoint, Event, Fetched, Limits, Notice, PreKeyPolicy,
        Profile, ServiceConfig, Timing,
    },
    state::{
        Beat, Beaten, BusinessId, Claim, HostInfo, Incarnation, Micros, Outcome, Store, UnixMillis,
        memory::MemoryStore,
    },
};
use std::{
    error::Error,
    future::Future,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    pin::pin,
    sync::mpsc::{self, RecvTimeoutError},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tungstenite::{Bytes, Message, WebSocket, protocol::Role};

const LEASE: Micros = Micros::from_secs(6);
const WHO: Incarnation = Incarnation(1);

fn main() -> Result<(), Box<dyn Error>> {
    let (url, root) = arguments()?;
    let clock = Clock(Instant::now());
    let store = MemoryStore::new(move || clock.now().mono);
    let account = block_on(store.create_account(&BusinessId::default(), "example"))?;

    // 1. The right to act: the host's lease, and the account under it. The grant counts from before the host joined, so
    //    that it ends here before it ends there.
    let asked_at = clock.now().mono;
    block_on(store.join(WHO, HostInfo::named("example"), LEASE))?;
    let claims = block_on(store.claim(WHO, vec![account.clone()]))?;
    let [Claim::Granted(lease)] = claims[..] else {
        return Err("somebody else holds the account".into());
    };
    let mut grant = Grant {
        lease,
        until: asked_at.plus(LEASE),
    };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    let mut engine = Engine::new(account.clone(), config(url, root), grant, seed, clock.now());
    engine.handle(Input::Command(CommandId(1), Command::Link), clock.now());

    // 2. One channel for everything that other threads have to say; connections are numbered so that the last words
    //    of an old one are not taken for a new one's.
    let (tell, news) = mpsc::sync_channel(64);
    let mut connection: Option<Connection> = None;
    let mut connections = 0;
    let mut commands = 1;
    let mut wire = Vec::new();
    loop {
        // 3. Do what the engine says, in its order, until it has nothing more to say. Inputs may be given in between.
        wire.clear();
        let wake = match engine.poll(&mut wire) {
            Output::Commit(batch) => {
                let (epoch, upto) = (batch.term.epoch, batch.seq);
                let input = match block_on(store.commit(vec![batch]))?.pop() {
                    Some(Outcome::Fenced { by }) => Input::Fenced { by },
                    Some(Outcome::Unsealed { history }) => Input::Unsealed { history },
                    Some(Outcome::Rejected(why)) => Input::StoreRefused(why),
                    _ => Input::Committed { epoch, upto },
                };
                engine.handle(input, clock.now());
                continue;
            }
            Output::Load(id, keys) => {
                let rows = block_on(store.load(&account, keys))?;
                engine.handle(Input::Loaded(id, rows), clock.now());
                continue;
            }
            Output::Scan(id, scan) => {
                let rows = block_on(store.scan(&account, scan))?;
                engine.handle(Input::Scanned(id, rows), clock.now());
                continue;
            }
            Output::Open(Endpoint(url)) => {
                connections += 1;
                match Connection::open(&url, connections, tell.clone()) {
                    Ok(opened) => {
                        connection = Some(opened);
                        engine.handle(Input::Opened, clock.now());
                    }
                    Err(error) => {
                        eprintln!("no connection: {error}");
                        engine.handle(Input::Closed, clock.now());
                    }
                }
                continue;
            }
            Output::Transmit | Output::KeepAlive => {
                // A connection that cannot be written to is closed; its reader will say so.
                if let Some(connection) = &mut connection {
                    connection.send(Message::Binary(Bytes::copy_from_slice(&wire)));
                }
                continue;
            }
            Output::Close => {
                // The reader sees the end and reports it: one `Closed` for each `Open`.
                if let Some(connection) = &mut connection {
                    connection.close();
                }
                continue;
            }
            // This example has no HTTP: files that the phone offers stay where they are.
            Output::Fetch(id, _) => {
                let failed = Fetched::Failed { gone: true };
                engine.handle(Input::Fetched(id, failed), clock.now());
                continue;
            }
            Output::FetchMore(_) | Output::StopFetch(_) => continue,
            Output::Event(seq, event) => {
                show(&event);
                // Printed is as good as kept, here. A real consumer acknowledges what its own database has.
                commands += 1;
                let acknowledge = Input::Command(CommandId(commands), Command::Acknowledge(seq));
                engine.handle(acknowledge, clock.now());
                continue;
            }
            Output::Notice(Notice::Qr { text, valid }) => {
                println!("scan within {} s: {text}", valid.0 / 1_000_000);
                continue;
            }
            Output::Notice(notice) => {
                eprintln!("{notice:?}");
                continue;
            }
            Output::Reply(CommandId(1), result) => {
                eprintln!(
                    "linking: {}",
                    if result.is_ok() { "done" } else { "failed" }
                );
                continue;
            }
            Output::Reply(..) => continue,
            Output::Idle { wake, .. } => wake,
            Output::Stopped(reason) => {
                eprintln!("stopped: {reason}");
                return Ok(());
            }
        };

        // 4. The lease, long before it runs out.
        let now = clock.now();
        let renewal = Micros(grant.until.0 - LEASE.0 / 2);
        if now.mono >= renewal {
            let beat = Beat {
                draining: false,
                accounts: 1,
                live: 0,
                ttl: LEASE,
            };
            if let Beaten::Renewed(_) = block_on(store.beat(WHO, beat))? {
                grant.until = now.mono.plus(LEASE);
                engine.handle(Input::Granted(grant), now);
            }
            continue;
        }

        // 5. Wait for news or for the time the engine wants to be woken. While it has no appetite for bytes they stay
        //    where they are; the channel holds few of them, so TCP tells the service to wait. (Here commits are
        //    immediate, so it always has.)
        let until = wake.map_or(renewal, |wake| wake.min(renewal));
        let pause = Duration::from_micros(until.since(now.mono).0);
        let input = match news.recv_timeout(pause) {
            Ok((number, _)) if number != connections => continue,
            Ok((_, News::Bytes(bytes))) => {
                engine.handle(Input::Received(&bytes), clock.now());
                continue;
            }
            Ok((_, News::Ping(bytes))) => {
                if let Some(connection) = &mut connection {
                    connection.send(Message::Pong(bytes));
                }
                continue;
            }
            Ok((_, News::Gone)) => {
                connection = None;
                Input::Closed
            }
            Err(RecvTimeoutError::Timeout) => Input::Tick,
            Err(RecvTimeoutError::Disconnected) => return Err("nobody is left to talk to".into()),
        };
        engine.handle(input, clock.now());
    }
}

fn show(event: &Event) {
    match event {
        Event::Message(message) => println!(
            "{}: {}",
            message.chat,
            message.text.as_deref().unwrap_or("(no text)")
        ),
        Event::Linked { jid, .. } => println!("linked as {jid}"),
        other => println!("{other:?}"),
    }
}

/// What the thread of a connection has to say.
enum News {
    Bytes(Bytes),
    /// To be answered by whoever may write.
    Ping(Bytes),
    Gone,
}

/// The writing half; a thread has the reading half.
struct Connection {
    socket: WebSocket<TcpStream>,
}

impl Connection {
    fn open(
        url: &str,
        number: u64,
        tell: mpsc::SyncSender<(u64, News)>,
    ) -> Result<Self, Box<dyn Error>> {
        let address = url
            .strip_prefix("ws://")
            .and_then(|rest| rest.split('/').next())
            .ok_or("only ws:// here: TLS is one more layer around the stream")?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let reading = stream.try_clone()?;
        let (socket, _) = tungstenite::client(url, stream)?;
        // The client speaks first in this protocol, so nothing was read beyond the handshake of the WebSocket.
        let mut reader = WebSocket::from_raw_socket(ReadOnly(reading), Role::Client, None);
        thread::spawn(move || {
            loop {
                let news = match reader.read() {
                    Ok(Message::Binary(bytes)) => News::Bytes(bytes),
                    Ok(Message::Ping(bytes)) => News::Ping(bytes),
                    Ok(Message::Text(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                    Ok(Message::Close(_)) | Err(_) => News::Gone,
                };
                let last = matches!(news, News::Gone);
                if tell.send((number, news)).is_err() || last {
                    return;
                }
            }
        });
        Ok(Self { socket })
    }

    fn send(&mut self, message: Message) {
        if self.socket.send(message).is_err() {
            let _ = self.socket.get_ref().shutdown(Shutdown::Both);
        }
    }

    fn close(&mut self) {
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
        let _ = self.socket.get_ref().shutdown(Shutdown::Both);
    }
}

/// The reading half must not write: what it would say (answers to pings) goes through the writing half.
struct ReadOnly(TcpStream);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both clocks; the origin of the monotonic one is the start of the process.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Now {
        let mono = u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX);
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Now {
            mono: Micros(mono),
            unix: UnixMillis(i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

/// The value of a future that is ready at once, as this store's are. A database's client brings its own `block_on`.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a store in memory has nothing to wait for"),
    }
}

fn config(url: String, root: PublicKey) -> Config {
    Config {
        limits: Limits::gateway(),
        service: ServiceConfig {
            endpoint: Endpoint(url),
            root,
        },
        profile: Profile::default(),
        timing: Timing::default(),
        pre_keys: PreKeyPolicy::default(),
        available: true,
    }
}

fn arguments() -> Result<(String, PublicKey), Box<dyn Error>> {
    const USAGE: &str = "usage: blocking --service-url ws://HOST:PORT/PATH --service-root HEX";
    let (mut url, mut root) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        match flag.as_str() {
            "--service-url" => url = Some(value),
            "--service-root" => root = Some(key(&value).ok_or("a root key is 64 hex digits")?),
            _ => return Err(USAGE.into()),
        }
    }
    Ok((url.ok_or(USAGE)?, root.ok_or(USAGE)?))
}

fn key(hex: &str) -> Option<PublicKey> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(PublicKey::from_bytes(bytes))
}
