//! Bits of bitmaps after a resize, as `qemu-img` leaves them.

use crate::ours::{load, on_file, to};
use crate::state::{Bits, bitmaps};
use crate::{Rng, qemu, run_of};
use instar_plan_resize::Preallocation;
use instar_qcow2::{Header, OpenMode};
use std::fs;
use std::path::Path;

fn bits(dir: &Path, name: &str) -> Vec<Bits> {
    let store = load(&dir.join(name));
    let header = Header::read(&store, OpenMode::Change).unwrap();
    let mut bits = bitmaps(&store, &header);
    // qemu-img puts them into another order.
    bits.sort();
    bits
}

#[test]
fn bitmaps_are_cut_and_extended_alike() {
    let (seed, cases) = run_of("bitmaps", 12);
    let mut set = 0;
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let cluster = rng.pick(&["512", "4k", "64k"]);
        let options = format!("cluster_size={cluster}");
        let mut now = 512 * (1 + rng.below(20_000));
        let size = now.to_string();
        qemu::img_ok(
            path,
            &["create", "-q", "-f", "qcow2", "-o", &options, "a", &size],
        );
        for (name, granularity, disabled) in [
            ("one", "512", false),
            ("two", "4k", true),
            ("three", "64k", false),
        ] {
            let mut args = vec!["bitmap", "--add", "-g", granularity, "a", name];
            if disabled {
                args.insert(2, "--disable");
            }
            qemu::img_ok(path, &args);
        }
        fs::copy(path.join("a"), path.join("b")).unwrap();
        for step in 0..4 {
            for _ in 0..3 {
                let at = 512 * rng.below(now / 512);
                let len = (512 * (1 + rng.below(400))).min(now - at);
                for name in ["a", "b"] {
                    qemu::io(path, name, &format!("write -P 3 {at} {len}"));
                }
            }
            now = match rng.below(3) {
                0 => now + 512 * (1 + rng.below(60_000)),
                1 => now + 512,
                _ => 512 * (1 + rng.below(now / 512)),
            };
            let request = to(now, Preallocation::Off);
            on_file(path, "a", &request).unwrap();
            qemu::img_ok(
                path,
                &[
                    "resize",
                    "-q",
                    "--shrink",
                    "-f",
                    "qcow2",
                    "b",
                    &now.to_string(),
                ],
            );
            qemu::check(path, "a", "ours");
            let (ours, theirs) = (bits(path, "a"), bits(path, "b"));
            assert!(
                ours == theirs,
                "RESIZE_SEED={seed} case {case} step {step}: {request:?}"
            );
            set += ours.iter().map(|b| b.2.len()).sum::<usize>();
        }
    }
    println!("{set} bits");
    assert!(set > 1000);
}

/// A table entry may say "all ones" without a cluster: the part past the old end must not show.
#[test]
fn all_ones_end_where_the_old_disk_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let options = "cluster_size=512";
    qemu::img_ok(
        path,
        &["create", "-q", "-f", "qcow2", "-o", options, "a", "1M"],
    );
    qemu::img_ok(path, &["bitmap", "--add", "-g", "512", "a", "one"]);
    let header = Header::read(&load(&path.join("a")), OpenMode::Change).unwrap();
    let directory = header.extensions.bitmaps.unwrap().directory_offset.get() as usize;
    let mut bytes = fs::read(path.join("a")).unwrap();
    let table = u64::from_be_bytes(bytes[directory..directory + 8].try_into().unwrap()) as usize;
    bytes[table + 7] = 1;
    fs::write(path.join("a"), &bytes).unwrap();
    fs::write(path.join("b"), &bytes).unwrap();
    for size in [5 << 20, 600 << 10, 6 << 20] {
        on_file(path, "a", &to(size, Preallocation::Off)).unwrap();
        qemu::img_ok(
            path,
            &[
                "resize",
                "-q",
                "--shrink",
                "-f",
                "qcow2",
                "b",
                &size.to_string(),
            ],
        );
        qemu::check(path, "a", "ours");
        assert!(bits(path, "a") == bits(path, "b"), "{size}");
    }
    assert_eq!(bits(path, "a")[0].2.len(), 1200);
}
