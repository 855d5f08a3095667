//! Accounts and tenants: what there is of them, and the keys that tenants have.

use crate::{
    error::{Blame, Failure},
    hosts::{NEWS, span},
    pool::{Mode, Pool, Run as _, Scope, Transaction},
    rows::{begin, fence, load_alone, read},
    schema::{account_query, incarnation, unsigned},
};
use baton_core::state::{
    AccountId, AccountInfo, BusinessId, Epoch, Key, Micros, Placement, Record, StoreError, rules,
};
use bytes::Bytes;
use sqlx::Row as _;
use std::sync::Arc;

/// See [`Store::create_account`](baton_core::state::Store::create_account).
pub(crate) async fn create_account(
    pool: &Arc<Pool>,
    business: &BusinessId,
    name: &str,
) -> Result<AccountId, Failure> {
    rules::account_name(name)?;
    let mut transaction = pool
        .begin(Mode::Write, Scope::tenant(business))
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let tenant = business.as_str();
        make_tenant(&mut transaction, business).await?;
        let row = sqlx::query(
            "INSERT INTO baton_device (business_id, name) VALUES ($1, $2) \
             ON CONFLICT (business_id, name) DO NOTHING RETURNING device_id",
        )
        .bind(tenant)
        .bind(name)
        .optional(&mut transaction)
        .await?;
        let Some(row) = row else {
            return Err(StoreError::Exists.into());
        };
        let device: i64 = row.try_get(0)?;
        sqlx::query(
            "WITH f AS (INSERT INTO baton_fence (business_id, device_id, sealed_timeline, sealed_generation) \
               SELECT $1, $2, baton_timeline(), generation FROM baton_cluster) \
             INSERT INTO baton_placement (business_id, device_id) VALUES ($1, $2)",
        )
        .bind(tenant)
        .bind(device)
        .run(&mut transaction)
        .await?;
        Ok(AccountId {
            business: business.clone(),
            device: unsigned(device),
        })
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::accounts`](baton_core::state::Store::accounts).
pub(crate) async fn accounts(
    pool: &Arc<Pool>,
    business: &BusinessId,
) -> Result<Vec<AccountInfo>, Failure> {
    match accounts_together(pool, business, true).await {
        Err(failure) if failure.blame() == Blame::Damage => {
            let mut accounts = accounts_together(pool, business, false).await?;
            for account in &mut accounts {
                account.device = load_alone(pool, &account.id, &Key::Device).await?;
            }
            Ok(accounts)
        }
        result => result,
    }
}

async fn accounts_together(
    pool: &Arc<Pool>,
    business: &BusinessId,
    records: bool,
) -> Result<Vec<AccountInfo>, Failure> {
    macro_rules! list {
        ($record:literal) => {
            concat!(
                "SELECT d.device_id, d.name, f.epoch, h.incarnation, f.retired, p.run, p.pin, \
                   greatest(0, extract(epoch FROM p.not_before - clock_timestamp()) * 1000000)::bigint, ",
                $record,
                " FROM baton_device d JOIN baton_fence f USING (business_id, device_id) \
                 JOIN baton_placement p USING (business_id, device_id) \
                 LEFT JOIN baton_host h ON h.incarnation = f.holder AND h.state IN ('active', 'draining') \
                 WHERE d.business_id = $1 ORDER BY d.name"
            )
        };
    }
    let sql = if records {
        list!("d.record")
    } else {
        list!("NULL::bytea")
    };
    let mut transaction = pool
        .begin(Mode::Read, Scope::tenant(business))
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let rows = sqlx::query(sql)
            .bind(business.as_str())
            .all(&mut transaction)
            .await?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in rows {
            accounts.push(AccountInfo {
                id: AccountId {
                    business: business.clone(),
                    device: unsigned(row.try_get(0)?),
                },
                name: row.try_get(1)?,
                epoch: Epoch(unsigned(row.try_get(2)?)),
                holder: row.try_get::<Option<i64>, _>(3)?.map(incarnation),
                retired: row.try_get(4)?,
                placement: Placement {
                    run: row.try_get(5)?,
                    pin: row.try_get::<Option<&str>, _>(6)?.map(Into::into),
                    pause: Micros(unsigned(row.try_get(7)?)),
                },
                device: read(&row, 8)?,
            });
        }
        Ok(accounts)
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::delete_account`](baton_core::state::Store::delete_account). Everything else refers to the account's row
/// and goes with it.
pub(crate) async fn delete_account(pool: &Arc<Pool>, account: &AccountId) -> Result<(), Failure> {
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        // Nobody claims it while it is locked. Whether its holder lives is asked behind the lock: a host that was given
        // the account just before may have joined after this statement began.
        let locked = account_query(
            "SELECT 1 FROM baton_fence WHERE business_id = $1 AND device_id = $2 FOR UPDATE",
            account,
        )
        .optional(&mut transaction)
        .await?;
        if locked.is_none() {
            return Err(StoreError::NoAccount.into());
        }
        let deleted = account_query(
            "DELETE FROM baton_device d USING baton_fence f \
             WHERE d.business_id = $1 AND d.device_id = $2 AND f.business_id = $1 AND f.device_id = $2 \
             AND NOT EXISTS (SELECT FROM baton_host h \
               WHERE h.incarnation = f.holder AND h.state IN ('active', 'draining'))",
            account,
        )
        .run(&mut transaction)
        .await?;
        if deleted == 0 {
            return Err(StoreError::Held.into());
        }
        Ok(())
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::tenants`](baton_core::state::Store::tenants).
pub(crate) async fn tenants(pool: &Arc<Pool>) -> Result<Vec<BusinessId>, Failure> {
    let mut transaction = pool
        .begin(Mode::Read, Scope::Fleet)
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let sql = "SELECT business_id FROM baton_tenant ORDER BY business_id";
        let rows = sqlx::query(sql).all(&mut transaction).await?;
        rows.iter()
            .map(|row| business(row.try_get(0)?))
            .collect::<Result<Vec<_>, Failure>>()
    };
    let result = work.await;
    transaction.finish(result).await
}

/// A business as a column has it; a constraint keeps others out.
pub(crate) fn business(name: &str) -> Result<BusinessId, Failure> {
    let unknown = |_| StoreError::Refused("a business has a name that is none".to_owned());
    Ok(BusinessId::new(name).map_err(unknown)?)
}

/// See [`Store::place`](baton_core::state::Store::place).
pub(crate) async fn place(
    pool: &Arc<Pool>,
    account: &AccountId,
    placement: &Placement,
) -> Result<(), Failure> {
    rules::placement(placement)?;
    let mut transaction = begin(pool, Mode::Write, account).await?;
    let work = async {
        let placed = account_query(
            "WITH p AS (UPDATE baton_placement SET run = $3, pin = $4, \
               not_before = clock_timestamp() + $5 * interval '1 microsecond' \
               WHERE business_id = $1 AND device_id = $2 RETURNING 1) \
             SELECT pg_notify($6, 'own')::text FROM p",
            account,
        )
        .bind(placement.run)
        .bind(placement.pin.as_ref().map(ToString::to_string))
        .bind(span(placement.pause))
        .bind(NEWS)
        .optional(&mut transaction)
        .await?;
        if placed.is_none() {
            fence(&mut transaction, account).await?;
        }
        Ok(())
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::vault`](baton_core::state::Store::vault).
pub(crate) async fn vault(
    pool: &Arc<Pool>,
    business: &BusinessId,
) -> Result<Vec<(u32, Record)>, Failure> {
    let mut transaction = pool
        .begin(Mode::Read, Scope::tenant(business))
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let rows = sqlx::query(
            "SELECT number, wrapped FROM baton_vault WHERE business_id = $1 ORDER BY number",
        )
        .bind(business.as_str())
        .all(&mut transaction)
        .await?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let number = u32::try_from(row.try_get::<i32, _>(0)?).unwrap_or(0);
            let wrapped = Bytes::copy_from_slice(row.try_get(1)?);
            keys.push((number, Record(wrapped)));
        }
        Ok(keys)
    };
    let result = work.await;
    transaction.finish(result).await
}

