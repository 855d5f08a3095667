//! Writes `core/src/proto/*.rs` from `core/proto/*.proto`.
//!
//! ```text
//! cargo run --manifest-path proto-gen/Cargo.toml             write
//! cargo run --manifest-path proto-gen/Cargo.toml -- --check  fail when the committed output is not current
//! ```
//!
//! The output is committed, so that a build needs neither `protoc` nor a build script. The compiler here is
//! protox, pure Rust, for the same reason.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use prost_build::{Config, Module};
use protox::Compiler;

/// Blobs of app state, decoded without a copy: a snapshot has fifty thousand of them.
const SHARED: [&str; 3] = [".sync.SyncdIndex", ".sync.SyncdValue", ".sync.KeyId"];

/// Messages with key material: `core/src/proto/mod.rs` gives them a `Debug` that does not show it.
const SECRETS: [&str; 6] = [
    ".e2e.AppStateSyncKeyData",
    ".e2e.HistorySyncNotification",
    ".e2e.MessageContextInfo",
    ".sync.ExternalBlobReference",
    ".history.WebMessageInfo",
    // Rows: keys, sessions, text. All of them.
    ".record",
];

fn main() -> ExitCode {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => {
            eprintln!("proto-gen: unknown argument {other:?}; the only one is --check");
            return ExitCode::from(2);
        }
    };
    match run(check) {
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) => {
            eprintln!(
                "proto-gen: not current: {}; run it without --check and commit",
                stale.join(", ")
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("proto-gen: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Generates everything; with `check` writes nothing and returns the names of the files that would change.
fn run(check: bool) -> Result<Vec<String>, Box<dyn Error>> {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core");
    let sources = core.join("proto");
    let target = core.join("src/proto");

    let mut stale = Vec::new();
    for (name, code) in generate(&sources)? {
        let path = target.join(&name);
        if fs::read_to_string(&path).is_ok_and(|old| old == code) {
            continue;
        }
        if check {
            stale.push(name);
        } else {
            fs::write(&path, code)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(stale)
}

/// (file name, Rust code) of every `.proto` in `sources`, in the order of their names. A file's package is its name.
fn generate(sources: &Path) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut files: Vec<PathBuf> = fs::read_dir(sources)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "proto")
    });
    files.sort();

    let mut compiler = Compiler::new([sources])?;
    // The comments become documentation.
    compiler.include_source_info(true);
    compiler.open_files(&files)?;
    let descriptors = compiler.file_descriptor_set().file;

    let requests = descriptors
        .into_iter()
        .map(|descriptor| {
            (
                Module::from_protobuf_package_name(descriptor.package()),
                descriptor,
            )
        })
        .collect();
    let modules = Config::new()
        .btree_map(["."])
        .bytes(SHARED)
        .skip_debug(SECRETS)
        .generate(requests)?;
    Ok(modules
        .into_iter()
        .map(|(module, code)| {
            let name = module.to_string();
            let header = format!("// From core/proto/{name}.proto by proto-gen; change that instead.\n#![allow(missing_docs, clippy::all)]\n");
            (format!("{name}.rs"), header + &code)
        })
        .collect())
}
