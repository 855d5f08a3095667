//! A service, accounts in this process, `baton` as a process.

use baton_core::{
    flow::{
        Config, Connection, Content, Endpoint, Event, Limits, Message, Notice, PreKeyPolicy,
        Profile, SendRequest, ServiceConfig, Timing,
    },
    jid::Jid,
    state::{AccountId, EventSeq, MessageId, Micros, Store},
};
use baton_tokio::{
    Account, DriveOptions, End, Host, Inbox, Item, MemberOptions, Options, Ownership, SystemEnv,
    TcpConnector,
};
use serde_json::Value;
use sim::serve::{ServeOptions, SimServer};
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};
use tokio::task::JoinHandle;

/// Longer than anything here takes, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn service() -> SimServer {
    SimServer::start(ServeOptions::default()).await.unwrap()
}

/// An impatient configuration: reconnects in milliseconds.
pub(crate) fn config(server: &SimServer) -> Config {
    Config {
        limits: Limits::gateway(),
        service: ServiceConfig {
            endpoint: Endpoint(server.ws_url.clone()),
            root: server.root_public_key,
        },
        profile: Profile::default(),
        timing: Timing {
            backoff_first: Micros::from_millis(50),
            backoff_most: Micros::from_millis(500),
            ..Timing::default()
        },
        pre_keys: PreKeyPolicy {
            batch: 30,
            ..PreKeyPolicy::default()
        },
        available: false,
    }
}

/// Leases of one second.
pub(crate) fn options() -> Options {
    Options {
        member: MemberOptions {
            ttl: Micros::from_secs(1),
            every: Micros::from_millis(150),
            deadline: Micros::from_millis(150),
            ..MemberOptions::default()
        },
        claim_every: Micros::from_millis(50),
        replaced_pause: Micros::from_millis(200),
        drive: DriveOptions {
            mailbox: Some(Micros::from_millis(50)),
            ..DriveOptions::default()
        },
        ..Options::default()
    }
}

/// One account that this process serves, as a host of its own: a process within the process.
pub(crate) struct Owner {
    pub(crate) account: Account,
    pub(crate) inbox: Inbox,
    pub(crate) task: JoinHandle<End>,
    /// Everything that passed by while looking for something else.
    pub(crate) seen: Vec<(EventSeq, Event)>,
}

impl Owner {
    pub(crate) fn start<S: Store>(store: &S, id: &AccountId, config: Config) -> Self {
        Self::with(store, id, config, options())
    }

    pub(crate) fn with<S: Store>(
        store: &S,
        id: &AccountId,
        config: Config,
        options: Options,
    ) -> Self {
        let host = Host::new(
            store.clone(),
            TcpConnector::new(),
            SystemEnv::new(),
            options,
        );
        let (account, inbox, serve) = host.account(id.clone(), config);
        let task = tokio::spawn(async move {
            tokio::select! { biased;
                end = async {
                    let end = serve.await;
                    host.leave().await;
                    end
                } => end,
                never = host.run() => match never {},
            }
        });
        Self {
            account,
            inbox,
            task,
            seen: Vec::new(),
        }
    }

    /// Links by letting the phone of `number` scan, and waits until the account is online.
    pub(crate) async fn link(&mut self, server: &SimServer, number: &str) -> (Jid, Option<Jid>) {
        let linking = {
            let account = self.account.clone();
            tokio::spawn(async move { account.link().await })
        };
        let mut scanned = false;
        self.until(|item| match item {
            Item::Notice(Notice::Qr { text, .. }) if !scanned => {
                server
                    .with(|service, now| service.scan(text, Some(number), now))
                    .unwrap();
                scanned = true;
                None
            }
            Item::Notice(Notice::Connection(Connection::Online)) => Some(()),
            _ => None,
        })
        .await;
        linking.await.unwrap().unwrap()
    }

    pub(crate) async fn online(&mut self) {
        self.until(|item| {
            matches!(item, Item::Notice(Notice::Connection(Connection::Online))).then_some(())
        })
        .await;
    }

    pub(crate) async fn owns(&mut self) -> u64 {
        self.until(|item| match item {
            Item::Ownership(Ownership::Ours { epoch }) => Some(epoch.0),
            _ => None,
        })
        .await
    }

    /// The next message with text, acknowledged.
    pub(crate) async fn message(&mut self) -> Message {
        let (seq, message) = self
            .until_event(|event| match event {
                Event::Message(message) if message.text.is_some() => Some((**message).clone()),
                _ => None,
            })
            .await;
        self.account.acknowledge(seq).await.unwrap();
        message
    }

    pub(crate) async fn until_event<T>(
        &mut self,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> (EventSeq, T) {
        self.until(|item| match item {
            Item::Event(seq, event) => pick(event).map(|picked| (*seq, picked)),
            _ => None,
        })
        .await
    }

    /// Reads on until `pick` finds something.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(&Item) -> Option<T>) -> T {
        let search = async {
            loop {
                let Some(item) = self.inbox.next().await else {
                    panic!("the account ended: {:?}", (&mut self.task).await);
                };
                let picked = pick(&item);
                if let Item::Event(seq, event) = item {
                    self.seen.push((seq, event));
                }
                if let Some(picked) = picked {
                    return picked;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .expect("in time")
    }

    pub(crate) async fn send(&self, id: &str, to: &str, text: &str) -> MessageId {
        self.account.send(request(id, to, text)).await.unwrap()
    }

    pub(crate) async fn end(mut self) -> End {
        self.account.shutdown();
        let end = tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .expect("in time");
        end.unwrap()
    }

    /// As `kill -9` would: nothing is said, nothing is given back.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

pub(crate) fn request(id: &str, to: &str, text: &str) -> SendRequest {
    SendRequest {
        id: Some(id.into()),
        to: Jid::pn(to).unwrap(),
        content: Content::Text(text.into()),
    }
}

/// `baton` with the flags that all verbs take.
pub(crate) fn baton(server: Option<&SimServer>, store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command
        .args(arguments)
        .arg("--store")
        .arg(format!("sqlite:{}", store.display()));
    if let Some(server) = server {
        let root: String = server
            .root_public_key
            .as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        command.args(["--service-url", &server.ws_url, "--service-root", &root]);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it without blocking the service that it talks to.
pub(crate) async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

pub(crate) fn objects(output: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
