//! The owned node: what flows build, send and keep.
//!
//! ```
//! use baton_core::jid::Jid;
//! use baton_core::wire::node::Node;
//!
//! let ping = Node::new("iq")
//!     .attr("id", "26.183-1")
//!     .attr("xmlns", "w:p")
//!     .attr("type", "get")
//!     .attr("to", Jid::service());
//! assert_eq!(ping.get_str("xmlns"), Some("w:p"));
//! assert_eq!(ping.to_string(), r#"<iq id="26.183-1" xmlns="w:p" type="get" to={s.whatsapp.net}/>"#);
//! ```

use std::fmt;

use bytes::Bytes;
use smol_str::{SmolStr, ToSmolStr};

use crate::jid::Jid;

/// A node: a tag, attributes in order, and content.
///
/// `Debug` and `Display` show the tree with the length of bytes but not the bytes, which may be keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// What the node is; never empty on the wire.
    pub tag: SmolStr,
    /// Keys and values. Order carries no meaning; of two with the same key the first counts.
    pub attrs: Vec<(SmolStr, Value)>,
    /// What is inside.
    pub content: Content,
}

/// An attribute's value. The two kinds differ on the wire, and peers that expect one do not see the other.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Text. An attribute whose text is empty is not written at all.
    Text(SmolStr),
    /// An address.
    Jid(Jid),
}

/// What is inside a node.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    #[default]
    None,
    /// Children. An empty list is written, but read back as [`Content::None`].
    Nodes(Vec<Node>),
    /// Bytes: the form to send everything in, text included (ch. 02.7).
    Bytes(Bytes),
    /// Text. Only tokens and packed digits stay text on the wire; any other text is read back as bytes.
    Text(SmolStr),
}

/// Building.
impl Node {
    /// A node without attributes and content.
    pub fn new(tag: impl Into<SmolStr>) -> Self {
        Self {
            tag: tag.into(),
            attrs: Vec::new(),
            content: Content::None,
        }
    }

    /// With an attribute; an earlier one of the same key is replaced. Empty text means that it is not written.
    #[must_use]
    pub fn attr(mut self, key: impl Into<SmolStr>, value: impl Into<Value>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.attrs.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.attrs.push((key, value)),
        }
        self
    }

    /// With an attribute if there is a value for it.
    #[must_use]
    pub fn attr_opt(self, key: impl Into<SmolStr>, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.attr(key, value),
            None => self,
        }
    }

    /// With one more child. Content that was not a list of children is replaced.
    #[must_use]
    pub fn child(self, child: Node) -> Self {
        self.children([child])
    }

    /// With more children. Content that was not a list of children is replaced. No children are no content: an empty list
    /// would be read back as another node than was written.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Node>) -> Self {
        let mut children = children.into_iter().peekable();
        match &mut self.content {
            Content::Nodes(nodes) => nodes.extend(children),
            content if children.peek().is_none() => *content = Content::None,
            content => *content = Content::Nodes(children.collect()),
        }
        self
    }

    /// With these bytes as content.
    #[must_use]
    pub fn bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.content = Content::Bytes(bytes.into());
        self
    }

    /// With this text as content. Peers expect bytes nearly everywhere; see [`Content::Bytes`].
    #[must_use]
    pub fn text(mut self, text: impl Into<SmolStr>) -> Self {
        self.content = Content::Text(text.into());
        self
    }
}

/// Reading.
impl Node {
    /// What the node is.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// An attribute's value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.attrs
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value)
    }

    /// An attribute sent as text.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            Value::Jid(_) => None,
        }
    }

    /// An attribute of either kind, as text: a client may have written a name that looks like a JID as one.
    pub fn get_string(&self, key: &str) -> Option<String> {
        self.get(key).map(Value::to_string)
    }

    /// An attribute sent as a JID, or as text that is one: peers send both.
    pub fn get_jid(&self, key: &str) -> Option<Jid> {
        match self.get(key)? {
            Value::Jid(jid) => Some(jid.clone()),
            Value::Text(text) => text.parse().ok(),
        }
    }

    /// An attribute that is a decimal number.
    pub fn get_u64(&self, key: &str) -> Option<u64> {
        decimal(self.get_str(key)?)
    }

    /// The children; none if the content is something else.
    pub fn nodes(&self) -> &[Node] {
        match &self.content {
            Content::Nodes(nodes) => nodes,
            _ => &[],
        }
    }

    /// The first child with this tag.
    pub fn find(&self, tag: &str) -> Option<&Node> {
        self.nodes().iter().find(|node| node.tag == tag)
    }

    /// All children with this tag.
    pub fn find_all(&self, tag: &str) -> impl Iterator<Item = &Node> {
        self.nodes().iter().filter(move |node| node.tag == tag)
    }

    /// The first child with the first tag, its first child with the second, and so on.
    pub fn path(&self, tags: &[&str]) -> Option<&Node> {
        tags.iter().try_fold(self, |node, tag| node.find(tag))
    }

    /// Bytes or text content as bytes.
    pub fn data(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Bytes(bytes) => Some(bytes),
            Content::Text(text) => Some(text.as_bytes()),
            Content::None | Content::Nodes(_) => None,
        }
    }

    /// Text content, or bytes that are UTF-8: which of the two a text arrives as depends on its characters.
    pub fn content_str(&self) -> Option<&str> {
        std::str::from_utf8(self.data()?).ok()
    }
}

