//! Refusals, and images that are special in one way: the words and what is left.

use crate::decode;
use crate::image::{self, add, clear_autoclear, create, patch, set_flags};
use crate::judge::{Act, Ended, Line, ours, qemu, same};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with an image and a copy of it.
struct Pair {
    dir: TempDir,
    theirs: PathBuf,
    mine: PathBuf,
}

impl Pair {
    fn new(size: &str, options: &str, change: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, mine) = (dir.path().join("theirs"), dir.path().join("mine"));
        create(&theirs, size, options);
        change(&theirs);
        fs::copy(&theirs, &mine).unwrap();
        Self { dir, theirs, mine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Does the line to both; gives the exit code.
    #[track_caller]
    fn same(&self, line: &Line) -> i32 {
        same(&self.theirs, &self.mine, false, line, "").code
    }
}

fn merge(source: &str) -> Act {
    Act::Merge(source.to_owned())
}

fn every_act() -> Vec<Act> {
    let all = [Act::Add, Act::Remove, Act::Clear, Act::Enable, Act::Disable];
    [&all[..], &[merge("other")]].concat()
}

#[test]
fn names_and_granularities() {
    let pair = Pair::new("1M", "", |_| ());
    let long = "n".repeat(1023);
    for (name, granularity, code) in [
        ("", None, 1),
        ("", Some(1), 1),
        ("b", Some(0), 0),
        ("b", None, 1),
        ("b", Some(1), 1),
        ("c", Some(256), 1),
        ("c", Some(513), 1),
        ("c", Some(3 << 10), 1),
        ("c", Some(4 << 30), 1),
        ("c", Some((4 << 30) + 512), 0),
        ("d", Some(2 << 30), 0),
        ("e", Some(7 << 60), 1),
        (&long, None, 0),
        (&format!("{long}n"), None, 1),
        (&format!("{long}n"), Some(1), 1),
        ("line\nbreak", None, 0),
        ("\u{fc}ml\u{e4}ut", None, 0),
    ] {
        let mut line = Line::new(name, &[Act::Add]);
        line.granularity = granularity;
        assert_eq!(pair.same(&line), code, "{name} {granularity:?}");
    }
    assert_eq!(pair.same(&Line::new("", &[Act::Remove])), 1);
    assert_eq!(pair.same(&Line::new(&long, &[Act::Remove])), 0);
    assert_eq!(pair.same(&Line::new(&long, &[Act::Remove])), 1);
}

#[test]
fn default_granularity_of_every_cluster_size() {
    for bits in 9..=21 {
        let pair = Pair::new("3M", &format!("cluster_size={}", 1 << bits), |_| ());
        assert_eq!(pair.same(&Line::new("b", &[Act::Add])), 0);
        assert_eq!(pair.same(&Line::new("b", &[Act::Remove])), 0);
    }
}

#[test]
fn bitmaps_that_are_too_large() {
    let pair = Pair::new("1P", "cluster_size=2M", |_| ());
    let line = |name: &str, bytes| Line::new(name, &[Act::Add]).granularity(bytes);
    assert_eq!(pair.same(&line("a", 2 << 30)), 0);
    assert_eq!(pair.same(&line("a", 512)), 1);
    assert_eq!(pair.same(&line("b", 65_536)), 1);
    assert_eq!(pair.same(&line(&"n".repeat(1024), 512)), 1);
    assert_eq!(pair.same(&Line::new("a", &[Act::Remove])), 0);
    // 512 MiB of bits are the most; the tests' decoder is spared them.
    let pair = Pair::new("256T", "cluster_size=2M", |_| ());
    for (name, bytes, code) in [("most", 65_536, 0), ("more", 32_768, 1)] {
        let line = line(name, bytes);
        let expected = qemu(&pair.theirs, "qcow2", false, &line);
        assert_eq!(ours(&pair.mine, "qcow2", &line), expected);
        assert_eq!(expected.code, code);
    }
}

#[test]
fn disks_without_a_sector() {
    for size in [0_u64, 100] {
        let pair = Pair::new("1M", "", |path| {
            add(path, "old", "64k");
            set_flags(path, "old", 1, 0);
            patch(path, 24, &size.to_be_bytes());
        });
        assert_eq!(pair.same(&Line::new("b", &[Act::Add])), 1);
        assert_eq!(pair.same(&Line::new("b", &[Act::Add, Act::Remove])), 0);
        assert_eq!(pair.same(&Line::new("b", &[Act::Add, Act::Add])), 1);
        assert_eq!(pair.same(&Line::new("b", &[Act::Add, merge("old")])), 1);
        assert_eq!(pair.same(&Line::new("old", &[Act::Disable])), 1);
        assert_eq!(pair.same(&Line::new("old", &[Act::Remove, Act::Add])), 1);
    }
}

#[test]
fn disks_of_half_a_sector_more() {
    let pair = Pair::new("1M", "", |path| patch(path, 24, &100_000_u64.to_be_bytes()));
    assert_eq!(pair.same(&Line::new("b", &[Act::Add]).granularity(512)), 0);
    let other = pair.path("other");
    create(&other, "1M", "");
    add(&other, "o", "512");
    let line = Line::new("b", &[merge("o")]).source(&other, "qcow2");
    assert_eq!(pair.same(&line), 1);
}

#[test]
fn version_2_has_no_bitmaps() {
    let pair = Pair::new("1M", "compat=0.10", |_| ());
    for act in every_act() {
        assert_eq!(pair.same(&Line::new("b", &[act])), 1);
    }
    let refused = Line::new("b", &[Act::Add]).granularity(1);
    assert_eq!(pair.same(&refused), 1);
}

#[test]
fn version_2_with_the_extension_loses_it() {
    let pair = Pair::new("1M", "", |path| {
        add(path, "b", "64k");
        let mut bytes = fs::read(path).unwrap();
        let at = decode::extension(&bytes).unwrap() - 8;
        let extension = bytes[at..at + 32].to_vec();
        bytes[4..8].copy_from_slice(&2_u32.to_be_bytes());
        bytes[72..1000].fill(0);
        bytes[72..104].copy_from_slice(&extension);
        fs::write(path, bytes).unwrap();
    });
    assert_eq!(pair.same(&Line::new("b", &[Act::Add])), 1);
    assert_eq!(pair.same(&Line::new("b", &[Act::Remove])), 1);
    assert!(decode::extension(&fs::read(&pair.mine).unwrap()).is_none());
}

#[test]
fn bitmaps_without_the_autoclear_bit_are_gone() {
    for act in every_act() {
        let pair = Pair::new("1M", "", |path| {
            add(path, "b", "64k");
            add(path, "other", "64k");
            clear_autoclear(path);
        });
        pair.same(&Line::new("b", std::slice::from_ref(&act)));
        let bitmaps = decode::bitmaps(&fs::read(&pair.mine).unwrap());
        assert_eq!(bitmaps.len(), usize::from(act == Act::Add));
    }
}

#[test]
fn unknown_autoclear_bits_are_cleared() {
    for (name, act) in [
        ("b", Act::Enable),
        ("b", Act::Disable),
        ("none", Act::Clear),
    ] {
        let pair = Pair::new("1M", "", |path| {
            add(path, "b", "64k");
            patch(path, 88, &[0x80, 0, 0, 0, 0, 0, 0, 1]);
        });
        pair.same(&Line::new(name, &[act]));
        let header = |path| fs::read(path).unwrap()[88..96].to_vec();
        assert_eq!(header(&pair.mine), header(&pair.theirs));
        assert_eq!(header(&pair.mine), [0, 0, 0, 0, 0, 0, 0, 1]);
    }
}

#[test]
fn bitmaps_in_use_can_only_be_removed() {
    let pair = Pair::new("1M", "", |path| {
        add(path, "b", "64k");
        add(path, "other", "64k");
        set_flags(path, "b", 1, 0);
    });
    for act in [
        Act::Add,
        Act::Clear,
        Act::Enable,
        Act::Disable,
        merge("other"),
        merge("b"),
        merge("no"),
    ] {
        assert_eq!(pair.same(&Line::new("b", &[act])), 1);
    }
    assert_eq!(pair.same(&Line::new("other", &[merge("b")])), 1);
    assert_eq!(
        pair.same(&Line::new("new", &[Act::Add, merge("b"), Act::Disable])),
        1
    );
    assert_eq!(
        pair.same(&Line::new("b", &[Act::Remove, Act::Add, merge("other")])),
        0
    );
}

#[test]
fn merge_sources() {
    let pair = Pair::new("1M", "", |path| add(path, "b", "64k"));
    let line = |source: &str, path: &str, format| {
        Line::new("b", &[merge(source)]).source(&pair.path(path), format)
    };
    create(&pair.path("size"), "2M", "");
    add(&pair.path("size"), "s", "64k");
    create(&pair.path("use"), "2M", "cluster_size=512");
    add(&pair.path("use"), "s", "64k");
    set_flags(&pair.path("use"), "s", 1, 0);
    create(&pair.path("stale"), "1M", "");
    add(&pair.path("stale"), "s", "64k");
    clear_autoclear(&pair.path("stale"));
    fs::write(pair.path("raw"), [0; 1000]).unwrap();
    for (source, path, format) in [
        ("s", "size", "qcow2"),
        ("b", "size", "qcow2"),
        ("s", "use", "qcow2"),
        ("s", "stale", "qcow2"),
        ("b", "raw", "raw"),
        ("s", "size", "raw"),
    ] {
        assert_eq!(pair.same(&line(source, path, format)), 1, "{path}");
    }
    let missing = Line::new("none", &[merge("none")]).source(&pair.path("size"), "qcow2");
    assert_eq!(pair.same(&missing), 1);
}

#[test]
fn two_bitmaps_of_one_name() {
    for both_in_use in [false, true] {
        for acts in [
            &[Act::Remove][..],
            &[Act::Remove, Act::Remove],
            &[Act::Remove, Act::Add],
            &[Act::Remove, Act::Clear],
            &[Act::Add],
            &[Act::Disable],
        ] {
            let pair = Pair::new("1M", "", |path| {
                for name in ["aa", "bb", "cc"] {
                    add(path, name, "64k");
                }
                set_flags(path, "bb", 1, 0);
                if both_in_use {
                    set_flags(path, "aa", 1, 0);
                }
                let entries = decode::entries(&fs::read(path).unwrap());
                patch(path, entries[1].at as u64 + 24, b"aa");
            });
            pair.same(&Line::new("aa", acts));
        }
    }
}

#[test]
fn headers_without_room() {
    let name = "k".repeat(360);
    let options = format!("cluster_size=512,backing_fmt=raw,backing_file={name}");
    let mut codes = Vec::new();
    for len in [300, 340, 350, 360] {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, mine) = (dir.path().join("theirs"), dir.path().join("mine"));
        let options = &options[..options.len() - 360 + len];
        let args = ["create", "-q", "-u", "-f", "qcow2", "-o", options];
        image::run(
            "qemu-img",
            &[&args[..], &[theirs.to_str().unwrap(), "1M"]].concat(),
        );
        fs::copy(&theirs, &mine).unwrap();
        let line = Line::new("b", &[Act::Add]);
        let expected = qemu(&theirs, "qcow2", false, &line);
        codes.push(expected.code);
        let before = fs::metadata(&mine).unwrap().len();
        assert_eq!(ours(&mine, "qcow2", &line), expected, "{len}");
        if expected.code == 1 {
            assert_eq!(fs::metadata(&mine).unwrap().len(), before);
        }
        assert_eq!(
            decode::bitmaps(&fs::read(&mine).unwrap()),
            decode::bitmaps(&fs::read(&theirs).unwrap())
        );
    }
    assert!(codes.contains(&0) && codes.contains(&1), "{codes:?}");
}

