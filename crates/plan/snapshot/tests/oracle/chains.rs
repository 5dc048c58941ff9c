//! Chains of actions.

use crate::kinds::{KINDS, Kind};
use crate::ours::{Action, on_file};
use crate::{Rng, qemu, run_of};
use serde_json::Value;
use std::fs;
use std::path::Path;

const THEIRS: &str = "theirs.qcow2";
const OURS: &str = "ours.qcow2";

/// Snapshots so far: ID and name.
fn snapshots(info: &Value) -> Vec<(String, String)> {
    let list = info.get("snapshots").and_then(Value::as_array);
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_string();
    list.into_iter()
        .flatten()
        .map(|entry| (text(entry, "id"), text(entry, "name")))
        .collect()
}

/// Both images have to be the same to every reader; of the snapshots, those that `pick` says are read.
fn compare(dir: &Path, kind: &Kind, resized: bool, mut pick: impl FnMut() -> bool, what: &str) {
    let encrypted = kind.encrypted;
    qemu::check(dir, OURS, encrypted, what);
    let theirs = qemu::info(dir, THEIRS, encrypted);
    assert_eq!(qemu::info(dir, OURS, encrypted), theirs, "{what}");
    let (our_map, their_map) = (
        qemu::map(dir, OURS, encrypted),
        qemu::map(dir, THEIRS, encrypted),
    );
    assert_eq!(our_map, their_map, "{what}");
    let ids = snapshots(&theirs).into_iter().map(|(id, _)| id);
    for id in ids.filter(|_| pick()).map(Some).chain([None]) {
        let [ours, theirs] =
            [OURS, THEIRS].map(|name| qemu::content(dir, name, encrypted, id.as_deref()));
        assert!(ours == theirs, "{what}: content of {id:?} differs");
    }
    // Where qemu-img cuts our file depends on where our tables lie.
    if resized {
        return;
    }
    // Whole clusters: qemu-img's files end where the last write did.
    let [ours, theirs] = [OURS, THEIRS].map(|name| fs::metadata(dir.join(name)).unwrap().len());
    let cluster = qemu::info(dir, THEIRS, encrypted)["cluster-size"]
        .as_u64()
        .unwrap();
    let allowed = theirs.next_multiple_of(cluster) * 102 / 100;
    assert!(
        ours <= allowed.next_multiple_of(cluster),
        "{what}: {ours} bytes, qemu-img's {theirs}"
    );
}

/// One write by `qemu-io`, in both images.
fn write(dir: &Path, kind: &Kind, rng: &mut Rng) -> String {
    let size = qemu::info(dir, THEIRS, kind.encrypted)["virtual-size"]
        .as_u64()
        .unwrap();
    if size < 4096 {
        return "no disk".into();
    }
    let cluster = qemu::info(dir, THEIRS, kind.encrypted)["cluster-size"]
        .as_u64()
        .unwrap();
    let len = (1 + rng.below(24)) * 512 * (1 + rng.below(20));
    let offset = rng.below(size / 512) * 512;
    let len = len.min(size - offset);
    let pattern = 1 + rng.below(255);
    let command = match rng.below(8) {
        0 => format!("write -z {offset} {len}"),
        1 => format!("write -zu {offset} {len}"),
        2 => format!("discard {offset} {len}"),
        3 | 4 if kind.compresses() => {
            let offset = offset / cluster * cluster;
            let len = cluster.min(size - offset);
            // A cluster that is allocated cannot be written compressed.
            let command = format!("discard {offset} {len}");
            for name in [THEIRS, OURS] {
                qemu::io(dir, name, false, &command);
            }
            format!("write -c -P {pattern} {offset} {len}")
        }
        _ => format!("write -P {pattern} {offset} {len}"),
    };
    for name in [THEIRS, OURS] {
        qemu::io(dir, name, kind.encrypted, &command);
    }
    command
}

