//! wire::noise
