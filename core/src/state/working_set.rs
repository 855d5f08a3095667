//! The rows an engine has at hand, and what has become of its writes.
//!
//! Three places for a row: the *cache* (what we believe the row is, written or not), the *open batch* (writes not
//! handed out yet) and the batches *in flight*. A row whose write is unfinished is never evicted, and a row that is
//! being loaded is never evicted either, so a load can never bring back an older state than the one we wrote.
//! Eviction goes by the order of use, which is the same in every replay. A row that is used does not move in that order at
//! once, since rows are used all the time and hardly ever evicted: whoever evicts moves those that were.

use super::{AccountId, Batch, Key, Record, Row, Seq, Term, UnixMillis};
use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound,
};

/// A cached row.
#[derive(Clone, Debug)]
struct Entry {
    record: Option<Record>,
    /// The last batch that writes it; evictable once that is durable.
    written: Seq,
    used: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct WorkingSet {
    cache: BTreeMap<Key, Entry>,
    /// Use counter → key: every row once, at its last use or before it. So the first that stands at its last use is the
    /// one that was used longest ago.
    order: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
    limit: usize,
    /// Keys asked for and not answered yet, with how often.
    loading: BTreeMap<Key, u32>,
    open: BTreeMap<Key, Option<Record>>,
    sealed: Seq,
    durable: Seq,
    /// The next batch re-seals the account.
    reseal: bool,
}

/// Rows are loaded ahead of need while fewer than this are on their way.
const AHEAD: usize = crate::limits::ROWS_AHEAD;

/// What a cache entry costs beside its record: key, tree nodes, bookkeeping. An estimate that errs upwards.
const ENTRY_BYTES: usize = 200;

impl WorkingSet {
    /// `reseal`: the first batch is one that [re-seals](Batch::reseal).
    pub(crate) const fn new(applied: Seq, reseal: bool, limit: usize) -> Self {
        Self {
            cache: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            limit,
            loading: BTreeMap::new(),
            open: BTreeMap::new(),
            sealed: applied,
            durable: applied,
            reseal,
        }
    }

    /// Whether the row is known (be it as absent).
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.cache.contains_key(key)
    }

    /// The row, if known and present. Work states its keys before it runs, so an unknown row is treated as absent only
    /// by code that did not ask for it: that is a bug, and debug builds stop at it.
    pub(crate) fn get(&mut self, key: &Key) -> Option<&Record> {
        let entry = self.cache.get_mut(key);
        debug_assert!(entry.is_some(), "{key:?} is used but was not loaded");
        let entry = entry?;
        self.uses += 1;
        entry.used = self.uses;
        entry.record.as_ref()
    }

    /// Takes a row that cannot be used for absent from here on, without writing anything.
    pub(crate) fn disregard(&mut self, key: &Key) {
        if let Some(entry) = self.cache.get_mut(key) {
            self.bytes -= size(entry.record.take().as_ref());
        }
    }

    /// The first row known behind `key`, if it is in the same table.
    pub(crate) fn known_after(&self, key: &Key) -> Option<&Key> {
        let behind = (Bound::Excluded(key), Bound::Unbounded);
        let (found, _) = self.cache.range(behind).next()?;
        (found.table() == key.table()).then_some(found)
    }

