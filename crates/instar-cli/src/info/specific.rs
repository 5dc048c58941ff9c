//! The format-specific part, as a tree that both outputs print.

use super::model::{Bitmap, Qcow2};
use crate::json::Json;
use crate::sink::Out;
use crate::text::until_nul;
use instar_shared::info::{self as wire, Compression, Encryption};

/// A value of the format-specific part.
pub enum Node<'a> {
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(u64),
    /// Text, any bytes.
    Text(&'a [u8]),
    /// Values in order.
    List(Vec<Node<'a>>),
    /// Values by key; keys in JSON spelling.
    Map(Vec<(&'static str, Node<'a>)>),
}

impl Node<'_> {
    /// Prints the value as JSON.
    pub fn json(&self, json: &mut Json<'_>) {
        match self {
            Node::Bool(value) => json.bool(*value),
            Node::Number(value) => json.number(*value),
            Node::Text(bytes) => json.string(bytes),
            Node::List(items) => {
                json.begin_array();
                items.iter().for_each(|item| item.json(json));
                json.end_array();
            }
            Node::Map(fields) => {
                json.begin_object();
                for (key, value) in fields {
                    json.key(key);
                    value.json(json);
                }
                json.end_object();
            }
        }
    }

    /// Prints the value behind its label: on the same line, or as an indented block.
    pub fn human(&self, out: &mut dyn Out, depth: usize) {
        match self {
            Node::Bool(value) => line(out, if *value { b" true" } else { b" false" }),
            Node::Number(value) => line(out, format!(" {value}").as_bytes()),
            Node::Text(bytes) => {
                out.put(b" ");
                out.name(bytes);
                out.put(b"\n");
            }
            Node::List(items) => {
                out.put(b"\n");
                for (index, item) in items.iter().enumerate() {
                    label(out, depth, &format!("[{index}]"));
                    item.human(out, depth + 1);
                }
            }
            Node::Map(fields) => {
                out.put(b"\n");
                for (key, value) in fields {
                    label(out, depth, &key.replace('-', " "));
                    value.human(out, depth + 1);
                }
            }
        }
    }
}

fn line(out: &mut dyn Out, bytes: &[u8]) {
    out.put(bytes);
    out.put(b"\n");
}

fn label(out: &mut dyn Out, depth: usize, name: &str) {
    for _ in 0..depth {
        out.put(b"    ");
    }
    out.put(name.as_bytes());
    out.put(b":");
}

/// The format-specific part of a qcow2 image.
#[must_use]
pub fn qcow2(image: &Qcow2) -> Node<'_> {
    let mut fields = vec![
        (
            "compat",
            Node::Text(if image.version3 { b"1.1" } else { b"0.10" }),
        ),
        (
            "compression-type",
            Node::Text(match image.compression {
                Compression::Zlib => b"zlib",
                Compression::Zstd => b"zstd",
            }),
        ),
    ];
    let flag = |bit| Node::Bool(image.has(bit));
    if image.version3 {
        fields.push(("lazy-refcounts", flag(wire::IMAGE_LAZY_REFCOUNTS)));
    }
    if let Some(bitmaps) = &image.bitmaps {
        fields.push(("bitmaps", Node::List(bitmaps.iter().map(bitmap).collect())));
    }
    fields.push(("refcount-bits", Node::Number(image.refcount_bits.into())));
    if let Some(encryption) = encryption(image) {
        fields.push(("encrypt", encryption));
    }
    if let Some(name) = &image.data_file {
        fields.push(("data-file", Node::Text(name)));
    }
    if image.version3 {
        if image.has(wire::IMAGE_DATA_FILE) {
            fields.push(("data-file-raw", flag(wire::IMAGE_DATA_FILE_RAW)));
        }
        fields.push(("corrupt", flag(wire::IMAGE_CORRUPT)));
        fields.push(("extended-l2", flag(wire::IMAGE_EXTENDED_L2)));
    }
    Node::Map(fields)
}

fn bitmap(bitmap: &Bitmap) -> Node<'_> {
    let mut flags = Vec::new();
    for (bit, name) in [
        (wire::BITMAP_IN_USE, &b"in-use"[..]),
        (wire::BITMAP_AUTO, b"auto"),
    ] {
        if bitmap.flags & bit != 0 {
            flags.push(Node::Text(name));
        }
    }
    Node::Map(vec![
        ("flags", Node::List(flags)),
        ("name", Node::Text(&bitmap.name)),
        ("granularity", Node::Number(bitmap.granularity)),
    ])
}

fn encryption(image: &Qcow2) -> Option<Node<'_>> {
    match (image.encryption, &image.luks) {
        (Encryption::None, _) => None,
        (Encryption::Luks, Some(record)) => Some(luks(record)),
        (Encryption::Luks, None) => Some(Node::Map(vec![("format", Node::Text(b"luks"))])),
        (Encryption::Aes, _) => Some(Node::Map(vec![("format", Node::Text(b"aes"))])),
    }
}

fn luks(record: &wire::LuksRecord) -> Node<'_> {
    let text = |bytes| Node::Text(until_nul(bytes));
    let mut fields = vec![
        ("ivgen-alg", text(&record.ivgen_alg)),
        ("detached-header", Node::Bool(false)),
        ("hash-alg", text(&record.hash_alg)),
        ("cipher-alg", text(&record.cipher_alg)),
        ("uuid", text(&record.uuid)),
    ];
    if record.ivgen_hash_alg.first().is_some_and(|&byte| byte != 0) {
        fields.push(("ivgen-hash-alg", text(&record.ivgen_hash_alg)));
    }
    fields.extend([
        ("format", Node::Text(b"luks")),
        ("cipher-mode", text(&record.cipher_mode)),
        (
            "slots",
            Node::List(record.slots.iter().map(key_slot).collect()),
        ),
        ("payload-offset", Node::Number(record.payload_offset.get())),
        (
            "master-key-iters",
            Node::Number(record.master_key_iterations.get().into()),
        ),
    ]);
    Node::Map(fields)
}

fn key_slot(slot: &wire::LuksSlotRecord) -> Node<'static> {
    let active = slot.active.get() == 1;
    let mut fields = vec![("active", Node::Bool(active))];
    if active {
        fields.push(("iters", Node::Number(slot.iterations.get().into())));
    }
    fields.push(("key-offset", Node::Number(slot.key_offset.get())));
    if active {
        fields.push(("stripes", Node::Number(slot.stripes.get().into())));
    }
    Node::Map(fields)
}
