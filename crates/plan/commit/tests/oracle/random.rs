//! Random chains: what the judge reads is what it was, in the overlay and in the base, and all is sound.

use crate::ours::{self, Member};
use crate::run_of;
use instar_storage::MemStorage;
use instar_tests::joint::{Log, Recorded};
use instar_tests::judge::{check, content, load, ok, run, save};
use instar_tests::rng::Rng;
use std::path::Path;

/// Options; `DATA` stands for the name of a data file.
const OPTIONS: &[&str] = &[
    "cluster_size=4k",
    "cluster_size=512,refcount_bits=64",
    "compat=0.10,cluster_size=8k",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=64k,lazy_refcounts=on",
    "cluster_size=4k,compression_type=zstd",
    "cluster_size=2k,refcount_bits=1",
    "cluster_size=4k,data_file=DATA",
    "cluster_size=512,data_file=DATA",
    "extended_l2=on,cluster_size=16k,data_file=DATA",
];
/// For an image without a backing file: its data file is a raw image of the disk.
const RAW_DATA: &str = "cluster_size=8k,data_file=DATA,data_file_raw=on";

/// A chain that the judge made.
#[derive(Debug, Default)]
pub struct Files {
    /// Names of the files, by number.
    pub names: Vec<String>,
    /// The images, the top first.
    pub members: Vec<Member>,
}

impl Files {
    /// The name of an image.
    pub fn name(&self, index: usize) -> &str {
        &self.names[self.members[index].file]
    }

    /// The names of all qcow2 images.
    pub fn qcow2(&self) -> impl Iterator<Item = &str> {
        let images = self.members.iter().filter(|member| member.qcow2);
        images.map(|member| self.names[member.file].as_str())
    }

    /// The files in memory, by number.
    pub fn load(&self, dir: &Path) -> Vec<MemStorage> {
        self.names
            .iter()
            .map(|name| load(&dir.join(name)))
            .collect()
    }
}

/// The files as the judge finds them.
pub fn save_all(dir: &Path, images: &[MemStorage], files: &Files) {
    for (image, name) in images.iter().zip(&files.names) {
        save(image, &dir.join(name));
    }
}

/// Makes a chain of 2 to 4 images.
pub fn make(dir: &Path, rng: &mut Rng) -> Files {
    let count = 2 + rng.below(3) as usize;
    let mut files = Files::default();
    for index in 0..count {
        let raw = index == 0 && rng.below(3) == 0;
        let name = format!("{index}.img");
        let size = ((100 + rng.below(200)) << 10).to_string();
        let mut options = *rng.pick(OPTIONS);
        if index == 0 && rng.below(8) == 0 {
            options = RAW_DATA;
        }
        let options = if raw { "" } else { options };
        let format = if raw { "raw" } else { "qcow2" };
        let mut args = vec!["create", "-q", "-f", format];
        let data = format!("{index}.data");
        let list = options.replace("DATA", &data);
        if !raw {
            args.extend(["-o", &list]);
        }
        if let Some(below) = files.members.first() {
            let format = if below.qcow2 { "qcow2" } else { "raw" };
            args.extend(["-b", files.name(0), "-F", format]);
        }
        args.extend([name.as_str(), &size]);
        ok(dir, "qemu-img", &args);
        fill(dir, &name, format, options, rng);
        let file = files.names.len();
        files.names.push(name);
        let has_data = options.contains("DATA");
        files.names.extend(has_data.then_some(data));
        let member = Member {
            file,
            data: has_data.then_some(file + 1),
            qcow2: !raw,
        };
        files.members.insert(0, member);
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
        // Some are past the end, or on what is there, or would compress what lies in a data file.
        run(dir, "qemu-io", &["-f", format, "-c", &command, name]);
        // Neither with refcounts of one bit nor with a data file.
        let never = options.contains("refcount_bits=1") || options.contains("DATA");
        if format == "qcow2" && !never && step == 1 && rng.below(4) == 0 {
            ok(dir, "qemu-img", &["snapshot", "-c", "s", name]);
        }
    }
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
    let text = String::from_utf8(info(files.name(base))).unwrap();
    let kept = text.contains("\"snapshots\"") || base + 1 < files.members.len();
    let fixed = text.contains("\"compat\": \"0.10\"") && kept;
    !fixed || size(files.name(base)) >= size(files.name(0))
}

#[test]
fn random_chains_read_as_before_and_are_sound() {
    let (seed, cases) = run_of("random chains", 40);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let files = make(dir, &mut rng);
        let base = 1 + rng.below(files.members.len() as u64 - 1) as usize;
        if !can_grow(dir, &files, base) {
            continue;
        }
        let top = files.name(0);
        let told = format!("COMMIT_SEED={seed} case {case}: {files:?} to {base}");
        let old = content(dir, top);
        let log = Log::default();
        let stores = Recorded::all(files.load(dir), &log);
        let empties = base == 1 && rng.below(2) == 0;
        ours::commit(&stores, &files.members, base, empties, rng.next_u64())
            .unwrap_or_else(|e| panic!("{told}: {e:?}"));
        let images: Vec<MemStorage> = stores.into_iter().map(|store| store.now).collect();
        save_all(dir, &images, &files);
        assert!(content(dir, top) == old, "{told}: the overlay");
        let all = content(dir, files.name(base));
        assert!(all.starts_with(&old), "{told}: the base");
        for name in files.qcow2() {
            assert_eq!(check(dir, name), 0, "{told}: {name}");
        }
        if empties {
            let map = ok(dir, "qemu-img", &["map", "--output=json", top]);
            let map = String::from_utf8(map).unwrap();
            assert!(!map.contains("\"depth\": 0"), "{told}: {map}");
        }
    }
}