    /// Whether there is room for rows that are not needed at once.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes <= self.limit && self.loading.len() < AHEAD
    }

    /// Writes (or deletes) a row: it joins the open batch.
    pub(crate) fn put(&mut self, key: Key, record: Option<Record>) {
        self.open.insert(key.clone(), record.clone());
        let written = self.sealed.next();
        self.insert(key, record, written);
    }

    fn insert(&mut self, key: Key, record: Option<Record>, written: Seq) {
        self.uses += 1;
        self.bytes += size(record.as_ref());
        match self.cache.entry(key) {
            btree_map::Entry::Occupied(mut known) => {
                let entry = known.get_mut();
                self.bytes -= size(entry.record.as_ref());
                (entry.record, entry.written, entry.used) = (record, written, self.uses);
            }
            btree_map::Entry::Vacant(place) => {
                self.bytes += ENTRY_BYTES;
                self.order.insert(self.uses, place.key().clone());
                place.insert(Entry {
                    record,
                    written,
                    used: self.uses,
                });
            }
        }
    }

    /// Notes that a load of `keys` is under way.
    pub(crate) fn load_started(&mut self, keys: &[Key]) {
        for key in keys {
            *self.loading.entry(key.clone()).or_insert(0) += 1;
        }
    }

    /// Takes in the answer. A row that was written meanwhile keeps what was written. Returns the keys of rows that
    /// could not be read; they count as absent.
    pub(crate) fn load_finished(&mut self, keys: Vec<Key>, rows: Vec<Row>) -> Vec<Key> {
        let mut corrupt = Vec::new();
        let mut rows = rows.into_iter();
        for key in keys {
            if let Some(count) = self.loading.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.loading.remove(&key);
                }
            }
            // A store that answers with too few rows: the rest is treated like rows that cannot be read.
            let record = match rows.next().unwrap_or(Row::Corrupt) {
                Row::Present(record) => Some(record),
                Row::Absent => None,
                Row::Corrupt => {
                    corrupt.push(key.clone());
                    None
                }
            };
            if !self.cache.contains_key(&key) {
                self.insert(key, record, Seq(0));
            }
        }
        corrupt
    }

    /// Whether a load of this key is under way.
    pub(crate) fn is_loading(&self, key: &Key) -> bool {
        self.loading.contains_key(key)
    }

    /// What an effect that depends on everything written so far has to wait for.
    pub(crate) fn position(&self) -> Seq {
        if self.open.is_empty() {
            self.sealed
        } else {
            self.sealed.next()
        }
    }

    /// Whether everything up to `seq` is durable.
    pub(crate) fn is_durable(&self, seq: Seq) -> bool {
        seq <= self.durable
    }

    /// Batches handed out and not durable yet.
    pub(crate) const fn in_flight(&self) -> u64 {
        self.sealed.0 - self.durable.0
    }

    /// Whether there is anything to hand out.
    pub(crate) fn has_open_batch(&self) -> bool {
        !self.open.is_empty()
    }

    /// Closes the open batch.
    pub(crate) fn seal(
        &mut self,
        account: &AccountId,
        term: Term,
        at: UnixMillis,
    ) -> Option<Batch> {
        if self.open.is_empty() {
            return None;
        }
        self.sealed = self.sealed.next();
        let rows = std::mem::take(&mut self.open);
        Some(Batch {
            account: account.clone(),
            term,
            seq: self.sealed,
            reseal: std::mem::take(&mut self.reseal),
            at,
            rows,
        })
    }

    /// Notes that everything up to `upto` is durable; a claim beyond what was handed out is cut to that.
    pub(crate) fn committed(&mut self, upto: Seq) {
        self.durable = self.durable.max(upto.min(self.sealed));
    }

    /// Drops rows, least recently used first, until the cache fits. Unfinished rows stay whatever it costs.
    pub(crate) fn evict(&mut self) {
        let mut from = 0;
        while self.bytes > self.limit {
            let Some((placed, key)) = self.order.range(from..).next() else {
                return;
            };
            let (placed, key) = (*placed, key.clone());
            from = placed + 1;
            let Some(entry) = self.cache.get_mut(&key) else {
                continue;
            };
            if entry.used > placed {
                // Met again there.
                self.order.remove(&placed);
                self.order.insert(entry.used, key);
            } else if entry.written <= self.durable && !self.loading.contains_key(&key) {
                self.bytes -= ENTRY_BYTES + size(entry.record.as_ref());
                self.order.remove(&placed);
                self.cache.remove(&key);
            }
        }
    }

    /// Bytes that the cache holds by its own estimate.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

