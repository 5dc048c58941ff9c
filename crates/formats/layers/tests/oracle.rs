//! Random chains made by `qemu-io`: runs against `qemu-img map`, bytes against `qemu-img convert`.
//!
//! `LAYERS_SEED` repeats a run, `LAYERS_CASES` says how many chains there are.

// Test code may end in a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use instar_layers::{
    Chain, CompressionType, Corrupt, Decompress, FileOf, Layer, Run, RunKind, View,
};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use serde_json::Value;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

/// The reference decoders.
struct Codec;

impl Decompress for Codec {
    fn decompress(
        &mut self,
        kind: CompressionType,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt> {
        match kind {
            CompressionType::Zlib => {
                use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
                let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let mut state = Box::<DecompressorOxide>::default();
                let (_, _, written) = decompress(&mut state, input, out, 0, flags);
                (written == out.len()).then_some(()).ok_or(Corrupt)
            }
            CompressionType::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(input);
                let mut decoder = decoder.map_err(|_| Corrupt)?;
                decoder.read_exact(out).map_err(|_| Corrupt)
            }
        }
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }
}

fn run(dir: &Path, program: &str, args: &[String]) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.expect("the tests compare with qemu-img: install qemu-utils");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    output.stdout
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// An image of the chain under test.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    raw: bool,
    v2: bool,
    compresses: bool,
    data_file: bool,
    size: u64,
}

/// Makes an image over `below`, and writes to it.
fn make(dir: &Path, rng: &mut Rng, index: u64, below: Option<&Made>) -> Made {
    let size = (1 + rng.below(4)) * (rng.below(3 << 20) + 512) / 512 * 512;
    let name = format!("i{index}");
    if below.is_none() && rng.below(4) == 0 {
        let odd = size - rng.below(512);
        run(dir, "truncate", &words(&format!("-s {odd} {name}")));
        let made = Made {
            name,
            raw: true,
            v2: false,
            compresses: false,
            data_file: false,
            size,
        };
        write(dir, rng, &made, 3, (odd & !511).max(512));
        return made;
    }
    let mut made = Made {
        name,
        raw: false,
        v2: rng.below(5) == 0,
        compresses: true,
        data_file: false,
        size,
    };
    let mut options = Vec::new();
    let cluster = rng.pick(&["512", "4k", "16k", "64k", "256k", "2M"]);
    if made.v2 {
        options.push("compat=0.10".to_owned());
    } else {
        if !matches!(cluster, "512" | "4k") && rng.below(2) == 0 {
            options.push("extended_l2=on".to_owned());
        }
        if rng.below(3) == 0 {
            options.push("compression_type=zstd".to_owned());
        }
        if rng.below(4) == 0 {
            made.data_file = true;
            made.compresses = false;
            options.push(format!("data_file={}.dat", made.name));
            if below.is_none() && rng.below(2) == 0 {
                options.push("data_file_raw=on".to_owned());
            }
        }
    }
    if below.is_none() && rng.below(4) == 0 {
        options.push("preallocation=metadata".to_owned());
    }
    options.push(format!("cluster_size={cluster}"));
    let mut args = words(&format!("create -q -f qcow2 -o {}", options.join(",")));
    if let Some(below) = below {
        let format = if below.raw { "raw" } else { "qcow2" };
        args.extend(words(&format!("-b {} -F {format}", below.name)));
    }
    args.extend([made.name.clone(), size.to_string()]);
    run(dir, "qemu-img", &args);
    let count = 1 + rng.below(8);
    write(dir, rng, &made, count, size);
    made
}

fn write(dir: &Path, rng: &mut Rng, made: &Made, count: u64, size: u64) {
    let format = if made.raw { "raw" } else { "qcow2" };
    let mut args = words(&format!("-f {format}"));
    for _ in 0..count {
        let at = rng.below(size) / 512 * 512;
        let len = (rng.below(400 << 10) / 512 * 512 + 512).min(size - at);
        let pattern = 1 + rng.below(255);
        let command = match rng.below(8) {
            0 | 1 => format!("write -z {at} {len}"),
            2 if !made.v2 => format!("write -z -u {at} {len}"),
            3 => format!("discard {at} {len}"),
            4 if made.compresses => {
                let (at, len) = (at >> 21 << 21, (2 << 20).min(size - (at >> 21 << 21)));
                format!("write -c -P {pattern} {at} {len}")
            }
            _ => format!("write -P {pattern} {at} {len}"),
        };
        args.extend(["-c".to_owned(), command]);
    }
    args.push(made.name.clone());
    // A compressed write over a cluster that is there fails, and the others are done.
    let output = Command::new("qemu-io")
        .args(&args)
        .current_dir(dir)
        .output();
    output.expect("the tests compare with qemu-io: install qemu-utils");
}

