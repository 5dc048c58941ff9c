//! What is refused, and with which words; names and IDs of all sorts.

use crate::ours::{Action, load, on_file};
use crate::qemu;
use crate::state::sound;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

const NAME: &str = "r.qcow2";

/// An entry of a snapshot table.
struct Entry<'a> {
    l1: Option<(u64, u32)>,
    id: &'a [u8],
    name: &'a [u8],
    extra: Vec<u8>,
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// An image whose snapshots have these entries; their L1 tables are as they were unless an entry says otherwise.
fn patched(dir: &Path, options: &str, entries: &[Entry<'_>]) {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([NAME, "1M"]);
    qemu::img_ok(dir, &args);
    qemu::io(dir, NAME, false, "write -P 7 0 128k");
    for _ in entries {
        qemu::img_ok(dir, &["snapshot", "-c", "x", NAME]);
    }
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(dir.join(NAME))
        .unwrap();
    let word = |at: u64| {
        let mut raw = [0; 8];
        file.read_exact_at(&mut raw, at).unwrap();
        u64::from_be_bytes(raw)
    };
    let table = word(64);
    let own: Vec<(u64, u32)> = (0..entries.len() as u64)
        // 40 bytes, 24 of extra data, an ID and a name of one byte each, padded.
        .map(|index| table + index * 72)
        .map(|at| (word(at), (word(at + 8) >> 32) as u32))
        .collect();
    let mut bytes = Vec::new();
    for (entry, own) in entries.iter().zip(own) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let (offset, size) = entry.l1.unwrap_or(own);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend((entry.id.len() as u16).to_be_bytes());
        bytes.extend((entry.name.len() as u16).to_be_bytes());
        bytes.extend([0, 0, 3, 0xe8, 0, 0, 0, 5]);
        bytes.extend(77_000_000_000_u64.to_be_bytes());
        bytes.extend(3_u32.to_be_bytes());
        bytes.extend((entry.extra.len() as u32).to_be_bytes());
        bytes.extend(&entry.extra);
        bytes.extend(entry.id);
        bytes.extend(entry.name);
    }
    file.write_all_at(&bytes, table).unwrap();
    file.write_all_at(&(entries.len() as u32).to_be_bytes(), 60)
        .unwrap();
}

/// Both do it, on copies of `r.qcow2`; outcome and words have to be the same. True on success.
fn outcome(dir: &Path, flag: &str, name: &str) -> bool {
    fs::copy(dir.join(NAME), dir.join("theirs.qcow2")).unwrap();
    fs::copy(dir.join(NAME), dir.join("ours.qcow2")).unwrap();
    let said = qemu::img(dir, &["snapshot", flag, name, "theirs.qcow2"]);
    let bytes = name.as_bytes().to_vec();
    let action = match flag {
        "-c" => Action::Create {
            name: bytes,
            date: (0, 0),
        },
        "-a" => Action::Apply(bytes),
        _ => Action::Delete(bytes),
    };
    let ours = on_file(&dir.join("ours.qcow2"), &action);
    let text = ours.as_ref().err().cloned().unwrap_or_default();
    assert_eq!(text, said.stderr, "{flag} {name}");
    assert_eq!(i32::from(ours.is_err()), said.code, "{flag} {name}");
    ours.is_ok()
}

/// As [`outcome`]; what `qemu-img` shows afterwards has to be the same, too.
fn both(dir: &Path, flag: &str, name: &str) -> bool {
    if !outcome(dir, flag, name) {
        return false;
    }
    let [ours, theirs] = ["ours.qcow2", "theirs.qcow2"].map(|name| {
        let mut info = qemu::info(dir, name, false);
        if flag == "-c" {
            let list = info["snapshots"].as_array_mut().unwrap();
            let new = list.last_mut().unwrap().as_object_mut().unwrap();
            new.remove("date-sec");
            new.remove("date-nsec");
        }
        info
    });
    assert_eq!(ours, theirs, "{flag} {name}");
    true
}

const SIZE: u64 = 1 << 20;

fn plain<'a>(id: &'a [u8], name: &'a [u8]) -> Entry<'a> {
    let extra = words(&[0, SIZE, 0]);
    Entry {
        l1: None,
        id,
        name,
        extra,
    }
}

