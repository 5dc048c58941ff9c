//! Measured sizes beside those of `qemu-img measure`.

use crate::{Rng, run_of, said, typed};
use instar_plan_create::{Options, Preallocation, measure};

#[test]
fn sizes_equal_those_of_qemu() {
    let (seed, cases) = run_of("measured", 200);
    let folder = tempfile::tempdir().unwrap();
    let modes = [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ];
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let cluster_bytes = 512 << rng.below(13);
        let bits = rng.below(36);
        let options = Options {
            size: rng.below(1 << bits) + rng.below(2) * 512,
            cluster_bytes,
            refcount_bits: 1 << rng.below(7),
            extended_l2: cluster_bytes >= 16384 && rng.below(2) == 0,
            preallocation: rng.pick(&modes),
            ..Options::default()
        };
        let size = options.size.to_string();
        let words = [
            "measure",
            "-O",
            "qcow2",
            "-o",
            &typed(&options),
            "--size",
            &size,
        ];
        let theirs = said(folder.path(), &words);
        let ours = measure(&options, None).unwrap();
        let ours = format!(
            "required size: {}\nfully allocated size: {}\n",
            ours.required, ours.fully_allocated
        );
        assert_eq!(ours, theirs, "case {case}: {words:?}");
    }
}
