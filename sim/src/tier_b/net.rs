//! The network between hosts: turmoil's, with what it lacks put back.
//!
//! turmoil is not TCP: a segment that meets a partition is gone for good, a connect through one fails at once, and a
//! stream arrives in the pieces in which it was written. So here
//!
//! * a cut **holds** what is on the way and delivers it, in order, when the cut heals: what retransmission does;
//! * a connect through a cut, or to a machine without power, waits as a SYN does, with longer and longer pauses; to a
//!   machine whose process is gone it is refused;
//! * a stream can be **reset** (both ends see an error) or fall **silent** (neither end hears of the other any more, and
//!   nobody is told): half-open;
//! * reads and writes are cut into pieces of seeded sizes.
//!
//! Who has no power neither sends nor says goodbye: see [`super::World::power_loss`].

use super::clock::generator;
use baton_core::{crypto::Rng, flow::Endpoint};
use baton_tokio::{ConnectError, Connector};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

/// Pauses between attempts to connect: Linux repeats a SYN after 1, 2, 4 … seconds.
const SYN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// The largest piece of a stream that is read at once.
const PIECE: usize = 16 << 10;

/// What all links of a world share.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    rng: Rng,
    /// Whether streams are cut into small pieces.
    chunks: bool,
    cut: BTreeMap<(String, String), u32>,
    power: BTreeMap<String, Power>,
    /// By the client's address, which names a stream as long as it lives.
    streams: BTreeMap<SocketAddr, Weak<Wire>>,
    /// Silent streams whose owner is gone: closing them would tell the other end.
    graves: Vec<TcpStream>,
    /// What the faults really met.
    pub(crate) effects: BTreeMap<&'static str, u64>,
}

/// Whether somebody answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    /// As usual.
    On,
    /// The machine is there, the process is not.
    NoProcess,
    /// Nobody is there to refuse anything.
    Off,
}

