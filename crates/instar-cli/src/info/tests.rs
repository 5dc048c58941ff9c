//! Records built by hand against what `qemu-img info` prints for an image with the same facts.
#![allow(clippy::cast_possible_truncation)]

use super::*;
use crate::oracle;
use instar_shared::info as wire;
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::{FromZeros, IntoBytes};
use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

type Record = (RecordKind, Vec<u8>);

/// An image record under construction; the defaults are those of `qemu-img create`.
struct ImageBuilder {
    record: wire::ImageRecord,
    names: [Vec<u8>; 3],
}

fn qcow2(slot: u32) -> ImageBuilder {
    let mut record = wire::ImageRecord::zeroed();
    record.slot.set(slot);
    record.format.set(ImageFormat::Qcow2.raw());
    record.version.set(3);
    record.virtual_size.set(64 << 20);
    record.cluster_size.set(65536);
    record.refcount_bits.set(16);
    ImageBuilder {
        record,
        names: Default::default(),
    }
}

fn raw(slot: u32, size: u64) -> ImageBuilder {
    let mut record = wire::ImageRecord::zeroed();
    record.slot.set(slot);
    record.format.set(ImageFormat::Raw.raw());
    record.virtual_size.set(size);
    ImageBuilder {
        record,
        names: Default::default(),
    }
}

impl ImageBuilder {
    fn with(mut self, change: impl FnOnce(&mut wire::ImageRecord)) -> Self {
        change(&mut self.record);
        self
    }

    fn flags(self, flags: u32) -> Self {
        self.with(|r| r.flags.set(r.flags.get() | flags))
    }

    fn backing(mut self, name: &[u8], format: Option<&[u8]>) -> Self {
        self.names[0] = name.to_vec();
        self = self.flags(wire::IMAGE_BACKING);
        if let Some(format) = format {
            self.names[1] = format.to_vec();
            self = self.flags(wire::IMAGE_BACKING_FORMAT);
        }
        self
    }

    fn data_file(mut self, name: &[u8]) -> Self {
        self.names[2] = name.to_vec();
        self.flags(wire::IMAGE_DATA_FILE | wire::IMAGE_DATA_FILE_NAME)
    }

    fn done(mut self) -> Record {
        let [backing, format, data] = &self.names;
        self.record.backing_len.set(backing.len() as u32);
        self.record.backing_format_len.set(format.len() as u32);
        self.record.data_file_len.set(data.len() as u32);
        let payload = [self.record.as_bytes(), backing, format, data].concat();
        (RecordKind::Image, payload)
    }
}

fn snapshot(snapshot: &oracle::Snapshot) -> Record {
    let mut record = wire::SnapshotRecord::zeroed();
    record.vm_state_size.set(snapshot.vm_state_size);
    record.date_sec.set(snapshot.date_sec);
    record.date_nsec.set(snapshot.date_nsec);
    record.vm_clock_nsec.set(snapshot.vm_clock_nsec);
    record.icount.set(snapshot.icount);
    record.id_len.set(snapshot.id.len() as u32);
    record.name_len.set(snapshot.name.len() as u32);
    let payload = [record.as_bytes(), &snapshot.id, &snapshot.name].concat();
    (RecordKind::Snapshot, payload)
}

fn bitmap(name: &[u8], flags: u32, granularity: u64) -> Record {
    let mut record = wire::BitmapRecord::zeroed();
    record.flags.set(flags);
    record.granularity.set(granularity);
    record.name_len.set(name.len() as u32);
    (RecordKind::Bitmap, [record.as_bytes(), name].concat())
}

