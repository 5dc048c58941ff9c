//! Wrong uses and option lists against `qemu-img`, and what reaches the operation.

use super::*;
use crate::cli::{Command, parse};
use crate::oracle;
use instar_shared::edit::{
    AMEND_BACKING_FILE, AMEND_COMPAT, AMEND_DATA_FILE, AMEND_DATA_FILE_RAW, AMEND_ENCRYPT,
    AMEND_LAZY_REFCOUNTS, AMEND_REFCOUNT_BITS, AMEND_SIZE,
};
use std::ffi::OsString;
use std::path::Path;

fn options(line: &[&str]) -> AmendOptions {
    let words = ["instar", "amend"].iter().chain(line);
    match parse(words.map(OsString::from)).unwrap().command {
        Command::Amend(options) => options,
        other => panic!("{other:?}"),
    }
}

/// All that `qemu-img` complains of, without its name.
fn complaints(folder: &Path, line: &[&str]) -> String {
    let arguments = [&["amend"], line].concat();
    let text = String::from_utf8(oracle::qemu_img(folder, &arguments).stderr).unwrap();
    text.strip_prefix("qemu-img: ").unwrap_or(&text).to_owned()
}

#[test]
fn refusals_before_the_image_is_opened_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        &[][..],
        &["a"],
        &["-o", "a"],
        &["-o", "compat=1.1", "a", "b"],
        &["-o", ""],
        &["-o", ",", "a"],
        &["-o", "compat=1.1,", "a"],
        &["-o", ",a", "a"],
        &["-o", "a,,,", "a"],
        &["-o", "compat=1.1", "-o", "", "a"],
        &["-o", "", "-t", "bogus"],
        &["-f", "raw", "-o", "help"],
        &["-f", "vmdk", "-o", "help"],
        &["-f", "bogus", "-o", "help", "a"],
        &["-f", "qcow2", "-o", "help,"],
        &["-t", "bogus", "-o", "help", "a"],
        &["-t", "", "-o", "x", "a"],
        &["--image-opts", "-f", "qcow2", "-t", "bogus", "-o", "x", "a"],
        &["--image-opts", "-f", "qcow2", "-o", "x", "a"],
        &["--image-opts", "-f", "qcow2", "-o", "x"],
        &["-f", "bogus", "-o", "x", "a"],
    ] {
        let theirs = complaints(folder.path(), line);
        let ours = request(&options(line)).unwrap_err().sentence;
        assert_eq!(ours, theirs.lines().next().unwrap(), "{line:?}");
    }
}

#[test]
fn option_lists_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    oracle::stdout(folder.path(), &["create", "-q", "-f", "qcow2", "a", "1M"]);
    for list in [
        "bogus=1",
        "bogus",
        "=x",
        "a,bogus",
        "compat=2",
        "compat",
        "nocompat",
        "compat=",
        "compat=1.1,,x",
        "compat=1.1,,",
        "compat =1.1",
        "lazy_refcounts=maybe",
        "lazy_refcounts=ON",
        "lazy_refcounts=",
        "lazy_refcounts",
        "nolazy_refcounts",
        "lazy_refcounts=yes",
        "lazy_refcounts=y",
        "lazy_refcounts=n",
        "lazy_refcounts=true",
        "lazy_refcounts=no",
        "lazy_refcounts=false",
        "nolazy_refcounts=on",
        "lazy_refcounts,,size=1M",
        "nobogus",
        "refcount_bits=x",
        "refcount_bits",
        "refcount_bits=",
        "refcount_bits=16k",
        "refcount_bits=16.0",
        "refcount_bits=0x10",
        "refcount_bits=+16",
        "refcount_bits=020",
        "refcount_bits=08",
        "refcount_bits=18446744073709551616",
        "refcount_bits=4294967312",
        "size=x",
        "size",
        "nosize",
        "size=",
        "size=-1",
        "size=-1M",
        "size=16E",
        "size=1M",
        "cluster_size=4k",
        "cluster_size=x",
        "cluster_size=4k,compat=2",
        "compat=2,cluster_size=4k",
        "refcount_bits=x,cluster_size=4k",
        "cluster_size=4k,refcount_bits=x",
        "cluster_size=4k,bogus=1",
        "bogus=1,cluster_size=4k",
        "preallocation=full",
        "preallocation=bogus",
        "encryption=on",
        "encryption=maybe",
        "noencryption",
        "encrypt.format=luks",
        "encrypt.key-secret=x",
        "encrypt.cipher-alg=x",
        "encrypt.cipher-mode=x",
        "encrypt.hash-alg=x",
        "encrypt.ivgen-alg=x",
        "encrypt.ivgen-hash-alg=x",
        "compression_type=zstd",
        "extended_l2=on",
        "extended_l2=x",
        "adapter_type=x",
        "cluster_size=4k,encrypt.state=x",
        "cluster_size=4k,encrypt.keyslot=1",
        "encrypt.keyslot=x",
        "encrypt.iter-time=x",
        "cluster_size=4k,encrypt.iter-time=1",
        "size=x,bogus=1",
        "bogus=1,size=x",
        "backing_file=x,compat=bogus",
        "id=x",
        "id=x,id=1",
        "help=1",
        "?x",
        "xhelp",
        "compat=1.1,compat=bogus",
        "a,,,,",
        "-t",
    ] {
        let theirs = complaints(folder.path(), &["-o", list, "a"]);
        let Request::Run { ending, .. } = request(&options(&["-o", list, "a"])).unwrap() else {
            panic!("{list}: help");
        };
        let ours = match ending {
            Ending::Silent => String::new(),
            Ending::Refusal { sentence, .. } => sentence + "\n",
            other => panic!("{list}: {other:?}"),
        };
        assert_eq!(ours, theirs, "{list}");
    }
}

