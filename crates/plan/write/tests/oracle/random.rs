//! Random writes into images of every kind.

use crate::image::open;
use crate::run_of;
use instar_codec::{Decoder, Encoder};
use instar_layers::CompressionType;
use instar_plan_write::{Below, WriteError, WriteImage};
use instar_storage::{MemStorage, StorageMut};
use instar_tests::judge::{check, content, load, ok, save, wait_for_listener};
use instar_tests::kinds::{KINDS, Kind, Made, NAME, SIZE, make, range};
use instar_tests::rng::Rng;
use std::path::Path;

/// Files that an image lies in: its own and its data file.
type Files<'a, S> = (&'a S, Option<&'a S>);

/// Asks for places and writes there.
pub fn write_placed<S: StorageMut>(
    ours: &mut WriteImage<'_, S>,
    (image, data): Files<'_, S>,
    guest: u64,
    bytes: &[u8],
) {
    let (mut at, mut rest) = (guest, bytes);
    while !rest.is_empty() {
        let placed = ours.place(at, rest.len() as u64).unwrap();
        let (now, later) = rest.split_at(placed.len as usize);
        let file = if placed.in_data_file {
            data.unwrap()
        } else {
            image
        };
        file.write_at(placed.offset, now).unwrap();
        (at, rest) = (at + placed.len, later);
    }
}

/// A write, to the image and to the model of its content.
fn write_one<S: StorageMut>(
    rng: &mut Rng,
    ours: &mut WriteImage<'_, S>,
    files: Files<'_, S>,
    model: &mut [u8],
) {
    let (mut at, mut len) = range(rng);
    if rng.below(4) == 0 {
        // Any alignment.
        at += rng.below(512);
        len = (len - rng.below(512)).min(SIZE - at).max(1);
    }
    let byte = rng.below(256) as u8;
    let mut data = vec![byte; len as usize];
    match rng.below(3) {
        0 => ours
            .write_at(at, &data)
            .unwrap_or_else(|e| panic!("{at}+{len}: {e:?}")),
        1 => write_placed(ours, files, at, &data),
        _ => {
            ours.zeros(at, len)
                .unwrap_or_else(|e| panic!("{at}+{len}: {e:?}"));
            data.fill(0);
        }
    }
    let mut read = vec![0xee; len as usize];
    ours.read_at(at, &mut read).unwrap();
    assert!(read == data, "{at}+{len} reads back");
    model[at as usize..][..len as usize].copy_from_slice(&data);
}

fn random_case(kind: &Kind, rng: &mut Rng, writes: u64) {
    let made = Made::new(kind);
    let files = (&made.image, made.data.as_ref());
    let mut model = made.content();
    for _ in 0..3 {
        let mut ours = open(made.dir(), files.0, files.1);
        for _ in 0..writes {
            write_one(rng, &mut ours, files, &mut model);
            if rng.below(8) == 0 {
                ours.commit().unwrap();
            }
        }
        ours.finish().unwrap();
        drop(ours);
        made.judge(&model);
    }
}

#[test]
fn random_writes_read_back_in_sound_images() {
    let (seed, cases) = run_of("writes", KINDS.len() as u64 * 2);
    for case in 0..cases {
        let kind = &KINDS[case as usize % KINDS.len()];
        println!("case {case}: {kind:?}");
        random_case(kind, &mut Rng::of(seed, case), 12);
    }
}

#[test]
fn a_refcount_table_that_is_too_short_is_moved() {
    // 64 entries of blocks for 64 clusters of 512 bytes: 2 MiB.
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let options = "cluster_size=512,refcount_bits=64";
    ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, NAME, "8M"],
    );
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    let data: Vec<u8> = (0..8_u32 << 20).map(|n| (n >> 9) as u8).collect();
    for (piece, at) in data.chunks(96 << 10).zip((0..).step_by(96 << 10)) {
        ours.write_at(at, piece).unwrap();
    }
    ours.flush().unwrap();
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    assert!(content(dir, NAME) == data);
}

