//! The few corners of protobuf that Signal messages and records use.
//!
//! Everything on this floor is fixed-size keys and small numbers, read on every message. Borrowing the fields from
//! the input and writing them into one sized buffer costs a fraction of generated structs, whose every key would be
//! an allocation (of a secret nobody wipes).

/// The bytes are not protobuf, or a field does not have the type it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The fields of one message, in the order they stand. Stops after the first malformed one.
pub(super) struct Fields<'a>(&'a [u8]);

/// What stands behind a field number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed 32 or 64 bit number: no field we read has this type.
    Fixed,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn field(&mut self) -> Result<(u32, Field<'a>), Malformed> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3)
            .ok()
            .filter(|&number| number != 0)
            .ok_or(Malformed)?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let len = self.varint()?;
                Field::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return Err(Malformed),
        };
        Ok((number, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    /// A `uint32`; like every protobuf reader, wider numbers lose their upper half.
    pub(super) fn uint32(self) -> Result<u32, Malformed> {
        match self {
            Self::Varint(value) => Ok(value as u32),
            _ => Err(Malformed),
        }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }
}

// Writing. Field numbers are below 16, so a key is one byte; lengths of nested messages are computed first, so that
// a whole record is written front to back into one allocation.

/// Appends a `uint32`, also when it is 0.
pub(super) fn put_uint32(out: &mut Vec<u8>, number: u8, value: u32) {
    out.push(number << 3);
    put_varint(out, value as usize);
}

/// Appends a field of bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    put_header(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends key and length of a field of bytes; the caller appends as many bytes.
pub(super) fn put_header(out: &mut Vec<u8>, number: u8, len: usize) {
    out.push(number << 3 | 2);
    put_varint(out, len);
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes [`put_uint32`] appends.
pub(super) const fn uint32_len(value: u32) -> usize {
    1 + varint_len(value as usize)
}

/// Bytes a field of so many bytes takes, key and length included.
pub(super) const fn bytes_len(len: usize) -> usize {
    1 + varint_len(len) + len
}

const fn varint_len(value: usize) -> usize {
    // One byte per started group of seven bits, and one for zero.
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same shape by the generator the rest of the house uses.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Peer {
        #[prost(uint32, optional, tag = "1")]
        number: Option<u32>,
        #[prost(bytes = "vec", repeated, tag = "2")]
        bytes: Vec<Vec<u8>>,
        #[prost(fixed64, optional, tag = "5")]
        fixed: Option<u64>,
        #[prost(fixed32, optional, tag = "6")]
        short: Option<u32>,
    }

    fn read(message: &[u8]) -> Result<Peer, Malformed> {
        let mut peer = Peer::default();
        for field in Fields::new(message) {
            match field? {
                (1, field) => peer.number = Some(field.uint32()?),
                (2, field) => peer.bytes.push(field.bytes()?.to_vec()),
                _ => {}
            }
        }
        Ok(peer)
    }

    proptest! {
        #[test]
        fn reads_and_writes_as_the_generator(
            number: u32,
            bytes: Vec<Vec<u8>>,
            fixed: Option<u64>,
            short: Option<u32>,
        ) {
            use prost::Message as _;
            let peer = Peer { number: Some(number), bytes, fixed, short };
            let plain = Peer { fixed: None, short: None, ..peer.clone() };
            prop_assert_eq!(read(&peer.encode_to_vec()).unwrap(), plain.clone());

            let mut out = Vec::new();
            put_uint32(&mut out, 1, number);
            plain.bytes.iter().for_each(|bytes| put_bytes(&mut out, 2, bytes));
            let len: usize = plain.bytes.iter().map(|bytes| bytes_len(bytes.len())).sum();
            prop_assert_eq!(out.len(), uint32_len(number) + len);
            prop_assert_eq!(out, plain.encode_to_vec());
        }

        #[test]
        fn survives_anything(message: Vec<u8>) {
            let _ = Fields::new(&message).count();
        }
    }

    #[test]
    fn lengths_at_the_edges() {
        let most = [&[0x08][..], &[0xff; 9], &[1]].concat();
        assert_eq!(
            Fields::new(&most).next(),
            Some(Ok((1, Field::Varint(u64::MAX))))
        );
        for value in [0, 127, 128, 16383, 16384, u32::MAX] {
            let mut out = Vec::new();
            put_uint32(&mut out, 3, value);
            assert_eq!(out.len(), uint32_len(value), "{value}");
            assert_eq!(
                Fields::new(&out).next(),
                Some(Ok((3, Field::Varint(value.into()))))
            );
        }
    }

    #[test]
    fn refuses_what_is_no_protobuf() {
        let overlong = [
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
        ];
        let cases: [&[u8]; 5] = [&[0x08], &[0x12, 5, 1], &[0x00, 1], &[0x0b, 0x0c], &overlong];
        for case in cases {
            let mut fields = Fields::new(case);
            assert_eq!(fields.next(), Some(Err(Malformed)), "{case:?}");
            assert_eq!(fields.next(), None);
        }
    }
}