#[test]
fn raw_images_have_no_bitmaps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut lines: Vec<Line> = every_act()
        .into_iter()
        .map(|act| Line::new("b", &[act]))
        .collect();
    lines.push(Line::new("", &[Act::Add]));
    lines.push(Line::new("b", &[Act::Add]).granularity(3));
    for line in lines {
        let expected = qemu(&path, "raw", false, &line);
        assert_eq!(ours(&path, "raw", &line), expected, "{line:?}");
        assert_eq!(expected.code, 1);
    }
}

#[test]
fn images_that_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    create(&path, "1M", "");
    add(&path, "aa", "64k");
    add(&path, "bb", "64k");
    let good = fs::read(&path).unwrap();
    let second = decode::entries(&good)[1].at;
    for (at, byte) in [
        (second + 25, b'a'),
        (second + 17, 40),
        (second + 20, 1),
        (second + 16, 2),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        if byte == b'a' {
            bytes[second + 24] = b'a';
        }
        fs::write(&path, &bytes).unwrap();
        let line = Line::new("aa", &[Act::Clear]);
        let Ended { code, stderr } = ours(&path, "qcow2", &line);
        assert_eq!(Ended { code, stderr }, qemu(&path, "qcow2", false, &line));
        assert_eq!(code, 1);
    }
}

