//! `instar dd`: a part of an image, or all of it, becomes another one.

use crate::cli::{FormatOptions, LimitOptions, UsageError};
use crate::convert::{ConvertOutput, FURTHER_VCPUS, IO_THREADS, Shown};
use crate::create::options::{NewFormat, NewOptions};
use crate::files::{Access, CONVERT, Layout, Reads};
use crate::image::{self, Image};
use crate::info::Format;
use crate::launch::{self, NewFile};
use crate::quantity::{self, QuantityError};
use clap::Args;
use instar_shared::convert::{
    CONVERT_COPY_RANGE, CONVERT_DD, CONVERT_FILL, CONVERT_LOOK_ONLY, ConvertConfig,
};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use instar_vmm::operation::Threads;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Largest number of blocks.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();
/// Largest block, in bytes.
const MAX_BLOCK_BYTES: u64 = 0x7fff_ffff;
/// Block size where it is not given, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Options of `dd`.
#[derive(Args, Debug, Default)]
pub struct DdOptions {
    /// Format of the input: raw or qcow2 (default: look at its first bytes)
    #[arg(
        short = 'f',
        long = "format",
        value_name = "FMT",
        allow_hyphen_values = true
    )]
    pub format: Option<OsString>,
    /// Format of the output: raw or qcow2
    #[arg(
        short = 'O',
        long,
        value_name = "FMT",
        allow_hyphen_values = true,
        default_value = "raw"
    )]
    pub output_format: OsString,
    /// INPUT is a list of image options rather than a name
    #[arg(long)]
    pub image_opts: bool,
    /// Read the input even while another program writes to it
    #[arg(short = 'U', long)]
    pub force_share: bool,
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<OsString>,
    /// if=INPUT, of=OUTPUT, bs=SIZE of a block (default: 512), count=BLOCKS, skip=BLOCKS
    #[arg(value_name = "NAME=VALUE")]
    pub operands: Vec<OsString>,
}

/// What the operands say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Operands {
    input: Option<OsString>,
    output: Option<OsString>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The operands do not go together, or ask for what is not there.
pub fn run(options: &DdOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let operands = Operands::read(&options.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(UsageError::plain(
            "Must specify both input and output files",
        ));
    };
    let how = FormatOptions {
        format: options.format.clone(),
        image_opts: options.image_opts,
        object: Vec::new(),
    };
    let source = Image::new(input, &how)?;
    let format = NewFormat::named(&options.output_format)
        .ok_or_else(|| UsageError::plain("Unknown file format"))?;
    let mut config = config(&operands, &source, format, input, output)?;
    let refusal = image::unknown_protocol(output);
    let file = NewFile {
        path: PathBuf::from(output),
        raw: format == NewFormat::Raw,
        durable: false,
        layout: Layout::USUAL,
    };
    let mut inputs = vec![launch::to_read(
        source,
        Reads::Contents,
        options.force_share,
    )];
    let may_be_packed = inputs.iter().any(|input| input.access != Access::ReadRaw);
    if refusal.is_none() {
        inputs.push(launch::to_create(file, limits));
    } else {
        config.flags.set(config.flags.get() | CONVERT_LOOK_ONLY);
    }
    let shown = Shown {
        format: Format::Human,
        quiet: false,
        percent: false,
        target: output.as_bytes().to_vec(),
        target_format: format.name(),
        doing: "error while creating output image: ",
        rate: 0,
        backing_slot: None,
        refusal,
        no_secret: None,
    };
    let output = ConvertOutput::new(shown);
    let threads = Threads {
        io: IO_THREADS,
        vcpus: if may_be_packed { FURTHER_VCPUS } else { 0 },
    };
    launch::start_on(threads, CONVERT, config.as_bytes(), inputs, limits, output)
}

