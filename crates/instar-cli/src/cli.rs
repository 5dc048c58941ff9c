//! The command line: options, their help, and the sentences for wrong use.

mod options;
mod values;
mod words;
mod wrong;

pub use options::{
    Action, AmendOptions, BitmapOptions, CheckOptions, CompareOptions, CreateOptions,
    FormatOptions, ImageOptions, InfoOptions, MapOptions, MeasureOptions, ResizeOptions,
    SnapshotOptions,
};
pub use values::{
    SIZE_LINES, allowed_folders, cache_mode, default_memory, output_format, past_cache,
    repair_mode, size_option,
};

use crate::persona;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;
use values::{parse_growth, parse_memory, parse_seconds};

/// Environment variable with folders that backing files may lie in, separated by colons.
pub const ALLOW_PATH_VARIABLE: &str = "INSTAR_ALLOW_PATH";

/// What the exit codes mean.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0    done
  1    it did not work: wrong use, an unreadable image, a limit
  2    check: the image is damaged; with --repair: damage is left
  3    check: clusters are leaked, the data is intact; with --repair: leaks are left
  63   check: the format has nothing to check
  130  interrupted (143: terminated)"
    };
}

const EXIT_CODES: &str = exit_codes!();

const EXAMPLES: &str = concat!(
    exit_codes!(),
    "

Examples:
  instar info --backing-chain --output json overlay.qcow2
  instar check disk.qcow2
  instar check --repair disk.qcow2
  instar snapshot -c before-upgrade disk.qcow2
  instar resize disk.qcow2 +10G
  instar amend -o compat=1.1,lazy_refcounts=on disk.qcow2
  instar bitmap --add disk.qcow2 backup-1"
);

const SNAPSHOT_HELP: &str = "\
Snapshots lie inside the image. Whatever happens on the way, the image is as
before or as asked for. Exit codes: 0 done, 1 it did not work.

Examples:
  instar snapshot disk.qcow2
  instar snapshot -c before-upgrade disk.qcow2
  instar snapshot -a before-upgrade disk.qcow2
  instar snapshot -d 3 disk.qcow2";

const COMPARE_HELP: &str = "\
What the guest would read counts, through both backing chains; beyond the end of
the shorter image the longer one must read as zeros. Exit codes: 0 the same,
1 different or wrong use, 2 an image could not be opened, 3 its tables or 4 its
data could not be read.

Examples:
  instar compare disk.qcow2 copy.raw
  instar compare -s -f qcow2 -F qcow2 disk.qcow2 copy.qcow2";

const COMMIT_HELP: &str = "\
The base gets what FILE holds, and its size if it is smaller; then FILE is emptied. At no
moment does FILE show anything else. Exit codes: 0 done, 1 it did not work.

Examples:
  instar commit overlay.qcow2
  instar commit -p -d overlay.qcow2
  instar commit -b base.qcow2 overlay.qcow2";

const MAP_HELP: &str = "\
The text form lists data that lies uncompressed at a place of a file; JSON lists
everything. Exit codes: 0 done, 1 it did not work.

Examples:
  instar map --output json disk.qcow2
  instar map --start-offset 1G --max-length 64M disk.qcow2";

const RESIZE_HELP: &str = "\
SIZE is in bytes unless K, M, G, T, P or E follows, each 1024 times the one
before. Exit codes: 0 done, 1 it did not work.

Examples:
  instar resize disk.qcow2 40G
  instar resize --preallocation=metadata disk.qcow2 +10G
  instar resize --shrink disk.qcow2 -5G
  instar resize -f raw disk.img 2T";

const AMEND_HELP: &str = "\
In a value, two commas stand for one. Exit codes: 0 done, 1 it did not work.

Examples:
  instar amend -f qcow2 -o help
  instar amend -o compat=0.10 disk.qcow2
  instar amend -p -o refcount_bits=64 disk.qcow2";

