//! `baton host`: many accounts in one process, told what to do by JSON lines.
//!
//! ```text
//! in   {"link": {"account": "a"}}
//!      {"send": {"account": "a", "id": "3EB0…", "to": "1555…", "text": "…"}}
//!      {"ack":  {"account": "a", "seq": 7}}
//! out  {"account": "a", "event": …}                    events (with `seq`), notices, `owner`, `waiting`, `stopped`
//!      {"account": "a", "reply": "link", "ok": true, "jid": …}
//!      {"account": "a", "reply": "send", "ok": false, "id": …, "error": …, "retry": true}
//! ```
//! Commands of one account are carried out in the order of the lines. The process ends, properly, when its standard
//! input does.

use crate::{
    cli::Common,
    key, report,
    setup::{self, Failure, SystemHost},
    store,
};
use baton_core::{
    flow::{Command, CommandError, Config, Content, Reply, SendRequest},
    jid::Jid,
    state::{AccountId, EventSeq, MessageId},
};
use baton_tokio::{Item, Ownership, Posted, account_named};
use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    sync::mpsc,
    task::JoinSet,
};

/// Longest line taken from standard input.
const LINE_BYTES: usize = 1 << 20;

/// How long accounts may take to shut down.
const FAREWELL: Duration = Duration::from_secs(10);

/// Which accounts.
#[derive(Debug, Args)]
pub struct Flags {
    /// Names of the accounts; made if they do not exist.
    #[arg(long, value_delimiter = ',', required = true)]
    pub accounts: Vec<String>,
    /// One-time pre-keys per upload.
    #[arg(long, default_value_t = 812)]
    pub pre_keys: u32,
}

/// One line of standard input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    Link {
        account: String,
    },
    Send {
        account: String,
        id: String,
        to: String,
        text: String,
    },
    Ack {
        account: String,
        seq: u64,
    },
}

/// What a reply will be about.
enum About {
    Link,
    Send(MessageId),
    Ack(EventSeq),
}