fn open(dir: &Path, made: &Made, at: View) -> Layer<FileStorage> {
    let store = |name: &str| FileStorage::new(File::open(dir.join(name)).unwrap()).unwrap();
    let image = store(&made.name);
    if made.raw {
        return Layer::raw(image);
    }
    let header = Header::read(&image, OpenMode::CheckWithKey).unwrap();
    let data = made.data_file.then(|| store(&format!("{}.dat", made.name)));
    Layer::qcow2(image, data, header, at)
}

/// What `qemu-img map` knows of a byte.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

impl Entry {
    fn of(run: &Run) -> Self {
        let data = matches!(run.kind, RunKind::Data { .. });
        let compressed = matches!(run.kind, RunKind::Compressed { .. });
        Self {
            depth: run.depth as u64,
            present: run.kind != RunKind::Unallocated,
            zero: !data && !compressed,
            data: data || compressed,
            compressed,
            offset: match run.kind {
                RunKind::Data { host_offset, .. } => Some(host_offset),
                RunKind::Zero { host_offset } => host_offset,
                RunKind::Unallocated => run.reserved,
                RunKind::Compressed { .. } => None,
            },
        }
    }

    fn told(entry: &Value) -> Self {
        let flag = |name: &str| entry[name].as_bool().unwrap();
        let (zero, data) = (flag("zero"), flag("data"));
        Self {
            depth: entry["depth"].as_u64().unwrap(),
            present: flag("present"),
            // Holes under data that is allocated are the file's, which the test's stores do not tell.
            zero: zero && !data,
            data,
            compressed: flag("compressed"),
            offset: entry["offset"].as_u64(),
        }
    }
}

fn judge_runs(chain: &Chain<FileStorage>, map: &[Value], raw_depth: Option<u64>, label: &str) {
    for told in map {
        let (start, len) = (told["start"].as_u64().unwrap(), told["length"].as_u64());
        let (mut at, end) = (start, start + len.unwrap());
        while at < end {
            let run = chain.run_at(at, end - at).unwrap();
            assert!(
                run.offset == at && run.len > 0 && run.len <= end - at,
                "{label}: {run:?}"
            );
            let (mut want, mut got) = (Entry::told(told), Entry::of(&run));
            want.offset = want.offset.map(|offset| offset + (at - start));
            if raw_depth == Some(want.depth) {
                (want.zero, want.data, got.zero, got.data) = (false, false, false, false);
            }
            assert_eq!(want, got, "{label}: at {at} of {told}: {run:?}");
            at += run.len;
        }
    }
}

