//! What is refused, in `qemu-img`'s words and order; the image stays as it was, byte by byte.

use crate::ours::{Steps, arguments, load, on_file, open_chain, resize, save, sentence, size, to};
use crate::{kinds, qemu};
use instar_plan_resize::{
    Image, Layer, NewSize, Preallocation, Request, ResizeError, SHRINK_WARNING,
    resize_qcow2_unpacked,
};
use std::fs;
use std::path::Path;

const NAME: &str = "a.qcow2";
const EIB: u64 = 1 << 60;

fn both(dir: &Path, request: &Request) -> (String, String) {
    fs::copy(dir.join(NAME), dir.join("b.qcow2")).unwrap();
    let mut args = arguments(request);
    args.extend(["-f", "qcow2", "b.qcow2", "--"].map(String::from));
    args.push(size(request));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let theirs = qemu::img(dir, &args).stderr;
    let ours = on_file(dir, NAME, request).err().unwrap_or_default();
    (ours, theirs)
}

fn sizes() -> Vec<Request> {
    let sizes = [
        NewSize::Absolute(0),
        NewSize::Absolute(1),
        NewSize::Absolute(1000),
        NewSize::Absolute(100_000_001),
        NewSize::Absolute(1 << 20),
        NewSize::Absolute(7 * EIB),
        NewSize::Absolute(8 * EIB - 1),
        NewSize::Absolute(8 * EIB - 512),
        NewSize::Absolute(8 * EIB),
        NewSize::Absolute(9 * EIB),
        NewSize::Absolute(3 << 50),
        NewSize::Grow(0),
        NewSize::Grow(1),
        NewSize::Grow(8 * EIB - 1),
        NewSize::Grow(8 * EIB),
        NewSize::Grow(9 * EIB),
        NewSize::Shrink(512),
        NewSize::Shrink(1 << 20),
        NewSize::Shrink(5 << 20),
        NewSize::Shrink(8 * EIB),
        NewSize::Shrink(9 * EIB),
    ];
    let mut all = Vec::new();
    for size in sizes {
        for preallocation in [Preallocation::Off, Preallocation::Full] {
            for shrink in [false, true] {
                let request = Request {
                    size,
                    preallocation,
                    shrink,
                };
                all.push(request);
            }
        }
    }
    all
}

#[test]
fn sizes_are_refused_alike() {
    let mut refused = 0;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    for kind in ["v3", "snapshots v2", "in use"] {
        let options = if kind == "snapshots v2" {
            "compat=0.10"
        } else {
            "compat=1.1"
        };
        qemu::img_ok(
            path,
            &["create", "-q", "-f", "qcow2", "-o", options, NAME, "1M"],
        );
        match kind {
            "snapshots v2" => drop(qemu::img_ok(path, &["snapshot", "-c", "one", NAME])),
            "in use" => {
                for name in ["one", "two"] {
                    qemu::img_ok(path, &["bitmap", "--add", NAME, name]);
                }
                mark_in_use(&path.join(NAME));
            }
            _ => {}
        }
        let start = fs::read(path.join(NAME)).unwrap();
        for request in sizes() {
            let (ours, theirs) = both(path, &request);
            assert_eq!(ours, theirs, "{kind}: {request:?}");
            refused += usize::from(!ours.is_empty());
            fs::write(path.join(NAME), &start).unwrap();
        }
    }
    assert!(refused > 150, "{refused}");
}

