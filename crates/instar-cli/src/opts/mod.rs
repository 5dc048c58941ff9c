//! The languages in which `qemu-img` takes options: `key=value` lists, JSON, and the nodes of images.
//!
//! | where | language | read by |
//! |---|---|---|
//! | `--object` | `TYPE,key=value,…` or JSON | [`keyval`], [`json`] |
//! | `--image-opts` | `key=value,…` with dotted keys | [`list`] |
//! | `json:{…}` as a file name | JSON | [`json`] |
//!
//! The last two become a flat [`Options`] map, of which [`node`] makes an image: see there and in [`below`] what is taken.

mod below;
pub mod json;
pub mod keyval;
pub mod list;
pub mod node;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;

/// A value that is no list and no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A string of any bytes; all that `key=value` lists have.
    Text(Vec<u8>),
    /// A number of JSON, as it was written.
    Number(String),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// An empty list or object, which has nothing to flatten.
    Empty,
}

/// Options by their dotted names, such as `file.filename`.
pub type Options = BTreeMap<String, Scalar>;
