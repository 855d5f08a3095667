//! How much a frame may ask of its reader, and a node of its writer.
//!
//! Real stanzas stay far below: trees of fewer than 20 levels, a dozen attributes, a device list of a megabyte.

/// Levels of nesting: the root is level 1, level 128 is the last that is read or written.
pub const DEPTH: usize = 128;

/// Bytes of one node as read, inflated or plain: 16 MiB, which is also what a frame can hold (ch. 01).
pub const INFLATED: usize = 16 << 20;

/// Attributes of one node.
pub const ATTRIBUTES: usize = 1024;

/// Nodes and attributes of one frame together, a node counting two. A node of three bytes becomes a [`super::Node`] of
/// about a hundred, so without this a 16 MiB frame of empty nodes would cost half a gigabyte; with it, some 50 MiB. A
/// device list of 1,000 devices has about 6,000.
pub const ELEMENTS: usize = 1 << 19;
