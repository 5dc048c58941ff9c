//! The create operation: a new, empty image, encrypted or not.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backing;

use instar_guest_ops::{AnnounceError, Context};
use instar_plan_create::{CreateError, NewImage, Options, Spec, create_raw, measure};
use instar_shared::create::{
    CREATE_HAS_BACKING, CREATE_LOOK_ONLY, CREATE_SIZE_GIVEN, CreateConfig, CreateResult,
};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use instar_storage::Errno;
use op_chain::Reported;
use op_output::{Encrypt, Watch, options, preallocation};

/// The sector, in bytes: sizes are multiples of it.
const SECTOR: u64 = 512;

/// Does what the host's [`CreateConfig`] says, and tells the host how it went. What is to be encrypted is left to
/// `encrypt`.
pub fn run(ctx: &mut Context, encrypt: &impl Encrypt) {
    let config: CreateConfig = ctx.config();
    let mut result = CreateResult::zeroed();
    let outcome = make(ctx, &config, &mut result, encrypt).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn make(
    ctx: &mut Context,
    config: &CreateConfig,
    result: &mut CreateResult,
    encrypt: &impl Encrypt,
) -> Result<Outcome, Reported> {
    let has = |flag: u32| config.flags.get() & flag != 0;
    let below = if has(CREATE_HAS_BACKING) {
        Some(backing::open(ctx, config)?)
    } else {
        None
    };
    let size = match below {
        Some(size) if !has(CREATE_SIZE_GIVEN) => size,
        _ => config.size.get(),
    };
    result.size.set(size);
    if !has(CREATE_SIZE_GIVEN) {
        ctx.records().line(format_args!("{size}"));
    }
    if has(CREATE_LOOK_ONLY) {
        return Ok(Outcome::Done);
    }
    let made = match ImageFormat::try_from(config.target_format.get()) {
        Ok(ImageFormat::Raw) => raw(ctx, config, size),
        Ok(ImageFormat::Qcow2) => qcow2(ctx, config, size, encrypt),
        _ => Err(Stop::Nonsense),
    };
    match made {
        Ok(()) => Ok(Outcome::Done),
        Err(Stop::Create(CreateError::Cancelled)) => Ok(Outcome::Cancelled),
        Err(Stop::Create(error)) => Err(failed(ctx, format_args!("{error}"))),
        Err(Stop::Host(errno)) => Err(failed(ctx, format_args!("{}", Errno(errno)))),
        Err(Stop::Nonsense) => Err(Reported),
    }
}

/// Why nothing was made.
enum Stop {
    Create(CreateError),
    /// The host does not let it begin; the errno.
    Host(u32),
    /// The config makes no sense.
    Nonsense,
}

impl From<CreateError> for Stop {
    fn from(e: CreateError) -> Self {
        Self::Create(e)
    }
}

impl From<AnnounceError> for Stop {
    fn from(e: AnnounceError) -> Self {
        match e {
            AnnounceError::Host(errno) => Self::Host(errno),
            AnnounceError::Invalid => Self::Nonsense,
        }
    }
}

fn failed(ctx: &mut Context, sentence: core::fmt::Arguments<'_>) -> Reported {
    ctx.records().failure(FailureKind::Operation, 0, sentence);
    Reported
}

fn raw(ctx: &mut Context, config: &CreateConfig, size: u64) -> Result<(), Stop> {
    let slot = slot(config.target_slot.get())?;
    let image = ctx.disk(slot).map_err(|_| Stop::Nonsense)?;
    let preallocation = preallocation(&config.options).ok_or(Stop::Nonsense)?;
    let size = size.checked_next_multiple_of(SECTOR).unwrap_or(size);
    ctx.announce_size(slot, size)?;
    Ok(create_raw(&image, size, preallocation, &mut Watch(ctx))?)
}

fn qcow2(
    ctx: &mut Context,
    config: &CreateConfig,
    size: u64,
    encrypt: &impl Encrypt,
) -> Result<(), Stop> {
    let slot_of_image = slot(config.target_slot.get())?;
    let image = ctx.disk(slot_of_image).map_err(|_| Stop::Nonsense)?;
    let given = &config.options.encryption;
    let options = Options {
        encryption: encrypt.encryption(given),
        ..options(&config.options, size).ok_or(Stop::Nonsense)?
    };
    let spec = Spec::new(&options)?;
    let data = match config.data_slot.get() {
        0 => None,
        at => {
            let at = slot(at)?;
            let disk = ctx.disk(at).map_err(|_| Stop::Nonsense)?;
            ctx.announce_size(at, size)?;
            Some(disk)
        }
    };
    // Whatever is reserved, the file is not longer than that of a full image.
    let most = measure(&options, None).map_or(size, |measured| measured.fully_allocated);
    ctx.announce_size(slot_of_image, most)?;
    encrypt.check(ctx, given, slot_of_image)?;
    let new = NewImage::begin(&image, data.as_ref(), &spec, &mut Watch(ctx))
        .map_err(CreateError::of_an_empty_image)?;
    encrypt.key(ctx, given, slot_of_image, &image, new.crypto_header())?;
    Ok(new.finish().map_err(CreateError::of_an_empty_image)?)
}

fn slot(number: u32) -> Result<u16, Stop> {
    u16::try_from(number).map_err(|_| Stop::Nonsense)
}
