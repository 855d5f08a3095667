//! The `baton` binary: see [`baton_gateway`].

// Simulated worlds have cheap stand-ins for cryptography (`stand-in-crypto`), which keep nothing secret. A build of the
// whole workspace shares one core, and would put them into this binary, unused as they would be; so a release of it is
// built on its own.
const _: () = assert!(
    cfg!(debug_assertions) || !baton_core::crypto::HAS_STAND_INS,
    "a release of baton contains no stand-in cryptography: build it with `cargo build --release -p baton`"
);

fn main() -> std::process::ExitCode {
    baton_gateway::main()
}
