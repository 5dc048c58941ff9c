//! Chains of resizes, done by both.

use crate::kinds::{Below, KINDS, Kind};
use crate::ours::{arguments, on_file, size};
use crate::{Rng, qemu, run_of};
use instar_plan_resize::{NewSize, Preallocation, Request};
use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "a.qcow2";
/// `qemu-img` fails so where the file is longer than the clusters that it appends need: freed clusters at its end.
const FREE_TAIL: &str = "Cannot use preallocation for shrinking files";
/// The largest disk of a chain.
const MAX_BYTES: u64 = 6 << 20;

/// Two copies of an image, resized by `qemu-img` and by the planner.
struct Twins {
    ours: PathBuf,
    theirs: PathBuf,
    kind: Kind,
    size: u64,
    snapshots: u64,
}

fn virtual_size(dir: &Path) -> u64 {
    qemu::info(dir, NAME)["virtual-size"].as_u64().unwrap()
}

impl Twins {
    fn new(dir: &Path, kind: Kind, size: u64) -> Self {
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        for dir in [&ours, &theirs] {
            fs::create_dir(dir).unwrap();
            kind.make(dir, size);
        }
        Self {
            ours,
            theirs,
            kind,
            size,
            snapshots: 0,
        }
    }

    fn both(&self, change: impl Fn(&Path)) {
        change(&self.ours);
        change(&self.theirs);
    }

    /// Does the same to both, by `qemu-img` and `qemu-io`.
    fn prepare(&mut self, rng: &mut Rng) -> String {
        let sectors = self.size / 512;
        let (mut at, mut len) = (rng.below(sectors), 1 + rng.below(600));
        // Mostly near the end of the disk.
        if rng.below(2) == 0 {
            at = sectors.saturating_sub(1 + rng.below(200));
        }
        len = len.min(sectors - at);
        let mut command = match rng.below(6) {
            0 => format!("write -z {} {}", at * 512, len * 512),
            1 if !self.kind.data_file && !(self.kind.is_extended()) => {
                // A compressed write is a cluster, or what is left of the disk.
                let at = at * 512 / self.kind.cluster * self.kind.cluster;
                let len = self.kind.cluster.min(self.size - at);
                format!("write -c -P 77 {at} {len}")
            }
            _ => format!("write -P {} {} {}", 1 + rng.below(250), at * 512, len * 512),
        };
        match rng.below(8) {
            0 if self.kind.snapshots && self.snapshots < 3 => {
                self.snapshots += 1;
                command = format!("snapshot s{}", self.snapshots);
                let name = format!("s{}", self.snapshots);
                self.both(|dir| drop(qemu::img_ok(dir, &["snapshot", "-c", &name, NAME])));
            }
            _ if command.starts_with("write -c") => {
                // Only a cluster that has no data can be compressed.
                let code = |dir: &Path| qemu::try_io(dir, NAME, &command).code;
                assert_eq!(code(&self.ours), code(&self.theirs), "{command}");
            }
            _ => self.both(|dir| qemu::io(dir, NAME, &command)),
        }
        command
    }

    /// Resizes both. What differs, if anything; false if `qemu-img` failed where it need not.
    fn resize(&mut self, request: &Request) -> Result<bool, String> {
        let mut args = arguments(request);
        args.extend(["-f", "qcow2", NAME, "--"].map(String::from));
        args.push(size(request));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let theirs = qemu::img(&self.theirs, &args);
        let ours = on_file(&self.ours, NAME, request);
        let ours = ours.err().unwrap_or_default();
        if theirs.stderr.contains(FREE_TAIL) && ours.is_empty() {
            return Ok(false);
        }
        if theirs.stderr != ours {
            return Err(format!("ours: {ours}\ntheirs: {}", theirs.stderr));
        }
        let old = std::mem::replace(&mut self.size, virtual_size(&self.theirs));
        if request.preallocation != Preallocation::Off && self.they_show_old_bytes(old) {
            return Ok(false);
        }
        self.compare().map(|()| true)
    }

