//! What the pairs hold: keys and values as bytes, and back.

use super::{Answer, Pairs};
use crate::state::{
    AccountId, BusinessId, Epoch, Fence, HostInfo, HostState, Incarnation, Key, Member, Micros,
    Record, Roster, Row, Seal, Seq, StoreError, Table, UnixMillis, columns,
};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Account {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint64, tag = "2")]
    pub(super) epoch: u64,
    #[prost(uint64, tag = "3")]
    pub(super) applied: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(super) holder: Option<u64>,
    #[prost(uint32, tag = "5")]
    pub(super) sealed_timeline: u32,
    #[prost(uint32, tag = "6")]
    pub(super) sealed_generation: u32,
    #[prost(bool, tag = "7")]
    pub(super) retired: bool,
    #[prost(bool, tag = "8")]
    pub(super) run: bool,
    #[prost(string, optional, tag = "9")]
    pub(super) pin: Option<String>,
    #[prost(uint64, tag = "10")]
    pub(super) not_before: u64,
}

impl Account {
    pub(super) fn get(pairs: &dyn Pairs, id: &AccountId) -> Answer<Self> {
        match pairs.get(&account_key(b'a', id))? {
            Some(bytes) => decode(&bytes),
            None => Err(StoreError::NoAccount),
        }
    }

    pub(super) fn put(&self, pairs: &mut dyn Pairs, id: &AccountId) -> Answer<()> {
        pairs.put(account_key(b'a', id), Some(self.encode_to_vec()))
    }

    pub(super) fn fence(&self) -> Fence {
        Fence {
            epoch: Epoch(self.epoch),
            applied: Seq(self.applied),
            holder: self.holder.map(Incarnation),
            sealed: Seal {
                timeline: self.sealed_timeline,
                generation: self.sealed_generation,
            },
            retired: self.retired,
        }
    }

