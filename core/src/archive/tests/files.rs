//! Files: what is in them cannot be read or changed by who has no key.

use super::*;
use proptest::prelude::*;

fn file() -> Vec<u8> {
    block_on(async {
        let from = memory();
        furnish(&from, "main", JID).await;
        exported(&from, "main").await
    })
}

/// The file is refused, and the database is as it was.
fn refused(bytes: &[u8]) -> ImportError {
    block_on(async {
        let to = memory();
        let error = import_from(&to, bytes).await.expect_err("refused");
        assert_eq!(accounts(&to).await, []);
        let live = to
            .hosts()
            .await
            .unwrap()
            .iter()
            .any(|host| host.state.is_live());
        assert!(!live);
        error
    })
}

/// Where the chunks begin; the last is the end of the file.
fn chunks(bytes: &[u8]) -> Vec<usize> {
    let mut at = 71;
    let mut starts = vec![at];
    while at < bytes.len() {
        let len = u32::from_be_bytes(bytes[at + 1..at + 5].try_into().unwrap());
        at += 5 + len as usize;
        starts.push(at);
    }
    assert_eq!(at, bytes.len());
    starts
}

#[test]
fn a_file_that_ends_anywhere_else_is_refused() {
    let whole = file();
    let release = chunks(&whole)[3];
    for end in 0..whole.len() {
        let error = refused(&whole[..end]);
        if end == release {
            assert_eq!(error, ImportError::Unreleased);
        } else {
            let expected = [
                ReadError::Truncated,
                ReadError::NotAnExport,
                ReadError::Damaged(4),
            ];
            assert!(
                matches!(&error, ImportError::Read(error) if expected.contains(error)),
                "{end}: {error:?}"
            );
        }
    }
    for more in [&[0][..], &whole] {
        let longer = [&whole[..], more].concat();
        assert!(matches!(
            refused(&longer),
            ImportError::Read(ReadError::Damaged(_))
        ));
    }
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let whole = file();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = refused(&bytes);
        assert!(
            matches!(error, ImportError::Read(_)),
            "bit {bit}: {error:?}"
        );
    }
}

#[test]
fn chunks_in_another_order_are_refused() {
    let (whole, other) = (file(), file());
    let at = chunks(&whole);
    let chunk = |i: usize| &whole[at[i]..at[i + 1]];
    let of = |order: &[usize]| {
        let mut bytes = whole[..at[0]].to_vec();
        order
            .iter()
            .for_each(|&i| bytes.extend_from_slice(chunk(i)));
        bytes
    };
    assert_eq!(of(&[0, 1, 2, 3]), whole, "header, rows, end, release");
    for order in [
        &[1, 0, 2, 3][..],
        &[0, 1, 1, 2, 3],
        &[0, 2, 3],
        &[0, 1, 3],
        &[3],
        &[0, 1, 2, 3, 3],
    ] {
        let error = refused(&of(order));
        assert!(
            matches!(error, ImportError::Read(_)),
            "{order:?}: {error:?}"
        );
    }
    // Those of another file under the same key do not fit either.
    let at_other = chunks(&other);
    for i in 0..4 {
        let bytes = [&whole[..at[i]], &other[at_other[i]..]].concat();
        let error = refused(&bytes);
        assert!(
            matches!(error, ImportError::Read(ReadError::Damaged(_))),
            "{error:?}"
        );
    }
}

#[test]
fn nothing_in_a_file_is_in_the_clear() {
    block_on(async {
        let from = memory();
        let id = furnish(&from, "the-name-of-it", JID).await;
        let bytes = exported(&from, "the-name-of-it").await;
        let found = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(found(b"BATONEXP"));
        for clear in [
            &b"content of"[..],
            b"15550000001",
            b"the-name-of-it",
            b"acme",
            b"sessions",
            &[9; 16],
        ] {
            assert!(!found(clear), "{:?}", String::from_utf8_lossy(clear));
        }
        // As it would be found if it were there.
        let session = rows(&from, &id)
            .await
            .into_values()
            .find_map(|row| match row {
                Row::Present(record) => record
                    .0
                    .windows(10)
                    .any(|window| window == b"content of")
                    .then_some(()),
                _ => None,
            });
        assert_eq!(session, Some(()));
    });
}

