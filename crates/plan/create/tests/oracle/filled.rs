//! Images that are filled in any order: `qemu-img check` finds nothing, and every byte is what was written.

use crate::{Device, Patient, Rng, new_file, qemu_img, run_of, said, typed};
use instar_plan_create::{NewImage, Options, Place, PlacedIn, Preallocation, Spec};
use instar_storage::{MemStorage, StorageMut};
use std::path::Path;

/// What the disk has to show.
struct Disk {
    bytes: Vec<u8>,
    /// Clusters that may be stored compressed: nothing has been said of them.
    untouched: Vec<bool>,
    /// Clusters that are stored compressed.
    packed: Vec<bool>,
}

struct Filling<'a, 's, S> {
    new: NewImage<'a, S>,
    image: &'a S,
    data: Option<&'a S>,
    spec: &'s Spec,
    disk: Disk,
    rng: Rng,
}

impl<S: StorageMut> Filling<'_, '_, S> {
    fn cluster(&self) -> u64 {
        self.spec.cluster_bits().size_bytes()
    }

    /// Notes what a range shows from now on; gives the bytes for `place`.
    fn show(&mut self, guest: u64, place: &Place, byte: u8) -> Vec<u8> {
        let mut bytes = vec![0; place.len as usize];
        for (i, to) in bytes.iter_mut().enumerate() {
            if let Some(shown) = self.disk.bytes.get_mut(guest as usize + i) {
                *shown = byte;
                *to = byte;
            }
        }
        bytes
    }

    /// A range of which nothing is stored compressed.
    fn range(&mut self) -> Option<(u64, u64)> {
        let unit = self.spec.unit_bytes();
        let cluster = self.cluster();
        let size = self.disk.bytes.len() as u64;
        let start = self.rng.below(size.div_ceil(unit)) * unit;
        let len = (1 + self.rng.below(40) * unit / 3).min(size - start);
        let clusters = (start / cluster) as usize..(start + len).div_ceil(cluster) as usize;
        if self.disk.packed[clusters.clone()].contains(&true) {
            return None;
        }
        self.disk.untouched[clusters].fill(false);
        Some((start, len))
    }

    fn place(&mut self) {
        let Some((mut at, len)) = self.range() else {
            return;
        };
        let end = at + len;
        let byte = self.rng.number() as u8 | 1;
        while at < end {
            let place = self.new.place(at, end - at).unwrap();
            assert!(place.len > 0 && place.len.is_multiple_of(self.spec.unit_bytes()));
            let bytes = self.show(at, &place, byte);
            let file = match place.file {
                PlacedIn::Image => self.image,
                PlacedIn::DataFile => self.data.unwrap(),
            };
            let whole = place.len as usize;
            // The data file ends with the disk.
            let shown = if place.file == PlacedIn::DataFile {
                whole.min(self.disk.bytes.len() - at as usize)
            } else {
                whole
            };
            file.write_at(place.offset, &bytes[..shown]).unwrap();
            at += place.len;
        }
    }

    fn zero(&mut self) {
        let Some((start, len)) = self.range() else {
            return;
        };
        let len = len.next_multiple_of(self.spec.unit_bytes());
        self.new
            .zero(start, len.min(self.disk.bytes.len() as u64 - start))
            .unwrap();
        let end = self.disk.bytes.len().min((start + len) as usize);
        self.disk.bytes[start as usize..end].fill(0);
    }

    fn compress(&mut self) {
        let cluster = self.cluster() as usize;
        let index = self.rng.below(self.disk.untouched.len() as u64) as usize;
        let (start, end) = (index * cluster, (index + 1) * cluster);
        if !self.disk.untouched[index] || end > self.disk.bytes.len() {
            return;
        }
        let mut bytes = vec![self.rng.number() as u8; cluster];
        let random = self.rng.below((cluster as u64 / 2).min(2000)) as usize;
        bytes[..random].fill_with(|| self.rng.number() as u8);
        let packed = miniz_oxide::deflate::compress_to_vec(&bytes, 6);
        if packed.len() >= cluster {
            return;
        }
        self.disk.untouched[index] = false;
        self.disk.packed[index] = true;
        let offset = self
            .new
            .place_compressed(start as u64, packed.len() as u32)
            .unwrap();
        self.image.write_at(offset, &packed).unwrap();
        self.disk.bytes[start..end].copy_from_slice(&bytes);
    }

    fn fill(mut self) -> Vec<u8> {
        let steps = self.rng.below(60);
        let packs = self.data.is_none();
        for _ in 0..steps {
            match self.rng.below(5) {
                0 | 1 => self.place(),
                2 => self.zero(),
                _ if packs => self.compress(),
                _ => {}
            }
        }
        self.new.finish().unwrap();
        self.disk.bytes
    }
}

