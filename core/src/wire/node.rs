//! wire::node
