//! The connection: one WebSocket at a time, over whatever a [`Connector`] makes.
//!
//! A link is polled, never spawned. Each poll first writes what is queued, as far as the socket takes it, and then
//! reads if it may: a peer that does not read cannot keep us from hearing it, and a consumer that is slow to read
//! cannot keep our words back.

use crate::{ConnectError, Connector, Env};
use baton_core::{flow::Endpoint, state::Micros};
use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        http::{HeaderValue, header::ORIGIN as ORIGIN_HEADER},
        protocol::WebSocketConfig,
    },
};

/// Largest message accepted: the largest frame of the protocol, its length prefix, and room for a little more.
pub const MAX_MESSAGE: usize = (1 << 24) + 64;

/// What the service wants to read in the upgrade request.
pub const ORIGIN: &str = "https://web.whatsapp.com";

/// For the connection, TLS and the upgrade together.
const CONNECT: Duration = Duration::from_secs(20);

/// For the last words before a close, and the service's answer to them.
const FAREWELL: Duration = Duration::from_secs(1);

/// A peer that leaves this much unread is not going to read it: two of the largest messages.
const MAX_QUEUED: usize = 2 * MAX_MESSAGE;

type Opening<T> = Pin<Box<dyn Future<Output = Result<WebSocketStream<T>, ConnectError>> + Send>>;
type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What happened to a connection.
#[derive(Debug)]
pub enum Moved {
    /// It stands.
    Opened,
    /// It brought these bytes.
    Received(Bytes),
    /// It is gone, or could not be made. The reason is for the log.
    Closed(String),
}

/// At most one connection, asked for by [`open`](Self::open), moved on by [`next`](Self::next).
pub struct Link<C: Connector, E: Env> {
    connector: C,
    env: E,
    state: State<C::Stream>,
    until: Micros,
}

enum State<T> {
    Down,
    Opening(Opening<T>),
    Up(Socket<T>),
    Closing(Socket<T>, Timer),
    /// It ended while nobody was looking; [`Link::next`] will say so.
    Ended(String),
}

impl<C: Connector, E: Env> Link<C, E> {
    /// Not connected.
    pub fn new(connector: C, env: E) -> Self {
        Self {
            connector,
            env,
            state: State::Down,
            until: Micros(u64::MAX),
        }
    }

    /// What makes its connections.
    pub(crate) const fn connector(&self) -> &C {
        &self.connector
    }

    /// The grant now ends at `until`: nothing is written from then on but what keeps the connection alive. The engine
    /// keeps a margin before that end; this is the check right before the write, for a process that was frozen between
    /// the two.
    pub fn granted_until(&mut self, until: Micros) {
        self.until = until;
    }

    /// Connects, dropping any connection there is.
    pub fn open(&mut self, endpoint: Endpoint) {
        let connector = self.connector.clone();
        let env = self.env.clone();
        self.state = State::Opening(Box::pin(async move {
            let timeout = env.sleep_until(after(&env, CONNECT));
            tokio::select! { biased;
                made = connect(&connector, &endpoint) => made,
                () = timeout => Err(ConnectError::TimedOut(CONNECT.as_secs())),
            }
        }));
    }

    /// Takes the bytes in `wire` as one message to send before the grant ends.
    pub fn queue(&mut self, wire: &mut Vec<u8>) {
        self.say(wire, Needs::Grant);
    }

    /// Takes the bytes in `wire` as one message that keeps the connection alive, grant or not.
    pub fn keep_alive(&mut self, wire: &mut Vec<u8>) {
        self.say(wire, Needs::Nothing);
    }

    fn say(&mut self, wire: &mut Vec<u8>, needs: Needs) {
        let message = Bytes::from(std::mem::take(wire));
        match &mut self.state {
            State::Up(socket) if !message.is_empty() => {
                socket.queue(message, needs);
                if socket.queued > MAX_QUEUED {
                    self.state = State::Ended("the service does not read".into());
                }
            }
            // The connection went away under the engine, which will hear of it: the words are lost with it.
            _ => {}
        }
    }

