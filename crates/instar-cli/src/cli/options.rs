//! The options of each command.

use clap::{ArgAction, Args};
use std::ffi::OsString;

/// How an image is opened.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Image")]
pub struct FormatOptions {
    /// Format of the image: raw or qcow2 (default: look at its first bytes)
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    pub format: Option<OsString>,
    /// FILE is a list of image options rather than a name
    #[arg(long)]
    pub image_opts: bool,
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<OsString>,
}

/// Options that name and open an image that others may be writing.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Image")]
pub struct ImageOptions {
    /// How it is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// Open the image even while another program writes to it
    #[arg(short = 'U', long)]
    pub force_share: bool,
    /// The image, a file or block device
    #[arg(value_name = "FILE")]
    pub files: Vec<OsString>,
}

/// Options of `info`.
#[derive(Args, Debug)]
pub struct InfoOptions {
    /// Show each image of the backing chain
    #[arg(short = 'b', long)]
    pub backing_chain: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Options of `check`.
#[derive(Args, Debug)]
pub struct CheckOptions {
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    pub cache: Option<OsString>,
    /// Repair what is wrong: leaks (the default, loses nothing) or all
    // The words before it have been put in order: see `words`.
    #[arg(short, long, value_name = "leaks|all")]
    pub repair: Option<OsString>,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Options of `compare`.
#[derive(Args, Debug)]
pub struct CompareOptions {
    /// Also compare the sizes, and where there is data
    #[arg(short, long)]
    pub strict: bool,
    /// Show how far it is
    #[arg(short, long)]
    pub progress: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<OsString>,
    /// Format of FILE1: raw or qcow2 (default: look at its first bytes)
    #[arg(
        short = 'f',
        long = "a-format",
        visible_alias = "left-format",
        value_name = "FMT",
        help_heading = "Image"
    )]
    pub a_format: Option<OsString>,
    /// Format of FILE2
    #[arg(
        short = 'F',
        long = "b-format",
        visible_alias = "right-format",
        value_name = "FMT",
        help_heading = "Image"
    )]
    pub b_format: Option<OsString>,
    /// FILE1 and FILE2 are lists of image options rather than names
    #[arg(long, help_heading = "Image")]
    pub image_opts: bool,
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT", help_heading = "Image")]
    pub object: Vec<OsString>,
    /// Open the images even while another program writes to them
    #[arg(short = 'U', long, help_heading = "Image")]
    pub force_share: bool,
    /// The images, files or block devices
    #[arg(value_name = "FILE1 FILE2", help_heading = "Image")]
    pub files: Vec<OsString>,
}

/// Options of `map`.
#[derive(Args, Debug)]
pub struct MapOptions {
    /// First byte of the disk to look at (default: 0)
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub start_offset: Option<OsString>,
    /// Bytes of the disk to look at (default: all)
    #[arg(short = 'l', long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub max_length: Option<OsString>,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Options of `create`.
#[derive(Args, Debug)]
pub struct CreateOptions {
    /// Format of the new image: raw or qcow2 (default: raw)
    #[arg(short, long, value_name = "FMT")]
    pub format: Option<OsString>,
    /// How it is made, as NAME=VALUE,...; '-o help' lists the names
    #[arg(
        short,
        long = "options",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub options: Vec<OsString>,
    /// Put it on top of this image, whose content it shows until it is written to
    #[arg(short, long, value_name = "FILE")]
    pub backing: Option<OsString>,
    /// Format of that image: raw or qcow2
    #[arg(short = 'F', long, value_name = "FMT")]
    pub backing_format: Option<OsString>,
    /// Do not open the image below
    #[arg(short = 'u', long)]
    pub backing_unsafe: bool,
    /// Print errors only
    #[arg(short, long, action = ArgAction::Count)]
    pub quiet: u8,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<OsString>,
    /// The new image, and its size
    #[arg(value_name = "FILE SIZE")]
    pub words: Vec<OsString>,
}

/// Options of `measure`.
#[derive(Args, Debug)]
pub struct MeasureOptions {
    /// Format of the new image: raw or qcow2 (default: raw)
    #[arg(
        short = 'O',
        long = "target-format",
        value_name = "FMT",
        default_value = "raw"
    )]
    pub target_format: OsString,
    /// How it would be made, as NAME=VALUE,...
    #[arg(
        short,
        long = "options",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub options: Vec<OsString>,
    /// Size of the disk, instead of an image
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub size: Option<OsString>,
    /// Snapshot of the image, by its ID or name
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    pub snapshot: Option<OsString>,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Open the image even while another program writes to it
    #[arg(short = 'U', long)]
    pub force_share: bool,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image whose content the new one would have
    #[arg(value_name = "FILE", help_heading = "Image")]
    pub files: Vec<OsString>,
}

