//! The laws that the stand-ins keep, through the functions that everybody calls; and that a scope ends where it ends.

use super::*;
use crate::crypto::{
    AesGcm, CbcStream, CipherError, HmacKey, HmacSha512Key, HmacStream, KeyError, KeyPair,
    PrivateKey, PublicKey, Rng, Sha256Stream, Signature, aes_cbc_decrypt, aes_cbc_encrypt,
    cbc_ciphertext_len, hkdf_sha256, hmac_sha256, sha256,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn pair(seed: [u8; 32]) -> KeyPair {
    KeyPair::generate(&mut Rng::from_seed(seed))
}

proptest! {
    #[test]
    fn agreement_is_mutual_and_between_two(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
        let _scope = scope(true);
        let [a, b, c] = [a, b, c].map(pair);
        let secret = |one: &KeyPair, other: &KeyPair| *one.private.agree(&other.public).unwrap().as_bytes();
        prop_assert_eq!(secret(&a, &b), secret(&b, &a));
        prop_assert_ne!(secret(&a, &b), secret(&a, &c));
        prop_assert_ne!(secret(&a, &b), secret(&c, &b));
        prop_assert_ne!(secret(&a, &b), secret(&a, &a));
        prop_assert_ne!(a.public, b.public);
        prop_assert_eq!(KeyPair::from_private(a.private.clone()).public, a.public);
    }

    /// A permutation can be undone: so distinct private keys have distinct public ones, not just probably.
    #[test]
    fn stirring_can_be_undone(lanes: [u64; 4]) {
        prop_assert_eq!(unstir(stir(lanes)), lanes);
    }

    #[test]
    fn a_signature_holds_for_its_key_and_its_bytes(
        seed: [u8; 32],
        other: [u8; 32],
        message in proptest::collection::vec(any::<u8>(), 1..100),
        random: [[u8; 32]; 2],
        bit: prop::sample::Index,
        cut: prop::sample::Index,
    ) {
        let _scope = scope(true);
        let (pair, other) = (pair(seed), pair(other));
        let random: [u8; 64] = random.concat().try_into().unwrap();
        let signature = pair.private.sign_with(&[&message], &random);
        let (one, two) = message.split_at(cut.index(message.len()));
        prop_assert!(pair.public.verify(&[one, two], &signature).is_ok());
        prop_assert!(other.public.verify(&[&message], &signature).is_err());
        let flip = |bytes: &mut [u8]| {
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        };
        let mut bytes = *signature.as_bytes();
        flip(&mut bytes);
        prop_assert!(pair.public.verify(&[&message], &Signature::from_bytes(bytes)).is_err());
        let mut changed = message.clone();
        flip(&mut changed);
        prop_assert!(pair.public.verify(&[&changed], &signature).is_err());
        changed.push(0);
        prop_assert!(pair.public.verify(&[&changed], &signature).is_err());
        let mut another = random;
        flip(&mut another);
        prop_assert_ne!(pair.private.sign_with(&[&message], &another), signature);
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_and_nowhere_else(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..40),
        text in proptest::collection::vec(any::<u8>(), 0..200),
        bit: prop::sample::Index,
    ) {
        let _scope = scope(true);
        let cipher = AesGcm::new(&key);
        let mut sealed = b"header".to_vec();
        sealed.extend_from_slice(&text);
        cipher.seal_from(6, &nonce, &aad, &mut sealed);
        let sealed = sealed.split_off(6);
        prop_assert_eq!(sealed.len(), text.len() + 16);
        let open = |cipher: &AesGcm, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]| {
            let mut buf = sealed.to_vec();
            cipher.open_in_place(nonce, aad, &mut buf).map(|()| buf)
        };
        prop_assert_eq!(open(&cipher, &nonce, &aad, &sealed), Ok(text.clone()));
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        let wrong = AesGcm::new(&flip(&key).try_into().unwrap());
        prop_assert_eq!(open(&wrong, &nonce, &aad, &sealed), Err(CipherError));
        let wrong = flip(&nonce).try_into().unwrap();
        prop_assert_eq!(open(&cipher, &wrong, &aad, &sealed), Err(CipherError));
        prop_assert_eq!(open(&cipher, &nonce, &flip(&[&aad[..], b"x"].concat()), &sealed), Err(CipherError));
        prop_assert_eq!(open(&cipher, &nonce, &aad, &flip(&sealed)), Err(CipherError));
        for cut in 0..sealed.len() {
            prop_assert_eq!(open(&cipher, &nonce, &aad, &sealed[..cut]), Err(CipherError));
        }
        // A nonce that is used for another text as well shows: the ciphertexts differ exactly where the texts do.
        let mut again = [&text[..], b"!"].concat();
        let other = flip(&again);
        cipher.seal(&nonce, &aad, &mut again);
        let mut sealed = other.clone();
        cipher.seal(&nonce, &aad, &mut sealed);
        prop_assert_ne!(&again, &sealed);
        // What is sealed is not the text.
        prop_assert!(text.len() < 8 || !again.windows(8).any(|part| part == &text[..8]));
    }

    #[test]
    fn cbc_is_undone_piece_by_piece_and_damage_spreads_as_in_cbc(
        key: [u8; 32],
        iv: [u8; 16],
        text in proptest::collection::vec(any::<u8>(), 64..300),
        block in 0..3usize,
        bit in 0..128usize,
    ) {
        let _scope = scope(true);
        let sealed = aes_cbc_encrypt(&key, &iv, &text);
        prop_assert_eq!(sealed.len(), cbc_ciphertext_len(text.len()));
        prop_assert_eq!(aes_cbc_decrypt(&key, &iv, &sealed), Ok(text.clone()));
        let mut pieces = sealed.clone();
        let mut stream = CbcStream::new(&key, &iv);
        pieces.chunks_mut(32).for_each(|piece| stream.decrypt(piece));
        prop_assert_eq!(&pieces[..text.len()], &text[..]);
        let mut other = key;
        other[bit / 8] ^= 1;
        prop_assert_ne!(aes_cbc_decrypt(&other, &iv, &sealed), Ok(text.clone()));
        prop_assert_ne!(aes_cbc_encrypt(&other, &iv, &text), sealed.clone());
        // A bit of one block: that block is garbage, the same bit of the next is changed, the rest is as it was.
        let mut damaged = sealed.clone();
        damaged[block * 16 + bit / 8] ^= 1 << (bit % 8);
        let mut stream = CbcStream::new(&key, &iv);
        stream.decrypt(&mut damaged);
        for (at, (now, was)) in damaged.iter().zip(&pieces).enumerate() {
            match at / 16 {
                n if n == block => {}
                n if n == block + 1 => {
                    let mask = if at % 16 == bit / 8 { 1 << (bit % 8) } else { 0 };
                    prop_assert_eq!(*now, was ^ mask);
                }
                _ => prop_assert_eq!(now, was),
            }
        }
        prop_assert_ne!(&damaged[block * 16..][..16], &pieces[block * 16..][..16]);
    }

    #[test]
    fn hashes_do_not_see_where_pieces_end(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        key in proptest::collection::vec(any::<u8>(), 0..100),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let _scope = scope(true);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(sha256(&parts), sha256(&[&bytes]));
        prop_assert_eq!(hmac_sha256(&key, &parts), hmac_sha256(&key, &[&bytes]));
        let (mut sum, mut mac) = (Sha256Stream::default(), HmacStream::new(&key));
        for part in &parts {
            sum.update(part);
            mac.update(part);
        }
        prop_assert_eq!(sum.finish(), sha256(&[&bytes]));
        prop_assert_eq!(mac.finish(), HmacKey::new(&key).mac(&parts));
        // Another byte, another length, another key, another purpose: another hash.
        let longer = [&bytes[..], &[0]].concat();
        prop_assert_ne!(sha256(&[&longer]), sha256(&[&bytes]));
        let mut changed = longer.clone();
        changed[bytes.len() / 2] ^= 4;
        prop_assert_ne!(sha256(&[&changed]), sha256(&[&longer]));
        prop_assert_ne!(hmac_sha256(&[&key[..], &[1]].concat(), &parts), hmac_sha256(&key, &parts));
        prop_assert_ne!(sha256(&parts), hmac_sha256(&[], &parts));
        let (long, short) = (hkdf_sha256::<160>(&[], &bytes, &key), hkdf_sha256::<32>(&[0; 32], &bytes, &key));
        prop_assert_eq!(&long[..32], short.as_slice());
        prop_assert_ne!(*hkdf_sha256::<32>(&[1], &bytes, &key), *hkdf_sha256::<32>(&[], &bytes, &key));
        prop_assert_ne!(*hkdf_sha256::<32>(&[], &longer, &key), *hkdf_sha256::<32>(&[], &bytes, &key));
    }
}

