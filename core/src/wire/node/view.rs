//! The borrowed node: what a frame says, read where it stands.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use smol_str::SmolStr;

use super::tag;
use super::text::{self, Text};
use super::value::{Content, Node, Value, decimal};
use crate::jid::{Jid, Server};

/// A node of a checked frame: a place on the tape. Copies freely; children and texts live as long as the frame.
///
/// The readers are those of [`Node`]. Texts are [`Text`] instead of `&str`, because packed digits do not stand in the
/// frame as characters.
#[derive(Clone, Copy)]
pub struct NodeRef<'a> {
    bytes: &'a [u8],
    tape: &'a [u32],
    at: usize,
}

/// An attribute's value in a frame.
#[derive(Clone, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// Text; empty for an attribute without a value.
    Text(Text<'a>),
    /// An address.
    Jid(Jid),
}

/// What is inside a node of a frame.
#[derive(Clone)]
pub enum ContentRef<'a> {
    /// Nothing, or an empty list.
    None,
    /// Children; see [`NodeRef::nodes`].
    Nodes,
    /// Bytes, which may be text.
    Bytes(&'a [u8]),
    /// Text; a JID here reads as its text.
    Text(Text<'a>),
}

/// The layout of the tape. A node is four words: position of its tag, number of attributes, position of its content
/// (0: none), and the index behind its last descendant. Its attributes follow, two words each: positions of key and
/// value; then its children. Positions are offsets into the node bytes; no content stands at 0.
pub(super) mod tape {
    pub(in super::super) const NODE: usize = 4;
    pub(in super::super) const ATTRIBUTE: usize = 2;
    pub(in super::super) const TAG: usize = 0;
    pub(in super::super) const ATTRIBUTES: usize = 1;
    pub(in super::super) const CONTENT: usize = 2;
    pub(in super::super) const END: usize = 3;
}

impl<'a> NodeRef<'a> {
    pub(super) const fn root(bytes: &'a [u8], tape: &'a [u32]) -> Self {
        Self { bytes, tape, at: 0 }
    }

    /// What the node is.
    pub fn tag(self) -> Text<'a> {
        self.text_at(self.word(tape::TAG))
    }

    /// An attribute's value.
    pub fn get(self, key: &str) -> Option<ValueRef<'a>> {
        self.pairs()
            .find(|(k, _)| self.text_at(*k) == *key)
            .map(|(_, value)| self.value_at(value))
    }

    /// An attribute sent as text.
    pub fn get_str(self, key: &str) -> Option<Text<'a>> {
        match self.get(key)? {
            ValueRef::Text(text) => Some(text),
            ValueRef::Jid(_) => None,
        }
    }

    /// An attribute of either kind, as text.
    pub fn get_string(self, key: &str) -> Option<String> {
        match self.get(key)? {
            ValueRef::Text(text) => Some(text.to_string()),
            ValueRef::Jid(jid) => Some(jid.to_string()),
        }
    }

    /// An attribute sent as a JID, or as text that is one: peers send both.
    pub fn get_jid(self, key: &str) -> Option<Jid> {
        match self.get(key)? {
            ValueRef::Jid(jid) => Some(jid),
            ValueRef::Text(text) => text.parse().ok(),
        }
    }

    /// An attribute that is a decimal number.
    pub fn get_u64(self, key: &str) -> Option<u64> {
        decimal(&self.get_str(key)?)
    }

    /// All attributes, in order.
    pub fn attrs(self) -> impl Iterator<Item = (Text<'a>, ValueRef<'a>)> {
        self.pairs()
            .map(move |(key, value)| (self.text_at(key), self.value_at(value)))
    }

    /// The children; none if the content is something else.
    pub fn nodes(self) -> impl Iterator<Item = NodeRef<'a>> {
        let end = self.word(tape::END);
        let mut next = self.at + tape::NODE + self.word(tape::ATTRIBUTES) * tape::ATTRIBUTE;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(Self { at: next, ..self })?;
            // Every node is at least its own four words long, so this always moves on.
            next = child.word(tape::END).max(next + tape::NODE);
            Some(child)
        })
    }

    /// The first child with this tag.
    pub fn find(self, tag: &str) -> Option<NodeRef<'a>> {
        self.nodes().find(|node| node.tag() == *tag)
    }

    /// All children with this tag.
    pub fn find_all(self, tag: &str) -> impl Iterator<Item = NodeRef<'a>> {
        self.nodes().filter(move |node| node.tag() == *tag)
    }

    /// The first child with the first tag, its first child with the second, and so on.
    pub fn path(self, tags: &[&str]) -> Option<NodeRef<'a>> {
        tags.iter().try_fold(self, |node, tag| node.find(tag))
    }

    /// What is inside.
    pub fn content(self) -> ContentRef<'a> {
        let at = self.word(tape::CONTENT);
        match self.bytes.get(at) {
            _ if at == 0 => ContentRef::None,
            None | Some(&tag::EMPTY) => ContentRef::None,
            Some(&(tag::LIST_8 | tag::LIST_16)) if self.nodes().next().is_none() => {
                ContentRef::None
            }
            Some(&(tag::LIST_8 | tag::LIST_16)) => ContentRef::Nodes,
            Some(&(tag::BINARY_8 | tag::BINARY_20 | tag::BINARY_32)) => ContentRef::Bytes(
                text::raw_range(self.bytes, at)
                    .and_then(|(start, end)| self.bytes.get(start..end))
                    .unwrap_or_default(),
            ),
            Some(_) => ContentRef::Text(match self.value_at(at) {
                ValueRef::Text(text) => text,
                ValueRef::Jid(jid) => Text::Unpacked(smol_str::format_smolstr!("{jid}")),
            }),
        }
    }

    /// Bytes or text content as bytes; borrowed unless unpacked.
    pub fn data(self) -> Option<Cow<'a, [u8]>> {
        match self.content() {
            ContentRef::Bytes(bytes) => Some(Cow::Borrowed(bytes)),
            ContentRef::Text(Text::Borrowed(text) | Text::Token(text)) => {
                Some(Cow::Borrowed(text.as_bytes()))
            }
            ContentRef::Text(Text::Unpacked(text)) => Some(Cow::Owned(text.as_bytes().to_vec())),
            ContentRef::None | ContentRef::Nodes => None,
        }
    }

    /// Text content, or bytes that are UTF-8: which of the two a text arrives as depends on its characters.
    pub fn content_str(self) -> Option<Text<'a>> {
        match self.content() {
            ContentRef::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(Text::Borrowed),
            ContentRef::Text(text) => Some(text),
            ContentRef::None | ContentRef::Nodes => None,
        }
    }

    /// The node and all below it, owned.
    pub fn to_node(self) -> Node {
        let mut attrs = Vec::with_capacity(self.word(tape::ATTRIBUTES));
        attrs.extend(self.attrs().map(|(key, value)| {
            let value = match value {
                ValueRef::Text(text) => Value::Text(text.into_smol()),
                ValueRef::Jid(jid) => Value::Jid(jid),
            };
            (key.into_smol(), value)
        }));
        let content = match self.content() {
            ContentRef::None => Content::None,
            ContentRef::Nodes => {
                let mut nodes = Vec::with_capacity(self.nodes().count());
                nodes.extend(self.nodes().map(NodeRef::to_node));
                Content::Nodes(nodes)
            }
            ContentRef::Bytes(bytes) => Content::Bytes(Bytes::copy_from_slice(bytes)),
            ContentRef::Text(text) => Content::Text(text.into_smol()),
        };
        Node {
            tag: self.tag().into_smol(),
            attrs,
            content,
        }
    }

    /// Positions of keys and values.
    fn pairs(self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let start = self.at + tape::NODE;
        let end = start + self.word(tape::ATTRIBUTES) * tape::ATTRIBUTE;
        self.tape
            .get(start..end)
            .unwrap_or_default()
            .chunks_exact(tape::ATTRIBUTE)
            .filter_map(|pair| match pair {
                [key, value] => Some((*key as usize, *value as usize)),
                _ => None,
            })
    }

    // The scan has checked everything these read; the fallbacks are what they would be if it had not.

    fn word(self, offset: usize) -> usize {
        self.tape
            .get(self.at + offset)
            .map_or(0, |word| *word as usize)
    }

    fn text_at(self, at: usize) -> Text<'a> {
        text::read(self.bytes, at).map_or(Text::Token(""), |(text, _)| text)
    }

    fn value_at(self, at: usize) -> ValueRef<'a> {
        match self.bytes.get(at) {
            Some(&(tag::JID_PAIR | tag::AD_JID | tag::FB_JID | tag::INTEROP_JID)) => {
                ValueRef::Jid(jid_at(self.bytes, at).unwrap_or(Jid::service()))
            }
            _ => ValueRef::Text(self.text_at(at)),
        }
    }
}