/// A folder with images, and both programs asked about them.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn create(&self, arguments: &[&str]) {
        oracle::stdout(
            self.path(),
            &[&["create", "-q", "-f", "qcow2"], arguments].concat(),
        );
    }

    fn patch(&self, name: &str, offset: usize, bytes: &[u8]) {
        let path = self.path().join(name);
        let mut image = std::fs::read(&path).unwrap();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        std::fs::write(path, image).unwrap();
    }

    fn facts(&self, name: &[u8]) -> FileFacts {
        let metadata = std::fs::metadata(self.path().join(OsStr::from_bytes(name))).unwrap();
        FileFacts {
            direct_align: 0,
            start_bytes: 0,
            name: OsStr::from_bytes(name).to_owned(),
            len_bytes: metadata.len(),
            disk_bytes: metadata.blocks() * 512,
            given_name: OsStr::from_bytes(name).to_owned(),
            block_device: false,
            character_device: metadata.file_type().is_char_device(),
            parent_slot: None,
        }
    }

    /// Fails unless text and JSON are those of `qemu-img info`, with the images in slots 0, 1, ...
    #[track_caller]
    fn compare(&self, names: &[&str], chain: bool, records: &[Record]) {
        let facts: Vec<_> = names
            .iter()
            .map(|name| self.facts(name.as_bytes()))
            .collect();
        let mut model = Chain::default();
        let has_file = |slot: u32| (slot as usize) < facts.len();
        for (kind, payload) in records {
            model.add(*kind, payload, &has_file).unwrap();
        }
        let described: Vec<_> = model
            .images()
            .iter()
            .map(|image| Described::new(image, &facts[image.slot as usize]))
            .collect();
        let zone = Zone::from_variable(Some(OsStr::new("UTC")));
        for output in ["human", "json"] {
            let mut ours = Vec::new();
            if output == "human" {
                human::print(&mut ours, &described, &zone);
            } else {
                json::print(&mut ours, &described, chain);
            }
            let mut command = Command::new("qemu-img");
            command.args(["info", "--output", output]).env("TZ", "UTC");
            if chain {
                command.arg("--backing-chain");
            }
            command.arg(names[0]).current_dir(self.path());
            let theirs = command.output().expect("the tests compare with qemu-img");
            assert!(
                theirs.status.success(),
                "{}",
                String::from_utf8_lossy(&theirs.stderr)
            );
            if ours != theirs.stdout {
                let (ours, theirs) = (
                    String::from_utf8_lossy(&ours).into_owned(),
                    String::from_utf8_lossy(&theirs.stdout).into_owned(),
                );
                assert_eq!(ours, theirs);
                panic!("the bytes differ where they are not text");
            }
        }
    }
}

#[test]
fn create_options_equal_qemu_img() {
    let bench = Bench::new();
    bench.create(&["a", "64M"]);
    bench.compare(&["a"], false, &[qcow2(0).done()]);
    bench.create(&["-o", "compat=0.10", "b", "64M"]);
    bench.compare(&["b"], false, &[qcow2(0).with(|r| r.version.set(2)).done()]);
    let options = "compression_type=zstd,lazy_refcounts=on,refcount_bits=64,cluster_size=4k";
    bench.create(&["-o", options, "c", "64M"]);
    let zstd = qcow2(0).flags(wire::IMAGE_LAZY_REFCOUNTS).with(|r| {
        r.cluster_size.set(4096);
        r.refcount_bits.set(64);
        r.compression.set(1);
    });
    bench.compare(&["c"], false, &[zstd.done()]);
    bench.create(&["-o", "extended_l2=on,refcount_bits=1", "d", "10000000"]);
    let extended = qcow2(0).flags(wire::IMAGE_EXTENDED_L2).with(|r| {
        r.virtual_size.set(10_000_384);
        r.refcount_bits.set(1);
    });
    bench.compare(&["d"], false, &[extended.done()]);
    bench.create(&["-o", "data_file=data.raw,data_file_raw=on", "e", "64M"]);
    let data = qcow2(0)
        .data_file(b"data.raw")
        .flags(wire::IMAGE_DATA_FILE_RAW);
    bench.compare(&["e"], false, &[data.done()]);
    bench.create(&["-o", "data_file=data.raw", "f", "64M"]);
    bench.compare(&["f"], false, &[qcow2(0).data_file(b"data.raw").done()]);
}

#[test]
fn raw_files_equal_qemu_img() {
    let bench = Bench::new();
    for size in [0, 1, 511, 512, 513, 1_000_000, 1_048_051_712, 1 << 40] {
        let file = std::fs::File::create(bench.path().join("a")).unwrap();
        file.set_len(size).unwrap();
        bench.compare(&["a"], false, &[raw(0, size).done()]);
    }
    bench.compare(&["/dev/null"], false, &[raw(0, 0).done()]);
}

#[test]
fn header_flags_equal_qemu_img() {
    let bench = Bench::new();
    for (bits, flags) in [
        (1, wire::IMAGE_DIRTY),
        (2, wire::IMAGE_CORRUPT),
        (3, wire::IMAGE_DIRTY | wire::IMAGE_CORRUPT),
    ] {
        bench.create(&["a", "64M"]);
        bench.patch("a", 79, &[bits]);
        bench.compare(&["a"], false, &[qcow2(0).flags(flags).done()]);
    }
}

