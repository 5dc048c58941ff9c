//! Options that are refused: by both, in the same words.

use crate::{Rng, qemu_img, run_of, typed};
use instar_plan_create::{Encryption, Options, Preallocation, Spec};
use instar_qcow2::header::CompressionType;

/// Options of which many do not go together.
fn any_options<'a>(rng: &mut Rng) -> Options<'a> {
    Options {
        size: rng.pick(&[0, 1, 511, 1 << 20, (1 << 62) + 1, i64::MAX as u64]),
        version: rng.pick(&[2, 3, 3]),
        cluster_bytes: rng.pick(&[0, 512, 513, 4096, 8192, 16384, 65536, 2 << 20, 4 << 20]),
        refcount_bits: rng.pick(&[0, 1, 3, 16, 16, 16, 64, 128]),
        compression: rng.pick(&[CompressionType::Zlib, CompressionType::Zstd]),
        extended_l2: rng.below(3) == 0,
        lazy_refcounts: rng.below(3) == 0,
        backing_file: rng.pick(&[None, None, Some(&b"below"[..]), Some(&[b'n'; 500])]),
        backing_format: rng.pick(&[None, Some(&b"raw"[..])]),
        data_file: rng.pick(&[None, None, Some(&b"data"[..])]),
        data_file_raw: rng.below(4) == 0,
        preallocation: rng.pick(&[
            Preallocation::Off,
            Preallocation::Off,
            Preallocation::Metadata,
        ]),
        encryption: Encryption::None,
    }
}

#[test]
fn options_that_do_not_go_together_are_refused_in_the_same_words() {
    let (seed, cases) = run_of("words", 400);
    let folder = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for case in 0..cases {
        let mut options = any_options(&mut Rng::of(seed, case));
        if options.backing_file.is_some() && options.backing_format.is_none() {
            options.backing_format = Some(b"raw");
        }
        let size = options.size.to_string();
        let list = typed(&options);
        let words = ["create", "-q", "-u", "-f", "qcow2", "-o", &list, "x", &size];
        let theirs = qemu_img(folder.path(), &words);
        let stderr = String::from_utf8(theirs.stderr).unwrap();
        match Spec::new(&options) {
            Ok(_) => assert!(
                theirs.status.success(),
                "case {case}: {list} {size}: {stderr}"
            ),
            Err(e) => {
                refused += 1;
                assert_eq!(
                    stderr,
                    format!("qemu-img: x: {e}\n"),
                    "case {case}: {list} {size}"
                );
            }
        }
    }
    assert!(refused > cases / 3 && refused < cases, "{refused} refused");
}

#[test]
fn names_have_their_limits() {
    let folder = tempfile::tempdir().unwrap();
    for (cluster_bytes, len) in [
        (65536, 1023),
        (65536, 1024),
        (512, 376),
        (512, 377),
        (512, 1023),
    ] {
        let name = vec![b'n'; len];
        let options = Options {
            cluster_bytes,
            backing_file: Some(&name),
            backing_format: Some(b"raw"),
            ..Options::default()
        };
        let list = typed(&options);
        let words = ["create", "-q", "-u", "-f", "qcow2", "-o", &list, "x", "1M"];
        let theirs = qemu_img(folder.path(), &words);
        let ours = match Spec::new(&options) {
            Ok(_) => String::new(),
            Err(e) => format!("qemu-img: x: {e}\n"),
        };
        let stderr = String::from_utf8(theirs.stderr).unwrap();
        assert_eq!(stderr, ours, "{cluster_bytes} {len}");
    }
}
