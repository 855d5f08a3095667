//! What can be wrong with a frame, and with a node to be written.

/// A frame that is no node, or a node that is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The service's fault: drop the frame, keep the connection.
    #[error("malformed node at byte {position}: {what}")]
    Malformed {
        /// Where, counted from the flag byte (position 0). In a compressed frame, counted in the inflated bytes as
        /// if a flag byte stood before them.
        position: usize,
        /// What is wrong there.
        what: Malformed,
    },
    /// The caller's fault: nothing was written.
    #[error("node cannot be written: {0}")]
    Unwritable(#[from] Unwritable),
}

/// What is wrong with a frame (ch. 02.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No bytes at all, not even flags.
    #[error("empty payload")]
    Empty,
    /// The frame ends before what it announces.
    #[error("truncated")]
    Truncated,
    /// Bytes are left over behind the node.
    #[error("trailing bytes")]
    Trailing,
    /// A byte that starts nothing (240 to 244).
    #[error("unknown tag byte")]
    UnknownTag,
    /// A node has to start here, with a list of at least one item.
    #[error("not a node")]
    NotANode,
    /// Text has to stand here; this is a list, a JID or nothing.
    #[error("not text")]
    NotText,
    /// A node's tag or an attribute's key is the empty text.
    #[error("empty name")]
    EmptyName,
    /// A list where an attribute's value has to stand.
    #[error("not an attribute value")]
    NotAValue,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// Packed digits hold one of the unassigned values 12 to 15.
    #[error("invalid packed digit")]
    PackedDigit,
    /// A JID whose user is missing or holds `@`, `:`, white space or control characters.
    #[error("invalid user of a JID")]
    JidUser,
    /// A JID whose server is missing, unknown, or not the one its form requires.
    #[error("invalid server of a JID")]
    JidServer,
    /// A device JID of an unknown domain.
    #[error("unknown domain of a JID")]
    JidDomain,
    /// The compressed stream is broken.
    #[error("broken zlib stream")]
    Zlib,
    /// More bytes than [`super::limits::INFLATED`].
    #[error("larger than the limit")]
    TooLarge,
    /// More levels than [`super::limits::DEPTH`].
    #[error("nested too deeply")]
    TooDeep,
    /// More attributes on one node than [`super::limits::ATTRIBUTES`].
    #[error("too many attributes")]
    TooManyAttributes,
    /// More nodes and attributes than [`super::limits::ELEMENTS`].
    #[error("too many nodes and attributes")]
    TooManyElements,
}

impl Malformed {
    /// This, at byte `at` of the node bytes, that is behind the flag byte.
    pub(super) const fn at(self, at: usize) -> NodeError {
        NodeError::Malformed {
            position: at.saturating_add(1),
            what: self,
        }
    }
}

/// Why a node has no wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// A node without a tag, or an attribute without a key.
    #[error("empty tag or attribute key")]
    EmptyName,
    /// Device JIDs have one byte for the device.
    #[error("device {0} does not fit a device JID")]
    Device(u16),
    /// A device on a server whose JIDs carry none, such as a group.
    #[error("a JID of this server has no devices")]
    NoDevices,
    /// More levels than [`super::limits::DEPTH`].
    #[error("nested too deeply")]
    TooDeep,
    /// More attributes on one node than [`super::limits::ATTRIBUTES`].
    #[error("too many attributes")]
    TooManyAttributes,
    /// More than 65,535 children.
    #[error("too many children")]
    TooManyChildren,
    /// Text or bytes longer than [`super::limits::INFLATED`]; no frame could hold them.
    #[error("text or bytes too long")]
    TooLong,
}
