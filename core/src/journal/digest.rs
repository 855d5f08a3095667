//! What an engine did, in a few bytes.

use super::codec::{Kind, Line};
use crate::{crypto::Sha256Stream, engine::Output};

/// Of everything since the last line.
#[derive(Default)]
pub(super) struct Digest {
    hash: Sha256Stream,
    outputs: u64,
}

impl Digest {
    pub(super) fn absorb(&mut self, output: &Output, wire: &[u8]) {
        self.outputs += 1;
        // Names what it is, without what must not be shown …
        let name = format!("{output:?}");
        self.part(name.as_bytes());
        // … which is added: rows, and with them events and all keys; and what goes out.
        match output {
            Output::Commit(batch) => {
                for (key, record) in &batch.rows {
                    self.part(&key.to_bytes());
                    match record {
                        Some(record) => self.part(&record.0),
                        None => self.hash.update(&[0xff]),
                    }
                }
            }
            Output::Fetch(_, request) => self.part(request.path.as_bytes()),
            Output::Transmit | Output::KeepAlive => self.part(wire),
            _ => {}
        }
    }

    /// With its length in front, so that no two lists of parts look the same.
    fn part(&mut self, bytes: &[u8]) {
        self.hash.update(&(bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
    }

    /// What there is to write down, if there is anything, and a new beginning.
    pub(super) fn line(&mut self) -> Option<Line> {
        let Self { hash, outputs } = std::mem::take(self);
        if outputs == 0 {
            return None;
        }
        let mut line = Line::new(Kind::Done);
        line.numbers.push(outputs);
        let hash = hash.finish();
        line.blobs.push(hash.get(..16).unwrap_or_default().to_vec());
        Some(line)
    }
}
