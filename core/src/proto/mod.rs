//! Protobuf messages, the fields we use.