/// See [`Store::swap_vault`](baton_core::state::Store::swap_vault).
pub(crate) async fn swap_vault(
    pool: &Arc<Pool>,
    business: &BusinessId,
    number: u32,
    old: Option<&Record>,
    new: Option<&Record>,
) -> Result<bool, Failure> {
    rules::vault(number, new)?;
    let mut transaction = pool
        .begin(Mode::Write, Scope::tenant(business))
        .await
        .map_err(Failure::begin)?;
    let work = async {
        let query = |sql: &'static str| {
            // The rules have seen that it fits.
            let number = i32::try_from(number).unwrap_or(i32::MAX);
            sqlx::query(sql).bind(business.as_str()).bind(number)
        };
        let swapped = match (old, new) {
            (None, None) => {
                query("SELECT 1 FROM baton_vault WHERE business_id = $1 AND number = $2")
                    .optional(&mut transaction)
                    .await?
                    .is_none()
            }
            (None, Some(new)) => {
                make_tenant(&mut transaction, business).await?;
                query(
                    "INSERT INTO baton_vault (business_id, number, wrapped) VALUES ($1, $2, $3) \
                     ON CONFLICT DO NOTHING",
                )
                .bind(&new.0[..])
                .run(&mut transaction)
                .await?
                    > 0
            }
            (Some(old), Some(new)) => {
                query(
                    "UPDATE baton_vault SET wrapped = $4 \
                     WHERE business_id = $1 AND number = $2 AND wrapped = $3",
                )
                .bind(&old.0[..])
                .bind(&new.0[..])
                .run(&mut transaction)
                .await?
                    > 0
            }
            (Some(old), None) => query(
                "DELETE FROM baton_vault WHERE business_id = $1 AND number = $2 AND wrapped = $3",
            )
            .bind(&old.0[..])
            .run(&mut transaction)
            .await?
                > 0,
        };
        Ok(swapped)
    };
    let result = work.await;
    transaction.finish(result).await
}

async fn make_tenant(transaction: &mut Transaction, business: &BusinessId) -> Result<(), Failure> {
    sqlx::query("INSERT INTO baton_tenant (business_id) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(business.as_str())
        .run(transaction)
        .await?;
    Ok(())
}