pub(crate) async fn run(common: &Common, flags: Flags) -> Result<(), Failure> {
    let mut config = setup::config(common)?;
    config.pre_keys.batch = flags.pre_keys;
    let store = store::open(common, store::Create::Yes).await?;
    let host = setup::host(store.clone());
    let (lines, printing) = printer();
    let mut accounts = BTreeMap::new();
    let mut tasks = JoinSet::new();
    for name in flags.accounts {
        let id = account_named(&store, &name)
            .await
            .map_err(|error| Failure::setup(format!("cannot make account {name:?}: {error}")))?;
        let (orders, ordered) = mpsc::channel(64);
        accounts.insert(name.clone(), orders);
        tasks.spawn(serve(
            host.clone(),
            name,
            id,
            config.clone(),
            ordered,
            lines.clone(),
        ));
    }
    let running = host.clone();
    let running = tokio::spawn(async move { match running.run().await {} });
    let keeping = tokio::spawn(key::keep_current(store));
    let _ = lines.send(json!({ "event": "ready", "accounts": accounts.len() }));

    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    let read = loop {
        line.clear();
        match take_line(&mut input, &mut line).await {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(Failure::failed(format!("standard input: {error}"))),
        }
        let order: Order = match serde_json::from_slice(&line) {
            Ok(order) => order,
            Err(error) => {
                let _ = lines
                    .send(json!({ "event": "error", "error": format!("not an order: {error}") }));
                continue;
            }
        };
        let (Order::Link { account } | Order::Send { account, .. } | Order::Ack { account, .. }) =
            &order;
        match accounts.get(account) {
            Some(orders) => {
                // If the account has ended it has said so.
                let _ = orders.send(order).await;
            }
            None => {
                let _ = lines.send(
                    json!({ "event": "error", "error": format!("no account {account:?} here") }),
                );
            }
        }
    };
    // The accounts take the end of their orders as the wish to stop.
    drop(accounts);
    let _ = tokio::time::timeout(FAREWELL, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    tasks.abort_all();
    running.abort();
    keeping.abort();
    host.leave().await;
    drop((tasks, lines));
    let _ = tokio::time::timeout(Duration::from_secs(1), printing).await;
    read
}

/// One account: orders in, lines out.
async fn serve(
    host: SystemHost,
    name: String,
    id: AccountId,
    config: Config,
    mut orders: mpsc::Receiver<Order>,
    lines: mpsc::UnboundedSender<Value>,
) {
    let (account, mut inbox, served) = host.account(id, config);
    let mut served = tokio::spawn(served);
    let mut account = Some(account);
    let mut replies = FuturesUnordered::new();
    let say = |object: Value| {
        let _ = lines.send(object);
    };
    loop {
        tokio::select! { biased;
            Some(item) = inbox.next() => match item {
                Item::Event(seq, event) => say(report::event_json(&name, seq, &event)),
                Item::Notice(notice) => {
                    if let Some(object) = report::notice_json(&name, &notice) {
                        say(object);
                    }
                }
                Item::Ownership(ownership) => say(match ownership {
                    Ownership::Ours { epoch } => json!({ "account": name, "event": "owner", "epoch": epoch.0 }),
                    Ownership::Waiting { .. } => json!({ "account": name, "event": "waiting" }),
                    Ownership::Stopped(reason) => {
                        json!({ "account": name, "event": "stopped", "why": reason.to_string() })
                    }
                    _ => continue,
                }),
                _ => {}
            },
            Some((about, answer)) = replies.next() => {
                if let Some(object) = reply(&name, &about, answer) {
                    say(object);
                }
            }
            end = &mut served => {
                let why = match end {
                    Ok(end) => end.to_string(),
                    Err(error) => format!("a defect of this program: {error}"),
                };
                say(json!({ "account": name, "event": "ended", "why": why }));
                return;
            }
            order = orders.recv(), if account.is_some() => match order.zip(account.as_ref()) {
                Some((order, account)) => match command(order) {
                    Ok((about, command)) => {
                        let posted = account.post(command).await;
                        replies.push(answered(about, posted));
                    }
                    Err(object) => say(object),
                },
                None => {
                    if let Some(account) = account.take() {
                        account.shutdown();
                    }
                }
            },
        }
    }
}

async fn answered(about: About, posted: Posted) -> (About, Result<Reply, CommandError>) {
    (about, posted.await)
}

fn command(order: Order) -> Result<(About, Command), Value> {
    match order {
        Order::Link { .. } => Ok((About::Link, Command::Link)),
        Order::Ack { seq, .. } => Ok((
            About::Ack(EventSeq(seq)),
            Command::Acknowledge(EventSeq(seq)),
        )),
        Order::Send {
            account,
            id,
            to,
            text,
        } => {
            let jid = if to.contains('@') {
                to.parse::<Jid>().ok()
            } else {
                Jid::pn(&to).ok()
            };
            match jid {
                Some(to) => {
                    let id = MessageId::from(id);
                    let request = SendRequest {
                        id: Some(id.clone()),
                        to,
                        content: Content::Text(text),
                    };
                    Ok((About::Send(id), Command::Send(request)))
                }
                None => Err(
                    json!({ "account": account, "reply": "send", "ok": false, "id": id, "retry": false,
                                    "error": "not a recipient" }),
                ),
            }
        }
    }
}

/// What to say about an answer. An acknowledgement that went through needs no word.
fn reply(name: &str, about: &About, answer: Result<Reply, CommandError>) -> Option<Value> {
    let mut object = match about {
        About::Link => json!({ "reply": "link" }),
        About::Send(id) => json!({ "reply": "send", "id": id.as_str() }),
        About::Ack(_) if answer.is_ok() => return None,
        About::Ack(seq) => json!({ "reply": "ack", "seq": seq.0 }),
    };
    object["account"] = name.into();
    object["ok"] = answer.is_ok().into();
    match answer {
        Ok(Reply::Linked { jid, lid }) => {
            object["jid"] = jid.to_string().into();
            object["lid"] = lid.map(|lid| lid.to_string()).into();
        }
        Ok(_) => {}
        Err(error) => {
            object["retry"] = error.is_retryable().into();
            object["error"] = error.to_string().into();
        }
    }
    Some(object)
}

/// A thread that prints what it is given. Whoever stops reading ends the process: nobody is left to work for.
fn printer() -> (mpsc::UnboundedSender<Value>, tokio::task::JoinHandle<()>) {
    let (lines, mut printed) = mpsc::unbounded_channel::<Value>();
    let printing = tokio::task::spawn_blocking(move || {
        while let Some(object) = printed.blocking_recv() {
            if report::line(object).is_err() {
                std::process::exit(1);
            }
        }
    });
    (lines, printing)
}

/// Appends one line without its end. `false` at the end of the input.
async fn take_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    loop {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |at| at + 1);
        line.extend_from_slice(chunk.get(..end.unwrap_or(taken)).unwrap_or_default());
        input.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
        if line.len() > LINE_BYTES {
            return Err(std::io::Error::other("a line is too long"));
        }
    }
}