fn jid_at(bytes: &[u8], at: usize) -> Option<Jid> {
    let user_at = |at| text::read(bytes, at).map(|(user, end)| (user.into_smol(), end));
    let number_at = |at: usize| {
        bytes
            .get(at..)?
            .first_chunk()
            .copied()
            .map(u16::from_be_bytes)
    };
    match bytes.get(at..)? {
        [tag::JID_PAIR, rest @ ..] => {
            let (user, end) = match rest {
                [tag::EMPTY, ..] => (SmolStr::new_static(""), at + 2),
                _ => user_at(at + 1)?,
            };
            let (server, _) = text::read(bytes, end)?;
            Some(Jid::from_parts(user, server.parse().ok()?, 0, 0))
        }
        [tag::AD_JID, domain, device, ..] => {
            let (user, _) = user_at(at + 3)?;
            Some(Jid::from_parts(
                user,
                Server::from_domain(*domain)?,
                u16::from(*device),
                0,
            ))
        }
        [tag::FB_JID, ..] => {
            let (user, end) = user_at(at + 1)?;
            Some(Jid::from_parts(user, Server::Messenger, number_at(end)?, 0))
        }
        [tag::INTEROP_JID, ..] => {
            let (user, end) = user_at(at + 1)?;
            Some(Jid::from_parts(
                user,
                Server::Interop,
                number_at(end)?,
                number_at(end + 2)?,
            ))
        }
        _ => None,
    }
}

impl fmt::Display for NodeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_node().fmt(f)
    }
}

impl fmt::Debug for NodeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for ValueRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Jid(jid) => jid.fmt(f),
        }
    }
}

/// Bytes by their length only, as [`Node`] prints them.
impl fmt::Debug for ContentRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Nodes => f.write_str("Nodes"),
            Self::Bytes(bytes) => write!(f, "[{} bytes]", bytes.len()),
            Self::Text(text) => text.fmt(f),
        }
    }
}
