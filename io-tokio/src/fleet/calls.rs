//! The machines' questions, asked of a real store.

use crate::Env;
use baton_core::{
    cluster::{Answer, Ask, Call, CallId, device::Verdict},
    state::{AccountId, Incarnation, Micros, Outcome, Store, StoreError, Table, Term, UnixMillis},
};
use futures_util::future::BoxFuture;
use tracing::{debug, warn};

/// Something that was asked has been answered.
pub(super) enum Done {
    Answered(CallId, Answer),
    Verified(Vec<(AccountId, u32, Verdict)>),
    Mail(Vec<AccountId>),
    /// Old rows have left; whether there may be more of them.
    Retained(bool),
}

pub(super) type Asking = BoxFuture<'static, Done>;

/// Asks what the machine wants to know. Gives up at the call's deadline: then nobody knows whether it took effect.
pub(super) async fn ask<S: Store, E: Env>(store: S, env: E, call: Call) -> Done {
    let deadline = env.now().mono.plus(call.within);
    let name = name(&call.ask);
    let answer = tokio::select! { biased;
        answer = carry_out(&store, call.who, call.ask) => answer,
        () = env.sleep_until(deadline) => Err(StoreError::Unavailable("no answer".to_owned())),
    };
    let answer = answer.unwrap_or_else(|error| {
        if error.is_fenced() {
            return Answer::NotMember;
        }
        if error.is_retryable() {
            debug!(%error, call = name, "not answered");
        } else {
            warn!(%error, call = name, "refused");
        }
        Answer::Failed
    });
    Done::Answered(call.id, answer)
}

async fn carry_out<S: Store>(store: &S, who: Incarnation, ask: Ask) -> Result<Answer, StoreError> {
    Ok(match ask {
        Ask::Join { info, ttl } => Answer::Joined(store.join(who, info, ttl).await?),
        Ask::Beat(beat) => Answer::Beaten(store.beat(who, beat).await?),
        Ask::Claim(accounts) => Answer::Claimed(store.claim(who, accounts).await?),
        Ask::Release(accounts) => {
            store.release(who, accounts).await?;
            Answer::Released
        }
        Ask::HandOver { account, epoch, to } => {
            Answer::HandedOver(store.hand_over(who, &account, epoch, to).await?)
        }
        Ask::Held => Answer::Held(store.held(who).await?),
        Ask::Misplaced => Answer::Misplaced(store.misplaced(who).await?),
        Ask::Orphans { after, limit } => Answer::Orphans(store.orphans(after, limit).await?),
        Ask::Leave => {
            store.leave(who).await?;
            Answer::Left
        }
    })
}

const fn name(ask: &Ask) -> &'static str {
    match ask {
        Ask::Join { .. } => "join",
        Ask::Beat(_) => "beat",
        Ask::Claim(_) => "claim",
        Ask::Release(_) => "release",
        Ask::HandOver { .. } => "hand_over",
        Ask::Held => "held",
        Ask::Misplaced => "misplaced",
        Ask::Orphans { .. } => "orphans",
        Ask::Leave => "leave",
    }
}

/// Finds out by a write whose the accounts are, all in one call.
pub(super) async fn verify<S: Store, E: Env>(
    store: S,
    env: E,
    within: Micros,
    asked: Vec<(AccountId, u32, Term)>,
) -> Done {
    let deadline = env.now().mono.plus(within);
    let terms = asked.iter().map(|(id, _, term)| (id.clone(), *term));
    let outcomes = tokio::select! { biased;
        outcomes = store.confirm(terms.collect()) => outcomes,
        () = env.sleep_until(deadline) => Err(StoreError::Unavailable("no answer".to_owned())),
    };
    let outcomes = outcomes.unwrap_or_else(|error| {
        debug!(%error, "not verified");
        Vec::new()
    });
    let mut outcomes = outcomes.into_iter();
    let verdicts = asked.into_iter().map(|(account, number, _)| {
        let verdict = match outcomes.next() {
            Some(Outcome::Committed) => Verdict::Ours,
            // An account that does not exist is nobody's.
            Some(Outcome::Fenced { .. } | Outcome::Rejected(_)) => Verdict::Fenced,
            Some(Outcome::Unsealed { .. }) => Verdict::Unsealed,
            None => Verdict::Unreachable,
        };
        (account, number, verdict)
    });
    Done::Verified(verdicts.collect())
}

/// Which accounts have mail; none if the store does not say.
pub(super) async fn mail<S: Store, E: Env>(
    store: S,
    env: E,
    within: Micros,
    who: Incarnation,
) -> Done {
    let deadline = env.now().mono.plus(within);
    let mail = tokio::select! { biased;
        mail = store.mail(who) => mail,
        () = env.sleep_until(deadline) => Err(StoreError::Unavailable("no answer".to_owned())),
    };
    Done::Mail(mail.unwrap_or_else(|error| {
        debug!(%error, "no look at the mail");
        Vec::new()
    }))
}

/// Lets some old rows leave.
pub(super) async fn retain<S: Store, E: Env>(
    store: S,
    env: E,
    within: Micros,
    account: AccountId,
    table: Table,
    before: UnixMillis,
) -> Done {
    /// Rows per call: a short transaction.
    const STEP: u32 = 500;
    let deadline = env.now().mono.plus(within);
    let gone = tokio::select! { biased;
        gone = store.retain(&account, table, before, STEP) => gone,
        () = env.sleep_until(deadline) => Ok(0),
    };
    // After an error too: the next round is soon enough.
    Done::Retained(gone == Ok(STEP))
}
