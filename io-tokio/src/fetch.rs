//! Downloads: HTTP `GET` over whatever a [`Connector`] makes, chunk by chunk as the engine asks for it.
//!
//! Like the link, a download is polled and never spawned: each step is a future that ends with one chunk, and the next
//! step begins when the engine wants it. Nothing is read ahead but what one read of the socket brings.

use crate::{ConnectError, Connector};
use baton_core::flow::{CHUNK_BYTES, Endpoint, FetchId, Fetched, MediaRequest};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};
use tracing::debug;

/// What the media hosts want to read in a request.
const ORIGIN: &str = "https://web.whatsapp.com";

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next bytes, at most [`CHUNK_BYTES`].
    Chunk(Bytes),
    /// That was all.
    Done,
    /// It failed.
    Failed {
        /// No host has such a file.
        gone: bool,
    },
}

impl Step {
    /// As an engine wants it.
    #[must_use]
    pub fn fetched(&self) -> Fetched<'_> {
        match self {
            Self::Chunk(bytes) => Fetched::Chunk(bytes),
            Self::Done => Fetched::Done,
            Self::Failed { gone } => Fetched::Failed { gone: *gone },
        }
    }
}

type Steps = FuturesUnordered<Abortable<BoxFuture<'static, (FetchId, Step, Option<Body>)>>>;

/// The downloads of an account, asked for by [`start`](Self::start), moved on by [`next`](Self::next).
pub struct Fetches<C> {
    connector: C,
    tls: bool,
    steps: Steps,
    /// Those that are waiting for the engine to want more.
    resting: BTreeMap<FetchId, Body>,
    running: BTreeMap<FetchId, AbortHandle>,
}

impl<C: Connector> Fetches<C> {
    /// No downloads yet.
    #[must_use]
    pub fn new(connector: C) -> Self {
        Self {
            connector,
            tls: true,
            steps: Steps::new(),
            resting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// Media hosts are spoken to with TLS if the service is.
    pub fn speak_as(&mut self, service: &Endpoint) {
        self.tls = !service.0.starts_with("ws://");
    }

    /// Begins a download; its first chunk is the next step.
    pub fn start(&mut self, id: FetchId, request: MediaRequest) {
        let (connector, tls) = (self.connector.clone(), self.tls);
        let step = async move {
            let mut gone = !request.hosts.is_empty();
            for host in &request.hosts {
                match open(&connector, tls, host, &request.path).await {
                    Ok(body) => return step(id, body).await,
                    Err(error) => {
                        debug!(%error, "a download fails");
                        gone &= matches!(error, FetchError::Gone);
                    }
                }
            }
            (id, Step::Failed { gone }, None)
        };
        self.push(id, step.boxed());
    }

    /// Goes on with a download that has given a chunk.
    pub fn more(&mut self, id: FetchId) {
        if let Some(body) = self.resting.remove(&id) {
            self.push(id, step(id, body).boxed());
        }
    }

    /// Forgets a download.
    pub fn stop(&mut self, id: FetchId) {
        self.resting.remove(&id);
        if let Some(handle) = self.running.remove(&id) {
            handle.abort();
        }
    }

    fn push(&mut self, id: FetchId, step: BoxFuture<'static, (FetchId, Step, Option<Body>)>) {
        let (handle, registration) = AbortHandle::new_pair();
        self.running.insert(id, handle);
        self.steps.push(Abortable::new(step, registration));
    }

    /// The next step that has ended. Never ready while there is none.
    pub async fn next(&mut self) -> (FetchId, Step) {
        loop {
            match self.steps.next().await {
                // Stopped.
                Some(Err(_aborted)) => {}
                Some(Ok((id, step, body))) => {
                    self.running.remove(&id);
                    if let Some(body) = body {
                        self.resting.insert(id, body);
                    }
                    return (id, step);
                }
                None => std::future::pending().await,
            }
        }
    }
}

impl<C> std::fmt::Debug for Fetches<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetches({} running)", self.running.len())
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be written")]
    Request,
    #[error("the host answers with {0}")]
    Status(StatusCode),
    #[error("the host does not have the file")]
    Gone,
}

/// A response that is being read, and the connection it comes over.
struct Body {
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    incoming: Incoming,
    rest: Bytes,
}

async fn open<C: Connector>(
    connector: &C,
    tls: bool,
    host: &str,
    path: &str,
) -> Result<Body, FetchError> {
    let scheme = if tls { "wss" } else { "ws" };
    let stream = connector
        .connect(&Endpoint(format!("{scheme}://{host}/")))
        .await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ORIGIN, ORIGIN)
        .header(header::REFERER, format!("{ORIGIN}/"))
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Request)?;
    let mut connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> =
        Box::pin(connection);
    let mut answer = Box::pin(sender.send_request(request));
    let mut over = false;
    let answer = poll_fn(|cx| {
        if !over {
            over = connection.as_mut().poll(cx).is_ready();
        }
        answer.as_mut().poll(cx)
    })
    .await?;
    match answer.status() {
        StatusCode::OK => Ok(Body {
            connection: (!over).then_some(connection),
            incoming: answer.into_body(),
            rest: Bytes::new(),
        }),
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => Err(FetchError::Gone),
        status => Err(FetchError::Status(status)),
    }
}

/// Reads one chunk.
async fn step(id: FetchId, mut body: Body) -> (FetchId, Step, Option<Body>) {
    while body.rest.is_empty() {
        let frame = poll_fn(|cx| {
            if let Some(connection) = &mut body.connection
                && connection.as_mut().poll(cx).is_ready()
            {
                body.connection = None;
            }
            let mut frame = body.incoming.frame();
            match Pin::new(&mut frame).poll(cx) {
                Poll::Ready(frame) => Poll::Ready(frame),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match frame {
            None => return (id, Step::Done, None),
            Some(Err(error)) => {
                debug!(%error, "a download breaks off");
                return (id, Step::Failed { gone: false }, None);
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    body.rest = data;
                }
            }
        }
    }
    let chunk = body.rest.split_to(body.rest.len().min(CHUNK_BYTES));
    (id, Step::Chunk(chunk), Some(body))
}
