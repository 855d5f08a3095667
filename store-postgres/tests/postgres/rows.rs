//! Rows by hand: the SQL that finds the row of a key, and batches to write.

use baton_core::{
    jid::Jid,
    state::{
        AccountId, Batch, Beat, Beaten, BusinessId, Claim, Epoch, EventSeq, HostInfo, Incarnation,
        Key, Lease, Micros, Outcome, Record, Row, Seq, Store, StoreError, UnixMillis,
        conformance::block_on,
    },
};
use baton_store_postgres::PgStore;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const HOUR: Micros = Micros::from_secs(3600);

/// ` AND column = value` for every column of the key.
pub(crate) fn condition(key: &Key) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let bytes = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("'\\x{hex}'")
    };
    let jid = |name: &str, jid: &Jid| {
        format!(
            " AND {name}_user = {} AND {name}_server = {} AND {name}_device = {} AND {name}_integrator = {}",
            quoted(jid.user()),
            quoted(jid.server().as_str()),
            jid.device(),
            jid.integrator()
        )
    };
    match key {
        Key::Device | Key::Counters => String::new(),
        Key::Identity(peer)
        | Key::Session(peer)
        | Key::Contact(peer)
        | Key::RedactedPhone(peer)
        | Key::PrivacyToken(peer)
        | Key::DeviceList(peer) => jid("peer", peer),
        Key::ChatSettings(chat) => jid("chat", chat),
        Key::PreKey(id) => format!(" AND pre_key_id = {id}"),
        Key::SenderKey { group, sender } => jid("group", group) + &jid("sender", sender),
        Key::AppStateSyncKey(id) => format!(" AND key_id = {}", bytes(id)),
        Key::AppStateVersion(name) => format!(" AND collection = {}", quoted(name)),
        Key::AppStateMutationMac {
            collection,
            index_mac,
        } => format!(
            " AND collection = {} AND index_mac = {}",
            quoted(collection),
            bytes(index_mac)
        ),
        Key::MessageSecret { chat, sender, id } => {
            jid("chat", chat)
                + &jid("sender", sender)
                + &format!(" AND message_id = {}", quoted(id))
        }
        Key::LidMap(user) => format!(" AND user_part = {}", quoted(user)),
        Key::Inbox(seq) => format!(" AND seq = {}", seq.0),
        Key::Seen(hash) => format!(" AND hash = {}", bytes(hash)),
        Key::Outbox(id) | Key::Sent(id) | Key::Mailbox(id) => {
            format!(" AND message_id = {}", quoted(id))
        }
    }
}

pub(crate) fn business(name: &str) -> BusinessId {
    BusinessId::new(name).unwrap()
}

pub(crate) fn record(text: impl AsRef<str>) -> Record {
    Record(bytes::Bytes::copy_from_slice(text.as_ref().as_bytes()))
}

/// A host that has joined, for an hour.
pub(crate) fn join(store: &PgStore) -> Incarnation {
    join_for(store, HOUR)
}

pub(crate) fn join_for(store: &PgStore, ttl: Micros) -> Incarnation {
    static LIVES: AtomicU64 = AtomicU64::new(1);
    // Different in every process, and with bits at both ends.
    let life = LIVES.fetch_add(1, Ordering::SeqCst);
    let who = Incarnation(u64::from(std::process::id()) << 33 | life);
    block_on(store.join(who, HostInfo::named(&format!("h{life}")), ttl)).unwrap();
    who
}

pub(crate) fn claim(store: &PgStore, id: &AccountId, who: Incarnation) -> Claim {
    block_on(store.claim(who, vec![id.clone()]))
        .unwrap()
        .remove(0)
}

pub(crate) fn beat(store: &PgStore, who: Incarnation, ttl: Micros) -> Beaten {
    let beat = Beat {
        draining: false,
        accounts: 0,
        live: 0,
        ttl,
    };
    block_on(store.beat(who, beat)).unwrap()
}

/// The holder of an account, counting its batches.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) store: PgStore,
    pub(crate) id: AccountId,
    pub(crate) lease: Lease,
    pub(crate) seq: Seq,
}

impl Owner {
    /// Creates an account and claims it for a new host.
    pub(crate) fn create(store: &PgStore, tenant: &str, name: &str) -> Self {
        Self::create_for(store, tenant, name, join(store))
    }

    pub(crate) fn create_for(store: &PgStore, tenant: &str, name: &str, who: Incarnation) -> Self {
        let id = block_on(store.create_account(&business(tenant), name)).unwrap();
        Self::claim(store, &id, who)
    }

    pub(crate) fn claim(store: &PgStore, id: &AccountId, who: Incarnation) -> Self {
        match claim(store, id, who) {
            Claim::Granted(lease) => Self::of(store, id, lease),
            other => panic!("{id} cannot be claimed: {other:?}"),
        }
    }

    /// Claims for a new host and declares dead whoever is in the way.
    pub(crate) fn seize(store: &PgStore, id: &AccountId) -> Self {
        let who = join(store);
        loop {
            match claim(store, id, who) {
                Claim::Granted(lease) => return Self::of(store, id, lease),
                Claim::Held { by } => {
                    block_on(store.declare_dead(who, by)).unwrap();
                }
                Claim::Locked => {}
                other => panic!("{id} cannot be claimed: {other:?}"),
            }
        }
    }

    pub(crate) fn of(store: &PgStore, id: &AccountId, lease: Lease) -> Self {
        Self {
            store: store.clone(),
            id: id.clone(),
            lease,
            seq: lease.applied,
        }
    }

    pub(crate) fn who(&self) -> Incarnation {
        self.lease.term.holder
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.lease.term.epoch
    }

    /// The next batch: an event of that number with `content`, and some other rows.
    pub(crate) fn batch(&mut self, content: &str) -> Batch {
        self.seq = self.seq.next();
        let n = self.seq.0;
        Batch {
            account: self.id.clone(),
            term: self.lease.term,
            seq: self.seq,
            reseal: false,
            at: UnixMillis(1_700_000_000_000),
            rows: [
                (Key::Inbox(EventSeq(n)), Some(record(content))),
                (Key::Counters, Some(record(n.to_string()))),
                (
                    Key::PreKey((n % 50 + 1) as u32),
                    (!n.is_multiple_of(3)).then(|| record("key")),
                ),
            ]
            .into(),
        }
    }

    pub(crate) fn commit(&mut self, content: &str) -> Result<Outcome, StoreError> {
        let batch = self.batch(content);
        block_on(self.store.commit(vec![batch])).map(|mut outcomes| outcomes.remove(0))
    }

    pub(crate) fn confirm(&self) -> Result<Outcome, StoreError> {
        let mine = vec![(self.id.clone(), self.lease.term)];
        block_on(self.store.confirm(mine)).map(|mut outcomes| outcomes.remove(0))
    }

    pub(crate) fn release(&self) {
        let mine = vec![(self.id.clone(), self.epoch())];
        block_on(self.store.release(self.who(), mine)).unwrap();
    }

    pub(crate) fn event(&self, n: u64) -> Row {
        block_on(self.store.load(&self.id, vec![Key::Inbox(EventSeq(n))]))
            .unwrap()
            .remove(0)
    }
}
