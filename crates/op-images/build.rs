//! Builds the operations for the machine that this crate is compiled for.

/// The operations: package and program have the same name.
const OPERATIONS: &[&str] = &[
    "op-info",
    "op-check",
    "op-commit",
    "op-compare",
    "op-map",
    "op-repair",
    "op-snapshot",
    "op-resize",
    "op-amend",
    "op-bitmap",
    "op-bench",
    "op-convert",
    "op-convert-into",
    "op-rebase",
    "op-create",
    "op-measure",
];

fn main() {
    if let Err(error) = instar_guest_build::embed(OPERATIONS, OPERATIONS, &[]) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}
