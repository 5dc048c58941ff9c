//! Builds the operations for the machine that this crate is compiled for.

/// The operations: package and program have the same name.
const OPERATIONS: &[&str] = &[
    "op-info",
    "op-check",
    "op-repair",
    "op-snapshot",
    "op-resize",
    "op-amend",
    "op-bitmap",
];

fn main() {
    if let Err(error) = instar_guest_build::embed(OPERATIONS, OPERATIONS, &[]) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}
