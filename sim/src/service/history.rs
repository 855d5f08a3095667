//! The past, as a phone hands it over: chunks that are made while they are read (chapter 07.17).
//!
//! A chunk is drawn from a seed item by item, so whoever judges can draw the same items, and a chunk of any size costs
//! the memory of one item.

use baton_core::crypto::Rng;
use baton_core::proto::{e2e, history as proto};
use flate2::{Compression, write::ZlibEncoder};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::io::Write as _;

/// Which part of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryKind {
    /// The chats, for a new device.
    Initial,
    /// Status updates.
    Status,
    /// Everything.
    Full,
    /// The last months.
    Recent,
    /// What people call themselves.
    PushNames,
}

impl HistoryKind {
    pub(super) fn wire(self) -> e2e::history_sync_notification::SyncType {
        use e2e::history_sync_notification::SyncType;
        match self {
            Self::Initial => SyncType::InitialBootstrap,
            Self::Status => SyncType::InitialStatusV3,
            Self::Full => SyncType::Full,
            Self::Recent => SyncType::Recent,
            Self::PushNames => SyncType::PushName,
        }
    }
}

/// What is wrong with a chunk, sealed and announced properly all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// It does not inflate.
    NotDeflate,
    /// The compressed stream ends in the middle.
    Cut,
    /// It inflates to something that is no history.
    NotHistory,
    /// A megabyte that inflates to more than a gigabyte.
    Bomb,
}

/// A history to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// What.
    pub kind: HistoryKind,
    /// In how many chunks; the next is sent when the one before was received.
    #[serde(default = "one")]
    pub chunks: u32,
    /// Bytes of each, before it is compressed; about.
    #[serde(default)]
    pub bytes: u64,
    /// In the announcement itself instead of a file.
    #[serde(default)]
    pub inline: bool,
    /// Draws the content.
    #[serde(default)]
    pub seed: u64,
    /// What is wrong with the first chunk.
    #[serde(default)]
    pub damage: Option<Damage>,
}

fn one() -> u32 {
    1
}

/// One chunk of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of which history.
    pub history: History,
    /// From 1.
    pub order: u32,
}

/// What an item tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Messages: chat and id.
    Messages(Vec<(String, String)>),
    /// Somebody calls themselves so.
    Name(String, String),
    /// A phone number is of a LID.
    Lid(String, String),
}

impl Chunk {
    /// How much of all history has been sent with it.
    #[must_use]
    pub fn progress(&self) -> u32 {
        self.order * 100 / self.history.chunks.max(1)
    }

    /// Whether a device can take it in.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.history.damage.is_none() || self.order > 1
    }

    /// The items in it, drawn again.
    pub fn items(&self) -> impl Iterator<Item = Told> + Send + use<> {
        Items::new(self.clone()).map(|(told, _)| told)
    }

    /// The file that it travels in, encrypted with `key`, piece by piece.
    #[must_use]
    pub fn sealed(&self, key: &[u8; 32]) -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        let pieces = self.file();
        Box::new(super::files::Sealer::new(
            super::files::FileKind::History,
            key,
            pieces,
        ))
    }

    /// What goes into the file, before it is sealed.
    #[must_use]
    pub fn file(&self) -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        let damage = self.history.damage.filter(|_| !self.is_sound());
        match damage {
            Some(Damage::NotDeflate) => Box::new(std::iter::once(vec![0x55; 4096])),
            Some(Damage::NotHistory) => Box::new(Deflate::new(std::iter::once(vec![0xff; 4096]))),
            Some(Damage::Bomb) => {
                // One field that nobody knows, of 1.2 gigabytes.
                let length = 1_200u64 << 20;
                let mut head = Vec::new();
                prost::encoding::encode_key(
                    4_000,
                    prost::encoding::WireType::LengthDelimited,
                    &mut head,
                );
                prost::encoding::encode_varint(length, &mut head);
                let zeros = (0..1_200).map(|_| vec![0; 1 << 20]);
                Box::new(Deflate::new(std::iter::once(head).chain(zeros)))
            }
            Some(Damage::Cut) => {
                let whole: Vec<u8> = Deflate::new(self.plain()).flatten().collect();
                let half = whole[..whole.len() / 2].to_vec();
                Box::new(std::iter::once(half))
            }
            None => Box::new(Deflate::new(self.plain())),
        }
    }

    fn plain(&self) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
        let head = proto::HistorySync {
            sync_type: Some(self.history.kind.wire().into()),
            chunk_order: Some(self.order),
            progress: Some(self.progress()),
            ..Default::default()
        };
        std::iter::once(head.encode_to_vec())
            .chain(Items::new(self.clone()).map(|(_, bytes)| bytes))
    }
}