#[test]
fn disk_sizes_are_judged_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let sizes = [
        SIZE,
        SIZE + 512,
        SIZE + 100,
        0,
        512 << 10,
        1 << 30,
        (512 << 20) + 1,
        1 << 51,
        (1 << 51) + 512,
        1 << 60,
        1 << 63,
        u64::MAX,
        (1 << 63) - 512,
        (1 << 63) - 1,
        (1 << 63) - (1 << 30),
        (1 << 63) - (1 << 30) + 512,
    ];
    for options in ["", "compat=0.10"] {
        let mut applied = 0;
        for size in sizes {
            let entry = Entry {
                extra: words(&[0, size, 0]),
                ..plain(b"1", b"x")
            };
            patched(dir, options, &[entry]);
            applied += u32::from(both(dir, "-a", "x"));
        }
        assert!(applied > 0);
    }
}

#[test]
fn l1_tables_are_judged_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cases: [(Option<u64>, u32, u64); 12] = [
        (None, 0, SIZE),
        (None, 1, SIZE),
        (None, 2, SIZE),
        (None, 100, SIZE),
        (None, (1 << 22) + 1, SIZE),
        (None, u32::MAX, 100),
        (Some(1), 1, SIZE),
        (Some(512), 1, 100),
        (Some(0x8000_0000_0000_0000), 1, SIZE),
        (Some(0x7001), 1 << 23, 100),
        (Some(0), 0, SIZE),
        (Some(0x4_0008), 1, SIZE),
    ];
    for (offset, entries, size) in cases {
        // The first cluster of the L1 table is always the same, as the image is.
        patched(dir, "", &[plain(b"1", b"x")]);
        let bytes = fs::read(dir.join(NAME)).unwrap();
        let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
        let place = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap());
        let entry = Entry {
            l1: Some((offset.unwrap_or(place), entries)),
            extra: words(&[0, size, 0]),
            ..plain(b"1", b"x")
        };
        patched(dir, "", &[entry]);
        both(dir, "-a", "x");
        both(dir, "-d", "x");
    }
}

#[test]
fn extra_data_is_kept_and_completed_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let extras = [
        vec![],
        words(&[5]),
        words(&[5, SIZE]),
        words(&[5, SIZE, 9]),
        words(&[5, SIZE, 9, 10, 11]),
        vec![1, 2, 3],
        [words(&[5, SIZE]), b"abc".to_vec()].concat(),
        [words(&[5, SIZE, 9]), b"abcde".to_vec()].concat(),
        words(&[1 << 33; 128]),
    ];
    for options in ["", "compat=0.10"] {
        for extra in &extras {
            let entry = Entry {
                extra: extra.clone(),
                ..plain(b"1", b"x")
            };
            patched(dir, options, &[entry, plain(b"2", b"y")]);
            assert!(both(dir, "-c", "z"));
            assert!(extra.len() > 900 || both(dir, "-a", "x"));
            assert!(both(dir, "-d", "y"));
            // Byte by byte: the entry of x is the first in both.
            let [ours, theirs] = ["ours.qcow2", "theirs.qcow2"].map(|name| {
                let bytes = fs::read(dir.join(name)).unwrap();
                let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
                let extra =
                    u32::from_be_bytes(bytes[table + 36..table + 40].try_into().unwrap()) as usize;
                bytes[table + 8..table + 40 + extra + 2].to_vec()
            });
            assert_eq!(ours, theirs, "{extra:?}");
        }
    }
}

