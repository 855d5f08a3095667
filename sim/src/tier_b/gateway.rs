//! A gateway host: the real [`Host`] of `baton-tokio`, every account of the world, and the consumers of their events.
//! This is the only file that starts hosts.
//!
//! One task, nothing spawned: tokio drops spawned tasks of a crashed host in an order that depends on numbers of the
//! whole process. Everything that is polled is in one [`FuturesUnordered`].

use super::{Room, clock::SimEnv, consumer::Consumer, locked, net::SimLink, remote::RemoteStore};
use crate::{
    service::settings::Change,
    world::{Asked, action_of},
};
use baton_core::{
    flow::{
        Command, CommandId, Config, Endpoint, Limits, PreKeyPolicy, Profile, ServiceConfig, Timing,
    },
    state::{HostInfo, Micros},
};
use baton_tokio::{Account, Env as _, Host, MemberOptions, Options};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// The machine a gateway runs on, and what of it outlives the process.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) index: usize,
    /// How far the wall clock is off, in milliseconds.
    pub(crate) wall: Arc<AtomicI64>,
    /// Stopped by a signal, or by its hypervisor: nothing is polled while time passes.
    pub(crate) frozen: Arc<AtomicBool>,
    /// Processes so far.
    pub(crate) lives: Arc<AtomicU64>,
    /// Whether the process is asked to go.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) version: Arc<AtomicU64>,
    /// Where people reach the process, if there is one.
    wishes: Arc<Mutex<Option<mpsc::UnboundedSender<Wish>>>>,
}

/// Settings of an account that somebody wants to be changed.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) account: usize,
    pub(crate) changes: Vec<Change>,
}

impl Seat {
    pub(crate) fn new(name: &str, index: usize) -> Self {
        Self {
            name: name.into(),
            index,
            wall: Arc::default(),
            frozen: Arc::default(),
            lives: Arc::default(),
            stop: watch::Sender::new(false),
            version: Arc::default(),
            wishes: Arc::default(),
        }
    }

    /// Somebody asks the process for something. It is lost with the process.
    pub(crate) fn wish(&self, wish: Wish) {
        if let Some(wishes) = &*locked(&self.wishes) {
            // A process that is gone answers nobody.
            let _ = wishes.send(wish);
        }
    }
}

/// The process on a gateway host, from start to end.
pub(crate) async fn process(room: Room, seat: Seat) -> turmoil::Result {
    let life = seat.lives.fetch_add(1, Ordering::Relaxed) + 1;
    seat.stop.send_replace(false);
    room.note(&seat.name, format_args!("starts, life {life}"));
    let run = run(room.clone(), seat.clone(), life);
    gated(&seat.frozen, run).await;
    room.note(&seat.name, format_args!("ends, life {life}"));
    Ok(())
}

/// Polls `inner` unless the gate is closed. Time passes meanwhile, and timers and sockets fill up.
pub(crate) async fn gated<T>(frozen: &AtomicBool, inner: impl Future<Output = T>) -> T {
    let mut inner = pin!(inner);
    let mut nap = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        while frozen.load(Ordering::Relaxed) {
            if nap.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let again = tokio::time::Instant::now() + Duration::from_millis(10);
            nap.as_mut().reset(again);
        }
        inner.as_mut().poll(cx)
    })
    .await
}

