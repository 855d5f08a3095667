//! The service host: the simulated service behind real WebSocket framing on simulated sockets; and the host from which
//! applications leave requests in mailboxes.

use super::{
    Ask, Order, Room,
    clock::{self, BEGINNING},
    remote::RemoteStore,
};
use crate::{
    serve::{files, hub::Seen, socket},
    service::{ConnId, DeviceId, Now},
};
use baton_core::{
    flow::{Content, SendRequest, mailbox_request},
    jid::Jid,
    state::{Micros, Store as _, UnixMillis},
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use turmoil::net::TcpListener;

/// The service and its port.
pub(crate) const SERVICE: (&str, u16) = ("service", 80);

/// Where it has files: media hosts speak HTTP.
pub(crate) const MEDIA: u16 = 81;

/// Its timers are late by this much at most.
const TICK: Duration = Duration::from_millis(10);

/// Both clocks of the service. `mono` never runs back, whoever asks.
pub(crate) fn now(last: &AtomicU64) -> Now {
    let mono = clock::now().max(last.load(Ordering::Relaxed));
    last.store(mono, Ordering::Relaxed);
    let millis = i64::try_from(mono / 1000).unwrap_or(i64::MAX);
    Now {
        mono: Micros(mono),
        unix: UnixMillis(BEGINNING + millis),
    }
}

/// What the trace says of the service's frames.
pub(crate) fn observe(trace: &super::Trace, seen: Seen<'_>) {
    let line = |conn: ConnId, words: &str, bytes: &[u8]| {
        let hash = super::trace::Fnv::short(&[bytes]);
        trace.note(
            clock::now(),
            SERVICE.0,
            format_args!("{words} {} {} {hash:016x}", conn.0, bytes.len()),
        );
    };
    match seen {
        Seen::Opened(conn) => line(conn, "opened", &[]),
        Seen::Received(conn, bytes) => line(conn, "received", bytes),
        Seen::Sent(conn, bytes) => line(conn, "sent", bytes),
        Seen::Closed(conn) => line(conn, "closed", &[]),
    }
}

/// The process on the service host.
pub(crate) async fn serve(room: Room) -> turmoil::Result {
    room.hub.restarted();
    let listener = TcpListener::bind(("0.0.0.0", SERVICE.1)).await?;
    let media = TcpListener::bind(("0.0.0.0", MEDIA)).await?;
    let (_stop, stopped) = watch::channel(false);
    let mut connections = FuturesUnordered::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! { biased;
            _ = tick.tick() => {
                room.hub.act(|service, now| service.tick(now));
                while let Some(order) = room.next_order() {
                    carry_out(&room, order);
                }
            }
            Some(()) = connections.next() => {}
            accepted = listener.accept() => {
                let (stream, client) = accepted?;
                let stream = room.network.accepted(stream, client, SERVICE.0);
                let hub = Arc::clone(&room.hub);
                connections.push(socket::connection(hub, stream, stopped.clone()).boxed_local());
            }
            accepted = media.accept() => {
                let (stream, client) = accepted?;
                let stream = room.network.accepted(stream, client, SERVICE.0);
                connections.push(files::connection(Arc::clone(&room.hub), stream).boxed_local());
            }
        }
    }
}

fn carry_out(room: &Room, order: Order) {
    match order {
        Order::Scan { text, phone } => {
            // A code that has expired meanwhile is followed by another.
            let _ = room
                .hub
                .act(|service, now| service.scan(&text, Some(&phone), now));
        }
        Order::Phone { from, to, text } => {
            let (phone, recipient) = {
                let books = room.books();
                (books.phones[from].clone(), books.accounts[to].phone.clone())
            };
            let sent = room.hub.act(|service, now| {
                // Known under its number before anybody is written to.
                let _ = service.add_phone(&phone, None, now);
                service.phone_send(&phone, &recipient, &text, now)
            });
            let mut books = room.books();
            let from = books.accounts.len() + from;
            match sent {
                Ok(id) => books.asked.push(Ask { from, to, id, text }),
                Err(error) => books.complaints.push(format!("{phone}: {error}")),
            }
        }
        Order::Settings { account, changes } => {
            let phone = room.books().accounts[account].phone.clone();
            let changed = room
                .hub
                .act(|service, now| service.phone_change(&phone, &changes, now).map(drop));
            if let Err(error) = changed {
                let complaint = format!("the phone {phone}: {error}");
                room.books().complaints.push(complaint);
            }
        }
        Order::Fault(fault) => room.hub.act(|service, now| service.fault(fault, now)),
        // The phones tell their companions all keys, as phones do now and then.
        Order::Heal => {
            let books = room.books();
            let phones = books.accounts.iter().map(|book| book.phone.clone());
            let phones: Vec<String> = phones.collect();
            drop(books);
            room.hub.act(|service, now| {
                service.heal();
                for phone in phones {
                    service.share_keys(&DeviceId::new(&phone, 1), None, now);
                }
            });
        }
    }
}

/// The process of an application that does not own accounts: it leaves requests to send, in order, each until the
/// database has it.
pub(crate) async fn mailboxes(room: Room) -> turmoil::Result {
    let store = RemoteStore::new(room.network.clone(), room.mail.clone(), "api".into());
    let mut order = 0;
    loop {
        let Some(ask) = room.next_ask() else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        let (account, recipient) = {
            let books = room.books();
            let recipient = match books.accounts.get(ask.to) {
                Some(book) => book.phone.clone(),
                None => books.phones[ask.to - books.accounts.len()].clone(),
            };
            (books.accounts[ask.from].id.clone(), recipient)
        };
        let Ok(to) = Jid::pn(&recipient) else {
            continue;
        };
        let request = SendRequest {
            id: Some(ask.id.as_str().into()),
            to,
            content: Content::Text(ask.text.clone()),
        };
        order += 1;
        let row = mailbox_request(&request, order);
        loop {
            let millis = i64::try_from(clock::now() / 1000).unwrap_or(i64::MAX);
            let at = UnixMillis(BEGINNING + millis);
            let id = ask.id.as_str().into();
            match store.enqueue(&account, id, row.clone(), at).await {
                Ok(_) => break,
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    room.books().complaints.push(format!("enqueue: {error}"));
                    break;
                }
            }
        }
        room.books().asked.push(ask);
    }
}