#[test]
fn keys_and_passphrases_are_told_apart() {
    block_on(async {
        let cost = PassphraseCost {
            kib: 64,
            passes: 1,
            lanes: 2,
        };
        let (from, to) = (memory(), memory());
        furnish(&from, "main", JID).await;
        let passphrase = FileKey::Passphrase("correct horse");
        let mut file = File::default();
        for (key, cost, expected) in [
            (
                FileKey::Passphrase("too short"),
                cost,
                ExportError::Passphrase,
            ),
            (
                passphrase,
                PassphraseCost { lanes: 0, ..cost },
                ExportError::Cost,
            ),
            (
                passphrase,
                PassphraseCost {
                    kib: 1 << 30,
                    ..cost
                },
                ExportError::Cost,
            ),
        ] {
            let options = ExportOptions {
                cost,
                ..ExportOptions::new(key)
            };
            let refused = export(&from, &acme(), "main", &mut file, options, &mut rng(), NOW).await;
            assert_eq!(refused, Err(expected));
        }
        assert!(file.bytes.is_empty());
        let options = ExportOptions {
            cost,
            ..ExportOptions::new(passphrase)
        };
        export(&from, &acme(), "main", &mut file, options, &mut rng(), NOW)
            .await
            .unwrap();

        let with = |bytes: &[u8], key: FileKey<'_>| inspect(&mut Reading { bytes, at: 0 }, key);
        let bytes = &file.bytes;
        assert_eq!(
            with(bytes, FileKey::Key(&key())),
            Err(ReadError::NeedsPassphrase)
        );
        assert_eq!(
            with(bytes, FileKey::Passphrase("correct hearse")),
            Err(ReadError::WrongKey)
        );
        let manifest = with(bytes, passphrase).unwrap();
        assert!(manifest.released && manifest.linked);
        assert_eq!(
            (manifest.name.as_str(), manifest.business.as_str()),
            ("main", "acme")
        );
        assert_eq!(
            (manifest.made_at, manifest.moves, manifest.rows),
            (NOW, 1, 8)
        );
        let options = ImportOptions::new(passphrase);
        let mut source = Reading { bytes, at: 0 };
        let imported = import(&to, &acme(), &mut source, options, &mut rng(), NOW)
            .await
            .unwrap();
        assert_eq!(imported.manifest, manifest);

        // A file may not ask for more than is reasonable, whoever wrote it.
        let mut greedy = bytes.clone();
        greedy[27..31].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(with(&greedy, passphrase), Err(ReadError::Cost));
        let of_key = super::files::file();
        assert_eq!(with(&of_key, passphrase), Err(ReadError::NeedsKey));
        let other = SecretKey::from_bytes([8; 32]);
        assert_eq!(
            with(&of_key, FileKey::Key(&other)),
            Err(ReadError::WrongKey)
        );
        let mut newer = of_key.clone();
        newer[9] = 2;
        assert_eq!(with(&newer, FileKey::Key(&key())), Err(ReadError::Newer(2)));
        assert_eq!(
            with(b"PK\x03\x04 and more", FileKey::Key(&key())),
            Err(ReadError::NotAnExport)
        );
    });
}

/// Written by version 1 of the format; every later release has to read it.
#[test]
fn files_of_version_1_are_read() {
    let hex: String = include_str!("../../../tests/vectors/export-v1.hex")
        .split_whitespace()
        .collect();
    let bytes = crate::crypto::testing::hex(&hex);
    block_on(async {
        let to = memory();
        let imported = import_from(&to, &bytes).await.unwrap();
        assert_eq!(imported.manifest.name, "main");
        let from = memory();
        let id = furnish(&from, "main", JID).await;
        assert_eq!(rows(&to, &imported.account).await, rows(&from, &id).await);
    });
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(prefix in 0..300usize, noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let whole = file();
        let bytes = [&whole[..prefix.min(whole.len())], &noise].concat();
        let read = inspect(&mut Reading { bytes: &bytes, at: 0 }, FileKey::Key(&key()));
        prop_assert!(read.is_err());
    }
}
