//! The control page: arguments and answers of the control doorbells.
//!
//! The guest writes a request and kicks; when the kick returns, the host has
//! read the request once and written the answer. One request at a time.

use zerocopy::little_endian::{U32, U64};

/// Longest file name an operation may ask for: Linux `PATH_MAX`.
pub const MAX_NAME_BYTES: usize = 4096;

wire_enum! {
    /// Why a file is wanted; the host's policy may differ by role.
    pub enum FileRole: u32 {
        /// The backing file of an image.
        Backing = 1,
        /// The external data file of an image.
        Data = 2,
    }
}

wire_enum! {
    /// How a file is to be opened.
    pub enum FileAccess: u32 {
        /// Read only.
        Read = 1,
        /// Read and write.
        ReadWrite = 2,
    }
}

wire_enum! {
    /// The host's answer to an open request. The host keeps the sentence for the user itself.
    pub enum FileStatus: u32 {
        /// The slot is live.
        Opened = 1,
        /// The operating system refused; `errno` says why.
        Failed = 2,
        /// The path policy refused.
        Refused = 3,
        /// The file is in this chain already: opening it would loop.
        Loop = 4,
        /// The request itself makes no sense (bad slot, role, access or length).
        Invalid = 5,
    }
}

wire_struct! {
    /// Asks for a file by a name that stands in an image.
    pub struct FileRequest {
        /// Empty slot of the device table that the file should get.
        pub slot: U32,
        /// A [`FileRole`].
        pub role: U32,
        /// A [`FileAccess`].
        pub access: U32,
        /// Slot of the image that names the file: relative names start at its folder.
        pub parent_slot: U32,
        /// Length of the name in bytes, at most [`MAX_NAME_BYTES`].
        pub name_len: U32,
        /// Zero.
        pub reserved: U32,
        /// The name, not terminated.
        pub name: [u8; MAX_NAME_BYTES],
    }
}
wire_layout!(FileRequest, size = 4120, { slot @ 0, role @ 4, access @ 8, parent_slot @ 12, name_len @ 16, reserved @ 20, name @ 24 });

wire_struct! {
    /// The host's answer to [`FileRequest`].
    pub struct FileResponse {
        /// A [`FileStatus`].
        pub status: U32,
        /// The errno (Linux numbering) of [`FileStatus::Failed`], else 0.
        pub errno: U32,
    }
}
wire_layout!(FileResponse, size = 8, { status @ 0, errno @ 4 });

wire_enum! {
    /// The host's answer to a size announcement.
    pub enum SizeStatus: u32 {
        /// The file may be written, as far as the host's window for such a size goes.
        Granted = 1,
        /// The operating system refused; `errno` says why.
        Failed = 2,
        /// The slot holds nothing that may be written, or its size was announced before.
        Invalid = 3,
    }
}

wire_struct! {
    /// Says how much a file that is about to be written will hold, and the answer.
    ///
    /// A file that is made anew takes no write before this, and is empty after it: what it held, if it was
    /// there, is kept until the guest has opened all that it reads. A file that is changed in place may
    /// grow by so much from here on.
    pub struct SizeAnnouncement {
        /// Guest: bytes of content, such as an image's virtual size.
        pub bytes: U64,
        /// Guest: slot of the file.
        pub slot: U32,
        /// Host: a [`SizeStatus`].
        pub status: U32,
        /// Host: the errno (Linux numbering) of [`SizeStatus::Failed`], else 0.
        pub errno: U32,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(SizeAnnouncement, size = 24, { bytes @ 0, slot @ 8, status @ 12, errno @ 16, reserved @ 20 });

wire_struct! {
    /// Asks for working memory before it is allocated, and the answer.
    pub struct MemoryGrant {
        /// Guest: bytes wanted, besides what it uses now.
        pub wanted: U64,
        /// Host: bytes that may be used, at most `wanted`.
        pub granted: U64,
        /// Host: first address past the heap now.
        pub heap_end: U64,
    }
}
wire_layout!(MemoryGrant, size = 24, { wanted @ 0, granted @ 8, heap_end @ 16 });

wire_struct! {
    /// The control page, at [`crate::layout::CONTROL`].
    pub struct ControlPage {
        /// For [`crate::doorbell::Control::GrantMemory`].
        pub memory: MemoryGrant,
        /// For [`crate::doorbell::Control::Drain`]: bytes of the record window that are filled.
        pub record_bytes: U32,
        /// Zero.
        pub reserved: U32,
        /// For [`crate::doorbell::Control::OpenFile`].
        pub file_response: FileResponse,
        /// For [`crate::doorbell::Control::OpenFile`].
        pub file_request: FileRequest,
        /// For [`crate::doorbell::Control::AnnounceSize`].
        pub announcement: SizeAnnouncement,
    }
}
wire_layout!(ControlPage, size = 4184, {
    memory @ 0, record_bytes @ 24, reserved @ 28, file_response @ 32, file_request @ 40, announcement @ 4160,
});
