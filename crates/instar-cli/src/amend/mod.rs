//! `instar amend`: other values for the options that an image was made with.
//!
//! QEMU opens the image before it reads the options. So does this command: options that are wrong
//! run the operation with nothing to do, and are refused when it has ended.

mod keys;
mod options;

pub use options::{CREATION_ONLY_LINE, Kind, OptionList, Value};

use crate::cli::{self, AmendOptions, LimitOptions, UsageError};
use crate::edit::{EditOutput, Ending, Shown};
use crate::files::{AMEND, AMEND_FULL, Growth, Secret, SecretRole};
use crate::image::{self, Image};
use crate::keyring;
use crate::launch::{self, How};
use instar_shared::edit::{AMEND_SIZE, AmendConfig};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use keys::KeyOptions;
use options::Amendment;
use std::ffi::OsStr;

/// What `-o help` prints.
const OPTIONS_HELP: &str = "\
Amend options for 'qcow2':
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])
  data_file=<str>        - File name of an external data file
  data_file_raw=<bool (on/off)> - The external data file must stay valid as a raw image
  encrypt.iter-time=<num> - Time to spend in PBKDF in milliseconds
  encrypt.keyslot=<num>  - Select a single keyslot to modify explicitly
  encrypt.new-secret=<str> - New secret to set in the matching keyslots. Empty string to erase
  encrypt.old-secret=<str> - Select all keyslots that match this password
  encrypt.state=<str>    - Select new state of affected keyslots (active/inactive)
  lazy_refcounts=<bool (on/off)> - Postpone refcount updates
  refcount_bits=<num>    - Width of a reference count entry in bits
  size=<size>            - Virtual disk size
";

/// What the command line asks for.
#[derive(Debug)]
enum Request {
    /// A text, without any image.
    Help,
    /// An operation.
    Run {
        image: Box<Image>,
        amendment: Box<Amendment>,
        ending: Ending,
        /// Secrets of key slots, and what the operation's sentence about a missing one means.
        secrets: Vec<Secret>,
        no_secret: Option<String>,
    },
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &AmendOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let (image, amendment, ending, secrets, no_secret) = match request(options)? {
        Request::Help => return Ok(crate::print(OPTIONS_HELP)),
        Request::Run {
            image,
            amendment,
            ending,
            secrets,
            no_secret,
        } => (*image, amendment, ending, secrets, no_secret),
    };
    let shown = Shown {
        format,
        quiet: options.quiet,
        percent: options.progress,
        raw_warnings: usize::from(image.format == ImageFormat::Probe),
        ending,
        fields: Vec::new(),
        no_secret,
    };
    let config: AmendConfig = amendment.config(image.format);
    let mut input = launch::to_change(image, Growth::Unlimited, limits);
    input.direct = cli::past_cache(options.cache.as_ref());
    let output = EditOutput::new(shown);
    let how = How {
        secrets,
        ..How::default()
    };
    // The one without the code for another size would only find out that it lacks it.
    let elf = if config.given.get() & AMEND_SIZE == 0 {
        AMEND
    } else {
        AMEND_FULL
    };
    launch::start_as(how, elf, config.as_bytes(), vec![input], limits, output)
}

fn request(options: &AmendOptions) -> Result<Request, UsageError> {
    let list = OptionList::new(&options.options).map_err(UsageError::plain)?;
    let Some(list) = list else {
        return Err(UsageError::with_help("Must specify options (-o)"));
    };
    let wants_help = list.wants_help();
    if let (Some(format), true) = (&options.how.format, wants_help) {
        return help_for(format);
    }
    let [file] = options.files.as_slice() else {
        return Err(UsageError::plain("Expecting one image file name"));
    };
    cli::cache_mode("", options.cache.as_ref())?;
    let image = Image::new(file, &options.how)?;
    let (mut amendment, mut ending) = if wants_help {
        (Amendment::default(), Ending::Text(OPTIONS_HELP))
    } else {
        judged(&list)
    };
    let (mut secrets, mut no_secret) = (Vec::new(), None);
    if amendment.changes_keys() {
        let keys = KeyOptions::new(&list);
        let judged = keys.judge(options.force);
        if ending == Ending::Silent {
            amendment.keys = judged.change;
            if let Some(sentence) = judged.refusal {
                let started = true;
                ending = Ending::Refusal { sentence, started };
            }
        }
        no_secret = judged.no_secret;
        let uses = [
            (&keys.new_secret, SecretRole::New),
            (&keys.old_secret, SecretRole::Old),
        ];
        let uses = uses.into_iter();
        secrets = uses
            .filter_map(|(id, role)| keyring::named(id.as_ref(), 0, role))
            .collect();
    }
    Ok(Request::Run {
        image: Box::new(image),
        amendment: Box::new(amendment),
        ending,
        secrets,
        no_secret,
    })
}

/// What the options ask for, and what is said at the end.
fn judged(list: &OptionList) -> (Amendment, Ending) {
    match list.read() {
        // A wrong level comes to light only after options about keys.
        Ok(amendment) => match amendment.wrong_level() {
            Some(sentence) => (
                // Whether the image has keys counts before.
                amendment.keys_alone(),
                Ending::Refusal {
                    sentence,
                    started: true,
                },
            ),
            None => (amendment, Ending::Silent),
        },
        Err(sentence) => (
            Amendment::default(),
            Ending::Refusal {
                sentence,
                started: false,
            },
        ),
    }
}

/// Answers `-o help` for a format that is given.
fn help_for(format: &OsStr) -> Result<Request, UsageError> {
    match format.to_str() {
        Some("qcow2") => Ok(Request::Help),
        Some("luks") => Err(UsageError::plain(
            "instar does not change the keys of LUKS images yet",
        )),
        Some(known) if known == "raw" || image::is_foreign_format(known) => Err(UsageError::plain(
            format!("Format driver '{known}' does not support option amendment"),
        )),
        _ => Err(UsageError::plain(format!(
            "Unknown file format '{}'",
            format.display()
        ))),
    }
}

#[cfg(test)]
mod tests;
