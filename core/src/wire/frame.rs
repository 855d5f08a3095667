//! wire::frame
