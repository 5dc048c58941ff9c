//! File systems that their own programs made: all that is in them, and what hostile ones do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use instar_filesystem::{Cached, Content, Files, FsError, NodeKind, Part, probe};
use instar_storage::{FileStorage, Storage, StorageError};
use instar_tests::layouts::{Fs, Part as Made, Tree, content};
use instar_tests::rng::{Rng, count};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

const UUID: &str = "3f1e2d4c-1111-4a2b-8c3d-000000000001";
const KINDS: &[(Fs, u64, &str)] = &[
    (Fs::Ext4, 32, "ext4"),
    (Fs::Ext2, 32, "ext2"),
    (Fs::Vfat, 4, "vfat"),
    (Fs::Vfat, 24, "vfat"),
    (Fs::Vfat, 300, "vfat"),
    (Fs::Xfs, 320, "xfs"),
    (Fs::Btrfs, 128, "btrfs"),
];
const LARGE: usize = 1_500_001;

fn tree(fs: Fs) -> Tree {
    let mut tree = Tree::new()
        .unwrap()
        .file("/boot/grub/grub.cfg", "set default=0\n")
        .unwrap()
        .file(
            "/boot/a-long-name-with-Ünïcode-and-more-than-thirteen.conf",
            "long",
        )
        .unwrap()
        .file("/boot/large", content("large", LARGE))
        .unwrap()
        .file("/empty", "")
        .unwrap();
    for number in 0..100 {
        let path = format!("/many/file-{number}");
        tree = tree.file(&path, path.as_bytes()).unwrap();
    }
    if fs == Fs::Vfat {
        return tree;
    }
    let long = format!("/boot/{}/grub/grub.cfg", "./".repeat(100));
    for (path, target) in [
        ("/vmlinuz", "boot/large"),
        ("/boot/up", "../empty"),
        ("/boot/absolute", "/boot/grub"),
        ("/boot/boot", "."),
        ("/loop", "loop2"),
        ("/loop2", "loop"),
        ("/far", &long),
        ("/out", "../../../../empty"),
        ("/dangling", "nowhere"),
    ] {
        tree = tree.link(path, target).unwrap();
    }
    tree
}

fn made(fs: Fs, mib: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(mib << 20).unwrap();
    let (label, kind, tree) = ("boot-label", "", tree(fs));
    let part = Made {
        number: 1,
        mib,
        kind,
        fs,
        uuid: UUID,
        label,
        tree,
    };
    part.make(file.path()).unwrap();
    file
}

