//! One byte string per [`Key`], for what binds or carries rows outside of a database: the associated data of
//! [encrypted rows](super::sealed) and [export files](super::archive).
//!
//! The name of the table, then the fields in the order in which [`Key`] has them. Texts and byte strings of any length
//! have their length in front (4 bytes, high byte first), so that no two keys give the same bytes; tables and servers
//! are written as names, not as numbers, so that a new one moves no other. The form is part of both formats: it never
//! changes.

use super::{EventSeq, Key, Table};
use crate::jid::Jid;
use bytes::Bytes;
use smol_str::SmolStr;
use std::str;

/// The bytes are not those of a key that this release knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a row")]
pub struct NotAKey;

impl Key {
    /// Appends the bytes of this key.
    pub fn write_bytes(&self, out: &mut Vec<u8>) {
        bytes(out, self.table().name().as_bytes());
        match self {
            Self::Device | Self::Counters => {}
            Self::Identity(address)
            | Self::Session(address)
            | Self::Contact(address)
            | Self::RedactedPhone(address)
            | Self::ChatSettings(address)
            | Self::PrivacyToken(address)
            | Self::DeviceList(address) => jid(out, address),
            Self::PreKey(id) => out.extend_from_slice(&id.to_be_bytes()),
            Self::SenderKey { group, sender } => {
                jid(out, group);
                jid(out, sender);
            }
            Self::AppStateSyncKey(id) => bytes(out, id),
            Self::AppStateVersion(name) | Self::LidMap(name) => bytes(out, name.as_bytes()),
            Self::AppStateMutationMac {
                collection,
                index_mac,
            } => {
                bytes(out, collection.as_bytes());
                out.extend_from_slice(index_mac);
            }
            Self::MessageSecret { chat, sender, id } => {
                jid(out, chat);
                jid(out, sender);
                bytes(out, id.as_bytes());
            }
            Self::Inbox(seq) => out.extend_from_slice(&seq.0.to_be_bytes()),
            Self::Seen(hash) => out.extend_from_slice(hash),
            Self::Outbox(id) | Self::Sent(id) | Self::Mailbox(id) => bytes(out, id.as_bytes()),
        }
    }

    /// The bytes of this key.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.write_bytes(&mut out);
        out
    }

    /// The key that has these bytes, all of them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAKey> {
        let mut input = Input(bytes);
        let key = input.key().ok_or(NotAKey)?;
        if input.0.is_empty() {
            Ok(key)
        } else {
            Err(NotAKey)
        }
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A key in memory is never 4 GiB long; if it were, the length would not fit any row that exists.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn jid(out: &mut Vec<u8>, jid: &Jid) {
    bytes(out, jid.user().as_bytes());
    bytes(out, jid.server().as_str().as_bytes());
    out.extend_from_slice(&jid.device().to_be_bytes());
    out.extend_from_slice(&jid.integrator().to_be_bytes());
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn key(&mut self) -> Option<Key> {
        let name = self.text()?;
        let table = *Table::ALL.iter().find(|table| table.name() == name)?;
        Some(match table {
            Table::Device => Key::Device,
            Table::Counters => Key::Counters,
            Table::Identity => Key::Identity(self.jid()?),
            Table::Session => Key::Session(self.jid()?),
            Table::PreKey => Key::PreKey(u32::from_be_bytes(self.array()?)),
            Table::SenderKey => Key::SenderKey {
                group: self.jid()?,
                sender: self.jid()?,
            },
            Table::AppStateSyncKey => Key::AppStateSyncKey(Bytes::copy_from_slice(self.bytes()?)),
            Table::AppStateVersion => Key::AppStateVersion(self.text()?.into()),
            Table::AppStateMutationMac => Key::AppStateMutationMac {
                collection: self.text()?.into(),
                index_mac: self.array()?,
            },
            Table::Contact => Key::Contact(self.jid()?),
            Table::RedactedPhone => Key::RedactedPhone(self.jid()?),
            Table::ChatSettings => Key::ChatSettings(self.jid()?),
            Table::MessageSecret => Key::MessageSecret {
                chat: self.jid()?,
                sender: self.jid()?,
                id: self.text()?.into(),
            },
            Table::PrivacyToken => Key::PrivacyToken(self.jid()?),
            Table::LidMap => Key::LidMap(self.text()?.into()),
            Table::Inbox => Key::Inbox(EventSeq(u64::from_be_bytes(self.array()?))),
            Table::Seen => Key::Seen(self.array()?),
            Table::Outbox => Key::Outbox(self.text()?.into()),
            Table::Sent => Key::Sent(self.text()?.into()),
            Table::DeviceList => Key::DeviceList(self.jid()?),
            Table::Mailbox => Key::Mailbox(SmolStr::new(self.text()?)),
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(u32::from_be_bytes(self.array()?)).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    fn jid(&mut self) -> Option<Jid> {
        let user = self.text()?;
        let jid = Jid::new(user, self.text()?.parse().ok()?).ok()?;
        let device = u16::from_be_bytes(self.array()?);
        let integrator = u16::from_be_bytes(self.array()?);
        let jid = jid.with_device(device).with_integrator(integrator);
        // Where there can be neither, only zeroes are the form.
        (jid.device() == device && jid.integrator() == integrator).then_some(jid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::conformance::samples;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_comes_back_and_no_two_are_alike() {
        let mut all = BTreeSet::new();
        let mut keys = 0;
        for &table in Table::ALL {
            for key in samples::keys(table) {
                let bytes = key.to_bytes();
                assert_eq!(Key::from_bytes(&bytes), Ok(key));
                for cut in 0..bytes.len() {
                    assert_eq!(Key::from_bytes(&bytes[..cut]), Err(NotAKey));
                }
                let longer = [&bytes[..], &[0]].concat();
                assert_eq!(Key::from_bytes(&longer), Err(NotAKey));
                all.insert(bytes);
                keys += 1;
            }
        }
        assert_eq!(all.len(), keys);
    }

    /// The form is part of two formats: what was written once must be found again.
    #[test]
    fn the_form_is_fixed() {
        let key = Key::SenderKey {
            group: Jid::group("12-34").unwrap(),
            sender: Jid::lid("7").unwrap().with_device(258),
        };
        let mut expected = b"\0\0\0\x0bsender_keys".to_vec();
        expected.extend_from_slice(b"\0\0\0\x0512-34\0\0\0\x04g.us\0\0\0\0");
        expected.extend_from_slice(b"\0\0\0\x017\0\0\0\x03lid\x01\x02\0\0");
        assert_eq!(key.to_bytes(), expected);
        assert_eq!(
            Key::Inbox(EventSeq(0x0102)).to_bytes(),
            b"\0\0\0\x0cevent_buffer\0\0\0\0\0\0\x01\x02"
        );
    }
}
