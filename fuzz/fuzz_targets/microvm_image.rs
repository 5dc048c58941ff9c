//! A damaged image through `info` and `check` in real microVMs: a result or a reason, never a crash.
//!
//! Needs `/dev/kvm`. The guest is not instrumented, so this target mutates blindly from its corpus;
//! `qcow2_info` and `qcow2_check` run the same code with coverage.
#![no_main]

use instar_microvm_tests::{image_file, run_image};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let file = image_file(bytes).expect("a temporary file");
    match run_image(&file) {
        Ok(_) => Corpus::Keep,
        Err(error) => panic!("{error:#}"),
    }
});