fn files(file: &File) -> Files {
    let store = FileStorage::new(file.try_clone().unwrap()).unwrap();
    let len = file.metadata().unwrap().len();
    match probe(&Part::new(Rc::new(store), 0, len)) {
        Ok(Content::Files(files)) => files,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_in_a_file_system_is_found() {
    for (fs, mib, name) in KINDS {
        let image = made(*fs, *mib);
        let files = files(image.as_file());
        let what = format!("{name} of {mib} MiB");
        assert_eq!(files.fs().name(), *name);
        let label = files.fs().label().to_lowercase();
        assert_eq!(label, "boot-label", "{what}");
        let uuid = if *fs == Fs::Vfat { "3F1E-2D4C" } else { UUID };
        assert_eq!(files.fs().uuid(), uuid, "{what}");
        let read = |path: &str| files.read_all(path.as_bytes(), 1 << 30);
        assert_eq!(
            read("/boot/grub/grub.cfg").unwrap(),
            b"set default=0\n",
            "{what}"
        );
        assert_eq!(
            read("//boot/./grub/../grub//grub.cfg").unwrap(),
            b"set default=0\n"
        );
        let long = "/boot/a-long-name-with-Ünïcode-and-more-than-thirteen.conf";
        assert_eq!(read(long).unwrap(), b"long", "{what}");
        assert!(
            read("/boot/large").unwrap() == content("large", LARGE),
            "{what}"
        );
        assert_eq!(read("/empty").unwrap(), b"");
        let many = files.list(b"/many").unwrap();
        assert_eq!(many.len(), 100, "{what}");
        for file in &many {
            let path = format!("/many/{}", std::str::from_utf8(file).unwrap());
            assert_eq!(read(&path).unwrap(), path.as_bytes(), "{what}");
        }
        let mut part = [0; 1000];
        let large = files.open(b"/boot/large").unwrap();
        for at in [0, 4095, 700_000, LARGE - 10, 5, LARGE] {
            let done = files.read(&large, at as u64, &mut part).unwrap();
            let expected = &content("large", LARGE)[at..(at + 1000).min(LARGE)];
            assert!(part[..done] == *expected, "{what} at {at}");
        }
        assert_eq!(read("/boot/nothing"), Err(FsError::NotFound), "{what}");
        assert_eq!(read("/empty/x"), Err(FsError::NotAFolder), "{what}");
        assert_eq!(read("/boot"), Err(FsError::NotAFile), "{what}");
        assert_eq!(files.list(b"/empty"), Err(FsError::NotAFolder), "{what}");
        let (len, max) = (LARGE as u64, 10);
        assert_eq!(
            files.read_all(b"/boot/large", max),
            Err(FsError::TooLarge { len, max })
        );
        if *fs != Fs::Vfat {
            links(&files, &what);
        }
    }
}

fn links(files: &Files, what: &str) {
    let read = |path: &str| files.read_all(path.as_bytes(), 1 << 30);
    assert_eq!(read("/vmlinuz").unwrap().len(), LARGE, "{what}");
    assert_eq!(read("/boot/up").unwrap(), b"", "{what}");
    for path in [
        "/boot/absolute/grub.cfg",
        "/boot/boot/boot/boot/grub/grub.cfg",
        "/far",
    ] {
        assert_eq!(read(path).unwrap(), b"set default=0\n", "{what}: {path}");
    }
    assert_eq!(read("/out").unwrap(), b"", "{what}");
    assert_eq!(read("/loop"), Err(FsError::TooManyLinks), "{what}");
    assert_eq!(read("/dangling"), Err(FsError::NotFound), "{what}");
    assert_eq!(files.node(b"/boot/boot").unwrap().kind, NodeKind::Folder);
    let round = format!("{}/grub/grub.cfg", "/boot/boot".repeat(50));
    assert_eq!(read(&round), Err(FsError::TooManyLinks), "{what}");
}

/// A file with other bytes here and there, cut to a length.
struct Damaged {
    file: FileStorage,
    bytes: Vec<(u64, u8)>,
    len: u64,
}

impl Storage for Damaged {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_at(offset, buf)?;
        for (at, byte) in &self.bytes {
            let index = at
                .checked_sub(offset)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(place) = index.and_then(|at| buf.get_mut(at)) {
                *place = *byte;
            }
        }
        Ok(())
    }
}

/// What a boot loader's search does to a file system.
fn look_around(store: Damaged) {
    let len = store.len;
    let part = Part::new(Rc::new(Cached::new(store)), 0, len);
    let Ok(Content::Files(files)) = probe(&part) else {
        return;
    };
    for path in [
        "/boot/grub/grub.cfg",
        "/boot/large",
        "/vmlinuz",
        "/far",
        "/loop",
        "/many/file-7",
    ] {
        let _ = files.read_all(path.as_bytes(), 4 << 20);
    }
    for path in ["/", "/many", "/boot"] {
        let _ = files.list(path.as_bytes());
    }
}

/// Offsets of the first sectors that hold something; most of the others are the large file's, without structure.
fn used_sectors(image: &File) -> Vec<u64> {
    let mut used = Vec::new();
    let mut sector = [0; 512];
    for at in (0..image.metadata().unwrap().len()).step_by(512) {
        image.read_exact_at(&mut sector, at).unwrap();
        if sector != [0; 512] {
            used.push(at);
        }
        if used.len() == 400 {
            break;
        }
    }
    used
}

/// Damaged file systems end with an error or with other content, and soon. `INSTAR_SEED` repeats a run,
/// `INSTAR_CASES` says how many there are of each.
#[test]
fn damage_is_no_more_than_an_error() {
    let mut rng = Rng::for_test("filesystem damage");
    for (fs, mib, name) in KINDS {
        let image = made(*fs, *mib);
        let whole = image.as_file().metadata().unwrap().len();
        let used = used_sectors(image.as_file());
        for case in 0..count("INSTAR_CASES", 25) {
            let change = |rng: &mut Rng| {
                let at = *rng.pick(&used) + rng.below(512);
                (at, *rng.pick(&[0, 1, 0x7f, 0x80, 0xff]))
            };
            let bytes = (0..=rng.below(8)).map(|_| change(&mut rng)).collect();
            let len = if rng.below(4) == 0 {
                rng.below(whole)
            } else {
                whole
            };
            println!("{name} {case}: {bytes:?} of {len}");
            let file = FileStorage::new(image.as_file().try_clone().unwrap()).unwrap();
            look_around(Damaged { file, bytes, len });
        }
    }
}
