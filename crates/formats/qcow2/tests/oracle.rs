//! Damaged images: our outcome and text against those of `qemu-img`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "oracle/images.rs"]
mod images;

use images::{Field, Image, qemu_img};
use instar_qcow2::header::{Header, OpenMode};
use instar_qcow2::info::{Encryption, ImageInfo};
use instar_storage::MemStorage;
use serde_json::Value;
use std::path::Path;

/// Values that lie at an edge of some field.
const VALUES: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
    16,
    20,
    21,
    22,
    23,
    24,
    31,
    32,
    64,
    72,
    103,
    104,
    105,
    112,
    120,
    255,
    512,
    591,
    592,
    1023,
    1024,
    1025,
    4000,
    4040,
    0xdead,
    65535,
    0x1_0000,
    0x1_0001,
    0x2_0000,
    0x10_0000,
    0x40_0000,
    0x40_0001,
    0xac_71f3,
    0x0400_0000,
    0x0537_be77,
    0x2385_2875,
    0x6803_f857,
    0x7fff_ffff,
    0x8000_0000,
    0xe279_2aca,
    0xffff_ffff,
    1 << 40,
    1 << 55,
    (1 << 56) - 0x1_0000,
    1 << 56,
    1 << 61,
    1 << 62,
    0x7fff_ffff_bfff_0000,
    0x7fff_ffff_c000_0000,
    0x7fff_ffff_ffff_0000,
    1 << 63,
    0xffff_ffff_ffff_0000,
    u64::MAX - 511,
    u64::MAX,
];

/// The long version: every value and more pairs.
fn soak() -> bool {
    std::env::var_os("INSTAR_SOAK").is_some()
}

/// A small generator with a seed, so that a failure can be repeated.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.next()).unwrap() % from.len()]
    }
}

fn set(bytes: &mut [u8], field: Field, value: u64) {
    let value = value.to_be_bytes();
    let width = field.width.min(8);
    bytes[field.offset..field.offset + width].copy_from_slice(&value[8 - width..]);
}

/// What `qemu-img` says after the file name, a warning before it left out.
fn refusal(stderr: &str, file: &str) -> Option<String> {
    let (before, rest) = stderr.split_once(&format!("qemu-img: Could not open '{file}': "))?;
    let warned = before.is_empty() || before.starts_with("qemu-img: warning: ");
    warned.then(|| rest.strip_suffix('\n').unwrap_or(rest).to_owned())
}

/// The cases that differ; a test fails with all of them at once.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn check<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, ours: T, qemus: T) {
        if ours != qemus {
            self.0
                .push(format!("{what}\n   ours {ours:?}\n  qemus {qemus:?}"));
        }
    }

    fn finish(self) {
        let count = self.0.len();
        assert!(count == 0, "{count} differences:\n{}", self.0.join("\n"));
    }

    /// Compares info, and whether check opens. `what` names the case.
    fn compare(&mut self, bytes: &[u8], file: &Path, what: &str) {
        std::fs::write(file, bytes).unwrap();
        let name = file.to_str().unwrap();
        let store = MemStorage::new(bytes.to_vec());

        let output = qemu_img(&["info", "-f", "qcow2", "--output=json", name]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match ImageInfo::read(&store) {
            Ok(info) => {
                let warning = info.warning().map(|w| format!("qemu-img: warning: {w}"));
                let before = self.0.len();
                self.check(what, warning.unwrap_or_default(), stderr);
                if self.0.len() == before {
                    let json = String::from_utf8_lossy(&output.stdout);
                    self.compare_shown(&info, &store, &serde_json::from_str(&json).unwrap(), what);
                }
            }
            Err(e) => self.check(what, Some(e.to_string()), refusal(&stderr, name)),
        }
        self.compare_check(&store, name, what);
    }

    fn compare_check(&mut self, store: &MemStorage, name: &str, what: &str) {
        let output = qemu_img(&["check", "-f", "qcow2", name]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = refusal(&stderr, name);
        let what = format!("check of {what}");
        match Header::read(store, OpenMode::Check) {
            // Whether the image's other files open is not the header's matter.
            Ok(header)
                if header.backing_file.is_some() || header.incompatible.external_data_file() => {}
            Ok(_) => self.check(&what, None, refused),
            Err(e) => self.check(&what, Some(e.to_string()), refused),
        }
    }

    fn compare_shown(&mut self, info: &ImageInfo, store: &MemStorage, json: &Value, what: &str) {
        for (name, theirs, ours) in shown(info, store, json) {
            self.check(&format!("{what}: {name}"), ours, theirs);
        }
    }
}

fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}

/// `Value::Null` stands for an absent key.
fn option<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or(Value::Null, Into::into)
}