/// Draws items until there are enough bytes.
struct Items {
    rng: Rng,
    chunk: Chunk,
    left: u64,
    number: u64,
}

impl Items {
    fn new(chunk: Chunk) -> Self {
        let mut seed = [0x41; 32];
        seed[..8].copy_from_slice(&chunk.history.seed.to_le_bytes());
        seed[8..12].copy_from_slice(&chunk.order.to_le_bytes());
        Self {
            rng: Rng::from_seed(seed),
            left: chunk.history.bytes,
            chunk,
            number: 0,
        }
    }

    fn message(&mut self, chat: &str) -> (String, proto::WebMessageInfo) {
        let id = format!(
            "3A{}",
            super::books::hex(&self.rng.bytes::<10>()).to_uppercase()
        );
        let length = usize::try_from(self.rng.below(400)).unwrap_or(0);
        let text = super::books::hex(&self.rng.bytes::<200>())[..length].to_owned();
        let status = chat.ends_with("@broadcast");
        let participant = status.then(|| format!("{}@s.whatsapp.net", self.user()));
        let info = proto::WebMessageInfo {
            key: Some(e2e::MessageKey {
                remote_jid: Some(chat.to_owned()),
                from_me: Some(!status && self.rng.below(2) == 0),
                id: Some(id.clone()),
                participant: participant.clone(),
            }),
            message: Some(
                e2e::Message {
                    conversation: Some(text),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            message_timestamp: Some(1_767_000_000 + self.number),
            participant,
            message_secret: (self.rng.below(4) == 0).then(|| self.rng.bytes::<32>().to_vec()),
            ..Default::default()
        };
        (id, info)
    }

    /// People of the past have numbers that nobody else in a simulated world has.
    fn user(&mut self) -> u64 {
        16_660_000_000 + self.rng.below(400)
    }

    fn draw(&mut self) -> (Told, proto::HistorySync) {
        let mut part = proto::HistorySync::default();
        self.number += 1;
        let told = match (self.chunk.history.kind, self.rng.below(8)) {
            (HistoryKind::PushNames, _) => {
                let (user, name) = (self.user(), format!("Name {}", self.rng.below(1000)));
                let id = format!("{user}@s.whatsapp.net");
                part.pushnames.push(proto::Pushname {
                    id: Some(id.clone()),
                    pushname: Some(name.clone()),
                });
                Told::Name(id, name)
            }
            (HistoryKind::Status, _) => {
                let chat = "status@broadcast";
                let (id, info) = self.message(chat);
                part.status_v3_messages.push(info);
                Told::Messages(vec![(chat.into(), id)])
            }
            (_, 0) => {
                let user = self.user();
                let (pn, lid) = (
                    format!("{user}@s.whatsapp.net"),
                    format!("{}@lid", user * 10_000),
                );
                part.phone_number_to_lid_mappings
                    .push(proto::PhoneNumberToLidMapping {
                        pn_jid: Some(pn.clone()),
                        lid_jid: Some(lid.clone()),
                    });
                Told::Lid(pn, lid)
            }
            _ => {
                let chat = format!("{}@s.whatsapp.net", self.user());
                let mut ids = Vec::new();
                let mut conversation = proto::Conversation {
                    id: Some(chat.clone()),
                    unread_count: Some(0),
                    ..Default::default()
                };
                for order in 0..=self.rng.below(12) {
                    let (id, info) = self.message(&chat);
                    ids.push((chat.clone(), id));
                    conversation.messages.push(proto::HistorySyncMsg {
                        message: Some(info),
                        msg_order_id: Some(order),
                    });
                }
                part.conversations.push(conversation);
                Told::Messages(ids)
            }
        };
        (told, part)
    }
}

impl Iterator for Items {
    type Item = (Told, Vec<u8>);

    fn next(&mut self) -> Option<(Told, Vec<u8>)> {
        if self.left == 0 {
            return None;
        }
        let (told, part) = self.draw();
        let bytes = part.encode_to_vec();
        self.left = self.left.saturating_sub(bytes.len() as u64);
        Some((told, bytes))
    }
}

/// Compresses what comes, piece by piece.
struct Deflate<I> {
    plain: I,
    zlib: Option<ZlibEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Vec<u8>>> Deflate<I> {
    fn new(plain: I) -> Self {
        Self {
            plain,
            zlib: Some(ZlibEncoder::new(Vec::new(), Compression::fast())),
        }
    }
}

impl<I: Iterator<Item = Vec<u8>>> Iterator for Deflate<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let zlib = self.zlib.as_mut()?;
            match self.plain.next() {
                Some(piece) => {
                    // Each call clears a buffer of 32 KiB first, and most pieces have some hundred bytes.
                    let mut block = piece;
                    while block.len() < 16 << 10 {
                        let Some(piece) = self.plain.next() else {
                            break;
                        };
                        block.extend_from_slice(&piece);
                    }
                    // Into memory: it cannot fail.
                    let _ = zlib.write_all(&block);
                    let made = std::mem::take(zlib.get_mut());
                    if !made.is_empty() {
                        return Some(made);
                    }
                }
                None => return self.zlib.take()?.finish().ok(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn chunk(kind: HistoryKind, bytes: u64) -> Chunk {
        let history = History {
            kind,
            chunks: 1,
            bytes,
            inline: false,
            seed: 5,
            damage: None,
        };
        Chunk { history, order: 1 }
    }

    #[test]
    fn a_chunk_inflates_to_the_items_that_were_told() {
        for kind in [
            HistoryKind::Initial,
            HistoryKind::Status,
            HistoryKind::Full,
            HistoryKind::Recent,
            HistoryKind::PushNames,
        ] {
            let chunk = chunk(kind, 40_000);
            let file: Vec<u8> = chunk.file().flatten().collect();
            let mut plain = Vec::new();
            let mut zlib = flate2::read::ZlibDecoder::new(&*file);
            zlib.read_to_end(&mut plain).expect("it inflates");
            let whole = proto::HistorySync::decode(&*plain).expect("a history");
            let (mut messages, mut names, mut lids) = (0, 0, 0);
            for told in chunk.items() {
                match told {
                    Told::Messages(ids) => messages += ids.len(),
                    Told::Name(..) => names += 1,
                    Told::Lid(..) => lids += 1,
                }
            }
            let conversations = whole.conversations.iter().map(|chat| chat.messages.len());
            assert_eq!(
                conversations.sum::<usize>() + whole.status_v3_messages.len(),
                messages
            );
            assert_eq!(
                (
                    whole.pushnames.len(),
                    whole.phone_number_to_lid_mappings.len()
                ),
                (names, lids)
            );
            assert!(
                plain.len() >= 40_000 && messages + names > 50,
                "{messages} {names}"
            );
        }
    }

    #[test]
    fn a_long_chunk_is_never_in_memory() {
        let chunk = chunk(HistoryKind::Full, 20 << 20);
        let (mut most, mut all) = (0, 0);
        for piece in chunk.file() {
            most = most.max(piece.len());
            all += piece.len();
        }
        assert!(most < 256 << 10, "a piece of {most} bytes");
        assert!(all > 5 << 20, "{all} bytes");
    }
}
