//! What the guest gets of a file: its device, and how far it may grow.

use crate::input::{Growth, InputFile};
use crate::open::Opened;
use crate::output::FileFacts;
use crate::window::Window;
use instar_vmm::operation::{OperationFile, Said};
use std::fs::File;

/// The device of an image that the user typed.
pub fn typed_file((input, opened): (InputFile, Opened)) -> OperationFile {
    let growth = opened.writable.then_some(input.growth);
    let made = input.access.creates() && !opened.facts.block_device;
    let said = input.said(0, &opened.facts);
    let file = operation_file(opened.file, &opened.facts, growth, said);
    if made {
        // Empty, and closed to writes, until its size is announced.
        return OperationFile {
            len_bytes: 0,
            max_len_bytes: 0,
            ..file
        };
    }
    file
}

/// How far a typed image may grow once its size is announced, with its slot; `None` if it is not written.
pub fn typed_window((slot, (input, opened)): (u16, &(InputFile, Opened))) -> Option<(u16, Window)> {
    let made = input.access.creates();
    let said = input.said(0, &opened.facts);
    let window = Window::of(input.growth, &part(&opened.facts, said), made);
    let window = window.fixed(said.end.is_some());
    opened.writable.then_some((slot, window))
}

/// The device of a file; `growth` if it is written.
pub fn operation_file(
    file: File,
    facts: &FileFacts,
    growth: Option<Growth>,
    said: Said,
) -> OperationFile {
    let facts = &part(facts, said);
    // A device keeps its length. A character device has no bytes to write either.
    let growth = growth.filter(|_| !facts.character_device);
    let max_len_bytes = match growth {
        Some(growth) if !facts.block_device && said.end.is_none() => {
            growth.max_len_bytes(facts.len_bytes)
        }
        _ => facts.len_bytes,
    };
    OperationFile {
        file,
        read_only: growth.is_none(),
        block_device: facts.block_device || facts.character_device,
        len_bytes: facts.len_bytes,
        max_len_bytes,
        direct_align: facts.direct_align,
        said,
    }
}

/// What is known about the part of a file that is meant.
pub fn part(facts: &FileFacts, said: Said) -> FileFacts {
    let end = said.end.unwrap_or(facts.len_bytes);
    FileFacts {
        len_bytes: end.saturating_sub(said.start),
        ..facts.clone()
    }
}