/// What the pieces of a permutation undo.
fn unstir([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    b = b.rotate_right(63) ^ c;
    c = c.wrapping_sub(d);
    d = d.rotate_right(16) ^ a;
    a = a.wrapping_sub(b);
    b = b.rotate_right(24) ^ c;
    c = c.wrapping_sub(d).wrapping_sub(ODD[1]);
    d = d.rotate_right(32) ^ a;
    a = a.wrapping_sub(b).wrapping_sub(ODD[0]);
    let gather = |lane: u64, odd: u64| {
        let lane = lane ^ lane >> 29 ^ lane >> 58;
        // Newton's iteration doubles the bits that are right, from the three that every odd number starts with.
        let inverse = (0..5).fold(odd, |x, _| {
            x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)))
        });
        let lane = lane.wrapping_mul(inverse);
        lane ^ lane >> 32
    };
    [
        gather(a, ODD[0]),
        gather(b, ODD[1]),
        gather(c, ODD[2]),
        gather(d, ODD[3]),
    ]
}

/// Structured inputs, as a protocol has them: counters, single bits, few bytes. No two alike in either half.
#[test]
fn plain_inputs_do_not_collide() {
    let mut first = BTreeSet::new();
    let mut last = BTreeSet::new();
    let mut count = 0;
    let mut add = |bytes: &[u8]| {
        let hash: [u8; 32] = hash(Purpose::Sha256, &[bytes]);
        first.insert(hash[..8].to_vec());
        last.insert(hash[24..].to_vec());
        count += 1;
    };
    for length in 0..100 {
        add(&vec![0; length]);
    }
    for length in [32, 33, 64, 96] {
        for bit in 0..length * 8 {
            let mut bytes = vec![0; length];
            bytes[bit / 8] |= 1 << (bit % 8);
            add(&bytes);
        }
    }
    for number in 0..20_000_u64 {
        add(&[b"message ".as_slice(), &number.to_be_bytes()].concat());
        add(&[[7; 32].as_slice(), &number.to_le_bytes(), &[9; 60]].concat());
    }
    assert_eq!((first.len(), last.len()), (count, count));
}

