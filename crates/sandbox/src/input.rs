//! What a job does with the files that the user names.

use crate::layout::Layout;
use crate::locks::Reads;
use crate::output::FileFacts;
use instar_shared::device::{
    BELOW_NONE, BELOW_QCOW2, BELOW_RAW, BELOW_TOLD, BELOW_TYPED, DATA_FILE_TOLD,
};
use instar_shared::op::ImageFormat;
use instar_vmm::operation::{Said, Secret};
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
    /// What it says of the image itself, then of its backing file, and so on down the chain as far as it says anything.
    pub images: Vec<ImageOptions>,
}

/// What the user says of an image of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Anything at all is said of it: the image above must have one below.
    pub told: bool,
    /// Its file.
    pub file: FileOptions,
    /// Its format, if one is given that is not the word of the image above.
    pub format: Option<ImageFormat>,
    /// Its data file, if anything is said of it.
    pub data: Option<FileOptions>,
    /// It has no backing file, whatever it says.
    pub alone: bool,
    /// How it is encrypted.
    pub encryption: Option<Encryption>,
    /// Whether it, and what is below it, is reached past the page cache, if not as the command says.
    pub direct: Option<bool>,
}

/// What the user says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Its name, with a driver if one is given: it is opened instead of the file that an image names.
    pub path: Option<PathBuf>,
    /// It is not locked, and the locks of others do not matter.
    pub unlocked: bool,
    /// Whether it is reached past the page cache, if not as its image.
    pub direct: Option<bool>,
    /// Which part of it is meant.
    pub part: Part,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes, if it does not go on to the end of the file.
    pub size: Option<u64>,
}

impl Part {
    /// How long it is in a file of `len_bytes`.
    ///
    /// # Errors
    /// It is not in the file, or has no whole number of sectors: what `qemu-img` says.
    pub fn len_in(self, len_bytes: u64) -> Result<u64, String> {
        let Self { offset, size } = self;
        let Some(rest) = len_bytes.checked_sub(offset) else {
            return Err(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({len_bytes})"
            ));
        };
        let Some(size) = size else {
            return Ok(rest);
        };
        if size > rest {
            return Err(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of \
                 the containing file ({len_bytes})"
            ));
        }
        if !size.is_multiple_of(512) {
            return Err("Specified size is not multiple of 512".to_owned());
        }
        Ok(size)
    }

    /// Whether it is the whole file.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self == Self::default()
    }
}

/// How an image is encrypted; the numbers are qcow2's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The legacy scheme.
    Aes = 1,
    /// LUKS.
    Luks = 2,
}

impl ImageOptions {
    /// How its file is opened.
    #[must_use]
    pub fn is_direct(&self, file: &FileOptions, command: bool) -> bool {
        file.direct.or(self.direct).unwrap_or(command)
    }
}

impl InputFile {
    /// What the user says of the image `depth` below this one.
    #[must_use]
    pub fn options(&self, depth: usize) -> ImageOptions {
        let images = self.described.as_ref().map(|described| &described.images);
        let Some(images) = images else {
            return ImageOptions::default();
        };
        match images.get(depth) {
            Some(options) => options.clone(),
            // What holds for all that is below holds here, too.
            None => ImageOptions {
                direct: images.last().and_then(|last| last.direct),
                ..ImageOptions::default()
            },
        }
    }

    /// The same, as the device of the image's file has it.
    #[must_use]
    pub fn said(&self, depth: usize, facts: &FileFacts) -> Said {
        let options = self.options(depth);
        let below = self.options(depth.saturating_add(1));
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        Said {
            below: bit(options.alone, BELOW_NONE)
                | bit(below.told, BELOW_TOLD)
                | bit(below.file.path.is_some(), BELOW_TYPED)
                | bit(options.data.is_some(), DATA_FILE_TOLD)
                | bit(below.format == Some(ImageFormat::Raw), BELOW_RAW)
                | bit(below.format == Some(ImageFormat::Qcow2), BELOW_QCOW2),
            encryption: options.encryption.map_or(0, |encryption| encryption as u16),
            ..options.file.part.said(facts)
        }
    }
}

impl Part {
    /// As the device of a file has it.
    #[must_use]
    pub fn said(self, facts: &FileFacts) -> Said {
        let size = self.size.filter(|_| !facts.character_device);
        Said {
            start: self.offset,
            end: size.map(|size| self.offset.saturating_add(size)),
            ..Said::default()
        }
    }
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
