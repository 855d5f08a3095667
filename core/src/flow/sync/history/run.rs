//! One chunk while it is read: its bytes, twice if they are many, and what they say, part by part.

use super::{FILE_BYTES, HistoryKind};
use crate::{
    flow::{
        Context,
        sync::files::{Fetch, FileRef},
    },
    history::{HistoryError, HistoryReader, Piece},
    media::{Guard, MediaKind, MediaReader, Survey},
    state::MessageId,
};

/// A part is closed when its items have so many bytes.
const PART_BYTES: usize = 64 << 10;

/// Or when there are so many.
const PART_ITEMS: usize = 512;

/// A file of this size is held until it is known to be sound; a longer one is read twice.
const HELD_BYTES: usize = 1 << 20;

/// Where the bytes of a chunk come from.
pub(super) enum Source {
    /// First reading: is it sound? If it is short, it is held.
    First(Box<Survey>, Option<Vec<u8>>),
    /// Second reading.
    Second(Guard, Box<MediaReader>),
    /// All of them are here.
    Here,
}

/// The chunk that is being read.
pub(super) struct Run {
    pub(super) order: u64,
    pub(super) id: MessageId,
    pub(super) kind: HistoryKind,
    pub(super) progress: Option<u32>,
    pub(super) file: Option<FileRef>,
    pub(super) source: Source,
    pub(super) fetch: Fetch,
    /// A chunk of bytes was taken in and the next not asked for.
    pub(super) owed: bool,
    pub(super) reader: HistoryReader,
    pub(super) part: Vec<Piece>,
    pub(super) bytes: usize,
    /// Items that were taken in before, and items seen now.
    pub(super) done: u64,
    pub(super) seen: u64,
    pub(super) queued: bool,
    pub(super) ended: bool,
    pub(super) failed: Option<Failure>,
}

/// Why a chunk could not be taken in.
pub(super) struct Failure {
    pub(super) why: String,
    /// Trying again is no use.
    pub(super) hopeless: bool,
    /// It is the file that is missing or damaged, not what the phone put into it.
    pub(super) file: bool,
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Self {
        Self {
            why: error.to_string(),
            hopeless: error == HistoryError::TooLong,
            file: false,
        }
    }
}

impl Failure {
    pub(super) fn of_file(why: &str, gone: bool) -> Option<Self> {
        Some(Self {
            why: why.into(),
            hopeless: gone,
            file: true,
        })
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run({}, {} items)", self.id, self.seen)
    }
}

impl Run {
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= PART_BYTES || self.part.len() >= PART_ITEMS
    }

    /// Whether nothing more can be had without another download.
    pub(super) fn is_dry(&self) -> bool {
        self.reader.is_dry() && !matches!(self.source, Source::First(..))
    }

    pub(super) fn take(&mut self, cx: &mut Context, bytes: &[u8]) {
        let mut sealed = Vec::new();
        let result = match &mut self.source {
            Source::First(survey, held) => {
                let mut plain = Vec::new();
                let result = survey.push(bytes, held.as_mut().unwrap_or(&mut plain));
                if held.as_ref().is_some_and(|held| held.len() > HELD_BYTES) {
                    *held = None;
                }
                result
            }
            Source::Second(guard, reader) => guard
                .push(bytes, &mut sealed)
                .and_then(|()| reader.push(&sealed, self.reader.input())),
            Source::Here => Ok(()),
        };
        if result.is_err() {
            cx.stats.sync.bad_files += 1;
            self.failed = Failure::of_file("a file that is not what was announced", false);
        }
    }

    pub(super) fn finish(&mut self, cx: &mut Context) {
        let result = match std::mem::replace(&mut self.source, Source::Here) {
            Source::First(survey, held) => {
                let mut tail = Vec::new();
                survey
                    .finish(&mut tail)
                    .map(|guard| match (held, &self.file) {
                        (Some(mut held), _) => {
                            held.append(&mut tail);
                            *self.reader.input() = held;
                        }
                        (None, Some(file)) => {
                            let expected = file.expected(FILE_BYTES);
                            let reader = MediaReader::new(MediaKind::History, &file.key, expected);
                            self.source = Source::Second(guard, Box::new(reader));
                            self.owed = false;
                        }
                        (None, None) => {}
                    })
            }
            Source::Second(guard, mut reader) => {
                let mut sealed = Vec::new();
                let plain = self.reader.input();
                guard
                    .finish(&mut sealed)
                    .and_then(|()| reader.push(&sealed, plain))
                    .and_then(|()| reader.finish(plain))
            }
            Source::Here => Ok(()),
        };
        if result.is_err() {
            cx.stats.sync.bad_files += 1;
            self.failed = Failure::of_file("a file that is not what was announced", false);
        }
    }

    /// Takes apart what there is, until a part is full.
    pub(super) fn fill(&mut self) {
        if matches!(self.source, Source::First(..)) {
            return;
        }
        while !self.is_full() {
            match self.reader.next() {
                Ok(Some(piece)) => {
                    self.seen += 1;
                    // Else it was taken in before a crash.
                    if self.seen > self.done {
                        self.bytes += piece.bytes();
                        self.part.push(piece);
                    }
                }
                Ok(None) if matches!(self.source, Source::Here) => {
                    match self.reader.finish() {
                        Ok(()) => self.ended = true,
                        Err(error) => self.failed = Some(error.into()),
                    }
                    return;
                }
                Ok(None) => return,
                Err(error) => {
                    self.failed = Some(error.into());
                    return;
                }
            }
        }
    }
}