#[test]
fn damaged_tables_of_bitmaps_in_use_leak() {
    let dir = tempfile::tempdir().unwrap();
    let (good, theirs, mine) = (
        dir.path().join("g"),
        dir.path().join("t"),
        dir.path().join("m"),
    );
    create(&good, "1M", "");
    add(&good, "b", "64k");
    add(&good, "c", "64k");
    image::run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write 0 64k", good.to_str().unwrap()],
    );
    set_flags(&good, "b", 1, 0);
    let bytes = fs::read(&good).unwrap();
    let entries = decode::entries(&bytes);
    let l1 = decode::be64(&bytes, 40);
    for value in [
        0x1000_0000_0000_0002,
        0x100,
        0x200,
        0x1000_0000,
        1 << 60,
        0x50001,
        0,
    ] {
        fs::copy(&good, &theirs).unwrap();
        patch(&theirs, entries[0].table, &u64::to_be_bytes(value));
        fs::copy(&theirs, &mine).unwrap();
        let line = Line::new("b", &[Act::Remove]);
        assert_eq!(qemu(&theirs, "qcow2", false, &line).code, 0, "{value:x}");
        assert_eq!(ours(&mine, "qcow2", &line).code, 0, "{value:x}");
        crate::judge::compare_images(&theirs, &mine, false, &format!("{value:x}"));
    }
    // QEMU frees the L1 table on the bitmap's word, and gives up in the middle; it frees a table that is its
    // own data before it finds out.
    for value in [l1, decode::be64(&bytes, 48), entries[0].table] {
        fs::copy(&good, &mine).unwrap();
        patch(&mine, entries[0].table, &value.to_be_bytes());
        assert_eq!(
            ours(&mine, "qcow2", &Line::new("b", &[Act::Remove])).code,
            0
        );
        let seen = crate::judge::look(&mine, false);
        assert_eq!((seen.corruptions, seen.bitmaps.len()), (0, 1));
    }
}