fn options<'a>(rng: &mut Rng) -> Options<'a> {
    let version = rng.pick(&[2, 3, 3, 3]);
    let v3 = version == 3;
    let cluster_bytes = rng.pick(&[512, 512, 1024, 4096, 16384, 65536]);
    let extended_l2 = v3 && cluster_bytes >= 16384 && rng.below(2) == 0;
    let data = v3 && rng.below(5) == 0;
    let backing = rng.below(2) == 0;
    let reserves = !backing && rng.below(4) == 0;
    Options {
        size: (1 + rng.below(400)) * cluster_bytes.min(8192) + rng.below(3) * 512,
        version,
        cluster_bytes,
        refcount_bits: if v3 { 1 << rng.below(7) } else { 16 },
        extended_l2,
        backing_file: backing.then_some(&b"below"[..]),
        backing_format: backing.then_some(&b"raw"[..]),
        data_file: data.then_some(&b"data"[..]),
        preallocation: if reserves {
            Preallocation::Metadata
        } else {
            Preallocation::Off
        },
        ..Options::default()
    }
}

fn disk_of(spec: &Spec, below: &[u8]) -> Disk {
    let mut bytes = vec![0; spec.virtual_size() as usize];
    if spec.has_backing() {
        let shown = below.len().min(bytes.len());
        bytes[..shown].copy_from_slice(&below[..shown]);
    }
    let clusters = bytes
        .len()
        .div_ceil(spec.cluster_bits().size_bytes() as usize);
    let untouched = vec![spec.preallocation() == Preallocation::Off; clusters];
    let packed = vec![false; clusters];
    Disk {
        bytes,
        untouched,
        packed,
    }
}

fn judge(folder: &Path, expected: &[u8], note: &str) {
    let check = qemu_img(folder, &["check", "x"]);
    assert!(check.status.success(), "{note}: {check:?}");
    said(folder, &["convert", "-O", "raw", "x", "raw"]);
    let shown = std::fs::read(folder.join("raw")).unwrap();
    let differs = shown.iter().zip(expected).position(|(one, two)| one != two);
    assert_eq!((differs, shown.len()), (None, expected.len()), "{note}");
}

#[test]
fn files_hold_what_was_placed() {
    let (seed, cases) = run_of("filled", 150);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let below = vec![0xb0; 300_000];
    std::fs::write(folder.join("below"), &below).unwrap();
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let options = options(&mut rng);
        let note = format!("case {case}: {} size={}", typed(&options), options.size);
        let spec = Spec::new(&options).unwrap();
        let image = new_file(&folder.join("x"));
        let data = options.data_file.map(|_| new_file(&folder.join("data")));
        let new = NewImage::begin(&image, data.as_ref(), &spec, &mut Patient).unwrap();
        let disk = disk_of(&spec, &below);
        let data = data.as_ref();
        let filling = Filling {
            new,
            image: &image,
            data,
            spec: &spec,
            disk,
            rng,
        };
        let expected = filling.fill();
        judge(folder, &expected, &note);
    }
}

#[test]
fn devices_hold_what_was_placed_and_nothing_older() {
    let (seed, cases) = run_of("devices", 60);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let below = vec![0xb0; 300_000];
    std::fs::write(folder.join("below"), &below).unwrap();
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let options = Options {
            data_file: None,
            preallocation: Preallocation::Off,
            ..options(&mut rng)
        };
        let note = format!("case {case}: {} size={}", typed(&options), options.size);
        let spec = Spec::new(&options).unwrap();
        let image = Device(MemStorage::new(vec![0x11; 8 << 20]));
        let new = NewImage::begin(&image, None, &spec, &mut Patient).unwrap();
        let disk = disk_of(&spec, &below);
        let filling = Filling {
            new,
            image: &image,
            data: None,
            spec: &spec,
            disk,
            rng,
        };
        let expected = filling.fill();
        image
            .0
            .save(&std::fs::File::create(folder.join("x")).unwrap())
            .unwrap();
        judge(folder, &expected, &note);
    }
}

#[test]
fn bitmaps_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let options = Options {
        size: 64 << 20,
        cluster_bytes: 512,
        ..Options::default()
    };
    let spec = Spec::new(&options).unwrap();
    let image = new_file(&folder.join("x"));
    let mut new = NewImage::begin(&image, None, &spec, &mut Patient).unwrap();
    for (name, enabled) in [("one", true), ("two", false)] {
        let mut bitmap = new.new_bitmap(name.as_bytes(), 9, enabled).unwrap();
        new.put_bits(&mut bitmap, 0, &[0xff; 512]).unwrap();
        new.put_bits(&mut bitmap, 3, &[0x0f; 512]).unwrap();
        new.put_bits(&mut bitmap, 31, &[0; 512]).unwrap();
        new.add_bitmap(bitmap);
    }
    new.finish().unwrap();
    said(folder, &["check", "x"]);
    let info = said(folder, &["info", "x"]);
    assert!(
        info.contains("name: one") && info.contains("name: two"),
        "{info}"
    );
    assert_eq!(info.matches("auto").count(), 1, "{info}");
    said(folder, &["bitmap", "--add", "--merge", "two", "x", "three"]);
    said(folder, &["check", "x"]);
}
