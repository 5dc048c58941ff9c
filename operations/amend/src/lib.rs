//! The amend operation: options of a qcow2 image are changed, its key slots among them.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod keys;

pub use keys::{KeySlots, NoKeySlots};

use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_plan_amend::{AmendError, Image, Layer, Request, amend, check};
use instar_qcow2::Header;
use instar_qcow2::header::CryptMethod;
use instar_shared::edit::{
    AMEND_BACKING_FILE, AMEND_BACKING_FORMAT, AMEND_COMPAT, AMEND_DATA_FILE, AMEND_DATA_FILE_RAW,
    AMEND_ENCRYPT, AMEND_LAZY_REFCOUNTS, AMEND_REFCOUNT_BITS, AMEND_SIZE, AmendConfig, EditResult,
};
use instar_shared::encrypt::KeyState;
use instar_shared::op::Outcome;
use instar_shared::zerocopy::little_endian::U32;
use op_chain::{Reported, Stopped, stopped};
use op_edit::{Below, Chain, Opened, Progress, failed, open_below, open_for_change};

const RAW: &str = "Format driver 'raw' does not support option amendment";
const NOT_ENCRYPTED: &str = "Can't amend encryption options - encryption not present";
const NOT_LUKS: &str = "Only LUKS encryption options can be amended";

/// Does what the host's [`AmendConfig`] says, and tells the host how it went. `keys` changes key slots.
pub fn run(ctx: &mut Context, keys: &impl KeySlots) {
    let config: AmendConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = change(ctx, &config, &mut result, keys);
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

fn change(
    ctx: &mut Context,
    config: &AmendConfig,
    result: &mut EditResult,
    keys: &impl KeySlots,
) -> Result<Outcome, Reported> {
    let opened = open_for_change(ctx, 0, config.format.get(), Chain::Ignored)?;
    result.format.set(opened.format.raw());
    let Some(header) = &opened.header else {
        return Ok(failed(ctx, &RAW));
    };
    result.old_size.set(header.whole_sectors_size());
    result.size.set(header.whole_sectors_size());
    // The whole chain must be there, whatever is asked for.
    let below = open_below(ctx, opened.disk.slot(), header)?;
    let request = request(config);
    if let Some(outcome) = change_keys(ctx, config, &opened, header, &request, keys)? {
        return Ok(outcome);
    }
    match amend_image(ctx, &opened, header, &below, &request) {
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

fn amend_image(
    ctx: &mut Context,
    opened: &Opened,
    header: &Header,
    below: &[Below],
    request: &Request<'_>,
) -> Result<Header, AmendError> {
    let image = Image {
        storage: &opened.disk,
        data: opened.data.as_ref(),
        header,
        cipher: None,
    };
    let layers: Vec<Layer<'_, Disk>> = below
        .iter()
        .map(|below| Layer {
            storage: &below.disk,
            data: below.data.as_ref(),
            header: below.header.as_ref(),
            cipher: None,
        })
        .collect();
    amend(image, &layers, request, &mut Progress(ctx))
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
