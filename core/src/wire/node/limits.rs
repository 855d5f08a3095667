//! How much a frame may ask of its reader, and a node of its writer: [`crate::limits`] says why.

pub use crate::limits::{
    NODE_ATTRIBUTES as ATTRIBUTES, NODE_BYTES as INFLATED, NODE_DEPTH as DEPTH,
    NODE_ELEMENTS as ELEMENTS,
};