#[test]
fn names_and_ids_are_found_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (id_127, id_128, id_200) = ([b'i'; 127], [b'i'; 128], [b'i'; 200]);
    let (n_255, n_300) = ([b'n'; 255], [b'n'; 300]);
    let size = |entry: Entry<'static>, size: u64| Entry {
        extra: words(&[0, size, 0]),
        ..entry
    };
    let tables: Vec<Vec<Entry<'_>>> = vec![
        vec![plain(&id_200, &n_300)],
        vec![plain(&id_127, &n_255)],
        vec![plain(&id_128, &n_255)],
        vec![plain(b"i", &n_300)],
        vec![plain(&id_128, b"nnn"), plain(&id_127, b"nnn")],
        vec![
            plain(b"1", b"a"),
            size(plain(b"2", b"x"), SIZE * 2),
            plain(b"1", b"x"),
            plain(b"1", b"x"),
        ],
        vec![plain(b"9", b"x"), size(plain(b"9", b"x"), SIZE * 2)],
        vec![plain(b"1\0z", b"x\0y")],
        vec![plain(b"", b"")],
        vec![plain(b"1", b"2"), size(plain(b"2", b"1"), SIZE * 2)],
        vec![plain(b"-1", b"x")],
        vec![plain(b" 7x", b"x"), plain(b"+9", b"y")],
        vec![plain(b"99999999999999999999999", b"x")],
        vec![plain(b"x", b"1")],
    ];
    let long = [
        "i".repeat(200),
        "i".repeat(127),
        "n".repeat(255),
        "n".repeat(300),
        "n".repeat(256),
    ];
    let names = ["1", "2", "x", "y", "a", "9", "", "nnn", "nope", "-1"].map(String::from);
    let mut done = 0;
    for table in &tables {
        patched(dir, "", table);
        for name in names.iter().chain(&long) {
            done += u32::from(both(dir, "-a", name));
            done += u32::from(both(dir, "-d", name));
        }
        assert!(both(dir, "-c", &long[3]));
    }
    assert!(done > 20);
}

#[test]
fn bitmaps_and_data_files_refuse_alike() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    patched(dir, "", &[plain(b"1", b"x")]);
    qemu::img_ok(dir, &["bitmap", "--add", "--disable", NAME, "b"]);
    for name in ["x", "nope"] {
        assert!(!both(dir, "-a", name));
    }
    assert!(both(dir, "-c", "y"));
    assert!(both(dir, "-d", "x"));
    qemu::img_ok(
        dir,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=d.raw",
            NAME,
            "1M",
        ],
    );
    let file = fs::File::options()
        .write(true)
        .open(dir.join(NAME))
        .unwrap();
    let entry = [
        words(&[0, 1 << 16 | 1, 0, 0]),
        vec![0; 4],
        24_u32.to_be_bytes().to_vec(),
        words(&[0, SIZE, 0]),
        b"1x".to_vec(),
    ];
    file.write_all_at(&entry.concat(), 0x6_0000).unwrap();
    file.set_len(0x8_0000).unwrap();
    file.write_all_at(&1_u32.to_be_bytes(), 60).unwrap();
    file.write_all_at(&0x6_0000_u64.to_be_bytes(), 64).unwrap();
    for (flag, name) in [
        ("-c", "y"),
        ("-a", "x"),
        ("-a", "nope"),
        ("-d", "x"),
        ("-d", "nope"),
    ] {
        assert!(!both(dir, flag, name));
    }
}

#[test]
fn the_most_snapshots_are_65536() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    qemu::img_ok(
        dir,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=2M",
            NAME,
            "0",
        ],
    );
    for (count, fits) in [(65_535_u32, true), (65_536, false)] {
        let mut table = Vec::new();
        for id in 1..=count {
            table.resize(usize::next_multiple_of(table.len(), 8), 0);
            let id = id.to_string().into_bytes();
            table.extend([0; 12]);
            table.extend((id.len() as u16).to_be_bytes());
            table.extend([0, 1]);
            table.extend([0; 20]);
            table.extend(24_u32.to_be_bytes());
            table.extend([0; 24]);
            table.extend(id);
            table.push(b'x');
        }
        // Three clusters from the fifth on; the refcount block is the third.
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(dir.join(NAME))
            .unwrap();
        let clusters = table.len().div_ceil(2 << 20);
        file.write_all_at(&table, 4 * (2 << 20)).unwrap();
        let mut raw = [0; 8];
        file.read_exact_at(&mut raw, 2 << 20).unwrap();
        let refcounts = [0, 1].repeat(clusters);
        file.write_all_at(&refcounts, u64::from_be_bytes(raw) + 2 * 4)
            .unwrap();
        file.set_len((4 + clusters as u64) * (2 << 20)).unwrap();
        file.write_all_at(&count.to_be_bytes(), 60).unwrap();
        file.write_all_at(&(4_u64 * (2 << 20)).to_be_bytes(), 64)
            .unwrap();
        assert_eq!(outcome(dir, "-c", "y"), fits);
    }
    sound(&load(&dir.join(NAME))).unwrap();
}
