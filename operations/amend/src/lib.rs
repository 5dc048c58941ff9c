//! The amend operation: options of a qcow2 image are changed, its key slots among them.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod keys;

pub use keys::{KeySlots, NoKeySlots};

use instar_guest_ops::{Context, Disk};
use instar_plan_amend::{AmendError, Image, Layer, Request, amend, amend_keeping_size, check};
use instar_qcow2::Header;
use instar_qcow2::header::CryptMethod;
use instar_shared::edit::{
    AMEND_BACKING_FILE, AMEND_BACKING_FORMAT, AMEND_COMPAT, AMEND_DATA_FILE, AMEND_DATA_FILE_RAW,
    AMEND_ENCRYPT, AMEND_LAZY_REFCOUNTS, AMEND_REFCOUNT_BITS, AMEND_SIZE, AmendConfig, EditResult,
};
use instar_shared::encrypt::KeyState;
use instar_shared::op::Outcome;
use instar_shared::zerocopy::little_endian::U32;
use op_chain::{Open, Reported, Stopped, ask_for_fuller, open_qcow2, open_unencrypted, stopped};
use op_edit::{Chain, Opened, Progress, failed, layers, open_below, open_for_change_by};

const RAW: &str = "Format driver 'raw' does not support option amendment";
const NOT_ENCRYPTED: &str = "Can't amend encryption options - encryption not present";
const NOT_LUKS: &str = "Only LUKS encryption options can be amended";

/// What a program is linked with, beside key slots.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// How it opens qcow2 images.
    pub open: Open,
    /// How it changes them.
    pub amend: Amend,
    /// It can change sizes.
    pub sizes: bool,
}

/// Changes the options of an image with this backing chain.
pub type Amend = fn(
    Image<'_, Disk>,
    &[Layer<'_, Disk>],
    &Request<'_>,
    &mut Progress<'_>,
) -> Result<Header, AmendError>;

/// Neither LUKS headers nor another size.
pub const FEW: Parts = Parts {
    open: open_unencrypted,
    amend: |image, _, request, progress| amend_keeping_size(image, request, progress),
    sizes: false,
};

/// All that there is.
pub const ALL: Parts = Parts {
    open: open_qcow2,
    amend: |image, below, request, progress| amend(image, below, request, progress),
    sizes: true,
};

/// Does what the host's [`AmendConfig`] says, and tells the host how it went. `keys` changes key slots.
pub fn run(ctx: &mut Context, parts: Parts, keys: &impl KeySlots) {
    let config: AmendConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = change(ctx, parts, &config, &mut result, keys);
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

fn change(
    ctx: &mut Context,
    parts: Parts,
    config: &AmendConfig,
    result: &mut EditResult,
    keys: &impl KeySlots,
) -> Result<Outcome, Reported> {
    if config.given.get() & AMEND_SIZE != 0 && !parts.sizes {
        return Err(ask_for_fuller(ctx));
    }
    let opened = open_for_change_by(parts.open, ctx, 0, config.format.get(), Chain::Ignored)?;
    result.format.set(opened.format.raw());
    let Some(header) = &opened.header else {
        return Ok(failed(ctx, &RAW));
    };
    result.old_size.set(header.whole_sectors_size());
    result.size.set(header.whole_sectors_size());
    // The whole chain must be there, whatever is asked for.
    let below = open_below(parts.open, ctx, opened.disk.slot(), header)?;
    let request = request(config);
    if let Some(outcome) = change_keys(ctx, config, &opened, header, &request, keys)? {
        return Ok(outcome);
    }
    let image = Image {
        storage: &opened.disk,
        data: opened.data.as_ref(),
        header,
        cipher: None,
    };
    match (parts.amend)(image, &layers(&below), &request, &mut Progress(ctx)) {
        Ok(header) => {
            result.size.set(header.whole_sectors_size());
            Ok(Outcome::Done)
        }
        Err(e) => {
            let why = match &e {
                AmendError::Cancelled => Stopped::Cancelled,
                AmendError::OutOfMemory => Stopped::OutOfMemory,
                e => Stopped::Failed(e),
            };
            Ok(stopped(ctx, "amend", &why))
        }
    }
}

/// Changes key slots, if that is asked for; says how it went if the rest of the request is left.
fn change_keys<K: KeySlots>(
    ctx: &mut Context,
    config: &AmendConfig,
    opened: &Opened,
    header: &Header,
    request: &Request<'_>,
    keys: &K,
) -> Result<Option<Outcome>, Reported> {
    if config.given.get() & AMEND_ENCRYPT == 0 {
        return Ok(None);
    }
    let volume = match header.crypt_method {
        CryptMethod::None => None,
        CryptMethod::Aes | CryptMethod::Luks => keys.open(ctx, &opened.disk, header)?,
    };
    let refusal = match header.crypt_method {
        CryptMethod::None => Some(NOT_ENCRYPTED),
        CryptMethod::Aes => Some(NOT_LUKS),
        CryptMethod::Luks => None,
    };
    if let Some(sentence) = refusal {
        return Ok(Some(failed(ctx, &sentence)));
    }
    if let Err(e) = check(header, request) {
        return Ok(Some(failed(ctx, &e)));
    }
    let state = KeyState::try_from(config.keys.state.get()).map_err(|_| Reported)?;
    if state == KeyState::Look {
        return Ok(Some(Outcome::Done));
    }
    let volume = volume.ok_or(Reported)?;
    match keys.change(ctx, &opened.disk, volume, state, &config.keys) {
        Ok(()) => Ok(None),
        Err(sentence) => Ok(Some(failed(ctx, &sentence))),
    }
}

/// The options that the configuration names.
fn request(config: &AmendConfig) -> Request<'_> {
    let given = |bit: u32| config.given.get() & bit != 0;
    let number = |bit, field: &U32| given(bit).then(|| field.get());
    let flag = |bit, field: &U32| given(bit).then(|| field.get() != 0);
    Request {
        size: given(AMEND_SIZE).then(|| config.size.get()),
        version: number(AMEND_COMPAT, &config.version),
        backing_file: given(AMEND_BACKING_FILE)
            .then(|| start(&config.backing_file, config.backing_file_len)),
        backing_format: given(AMEND_BACKING_FORMAT)
            .then(|| start(&config.backing_format, config.backing_format_len)),
        data_file: given(AMEND_DATA_FILE).then(|| start(&config.data_file, config.data_file_len)),
        data_file_raw: flag(AMEND_DATA_FILE_RAW, &config.data_file_raw),
        lazy_refcounts: flag(AMEND_LAZY_REFCOUNTS, &config.lazy_refcounts),
        refcount_bits: number(AMEND_REFCOUNT_BITS, &config.refcount_bits),
    }
}

/// The part of a field that is in use.
fn start(field: &[u8], len: U32) -> &[u8] {
    let len = usize::try_from(len.get()).unwrap_or(usize::MAX);
    field.get(..len).unwrap_or(field)
}