/// What both ends of a stream know of the wire between them.
#[derive(Debug)]
struct Wire {
    ends: (String, String),
    state: Mutex<(State, Vec<Waker>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Reset,
    Silent,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, (State, Vec<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_between(&self, a: &str, b: &str) -> bool {
        let (one, other) = (self.ends.0.as_str(), self.ends.1.as_str());
        (one, other) == (a, b) || (one, other) == (b, a)
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a < b {
        (a.to_owned(), b.to_owned())
    } else {
        (b.to_owned(), a.to_owned())
    }
}

impl Network {
    pub(crate) fn new(seed: u64, chunks: bool) -> Self {
        let shared = Shared {
            rng: generator(seed, "network"),
            chunks,
            cut: BTreeMap::new(),
            power: BTreeMap::new(),
            streams: BTreeMap::new(),
            graves: Vec::new(),
            effects: BTreeMap::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reason why nothing passes between `a` and `b`; whether it is the first.
    pub(crate) fn cut(&self, a: &str, b: &str) -> bool {
        let mut shared = self.shared();
        let reasons = shared.cut.entry(pair(a, b)).or_default();
        *reasons += 1;
        *reasons == 1
    }

    /// One reason less; whether it was the last.
    pub(crate) fn heal(&self, a: &str, b: &str) -> bool {
        let mut shared = self.shared();
        let pair = pair(a, b);
        match shared.cut.get_mut(&pair) {
            Some(reasons) if *reasons > 1 => {
                *reasons -= 1;
                false
            }
            Some(_) => {
                shared.cut.remove(&pair);
                true
            }
            None => false,
        }
    }

    pub(crate) fn is_cut(&self, a: &str, b: &str) -> bool {
        self.shared().cut.contains_key(&pair(a, b))
    }

    pub(crate) fn power(&self, host: &str, power: Power) {
        self.shared().power.insert(host.to_owned(), power);
    }

    /// Breaks all streams between `a` and `b`, with or without telling; how many there were.
    pub(crate) fn reset(&self, a: &str, b: &str) -> u64 {
        self.strike(a, b, State::Reset, "reset")
    }

    pub(crate) fn silence(&self, a: &str, b: &str) -> u64 {
        self.strike(a, b, State::Silent, "silenced")
    }

    fn strike(&self, a: &str, b: &str, state: State, name: &'static str) -> u64 {
        let mut shared = self.shared();
        shared.streams.retain(|_, wire| wire.strong_count() > 0);
        let wires: Vec<Arc<Wire>> = shared
            .streams
            .values()
            .filter_map(Weak::upgrade)
            .filter(|wire| wire.is_between(a, b))
            .collect();
        let mut struck = 0;
        for wire in wires {
            let mut wire = wire.state();
            if wire.0 == State::Good {
                wire.0 = state;
                struck += 1;
            }
            for waker in wire.1.drain(..) {
                waker.wake();
            }
        }
        *shared.effects.entry(name).or_default() += struck;
        struck
    }

    /// What the faults of the network really met.
    pub(crate) fn effects(&self) -> BTreeMap<&'static str, u64> {
        self.shared().effects.clone()
    }

    fn met(&self, name: &'static str) {
        *self.shared().effects.entry(name).or_default() += 1;
    }

    fn wire(&self, client: SocketAddr, ends: (&str, &str)) -> (Arc<Wire>, Rng, bool) {
        let mut shared = self.shared();
        let rng = shared.rng.fork("stream");
        let known = shared.streams.get(&client).and_then(Weak::upgrade);
        let wire = known.unwrap_or_else(|| {
            Arc::new(Wire {
                ends: (ends.0.to_owned(), ends.1.to_owned()),
                state: Mutex::new((State::Good, Vec::new())),
            })
        });
        shared.streams.insert(client, Arc::downgrade(&wire));
        (wire, rng, shared.chunks)
    }

    /// Connects as the operating system would. Has no limit of its own; the caller has.
    pub(crate) async fn connect(&self, from: &str, to: &str, port: u16) -> io::Result<SimStream> {
        let mut pause = SYN.0;
        loop {
            let power = self.shared().power.get(to).copied().unwrap_or(Power::On);
            if power == Power::NoProcess && !self.is_cut(from, to) {
                // A round trip, then the answer that nobody listens.
                tokio::time::sleep(Duration::from_millis(2)).await;
                self.met("refused");
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            if power == Power::Off || self.is_cut(from, to) {
                self.met("syn lost");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SYN.1);
                continue;
            }
            match TcpStream::connect((to, port)).await {
                Ok(stream) => {
                    let client = stream.local_addr()?;
                    return Ok(self.stream(stream, client, (from, to)));
                }
                // Dropped on the way because the power went off meanwhile: nobody has refused anything.
                Err(_) if self.is_dark(to) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn is_dark(&self, host: &str) -> bool {
        self.shared().power.get(host) == Some(&Power::Off)
    }

    /// The server's end of a stream that `client` opened.
    pub(crate) fn accepted(&self, stream: TcpStream, client: SocketAddr, at: &str) -> SimStream {
        let from = turmoil::reverse_lookup(client.ip()).unwrap_or_default();
        self.stream(stream, client, (&from, at))
    }

    fn stream(&self, inner: TcpStream, client: SocketAddr, ends: (&str, &str)) -> SimStream {
        let (wire, rng, chunks) = self.wire(client, ends);
        SimStream {
            inner: Some(inner),
            wire,
            rng,
            chunks,
            network: self.clone(),
        }
    }
}

/// One end of a stream between two hosts.
#[derive(Debug)]
pub(crate) struct SimStream {
    /// Only empty while it is dropped.
    inner: Option<TcpStream>,
    wire: Arc<Wire>,
    rng: Rng,
    chunks: bool,
    network: Network,
}

impl SimStream {
    /// How much of `most` bytes passes at once: mostly all of it, now and then a few bytes.
    fn piece(&mut self, most: usize, one_in: u64) -> usize {
        if self.chunks && self.rng.below(one_in) == 0 {
            let few = usize::try_from(self.rng.below(64)).unwrap_or(0) + 1;
            few.min(most)
        } else {
            most.min(PIECE)
        }
    }

    /// `Some` if the wire does not carry this any more.
    fn verdict(&self, cx: &mut Context<'_>) -> Option<State> {
        let mut state = self.wire.state();
        match state.0 {
            State::Good => {
                // Woken by whoever breaks the wire; the same task need not stand in the list twice.
                if !state.1.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.1.push(cx.waker().clone());
                }
                None
            }
            broken => Some(broken),
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.verdict(cx) {
            Some(State::Silent) => return Poll::Pending,
            Some(_) => return Poll::Ready(Err(reset())),
            None => {}
        }
        let most = self.piece(buf.remaining(), 6);
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(reset()));
        };
        let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
        let read = Pin::new(inner).poll_read(cx, &mut piece);
        let filled = piece.filled().len();
        buf.advance(filled);
        read
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.verdict(cx) {
            // Into the buffers of an operating system that has nobody to send it to.
            Some(State::Silent) => return Poll::Ready(Ok(bytes.len())),
            Some(_) => return Poll::Ready(Err(reset())),
            None => {}
        }
        let most = self.piece(bytes.len(), 10);
        let piece = bytes.get(..most).unwrap_or(bytes);
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write(cx, piece),
            None => Poll::Ready(Err(reset())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match (self.verdict(cx), &mut self.inner) {
            (Some(State::Silent), _) => Poll::Ready(Ok(())),
            (None, Some(inner)) => Pin::new(inner).poll_shutdown(cx),
            _ => Poll::Ready(Err(reset())),
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let silent = self.wire.state().0 == State::Silent;
        if silent && let Some(inner) = self.inner.take() {
            self.network.shared().graves.push(inner);
        }
    }
}

/// What a host of a world connects with: `ws://host:port/…` over the simulated network.
#[derive(Clone, Debug)]
pub(crate) struct SimLink {
    pub(crate) network: Network,
    /// The host that connects.
    pub(crate) from: Arc<str>,
}

impl Connector for SimLink {
    type Stream = SimStream;

    async fn connect(&self, endpoint: &Endpoint) -> Result<SimStream, ConnectError> {
        let rest = endpoint.0.strip_prefix("ws://");
        let authority = rest.and_then(|rest| rest.split('/').next());
        let (host, port) = authority
            .and_then(|authority| authority.split_once(':'))
            .ok_or(ConnectError::Endpoint)?;
        let port = port.parse().map_err(|_| ConnectError::Endpoint)?;
        Ok(self.network.connect(&self.from, host, port).await?)
    }
}
