//! From flags to a store, an account, a configuration.

use crate::{
    cli::Common,
    store::{self, AnyStore},
};
use baton_core::{
    crypto::PublicKey,
    flow::{
        Config, DeviceSummary, Endpoint, Limits, LinkState, PreKeyPolicy, Profile, ServiceConfig,
        Timing, describe_device,
    },
    jid::Jid,
    state::{AccountId, AccountInfo, BusinessId, HostInfo, Placement, Row, Store as _, StoreError},
};
use baton_tokio::{End, Host, SystemEnv, TcpConnector};
use smol_str::SmolStr;
use std::time::Duration;

/// A host as this binary uses it.
pub type SystemHost = Host<AnyStore, TcpConnector, SystemEnv>;

/// Why a verb failed, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not begin: flags, files, names.
    #[error("{0}")]
    Setup(String),
    /// It began and did not succeed.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// It could not begin.
    pub fn setup(why: impl Into<String>) -> Self {
        Self::Setup(why.into())
    }

    /// It did not succeed.
    pub fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    /// The process's exit status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Setup(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        match end {
            End::Store(error) => {
                Self::failed(format!("the store does not serve the account: {error}"))
            }
            end => Self::failed(format!("the account ended: {end}")),
        }
    }
}

/// The account of that name in the default business.
pub async fn find_account(
    common: &Common,
    store: &AnyStore,
    name: &str,
) -> Result<AccountInfo, Failure> {
    let accounts = store
        .accounts(&BusinessId::default())
        .await
        .map_err(store_failed)?;
    accounts
        .into_iter()
        .find(|account| account.name == name)
        .ok_or_else(|| {
            let place = store::Place::of(common).map(|place| place.to_string());
            Failure::setup(format!(
                "there is no account {name:?} in {}; `baton link --account NAME` makes one",
                place.unwrap_or_default()
            ))
        })
}

/// What a store call that must succeed says when it does not.
pub fn store_failed(error: StoreError) -> Failure {
    Failure::failed(format!("the store failed: {error}"))
}

/// What is known of an account without owning it. `None` if its engine has never run.
pub fn describe(account: &AccountInfo) -> Result<Option<DeviceSummary>, Failure> {
    match &account.device {
        Row::Absent => Ok(None),
        Row::Present(record) => describe_device(record).map(Some).map_err(|error| {
            Failure::failed(format!(
                "account {:?} cannot be read: {error}",
                account.name
            ))
        }),
        Row::Corrupt => Err(Failure::failed(format!(
            "account {:?} cannot be read",
            account.name
        ))),
    }
}

/// The account's own address, if it is linked.
pub fn linked(account: &AccountInfo) -> Result<Jid, Failure> {
    let name = &account.name;
    match describe(account)? {
        Some(DeviceSummary {
            state: LinkState::Linked,
            jid: Some(jid),
            ..
        }) => Ok(jid),
        Some(DeviceSummary {
            state: LinkState::LoggedOut(code),
            ..
        }) => Err(Failure::setup(format!(
            "account {name:?} was logged out (code {code}); `baton link --account {name}` links it again"
        ))),
        _ => Err(Failure::setup(format!(
            "account {name:?} is not linked; `baton link --account {name}` does that"
        ))),
    }
}

/// What engines are told.
pub fn config(common: &Common) -> Result<Config, Failure> {
    let mut service = ServiceConfig::whatsapp();
    if let Some(url) = &common.service_url {
        service.endpoint = Endpoint(url.clone());
        TcpConnector::check(&service.endpoint)
            .map_err(|error| Failure::setup(format!("--service-url {url} is {error}")))?;
    }
    if let Some(hex) = &common.service_root {
        service.root = root_key(hex).ok_or_else(|| {
            Failure::setup("--service-root wants the 64 hexadecimal digits of a public key")
        })?;
    }
    Ok(Config {
        limits: Limits::gateway(),
        service,
        profile: Profile::default(),
        timing: Timing::default(),
        pre_keys: PreKeyPolicy::default(),
        available: false,
    })
}

fn root_key(hex: &str) -> Option<PublicKey> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect();
    PublicKey::from_slice(&bytes?).ok()
}

/// A host for one account and a while: it is in the roster, and no account is given to it that it did not ask for.
/// `role` and a random number are its name, by which an account can be pinned to it.
pub fn host(store: AnyStore, role: &str) -> Result<(SystemHost, SmolStr), Failure> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::setup(format!("no randomness: {error}")))?;
    let name = format!(
        "{}-{:08x}",
        role.trim_end_matches('-'),
        u32::from_le_bytes(random)
    );
    let mut options = baton_tokio::Options::default();
    options.member.info = HostInfo {
        capacity: 0,
        ..HostInfo::named(&name)
    };
    let host = Host::new(store, TcpConnector::new(), SystemEnv::new(), options);
    Ok((host, name.into()))
}

/// Wishes that a fleet runs the account, if there is one; nothing else about it changes.
pub async fn wish_to_run(store: &AnyStore, id: &AccountId) -> Result<(), Failure> {
    let accounts = store.accounts(&id.business).await.map_err(store_failed)?;
    let known = accounts.into_iter().find(|account| account.id == *id);
    let placement = known.map(|account| account.placement).unwrap_or_default();
    if placement.run {
        return Ok(());
    }
    let wish = Placement {
        run: true,
        ..placement
    };
    store.place(id, wish).await.map_err(store_failed)
}

/// An account that runs in a task of its own.
pub struct Running {
    /// Commands.
    pub account: baton_tokio::Account,
    /// Events.
    pub inbox: baton_tokio::Inbox,
    /// How it ended.
    pub end: tokio::task::JoinHandle<End>,
}

impl Running {
    /// Serves `id` beside the renewal of `host`'s leases, for verbs that have one account.
    #[must_use]
    pub fn start(host: SystemHost, id: AccountId, config: Config) -> Self {
        let (account, inbox, serve) = host.account(id, config);
        let end = tokio::spawn(async move {
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
            end,
        }
    }

    /// Shuts down and waits for that, but not for ever.
    pub async fn stop(self) {
        // One that has ended may have been asked how already, and cannot be asked twice.
        if self.end.is_finished() {
            return;
        }
        self.account.shutdown();
        let _ = tokio::time::timeout(Duration::from_secs(8), self.end).await;
    }
}

/// Why an account's task ended.
pub fn ended(end: Result<End, tokio::task::JoinError>) -> Failure {
    match end {
        Ok(end) => end.into(),
        Err(error) => Failure::failed(format!("a defect of this program: {error}")),
    }
}

/// Completes at Ctrl-C or SIGTERM.
pub async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { biased;
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