#[test]
fn compressed_data_goes_behind_other_and_not_over_anything() {
    let (seed, _) = run_of("compressed clusters", 1);
    let mut rng = Rng::of(seed, 0);
    for options in [
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=4k,refcount_bits=2",
        "cluster_size=16k,extended_l2=on",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        // Free clusters between others.
        let holes = ["write -P 1 0 190k", "discard 64k 16k", "write -z 0 32k"];
        make(dir, options, &holes);
        let image = load(&dir.join(NAME));
        let mut ours = open(dir, &image, None);
        let cluster = ours.cluster_bytes();
        let (mut model, mut guest) = (content(dir, NAME), 192 << 10);
        let mut encoder = Encoder::new(CompressionType::Zlib, cluster as usize).unwrap();
        assert!(ours.place_compressed(128 << 10, 100).is_err());
        while guest + cluster <= SIZE {
            // Of a different share each time it is left how it is.
            let mut plain = vec![(guest >> 9) as u8; cluster as usize];
            let noise = rng.below(cluster * 9 / 10) as usize;
            plain[..noise].fill_with(|| rng.next_u64() as u8);
            let mut packed = vec![0; cluster as usize];
            let len = encoder.compress(&plain, &mut packed).unwrap();
            packed.truncate(len);
            let at = ours.place_compressed(guest, packed.len() as u32).unwrap();
            image.write_at(at, &packed).unwrap();
            model[guest as usize..][..plain.len()].copy_from_slice(&plain);
            assert!(ours.place_compressed(guest, 10).is_err());
            guest += cluster;
        }
        ours.finish().unwrap();
        drop(ours);
        save(&image, &dir.join(NAME));
        assert_eq!(check(dir, NAME), 0, "{options}");
        assert!(content(dir, NAME) == model, "{options}");
    }
}

#[test]
fn what_is_abandoned_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["bitmap", "write -P 1 0 50k"]);
    let before = content(dir, NAME);
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    ours.place(100 << 10, 64 << 10).unwrap();
    ours.zeros(0, 8 << 10).unwrap();
    ours.abandon().unwrap();
    drop(ours);
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    assert!(content(dir, NAME) == before);
    let info = String::from_utf8(ok(dir, "qemu-img", &["info", NAME])).unwrap();
    assert!(!info.contains("in-use"), "{info}");
}

/// The bits of a bitmap, as ranges of set bytes.
fn dirty(dir: &Path, bitmap: &str) -> String {
    let args = ["map", "--output=json", "--image-opts"];
    let url = format!(
        "driver=nbd,server.type=unix,server.path=s,export=e,x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    );
    let mut served = std::process::Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-k"])
        .arg(dir.join("s"))
        .args(["-x", "e", "-B", bitmap, NAME])
        .current_dir(dir)
        .spawn()
        .expect("qemu-nbd is needed");
    wait_for_listener(&mut served, &dir.join("s"));
    let out = ok(dir, "qemu-img", &[args[0], args[1], args[2], &url]);
    served.wait().unwrap();
    let _ = std::fs::remove_file(dir.join("s"));
    String::from_utf8(out).unwrap()
}

#[test]
fn finished_bitmaps_have_the_bits_that_the_oracle_sets() {
    for options in ["cluster_size=4k", "cluster_size=512"] {
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let commands = [
            "write -P 2 1000 5000",
            "write -P 3 100k 90k",
            "write -z 220k 9k",
        ];
        for folder in [&theirs, &ours] {
            let dir = folder.path();
            make(dir, options, &[]);
            for words in ["--add -g 512", "--add -g 4k", "--add --disable -g 64k"] {
                let name = words.split(' ').next_back().unwrap();
                let mut args = vec!["bitmap"];
                args.extend(words.split(' '));
                args.extend([NAME, name]);
                ok(dir, "qemu-img", &args);
            }
            ok(dir, "qemu-io", &["-c", "write -P 1 64k 1k", NAME]);
        }
        for command in commands {
            ok(theirs.path(), "qemu-io", &["-c", command, NAME]);
        }
        let image = load(&ours.path().join(NAME));
        let mut writer = open(ours.path(), &image, None);
        writer.write_at(1000, &[2; 5000]).unwrap();
        write_placed(&mut writer, (&image, None), 100 << 10, &[3; 90 << 10]);
        writer.zeros(220 << 10, 9 << 10).unwrap();
        writer.finish().unwrap();
        drop(writer);
        save(&image, &ours.path().join(NAME));
        assert_eq!(check(ours.path(), NAME), 0);
        let info = String::from_utf8(ok(ours.path(), "qemu-img", &["info", NAME])).unwrap();
        assert!(!info.contains("in-use"), "{info}");
        for bitmap in ["512", "4k", "64k"] {
            let [want, got] = [&theirs, &ours].map(|folder| dirty(folder.path(), bitmap));
            assert_eq!(want, got, "{options} {bitmap}");
            assert!(want.contains("false"), "{want}");
        }
    }
}

#[test]
fn recording_bitmaps_are_in_use_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["bitmap"]);
    ok(
        dir,
        "qemu-img",
        &["bitmap", "--add", "--disable", NAME, "still"],
    );
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    ours.write_at(0, &[1; 512]).unwrap();
    ours.flush().unwrap();
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    let info = String::from_utf8(ok(dir, "qemu-img", &["info", NAME])).unwrap();
    assert_eq!(info.matches("in-use").count(), 1, "{info}");
    let after = info.split("name: still").next().unwrap();
    assert!(after.contains("in-use"), "{info}");
}

