//! `instar convert`: one or more images become another one.

mod options;
mod output;
pub mod snapshot;
mod target;
#[cfg(test)]
mod tests;

pub use options::{ConvertOptions, rate};
pub use output::{ConvertOutput, Shown};

use crate::cli::{self, FormatOptions, LimitOptions, UsageError};
use crate::create::options::NewFormat;
use crate::files::{
    Access, CONVERT, CONVERT_INTO, CONVERT_INTO_BITMAPS, Growth, InputFile, Reads, SecretRole,
};
use crate::image::{Image, Use};
use crate::keyring;
use crate::launch::{self, How};
use instar_shared::convert::{
    CONVERT_ANY_ORDER, CONVERT_BITMAPS, CONVERT_COMPRESS, CONVERT_COPY_RANGE, CONVERT_FILL,
    CONVERT_LOOK_ONLY, CONVERT_NO_CREATE, CONVERT_ONTO, CONVERT_QUIET, CONVERT_SALVAGE,
    CONVERT_SKIP_BROKEN_BITMAPS, CONVERT_TARGET_IS_ZERO, ConvertConfig,
};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use instar_vmm::operation::Threads;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use target::Target;

/// Threads for long reads and writes.
pub const IO_THREADS: u8 = 2;
/// vCPUs that compress or decompress beside the first, if the host has so many cores.
pub const FURTHER_VCPUS: u8 = 3;

/// What a command line asks for.
#[derive(Debug)]
struct Request {
    sources: Vec<Image>,
    config: ConvertConfig,
    /// What is made of them, or why nothing is.
    target: Result<Target, String>,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &ConvertOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    if let (false, Some(text)) = (options.no_create, target::help(options)?) {
        return Ok(crate::print(text));
    }
    let described = described_target(options)?;
    let options = described.as_ref().unwrap_or(options);
    let Request {
        sources,
        mut config,
        target,
    } = request(options)?;
    let mut inputs: Vec<InputFile> = sources
        .into_iter()
        .map(|image| source(image, options))
        .collect();
    let may_be_packed = inputs.iter().any(|input| input.access != Access::ReadRaw);
    let target_format = NewFormat::named(&options.target_format).unwrap_or(NewFormat::Raw);
    let mut refusal = None;
    let (mut secret, mut no_secret) = (None, None);
    let sources = inputs.len();
    match target {
        Ok(target) => {
            let key = target.key_secret().cloned();
            no_secret = keyring::missing(key.as_ref());
            target.add_to(&mut inputs, &mut config, limits);
            let slot = config.target_slot.get();
            secret = keyring::named(key.as_ref(), slot, SecretRole::New);
        }
        Err(sentence) => refusal = Some(sentence),
    }
    for made in inputs.iter_mut().skip(sources) {
        made.direct = cli::past_cache(options.target_cache.as_ref());
    }
    let shown = Shown {
        format,
        quiet: options.quiet,
        percent: options.progress,
        target: target_name(options).as_bytes().to_vec(),
        target_format: target_format.name(),
        doing: target::doing(target_format),
        rate: config.rate.get(),
        backing_slot: Some(config.backing_slot.get()).filter(|slot| *slot > 0),
        refusal,
        no_secret,
    };
    let output = ConvertOutput::new(shown);
    let threads = Threads {
        io: IO_THREADS,
        vcpus: if options.compress || may_be_packed {
            FURTHER_VCPUS
        } else {
            0
        },
    };
    let elf = match (options.no_create, target_format) {
        (true, NewFormat::Qcow2) => CONVERT_INTO,
        _ => CONVERT,
    };
    let add_bitmaps = options.bitmaps && std::ptr::eq(elf, CONVERT_INTO);
    let how = How {
        threads,
        sequel: add_bitmaps.then_some(CONVERT_INTO_BITMAPS),
        secrets: secret.into_iter().collect(),
        ..How::default()
    };
    launch::start_as(how, elf, config.as_bytes(), inputs, limits, output)
}

