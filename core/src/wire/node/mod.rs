//! Bytes ↔ nodes: the binary XML of the protocol (ch. 02).
//!
//! A frame's plaintext is one flag byte and one node; a node is a tag, attributes and content. Two forms of a node:
//!
//! * [`Node`] owns everything and has a builder; [`encode`] writes it, [`decode_owned`] reads it.
//! * [`NodeRef`] borrows from the frame. [`decode`] checks the whole frame once and notes where things stand in a flat
//!   list, the tape; readers look there. Nothing is allocated per node, and nothing read from it can be malformed.
//!
//! | file | subject |
//! |---|---|
//! | `value` | [`Node`], its builder and readers |
//! | `view` | [`NodeRef`], the same readers on the frame itself |
//! | `decode` | the check of a frame, malformed input, compressed frames |
//! | `encode` | the one way we write each node |
//! | `text` | the forms of a string: token, packed digits, bytes |
//! | `lookup`, `tokens` | string → token; the lists |
//! | [`limits`] | how much a frame may ask |
//!
//! ```
//! use baton_core::wire::node::{self, Node, Scratch};
//!
//! let mut payload = Vec::new();
//! node::encode(&Node::new("ib").child(Node::new("offline_batch").attr("count", 100u64)), &mut payload)?;
//!
//! let mut scratch = Scratch::new();
//! let ib = node::decode(&payload, &mut scratch)?;
//! let batch = ib.find("offline_batch").expect("just written");
//! assert_eq!(batch.get_u64("count"), Some(100));
//! # Ok::<(), node::NodeError>(())
//! ```

mod decode;
mod encode;
mod error;
pub mod limits;
mod lookup;
mod text;
mod tokens;
mod value;
mod view;

pub use decode::{Scratch, decode, decode_owned};
pub use encode::encode;
pub use error::{Malformed, NodeError, Unwritable};
pub use text::Text;
pub use value::{Content, Node, Value};
pub use view::{ContentRef, NodeRef, ValueRef};

/// The tag bytes that are no tokens (ch. 02.2).
mod tag {
    pub(super) const EMPTY: u8 = 0x00;
    /// 1..=LAST_SINGLE are one-byte tokens, the four bytes after it the dictionaries.
    pub(super) const LAST_SINGLE: u8 = 0xEB;
    pub(super) const LAST_DICTIONARY: u8 = 0xEF;
    pub(super) const INTEROP_JID: u8 = 0xF5;
    pub(super) const FB_JID: u8 = 0xF6;
    pub(super) const AD_JID: u8 = 0xF7;
    pub(super) const LIST_8: u8 = 0xF8;
    pub(super) const LIST_16: u8 = 0xF9;
    pub(super) const JID_PAIR: u8 = 0xFA;
    pub(super) const HEX_8: u8 = 0xFB;
    pub(super) const BINARY_8: u8 = 0xFC;
    pub(super) const BINARY_20: u8 = 0xFD;
    pub(super) const BINARY_32: u8 = 0xFE;
    pub(super) const NIBBLE_8: u8 = 0xFF;
}

/// Bit 1 of the flag byte: the body is a zlib stream. The other bits mean nothing to anyone.
const FLAG_COMPRESSED: u8 = 0x02;

#[cfg(test)]
mod tests;
