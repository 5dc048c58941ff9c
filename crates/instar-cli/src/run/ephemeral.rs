//! `--ephemeral`: a qcow2 image over the one that is named, in a file that has no name and ends with the machine.

use super::config::{Config, Format};
use crate::cli::{CreateOptions, LimitOptions};
use crate::console::{Console, JobKind};
use crate::create;
use crate::failure::system_text;
use instar_sandbox::machine::{Before, path_of_open};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Where the file is if `TMPDIR` says nothing: unlike `/tmp`, seldom in memory.
const FOLDER: &str = "/var/tmp";

/// What is made before the machine starts.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    /// The image that the machine has been given, absolute.
    below: PathBuf,
    format: Format,
    limits: LimitOptions,
}

/// The machine with such an overlay as its image, and what its operations may open then; as they were without
/// `--ephemeral`.
///
/// # Errors
/// The image is not there, or there can be no such file.
pub fn over(
    mut config: Config,
    mut limits: LimitOptions,
) -> Result<(Config, LimitOptions, Option<Overlay>), String> {
    let Some(image) = config.image.as_ref().filter(|_| config.ephemeral) else {
        return Ok((config, limits, None));
    };
    let wrong = |error| {
        format!(
            "Could not open '{}': {}",
            image.display(),
            system_text(&error)
        )
    };
    let below = image.canonicalize().map_err(wrong)?;
    let is_device = below
        .metadata()
        .map_err(wrong)?
        .file_type()
        .is_block_device();
    let folder = below.parent().filter(|_| !is_device);
    let format = config.disk_format();
    let file = unnamed()?;
    // The overlay names the image, and that one what lies beside it.
    limits.allow_path.push(folder.unwrap_or(&below).to_owned());
    (config.image, config.format) = (Some(path_of_open(&file)), Some(Format::Qcow2));
    let overlay = Overlay {
        file,
        below,
        format,
        limits: limits.clone(),
    };
    Ok((config, limits, Some(overlay)))
}

/// A file without a name.
fn unnamed() -> Result<File, String> {
    let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let folder = folder.map_or_else(|| Path::new(FOLDER).to_owned(), PathBuf::from);
    tempfile::tempfile_in(&folder).map_err(|error| {
        format!(
            "--ephemeral cannot make a file in '{}': {}; name another folder by TMPDIR",
            folder.display(),
            system_text(&error)
        )
    })
}

impl Before for Overlay {
    fn run(&self) -> u8 {
        let format = match self.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let options = CreateOptions {
            format: Some("qcow2".into()),
            options: Vec::new(),
            backing: Some(self.below.clone().into()),
            backing_format: Some(format.into()),
            backing_unsafe: false,
            quiet: 1,
            output: OsString::from("human"),
            object: Vec::new(),
            words: vec![path_of_open(&self.file).into()],
        };
        let limits = LimitOptions {
            memory: None,
            ..self.limits.clone()
        };
        match create::run(&options, &limits) {
            Ok(code) => code,
            Err(error) => {
                Console::new(JobKind::Check, false, true).end_wrong(error.sentence.as_bytes())
            }
        }
    }
}
