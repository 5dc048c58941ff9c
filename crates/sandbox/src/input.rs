//! What a job does with the files that the user names.

use crate::layout::Layout;
use crate::locks::Reads;
use instar_vmm::operation::Secret;
use std::ffi::OsString;
use std::path::PathBuf;

/// A file that the user names on the command line: an image that is read or changed, or one that is made.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// The name as typed, with a protocol if it has one.
    pub path: PathBuf,
    /// What the user typed, if that is more than the name.
    pub described: Option<Described>,
    /// Passwords for it and what is below it. Who makes a [`crate::Job`] takes them out and gives them the slot.
    pub secrets: Vec<Secret>,
    /// Other processes may write to the image meanwhile (`-U`); only images that are read can be shared.
    pub share: bool,
    /// It, and the files that it names, are read and written past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// What is done with it: this decides how it is opened, and the locks.
    pub access: Access,
    /// How long writes may make it, and its external data file; of no effect on what is only read.
    /// What is made counts from the size that the guest announces.
    pub growth: Growth,
}

/// What the user typed instead of a name: options, as a list or in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// All of it, which stands in errors instead of a name.
    pub given: OsString,
    /// It says that the image is not written.
    pub read_only: bool,
}

/// What is done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is read.
    Read(Reads),
    /// Its contents are read, and the user says that it is raw (`-f raw`): like QEMU, this lets others
    /// change it meanwhile.
    ReadRaw,
    /// It is read and changed.
    Change,
    /// It is read and changed, and the user says that it is raw (`-f raw`): like QEMU, this lets others
    /// change it too.
    ChangeRaw,
    /// It is made: a new file, or the whole of one that is there is written anew.
    ///
    /// A new file has no name until the job has ended with exit code 0; whatever else happens, nothing is
    /// left of it. A regular file that is there keeps its inode and its content until the guest has
    /// announced the size of what it writes; from then on a job that does not end well leaves it empty.
    /// A block device is written in place.
    Create {
        /// The new image is raw: like QEMU, this lets others change it meanwhile.
        raw: bool,
        /// What was written is made durable before it gets its name.
        durable: bool,
        /// What is asked of the file system; of no effect on a device.
        layout: Layout,
    },
}

impl Access {
    /// Whether the image is opened for writing.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Change | Self::ChangeRaw | Self::Create { .. })
    }

    /// Whether the file is made.
    #[must_use]
    pub const fn creates(self) -> bool {
        matches!(self, Self::Create { .. })
    }

    /// What of the image, and of the files that it names, is read.
    #[must_use]
    pub const fn reads(self) -> Reads {
        match self {
            Self::Read(reads) => reads,
            Self::ReadRaw | Self::Change | Self::ChangeRaw | Self::Create { .. } => Reads::Contents,
        }
    }
}

/// How much longer than it was when it was opened, or than was announced, the guest may make a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// A tenth of its length and 64 MiB, which tables and bookkeeping fit in, and what is asked besides.
    Window {
        /// Bytes on top.
        extra_bytes: u64,
    },
    /// This many bytes.
    AtMost {
        /// Bytes on top of the length.
        extra_bytes: u64,
    },
    /// As long as the host lets it.
    Unlimited,
}

impl Default for Growth {
    fn default() -> Self {
        Self::Window { extra_bytes: 0 }
    }
}

impl Growth {
    /// The greatest length in bytes of a file that was `len_bytes` long when it was opened.
    #[must_use]
    pub const fn max_len_bytes(self, len_bytes: u64) -> u64 {
        const FIXED_BYTES: u64 = 64 << 20;
        match self {
            Self::Unlimited => u64::MAX,
            Self::AtMost { extra_bytes } => len_bytes.saturating_add(extra_bytes),
            Self::Window { extra_bytes } => len_bytes
                .saturating_add(len_bytes / 10)
                .saturating_add(FIXED_BYTES)
                .saturating_add(extra_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_a_tenth_and_64_mib_and_the_extra() {
        let window = Growth::default();
        assert_eq!(window.max_len_bytes(0), 64 << 20);
        assert_eq!(window.max_len_bytes(1000), (64 << 20) + 1100);
        let wider = Growth::Window { extra_bytes: 7 };
        assert_eq!(wider.max_len_bytes(1000), (64 << 20) + 1107);
    }

    #[test]
    fn window_never_wraps() {
        let widest = Growth::Window {
            extra_bytes: u64::MAX,
        };
        assert_eq!(widest.max_len_bytes(u64::MAX), u64::MAX);
        assert_eq!(Growth::Unlimited.max_len_bytes(0), u64::MAX);
        let fixed = Growth::AtMost { extra_bytes: 5 };
        assert_eq!(fixed.max_len_bytes(7), 12);
        assert_eq!(fixed.max_len_bytes(u64::MAX), u64::MAX);
    }
}