const DD_HELP: &str = "\
As in qemu-img, what is skipped counts as copied: count=4 skip=1 copies three
blocks. Exit codes: 0 done, 1 it did not work.

Examples:
  instar dd if=disk.qcow2 of=disk.img
  instar dd -O qcow2 bs=1M count=16 if=disk.img of=start.qcow2";

const CONVERT_HELP: &str = "\
A target that is made has its name when it is complete, and not before. Several
sources become one disk, one after the other. Exit codes: 0 done, 1 it did not work.

Examples:
  instar convert disk.qcow2 disk.img
  instar convert -p -c -O qcow2 -o compression_type=zstd disk.img disk.qcow2
  instar convert -O qcow2 -B base.qcow2 -F qcow2 overlay.qcow2 copy.qcow2
  instar convert -l before-upgrade -O qcow2 disk.qcow2 old.qcow2
  instar convert -n -O raw disk.qcow2 /dev/sdb";

const CREATE_HELP: &str = "\
SIZE is in bytes unless K, M, G, T, P or E follows; it may be left out if there is
a backing file. A file that exists is replaced by one that is complete. Exit codes:
0 done, 1 it did not work.

Examples:
  instar create -f qcow2 disk.qcow2 40G
  instar create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
  instar create -f qcow2 -o cluster_size=2M,preallocation=metadata disk.qcow2 1T
  instar create -f qcow2 -o help";

const MEASURE_HELP: &str = "\
Gives the length of the file with the content that there is, and with content
everywhere. Exit codes: 0 done, 1 it did not work.

Examples:
  instar measure -O qcow2 --size 40G
  instar measure -O qcow2 -o cluster_size=2M disk.img";

const BENCH_HELP: &str = "\
Each request starts one step after the one before, and at the end of the disk they
start over. With -w the image's content is overwritten. Exit codes: 0 done, 1 it did
not work.

Examples:
  instar bench disk.qcow2
  instar bench -c 1000 -d 1 -s 1M disk.qcow2
  instar bench -w -d 8 --pattern 0x55 --flush-interval 64 -f raw scratch.img";

const REBASE_HELP: &str = "\
What the image shows stays as it is: where the new backing file shows something
else, the image gets it itself. BACKING is relative to the image's folder; with ''
the image stands alone afterwards. Exit codes: 0 done, 1 it did not work.

Examples:
  instar rebase -b base-2.qcow2 -F qcow2 overlay.qcow2
  instar rebase -c -b '' overlay.qcow2
  instar rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2";

const BOOTSCAN_HELP: &str = "\
Reads partition tables, ext2 to ext4, FAT, XFS and btrfs, and the configurations of
GRUB, systemd-boot (boot loader specification), extlinux and syslinux. Exit codes:
0 something can be booted, 1 nothing can, or it did not work.

Examples:
  instar bootscan disk.qcow2
  instar bootscan --output json disk.img
  instar bootscan --entry '1>2' --extract-kernel vmlinuz --extract-initrd initrd disk.qcow2";

const BITMAP_HELP: &str = "\
All actions are on the bitmap BITMAP. Exit codes: 0 done, 1 it did not work.

Examples:
  instar bitmap --add -g 64K disk.qcow2 backup-1
  instar bitmap --add --merge day-1 --merge day-2 disk.qcow2 week
  instar bitmap --merge day-1 -b snapshot.qcow2 disk.qcow2 week
  instar bitmap --remove disk.qcow2 day-1";

/// Inspects, repairs and changes disk images without trusting them: each command works on
/// the image in a small virtual machine of its own, and nothing on the host parses it.
#[derive(Debug, Parser)]
#[command(name = "instar", version, after_help = EXAMPLES, infer_long_args = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to trace: taken as qemu-img takes it, without effect
    #[arg(short = 'T', long, value_name = "TRACE", hide = true)]
    pub trace: Vec<OsString>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitOptions,
    /// What `--object` of the command was given, in order.
    #[arg(skip)]
    pub objects: Vec<OsString>,
}

