//! Which operations there are: the only list of them.

/// The packages of the operations; each has a program of its name, and some have a second one.
pub const PACKAGES: &[&str] = &[
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
    "op-bootscan",
    "op-blockd",
];

/// Operations with the ciphers of encrypted images.
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

/// Programs of their own for what few runs of an operation need.
const FURTHER: &[&str] = &[
    "op-bench-write",
    "op-convert-into-bitmaps",
    "op-resize-full",
    "op-amend-full",
];

/// All programs of the operations.
pub fn programs() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().chain(KEYED).chain(FURTHER).copied()
}
