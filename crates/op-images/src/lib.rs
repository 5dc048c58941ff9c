//! The operation binaries, as ELF files inside the host program.
//!
//! `build.rs` builds them from `operations/*` for the guest's target. They are
//! our own code, trusted as the rest of the program is; what they read at run
//! time is not.

/// Bytes at an address that is a multiple of 8, so that ELF headers can be
/// read in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The ELF file that `build.rs` has made of an operation.
macro_rules! embedded {
    ($file:literal) => {{
        static ELF: &Aligned<[u8]> =
            &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
        &ELF.0
    }};
}

/// The ELF file of the `info` operation; 8-byte aligned.
pub const INFO: &[u8] = embedded!("op-info.elf");
/// The ELF file of the `check` operation; 8-byte aligned.
pub const CHECK: &[u8] = embedded!("op-check.elf");
/// The ELF file of the `commit` operation; 8-byte aligned.
pub const COMMIT: &[u8] = embedded!("op-commit.elf");
/// The ELF file of the `compare` operation; 8-byte aligned.
pub const COMPARE: &[u8] = embedded!("op-compare.elf");
/// The ELF file of the `map` operation; 8-byte aligned.
pub const MAP: &[u8] = embedded!("op-map.elf");
/// The ELF file of the `repair` operation; 8-byte aligned.
pub const REPAIR: &[u8] = embedded!("op-repair.elf");
/// The ELF file of the `snapshot` operation; 8-byte aligned.
pub const SNAPSHOT: &[u8] = embedded!("op-snapshot.elf");
/// The ELF file of the `resize` operation; 8-byte aligned.
pub const RESIZE: &[u8] = embedded!("op-resize.elf");
/// The ELF file of the `amend` operation; 8-byte aligned.
pub const AMEND: &[u8] = embedded!("op-amend.elf");
/// The ELF file of the whole `resize` operation; 8-byte aligned.
pub const RESIZE_FULL: &[u8] = embedded!("op-resize-full.elf");
/// The ELF file of the whole `amend` operation without keys; 8-byte aligned.
pub const AMEND_FULL: &[u8] = embedded!("op-amend-full.elf");
/// The ELF file of the `bitmap` operation; 8-byte aligned.
pub const BITMAP: &[u8] = embedded!("op-bitmap.elf");
/// The ELF file of the `bench` operation that reads; 8-byte aligned.
pub const BENCH: &[u8] = embedded!("op-bench.elf");
/// The ELF file of the `bench` operation that writes; 8-byte aligned.
pub const BENCH_WRITER: &[u8] = embedded!("op-bench-write.elf");
/// The ELF file of the `convert` operation; 8-byte aligned.
pub const CONVERT: &[u8] = embedded!("op-convert.elf");
/// The ELF file of the `convert` operation into an image that is there; 8-byte aligned.
pub const CONVERT_INTO: &[u8] = embedded!("op-convert-into.elf");
/// The ELF file of what copies bitmaps after the `convert` operation into an image that is there; 8-byte aligned.
pub const CONVERT_INTO_BITMAPS: &[u8] = embedded!("op-convert-into-bitmaps.elf");
/// The ELF file of the `rebase` operation; 8-byte aligned.
pub const REBASE: &[u8] = embedded!("op-rebase.elf");
/// The ELF file of the `create` operation; 8-byte aligned.
pub const CREATE: &[u8] = embedded!("op-create.elf");
/// The ELF file of the `measure` operation; 8-byte aligned.
pub const MEASURE: &[u8] = embedded!("op-measure.elf");
/// The ELF file of the `bootscan` operation; 8-byte aligned.
pub const BOOTSCAN: &[u8] = embedded!("op-bootscan.elf");
/// The ELF file of the resident `blockd` operation; 8-byte aligned.
pub const BLOCKD: &[u8] = embedded!("op-blockd.elf");
/// The ELF file of the `amend` operation with keys of encrypted images; 8-byte aligned.
pub const AMEND_KEYED: &[u8] = embedded!("op-amend-keyed.elf");
/// The ELF file of the `create` operation with keys of encrypted images; 8-byte aligned.
pub const CREATE_KEYED: &[u8] = embedded!("op-create-keyed.elf");
/// The ELF file of the `commit` operation with keys of encrypted images; 8-byte aligned.
pub const COMMIT_KEYED: &[u8] = embedded!("op-commit-keyed.elf");
/// The ELF file of the `compare` operation with keys of encrypted images; 8-byte aligned.
pub const COMPARE_KEYED: &[u8] = embedded!("op-compare-keyed.elf");
/// The ELF file of the `convert` operation with keys of encrypted images; 8-byte aligned.
pub const CONVERT_KEYED: &[u8] = embedded!("op-convert-keyed.elf");
/// The ELF file of the `convert-into` operation with keys of encrypted images; 8-byte aligned.
pub const CONVERT_INTO_KEYED: &[u8] = embedded!("op-convert-into-keyed.elf");
/// The ELF file of the `map` operation with keys of encrypted images; 8-byte aligned.
pub const MAP_KEYED: &[u8] = embedded!("op-map-keyed.elf");
/// The ELF file of the `measure` operation with keys of encrypted images; 8-byte aligned.
pub const MEASURE_KEYED: &[u8] = embedded!("op-measure-keyed.elf");
/// The ELF file of the `rebase` operation with keys of encrypted images; 8-byte aligned.
pub const REBASE_KEYED: &[u8] = embedded!("op-rebase-keyed.elf");

