//! One task per client connection.

use super::Hub;
use super::hub::Outgoing;
use crate::service::ConnId;
use futures_util::{SinkExt as _, StreamExt as _};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// How long a client may take for the upgrade, and for answering a close.
const PATIENCE: Duration = Duration::from_secs(20);
const CLOSING: Duration = Duration::from_millis(500);

/// Accepts until told to stop, then closes what is open.
pub(super) async fn accept(
    host: Arc<Hub>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    tracing::debug!(%peer, "connection");
                    // Frames are small and answered at once.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(Arc::clone(&host), stream, stopped.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others may be given back.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection from upgrade to end, over any byte stream.
pub(crate) async fn connection<T: AsyncRead + AsyncWrite + Unpin>(
    host: Arc<Hub>,
    stream: T,
    stopped: watch::Receiver<bool>,
) {
    let upgrade = tokio::time::timeout(PATIENCE, accept_hdr_async(stream, only_the_chat));
    let websocket = match upgrade.await {
        Ok(Ok(websocket)) => websocket,
        Ok(Err(error)) => return tracing::debug!(%error, "no WebSocket"),
        Err(_) => return tracing::debug!("no WebSocket in time"),
    };
    let (conn, outgoing) = host.open();
    let ended = converse(&host, conn, websocket, outgoing, stopped).await;
    tracing::debug!(conn = conn.0, ?ended, "connection over");
    host.closed(conn);
}

/// Any origin, any offered extension (none is accepted), but only this path.
#[expect(clippy::result_large_err, reason = "the callback's signature is given")]
fn only_the_chat(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == "/ws/chat" {
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(None);
    *refusal.status_mut() = StatusCode::NOT_FOUND;
    Err(refusal)
}

async fn converse<T: AsyncRead + AsyncWrite + Unpin>(
    host: &Hub,
    conn: ConnId,
    mut websocket: WebSocketStream<T>,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => break,
            next = outgoing.recv() => {
                let open = write_ready(&mut websocket, next, &mut outgoing).await?;
                if !open {
                    break;
                }
            }
            message = websocket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => host.received(conn, &bytes),
                // No client sends text, and pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
        }
    }
    close(websocket).await
}

/// Writes `next` and whatever else is ready, each frame as a message of its own. False when there was a close.
async fn write_ready<T: AsyncRead + AsyncWrite + Unpin>(
    websocket: &mut WebSocketStream<T>,
    mut next: Option<Outgoing>,
    outgoing: &mut mpsc::UnboundedReceiver<Outgoing>,
) -> Result<bool, tokio_tungstenite::tungstenite::Error> {
    while let Some(Outgoing::Frame(frame)) = next {
        websocket.feed(Message::Binary(frame)).await?;
        match outgoing.try_recv() {
            Ok(more) => next = Some(more),
            Err(mpsc::error::TryRecvError::Empty) => {
                websocket.flush().await?;
                return Ok(true);
            }
            Err(mpsc::error::TryRecvError::Disconnected) => next = None,
        }
    }
    websocket.flush().await?;
    Ok(false)
}

/// Says goodbye and waits a moment for the answer.
async fn close<T: AsyncRead + AsyncWrite + Unpin>(
    mut websocket: WebSocketStream<T>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    websocket
        .close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }))
        .await?;
    let drained = async { while let Some(Ok(_)) = websocket.next().await {} };
    tokio::time::timeout(CLOSING, drained)
        .await
        .map_err(|_| tokio_tungstenite::tungstenite::Error::Io(io::ErrorKind::TimedOut.into()))
}