/// Options of `snapshot`.
#[derive(Args, Debug)]
pub struct SnapshotOptions {
    /// List the snapshots; this is also what happens without an action
    #[arg(short, long, action = ArgAction::Count, help_heading = "Action")]
    pub list: u8,
    /// Make a snapshot of the disk as it is now
    #[arg(
        short,
        long,
        value_name = "NAME",
        allow_hyphen_values = true,
        help_heading = "Action"
    )]
    pub create: Vec<OsString>,
    /// Turn the disk back to a snapshot, named or by its ID
    #[arg(
        short,
        long,
        value_name = "NAME",
        allow_hyphen_values = true,
        help_heading = "Action"
    )]
    pub apply: Vec<OsString>,
    /// Delete a snapshot, named or by its ID
    #[arg(
        short,
        long,
        value_name = "NAME",
        allow_hyphen_values = true,
        help_heading = "Action"
    )]
    pub delete: Vec<OsString>,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Options of `resize`.
#[derive(Args, Debug)]
pub struct ResizeOptions {
    /// Allow a smaller size: what lies beyond it is lost
    #[arg(long)]
    pub shrink: bool,
    /// What to reserve for the new part: off, metadata, falloc or full
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub preallocation: Option<OsString>,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image, and its new size: a number with K, M, G, T, P or E, or with + or - before it the difference
    #[arg(value_name = "FILE SIZE", help_heading = "Image")]
    pub words: Vec<OsString>,
}

/// Options of `amend`.
#[derive(Args, Debug)]
pub struct AmendOptions {
    /// What to change, as NAME=VALUE,...; '-o help' lists the names
    #[arg(
        short,
        long = "options",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub options: Vec<OsString>,
    /// Show how far it is
    #[arg(short, long)]
    pub progress: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<OsString>,
    /// Allow changes that can lose an encryption key
    #[arg(long)]
    pub force: bool,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image, a file or block device
    #[arg(value_name = "FILE", help_heading = "Image")]
    pub files: Vec<OsString>,
}

/// Options of `bitmap`.
#[derive(Args, Debug)]
pub struct BitmapOptions {
    /// Make the bitmap; it records changes from now on
    #[arg(long, num_args = 0, default_missing_value = "", action = ArgAction::Append, help_heading = "Actions, in the order given")]
    pub add: Vec<OsString>,
    /// Remove the bitmap
    #[arg(long, num_args = 0, default_missing_value = "", action = ArgAction::Append, help_heading = "Actions, in the order given")]
    pub remove: Vec<OsString>,
    /// Forget all changes that it records
    #[arg(long, num_args = 0, default_missing_value = "", action = ArgAction::Append, help_heading = "Actions, in the order given")]
    pub clear: Vec<OsString>,
    /// Record changes from now on
    #[arg(long, num_args = 0, default_missing_value = "", action = ArgAction::Append, help_heading = "Actions, in the order given")]
    pub enable: Vec<OsString>,
    /// Record no changes from now on
    #[arg(long, num_args = 0, default_missing_value = "", action = ArgAction::Append, help_heading = "Actions, in the order given")]
    pub disable: Vec<OsString>,
    /// Add the changes that the bitmap SOURCE records
    #[arg(
        long,
        value_name = "SOURCE",
        allow_hyphen_values = true,
        help_heading = "Actions, in the order given"
    )]
    pub merge: Vec<OsString>,
    /// File with the bitmaps to merge (default: FILE itself)
    #[arg(short = 'b', long, value_name = "FILE")]
    pub source_file: Option<OsString>,
    /// Format of that file: raw or qcow2 (default: look at its first bytes)
    #[arg(short = 'F', long, value_name = "FMT")]
    pub source_format: Option<OsString>,
    /// With --add: bytes that one bit stands for, such as 64K
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub granularity: Option<OsString>,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image, and the bitmap's name
    #[arg(value_name = "FILE BITMAP", help_heading = "Image")]
    pub words: Vec<OsString>,
    /// What to do, in the order given.
    #[arg(skip)]
    pub actions: Vec<Action>,
}

/// One action of `bitmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `--add`
    Add,
    /// `--remove`
    Remove,
    /// `--clear`
    Clear,
    /// `--enable`
    Enable,
    /// `--disable`
    Disable,
    /// `--merge SOURCE`
    Merge(OsString),
}

impl Action {
    /// Its name as an option.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }

    /// The actions in the order in which they were typed.
    #[must_use]
    pub fn in_order(matches: &clap::ArgMatches) -> Vec<Self> {
        let plain = [
            Self::Add,
            Self::Remove,
            Self::Clear,
            Self::Enable,
            Self::Disable,
        ];
        let mut found = Vec::new();
        for action in plain {
            let indices = matches.indices_of(action.name()).into_iter().flatten();
            found.extend(indices.map(|index| (index, action.clone())));
        }
        let sources = matches.get_many::<OsString>("merge").into_iter().flatten();
        let indices = matches.indices_of("merge").into_iter().flatten();
        let merges = indices.zip(sources);
        found.extend(merges.map(|(index, source)| (index, Self::Merge(source.clone()))));
        found.sort_by_key(|(index, _)| *index);
        found.into_iter().map(|(_, action)| action).collect()
    }
}