/// Sets the "in use" flag of every bitmap.
fn mark_in_use(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let store = load(path);
    let header = instar_qcow2::Header::read(&store, instar_qcow2::OpenMode::Change).unwrap();
    let extension = header.extensions.bitmaps.unwrap();
    let (mut at, end) = (
        extension.directory_offset.get() as usize,
        extension.directory_size as usize,
    );
    let end = at + end;
    while at < end {
        bytes[at + 15] |= 1;
        let name = usize::from(u16::from_be_bytes([bytes[at + 18], bytes[at + 19]]));
        at += (24 + name).next_multiple_of(8);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_warning_follows_only_an_unmeant_shrink() {
    let text = sentence(&ResizeError::ShrinkNotAsked);
    assert_eq!(text.matches(SHRINK_WARNING).count(), 1);
    assert_eq!(
        sentence(&ResizeError::NotPositive),
        "qemu-img: New image size must be positive\n"
    );
}

/// Compressed clusters of extended L2 entries cannot be marked in part. Where the format can say it, the data stays;
/// `qemu-img` 10.0 loses it with preallocation.
#[test]
fn a_compressed_cluster_with_subclusters_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let kind = kinds::KINDS
        .iter()
        .find(|kind| kind.name == "extended-over")
        .unwrap();
    let mut refused = 0;
    for (start, end) in [
        (75, 76),
        (75, 300),
        (74, 300),
        (127, 300),
        (127, 128),
        (64, 300),
    ] {
        for preallocation in [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
        ] {
            kind.make(path, start << 10);
            qemu::io(path, NAME, &format!("write -c -P 200 0 {start}k"));
            let request = to(end << 10, preallocation);
            let (ours, theirs) = both(path, &request);
            assert_eq!(ours, theirs, "{start} {request:?}");
            if !ours.is_empty() {
                refused += 1;
                continue;
            }
            qemu::check(path, NAME, "ours");
            let bytes = qemu::content(path, NAME, None);
            let (head, tail) = bytes.split_at((start as usize) << 10);
            assert!(head.iter().all(|b| *b == 200), "{start} {request:?}");
            assert!(tail.iter().all(|b| *b == 0), "{start} {request:?}");
        }
    }
    assert_eq!(refused, 2);
}

/// A program without decompressors leaves an image alone that needs one, and does all else.
#[test]
fn without_decompressors_an_image_that_needs_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let create = |more: &[&str]| {
        let words = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
        qemu::img_ok(path, &[&words, more].concat());
    };
    create(&["base.qcow2", "1M"]);
    qemu::io(path, "base.qcow2", "write -c -P 7 100k 4k");
    let over = ["-b", "base.qcow2", "-F", "qcow2", NAME, "104448"];
    for (more, write, left_alone) in [
        (&[NAME, "104448"][..], "write -c -P 9 100k 2k", true),
        (&[NAME, "104448"], "write -P 9 100k 2k", false),
        // The cluster is in the backing file, and what is behind the old end must not show.
        (&over, "write -c -P 9 0 4k", true),
        (&over, "write -P 9 100k 2k", false),
    ] {
        create(more);
        qemu::io(path, NAME, write);
        let chain = open_chain(path, NAME);
        let [top, below @ ..] = chain.as_slice() else {
            panic!("no image")
        };
        let header = top.header.as_ref().unwrap();
        let image = Image {
            storage: &top.store,
            data: None,
            header,
            cipher: None,
        };
        let below: Vec<_> = below
            .iter()
            .map(|opened| Layer {
                storage: &opened.store,
                data: None,
                header: opened.header.as_ref(),
                cipher: None,
            })
            .collect();
        let request = to(1 << 20, Preallocation::Metadata);
        let done = resize_qcow2_unpacked(image, &below, &request, &mut Steps(u64::MAX));
        assert_eq!(done == Err(ResizeError::Compressed), left_alone, "{write}");
        let now = path.join("now.qcow2");
        save(&top.store, &now);
        let is_as_it_was = fs::read(now).unwrap() == fs::read(path.join(NAME)).unwrap();
        assert_eq!(is_as_it_was, left_alone, "{write}: {done:?}");
    }
}

