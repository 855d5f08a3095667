//! One account: routes inputs to flows, collects effects, holds the durability gate.
mod api;

pub use api::{Appetite, Grant, Input, LoadId, Now, Output, StopReason};
