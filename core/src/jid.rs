//! Addresses as types: user, LID, group, device.
