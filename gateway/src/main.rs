//! The `baton` binary: see [`baton_gateway`].

fn main() -> std::process::ExitCode {
    baton_gateway::main()
}
