//! Images that `qemu-img` makes, and where their fields are.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A field of an image: byte offset and width in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub width: usize,
}

/// An image and the fields that a test may damage.
pub struct Image {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub fields: Vec<Field>,
}

/// Runs `qemu-img` and gives what it said; a missing program fails the test.
pub fn qemu_img(args: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .expect("qemu-img must be installed (Debian: qemu-utils)")
}

fn run(args: &[&str]) {
    let output = qemu_img(args);
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

const HEADER: &[(&str, usize, usize)] = &[
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
];

const HEADER_V3: &[(&str, usize, usize)] = &[
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
    ("first extension type", 112, 4),
    ("first extension length", 116, 4),
    ("first extension data", 120, 8),
];

const SNAPSHOT: &[(&str, usize, usize)] = &[
    ("snapshot l1_table_offset", 0, 8),
    ("snapshot l1_size", 8, 4),
    ("snapshot id_size", 12, 2),
    ("snapshot name_size", 14, 2),
    ("snapshot date", 16, 8),
    ("snapshot clock", 24, 8),
    ("snapshot vm_state_size", 32, 4),
    ("snapshot extra_data_size", 36, 4),
    ("snapshot vm_state_size_large", 40, 8),
    ("snapshot icount", 56, 8),
];

const BITMAPS_EXTENSION: &[(&str, usize, usize)] = &[
    ("bitmaps extension length", 4, 4),
    ("nb_bitmaps", 8, 4),
    ("bitmaps reserved", 12, 4),
    ("directory_size", 16, 8),
    ("directory_offset", 24, 8),
];

const BITMAP: &[(&str, usize, usize)] = &[
    ("bitmap table_offset", 0, 8),
    ("bitmap table_size", 8, 4),
    ("bitmap flags", 12, 4),
    ("bitmap type", 16, 1),
    ("bitmap granularity_bits", 17, 1),
    ("bitmap name_size", 18, 2),
    ("bitmap extra_data_size", 20, 4),
    ("bitmap name", 24, 3),
];

const LUKS: &[(&str, usize, usize)] = &[
    ("luks magic", 0, 6),
    ("luks version", 6, 2),
    ("luks cipher name", 8, 4),
    ("luks cipher mode", 40, 4),
    ("luks iv generator", 44, 4),
    ("luks hash", 72, 4),
    ("luks payload offset", 104, 4),
    ("luks key bytes", 108, 4),
    ("luks iterations", 164, 4),
    ("luks uuid", 168, 4),
    ("luks slot 0 state", 208, 4),
    ("luks slot 0 iterations", 212, 4),
    ("luks slot 0 offset", 248, 4),
    ("luks slot 0 stripes", 252, 4),
    ("luks slot 3 state", 352, 4),
    ("luks slot 3 offset", 392, 4),
    ("luks slot 3 stripes", 396, 4),
];

impl Image {
    fn create(dir: &Path, name: &'static str, options: &str, prepare: impl Fn(&str)) -> Self {
        let path = dir.join(name);
        let file = path.to_str().unwrap();
        let key = format!("secret,id=key,file={}", dir.join("key").to_str().unwrap());
        let mut args = vec!["create", "-q", "-f", "qcow2", "--object", &key];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([file, "64M"]);
        run(&args);
        prepare(file);
        let bytes = std::fs::read(&path).unwrap();
        let mut image = Self {
            name,
            bytes,
            fields: Vec::new(),
        };
        image.add(0, HEADER);
        if image.u32_at(4) == 3 {
            image.add(0, HEADER_V3);
        }
        image
    }

    fn add(&mut self, base: usize, fields: &[(&'static str, usize, usize)]) {
        self.fields
            .extend(fields.iter().map(|&(name, at, width)| Field {
                name,
                offset: base + at,
                width,
            }));
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn offset_at(&self, at: usize) -> usize {
        let value = u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap());
        usize::try_from(value).unwrap()
    }

    fn extension(&self, kind: u32) -> usize {
        let kind = kind.to_be_bytes();
        (104..4096)
            .step_by(8)
            .find(|at| self.bytes[*at..at + 4] == kind)
            .unwrap()
    }
}

/// The images, made in `dir`.
pub fn all(dir: &Path) -> Vec<Image> {
    std::fs::write(dir.join("key"), "key").unwrap();
    let none = |_: &str| {};
    let mut images = vec![
        Image::create(dir, "plain", "", none),
        Image::create(dir, "v2", "compat=0.10", none),
        Image::create(
            dir,
            "small-clusters",
            "cluster_size=512,refcount_bits=1",
            none,
        ),
        Image::create(
            dir,
            "zstd-extended",
            "compression_type=zstd,extended_l2=on",
            none,
        ),
    ];
    let raw: PathBuf = dir.join("data.raw");
    let data = format!("data_file={},data_file_raw=on", raw.to_str().unwrap());
    images.push(Image::create(dir, "data-file", &data, none));

    let mut snapshots = Image::create(dir, "snapshots", "", |file| {
        for name in ["first", "second"] {
            run(&["snapshot", "-c", name, file]);
        }
    });
    let table = snapshots.offset_at(64);
    snapshots.add(table, SNAPSHOT);
    images.push(snapshots);

    let mut bitmaps = Image::create(dir, "bitmaps", "", |file| {
        for name in ["bm0", "bm1"] {
            run(&["bitmap", "--add", file, name]);
        }
    });
    let extension = bitmaps.extension(0x2385_2875);
    bitmaps.add(extension, BITMAPS_EXTENSION);
    let directory = bitmaps.offset_at(extension + 24);
    bitmaps.add(directory, BITMAP);
    let table = bitmaps.offset_at(directory);
    bitmaps.add(table, &[("bitmap table entry", 0, 8)]);
    images.push(bitmaps);

    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let mut luks = Image::create(dir, "luks", options, none);
    let extension = luks.extension(0x0537_be77);
    luks.add(
        extension,
        &[
            ("crypto length", 4, 4),
            ("crypto offset", 8, 8),
            ("crypto size", 16, 8),
        ],
    );
    let header = luks.offset_at(extension + 8);
    luks.add(header, LUKS);
    images.push(luks);
    images
}
