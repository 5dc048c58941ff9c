//! Signatures of image formats.

/// How many of a file's first bytes the probe looks at; QEMU reads as many.
pub const PROBE_BYTES: usize = 2048;
/// How many of a file's last bytes [`probe_trailer`] looks at.
pub const TRAILER_BYTES: usize = 512;

/// An image format, by the name that `qemu-img` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// QEMU copy-on-write, versions 2 and above.
    Qcow2,
    /// QEMU copy-on-write, version 1.
    Qcow,
    /// VMware disk: sparse extent or descriptor.
    Vmdk,
    /// VirtualBox disk.
    Vdi,
    /// Microsoft virtual hard disk (VHD) with a header copy in front.
    Vpc,
    /// Microsoft VHDX.
    Vhdx,
    /// QEMU enhanced disk.
    Qed,
    /// Parallels disk.
    Parallels,
    /// Bochs growing disk.
    Bochs,
    /// Compressed loop.
    Cloop,
    /// Apple disk image.
    Dmg,
    /// LUKS volume.
    Luks,
    /// None of the above.
    Raw,
}

impl ImageFormat {
    /// Every format.
    pub const ALL: [Self; 13] = [
        Self::Qcow2,
        Self::Qcow,
        Self::Vmdk,
        Self::Vdi,
        Self::Vpc,
        Self::Vhdx,
        Self::Qed,
        Self::Parallels,
        Self::Bochs,
        Self::Cloop,
        Self::Dmg,
        Self::Luks,
        Self::Raw,
    ];

    /// The name that `qemu-img -f` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Luks => "luks",
            Self::Raw => "raw",
        }
    }

    /// The format of a name, `None` for any other.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().as_bytes() == name)
    }
}

/// What a file of `len` bytes would be taken for by its first bytes.
///
/// `first` holds the file's first [`PROBE_BYTES`] bytes, or all of a shorter
/// file; up to a whole sector, what is missing counts as zeros. Only signatures are looked at: the
/// answer says nothing of whether the image can be opened. A disk image for Apple
/// machines shows itself at its end only, see [`probe_trailer`].
pub fn probe(first: &[u8], len: u64) -> ImageFormat {
    let have = usize::try_from(len).unwrap_or(usize::MAX).min(PROBE_BYTES);
    let first = first.get(..have).unwrap_or(first);
    let mut sectors = [0; PROBE_BYTES];
    let end = have.next_multiple_of(SECTOR).min(PROBE_BYTES);
    if let Some(start) = sectors.get_mut(..first.len()) {
        start.copy_from_slice(first);
    }
    signature_of(sectors.get(..end).unwrap_or_default())
}

fn signature_of(first: &[u8]) -> ImageFormat {
    let be32 = |at: usize| read_at::<4>(first, at).map(u32::from_be_bytes);
    let le32 = |at: usize| read_at::<4>(first, at).map(u32::from_le_bytes);
    let starts = |signature: &[u8]| first.starts_with(signature);

    if starts(b"QFI\xfb") {
        match be32(4) {
            Some(1) => return ImageFormat::Qcow,
            Some(2..) => return ImageFormat::Qcow2,
            _ => {}
        }
    }
    if starts(b"LUKS\xba\xbe") && read_at(first, 6) == Some([0, 1]) {
        return ImageFormat::Luks;
    }
    if starts(b"KDMV") || starts(b"COWD") || is_vmdk_descriptor(first) {
        return ImageFormat::Vmdk;
    }
    if le32(64) == Some(0xbeda_107f) {
        return ImageFormat::Vdi;
    }
    if starts(b"conectix") {
        return ImageFormat::Vpc;
    }
    if starts(b"vhdxfile") {
        return ImageFormat::Vhdx;
    }
    if starts(b"QED\0") {
        return ImageFormat::Qed;
    }
    if (starts(b"WithoutFreeSpace") || starts(b"WithouFreSpacExt")) && le32(16) == Some(2) {
        return ImageFormat::Parallels;
    }
    if is_bochs(first) {
        return ImageFormat::Bochs;
    }
    if starts(CLOOP) {
        return ImageFormat::Cloop;
    }
    ImageFormat::Raw
}

/// True if a file's last [`TRAILER_BYTES`] bytes are those of an Apple disk image.
///
/// `qemu-img` probes for it by the file name's suffix `.dmg` alone.
pub fn probe_trailer(last: &[u8]) -> bool {
    let trailer = last
        .len()
        .checked_sub(TRAILER_BYTES)
        .and_then(|at| last.get(at..));
    trailer.is_some_and(|trailer| trailer.starts_with(b"koly"))
}

const SECTOR: usize = 512;
const CLOOP: &[u8] = b"#!/bin/sh\n#V2.0 Format\n\
    modprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";

fn read_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// A descriptor is text: comments and lines of spaces, then `version=1`, 2 or 3.
/// An empty line ends it.
fn is_vmdk_descriptor(first: &[u8]) -> bool {
    for line in first.split_inclusive(|b| *b == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else {
            return false;
        };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let blank = !text.is_empty() && text.iter().all(|b| *b == b' ');
        if blank || text.starts_with(b"#") {
            continue;
        }
        return matches!(text, b"version=1" | b"version=2" | b"version=3");
    }
    false
}

/// A growing redo log, version 1 or 2 of the header.
fn is_bochs(first: &[u8]) -> bool {
    let name = |at: usize, text: &[u8]| {
        first.get(at..).is_some_and(|rest| {
            rest.strip_prefix(text)
                .is_some_and(|after| after.first() == Some(&0))
        })
    };
    let version = read_at::<4>(first, 64).map(u32::from_le_bytes);
    name(0, b"Bochs Virtual HD Image")
        && name(32, b"Redolog")
        && name(48, b"Growing")
        && matches!(version, Some(0x1_0000 | 0x2_0000))
}

#[cfg(test)]
mod tests;