fn resize(dir: &Path, rng: &mut Rng) -> String {
    let size = format!("{}", rng.below(64) * 97 * 512);
    for name in [THEIRS, OURS] {
        qemu::img(
            dir,
            &["resize", "-q", "--shrink", "-f", "qcow2", name, &size],
        );
    }
    size
}

/// A name to look for: an ID, a name, or neither.
fn some_name(known: &[(String, String)], rng: &mut Rng) -> String {
    let pick = known.get(rng.below(known.len() as u64 + 1) as usize);
    match (pick, rng.below(3)) {
        (Some((id, _)), 0) => id.clone(),
        (Some((_, name)), _) => name.clone(),
        (None, _) => "missing".into(),
    }
}

fn new_name(rng: &mut Rng) -> String {
    match rng.below(8) {
        0 => String::new(),
        1 => format!("{}", rng.below(8)),
        2 => "x".repeat(250 + rng.below(60) as usize),
        3 => "é".repeat(1 + rng.below(130) as usize),
        _ => format!("s{}", rng.below(6)),
    }
}

/// One action by both; the outcome has to be the same.
fn act(dir: &Path, kind: &Kind, rng: &mut Rng) -> String {
    let known = snapshots(&qemu::info(dir, THEIRS, kind.encrypted));
    let (flag, name) = match rng.below(10) {
        0..=3 => ("-c", new_name(rng)),
        4..=6 => ("-a", some_name(&known, rng)),
        _ => ("-d", some_name(&known, rng)),
    };
    let said = qemu::on(dir, &["snapshot", flag, &name], THEIRS, kind.encrypted);
    let bytes = name.clone().into_bytes();
    let action = match flag {
        "-c" => {
            let info = qemu::info(dir, THEIRS, kind.encrypted);
            let entry = info
                .get("snapshots")
                .and_then(|list| list.as_array()?.last());
            let number = |key: &str| entry.map_or(0, |entry| entry[key].as_u64().unwrap() as u32);
            let date = (number("date-sec"), number("date-nsec"));
            Action::Create { name: bytes, date }
        }
        "-a" => Action::Apply(bytes),
        _ => Action::Delete(bytes),
    };
    let what = format!("{flag} {name:?}");
    let ours = on_file(&dir.join(OURS), &action);
    match ours {
        Ok(()) => assert_eq!(said.code, 0, "{what}: only ours succeeds: {}", said.stderr),
        Err(text) => {
            assert_eq!((said.code, &said.stderr), (1, &text), "{what}");
        }
    }
    what
}

/// Leaks that `qemu-img` itself leaves when it gives up.
fn mend(dir: &Path, kind: &Kind) {
    if qemu::on(dir, &["check"], THEIRS, kind.encrypted).code == 3 {
        let said = qemu::on(dir, &["check", "-q", "-r", "leaks"], THEIRS, kind.encrypted);
        assert_eq!(said.code, 0, "{}", said.stderr);
    }
}

fn chain(kind: &Kind, rng: &mut Rng, steps: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kind.make(dir, THEIRS);
    fs::copy(dir.join(THEIRS), dir.join(OURS)).unwrap();
    let mut story = String::new();
    let mut resized = false;
    for step in 0..steps {
        let done = match rng.below(9) {
            0..=2 => write(dir, kind, rng),
            3 if !kind.encrypted => {
                resized = true;
                resize(dir, rng)
            }
            _ => act(dir, kind, rng),
        };
        story = format!("{story}; {done}");
        mend(dir, kind);
        let what = format!("{}{story}", kind.name);
        let last = step + 1 == steps;
        compare(dir, kind, resized, || last || rng.below(4) == 0, &what);
    }
}

#[test]
fn chains_of_actions_end_as_qemus_do() {
    let (seed, cases) = run_of("chains", KINDS.len() as u64);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let kind = &KINDS[(case % KINDS.len() as u64) as usize];
        chain(kind, &mut rng, 8);
    }
}