/// What is shown: name, qemu's value, ours.
fn shown(info: &ImageInfo, store: &MemStorage, json: &Value) -> Vec<(&'static str, Value, Value)> {
    let data = &json["format-specific"]["data"];
    let top = vec![
        ("virtual-size", info.virtual_size().into()),
        ("cluster-size", info.cluster_size().into()),
        ("dirty-flag", info.dirty_flag().into()),
        ("encrypted", option(info.encrypted().then_some(true))),
        ("backing-filename", option(info.backing_file().map(text))),
        (
            "backing-filename-format",
            option(info.backing_format().map(text)),
        ),
        ("snapshots", snapshots(info, store)),
    ];
    let specific = vec![
        ("compat", info.compat().into()),
        ("compression-type", info.compression_type().into()),
        ("lazy-refcounts", option(info.lazy_refcounts())),
        ("refcount-bits", info.refcount_bits().into()),
        ("data-file", option(info.data_file().map(text))),
        ("data-file-raw", option(info.data_file_raw())),
        ("corrupt", option(info.corrupt())),
        ("extended-l2", option(info.extended_l2())),
        ("bitmaps", bitmaps(info, store)),
        ("encrypt", option(info.encryption.as_ref().map(encryption))),
    ];
    let with = |from: &Value, ours: Vec<(&'static str, Value)>| {
        ours.into_iter()
            .map(|(key, ours)| (key, from[key].clone(), ours))
            .collect::<Vec<_>>()
    };
    [with(json, top), with(data, specific)].concat()
}

fn snapshots(info: &ImageInfo, store: &MemStorage) -> Value {
    if !info.has_snapshots() {
        return Value::Null;
    }
    let shown = info.snapshots(store).map(|snapshot| {
        let s = snapshot.unwrap();
        let mut value = serde_json::json!({
            "id": text(s.shown_id()), "name": text(s.shown_name()),
            "date-sec": s.date_sec, "date-nsec": s.date_nsec,
            "vm-clock-sec": s.vm_clock_nsec / 1_000_000_000,
            "vm-clock-nsec": s.vm_clock_nsec % 1_000_000_000,
            "vm-state-size": s.vm_state_size.cast_signed(),
        });
        if let Some(icount) = s.icount {
            value["icount"] = icount.cast_signed().into();
        }
        value
    });
    shown.collect()
}

fn bitmaps(info: &ImageInfo, store: &MemStorage) -> Value {
    let Some(directory) = info.bitmaps(store) else {
        return Value::Null;
    };
    let shown = directory.map(|bitmap| {
        let b = bitmap.unwrap();
        let flags: Vec<&str> = [(b.in_use(), "in-use"), (b.auto(), "auto")]
            .iter()
            .filter_map(|(set, name)| set.then_some(*name))
            .collect();
        serde_json::json!({
            "name": text(&b.name), "granularity": b.granularity_bytes(), "flags": flags,
        })
    });
    shown.collect()
}

fn encryption(encryption: &Encryption) -> Value {
    let Encryption::Luks(luks) = encryption else {
        return serde_json::json!({ "format": "aes" });
    };
    let slots = luks.slots.iter().map(|slot| {
        let mut value = serde_json::json!({ "active": slot.active, "key-offset": slot.key_offset });
        if slot.active {
            value["iters"] = slot.iterations.into();
            value["stripes"] = slot.stripes.into();
        }
        value
    });
    let mut value = serde_json::json!({
        "format": "luks", "cipher-alg": luks.cipher.name(), "cipher-mode": luks.mode.name(),
        "ivgen-alg": luks.iv_generator.name(), "hash-alg": luks.hash.name(),
        "uuid": text(luks.uuid()), "detached-header": luks.detached_header,
        "payload-offset": luks.payload_offset, "master-key-iters": luks.master_key_iterations,
        "slots": slots.collect::<Value>(),
    });
    if let Some(hash) = luks.iv_generator_hash {
        value["ivgen-hash-alg"] = hash.name().into();
    }
    value
}

#[test]
fn sound_images_are_shown_as_qemu_shows_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Differences::default();
    for image in images::all(dir.path()) {
        found.compare(&image.bytes, &dir.path().join("t.qcow2"), image.name);
    }
    found.finish();
}

#[test]
fn one_damaged_field_is_judged_as_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Differences::default();
    let file = dir.path().join("t.qcow2");
    for Image {
        name,
        bytes,
        fields,
    } in images::all(dir.path())
    {
        // The plain image has every header field tried with every value; the
        // other images their own fields, and the header by pairs below.
        let own = if name == "plain" {
            0
        } else {
            22.min(fields.len())
        };
        for (nth, field) in fields[own..].iter().enumerate() {
            // The short version takes every third value, others for each field.
            let turn = |at: usize| soak() || (at + nth).is_multiple_of(3);
            let fits = |v: u64| field.width >= 8 || v >> (field.width * 8) == 0;
            let values = VALUES
                .iter()
                .enumerate()
                .filter(|(at, v)| turn(*at) && fits(**v));
            for (_, value) in values {
                let mut damaged = bytes.clone();
                set(&mut damaged, *field, *value);
                found.compare(
                    &damaged,
                    &file,
                    &format!("{name}, {} = {value:#x}", field.name),
                );
            }
        }
    }
    found.finish();
}