async fn run(room: Room, seat: Seat, life: u64) {
    let env = SimEnv::new(room.seed, &seat.name, life, Arc::clone(&seat.wall));
    let link = SimLink {
        network: room.network.clone(),
        from: Arc::clone(&seat.name),
    };
    let store = RemoteStore::new(
        room.network.clone(),
        room.mail.clone(),
        Arc::clone(&seat.name),
    );
    let options = options(&seat);
    let (wishes, mut wished) = mpsc::unbounded_channel();
    *locked(&seat.wishes) = Some(wishes);
    let host = Host::new(store, link, env.clone(), options);
    let accounts = room.books().accounts.clone();
    let count = accounts.len();
    let hosts = room.gateways;
    let mut tasks = FuturesUnordered::new();
    let mut handles = Vec::new();
    for (index, book) in accounts.into_iter().enumerate() {
        let (handle, inbox, serve) = host.account(book.id, room.config());
        handles.push(handle.clone());
        // Each account has a host that asks for it first, so that a fleet that starts together shares them.
        let rank = (seat.index + hosts - index % hosts) % hosts;
        let wait = Duration::from_millis(400) * u32::try_from(rank).unwrap_or(0);
        let post = handle.clone();
        let ended = room.clone();
        let name = Arc::clone(&seat.name);
        tasks.push(
            async move {
                // Harmless for an account that is linked already.
                let linked = post.post(Command::Link).await;
                drop(post);
                tokio::time::sleep(wait).await;
                let end = serve.await;
                drop(linked);
                ended.note(&name, format_args!("account {index} ends: {end}"));
                true
            }
            .boxed(),
        );
        let consumer = Consumer::new(&room, &seat.name, life, index);
        tasks.push(consumer.run(handle, inbox).map(|()| false).boxed());
    }
    let mut stop = seat.stop.subscribe();
    let mut left = count;
    let mut number = 0;
    let work = async {
        loop {
            tokio::select! { biased;
                Some(wish) = wished.recv() => {
                    number += 1;
                    let asking = (life, CommandId(number));
                    let handle = handles[wish.account].clone();
                    let done = change(room.clone(), env.clone(), asking, handle, wish);
                    tasks.push(done.map(|()| false).boxed());
                }
                Ok(()) = stop.changed() => {
                    if *stop.borrow_and_update() {
                        handles.iter().for_each(Account::shutdown);
                    }
                }
                ended = tasks.next() => {
                    left -= usize::from(ended == Some(true));
                    if left == 0 {
                        return;
                    }
                }
            }
        }
    };
    let all = async {
        work.await;
        host.leave().await;
    };
    tokio::select! { biased;
        () = all => {}
        never = host.run() => match never {},
    }
}

/// Asks for a change of settings, and notes what came of it.
async fn change(
    room: Room,
    env: SimEnv,
    (life, id): (u64, CommandId),
    handle: Account,
    Wish { account, changes }: Wish,
) {
    let actions = changes.iter().filter_map(action_of).collect();
    let (began, at) = (env.now().mono, env.now().unix.0);
    let number = {
        let asked = Asked {
            life,
            id,
            at,
            changes,
            result: None,
        };
        let changes = &mut room.books().changes;
        changes.push((account, asked));
        changes.len() - 1
    };
    let result = handle.post(Command::Change(actions)).await.await;
    if let Some((_, asked)) = room.books().changes.get_mut(number) {
        // The clock of the machine may have been set meanwhile: not later than when this began, by either setting.
        let spent = env.now().mono.since(began).0.div_ceil(1000);
        let spent = i64::try_from(spent).unwrap_or(i64::MAX);
        asked.at = asked.at.min(env.now().unix.0 - spent);
        asked.result = Some(result);
    }
}

fn options(seat: &Seat) -> Options {
    let mut info = HostInfo::named(&seat.name);
    info.version = format!("0.{}", seat.version.load(Ordering::Relaxed)).into();
    Options {
        member: MemberOptions {
            info,
            ..MemberOptions::default()
        },
        claim_every: Micros::from_millis(500),
        ..Options::default()
    }
}

impl Room {
    /// How engines of this world are set up.
    pub(crate) fn config(&self) -> Config {
        Config {
            limits: Limits::gateway(),
            service: ServiceConfig {
                endpoint: Endpoint("ws://service:80/ws/chat".into()),
                root: self.root,
            },
            profile: Profile {
                push_name: Some("Baton".into()),
                ..Profile::default()
            },
            timing: Timing::default(),
            // Small batches, so that the vault runs low in every run.
            pre_keys: PreKeyPolicy { low: 5, batch: 20 },
            available: true,
        }
    }
}