/// Whether somebody listens at a socket: its name is there before (proc_net_unix's flag for that is 0x10000).
fn listens(path: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut lines = sockets.lines();
    lines.any(|line| line.contains(" 00010000 ") && line.ends_with(path))
}

#[test]
fn qemu_serves_the_merged_bits() {
    let pair = Pair::new("64M", "", |path| {
        add(path, "b", "64k");
        add(path, "fine", "512");
        image::run(
            "qemu-io",
            &["-f", "qcow2", "-c", "write 1M 1k", path.to_str().unwrap()],
        );
    });
    let write = "write 40000k 3M";
    add(&pair.mine, "coarse", "1M");
    image::run(
        "qemu-io",
        &["-f", "qcow2", "-c", write, pair.mine.to_str().unwrap()],
    );
    let acts = [Act::Clear, merge("b"), merge("coarse")];
    assert_eq!(ours(&pair.mine, "qcow2", &Line::new("fine", &acts)).code, 0);
    let socket = pair.path("socket");
    let socket = socket.to_str().unwrap();
    let mut server = std::process::Command::new("qemu-nbd")
        .args(["-r", "-k", socket, "-B", "fine", "-f", "qcow2"])
        .arg(&pair.mine)
        .spawn()
        .expect("qemu-nbd is needed");
    while !listens(socket) {
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd ended");
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:fine"
    );
    let out = image::output(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    );
    server.wait().unwrap();
    let map: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let dirty: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["data"] == false)
        .map(|run| {
            (
                run["start"].as_u64().unwrap(),
                run["length"].as_u64().unwrap(),
            )
        })
        .collect();
    // 64 KiB at 1 MiB by "b"; what "coarse" has covers 39 to 43 MiB.
    assert_eq!(dirty, [(1 << 20, 65_536), (39 << 20, 4 << 20)]);
}
