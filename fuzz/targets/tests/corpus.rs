//! The corpus, replayed: every input that ever taught the fuzzer something, and every one that was a finding.

use fuzz_targets::ALL;
use std::{fs, path::Path};

/// Names and contents of what lies in a folder of the corpus.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let file = file.expect("a file");
            let bytes = fs::read(file.path()).expect("readable");
            (file.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn the_corpus_is_replayed() {
    for target in ALL {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for (name, bytes) in inputs {
            // The harness shows this if the next line panics.
            println!("{}/{name}", target.name);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn seeds_hold_what_is_checked() {
    for target in ALL {
        for seed in (target.seeds)() {
            println!("{}: {seed:?}", target.name);
            (target.run)(&seed);
        }
    }
}