#[test]
fn lengths_and_refusals_are_the_real_ones() {
    let refused = |bytes: [u8; 32]| {
        let theirs = PublicKey::from_bytes(bytes);
        let own = PrivateKey::from_bytes([5; 32]);
        let real = own.agree(&theirs).is_err();
        let _scope = scope(true);
        let stand_in = matches!(own.agree(&theirs), Err(KeyError::LowOrder));
        assert_eq!(real, stand_in, "{theirs:?}");
        real
    };
    let mut points = vec![[0; 32], EIGHTH[0], EIGHTH[1]];
    for (first, rest) in [(1, 0), (0xec, 0xff), (0xed, 0xff), (0xee, 0xff)] {
        let mut point = [rest; 32];
        (point[0], point[31]) = (first, rest & 0x7f);
        points.push(point);
    }
    for mut point in points {
        assert!(refused(point));
        point[31] |= 0x80;
        assert!(refused(point));
        for byte in 0..32 {
            let mut near = point;
            near[byte] ^= 0x24;
            assert!(!refused(near));
        }
    }
    let _scope = scope(true);
    assert_eq!(aes_cbc_decrypt(&[1; 32], &[2; 16], &[]), Err(CipherError));
    assert_eq!(
        aes_cbc_decrypt(&[1; 32], &[2; 16], &[0; 15]),
        Err(CipherError)
    );
    let key = HmacSha512Key::new(&[1; 32]);
    assert_ne!(key.mac(&[b"a"]), key.mac(&[b"b"]));
    assert_ne!(key.mac(&[b"a"])[..32], hmac_sha256(&[1; 32], &[b"a"]));
}

/// It ends with its scope, does not reach other threads, and what was made in it stays what it is.
#[test]
fn a_scope_reaches_as_far_as_it_says() {
    let real = sha256(&[b"x"]);
    let key = HmacKey::new(&[3; 32]);
    let (mac, inside) = {
        let _scope = scope(true);
        assert!(active());
        assert_ne!(sha256(&[b"x"]), real);
        std::thread::scope(|threads| {
            threads.spawn(|| assert_eq!(sha256(&[b"x"]), real));
        });
        {
            let _real = scope(false);
            assert_eq!(sha256(&[b"x"]), real);
        }
        assert!(active());
        (key.mac(&[b"x"]), HmacKey::new(&[3; 32]))
    };
    assert!(!active());
    assert_eq!(sha256(&[b"x"]), real);
    assert_eq!(mac, hmac_sha256(&[3; 32], &[b"x"]));
    assert_ne!(inside.mac(&[b"x"]), mac);
    // Streams of random numbers are the same inside and outside.
    let draw = || Rng::from_seed([1; 32]).fork("label").next_u64();
    let outside = draw();
    let _scope = scope(true);
    assert_eq!(draw(), outside);
}