#[test]
fn two_damaged_fields_are_judged_in_qemus_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Differences::default();
    let file = dir.path().join("t.qcow2");
    let mut seeded = Seeded(0x0051_4649_fb00);
    for Image {
        name,
        bytes,
        fields,
    } in images::all(dir.path())
    {
        for round in 0..if soak() { 2000 } else { 40 } {
            let mut damaged = bytes.clone();
            let mut what = format!("{name}, round {round}");
            for _ in 0..2 {
                let (field, value) = (*seeded.pick(&fields[2..]), *seeded.pick(VALUES));
                set(&mut damaged, field, value);
                what.push_str(&format!(", {} = {value:#x}", field.name));
            }
            found.compare(&damaged, &file, &what);
        }
    }
    found.finish();
}

#[test]
fn every_truncation_of_the_header_is_judged_as_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Differences::default();
    let file = dir.path().join("t.qcow2");
    let image = images::all(dir.path()).remove(0);
    for len in 0..=520 {
        found.compare(&image.bytes[..len], &file, &format!("cut to {len} bytes"));
    }
    found.finish();
}

/// Cipher name, key bytes, cipher mode and hash of a LUKS header.
const CIPHERS: &[(&str, u64, &str, &str)] = &[
    ("aes", 16, "cbc-plain64", "sha1"),
    ("aes", 24, "cbc-plain", "sha224"),
    ("aes", 32, "ecb-plain", "sha384"),
    ("aes", 32, "xts-plain64", "sha512"),
    ("aes", 48, "xts-plain64", "ripemd160"),
    ("aes", 64, "xts-plain64:sha256", "md5"),
    ("aes", 64, "cbc-plain64", "sm3"),
    ("aes", 32, "ctr-plain64", "SHA1"),
    ("aes", 32, "cbc-essiv:sha256", "sha256"),
    ("aes", 32, "cbc-essiv:sm3", "sha256"),
    ("aes", 32, "cbc-essiv:md5", "sha256"),
    ("aes", 32, "cbc-essiv:sha1", "sha256"),
    ("serpent", 32, "cbc-essiv:sha512", "sha256"),
    ("twofish", 32, "cbc-essiv:sha384", "sha256"),
    ("twofish", 24, "cbc-plain64", "sha256"),
    ("serpent", 33, "xts-plain64", "sha256"),
    ("cast5", 16, "cbc-plain64", "sha256"),
    ("cast5", 32, "cbc-plain64", "sha256"),
    ("cast5", 16, "cbc-essiv:md5", "sha256"),
    ("cast5", 16, "cbc-essiv:sha256", "sha256"),
    ("des", 8, "cbc-plain64", "sha256"),
    ("sm4", 16, "cbc-plain64", "sha256"),
    ("", 32, "cbc-plain64", ""),
    ("aes", 32, "cbc-essiv", "sha256"),
    ("aes", 32, "cbc-essiv", "other"),
    ("aes", 32, "cbc-essiv:", "sha256"),
    ("aes", 32, "cbc-other:sha1", "sha256"),
    ("aes", 32, "cbc-other", "another"),
    ("other", 32, "cbc-essiv:sha1", "another"),
    ("other", 32, "another-essiv:other", "another"),
    ("other", 32, "another-plain", "another"),
    ("aes", 32, "cbc", "sha256"),
    ("aes", 32, "cbc:sha256-plain", "sha256"),
    ("aes", 32, "cbc-plain-64", "sha256"),
    ("aes", 32, "-", "sha256"),
    ("aes", 32, "", "sha256"),
    ("12345678901234567890123456789012", 32, "cbc", "sha256"),
    ("aes", 32, "12345678901234567890123456789012", "sha256"),
    ("aes", 32, "cbc", "12345678901234567890123456789012"),
];

#[test]
fn luks_ciphers_are_judged_as_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Differences::default();
    let file = dir.path().join("t.qcow2");
    let Image { bytes, fields, .. } = images::all(dir.path()).pop().unwrap();
    let header = fields
        .iter()
        .find(|f| f.name == "luks magic")
        .unwrap()
        .offset;
    for case in CIPHERS {
        let (cipher, key_bytes, mode, hash) = *case;
        let mut damaged = bytes.clone();
        for (at, text) in [(8, cipher), (40, mode), (72, hash)] {
            let mut padded = [0; 32];
            padded[..text.len()].copy_from_slice(text.as_bytes());
            damaged[header + at..header + at + 32].copy_from_slice(&padded);
        }
        let field = Field {
            name: "luks key bytes",
            offset: header + 108,
            width: 4,
        };
        set(&mut damaged, field, key_bytes);
        found.compare(&damaged, &file, &format!("{case:?}"));
    }
    found.finish();
}