    pub(super) fn set_fence(&mut self, fence: &Fence) {
        let Fence {
            epoch,
            applied,
            holder,
            sealed,
            retired,
        } = fence;
        (self.epoch, self.applied, self.retired) = (epoch.0, applied.0, *retired);
        self.holder = holder.map(|holder| holder.0);
        (self.sealed_timeline, self.sealed_generation) = (sealed.timeline, sealed.generation);
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Cluster {
    /// Generations that have begun since the first.
    #[prost(uint32, tag = "1")]
    pub(super) renewals: u32,
    /// Numbers of accounts given so far; none is given twice.
    #[prost(uint64, tag = "2")]
    pub(super) devices: u64,
}

impl Cluster {
    pub(super) fn get(pairs: &dyn Pairs) -> Answer<Self> {
        pairs
            .get(b"c")?
            .map_or(Ok(Self::default()), |bytes| decode(&bytes))
    }

    pub(super) fn put(&self, pairs: &mut dyn Pairs) -> Answer<()> {
        pairs.put(b"c".to_vec(), Some(self.encode_to_vec()))
    }

    pub(super) fn history(&self) -> Seal {
        Seal {
            generation: Seal::FIRST.generation.saturating_add(self.renewals),
            ..Seal::FIRST
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Host {
    #[prost(uint64, tag = "1")]
    who: u64,
    /// Name, address, zone, version.
    #[prost(string, repeated, tag = "2")]
    texts: Vec<String>,
    /// Capacity, accounts, gifts, ttl, expiry, begin of the unbroken series of beats; and, if written by who knew of
    /// them, accounts with a connection, and whether everything is wished away.
    #[prost(uint64, repeated, tag = "3")]
    numbers: Vec<u64>,
    /// In the order of [`STATES`].
    #[prost(uint32, tag = "4")]
    state: u32,
}

const STATES: [HostState; 4] = [
    HostState::Active,
    HostState::Draining,
    HostState::Released,
    HostState::Dead,
];

pub(super) fn roster(pairs: &dyn Pairs) -> Answer<Roster> {
    let mut members = BTreeMap::new();
    for (key, value) in range(pairs, b"h", None, u32::MAX)? {
        let slot = key.last_chunk().map(|slot| u16::from_be_bytes(*slot));
        let member = member(decode(&value)?);
        members.insert(slot.ok_or_else(damaged)?, member.ok_or_else(damaged)?);
    }
    Ok(Roster::new(members))
}

fn member(host: Host) -> Option<Member> {
    let [name, address, zone, version] = <[String; 4]>::try_from(host.texts).ok()?;
    let [
        capacity,
        accounts,
        gifts,
        ttl,
        expires,
        good_since,
        ref later @ ..,
    ] = host.numbers[..]
    else {
        return None;
    };
    let later = |at: usize| later.get(at).copied().unwrap_or(0);
    Some(Member {
        who: Incarnation(host.who),
        info: HostInfo {
            name: name.into(),
            address: address.into(),
            zone: zone.into(),
            version: version.into(),
            capacity: u32::try_from(capacity).ok()?,
        },
        state: *STATES.get(host.state as usize)?,
        accounts: u32::try_from(accounts).ok()?,
        live: u32::try_from(later(0)).ok()?,
        drain: later(1) != 0,
        gifts,
        ttl: Micros(ttl),
        expires: Micros(expires),
        good_since: Micros(good_since),
    })
}

pub(super) fn put_roster(pairs: &mut dyn Pairs, roster: &Roster) -> Answer<()> {
    for (slot, member) in roster.members() {
        let info = &member.info;
        let texts = [&info.name, &info.address, &info.zone, &info.version];
        let state = STATES.iter().position(|state| *state == member.state);
        let host = Host {
            who: member.who.0,
            texts: texts.map(ToString::to_string).to_vec(),
            numbers: vec![
                info.capacity.into(),
                member.accounts.into(),
                member.gifts,
                member.ttl.0,
                member.expires.0,
                member.good_since.0,
                member.live.into(),
                member.drain.into(),
            ],
            state: state.map_or(0, |state| state as u32),
        };
        let key = [b"h", &slot.to_be_bytes()[..]].concat();
        let host = host.encode_to_vec();
        // Most have not changed.
        if pairs.get(&key)?.as_ref() != Some(&host) {
            pairs.put(key, Some(host))?;
        }
    }
    Ok(())
}

/// Pairs whose keys begin with `prefix`, behind the key `after`.
pub(super) fn range(
    pairs: &dyn Pairs,
    prefix: &[u8],
    after: Option<Vec<u8>>,
    limit: u32,
) -> Answer<Vec<(Vec<u8>, Vec<u8>)>> {
    // The next key there can be is the key and a zero.
    let behind = |key: &[u8]| [key, &[0]].concat();
    let mut from = after.map_or_else(|| prefix.to_vec(), |after| behind(&after));
    let mut found = Vec::new();
    while found.len() < limit as usize {
        match pairs.first(&from)? {
            Some((key, value)) if key.starts_with(prefix) => {
                from = behind(&key);
                found.push((key, value));
            }
            _ => break,
        }
    }
    Ok(found)
}

pub(super) fn table<T>(
    pairs: &dyn Pairs,
    account: &AccountId,
    table: Table,
    after: Option<Vec<u8>>,
    limit: u32,
    read: impl Fn(Key, Vec<u8>) -> T,
) -> Answer<Vec<T>> {
    let rows = row_prefix(account);
    let prefix = [&rows[..], &[columns::prefix(table)]].concat();
    range(pairs, &prefix, after, limit)?
        .into_iter()
        .map(|(key, value)| {
            let key = key.get(rows.len()..).and_then(columns::decode);
            Ok(read(key.ok_or_else(damaged)?, value))
        })
        .collect()
}

/// Accounts whose keys begin with `prefix`, in order.
pub(super) fn accounts(
    pairs: &dyn Pairs,
    prefix: &[u8],
    after: Option<&AccountId>,
) -> Answer<Vec<(AccountId, Account)>> {
    let after = after.map(|after| account_key(b'a', after));
    range(pairs, prefix, after, u32::MAX)?
        .into_iter()
        .map(|(key, value)| {
            let (name, number) = key.split_last_chunk().ok_or_else(damaged)?;
            let name = name.get(1..).and_then(|name| name.strip_suffix(&[0]));
            let id = AccountId {
                business: business(name.ok_or_else(damaged)?)?,
                device: u64::from_be_bytes(*number),
            };
            Ok((id, decode(&value)?))
        })
        .collect()
}

pub(super) fn tenant(space: u8, business: &BusinessId) -> Vec<u8> {
    [&[space][..], business.as_str().as_bytes(), &[0]].concat()
}

pub(super) fn account_key(space: u8, id: &AccountId) -> Vec<u8> {
    [&tenant(space, &id.business)[..], &id.device.to_be_bytes()].concat()
}

pub(super) fn row_prefix(account: &AccountId) -> Vec<u8> {
    account_key(b'r', account)
}

pub(super) fn row_key(account: &AccountId, key: &Key) -> Vec<u8> {
    [row_prefix(account), columns::encode(key)].concat()
}

pub(super) fn value(record: &Record, at: UnixMillis) -> Vec<u8> {
    [&at.0.to_be_bytes()[..], &record.0].concat()
}

pub(super) fn content(value: &[u8]) -> Row {
    match value.split_first_chunk::<8>() {
        Some((_, record)) => Row::Present(Record(Bytes::copy_from_slice(record))),
        None => Row::Corrupt,
    }
}

pub(super) fn written_at(value: &[u8]) -> UnixMillis {
    let at = value.first_chunk().map(|at| i64::from_be_bytes(*at));
    UnixMillis(at.unwrap_or_default())
}

pub(super) fn business(name: &[u8]) -> Answer<BusinessId> {
    let name = std::str::from_utf8(name).map_err(|_| damaged())?;
    BusinessId::new(name).map_err(|_| damaged())
}

pub(super) fn decode<M: Message + Default>(bytes: &[u8]) -> Answer<M> {
    M::decode(bytes).map_err(|_| damaged())
}

pub(super) fn damaged() -> StoreError {
    StoreError::Refused("the database is damaged".to_owned())
}