/// The commands. Only the options of the one that is named are made.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Show what an image is: format, sizes, backing file, snapshots
    #[command(after_help = EXIT_CODES, args_override_self = true, override_usage = "instar info [OPTIONS] FILE")]
    Info(InfoOptions),
    /// Look for damage in an image's tables, and repair it if asked to
    #[command(after_help = EXIT_CODES, args_override_self = true, override_usage = "instar check [OPTIONS] [--repair [leaks|all]] FILE")]
    Check(CheckOptions),
    /// Compare the content of two images
    #[command(after_help = COMPARE_HELP, args_override_self = true, override_usage = "instar compare [OPTIONS] FILE1 FILE2")]
    Compare(CompareOptions),
    /// Show where the parts of a disk lie, through its backing chain
    #[command(after_help = MAP_HELP, args_override_self = true, override_usage = "instar map [OPTIONS] FILE")]
    Map(MapOptions),
    /// List, make, apply and delete the snapshots inside an image
    #[command(after_help = SNAPSHOT_HELP, args_override_self = true, override_usage = "instar snapshot [OPTIONS] [-l | -c NAME | -a NAME | -d NAME] FILE")]
    Snapshot(SnapshotOptions),
    /// Make an image larger or smaller
    #[command(after_help = RESIZE_HELP, args_override_self = true, override_usage = "instar resize [OPTIONS] FILE [+|-]SIZE")]
    Resize(ResizeOptions),
    /// Change an image's version, refcount width and other properties
    #[command(after_help = AMEND_HELP, args_override_self = true, override_usage = "instar amend [OPTIONS] -o NAME=VALUE,... FILE")]
    Amend(AmendOptions),
    /// Make, remove, merge and switch the bitmaps that record changes
    #[command(after_help = BITMAP_HELP, args_override_self = true, override_usage = "instar bitmap [OPTIONS] ACTION... FILE BITMAP")]
    Bitmap(BitmapOptions),
    /// Put what an image holds into the image below it
    #[command(after_help = COMMIT_HELP, args_override_self = true, override_usage = "instar commit [OPTIONS] FILE")]
    Commit(Box<crate::commit::CommitOptions>),
    /// Copy images into another one, of another format if you like
    #[command(after_help = CONVERT_HELP, args_override_self = true, override_usage = "instar convert [OPTIONS] SOURCE... TARGET")]
    Convert(Box<crate::convert::ConvertOptions>),
    /// Copy a part of an image, or all of it, into another one, with its zeros
    #[command(after_help = DD_HELP, args_override_self = true, override_usage = "instar dd [OPTIONS] if=INPUT of=OUTPUT [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]")]
    Dd(crate::dd::DdOptions),
    /// Measure how fast an image takes requests
    #[command(after_help = BENCH_HELP, args_override_self = true, override_usage = "instar bench [OPTIONS] FILE")]
    Bench(Box<crate::bench::BenchOptions>),
    /// Put an image onto another backing file
    #[command(after_help = REBASE_HELP, args_override_self = true, override_usage = "instar rebase [OPTIONS] -b BACKING FILE")]
    Rebase(Box<crate::rebase::RebaseOptions>),
    /// Make an empty image
    #[command(after_help = CREATE_HELP, args_override_self = true, override_usage = "instar create [OPTIONS] FILE [SIZE]")]
    Create(Box<CreateOptions>),
    /// Say how much space an image would take
    #[command(after_help = MEASURE_HELP, args_override_self = true, override_usage = "instar measure [OPTIONS] --size SIZE | FILE")]
    Measure(Box<MeasureOptions>),
    /// Start a Linux guest in a virtual machine
    #[cfg(target_arch = "x86_64")]
    #[command(after_help = crate::run::HELP, args_override_self = true, override_usage = "instar run [OPTIONS] IMAGE | --kernel FILE")]
    Run(Box<crate::run::RunOptions>),
    /// Serve a disk to the guest of another program (vhost-user-blk)
    #[cfg(target_arch = "x86_64")]
    #[command(after_help = crate::serve::HELP, args_override_self = true, override_usage = "instar serve [OPTIONS] --socket PATH FILE")]
    Serve(Box<crate::serve::ServeOptions>),
    /// Show what a disk boots, as its boot loader would choose
    #[command(after_help = BOOTSCAN_HELP, args_override_self = true, override_usage = "instar bootscan [OPTIONS] FILE")]
    Bootscan(Box<crate::bootscan::BootscanOptions>),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions(crate::papers::CompletionsOptions),
    /// Write the manual pages
    #[command(hide = true)]
    Manual(crate::papers::ManualOptions),
}

