//! Random chains: what the judge reads is what it was, in the overlay and in the base, and all is sound.

use crate::judge::{check, content, load, ok, run, save};
use crate::record::{Log, Recorded};
use crate::{Rng, ours, run_of};
use std::path::Path;

const OPTIONS: &[&str] = &[
    "cluster_size=4k",
    "cluster_size=512,refcount_bits=64",
    "compat=0.10,cluster_size=8k",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=64k,lazy_refcounts=on",
    "cluster_size=4k,compression_type=zstd",
    "cluster_size=2k,refcount_bits=1",
];

/// A chain that the judge made: names, the top first, and whether each is qcow2.
pub type Files = Vec<(String, bool)>;

/// Makes a chain of 2 to 4 images.
pub fn make(dir: &Path, rng: &mut Rng) -> Files {
    let count = 2 + rng.below(3) as usize;
    let mut files: Files = Vec::new();
    for index in 0..count {
        let raw = index == 0 && rng.below(3) == 0;
        let name = format!("{index}.img");
        let size = ((100 + rng.below(200)) << 10).to_string();
        let options = *rng.pick(OPTIONS);
        let options = if raw { "" } else { options };
        let format = if raw { "raw" } else { "qcow2" };
        let mut args = vec!["create", "-q", "-f", format];
        if !raw {
            args.extend(["-o", options]);
        }
        let below = files.first().cloned();
        if let Some((below, qcow2)) = &below {
            args.extend(["-b", below, "-F", if *qcow2 { "qcow2" } else { "raw" }]);
        }
        args.extend([name.as_str(), &size]);
        ok(dir, "qemu-img", &args);
        fill(dir, &name, format, options, rng);
        files.insert(0, (name, !raw));
    }
    files
}

fn fill(dir: &Path, name: &str, format: &str, options: &str, rng: &mut Rng) {
    for step in 0..1 + rng.below(7) {
        let sector = |rng: &mut Rng| rng.below(190) * 512;
        let at = sector(rng);
        let len = (1 + rng.below(80)) * 512;
        let byte = 1 + rng.below(250);
        let command = match rng.below(8) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            2 if format == "qcow2" => format!("write -c -P {byte} {} 64k", at & !0xffff),
            3 => format!("discard {at} {len}"),
            _ => format!("write -P {byte} {at} {len}"),
        };
        // Some are past the end, or on what is there.
        run(dir, "qemu-io", &["-f", format, "-c", &command, name]);
        let may_snapshot = format == "qcow2" && !options.contains("refcount_bits=1");
        if may_snapshot && step == 1 && rng.below(4) == 0 {
            ok(dir, "qemu-img", &["snapshot", "-c", "s", name]);
        }
    }
}

/// Loads the files of a chain.
pub fn load_all<'l>(dir: &Path, files: &Files, log: &'l Log) -> Vec<(Recorded<'l>, bool)> {
    let files = files.iter().enumerate();
    let loaded = files.map(|(number, (name, qcow2))| {
        let store = Recorded::new(number, load(&dir.join(name)), log);
        (store, *qcow2)
    });
    loaded.collect()
}

/// Whether the judge would take it: an image of version 2 does not grow if it has snapshots, or something below that
/// could show.
pub fn can_grow(dir: &Path, files: &Files, base: usize) -> bool {
    let info = |name: &str| ok(dir, "qemu-img", &["info", "-U", "--output=json", name]);
    let size = |name: &str| {
        let text = String::from_utf8(info(name)).unwrap();
        let at = text.rfind("\"virtual-size\": ").unwrap() + 16;
        let digits: String = text[at..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse::<u64>().unwrap()
    };
    let text = String::from_utf8(info(&files[base].0)).unwrap();
    let kept = text.contains("\"snapshots\"") || base + 1 < files.len();
    let fixed = text.contains("\"compat\": \"0.10\"") && kept;
    !fixed || size(&files[base].0) >= size(&files[0].0)
}

#[test]
fn random_chains_read_as_before_and_are_sound() {
    let (seed, cases) = run_of("random chains", 40);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let files = make(dir, &mut rng);
        let base = 1 + rng.below(files.len() as u64 - 1) as usize;
        if !can_grow(dir, &files, base) {
            continue;
        }
        let top = files[0].0.clone();
        let told = format!("COMMIT_SEED={seed} case {case}: {files:?} to {base}");
        let old = content(dir, &top);
        let log = Log::default();
        let stores = load_all(dir, &files, &log);
        let empties = base == 1 && rng.below(2) == 0;
        ours::commit(&stores, base, empties, rng.number())
            .unwrap_or_else(|e| panic!("{told}: {e:?}"));
        for ((store, _), (name, _)) in stores.iter().zip(&files) {
            save(&store.now, &dir.join(name));
        }
        assert!(content(dir, &top) == old, "{told}: the overlay");
        let all = content(dir, &files[base].0);
        assert!(all.starts_with(&old), "{told}: the base");
        for (name, _) in files.iter().filter(|(_, qcow2)| *qcow2) {
            assert_eq!(check(dir, name), 0, "{told}: {name}");
        }
        if empties {
            let map = ok(dir, "qemu-img", &["map", "--output=json", &top]);
            let map = String::from_utf8(map).unwrap();
            assert!(!map.contains("\"depth\": 0"), "{told}: {map}");
        }
    }
}
