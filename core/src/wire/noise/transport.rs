//! After the handshake: one key and one counter per direction (chapter 01.9).
//!
//! A Noise library stops at 65,535 bytes per message; WhatsApp's frames go up to 2^24 - 1, so this is AES-GCM itself.

use super::{NoiseError, Part};
use crate::crypto::AesGcm;
use crate::wire::frame::{MAX_FRAME, length_bytes};

/// GCM's tag, at the end of every frame.
const TAG: usize = 16;

/// Both directions of an established connection.
///
/// The counters are implicit on the wire: frames must be written in the order in which they were sealed and opened in
/// the order in which they came. After an error of [`open`](Self::open) nothing further can decrypt; close.
#[derive(Debug)]
pub struct Transport {
    outgoing: Direction,
    incoming: Direction,
}

impl Transport {
    /// From the two keys of the handshake, the own one first.
    pub(super) fn new(outgoing: &[u8; 32], incoming: &[u8; 32]) -> Self {
        Self {
            outgoing: Direction::new(outgoing),
            incoming: Direction::new(incoming),
        }
    }

    /// Appends the frame of `plaintext` to `out`: three bytes of length, the ciphertext, a tag of 16 bytes.
    ///
    /// On error `out` is unchanged, and after [`NoiseError::TooLong`] the connection is as good as before.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let length = plaintext.len().saturating_add(TAG);
        let length_bytes = length_bytes(length).ok_or(NoiseError::TooLong(plaintext.len()))?;
        let nonce = self.outgoing.next_nonce()?;
        out.reserve(length_bytes.len() + length);
        out.extend_from_slice(&length_bytes);
        let start = out.len();
        out.extend_from_slice(plaintext);
        self.outgoing.cipher.seal_from(start, &nonce, &[], out);
        Ok(())
    }

    /// Decrypts a frame, given without its length: the next in the order of arrival, and only that one.
    pub fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, NoiseError> {
        if frame.len() > MAX_FRAME {
            return Err(NoiseError::Sealed(Part::Frame));
        }
        let nonce = self.incoming.next_nonce()?;
        let mut plaintext = frame.to_vec();
        self.incoming
            .cipher
            .open_in_place(&nonce, &[], &mut plaintext)
            .map_err(|_| NoiseError::Sealed(Part::Frame))?;
        Ok(plaintext)
    }
}

struct Direction {
    /// Boxed, because a connection is moved a few times after the handshake and each move would leave a copy of the
    /// key schedule behind.
    cipher: Box<AesGcm>,
    /// Of the next frame. Wider than the nonce's 32 bits, so that the end is seen instead of wrapped around.
    counter: u64,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Box::new(AesGcm::new(key)),
            counter: 0,
        }
    }

    fn next_nonce(&mut self) -> Result<[u8; 12], NoiseError> {
        let counter = u32::try_from(self.counter).map_err(|_| NoiseError::Exhausted)?;
        self.counter += 1;
        Ok(nonce(counter))
    }
}

impl std::fmt::Debug for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Direction")
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

