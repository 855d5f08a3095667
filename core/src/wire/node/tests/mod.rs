//! The examples of chapter 02, its table of malformed input, and properties over all nodes.

mod examples;
mod malformed;
mod properties;
