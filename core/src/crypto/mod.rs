//! Key types, X25519, XEdDSA, HKDF, AES: names and lengths in types.
