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
/// The ELF file of the `bitmap` operation; 8-byte aligned.
pub const BITMAP: &[u8] = embedded!("op-bitmap.elf");
/// The ELF file of the `bench` operation; 8-byte aligned.
pub const BENCH: &[u8] = embedded!("op-bench.elf");
/// The ELF file of the `convert` operation; 8-byte aligned.
pub const CONVERT: &[u8] = embedded!("op-convert.elf");
/// The ELF file of the `convert` operation into an image that is there; 8-byte aligned.
pub const CONVERT_INTO: &[u8] = embedded!("op-convert-into.elf");
/// The ELF file of the `rebase` operation; 8-byte aligned.
pub const REBASE: &[u8] = embedded!("op-rebase.elf");
/// The ELF file of the `create` operation; 8-byte aligned.
pub const CREATE: &[u8] = embedded!("op-create.elf");
/// The ELF file of the `measure` operation; 8-byte aligned.
pub const MEASURE: &[u8] = embedded!("op-measure.elf");

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
            ("bitmap", BITMAP),
            ("bench", BENCH),
            ("convert", CONVERT),
            ("convert-into", CONVERT_INTO),
            ("rebase", REBASE),
            ("create", CREATE),
            ("measure", MEASURE),
        ] {
            assert_eq!(elf.as_ptr().addr() % 8, 0, "{name}");
            assert_eq!(&elf[..4], b"\x7fELF", "{name}");
            assert_eq!(elf[16..18], 2_u16.to_le_bytes(), "{name}: not ET_EXEC");
        }
    }
}