    /// Writes out what is queued, then closes; [`next`](Self::next) tells when that is done.
    pub fn close(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Down) {
            State::Up(socket) => {
                let env = self.env.clone();
                let patience =
                    Box::pin(async move { env.sleep_until(after(&env, FAREWELL)).await });
                State::Closing(socket, patience)
            }
            closing @ State::Closing(..) => closing,
            State::Down | State::Opening(_) => State::Ended("closed".into()),
            ended @ State::Ended(_) => ended,
        };
    }

    /// Whether a close is under way.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing(..))
    }

    /// Writes, and waits for something to happen. Without `read` nothing is taken from the socket, so TCP holds the
    /// service back. May be dropped at any time.
    pub async fn next(&mut self, read: bool) -> Moved {
        poll_fn(|cx| self.poll_next(cx, read)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<Moved> {
        let moved = match &mut self.state {
            State::Down => return Poll::Pending,
            State::Ended(why) => Err(std::mem::take(why)),
            State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(stream) => {
                    self.state = State::Up(Socket::new(stream));
                    return Poll::Ready(Moved::Opened);
                }
                Err(error) => Err(error.to_string()),
            },
            State::Up(socket) => {
                if socket.needs_grant() && self.env.now().mono >= self.until {
                    Err("the grant ran out before the words were written".into())
                } else {
                    match socket.poll_write(cx) {
                        Poll::Ready(Err(error)) => Err(error.to_string()),
                        _ if !read => return Poll::Pending,
                        _ => match ready!(socket.poll_read(cx)) {
                            Ok(bytes) => Ok(Moved::Received(bytes)),
                            Err(why) => Err(why),
                        },
                    }
                }
            }
            State::Closing(socket, patience) => {
                let expired = socket.needs_grant() && self.env.now().mono >= self.until;
                if !expired && socket.poll_close(cx).is_pending() {
                    ready!(patience.as_mut().poll(cx));
                }
                Err("closed".into())
            }
        };
        Poll::Ready(moved.unwrap_or_else(|why| {
            self.state = State::Down;
            Moved::Closed(why)
        }))
    }
}

impl<C: Connector, E: Env> fmt::Debug for Link<C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Down => "down",
            State::Opening(_) => "opening",
            State::Up(_) => "up",
            State::Closing(..) => "closing",
            State::Ended(_) => "ended",
        };
        write!(f, "Link({state})")
    }
}

fn after(env: &impl Env, pause: Duration) -> Micros {
    env.now()
        .mono
        .plus(Micros(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)))
}

async fn connect<C: Connector>(
    connector: &C,
    endpoint: &Endpoint,
) -> Result<WebSocketStream<C::Stream>, ConnectError> {
    let mut request = endpoint
        .0
        .as_str()
        .into_client_request()
        .map_err(|_| ConnectError::Endpoint)?;
    request
        .headers_mut()
        .insert(ORIGIN_HEADER, HeaderValue::from_static(ORIGIN));
    let stream = connector.connect(endpoint).await?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _response)) => Ok(socket),
        Err(error) => Err(ConnectError::WebSocket(Box::new(error))),
    }
}

/// What a message may not be written without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Grant,
    Nothing,
}

/// An open WebSocket and what is to be written to it.
struct Socket<T> {
    // Boxed: it is large, and the link moves it when it closes.
    stream: Box<WebSocketStream<T>>,
    words: VecDeque<(Bytes, Needs)>,
    queued: usize,
    unflushed: bool,
    said_goodbye: bool,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Socket<T> {
    fn new(stream: WebSocketStream<T>) -> Self {
        Self {
            stream: Box::new(stream),
            words: VecDeque::new(),
            queued: 0,
            unflushed: false,
            said_goodbye: false,
        }
    }

    fn queue(&mut self, message: Bytes, needs: Needs) {
        self.queued += message.len();
        self.words.push_back((message, needs));
    }

    fn needs_grant(&self) -> bool {
        self.words.iter().any(|(_, needs)| *needs == Needs::Grant)
    }

    /// Ready when everything is out.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut stream = Pin::new(self.stream.as_mut());
        while !self.words.is_empty() {
            ready!(stream.as_mut().poll_ready(cx))?;
            if let Some((message, _)) = self.words.pop_front() {
                self.queued -= message.len();
                stream.as_mut().start_send(Message::Binary(message))?;
                self.unflushed = true;
            }
        }
        if self.unflushed {
            ready!(stream.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, String>> {
        loop {
            let read = ready!(Pin::new(self.stream.as_mut()).poll_next(cx));
            return Poll::Ready(match read {
                Some(Ok(Message::Binary(bytes))) => Ok(bytes),
                // The answer to a ping is queued by the read and goes out with the next flush.
                Some(Ok(Message::Ping(_))) => match Pin::new(self.stream.as_mut()).poll_flush(cx) {
                    Poll::Ready(Err(error)) => Err(error.to_string()),
                    Poll::Ready(Ok(())) => continue,
                    Poll::Pending => {
                        self.unflushed = true;
                        continue;
                    }
                },
                Some(Ok(Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Text(_))) => Err("the service sent text".into()),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("the service closed the connection".into()),
            });
        }
    }

    /// Ready when everything is out and the peer has closed as well. What still arrives is dropped: a socket that is
    /// closed with unread bytes in it resets the connection, and the reset can overtake our last words.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(_gone) = ready!(self.poll_write(cx)) {
            return Poll::Ready(());
        }
        if !self.said_goodbye {
            let _ = ready!(Pin::new(self.stream.as_mut()).poll_close(cx));
            self.said_goodbye = true;
        }
        while let Some(Ok(_late)) = ready!(Pin::new(self.stream.as_mut()).poll_next(cx)) {}
        Poll::Ready(())
    }
}