/// Operations without ciphers, each beside the same one that has them.
const WITH_KEYS: &[(&[u8], &[u8])] = &[
    (AMEND, AMEND_KEYED),
    (AMEND_FULL, AMEND_KEYED),
    (CREATE, CREATE_KEYED),
    (COMMIT, COMMIT_KEYED),
    (COMPARE, COMPARE_KEYED),
    (CONVERT, CONVERT_KEYED),
    (CONVERT_INTO, CONVERT_INTO_KEYED),
    (MAP, MAP_KEYED),
    (MEASURE, MEASURE_KEYED),
    (REBASE, REBASE_KEYED),
];

/// The program that does what `elf` does and deciphers images besides; `elf` itself if no key changes what it does.
#[must_use]
pub fn keyed(elf: &'static [u8]) -> &'static [u8] {
    let found = WITH_KEYS
        .iter()
        .find(|(plain, _)| core::ptr::eq(*plain, elf));
    found.map_or(elf, |(_, keyed)| keyed)
}

/// Operations without what few runs need, each beside the same one that has it.
const FULLER: &[(&[u8], &[u8])] = &[(RESIZE, RESIZE_FULL), (AMEND, AMEND_FULL)];

/// The program that runs in place of `elf` once that has found that it lacks a part.
#[must_use]
pub fn fuller(elf: &'static [u8]) -> Option<&'static [u8]> {
    let found = FULLER.iter().find(|(few, _)| core::ptr::eq(*few, elf));
    found.map(|(_, fuller)| *fuller)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_aligned_static_elf_files() {
        for (name, elf) in [
            ("info", INFO),
            ("check", CHECK),
            ("commit", COMMIT),
            ("compare", COMPARE),
            ("map", MAP),
            ("repair", REPAIR),
            ("snapshot", SNAPSHOT),
            ("resize", RESIZE),
            ("amend", AMEND),
            ("resize-full", RESIZE_FULL),
            ("amend-full", AMEND_FULL),
            ("bitmap", BITMAP),
            ("bench", BENCH),
            ("bench-write", BENCH_WRITER),
            ("convert", CONVERT),
            ("convert-into", CONVERT_INTO),
            ("convert-into-bitmaps", CONVERT_INTO_BITMAPS),
            ("rebase", REBASE),
            ("create", CREATE),
            ("measure", MEASURE),
            ("bootscan", BOOTSCAN),
            ("blockd", BLOCKD),
            ("amend-keyed", AMEND_KEYED),
            ("create-keyed", CREATE_KEYED),
            ("commit-keyed", COMMIT_KEYED),
            ("compare-keyed", COMPARE_KEYED),
            ("convert-keyed", CONVERT_KEYED),
            ("convert-into-keyed", CONVERT_INTO_KEYED),
            ("map-keyed", MAP_KEYED),
            ("measure-keyed", MEASURE_KEYED),
            ("rebase-keyed", REBASE_KEYED),
        ] {
            assert_eq!(elf.as_ptr().addr() % 8, 0, "{name}");
            assert_eq!(&elf[..4], b"\x7fELF", "{name}");
            assert_eq!(elf[16..18], 2_u16.to_le_bytes(), "{name}: not ET_EXEC");
        }
    }

    #[test]
    fn the_keyed_program_is_another_one_where_there_is_one() {
        assert!(core::ptr::eq(keyed(CONVERT), CONVERT_KEYED));
        assert!(core::ptr::eq(keyed(INFO), INFO));
        assert!(core::ptr::eq(keyed(AMEND_FULL), AMEND_KEYED));
        assert!(core::ptr::eq(keyed(COMPARE_KEYED), COMPARE_KEYED));
    }
}