#[test]
fn chains_equal_qemu_img() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path().join("d")).unwrap();
    bench.create(&["d/base", "64M"]);
    bench.create(&["-b", "./base", "-F", "qcow2", "d/middle"]);
    bench.create(&["-b", "d/middle", "-F", "qcow2", "top"]);
    let records = [
        qcow2(0).backing(b"d/middle", Some(b"qcow2")).done(),
        qcow2(1).backing(b"./base", Some(b"qcow2")).done(),
        qcow2(2).done(),
    ];
    bench.compare(&["top"], false, &records[..1]);
    bench.compare(&["top", "d/middle", "d/./base"], true, &records);
    let middle = qcow2(0).backing(b"./base", Some(b"qcow2")).done();
    bench.compare(&["d/middle"], false, &[middle]);
}

#[test]
fn backing_names_of_any_bytes_equal_qemu_img() {
    let bench = Bench::new();
    bench.create(&["base", "64M"]);
    let placeholder = "x".repeat(900);
    bench.create(&["-u", "-b", &placeholder, "-F", "qcow2", "a", "64M"]);
    std::fs::create_dir(bench.path().join("d")).unwrap();
    let image = std::fs::read(bench.path().join("a")).unwrap();
    let offset = u64::from_be_bytes(image[8..16].try_into().unwrap()) as usize;
    for name in [
        &b"a\x01\x1b[31m\x7f\t\n\"\\/"[..],
        b"\xff\xfe\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc0\x80\xed\xa0\x80",
        b"\xc3(\xe2\x82(\xf4\x90\x80\x80\xef\xbf\xbf\xef\xbf\xbe\xe2\x80\xa8\xc2\x80",
        b"a\0b",
        b"foo:bar",
        b"json:{}",
        b"./a:b",
        b"/etc/hostname",
        b"../d/base",
    ] {
        bench.patch("a", 16, &(name.len() as u32).to_be_bytes());
        bench.patch("a", offset, name);
        let record = || qcow2(0).backing(name, Some(b"qcow2")).done();
        bench.compare(&["a"], false, &[record()]);
        std::fs::copy(bench.path().join("a"), bench.path().join("d/a")).unwrap();
        bench.compare(&["d/a"], false, &[record()]);
        bench.compare(&["./d/a"], false, &[record()]);
    }
}

#[test]
fn snapshots_equal_qemu_img() {
    let bench = Bench::new();
    let mut snapshots = vec![
        oracle::Snapshot {
            id: b"x".repeat(400),
            name: b"y".repeat(400),
            ..Default::default()
        },
        oracle::Snapshot {
            id: vec![],
            name: b"\xff\xc3\xa9\0x".to_vec(),
            ..Default::default()
        },
    ];
    for number in [
        0,
        1,
        999_999,
        3_600_000_000_000,
        35_999_999_999_000_000,
        1 << 62,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ] {
        snapshots.push(oracle::Snapshot {
            date_sec: number as u32,
            date_nsec: (number >> 7) as u32,
            vm_clock_nsec: number,
            vm_state_size: number,
            icount: number,
            ..Default::default()
        });
    }
    oracle::image_with_snapshots(&bench.path().join("a"), &snapshots);
    let mut records = vec![qcow2(0).done()];
    records.extend(snapshots.iter().map(snapshot));
    bench.compare(&["a"], false, &records);
}

/// Bytes that begin, continue and break UTF-8 sequences.
const NAME_BYTES: [u8; 14] = [
    0xc0, 0x80, 0xe2, 0xef, 0xbf, 0xbe, 0xf0, 0xf4, 0x90, 0xed, 0xa0, 0xfc, b'a', 1,
];

#[test]
fn sizes_and_names_of_many_values_equal_qemu_img() {
    let bench = Bench::new();
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut snapshots = Vec::new();
    for index in 0..4000_u64 {
        let size = match index % 4 {
            // Around the places where a unit or the number of digits changes.
            0 => (1000_u64 << (10 * (random() % 6)))
                .wrapping_add(random() % 64)
                .wrapping_sub(32),
            1 => (1_u64 << (random() % 64)).wrapping_sub(random() % 2),
            _ => random() >> (random() % 64),
        };
        let name: Vec<u8> = (0..random() % 24)
            .map(|_| match random() % 19 {
                index @ 0..14 => NAME_BYTES[index as usize],
                _ => random() as u8,
            })
            .collect();
        snapshots.push(oracle::Snapshot {
            name,
            vm_state_size: size,
            ..Default::default()
        });
    }
    oracle::image_with_snapshots(&bench.path().join("a"), &snapshots);
    let mut records = vec![qcow2(0).done()];
    records.extend(snapshots.iter().map(snapshot));
    bench.compare(&["a"], false, &records);
}

