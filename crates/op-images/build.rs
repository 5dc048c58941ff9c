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

/// Those that are also built with the ciphers of encrypted images, as a second program.
const KEYED: &[&str] = &[
    "op-amend-keyed",
    "op-commit-keyed",
    "op-compare-keyed",
    "op-convert-keyed",
    "op-convert-into-keyed",
    "op-create-keyed",
    "op-map-keyed",
    "op-measure-keyed",
    "op-rebase-keyed",
];

/// Those that have a program of their own for what writes.
const WRITING: &[&str] = &["op-bench-write"];

fn main() {
    let programs = [OPERATIONS, KEYED, WRITING].concat();
    if let Err(error) = instar_guest_build::embed(OPERATIONS, &programs, &[]) {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}