/// Names of the commands that `qemu-img` does not have.
pub const OWN_COMMANDS: [&str; 5] = ["run", "serve", "bootscan", "completions", "manual"];

/// Limits and permissions of the virtual machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Most memory the operation may use, such as 512M (default: half of what is free, at most 8G)
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// Stop after this many seconds (default: no limit)
    #[arg(long, global = true, value_name = "SECS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Most that a change may add to a file's length, such as 1G (default: what the command needs)
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_growth)]
    pub max_growth: Option<u64>,
    /// Also allow backing files in this folder (also INSTAR_ALLOW_PATH=DIR:DIR)
    #[arg(long, global = true, value_name = "DIR")]
    pub allow_path: Vec<PathBuf>,
}

/// A wrong use of the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    /// What is wrong.
    pub sentence: String,
    /// Whether the command's help would make it clear.
    pub help: bool,
    /// The command whose options are wrong, empty before a command: its name stands before the sentence.
    pub of_command: Option<String>,
}

impl UsageError {
    /// An error that the help would have prevented.
    #[must_use]
    pub fn with_help(sentence: impl Into<String>) -> Self {
        Self {
            sentence: words::without_marks(&sentence.into()),
            help: true,
            of_command: None,
        }
    }

    /// An error that says everything itself.
    #[must_use]
    pub fn plain(sentence: impl Into<String>) -> Self {
        Self {
            sentence: words::without_marks(&sentence.into()),
            help: false,
            of_command: None,
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for and is printed here.
    Print(String),
    /// The command line is wrong.
    Wrong(UsageError),
}

/// Reads the command line.
///
/// # Errors
/// Text to print instead, or what is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let typed: Vec<OsString> = arguments.into_iter().collect();
    if words::asks_for_trace_events(&typed) {
        // There are none.
        return Err(Stop::Print(String::new()));
    }
    let marked = words::with_marked_sizes(&typed);
    let (all, taken) = words::with_repair_values(&marked, None);
    let mut cli = parse_words(all)?;
    if taken > 0 && matches!(&cli.command, Command::Check(check) if check.image.files.is_empty()) {
        // The word was the file's name after all.
        cli = parse_words(words::with_repair_values(&marked, taken.checked_sub(1)).0)?;
    }
    match &mut cli.command {
        Command::Check(check) if check.image.files.len() > 1 => {
            if let Some(value) = words::wrong_repair(&marked) {
                repair_mode(Some(&value.to_owned())).map_err(Stop::Wrong)?;
            }
        }
        Command::Resize(resize) => unmark_size(resize).map_err(Stop::Wrong)?,
        _ => {}
    }
    Ok(cli)
}

fn parse_words(words: Vec<OsString>) -> Result<Cli, Stop> {
    let parsed = Cli::command()
        .try_get_matches_from(words.iter())
        .and_then(|matches| {
            if let Some((name, _)) = matches.subcommand() {
                known_to_qemu_img(name)?;
            }
            let mut cli = Cli::from_arg_matches(&matches)?;
            cli.objects = objects(&matches);
            if let (Command::Bitmap(bitmap), Some((_, matches))) =
                (&mut cli.command, matches.subcommand())
            {
                bitmap.actions = Action::in_order(matches);
            }
            Ok(cli)
        });
    parsed.map_err(|error| {
        use clap::error::ErrorKind;
        let program = Cli::command();
        let typed = wrong::command_of(&program, &words);
        let error = typed
            .and_then(|command| known_to_qemu_img(command.get_name()).err())
            .unwrap_or(error);
        match error.kind() {
            ErrorKind::DisplayHelp => Stop::Print(persona::printed(help(&error, &words), false)),
            ErrorKind::DisplayVersion => Stop::Print(persona::printed(error.to_string(), true)),
            ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Stop::Wrong(UsageError::with_help("Not enough arguments"))
            }
            ErrorKind::InvalidSubcommand => Stop::Wrong(UsageError::with_help(format!(
                "Command not found: {}",
                invalid_subcommand(&error)
            ))),
            _ => Stop::Wrong(wrong::sentence(&error, &whole_program(), &words)),
        }
    })
}