fn size(record: Option<&Record>) -> usize {
    record.map_or(0, |record| record.0.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Epoch, Incarnation, Seal};
    use proptest::prelude::*;

    const TERM: Term = Term {
        epoch: Epoch(1),
        holder: Incarnation(1),
        history: Seal::FIRST,
    };

    fn key(n: u8) -> Key {
        Key::PreKey(u32::from(n) + 1)
    }

    fn record(n: u8) -> Record {
        Record(vec![n; 3].into())
    }

    fn account() -> AccountId {
        AccountId {
            business: Default::default(),
            device: 1,
        }
    }

    /// Rows as a store gives them.
    fn loaded(set: &mut WorkingSet, keys: std::ops::Range<u8>) {
        let keys: Vec<Key> = keys.map(key).collect();
        let rows = keys.iter().map(|_| Row::Present(record(7))).collect();
        set.load_started(&keys);
        assert_eq!(set.load_finished(keys, rows), []);
    }

    /// At the limit everything stays; what is beyond it goes, used longest ago first, and nothing is loaded ahead.
    #[test]
    fn the_cache_ends_at_its_limit() {
        let one = ENTRY_BYTES + 3;
        for (limit, kept) in [(3 * one + 1, 3), (3 * one, 3), (3 * one - 1, 2)] {
            let mut set = WorkingSet::new(Seq(0), false, limit);
            loaded(&mut set, 0..3);
            assert_eq!(set.bytes(), 3 * one);
            assert_eq!(set.has_room(), kept == 3, "{limit}");
            set.evict();
            assert_eq!((set.bytes(), set.knows(&key(0))), (kept * one, kept == 3));
            assert!(set.has_room() && set.knows(&key(1)) && set.knows(&key(2)));
            // What is not durable stays, whatever it costs.
            (0..9).for_each(|n| set.put(key(n), Some(record(n))));
            set.evict();
            assert_eq!(set.bytes(), 9 * one);
        }
    }

    #[test]
    fn rows_on_their_way_end_at_their_limit() {
        use crate::limits::ROWS_AHEAD;
        let mut set = WorkingSet::new(Seq(0), false, 1 << 20);
        let keys: Vec<Key> = (1..=ROWS_AHEAD as u32).map(Key::PreKey).collect();
        let (last, most) = keys.split_last().unwrap();
        set.load_started(most);
        assert!(set.has_room());
        set.load_started(std::slice::from_ref(last));
        assert!(!set.has_room());
        set.load_finished(vec![last.clone()], vec![Row::Absent]);
        assert!(set.has_room());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put(u8, u8),
        Delete(u8),
        Seal,
        Commit,
        Ask(u8),
        Answer,
        Evict,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..6u8, any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
            (0..6u8).prop_map(Op::Delete),
            Just(Op::Seal),
            Just(Op::Commit),
            (0..6u8).prop_map(Op::Ask),
            Just(Op::Answer),
            Just(Op::Evict),
        ]
    }

    proptest! {
        /// Whatever the order of writes, commits, loads and evictions: a row that is known is the row as last written,
        /// and what the store holds in the end is what was written.
        #[test]
        fn never_reads_around_its_own_writes(ops in proptest::collection::vec(op(), 1..80)) {
            // A cache of one row: everything that may be evicted is.
            let mut set = WorkingSet::new(Seq(0), false, ENTRY_BYTES);
            let mut truth: BTreeMap<Key, Option<Record>> = BTreeMap::new();
            let mut store: BTreeMap<Key, Record> = BTreeMap::new();
            let mut flying = std::collections::VecDeque::new();
            // A load reads the store at the moment it is asked for, and is answered later.
            let mut loads: std::collections::VecDeque<(Key, Row)> = Default::default();

            for op in ops {
                match op {
                    Op::Put(k, v) => {
                        set.put(key(k), Some(record(v)));
                        truth.insert(key(k), Some(record(v)));
                    }
                    Op::Delete(k) => {
                        set.put(key(k), None);
                        truth.insert(key(k), None);
                    }
                    Op::Seal => flying.extend(set.seal(&account(), TERM, UnixMillis(0))),
                    Op::Commit => if let Some(batch) = flying.pop_front() {
                        let batch: Batch = batch;
                        for (key, row) in batch.rows {
                            match row { Some(row) => store.insert(key, row), None => store.remove(&key) };
                        }
                        set.committed(batch.seq);
                    },
                    Op::Ask(k) => if !set.knows(&key(k)) {
                        set.load_started(&[key(k)]);
                        let row = store.get(&key(k)).cloned().map_or(Row::Absent, Row::Present);
                        loads.push_back((key(k), row));
                    },
                    Op::Answer => if let Some((key, row)) = loads.pop_front() {
                        prop_assert!(set.load_finished(vec![key], vec![row]).is_empty());
                    },
                    Op::Evict => set.evict(),
                }
                for n in 0..6 {
                    if set.knows(&key(n)) {
                        let expected = truth.get(&key(n)).cloned().flatten();
                        prop_assert_eq!(set.get(&key(n)).cloned(), expected);
                    } else {
                        // Not known: then the store has the truth already.
                        let expected = truth.get(&key(n)).cloned().flatten();
                        prop_assert_eq!(store.get(&key(n)).cloned(), expected);
                    }
                }
            }
            prop_assert_eq!(set.order.len(), set.cache.len());
            let bytes: usize = set.cache.values().map(|entry| ENTRY_BYTES + size(entry.record.as_ref())).sum();
            prop_assert_eq!(bytes, set.bytes());
        }
    }
}