    /// With preallocation, `qemu-img` takes clusters that were freed, and what they held shows.
    fn they_show_old_bytes(&self, old_size: u64) -> bool {
        let (ours, theirs) = (
            qemu::content(&self.ours, NAME, None),
            qemu::content(&self.theirs, NAME, None),
        );
        let (ours, theirs) = (ours.iter().enumerate(), theirs.iter());
        let mut differ = ours.zip(theirs).filter(|((_, a), b)| a != b).peekable();
        differ.peek().is_some() && differ.all(|((at, ours), _)| at as u64 >= old_size && *ours == 0)
    }

    fn compare(&self) -> Result<(), String> {
        let same = |what: &str, ours: String, theirs: String| {
            let wrong = format!("{what}\n  ours: {ours}\ntheirs: {theirs}");
            if ours == theirs { Ok(()) } else { Err(wrong) }
        };
        let show = |dir: &Path| format!("{:#}", qemu::info(dir, NAME));
        same("info", show(&self.ours), show(&self.theirs))?;
        qemu::check(&self.ours, NAME, "ours");
        let id = |n: u64| (n > 0).then(|| n.to_string());
        for n in 0..=self.snapshots {
            let content = |dir: &Path| qemu::content(dir, NAME, id(n).as_deref());
            let (ours, theirs) = (content(&self.ours), content(&self.theirs));
            if ours != theirs {
                let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                let at = at.unwrap_or(ours.len().min(theirs.len()));
                return Err(format!(
                    "content of snapshot {n} at {at}: {:?} and {:?} of {}",
                    ours.get(at),
                    theirs.get(at),
                    ours.len()
                ));
            }
        }
        // A growth that fails in version 2 has added clusters to qemu-img's copy.
        if !(self.kind.is_v2() && self.kind.below != Below::Nothing) {
            let map = |dir: &Path| format!("{:#?}", qemu::map(dir, NAME));
            same("map", map(&self.ours), map(&self.theirs))?;
        }
        let len = |dir: &Path, name: &str| fs::metadata(dir.join(name)).map_or(0, |m| m.len());
        if self.kind.data_file {
            let show = |dir: &Path| len(dir, "a.data").to_string();
            same("data file", show(&self.ours), show(&self.theirs))?;
        }
        let (ours, theirs) = (len(&self.ours, NAME), len(&self.theirs, NAME));
        let allowed = theirs.next_multiple_of(self.kind.cluster);
        // Small files: what is written between the resizes falls into other holes. Bitmaps are not compared:
        // qemu-img writes them anew, lower down, each time it opens an image.
        let more = (allowed / 50).max(10 * self.kind.cluster);
        if ours > allowed + more && !self.kind.bitmaps {
            return Err(format!("file length: ours {ours}, theirs {theirs}"));
        }
        Ok(())
    }
}

/// A request that makes sense now.
fn request(rng: &mut Rng, now: u64, cluster: u64) -> Request {
    let preallocation = rng.pick(&[
        Preallocation::Off,
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ]);
    let grow = now < MAX_BYTES / 4 || (now < MAX_BYTES && rng.below(5) < 3);
    let most = if grow { MAX_BYTES - now } else { now };
    let by = match rng.below(4) {
        0 => 512 * (1 + rng.below(most / 512)),
        1 => 512 * (1 + rng.below(100)),
        2 => cluster * (1 + rng.below(most / cluster)),
        // To a cluster's end, or some sectors from it.
        _ if grow => cluster - now % cluster,
        _ => now % cluster,
    };
    let by = by.min(most).max(512);
    let preallocation = if grow {
        preallocation
    } else {
        Preallocation::Off
    };
    let absolute = if grow {
        now + by
    } else {
        now.saturating_sub(by).max(512)
    };
    let size = match rng.below(3) {
        0 if grow => NewSize::Grow(by),
        1 if !grow && by < now => NewSize::Shrink(by),
        _ => NewSize::Absolute(absolute),
    };
    Request {
        size,
        preallocation,
        shrink: !grow || rng.below(2) == 0,
    }
}