/// Zeros that nobody may read.
struct Hole;

impl Below for Hole {
    fn read_below(&mut self, guest: u64, _buf: &mut [u8]) -> Result<(), WriteError> {
        panic!("{guest} is read")
    }

    fn is_zero(&self, _guest: u64, _len: u64) -> bool {
        true
    }
}

#[test]
fn a_new_place_for_a_part_of_known_zeros_takes_neither_reads_nor_writes() {
    let at = 70 << 10;
    for options in ["cluster_size=64k", "cluster_size=16k,extended_l2=on"] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        make(dir, options, &[]);
        let image = load(&dir.join(NAME));
        let header = instar_qcow2::Header::read(&image, instar_qcow2::OpenMode::Change).unwrap();
        let codec = Box::new(Decoder::new());
        let mut ours = WriteImage::open(&image, None, &header, Box::new(Hole), codec).unwrap();
        let before = image.to_vec();
        let place = ours.reserve(at, 512).unwrap();
        assert!(image.to_vec() == before, "{options}");
        let host = place.placed.offset + at - place.guest;
        image.write_at(host, &[9; 512]).unwrap();
        ours.link(&place).unwrap();
        ours.finish().unwrap();
        drop(ours);
        save(&image, &dir.join(NAME));
        assert_eq!(check(dir, NAME), 0, "{options}");
        let mut model = vec![0; SIZE as usize];
        model[at as usize..][..512].fill(9);
        assert!(content(dir, NAME) == model, "{options}");
    }
}

#[test]
fn what_crosses_the_end_or_metadata_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["write -P 1 0 8k"]);
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    assert!(ours.write_at(SIZE - 1, &[0; 2]).is_err());
    assert!(ours.write_at(u64::MAX, &[0; 2]).is_err());
    drop(ours);
    // The first L2 entry leads to the header.
    let header = instar_qcow2::Header::read(&image, instar_qcow2::OpenMode::Change).unwrap();
    let mut entry = [0; 8];
    read(&image, header.l1_table_offset.get(), &mut entry);
    let l2 = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    for place in [
        l2,
        header.l1_table_offset.get(),
        header.refcount_table_offset.get(),
    ] {
        let word = (1_u64 << 63) | place;
        image.write_at(l2, &word.to_be_bytes()).unwrap();
        let before = image.to_vec();
        let mut ours = open(dir, &image, None);
        assert_eq!(ours.write_at(0, &[9; 512]).unwrap_err().errno(), 5);
        drop(ours);
        assert!(image.to_vec() == before, "{place}");
    }
}

fn read(image: &MemStorage, at: u64, buf: &mut [u8]) {
    instar_storage::Storage::read_at(image, at, buf).unwrap();
}