fn config(
    operands: &Operands,
    source: &Image,
    format: NewFormat,
    input: &OsStr,
    output: &OsStr,
) -> Result<ConvertConfig, UsageError> {
    let mut config = ConvertConfig::zeroed();
    let options = NewOptions::new(format, None).map_err(UsageError::plain)?;
    options.put(&mut config.options);
    config.sources.set(1);
    config.target_slot.set(1);
    config.source_format.set(source.format.raw());
    config.target_format.set(
        match format {
            NewFormat::Raw => ImageFormat::Raw,
            NewFormat::Qcow2 => ImageFormat::Qcow2,
        }
        .raw(),
    );
    config
        .flags
        .set(CONVERT_DD | CONVERT_FILL | CONVERT_COPY_RANGE);
    let block = operands.block.unwrap_or(BLOCK_BYTES);
    let bytes = |blocks: Option<u64>| blocks.map(|blocks| blocks.saturating_mul(block));
    config.skip_bytes.set(bytes(operands.skip).unwrap_or(0));
    config
        .max_bytes
        .set(bytes(operands.count).unwrap_or(u64::MAX));
    let length = launch::fill(&mut config.target_name, output);
    config.target_name_len.set(length);
    let length = launch::fill(&mut config.source_name, input);
    config.source_name_len.set(length);
    Ok(config)
}

impl Operands {
    /// Reads the operands in order; the last of a name counts.
    fn read(words: &[OsString]) -> Result<Self, UsageError> {
        let mut operands = Self::default();
        for word in words {
            let bytes = word.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=');
            let (name, value) = bytes.split_at(at.unwrap_or(bytes.len()));
            let text = OsStr::from_bytes(value.get(1..).unwrap_or_default());
            match name {
                _ if at.is_none() => return Err(unknown(name)),
                b"if" => operands.input = Some(text.to_owned()),
                b"of" => operands.output = Some(text.to_owned()),
                b"bs" => {
                    let size = quantity::size(text.as_bytes());
                    operands.block = Some(within("bs", text, size, 1..=MAX_BLOCK_BYTES)?);
                }
                b"count" => operands.count = Some(number("count", text)?),
                b"skip" => operands.skip = Some(number("skip", text)?),
                _ => return Err(unknown(name)),
            }
        }
        Ok(operands)
    }
}

fn unknown(name: &[u8]) -> UsageError {
    let name = OsStr::from_bytes(name).display();
    UsageError::plain(format!("unrecognized operand {name}"))
}

fn number(name: &str, text: &OsStr) -> Result<u64, UsageError> {
    within(
        name,
        text,
        quantity::number(text.as_bytes()),
        0..=MAX_NUMBER,
    )
}

/// A value within its limits.
///
/// # Errors
/// It is none, or outside of them.
pub fn within(
    name: &str,
    text: &OsStr,
    value: Result<u64, QuantityError>,
    limits: std::ops::RangeInclusive<u64>,
) -> Result<u64, UsageError> {
    match value {
        Ok(value) if limits.contains(&value) => Ok(value),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid {name} specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid {name} specified. Must be between {} and {}.",
            limits.start(),
            limits.end()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Operands, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Operands::read(&words).map_err(|error| error.sentence)
    }

    #[test]
    fn operands_are_read_in_any_order_and_the_last_counts() {
        let operands = read(&["bs=1.5k", "if=a=b", "count=0x10", "skip=1", "of=c", "bs=1M"]);
        let expected = Operands {
            input: Some("a=b".into()),
            output: Some("c".into()),
            block: Some(1 << 20),
            count: Some(16),
            skip: Some(1),
        };
        assert_eq!(operands, Ok(expected));
    }

    #[test]
    fn wrong_operands_are_refused_in_the_words_of_qemu_img() {
        for (word, sentence) in [
            ("bs=x", "Invalid bs specified: 'x'."),
            ("bs=", "Invalid bs specified: ''."),
            (
                "bs=0",
                "Invalid bs specified. Must be between 1 and 2147483647.",
            ),
            (
                "bs=3G",
                "Invalid bs specified. Must be between 1 and 2147483647.",
            ),
            ("count=1M", "Invalid count specified: '1M'."),
            (
                "count=-1",
                "Invalid count specified. Must be between 0 and 9223372036854775807.",
            ),
            (
                "skip=99999999999999999999",
                "Invalid skip specified. Must be between 0 and 9223372036854775807.",
            ),
            ("foo=1", "unrecognized operand foo"),
            ("foo", "unrecognized operand foo"),
        ] {
            assert_eq!(read(&[word]), Err(sentence.to_owned()), "{word}");
        }
    }
}