/// One chain; the story so far if something differs.
fn chain(rng: &mut Rng, kind: Kind) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    let start = 512 * (1 + rng.below(4096));
    let mut twins = Twins::new(dir.path(), kind, start);
    let mut story = vec![format!("{}: {start} bytes", kind.name)];
    if kind.bitmaps {
        let args = [["-g", "512", "fine"], ["-g", "64k", "coarse"]];
        for [g, size, name] in args {
            let args = ["bitmap", "--add", g, size, NAME, name];
            twins.both(|dir| drop(qemu::img_ok(dir, &args)));
        }
    }
    let steps = 2 + rng.below(5);
    for _ in 0..steps {
        for _ in 0..rng.below(3) {
            story.push(twins.prepare(rng));
        }
        let request = request(rng, twins.size, kind.cluster);
        story.push(format!("{request:?}"));
        match twins.resize(&request) {
            Ok(true) => {}
            Ok(false) => break,
            Err(wrong) => {
                if std::env::var_os("RESIZE_KEEP").is_some() {
                    println!("kept in {}", dir.keep().display());
                }
                return Err(format!("{}\n{wrong}", story.join("\n")));
            }
        }
    }
    Ok(steps)
}

#[test]
fn chains_of_resizes_end_alike() {
    let (seed, cases) = run_of("chains", 2 * KINDS.len() as u64);
    let only = std::env::var("RESIZE_KIND").ok();
    let (mut failures, mut steps) = (Vec::new(), 0);
    for case in 0..cases {
        let kind = KINDS[(case % KINDS.len() as u64) as usize];
        if only.as_ref().is_some_and(|only| only != kind.name) {
            continue;
        }
        match chain(&mut Rng::of(seed, case), kind) {
            Ok(done) => steps += done,
            Err(wrong) => failures.push(format!("case {case}: {wrong}")),
        }
    }
    println!(
        "RESIZE_SEED={seed}: {steps} resizes alike, {} chains differ",
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "RESIZE_SEED={seed}\n{}",
        failures[..failures.len().min(8)].join("\n\n")
    );
    assert!(only.is_some() || steps > cases, "too few resizes");
}

/// Every kind, every preallocation, with the old end inside a cluster and at its start.
#[test]
fn every_kind_grows_with_every_preallocation() {
    let dir = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    let only = std::env::var("RESIZE_KIND").ok();
    let modes = [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ];
    for (number, kind) in KINDS.iter().enumerate() {
        if only.as_ref().is_some_and(|only| only != kind.name) {
            continue;
        }
        for (start, write) in [
            (75 << 10, ""),
            (75 << 10, "write -P 5 10k 65k"),
            (2 << 20, "write -P 5 1M 1M"),
            (75 << 10, "write -z 64k 4k"),
        ] {
            for preallocation in modes {
                let case = dir.path().join(format!(
                    "{number}-{start}-{}-{}",
                    preallocation.name(),
                    write.len()
                ));
                fs::create_dir(&case).unwrap();
                let mut twins = Twins::new(&case, *kind, start);
                if !write.is_empty() {
                    twins.both(|dir| qemu::io(dir, NAME, write));
                }
                let request = crate::ours::to(start + (1 << 20) + 1024, preallocation);
                if let Err(wrong) = twins.resize(&request) {
                    failures.push(format!(
                        "{}, {start} '{write}' {request:?}: {wrong}",
                        kind.name
                    ));
                }
                fs::remove_dir_all(&case).unwrap();
            }
        }
    }
    let shown = failures[..failures.len().min(8)].join("\n\n");
    assert!(failures.is_empty(), "{} differ\n{shown}", failures.len());
    assert!(KINDS.iter().any(|kind| kind.below == Below::Raw));
}
