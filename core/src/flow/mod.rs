//! One small machine per protocol flow.