#[test]
fn bitmaps_equal_qemu_img() {
    let bench = Bench::new();
    bench.create(&["a", "64M"]);
    oracle::stdout(bench.path(), &["bitmap", "--add", "a", "first"]);
    oracle::stdout(
        bench.path(),
        &["bitmap", "--add", "-g", "2M", "--disable", "a", "second"],
    );
    let records = |flags| {
        [
            qcow2(0).flags(wire::IMAGE_BITMAPS).done(),
            bitmap(b"first", flags, 65536),
            bitmap(b"second", 0, 2 << 20),
        ]
    };
    bench.compare(&["a"], false, &records(wire::BITMAP_AUTO));
    let image = std::fs::read(bench.path().join("a")).unwrap();
    // The entry's flags stand 12 bytes before its name (qcow2 "Bitmap directory"); old copies of the directory may lie around.
    for (offset, _) in image
        .windows(5)
        .enumerate()
        .filter(|(_, bytes)| *bytes == b"first")
    {
        bench.patch("a", offset - 12, &3_u32.to_be_bytes());
    }
    bench.compare(
        &["a"],
        false,
        &records(wire::BITMAP_AUTO | wire::BITMAP_IN_USE),
    );
}

/// The LUKS1 header of an image, read as the LUKS1 specification lays it out.
fn luks_record(image: &[u8], cipher: &str, hash_of_iv: &str) -> Record {
    let offset = image
        .windows(6)
        .position(|bytes| bytes == b"LUKS\xba\xbe")
        .unwrap();
    let header = &image[offset..];
    let u32_at = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut record = wire::LuksRecord::new_zeroed();
    let mode = String::from_utf8(crate::text::until_nul(&header[40..72]).to_vec()).unwrap();
    let (mode, iv) = mode.split_once('-').unwrap();
    let iv = iv.split(':').next().unwrap();
    for (field, text) in [
        (&mut record.cipher_alg[..], cipher),
        (&mut record.cipher_mode[..], mode),
        (&mut record.ivgen_alg[..], iv),
        (&mut record.ivgen_hash_alg[..], hash_of_iv),
    ] {
        field[..text.len()].copy_from_slice(text.as_bytes());
    }
    record.hash_alg.copy_from_slice(&header[72..104]);
    record.uuid.copy_from_slice(&header[168..208]);
    record.payload_offset.set(u64::from(u32_at(104)) * 512);
    record.master_key_iterations.set(u32_at(164));
    for (index, slot) in record.slots.iter_mut().enumerate() {
        let at = 208 + index * 48;
        slot.active.set(u32::from(u32_at(at) == 0x00ac_71f3));
        slot.iterations.set(u32_at(at + 4));
        slot.key_offset.set(u64::from(u32_at(at + 40)) * 512);
        slot.stripes.set(u32_at(at + 44));
    }
    (RecordKind::Luks, record.as_bytes().to_vec())
}

#[test]
fn encryption_equals_qemu_img() {
    let bench = Bench::new();
    let secret = ["--object", "secret,id=s,data=abc"];
    let aes = [
        &secret[..],
        &["-o", "encrypt.format=aes,encrypt.key-secret=s", "a", "64M"],
    ]
    .concat();
    bench.create(&aes);
    bench.compare(
        &["a"],
        false,
        &[qcow2(0).with(|r| r.encryption.set(1)).done()],
    );
    let essiv = "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256";
    for (name, cipher, hash, more) in [("b", "aes-256", "", ""), ("c", "aes-128", "sha256", essiv)]
    {
        let options =
            format!("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,{more}");
        bench.create(
            &[
                &secret[..],
                &["-o", options.trim_end_matches(','), name, "64M"],
            ]
            .concat(),
        );
        let image = std::fs::read(bench.path().join(name)).unwrap();
        let record = qcow2(0).with(|r| r.encryption.set(2)).done();
        bench.compare(&[name], false, &[record, luks_record(&image, cipher, hash)]);
    }
}

#[test]
fn everything_at_once_equals_qemu_img() {
    let bench = Bench::new();
    bench.create(&["base", "64M"]);
    let snapshots = [oracle::Snapshot::default()];
    oracle::image_with_snapshots(&bench.path().join("a"), &snapshots);
    // Encrypted with AES, dirty and corrupt.
    bench.patch("a", 32, &1_u32.to_be_bytes());
    bench.patch("a", 79, &[3]);
    // A backing file's name in the free room of the header cluster.
    bench.patch("a", 8, &4096_u64.to_be_bytes());
    bench.patch("a", 16, &4_u32.to_be_bytes());
    bench.patch("a", 4096, b"base");
    let image = qcow2(0)
        .flags(wire::IMAGE_DIRTY | wire::IMAGE_CORRUPT)
        .with(|r| r.encryption.set(1))
        .backing(b"base", None);
    bench.compare(&["a"], false, &[image.done(), snapshot(&snapshots[0])]);
}
