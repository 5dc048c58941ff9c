//! The backing chain of an image that is changed, open for reading.

use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_plan_resize::Layer;
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::FileAccess;
use instar_shared::op::ImageFormat;
use op_chain::{Open, Reported, open_backing};

/// An image of the backing chain.
#[derive(Debug)]
pub struct Below {
    /// The image.
    pub disk: Disk,
    /// Its external data file.
    pub data: Option<Disk>,
    /// `None`: it is raw.
    pub header: Option<Header>,
}

/// The backing chain for a planner. No key of it is known.
#[must_use]
pub fn layers(below: &[Below]) -> Vec<Layer<'_, Disk>> {
    let layers = below.iter().map(|below| Layer {
        storage: &below.disk,
        data: below.data.as_ref(),
        header: below.header.as_ref(),
        cipher: None,
    });
    layers.collect()
}

/// Opens the backing chain of the image in slot `top`, the nearest first, qcow2 images by `open`.
///
/// # Errors
/// The record that says why has been sent.
pub fn open_below(
    open: Open,
    ctx: &mut Context,
    top: u16,
    header: &Header,
) -> Result<Vec<Below>, Reported> {
    let mut chain = Vec::new();
    let (mut parent, mut above) = (top, header.clone());
    while let Some((disk, format)) = open_backing(ctx, parent, &above, FileAccess::Read)? {
        parent = disk.slot();
        if format != ImageFormat::Qcow2 {
            chain.push(Below {
                disk,
                data: None,
                header: None,
            });
            break;
        }
        let (header, data) = open(ctx, &disk, OpenMode::CheckWithKey, FileAccess::Read)?;
        above = header.clone();
        chain.push(Below {
            disk,
            data,
            header: Some(header),
        });
    }
    Ok(chain)
}
