//! Whose part the program plays: its own, or `qemu-img`'s where it is started by that name.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::OnceLock;

/// The name that makes it `qemu-img`.
const QEMU_IMG: &str = "qemu-img";

/// First line of `--version` as `qemu-img`: the version whose texts these are, and ours.
pub const QEMU_IMG_VERSION: &str = concat!(
    "qemu-img version 10.0.2 (instar ",
    env!("CARGO_PKG_VERSION"),
    ")"
);

/// The word that the program was started with, if it makes it `qemu-img`.
static STARTED_AS: OnceLock<OsString> = OnceLock::new();

/// Takes the part from the word that the program was started with: a path whose last part is `qemu-img`, as of a
/// link, makes it `qemu-img`.
pub fn take(program: Option<&OsStr>) {
    if let Some(word) =
        program.filter(|word| Path::new(word).file_name() == Some(OsStr::new(QEMU_IMG)))
    {
        STARTED_AS.get_or_init(|| word.to_owned());
    }
}

/// Whether messages are to be exactly `qemu-img`'s: its name before them, no hints, no bar that nobody asked for.
#[must_use]
pub fn is_qemu_img() -> bool {
    STARTED_AS.get().is_some()
}

/// The name where the C library of `qemu-img` words a message: as it was typed.
#[must_use]
pub fn typed_name() -> &'static OsStr {
    STARTED_AS
        .get()
        .map_or(OsStr::new("instar"), OsString::as_os_str)
}

/// The name before messages.
#[must_use]
pub fn name() -> &'static str {
    if is_qemu_img() { QEMU_IMG } else { "instar" }
}

/// Help or version as it is printed: under the name that the program was started with.
#[must_use]
pub fn printed(text: String, is_version: bool) -> String {
    if !is_qemu_img() {
        return text;
    }
    if is_version {
        return format!("{QEMU_IMG_VERSION}\n");
    }
    let help = text.replace("instar ", "qemu-img ");
    format!("{QEMU_IMG_VERSION}\n{help}")
}
