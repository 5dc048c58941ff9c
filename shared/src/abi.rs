//! The version of this contract, carried by each operation binary as an ELF note.

use zerocopy::little_endian::U32;

/// Version of everything in this crate. Host and guest must agree exactly.
pub const ABI_VERSION: u32 = 10;

/// Name of the ELF section that holds the note.
pub const NOTE_SECTION: &str = ".note.instar";
/// Owner name of the note, NUL included.
pub const NOTE_NAME: [u8; 8] = *b"instar\0\0";
/// Type of the note.
pub const NOTE_TYPE: u32 = 1;

wire_struct! {
    /// The ELF note. System V ABI, "Note Section": name size, descriptor size, type, name, descriptor.
    pub struct AbiNote {
        /// Length of the name with its NUL, 7.
        pub name_size: U32,
        /// Length of the descriptor, 4.
        pub desc_size: U32,
        /// [`NOTE_TYPE`].
        pub note_type: U32,
        /// [`NOTE_NAME`], padded to four bytes.
        pub name: [u8; 8],
        /// [`ABI_VERSION`].
        pub version: U32,
    }
}
wire_layout!(AbiNote, size = 24, { name_size @ 0, desc_size @ 4, note_type @ 8, name @ 12, version @ 20 });

/// The note of this version.
pub const ABI_NOTE: AbiNote = AbiNote {
    name_size: U32::new(7),
    desc_size: U32::new(4),
    note_type: U32::new(NOTE_TYPE),
    name: NOTE_NAME,
    version: U32::new(ABI_VERSION),
};