/// The program with the options of all commands; parsing makes those of one.
#[must_use]
pub fn whole_program() -> clap::Command {
    let mut program = Cli::command();
    let abouts: Vec<_> = program
        .get_subcommands()
        .map(|command| command.get_about().cloned().unwrap_or_default())
        .collect();
    // What documents a command's options takes the place of what the command is about.
    program.build();
    let mut abouts = abouts.into_iter();
    program.mut_subcommands(|command| {
        let hidden = command.is_hide_set() || known_to_qemu_img(command.get_name()).is_err();
        command
            .about(abouts.next().unwrap_or_default())
            .hide(hidden)
    })
}

/// The help that `words` ask for, which `error` holds for a command whose options came late.
fn help(error: &clap::Error, words: &[OsString]) -> String {
    match whole_program().try_get_matches_from(words) {
        Err(complete) if complete.kind() == error.kind() => complete.to_string(),
        _ => error.to_string(),
    }
}

/// As `qemu-img`, there are no commands but its own.
fn known_to_qemu_img(name: &str) -> Result<(), clap::Error> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !persona::is_qemu_img() || !OWN_COMMANDS.contains(&name) {
        return Ok(());
    }
    let mut error = clap::Error::new(ErrorKind::InvalidSubcommand);
    error.insert(
        ContextKind::InvalidSubcommand,
        ContextValue::String(name.to_owned()),
    );
    Err(error)
}

/// What `--object` was given.
fn objects(matches: &clap::ArgMatches) -> Vec<OsString> {
    let command = matches.subcommand().map(|(_, matches)| matches);
    let values = command.and_then(|matches| matches.try_get_many("object").ok()?);
    values.into_iter().flatten().cloned().collect()
}

/// The name of the command that `words`, the program's own name first, name.
#[must_use]
pub fn command_name(words: &[OsString]) -> Option<String> {
    let program = Cli::command();
    let name = wrong::command_of(&program, words)?.get_name();
    known_to_qemu_img(name).is_ok().then(|| name.to_owned())
}

/// Takes the mark off the size; where else it stands, the word is an option that does not exist.
fn unmark_size(resize: &mut ResizeOptions) -> Result<(), UsageError> {
    for (index, word) in resize.words.iter_mut().enumerate() {
        let Some(size) = words::unmarked(word).map(OsStr::to_owned) else {
            continue;
        };
        if index != 1 {
            let option = size.display();
            let letter = option.to_string().chars().nth(1).unwrap_or_default();
            return Err(UsageError {
                of_command: Some("resize".to_owned()),
                ..UsageError::with_help(format!("invalid option -- '{letter}'"))
            });
        }
        *word = size;
    }
    Ok(())
}

fn invalid_subcommand(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => name.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