/// The options with the format that `--target-image-opts` describes.
fn described_target(options: &ConvertOptions) -> Result<Option<ConvertOptions>, UsageError> {
    if !options.target_image_opts || !options.no_create {
        return Ok(None);
    }
    if options.target_format != "raw" {
        return Err(UsageError::plain(
            "--image-opts and --format are mutually exclusive",
        ));
    }
    let name = target_name(options);
    let format = match Image::from_options(Use::Content, name)?.format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
        _ => {
            return Err(UsageError::plain(format!(
                "Could not open '{}': instar does not guess the format of what it writes; add driver=raw or \
                 driver=qcow2",
                name.display()
            )));
        }
    };
    let mut described = options.clone();
    described.target_format = OsString::from(format);
    Ok(Some(described))
}

/// A source as a job opens it.
fn source(image: Image, options: &ConvertOptions) -> InputFile {
    let raw = image.format == ImageFormat::Raw;
    let mut input = launch::to_read(image, Reads::Contents, options.force_share);
    input.direct = cli::past_cache(options.source_cache.as_ref());
    if raw {
        input.access = Access::ReadRaw;
    }
    input.growth = Growth::default();
    input
}

/// The last name.
fn target_name(options: &ConvertOptions) -> &OsStr {
    let last = options.files.last().map(OsString::as_os_str);
    last.unwrap_or_default()
}

fn request(options: &ConvertOptions) -> Result<Request, UsageError> {
    let manner = options.manner()?;
    let chosen = snapshot::choice(options.source_snapshot.as_deref())?;
    options.check_combination()?;
    let Some((_, names @ [_, ..])) = options.files.split_last() else {
        return Err(UsageError::plain("Must specify image file name"));
    };
    if options.no_create && !options.target_options.is_empty() {
        return Err(UsageError::plain(
            "-o has no effect when skipping image creation",
        ));
    }
    cli::cache_mode("source ", options.source_cache.as_ref())?;
    let how = FormatOptions {
        format: options.source_format.clone(),
        image_opts: options.source_image_opts,
        object: Vec::new(),
    };
    let sources = names
        .iter()
        .map(|name| Image::new(name, &how))
        .collect::<Result<Vec<Image>, UsageError>>()?;
    let mut config = ConvertConfig::zeroed();
    config
        .sources
        .set(u32::try_from(sources.len()).unwrap_or(u32::MAX));
    let format = sources.first().map_or(ImageFormat::Raw, |one| one.format);
    config.source_format.set(format.raw());
    config.sparse_bytes.set(manner.sparse_bytes);
    config.rate.set(manner.rate);
    config.max_bytes.set(u64::MAX);
    let name = target_name(options);
    let length = launch::fill(&mut config.target_name, name);
    config.target_name_len.set(length);
    chosen.put(&mut config);
    let target = Target::new(options, sources.len());
    let mut flags = flags(options, &manner);
    if target.is_err() {
        flags |= CONVERT_LOOK_ONLY;
    }
    config.flags.set(flags);
    Ok(Request {
        sources,
        config,
        target,
    })
}

/// What the options say, as bits.
fn flags(options: &ConvertOptions, manner: &options::Manner) -> u32 {
    // Without a look at the bytes the host may copy them, unless each read's failure counts.
    let unseen = manner.sparse_bytes == 0 && !options.compress && !options.salvage;
    [
        (options.compress, CONVERT_COMPRESS),
        (options.no_create, CONVERT_NO_CREATE),
        (options.no_create && options.backing.is_some(), CONVERT_ONTO),
        (options.target_is_zero, CONVERT_TARGET_IS_ZERO),
        (options.bitmaps, CONVERT_BITMAPS),
        (options.skip_broken_bitmaps, CONVERT_SKIP_BROKEN_BITMAPS),
        (options.salvage, CONVERT_SALVAGE),
        (manner.copy_range || unseen, CONVERT_COPY_RANGE),
        // One request at a time has an order.
        (options.oob_writes && manner.parallel > 1, CONVERT_ANY_ORDER),
        (manner.sparse_bytes == 0 && !manner.copy_range, CONVERT_FILL),
        (options.quiet, CONVERT_QUIET),
    ]
    .into_iter()
    .filter_map(|(set, bit)| set.then_some(bit))
    .fold(0, |all, bit| all | bit)
}
