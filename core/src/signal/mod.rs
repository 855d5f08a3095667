//! X3DH, Double Ratchet, sender keys: pure functions and plain records, no storage.