/// Encrypted data cannot be copied without the key; everything else can be done.
#[test]
fn an_encrypted_image_is_resized_as_far_as_it_needs_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let secret = "secret,id=sec0,data=example";
    let options = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10";
    let create = |size: &str| {
        qemu::img_ok(
            path,
            &[
                "create", "-q", "-f", "qcow2", "--object", secret, "-o", options, NAME, size,
            ],
        );
    };
    create("1M");
    for size in [2 << 20, 80 << 10, 512 << 10] {
        on_file(path, NAME, &to(size, Preallocation::Off)).unwrap();
        crate::state::sound(&load(&path.join(NAME))).unwrap();
    }
    create("80k");
    let text = on_file(path, NAME, &to(1 << 20, Preallocation::Metadata)).unwrap_err();
    assert_eq!(
        text,
        "qemu-img: Parameter 'encrypt.key-secret' is required for cipher\n"
    );
}

/// A bitmap that would be too large: `qemu-img` loses it, and says so after the fact.
#[test]
fn a_bitmap_that_would_be_too_large_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    qemu::img_ok(path, &["create", "-q", "-f", "qcow2", NAME, "1M"]);
    qemu::img_ok(path, &["bitmap", "--add", "-g", "512", NAME, "bm"]);
    let text = on_file(path, NAME, &to(3 << 40, Preallocation::Off)).unwrap_err();
    assert_eq!(
        text,
        "qemu-img: Bitmap 'bm' doesn't satisfy the constraints: Too much space will be occupied by the bitmap. \
         Use larger granularity\n"
    );
    on_file(path, NAME, &to(2 << 40, Preallocation::Off)).unwrap();
    qemu::check(path, NAME, "ours");
}

/// A device has no room for what would be reserved.
#[test]
fn nothing_is_reserved_past_a_devices_end() {
    let dir = tempfile::tempdir().unwrap();
    qemu::img_ok(dir.path(), &["create", "-q", "-f", "qcow2", NAME, "1M"]);
    let mut chain = open_chain(dir.path(), NAME);
    let len = 4 << 20;
    let device = chain.remove(0);
    instar_storage::StorageMut::set_len(&device.store, len).unwrap();
    let chain = [crate::ours::Opened {
        store: Device(device.store),
        data: None,
        header: device.header,
    }];
    let grow = |size, how| resize(&chain, &to(size, how), &mut crate::ours::Steps(u64::MAX));
    assert_eq!(
        grow(40 << 20, Preallocation::Metadata),
        Err(ResizeError::DeviceFull)
    );
    assert!(grow(3 << 20, Preallocation::Metadata).is_ok());
    assert_eq!(instar_storage::Storage::len_bytes(&chain[0].store), len);
    crate::state::sound(&chain[0].store).unwrap();
}

/// A store of fixed length.
pub struct Device(pub instar_storage::MemStorage);

mod device {
    use super::Device;
    use instar_storage::{Reserve, Storage, StorageError, StorageMut};

    impl Device {
        fn fits(&self, offset: u64, len: u64) -> Result<(), StorageError> {
            if offset + len > self.0.len_bytes() {
                return Err(StorageError { errno: 28, offset });
            }
            Ok(())
        }
    }

    impl Storage for Device {
        fn len_bytes(&self) -> u64 {
            self.0.len_bytes()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
            self.0.read_at(offset, buf)
        }
    }

    impl StorageMut for Device {
        fn can_grow(&self) -> bool {
            false
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
            self.fits(offset, buf.len() as u64)?;
            self.0.write_at(offset, buf)
        }
        fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
            self.fits(offset, len)?;
            self.0.write_zeroes(offset, len)
        }
        fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
            self.0.discard(offset, len)
        }
        fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
            self.fits(offset, len)?;
            self.0.allocate(offset, len, how)
        }
        fn set_len(&self, len: u64) -> Result<(), StorageError> {
            Err(StorageError {
                errno: 22,
                offset: len,
            })
        }
        fn flush(&self) -> Result<(), StorageError> {
            self.0.flush()
        }
    }
}
