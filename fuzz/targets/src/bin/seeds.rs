//! Writes the seeds of every target, `FOLDER/corpus/<target>/seed-...`, and the dictionary, `FOLDER/dictionary`:
//! `seeds FOLDER`.

use std::{env, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds FOLDER");
        return ExitCode::FAILURE;
    };
    for target in fuzz_targets::ALL {
        let folder = folder.join("corpus").join(target.name);
        let written = fs::create_dir_all(&folder).and_then(|()| {
            let seeds = (target.seeds)();
            for (n, seed) in seeds.iter().enumerate() {
                fs::write(folder.join(format!("seed-{n:03}")), seed)?;
            }
            Ok(seeds.len())
        });
        match written {
            Ok(count) => println!("{}: {count}", target.name),
            Err(error) => {
                eprintln!("{}: {error}", folder.display());
                return ExitCode::FAILURE;
            }
        }
    }
    let words = fuzz_targets::dictionary();
    let lines = words.iter().map(|word| {
        let bytes = word.iter().map(|byte| match byte {
            b'"' | b'\\' | 0..32 | 127.. => format!("\\x{byte:02x}"),
            plain => char::from(*plain).to_string(),
        });
        format!("\"{}\"\n", bytes.collect::<String>())
    });
    match fs::write(folder.join("dictionary"), lines.collect::<String>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the dictionary: {error}");
            ExitCode::FAILURE
        }
    }
}