/// Decimal digits only: `str::parse` would also take a plus sign.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

impl Value {
    /// Empty text, which stands for "no such attribute".
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }
}

impl From<SmolStr> for Value {
    fn from(text: SmolStr) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&SmolStr> for Value {
    fn from(text: &SmolStr) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Jid> for Value {
    fn from(jid: Jid) -> Self {
        Self::Jid(jid)
    }
}

impl From<&Jid> for Value {
    fn from(jid: &Jid) -> Self {
        Self::Jid(jid.clone())
    }
}

macro_rules! from_numbers {
    ($($number:ty),*) => {$(
        impl From<$number> for Value {
            fn from(number: $number) -> Self {
                Self::Text(number.to_smolstr())
            }
        }
    )*};
}

from_numbers!(u8, u16, u32, u64, usize, i32, i64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Jid(jid) => jid.fmt(f),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Jid(jid) => write!(f, "{jid:?}"),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Nodes(nodes) => nodes.iter().try_for_each(|node| node.fmt(f)),
            Self::Bytes(bytes) => write!(f, "[{} bytes]", bytes.len()),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.tag)?;
        for (key, value) in &self.attrs {
            write!(f, " {key}={value:?}")?;
        }
        match &self.content {
            Content::None => f.write_str("/>"),
            content => write!(f, ">{content}</{}>", self.tag),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Node {
        Node::new("iq")
            .attr("from", "s.whatsapp.net")
            .attr("t", 1_700_000_000u64)
            .attr_opt("e", None::<u16>)
            .child(
                Node::new("list")
                    .attr("jid", Jid::lid("1").unwrap().with_device(2))
                    .children([
                        Node::new("item").text("one"),
                        Node::new("other"),
                        Node::new("item").bytes(&b"two"[..]),
                        Node::new("item").bytes(&[0xFF][..]),
                    ]),
            )
    }

    /// A service that was restored from what it had saved sent another stanza than the one that it had saved.
    #[test]
    fn no_children_are_no_content() {
        let node = Node::new("list").children([]);
        let mut bytes = Vec::new();
        crate::wire::node::encode(&node, &mut bytes).unwrap();
        let read = crate::wire::node::decode_owned(&bytes).unwrap();
        assert_eq!(read, node);
        assert_eq!(node.content, Content::None);
        let node = node.child(Node::new("item")).children([]);
        assert_eq!(node.nodes().len(), 1);
        assert_eq!(
            Node::new("list").text("a").children([]).content,
            Content::None
        );
    }

    #[test]
    fn readers() {
        let node = answer();
        assert_eq!(node.get_jid("from"), Some(Jid::service()));
        assert_eq!(
            (node.get_u64("t"), node.get_str("t")),
            (Some(1_700_000_000), Some("1700000000"))
        );
        assert_eq!(
            (node.get("e"), node.get_u64("from"), node.get_jid("t")),
            (None, None, None)
        );
        let list = node.find("list").unwrap();
        assert_eq!(
            (list.get_str("jid"), list.get_string("jid")),
            (None, Some("1:2@lid".into()))
        );
        assert_eq!(list.get_jid("jid").unwrap().device(), 2);
        let texts: Vec<_> = list.find_all("item").map(Node::content_str).collect();
        assert_eq!(texts, [Some("one"), Some("two"), None]);
        assert_eq!(
            node.path(&["list", "item"]).unwrap().data(),
            Some(&b"one"[..])
        );
        assert_eq!(node.path(&["list", "absent", "item"]), None);
        assert_eq!((node.data(), node.content_str()), (None, None));
    }

    #[test]
    fn a_key_set_twice_counts_once() {
        let node = Node::new("a").attr("k", "1").attr("l", 2u32).attr("k", "3");
        assert_eq!(node.to_string(), r#"<a k="3" l="2"/>"#);
    }

    #[test]
    fn printing_does_not_show_bytes() {
        assert_eq!(
            format!("{:?}", answer()),
            r#"<iq from="s.whatsapp.net" t="1700000000"><list jid={1:2@lid}><item>"one"</item><other/><item>[3 bytes]</item><item>[1 bytes]</item></list></iq>"#
        );
    }

    #[test]
    fn numbers_have_no_sign_and_fit() {
        for (text, number) in [
            ("0", Some(0)),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(Node::new("a").attr("k", text).get_u64("k"), number);
        }
        assert_eq!(Node::new("a").attr("k", -5i64).get_str("k"), Some("-5"));
    }
}
