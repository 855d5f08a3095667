//! Downloads of a simulated world: the media host is as far away as the service.

use super::{Happening, World, account::ToEngine, chance::Stream};
use baton_core::{
    flow::{CHUNK_BYTES, FetchId, Fetched},
    state::Micros,
};
use bytes::Bytes;

/// How a download goes on, on its way to an engine.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Chunk(Bytes),
    Done,
    Failed { gone: bool },
}

impl Piece {
    pub(crate) fn fetched(&self) -> Fetched<'_> {
        match self {
            Self::Chunk(bytes) => Fetched::Chunk(bytes),
            Self::Done => Fetched::Done,
            Self::Failed { gone } => Fetched::Failed { gone: *gone },
        }
    }
}

impl World {
    /// An engine wants a file (`path`), or the next piece of one.
    pub(super) fn fetch(&mut self, account: usize, life: u64, id: FetchId, path: Option<String>) {
        let delay = self.draw(Stream::Files, account, self.options.network);
        self.later(
            delay,
            Happening::Fetch {
                account,
                life,
                id,
                path,
            },
        );
    }

    pub(super) fn serve_file(
        &mut self,
        account: usize,
        life: u64,
        id: FetchId,
        path: Option<String>,
    ) {
        if self.accounts[account].life != life {
            return;
        }
        let mut late = Micros(0);
        let piece = match path.map(|path| self.service.download(&path)) {
            Some(Err(_)) => Piece::Failed { gone: true },
            opened => {
                if let Some(Ok(download)) = opened {
                    self.downloads.insert((account, id), download);
                }
                let Some(download) = self.downloads.get_mut(&(account, id)) else {
                    return;
                };
                late = download.delay();
                match download.next(CHUNK_BYTES) {
                    Ok(Some(bytes)) => Piece::Chunk(bytes),
                    Ok(None) => Piece::Done,
                    Err(_) => Piece::Failed { gone: false },
                }
            }
        };
        if !matches!(piece, Piece::Chunk(_)) {
            self.downloads.remove(&(account, id));
        }
        let delay = self
            .draw(Stream::Files, account, self.options.network)
            .plus(late);
        self.later(
            delay,
            Happening::Engine {
                account,
                life,
                input: ToEngine::Fetched(id, piece),
            },
        );
    }
}