/// Eight zero bytes and the counter, big-endian; the same in the handshake.
pub(super) fn nonce(counter: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    let (_, end) = nonce.split_at_mut(8);
    end.copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::crypto::testing::{array, bytes, hex};
    use proptest::prelude::*;

    fn pair() -> (Transport, Transport) {
        (
            Transport::new(&[1; 32], &[2; 32]),
            Transport::new(&[2; 32], &[1; 32]),
        )
    }

    fn sealed(transport: &mut Transport, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        transport.seal(plaintext, &mut out).unwrap();
        out.split_off(3)
    }

    /// Chapter 01.6.1: the first frames, with their length.
    #[test]
    fn frames_of_chapter_01() {
        let write = hex("eb2fe0bed643c43335b1354ec654dc80e37916a5b95f315e54435ddd476ef060")
            .try_into()
            .unwrap();
        let read = hex("f6363bb26e6e9cb20ac77b14b6ec4ee9c92f3f1d9d1397468bb4ea23bed9d1d8")
            .try_into()
            .unwrap();
        let mut client = Transport::new(&write, &read);
        let mut out = Vec::new();
        client
            .seal(&hex("00f8091908ff0426b183a11657042911fa0003"), &mut out)
            .unwrap();
        client
            .seal(&hex("00f8091908ff0426b183a11657042911fa0003"), &mut out)
            .unwrap();
        assert_eq!(
            out,
            hex(concat!(
                "0000231b6087c7900c1b5b38e2863613f4e1f30fe4c03fc96331ab00b2fab111a1a56d8651a5",
                "000023b7f538e803ddff17f19079d854a578a17e08d0b2e5eaa48cf199adc08e3fb4ce3807c4"
            ))
        );
        let frame = hex("7351e6e17571abbd492bf45973f1b4ada5545edbe0ad5ca7a4");
        assert_eq!(client.open(&frame).unwrap(), hex("00f8039d70ff82515f"));
    }

    #[test]
    fn recorded_frames() {
        let vector: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/noise-xx.json")).unwrap();
        let (first, second) = (
            array(&vector["split"]["client_to_server_key"]),
            array(&vector["split"]["server_to_client_key"]),
        );
        let (mut client, mut server) = (
            Transport::new(&first, &second),
            Transport::new(&second, &first),
        );
        for frame in vector["client_frames"].as_array().unwrap() {
            assert_eq!(
                sealed(&mut client, &bytes(&frame["plaintext"])),
                bytes(&frame["ciphertext"])
            );
            assert_eq!(
                server.open(&bytes(&frame["ciphertext"])).unwrap(),
                bytes(&frame["plaintext"])
            );
        }
        for frame in vector["server_frames"].as_array().unwrap() {
            assert_eq!(
                sealed(&mut server, &bytes(&frame["plaintext"])),
                bytes(&frame["ciphertext"])
            );
            assert_eq!(
                client.open(&bytes(&frame["ciphertext"])).unwrap(),
                bytes(&frame["plaintext"])
            );
        }
    }

    #[test]
    fn frames_far_beyond_noise() {
        let (mut client, mut server) = pair();
        let longest = vec![0x5a; MAX_FRAME - TAG];
        for plaintext in [&longest[..0x00ff_fff0 - TAG], &longest[..]] {
            let mut out = Vec::new();
            client.seal(plaintext, &mut out).unwrap();
            assert_eq!(out.len(), 3 + plaintext.len() + TAG);
            assert_eq!(server.open(&out[3..]).unwrap(), plaintext);
        }
        let mut out = b"kept".to_vec();
        let too_long = vec![0; MAX_FRAME - TAG + 1];
        assert_eq!(
            client.seal(&too_long, &mut out),
            Err(NoiseError::TooLong(too_long.len()))
        );
        assert_eq!(out, b"kept");
        // No nonce was used up by the refusal.
        assert_eq!(server.open(&sealed(&mut client, b"next")).unwrap(), b"next");
    }

    #[test]
    fn order_is_part_of_the_key() {
        let (mut client, mut server) = pair();
        let (one, two) = (sealed(&mut client, b"same"), sealed(&mut client, b"same"));
        assert_ne!(one, two);
        let broken = Err(NoiseError::Sealed(Part::Frame));
        assert_eq!(server.open(&two), broken, "reordered");
        let (mut client, mut server) = pair();
        let one = sealed(&mut client, b"same");
        server.open(&one).unwrap();
        assert_eq!(server.open(&one), broken, "replayed");
        assert_eq!(client.open(&one), broken, "reflected");
        assert_eq!(server.open(&[]), broken, "empty");
    }

    #[test]
    fn the_last_nonce() {
        let (mut client, mut server) = pair();
        client.outgoing.counter = u64::from(u32::MAX);
        server.incoming.counter = u64::from(u32::MAX);
        let last = sealed(&mut client, b"last");
        assert_eq!(server.open(&last).unwrap(), b"last");
        let mut out = Vec::new();
        assert_eq!(
            client.seal(b"one more", &mut out),
            Err(NoiseError::Exhausted)
        );
        assert!(out.is_empty());
        assert_eq!(server.open(&last), Err(NoiseError::Exhausted));
    }

    proptest! {
        #[test]
        fn round_trip(plaintexts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..6)) {
            let (mut client, mut server) = pair();
            let mut wire = Vec::new();
            for plaintext in &plaintexts {
                client.seal(plaintext, &mut wire).unwrap();
            }
            let mut frames = crate::wire::frame::FrameReader::new(MAX_FRAME);
            frames.push(&wire);
            for plaintext in &plaintexts {
                prop_assert_eq!(&server.open(&frames.next().unwrap().unwrap()).unwrap(), plaintext);
            }
            prop_assert_eq!(frames.buffered(), 0);
        }

        #[test]
        fn a_changed_bit_is_noticed(plaintext: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            let (mut client, mut server) = pair();
            let mut frame = sealed(&mut client, &plaintext);
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            prop_assert_eq!(server.open(&frame), Err(NoiseError::Sealed(Part::Frame)));
        }
    }
}
