//! The program that `cargo install` gives: the example, as it is.

#[path = "../../examples/overnight.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
