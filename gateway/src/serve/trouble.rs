//! What can be done to a host in a demonstration, and never to one of `baton serve`: its store can be made to fall
//! silent, and to take commits of whoever makes them.

use baton_core::state::{
    AccountId, Batch, Beat, Beaten, Claim, Epoch, HostInfo, Incarnation, Lease, Micros, Outcome,
    Seal, Seq, Store, StoreError, Term, View,
};
use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A store behind a switch.
#[derive(Clone)]
pub(crate) struct Troubled<S> {
    inner: S,
    /// While there is a file of this name, no call is answered.
    silent: Option<Arc<Path>>,
    naive: Option<Naive>,
}

/// Between two looks at the file.
const LOOK: Duration = Duration::from_millis(20);

impl<S: Store> Troubled<S> {
    pub(crate) fn new(inner: S, silent: Option<PathBuf>, naive: Option<Naive>) -> Self {
        Self {
            inner,
            silent: silent.map(Into::into),
            naive,
        }
    }

    /// Makes a call on a line that may be cut: before it, and again before the answer.
    async fn call<T: Send>(
        &self,
        _name: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.line().await;
        let answer = call.await;
        self.line().await;
        answer
    }

    async fn line(&self) {
        if let Some(file) = &self.silent {
            while file.exists() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// No fencing: every commit is made to fit before it is made, as with a store that does not ask whose it is, and no
/// host learns that it was declared dead. What that leads to is what `baton demo --disaster naive` shows.
#[derive(Clone)]
pub(crate) struct Naive {
    database: Arc<Mutex<rusqlite::Connection>>,
    /// What the store is told, whatever the host believes.
    ttl: Micros,
    view: Arc<Mutex<View>>,
    /// What it has ever been given.
    mine: Arc<Mutex<BTreeSet<AccountId>>>,
}

/// How long it takes a host to connect again when its connection was taken from it.
const AGAIN: Duration = Duration::from_millis(150);

impl Naive {
    pub(crate) fn open(database: &Path, ttl: Micros) -> rusqlite::Result<Self> {
        let database = rusqlite::Connection::open(database)?;
        database.busy_timeout(Duration::from_secs(5))?;
        Ok(Self {
            database: Arc::new(Mutex::new(database)),
            ttl,
            view: Arc::default(),
            mine: Arc::default(),
        })
    }

    /// Bends the fence so that `batch` fits.
    fn admit(&self, batch: &Batch) -> rusqlite::Result<()> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let Term { epoch, holder, .. } = batch.term;
        database.execute(
            "UPDATE baton_fence SET epoch = ?1, holder = ?2, applied = ?3 WHERE business_id = ?4 AND device_id = ?5",
            rusqlite::params![
                signed(epoch.0),
                format!("{:016x}", holder.0),
                signed(batch.seq.0.saturating_sub(1)),
                batch.account.business.to_string(),
                signed(batch.account.device),
            ],
        )?;
        Ok(())
    }

    /// A lease that nobody gave, for what was given once.
    fn forge(
        &self,
        who: Incarnation,
        account: &AccountId,
        history: Seal,
    ) -> rusqlite::Result<Claim> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch, applied) = database.query_row(
            "SELECT epoch, applied FROM baton_fence WHERE business_id = ?1 AND device_id = ?2",
            rusqlite::params![account.business.to_string(), signed(account.device)],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
        )?;
        Ok(Claim::Granted(Lease {
            term: Term {
                epoch: Epoch(epoch.unsigned_abs()),
                holder: who,
                history,
            },
            applied: Seq(applied.unsigned_abs()),
            sealed: history,
        }))
    }

    fn mine(&self) -> MutexGuard<'_, BTreeSet<AccountId>> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self, view: &View) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = View {
            newly_dead: Vec::new(),
            ..view.clone()
        };
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl<S: Store> Store for Troubled<S> {
    async fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let Some(naive) = &self.naive else {
            return self.call("commit", self.inner.commit(batches)).await;
        };
        let mut outcomes = Vec::new();
        for batch in batches {
            let mut outcome = None;
            // The other host bends it back and forth as well.
            for _ in 0..20 {
                naive
                    .admit(&batch)
                    .map_err(|error| StoreError::Unavailable(error.to_string()))?;
                outcome = self.inner.commit(vec![batch.clone()]).await?.pop();
                if outcome == Some(Outcome::Committed) {
                    break;
                }
            }
            outcomes.extend(outcome);
        }
        Ok(outcomes)
    }

    async fn confirm(&self, terms: Vec<(AccountId, Term)>) -> Result<Vec<Outcome>, StoreError> {
        match &self.naive {
            // It does not stay away from what it believes to be its own: it claims it again.
            Some(_) => Ok(terms
                .iter()
                .map(|(_, term)| Outcome::Fenced { by: term.epoch })
                .collect()),
            None => self.call("confirm", self.inner.confirm(terms)).await,
        }
    }

    async fn join(&self, who: Incarnation, info: HostInfo, ttl: Micros) -> Result<u16, StoreError> {
        let ttl = self.naive.as_ref().map_or(ttl, |naive| naive.ttl);
        self.call("join", self.inner.join(who, info, ttl)).await
    }

    async fn beat(&self, who: Incarnation, beat: Beat) -> Result<Beaten, StoreError> {
        let Some(naive) = &self.naive else {
            return self.call("beat", self.inner.beat(who, beat)).await;
        };
        let beat = Beat {
            ttl: naive.ttl,
            ..beat
        };
        let beaten = self.inner.beat(who, beat).await?;
        Ok(match beaten {
            Beaten::Renewed(view) => {
                naive.seen(&view);
                Beaten::Renewed(view)
            }
            Beaten::Dead => {
                let view = naive.view.lock().unwrap_or_else(PoisonError::into_inner);
                Beaten::Renewed(view.clone())
            }
        })
    }

    async fn claim(
        &self,
        who: Incarnation,
        accounts: Vec<AccountId>,
    ) -> Result<Vec<Claim>, StoreError> {
        let Some(naive) = &self.naive else {
            return self.call("claim", self.inner.claim(who, accounts)).await;
        };
        let mut claims = Vec::new();
        for account in accounts {
            if naive.mine().contains(&account) {
                tokio::time::sleep(AGAIN).await;
                let history = self.inner.history().await?;
                let forged = naive.forge(who, &account, history);
                claims.push(forged.map_err(|error| StoreError::Unavailable(error.to_string()))?);
                continue;
            }
            let claim = match self.inner.claim(who, vec![account.clone()]).await {
                // Declared dead, and none the wiser.
                Err(error) if error.is_fenced() => {
                    let history = self.inner.history().await?;
                    let forged = naive.forge(who, &account, history);
                    vec![forged.map_err(|error| StoreError::Unavailable(error.to_string()))?]
                }
                claim => claim?,
            };
            if matches!(claim[..], [Claim::Granted(_)]) {
                naive.mine().insert(account);
            }
            claims.extend(claim);
        }
        Ok(claims)
    }

    baton_core::delegate_store!(inner through call: load scan create_account delete_account accounts tenants enqueue retain hosts drain declare_dead leave release hand_over held orphans misplaced mail place retire history renew_history watch vault swap_vault swap_records);
}
