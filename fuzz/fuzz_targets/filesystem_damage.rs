//! Readers of file systems over images of mkfs programs with other bytes in their first sectors that hold something.
//!
//! The first byte says which file system, then four bytes each say which sector, where in it, and what.
#![no_main]

use instar_filesystem::{Cached, Content, Part, probe};
use instar_storage::{Storage, StorageError};
use instar_tests::layouts::{Fs, Part as Made, Tree, content};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

/// Sectors that are changed.
const SECTORS: usize = 256;

struct Image {
    /// Sectors that hold something, sorted by offset.
    data: Vec<(u64, [u8; 512])>,
    len: u64,
}

struct Damaged {
    image: Arc<Image>,
    changed: RefCell<Vec<(u64, u8)>>,
}

impl Storage for Damaged {
    fn len_bytes(&self) -> u64 {
        self.image.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        let first = self
            .image
            .data
            .partition_point(|(at, _)| at + 512 <= offset);
        for (at, bytes) in &self.image.data[first..] {
            if *at >= end {
                break;
            }
            let (from, to) = (offset.max(*at), end.min(at + 512));
            let part = &bytes[(from - at) as usize..(to - at) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        for (at, byte) in self.changed.borrow().iter() {
            if *at >= offset && *at < end {
                buf[(at - offset) as usize] = *byte;
            }
        }
        Ok(())
    }
}

fn images() -> &'static [Arc<Image>] {
    static IMAGES: OnceLock<Vec<Arc<Image>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let kinds = [
            (Fs::Ext4, 8),
            (Fs::Vfat, 8),
            (Fs::Xfs, 320),
            (Fs::Btrfs, 128),
            (Fs::Ext2, 4),
            (Fs::Vfat, 64),
        ];
        kinds
            .iter()
            .map(|(fs, mib)| Arc::new(image(*fs, *mib)))
            .collect()
    })
}

fn image(fs: Fs, mib: u64) -> Image {
    let mut tree = Tree::new()
        .unwrap()
        .file("/boot/grub/grub.cfg", "set a=b\n")
        .unwrap();
    tree = tree
        .file("/boot/kernel", content("kernel", 50_000))
        .unwrap();
    for number in 0..40 {
        tree = tree.file(&format!("/many/file-{number}"), "x").unwrap();
    }
    if fs != Fs::Vfat {
        tree = tree.link("/vmlinuz", "boot/kernel").unwrap();
    }
    let part = Made {
        number: 1,
        mib,
        kind: "",
        fs,
        uuid: "3f1e2d4c-1111-4a2b-8c3d-000000000001",
        label: "boot",
        tree,
    };
    let path = std::env::temp_dir().join(format!("instar-fuzz-{}-{mib}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    part.make(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let sectors = (0_u64..).step_by(512).zip(bytes.as_chunks::<512>().0);
    let data = sectors
        .filter(|(_, bytes)| **bytes != [0; 512])
        .map(|(at, bytes)| (at, *bytes))
        .collect();
    Image {
        data,
        len: mib << 20,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, changes)) = data.split_first() else {
        return;
    };
    let all = images();
    let image = all[usize::from(*kind) % all.len()].clone();
    let changed = changes
        .as_chunks::<4>()
        .0
        .iter()
        .take(64)
        .filter_map(|change| {
            let [sector, high, low, byte] = *change;
            let (at, _) = image.data.get(usize::from(sector) % SECTORS)?;
            Some((at + u64::from(u16::from_le_bytes([low, high]) % 512), byte))
        });
    let changed = RefCell::new(changed.collect());
    let store = Damaged {
        image: image.clone(),
        changed,
    };
    let part = Part::new(Rc::new(Cached::new(store)), 0, image.len);
    let Ok(Content::Files(files)) = probe(&part) else {
        return;
    };
    for path in [
        "/boot/grub/grub.cfg",
        "/boot/kernel",
        "/vmlinuz",
        "/many/file-7",
    ] {
        let _ = files.read_all(path.as_bytes(), 1 << 20);
    }
    for path in ["/", "/many"] {
        let _ = files.list(path.as_bytes());
    }
});