#[test]
fn help_equals_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    oracle::stdout(folder.path(), &["create", "-q", "-f", "qcow2", "a", "1M"]);
    for list in [
        "help",
        "?",
        "compat=1.1,bogus=1,help",
        "help,,",
        "a,,help",
        "help,compat=x",
    ] {
        let line = ["-f", "qcow2", "-o", list];
        let arguments = [&["amend"], &line[..]].concat();
        let theirs = oracle::stdout(folder.path(), &arguments);
        assert!(
            matches!(request(&options(&line)), Ok(Request::Help)),
            "{list}"
        );
        assert_eq!(OPTIONS_HELP.as_bytes(), theirs, "{list}");
        let Ok(Request::Run {
            ending, amendment, ..
        }) = request(&options(&["-o", list, "a"]))
        else {
            panic!("{list}");
        };
        assert_eq!(ending, Ending::Text(OPTIONS_HELP));
        assert_eq!(amendment.config(ImageFormat::Probe).given.get(), 0);
    }
}

fn config(line: &[&str]) -> (AmendConfig, Ending) {
    match request(&options(line)).unwrap() {
        Request::Run {
            image,
            amendment,
            ending,
            ..
        } => (amendment.config(image.format), ending),
        Request::Help => panic!("{line:?}"),
    }
}

#[test]
fn config_says_what_is_asked_for() {
    let list =
        "compat=v2,size=1.5M,refcount_bits=-1,nolazy_refcounts,data_file_raw=on,data_file=a,,b";
    let (config, ending) = config(&["-f", "qcow2", "-o", list, "-o", "backing_file=", "-p", "a"]);
    assert_eq!(ending, Ending::Silent);
    assert_eq!(
        config.given.get(),
        AMEND_COMPAT
            | AMEND_SIZE
            | AMEND_REFCOUNT_BITS
            | AMEND_LAZY_REFCOUNTS
            | AMEND_DATA_FILE_RAW
            | AMEND_DATA_FILE
            | AMEND_BACKING_FILE
    );
    assert_eq!(config.format.get(), ImageFormat::Qcow2.raw());
    assert_eq!((config.version.get(), config.size.get()), (2, 3 << 19));
    assert_eq!(config.refcount_bits.get(), u32::MAX);
    assert_eq!(config.lazy_refcounts.get(), 0);
    assert_eq!(config.data_file_raw.get(), 1);
    assert_eq!(&config.data_file[..4], b"a,b\0");
    assert_eq!(
        (config.data_file_len.get(), config.backing_file_len.get()),
        (3, 0)
    );
}

#[test]
fn what_is_wrong_changes_nothing_and_keys_come_before_levels() {
    for list in ["compat=bogus,size=1M", "size=1M,bogus=1"] {
        assert_eq!(config(&["-o", list, "a"]).0.given.get(), 0, "{list}");
    }
    let (config, ending) = config(&["-o", "compat=bogus,encrypt.state=active", "a"]);
    // The guest says first whether the image has keys.
    assert!(matches!(ending, Ending::Refusal { .. }));
    assert_eq!(config.given.get(), AMEND_ENCRYPT);
    assert_eq!(config.keys.state.get(), 0);
    let long = format!("data_file={}", "x".repeat(4097));
    let request = request(&options(&["-o", &long, "a"]));
    assert!(matches!(
        request,
        Ok(Request::Run { ending: Ending::Refusal { sentence, .. }, .. }) if sentence.contains("too long")
    ));
}