fn judge_bytes(chain: &Chain<FileStorage>, want: &[u8], rng: &mut Rng, label: &str) {
    assert_eq!(chain.len_bytes(), want.len() as u64, "{label}");
    let mut got = vec![0xa5; want.len()];
    chain.read_at(0, &mut got, &mut Codec).unwrap();
    assert!(got == want, "{label}: the content differs");
    for _ in 0..50 {
        let at = rng.below(want.len() as u64);
        let len = rng.below(200_000).min(want.len() as u64 - at);
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        let got = &mut got[range.clone()];
        chain.read_at(at, got, &mut Codec).unwrap();
        assert!(*got == want[range], "{label}: {len} bytes at {at} differ");
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_chains_are_as_qemu_reads_them() {
    let seed = setting("LAYERS_SEED", 20_261_121);
    for case in 0..setting("LAYERS_CASES", 25) {
        let label = format!("LAYERS_SEED={seed} case {case}");
        let mut rng = Rng(seed.wrapping_mul(1000).wrapping_add(case) | 1);
        for _ in 0..8 {
            rng.below(1);
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut images: Vec<Made> = Vec::new();
        for index in 0..1 + rng.below(5) {
            let made = make(dir, &mut rng, index, images.last());
            images.insert(images.len(), made);
        }
        let layers = images
            .iter()
            .rev()
            .map(|made| open(dir, made, View::Active));
        let chain = Chain::new(layers.collect());
        let top = images.last().unwrap();
        let format = if top.raw { "raw" } else { "qcow2" };
        let map = run(
            dir,
            "qemu-img",
            &words(&format!("map -f {format} --output=json {}", top.name)),
        );
        let map: Vec<Value> = serde_json::from_slice(&map).unwrap();
        let raw_depth = images[0].raw.then(|| images.len() as u64 - 1);
        judge_runs(&chain, &map, raw_depth, &label);
        run(
            dir,
            "qemu-img",
            &words(&format!("convert -f {format} -O raw {} out", top.name)),
        );
        let want = std::fs::read(dir.join("out")).unwrap();
        judge_bytes(&chain, &want, &mut rng, &label);
        judge_snapshot(dir, top, &images, &mut rng, &label);
    }
}

/// Takes a snapshot of the top, writes on, and reads the snapshot.
fn judge_snapshot(dir: &Path, top: &Made, images: &[Made], rng: &mut Rng, label: &str) {
    if top.raw || top.data_file {
        return;
    }
    run(
        dir,
        "qemu-img",
        &words(&format!("snapshot -c s {}", top.name)),
    );
    write(dir, rng, top, 4, top.size);
    let file = File::open(dir.join(&top.name)).unwrap();
    let store = FileStorage::new(file).unwrap();
    let header = Header::read(&store, OpenMode::CheckWithKey).unwrap();
    let snapshot = SnapshotTable::new(&store, &header).next().unwrap().unwrap();
    let view = View::Snapshot {
        l1_offset: snapshot.l1_table_offset.get(),
        l1_entries: snapshot.l1_size,
        size: header.virtual_size,
    };
    let mut layers = vec![open(dir, top, view)];
    let below = images.iter().rev().skip(1);
    layers.extend(below.map(|made| open(dir, made, View::Active)));
    run(
        dir,
        "qemu-img",
        &words(&format!("convert -l s -O raw {} out", top.name)),
    );
    let want = std::fs::read(dir.join("out")).unwrap();
    judge_bytes(
        &Chain::new(layers),
        &want,
        rng,
        &format!("{label} snapshot"),
    );
}

/// Changes the 8 bytes at `at` of a file.
fn patch(path: &Path, at: u64, change: impl Fn(u64) -> u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).unwrap();
    let new = change(u64::from_be_bytes(word));
    file.write_all_at(&new.to_be_bytes(), at).unwrap();
    new
}

/// Which word of the image is changed: the L1 entry, or a word of its L2 table.
enum Word {
    L1,
    L2(u64),
}

#[test]
fn damaged_tables_are_told_as_qemu_tells_them() {
    type Change = fn(u64) -> u64;
    let cases: &[(&str, Word, Change)] = &[
        ("", Word::L1, |e| e | 0x200),
        ("", Word::L1, |e| e | 0x10),
        ("", Word::L2(2), |e| e | 0x200),
        ("", Word::L2(2), |e| e | 0x3f00_0000_0000_01fe),
        ("", Word::L2(0), |_| 1 << 63 | 1 << 40),
        ("compat=0.10,", Word::L2(1), |e| e | 1),
        ("extended_l2=on,", Word::L2(5), |_| u64::MAX),
        ("extended_l2=on,", Word::L2(4), |_| 0),
        ("extended_l2=on,", Word::L2(2), |e| e | 0x200),
        ("extended_l2=on,", Word::L2(2), |e| e | 1),
        ("data_file=i0.dat,", Word::L2(1), |e| e | 0x30_0000),
        ("data_file=i0.dat,", Word::L2(2), |_| 1 << 62 | 0x5_0000),
        ("data_file=i0.dat,", Word::L2(2), |_| 0),
    ];
    for (options, word, change) in cases {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let label = format!("{options} {}", change(0));
        run(
            dir,
            "qemu-img",
            &words(&format!(
                "create -q -f qcow2 -o {options}cluster_size=64k i0 4M"
            )),
        );
        run(
            dir,
            "qemu-io",
            &["-c".into(), "write -P 7 0 300k".into(), "i0".into()],
        );
        let path = dir.join("i0");
        let l1 = patch(&path, 40, |at| at);
        let l2 = patch(&path, l1, |entry| entry) & 0x00ff_ffff_ffff_fe00;
        let at = match word {
            Word::L1 => l1,
            Word::L2(index) => l2 + index * 8,
        };
        patch(&path, at, change);
        let args = ["map", "--output=json", "i0"];
        let output = Command::new("qemu-img")
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let made = Made {
            name: "i0".into(),
            raw: false,
            v2: false,
            compresses: false,
            data_file: options.contains("data_file"),
            size: 4 << 20,
        };
        let chain = Chain::new(vec![open(dir, &made, View::Active)]);
        let mut at = 0;
        let mut failed = None;
        while at < chain.len_bytes() {
            match chain.run_at(at, u64::MAX) {
                Ok(run) => at += run.len,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let want = told.lines().next().map(str::to_owned);
        let got = failed.map(|e| e.notice().unwrap().to_string());
        assert_eq!(want, got, "{label}");
    }
}

#[test]
fn places_of_data_are_in_the_data_file_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(
        dir,
        "qemu-img",
        &words("create -q -f qcow2 -o data_file=i0.dat i0 1M"),
    );
    run(
        dir,
        "qemu-io",
        &["-c".into(), "write -P 7 0 64k".into(), "i0".into()],
    );
    let made = Made {
        name: "i0".into(),
        raw: false,
        v2: false,
        compresses: false,
        data_file: true,
        size: 1 << 20,
    };
    let chain = Chain::new(vec![open(dir, &made, View::Active)]);
    let run = chain.run_at(1000, u64::MAX).unwrap();
    let file = FileOf::DataFile;
    let host_offset = 1000;
    assert_eq!(run.kind, RunKind::Data { file, host_offset });
    assert_eq!(run.len, 65536 - 1000);
}

#[test]
fn long_runs_say_of_each_unit_what_its_entry_says() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = "create -q -f qcow2 -o preallocation=metadata,cluster_size=4k";
    let mut rng = Rng(setting("LAYERS_SEED", 4));
    let cases = ["", ",extended_l2=on,cluster_size=16k", ",data_file=i0.dat"];
    for options in cases.repeat(4) {
        run(dir, "qemu-img", &words(&format!("{create}{options} i0 4M")));
        let extended = options.contains("extended");
        let (cluster, step) = if extended { (16384, 16) } else { (4096, 8) };
        let unit = if extended { cluster / 32 } else { cluster };
        let path = dir.join("i0");
        let l1 = patch(&path, 40, |at| at);
        for _ in 0..rng.below(40) {
            // A table of 4 KiB maps 2 MiB; one of 16 KiB maps all.
            let table = rng.below(if extended { 1 } else { 2 });
            let l2 = patch(&path, l1 + table * 8, |entry| entry) & 0x00ff_ffff_ffff_fe00;
            let at = l2 + step * rng.below(if extended { 256 } else { 512 });
            let which = rng.below(9);
            patch(&path, at, |e| match which {
                0 => 0,
                1 => e | 1,
                2 => e ^ 1 << 63,
                3 => e + cluster,
                4 => e | 0x200,
                5 => 1 << 63 | 0x00ff_ffff_ffff_f000,
                _ => e,
            });
            if extended && which > 5 {
                let maps = [0, 0xffff, 0xffff_ffff, 0xffff_ffff << 32];
                let map = maps[usize::try_from(rng.below(4)).unwrap()];
                patch(&path, at + 8, |_| map);
            }
        }
        let made = Made {
            name: "i0".into(),
            raw: false,
            v2: false,
            compresses: false,
            data_file: options.contains("data_file"),
            size: 4 << 20,
        };
        let fresh = || Chain::new(vec![open(dir, &made, View::Active)]);
        let chain = fresh();
        let mut at = 0;
        let mut longest = 0;
        while at < made.size {
            // Of an invalid entry further on, whoever asks for less is not told.
            let found = chain
                .run_at(at, u64::MAX)
                .or_else(|_| chain.run_at(at, unit));
            let Ok(run) = found else {
                assert!(fresh().run_at(at, 1).is_err());
                at += unit;
                continue;
            };
            longest = longest.max(run.len);
            for by in (0..run.len).step_by(usize::try_from(unit).unwrap()) {
                let alone = fresh().run_at(at + by, unit).unwrap();
                assert_eq!(run.kind.advanced(by), alone.kind, "{at} + {by}: {options}");
                let reserved = run.reserved.map(|reserved| reserved + by);
                assert_eq!(reserved, alone.reserved, "{at} + {by}: {options}");
            }
            at += run.len;
        }
        assert!(longest >= 4 * cluster, "no run goes on: {options}");
    }
}
