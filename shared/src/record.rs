//! The record stream: output of any length through a window of fixed size.
//!
//! The guest appends records to the window. When the next one does not fit, or
//! when the user should see something now, it writes the number of filled bytes
//! to the control page and kicks [`crate::doorbell::Control::Drain`]. The host
//! copies the window once, validates each record and takes it over before the
//! kick returns; the guest then starts at the front again. So the guest cannot
//! outrun the host, and the host holds one window at most.
//!
//! A record is a [`RecordHeader`] and its payload, padded to 8 bytes.

use zerocopy::little_endian::U32;

/// Records start at multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// Largest payload of one record, so that several fit the window.
pub const MAX_PAYLOAD: usize = 32 << 10;
/// Most records an operation may send in all: a guest that floods the stream ends here.
pub const MAX_RECORDS: u64 = 1 << 32;

wire_enum! {
    /// What a payload is.
    pub enum RecordKind: u32 {
        /// A line for the user's standard output, without newline.
        Line = 1,
        /// A line for the user's standard error, without newline.
        Diagnostic = 2,
        /// [`Progress`].
        Progress = 3,
        /// Why the operation failed: [`Failure`] and text.
        Failure = 4,
        /// The guest's own panic message.
        Panic = 5,
        /// A line for standard error that begins with the program's name, which the host adds.
        Prefixed = 6,
        /// [`NeedsRepair`]: the operation ends before it has written anything, and is to run again later.
        NeedsRepair = 7,
        /// [`Progress`] of what comes before the work, which counts for nothing in that of the work.
        Preparing = 8,
        /// Empty: the operation ends before it has written anything, and its fuller program is to run in its place.
        NeedsFuller = 9,
        /// [`crate::info::ImageRecord`] and names: a new image of the chain.
        Image = 16,
        /// [`crate::info::SnapshotRecord`] and names, of the last image.
        Snapshot = 17,
        /// [`crate::info::BitmapRecord`] and name, of the last image.
        Bitmap = 18,
        /// [`crate::info::LuksRecord`] of the last image.
        Luks = 19,
        /// Any number of [`crate::map::MapExtent`]s.
        MapExtents = 20,
        /// [`crate::bootscan::BootVolume`] and texts.
        BootVolume = 21,
        /// A sentence on what could not be read.
        BootNote = 22,
        /// [`crate::bootscan::BootSource`] and texts.
        BootSource = 23,
        /// [`crate::bootscan::BootEntry`] and texts.
        BootEntry = 24,
        /// [`crate::bootscan::BootPlan`].
        BootPlan = 25,
    }
}

wire_struct! {
    /// What every record starts with.
    pub struct RecordHeader {
        /// A [`RecordKind`].
        pub kind: U32,
        /// Length of the payload in bytes, without padding.
        pub len: U32,
    }
}
wire_layout!(RecordHeader, size = 8, { kind @ 0, len @ 4 });

wire_struct! {
    /// How far the operation is; units are its own.
    pub struct Progress {
        /// Done so far.
        pub done: zerocopy::little_endian::U64,
        /// Of this much; 0 if unknown.
        pub total: zerocopy::little_endian::U64,
    }
}
wire_layout!(Progress, size = 16, { done @ 0, total @ 8 });

/// [`NeedsRepair::flags`]: what the repair finds is not told.
pub const REPAIR_SILENT: u32 = 1 << 0;

wire_struct! {
    /// An image is marked dirty, and must be repaired before it is changed.
    pub struct NeedsRepair {
        /// The device slot of the image, which is open for writing.
        pub slot: U32,
        /// `REPAIR_*`.
        pub flags: U32,
    }
}
wire_layout!(NeedsRepair, size = 8, { slot @ 0, flags @ 4 });

wire_enum! {
    /// What kind of sentence a failure is.
    pub enum FailureKind: u32 {
        /// The image in `slot` could not be opened; text is the reason (`Could not open 'NAME': text`).
        OpenImage = 1,
        /// The operation itself failed; text is the whole sentence.
        Operation = 2,
        /// Memory beyond the cap is needed; text says for what.
        Memory = 3,
        /// The user cancelled.
        Cancelled = 4,
        /// The backing file of the image in `slot` is a format that is not known or not named.
        Unsupported = 5,
    }
}

wire_struct! {
    /// Head of a failure record; the text follows.
    pub struct Failure {
        /// A [`FailureKind`].
        pub kind: U32,
        /// The device slot it is about.
        pub slot: U32,
    }
}
wire_layout!(Failure, size = 8, { kind @ 0, slot @ 4 });
