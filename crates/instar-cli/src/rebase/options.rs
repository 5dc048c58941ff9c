//! The options of `rebase`.

use crate::cli::FormatOptions;
use clap::Args;
use std::ffi::OsString;

/// Options of `rebase`.
#[derive(Args, Debug, Default)]
pub struct RebaseOptions {
    /// The new backing file, as it is to stand in the image; empty for none
    #[arg(
        short = 'b',
        long,
        value_name = "BACKING",
        allow_hyphen_values = true,
        help_heading = "Backing file"
    )]
    pub backing: Option<OsString>,
    /// Its format: raw or qcow2
    #[arg(
        short = 'F',
        long,
        value_name = "FMT",
        allow_hyphen_values = true,
        help_heading = "Backing file"
    )]
    pub backing_format: Option<OsString>,
    /// Cache mode of the backing files, as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(
        short = 'T',
        long,
        value_name = "MODE",
        allow_hyphen_values = true,
        help_heading = "Backing file"
    )]
    pub backing_cache: Option<OsString>,
    /// Only change the name: the image then shows whatever lies below the new one
    #[arg(short = 'u', long, help_heading = "Backing file")]
    pub backing_unsafe: bool,
    /// Read the new backing file even while another program writes to it
    #[arg(short = 'U', long, help_heading = "Backing file")]
    pub force_share: bool,
    /// Compress what is copied into the image
    #[arg(short, long)]
    pub compress: bool,
    /// Show how far it is
    #[arg(short, long)]
    pub progress: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// Cache mode of the image, as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<OsString>,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image, a file or block device
    #[arg(value_name = "FILE", help_heading = "Image")]
    pub files: Vec<OsString>,
}
