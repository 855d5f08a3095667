//! The HTTP interface: what a phone's owner does with the thumb, and what a harness wants to read.

use super::Hub;
use crate::service::books::Summary;
use crate::service::faults::Fault;
use crate::service::history::History;
use crate::service::settings::{COLLECTIONS, Change};
use crate::service::{DeviceId, Now};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(super) async fn serve(
    host: Arc<Hub>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let app = Router::new()
        .route("/phone/scan", post(scan))
        .route("/phone/send", post(send))
        .route("/phone/add", post(add))
        .route("/phone/unlink", post(unlink))
        .route("/phone/change", post(change))
        .route("/phone/history", post(history))
        .route("/phone/settings", get(settings))
        .route("/fault", post(fault))
        .route("/books", get(books))
        .with_state(host);
    let stop = async move {
        let _ = stopped.changed().await;
    };
    if let Err(error) = axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
    {
        tracing::error!(%error, "HTTP interface ended");
    }
}

#[derive(Deserialize)]
struct Scan {
    qr: String,
    phone: Option<String>,
}

async fn scan(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Scan { qr, phone } = parse(&body)?;
    let scanned = host
        .act(|service, now| service.scan(&qr, phone.as_deref(), now))
        .map_err(Refusal::new)?;
    tracing::info!(jid = %scanned.jid, "scanned");
    json_answer(&json!({ "jid": scanned.jid.to_string(), "lid": scanned.lid.to_string() }))
}

#[derive(Deserialize)]
struct Send {
    phone: String,
    to: String,
    text: String,
}

async fn send(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Send { phone, to, text } = parse(&body)?;
    let sent = host.act(|service, now| service.phone_send(&phone, &to, &text, now));
    json_answer(&json!({ "id": sent.map_err(Refusal::new)? }))
}

#[derive(Deserialize)]
struct Add {
    phone: String,
    name: Option<String>,
}

async fn add(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Add { phone, name } = parse(&body)?;
    let lid = host
        .act(|service, now| service.add_phone(&phone, name.as_deref(), now))
        .map_err(Refusal::new)?;
    json_answer(&json!({ "lid": lid.to_string() }))
}

#[derive(Deserialize)]
struct Unlink {
    phone: String,
    device: u16,
}

async fn unlink(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Unlink { phone, device } = parse(&body)?;
    if host.act(|service, now| service.unlink(&phone, device, now)) {
        json_answer(&json!({}))
    } else {
        Err(Refusal(
            StatusCode::NOT_FOUND,
            "there is no such companion".into(),
        ))
    }
}

#[derive(Deserialize)]
struct Changes {
    phone: String,
    changes: Vec<Change>,
}

async fn change(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Changes { phone, changes } = parse(&body)?;
    let versions = host.act(|service, now| service.phone_change(&phone, &changes, now));
    json_answer(&versions.map_err(Refusal::new)?)
}

#[derive(Deserialize)]
struct Past {
    device: DeviceId,
    #[serde(flatten)]
    history: History,
}

async fn history(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let Past { device, history } = parse(&body)?;
    if host.act(|service, now| service.phone_history(&device, &history, now)) {
        json_answer(&json!({}))
    } else {
        Err(Refusal(
            StatusCode::NOT_FOUND,
            "there is no such companion".into(),
        ))
    }
}

async fn settings(State(host): State<Arc<Hub>>, uri: Uri) -> Answer {
    let phone = uri.query().unwrap_or_default().split('&');
    let phone = phone.filter_map(|pair| pair.strip_prefix("phone=")).next();
    let phone = phone.unwrap_or_default();
    host.act(|service, _| {
        let collections: BTreeMap<&str, serde_json::Value> = COLLECTIONS
            .into_iter()
            .map(|name| {
                let settings = service.settings(phone, name).into_iter();
                let names: Vec<String> = settings
                    .map(|(index, _)| String::from_utf8_lossy(&index).into_owned())
                    .collect();
                let version = service.settings_version(phone, name);
                (name, json!({ "version": version, "settings": names }))
            })
            .collect();
        let changes = service.setting_changes(phone);
        json_answer(&json!({ "collections": collections, "changes": changes }))
    })
}

/// One more word than [`Fault`] knows: `heal` withdraws what has not struck yet.
#[derive(Deserialize)]
#[serde(untagged)]
enum Order {
    Fault(Fault),
    Heal { fault: Heal },
}

#[derive(Deserialize)]
enum Heal {
    #[serde(rename = "heal")]
    Heal,
}

async fn fault(State(host): State<Arc<Hub>>, body: Bytes) -> Answer {
    let order: Order = parse(&body)?;
    host.act(|service, now: Now| match order {
        Order::Fault(fault) => service.fault(fault, now),
        Order::Heal { fault: Heal::Heal } => service.heal(),
    });
    json_answer(&json!({}))
}

#[derive(Serialize)]
struct Overview<'a> {
    #[serde(flatten)]
    books: Summary,
    /// How often each kind of fault really happened.
    faults: &'a BTreeMap<&'static str, u64>,
}

async fn books(State(host): State<Arc<Hub>>, uri: Uri) -> Answer {
    let full = uri
        .query()
        .is_some_and(|query| query.split('&').any(|pair| pair == "full=1"));
    host.act(|service, _| {
        if full {
            return json_answer(service.books());
        }
        let (books, faults) = (service.books().summary(), service.faults().acted());
        json_answer(&Overview { books, faults })
    })
}

type Answer = Result<Response, Refusal>;

struct Refusal(StatusCode, String);

impl Refusal {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.1 }).to_string();
        (self.0, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))
}

fn json_answer(value: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(value).map_err(Refusal::new)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
