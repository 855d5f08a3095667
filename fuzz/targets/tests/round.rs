//! The short round: every target on inputs made from the corpus by a seeded mutator. It knows nothing of coverage and
//! finds only what lies near; it costs no other build than that of the tests, so it runs whenever they do.
//!
//! `BATON_FUZZ_SECONDS` is for all targets together (30), `BATON_FUZZ_SEED` begins another round, `BATON_FUZZ_TARGET`
//! takes one target alone.

use baton_core::crypto::Rng;
use fuzz_targets::{ALL, Target, dictionary};
use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes of the longest input that is made.
const LONGEST: usize = 4096;

#[test]
fn a_short_round_of_every_target() {
    let number = |name: &str, default: u64| {
        let given = env::var(name).ok();
        given.map_or(default, |text| text.parse().expect("a number"))
    };
    let (seconds, seed) = (
        number("BATON_FUZZ_SECONDS", 30),
        number("BATON_FUZZ_SEED", 1),
    );
    let only = env::var("BATON_FUZZ_TARGET").ok();
    let chosen: Vec<&Target> = ALL
        .iter()
        .filter(|target| only.as_ref().is_none_or(|only| only == target.name))
        .collect();
    assert!(!chosen.is_empty(), "no such target");
    let span = Duration::from_secs(seconds) / u32::try_from(chosen.len()).expect("few");
    let words = dictionary();
    for target in chosen {
        let mut seeds = corpus(target.name);
        seeds.extend((target.seeds)());
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut rng = Rng::from_seed(bytes).fork(target.name);
        let (begun, mut runs) = (Instant::now(), 0u64);
        while begun.elapsed() < span {
            let input = mutated(&seeds, &words, &mut rng);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(&input))) {
                let file = root().join("artifacts").join(target.name);
                let file = file.join(format!("round-{seed}-{runs}"));
                let kept = fs::create_dir_all(file.parent().expect("a folder"))
                    .and_then(|()| fs::write(&file, &input));
                eprintln!(
                    "{}: input {} ({kept:?}): {input:?}",
                    target.name,
                    file.display()
                );
                resume_unwind(panic);
            }
            runs += 1;
        }
        println!("{:20} {runs} executions", target.name);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(root().join("corpus").join(target));
    let files = files.expect("the corpus is in the repository");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("readable"))
        .collect()
}

fn below(rng: &mut Rng, n: usize) -> usize {
    usize::try_from(rng.below(n.max(1) as u64)).expect("small")
}

fn mutated(seeds: &[Vec<u8>], words: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[below(rng, seeds.len())].clone();
    for _ in 0..=below(rng, 6) {
        let at = below(rng, bytes.len() + 1);
        match rng.below(8) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.next_u32() as u8;
                }
            }
            3 => {
                let word = &words[below(rng, words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            4 => {
                let end = bytes.len().min(at + below(rng, 16));
                bytes.drain(at..end);
            }
            5 => {
                // The end of another.
                let other = &seeds[below(rng, seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[below(rng, other.len())..]);
            }
            6 => {
                let few: Vec<u8> = (0..below(rng, 9)).map(|_| rng.next_u32() as u8).collect();
                bytes.splice(at..at, few);
            }
            _ => {
                let end = bytes.len().min(at + below(rng, 32));
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}
