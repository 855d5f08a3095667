//! The media host: files are left by `POST` and read by `GET`, whole or from some byte on.

use super::Hub;
use crate::service::{Download, UPLOAD_BYTES};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::stream;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Bytes of one piece.
const PIECE: usize = 16 << 10;

pub(super) async fn serve(
    host: Arc<Hub>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let app = app(host);
    let stop = async move {
        let _ = stopped.changed().await;
    };
    if let Err(error) = axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
    {
        tracing::error!(%error, "media host ended");
    }
}

fn app(host: Arc<Hub>) -> Router {
    Router::new()
        .route("/v/sim/{name}", get(read))
        .route("/mms/{kind}/{token}", post(leave))
        .layer(DefaultBodyLimit::max(UPLOAD_BYTES))
        .with_state(host)
}

/// One connection from its first request to its end, over any byte stream, without a task or a real clock.
#[cfg(feature = "tier-b")]
pub(crate) async fn connection<T>(host: Arc<Hub>, stream: T)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = hyper_util::service::TowerToHyperService::new(app(host));
    let stream = hyper_util::rt::TokioIo::new(stream);
    let served = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(stream, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a download ends");
    }
}

async fn leave(
    State(host): State<Arc<Hub>>,
    Path((_, claimed)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    if claimed.trim_end_matches('=') != token(&body) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let path = host.act(|service, _| service.leave_file(body));
    let url = format!("http://{}{path}", host.media_host());
    let answer = json!({ "url": url, "direct_path": path, "handle": claimed });
    (
        [(header::CONTENT_TYPE, "application/json")],
        answer.to_string(),
    )
        .into_response()
}

async fn read(State(host): State<Arc<Hub>>, uri: Uri, headers: HeaderMap) -> Response {
    let Ok(mut download) = host.act(|service, _| service.download(uri.path())) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let whole = download.length();
    let honest = download.is_honest();
    let (mut from, mut upto) = (0, whole);
    let range = headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    if let Some((first, last)) = range {
        let Ok(first) = first.parse::<u64>() else {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        };
        let last = last
            .parse::<u64>()
            .ok()
            .map_or(whole, |last| last.saturating_add(1));
        (from, upto) = (first, last.min(whole));
        if from >= upto {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        if skip(&mut download, from).is_err() {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    }
    // Without a length a client reads on: what ends too early or never is not told by it.
    let mut response = Response::builder();
    if range.is_some() {
        let content = format!("bytes {from}-{}/{whole}", upto - 1);
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, content);
    }
    if honest {
        response = response.header(header::CONTENT_LENGTH, upto - from);
    }
    let left = if honest { upto - from } else { u64::MAX };
    let body = stream::unfold(Some((download, left)), |state| async move {
        let (mut download, left) = state?;
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        if most == 0 {
            return None;
        }
        let delay = download.delay().0;
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        match download.next(most) {
            Ok(Some(piece)) => {
                let left = left - piece.len() as u64;
                Some((Ok(piece), Some((download, left))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    response
        .body(Body::from_stream(body))
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Reads over the first bytes.
fn skip(download: &mut Download, mut bytes: u64) -> Result<(), crate::service::Broken> {
    while bytes > 0 {
        let most = usize::try_from(bytes).unwrap_or(PIECE).min(PIECE);
        match download.next(most)? {
            Some(piece) => bytes -= piece.len() as u64,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// The name that a client gives a file in its address.
fn token(sealed: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(sealed))
}
