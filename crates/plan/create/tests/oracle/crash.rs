//! Power cuts while an image is made.

use crate::{Patient, Rng, run_of};
use instar_plan_check::{Cancelled, MessageKind, Reporter, check};
use instar_plan_create::{Encryption, NewImage, Options, Preallocation, Spec};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{CrashStorage, MemStorage, Storage, StorageMut, crash};

/// Collects what a check says.
#[derive(Default)]
struct Said(Vec<String>);

impl Reporter for Said {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn old_image(rng: &mut Rng) -> MemStorage {
    let mut bytes = vec![0_u8; 40_000 + rng.below(200_000) as usize];
    bytes.fill_with(|| rng.number() as u8);
    bytes[..4].copy_from_slice(b"QFI\xfb");
    MemStorage::new(bytes)
}

#[test]
fn at_every_moment_it_is_no_image_or_the_whole_image() {
    let (seed, cases) = run_of("crash", 40);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let name = vec![b'n'; rng.pick(&[3, 700])];
        let options = Options {
            size: (1 + rng.below(200)) * 4096,
            cluster_bytes: rng.pick(&[512, 4096, 16384, 65536]),
            preallocation: Preallocation::Off,
            encryption: rng.pick(&[
                Encryption::None,
                Encryption::Aes,
                Encryption::Luks { header_bytes: 9000 },
            ]),
            ..Options::default()
        };
        let long = options.cluster_bytes >= 4096 && rng.below(2) == 0;
        let options = Options {
            backing_file: long.then_some(&name[..]),
            backing_format: long.then_some(b"raw"),
            ..options
        };
        let spec = Spec::new(&options).unwrap();
        let old = old_image(&mut rng);
        let store = CrashStorage::new(old.clone());
        fill(&store, &spec, &mut rng);
        let whole = store.image();
        let recording = store.finish();
        let mut complete = 0;
        for (label, image) in crash::states(&recording, seed, 400) {
            let mut magic = [0; 4];
            image.read_at(0, &mut magic).unwrap();
            if &magic != b"QFI\xfb" {
                continue;
            }
            complete += u64::from(image == whole);
            assert!(image == whole || image == old, "case {case}: {label}");
        }
        assert!(complete > 0, "case {case}");
        if matches!(options.encryption, Encryption::Luks { .. }) {
            // Random bytes are no LUKS header; the end-to-end tests read and check such images.
            continue;
        }
        let header = Header::read(&whole, OpenMode::Change).unwrap();
        let mut said = Said::default();
        let found = check(&whole, &header, &mut said).unwrap();
        assert_eq!(
            (found.corruptions, found.leaks, said.0),
            (0, 0, vec![]),
            "case {case}"
        );
    }
}

fn fill(store: &CrashStorage, spec: &Spec, rng: &mut Rng) {
    let mut new = NewImage::begin(store, None, spec, &mut Patient).unwrap();
    if let Some((offset, len)) = new.crypto_header() {
        let mut header = vec![0; len as usize];
        header.fill_with(|| rng.number() as u8);
        store.write_at(offset, &header).unwrap();
    }
    let cluster = spec.cluster_bits().size_bytes();
    let clusters = spec.virtual_size().div_ceil(cluster);
    for _ in 0..rng.below(30) {
        let guest = rng.below(clusters) * cluster;
        let place = new.place(guest, 1).unwrap();
        let bytes = vec![rng.number() as u8 | 1; place.len as usize];
        store.write_at(place.offset, &bytes).unwrap();
    }
    new.finish().unwrap();
}
