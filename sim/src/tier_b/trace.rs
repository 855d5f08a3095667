//! What happened, in order, as one number.
//!
//! Every delivered frame, every store call with its outcome, every event and every fault is one line: virtual time,
//! host, words. The hash is FNV-1a (128 bits) over the lines, because its definition fits here and will not change with
//! a compiler or a crate. Bytes and rows enter a line as a hash of their own, so equal hashes mean equal contents.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The record of one run. Clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
}

type Listener = Box<dyn FnMut(&str) + Send>;

#[derive(Default)]
struct Inner {
    hash: Fnv,
    count: u64,
    keep: Option<Vec<String>>,
    /// Shown each line as it is made.
    listener: Option<Listener>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines, {}", self.count, self.hash)
    }
}

impl Trace {
    /// Keeps the lines from now on, not only their hash.
    pub fn keep(&self) {
        self.inner().keep.get_or_insert_with(Vec::new);
    }

    /// Shows each line from now on to `listener`.
    pub fn listen(&self, listener: impl FnMut(&str) + Send + 'static) {
        self.inner().listener = Some(Box::new(listener));
    }

    /// One line.
    pub(crate) fn note(&self, at: u64, host: &str, words: fmt::Arguments<'_>) {
        let line = format!("{}.{:03} {host} {words}", at / 1000, at % 1000);
        let mut inner = self.inner();
        inner.hash.feed(line.as_bytes());
        inner.hash.feed(b"\n");
        inner.count += 1;
        if let Some(listener) = &mut inner.listener {
            listener(&line);
        }
        if let Some(lines) = &mut inner.keep {
            lines.push(line);
        }
    }

    /// 32 hex digits over everything so far.
    #[must_use]
    pub fn hash(&self) -> String {
        self.inner().hash.to_string()
    }

    /// How many lines.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner().count
    }

    /// The lines, if they were kept.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.inner().keep.clone().unwrap_or_default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// FNV-1a with 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Of these bytes alone, short enough for a line.
    pub(crate) fn short(parts: &[&[u8]]) -> u64 {
        let mut hash = Self::default();
        for part in parts {
            hash.feed(part);
        }
        u64::try_from(hash.0 & u128::from(u64::MAX)).unwrap_or(0)
    }
}

impl fmt::Display for Fnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // Test vectors of the FNV specification.
        let of = |bytes: &[u8]| {
            let mut hash = Fnv::default();
            hash.feed(bytes);
            hash.to_string()
        };
        assert_eq!(of(b""), "6c62272e07bb014262b821756295c58d");
        assert_eq!(of(b"a"), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(of(b"foobar"), "343e1662793c64bf6f0d3597ba446f18");
    }

    #[test]
    fn order_and_place_count() {
        let trace = |hosts: [&str; 2]| {
            let trace = Trace::default();
            for host in hosts {
                trace.note(1, host, format_args!("x"));
            }
            trace.hash()
        };
        assert_ne!(trace(["a", "b"]), trace(["b", "a"]));
    }
}
