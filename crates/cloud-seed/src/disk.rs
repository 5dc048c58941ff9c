//! A small file system with some files in its root folder. ECMA-119, with Joliet and Rock Ridge.

use crate::SeedError;
use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use std::io::Cursor;
use std::sync::Arc;

/// Bytes of a sector.
const SECTOR: usize = 2048;
/// Sectors for everything but the contents: system area, volume descriptors, path tables and folders.
const OVERHEAD: usize = 150;

/// Writes a file system of this name with these files.
///
/// # Errors
/// [`SeedError::Disk`].
pub fn write(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, SeedError> {
    let contents: usize = files
        .iter()
        .map(|(_, bytes)| bytes.len().div_ceil(SECTOR))
        .fold(OVERHEAD, usize::saturating_add);
    let mut bytes = Cursor::new(vec![0; contents.saturating_mul(SECTOR)]);
    let files = files.iter().map(|(name, bytes)| File::File {
        name: Arc::new((*name).to_owned()),
        contents: bytes.to_vec(),
    });
    let input = InputFiles {
        path_separator: PathSeparator::ForwardSlash,
        files: files.collect(),
    };
    IsoImageWriter::create(&mut bytes, input, options(label))
        .map_err(|error| SeedError::Disk(error.to_string()))?;
    Ok(bytes.into_inner())
}

fn options(label: &str) -> IsoFormatOptions {
    IsoFormatOptions {
        volume_name: label.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: SECTOR,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 {
                supports_lowercase: false,
                supports_rrip: true,
            },
            joliet: Some(JolietLevel::Level3),
            rock_ridge: Some(RripOptions::default()),
            ..CreationFeatures::default()
        },
        path_separator: PathSeparator::ForwardSlash,
        strict_charset: false,
    }
}
