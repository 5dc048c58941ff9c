//! Options as they are typed, and how they are shown.

use super::encryption::Encryption;
use super::options::{NewFormat, NewOptions, list};
use super::*;
use instar_shared::convert::{TARGET_EXTENDED_L2, TARGET_ZSTD, TargetOptions};

fn qcow2(text: &str) -> Result<NewOptions, String> {
    let list = list(&[OsString::from(text)]).unwrap();
    NewOptions::new(NewFormat::Qcow2, list.as_ref())
}

fn shown(text: &str) -> String {
    String::from_utf8(qcow2(text).unwrap().line(512)).unwrap()
}

#[test]
fn options_are_shown_in_the_order_of_the_oracle() {
    let none = NewOptions::new(NewFormat::Qcow2, None).unwrap();
    assert_eq!(
        none.line(1),
        b"fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib size=1 \
          lazy_refcounts=off refcount_bits=16"
    );
    assert_eq!(
        shown(
            "nocow=on,compat=v3,data_file_raw=no,data_file=a,,b,preallocation=off,cluster_size=4k,lazy_refcounts"
        ),
        "fmt=qcow2 cluster_size=4096 extended_l2=off preallocation=off compression_type=zlib size=512 \
         compat=v3 data_file=a,,b data_file_raw=no lazy_refcounts=on refcount_bits=16 nocow=on"
    );
    let list = list(&[OsString::from(
        "preallocation=full,extent_size_hint=1M,nocow=off",
    )])
    .unwrap();
    let raw = NewOptions::new(NewFormat::Raw, list.as_ref()).unwrap();
    assert_eq!(
        raw.line(5),
        b"fmt=raw size=5 nocow=off preallocation=full extent_size_hint=1048576"
    );
}

#[test]
fn values_that_read_well_may_be_refused_later() {
    for (text, refusal) in [
        (
            "compat=0.9,preallocation=x",
            Some("Parameter 'version' does not accept value '0.9'"),
        ),
        (
            "preallocation=x,compression_type=y",
            Some("Parameter 'preallocation' does not accept value 'x'"),
        ),
        (
            "backing_fmt=x,compression_type=y",
            Some("Parameter 'backing-fmt' does not accept value 'x'"),
        ),
        (
            "compression_type=lz4",
            Some("Parameter 'compression-type' does not accept value 'lz4'"),
        ),
        ("compat=v2,compression_type=zstd,backing_fmt=vmdk", None),
    ] {
        assert_eq!(qcow2(text).unwrap().refusal().as_deref(), refusal, "{text}");
    }
    assert_eq!(qcow2("bogus=1").unwrap_err(), "Invalid parameter 'bogus'");
    let encrypts = |text| Encryption::of_new(&qcow2(text).unwrap()).map(|it| it.is_some());
    assert_eq!(encrypts("encrypt.format=luks"), Ok(true));
    assert_eq!(encrypts("encrypt.format=qcow"), Ok(true));
    assert_eq!(encrypts("encryption=on"), Ok(true));
    assert_eq!(encrypts("encryption=off"), Ok(false));
    let missing = Err("Parameter 'encrypt.format' is missing".into());
    assert_eq!(encrypts("encrypt.iter-time=5"), missing);
}

#[test]
fn options_reach_the_operation() {
    let mut target = TargetOptions::zeroed();
    qcow2("compat=0.10,cluster_size=2M,refcount_bits=1,extended_l2=on,compression_type=zstd,data_file=d")
        .unwrap()
        .put(&mut target);
    assert_eq!(
        (target.version.get(), target.cluster_bytes.get()),
        (2, 2 << 20)
    );
    assert_eq!(target.refcount_bits.get(), 1);
    assert_eq!(target.flags.get(), TARGET_EXTENDED_L2 | TARGET_ZSTD);
    assert_eq!((target.data_file_len.get(), target.data_file[0]), (1, b'd'));
    assert_eq!(target.backing_file_len.get(), 0);
}

#[test]
fn sizes_are_positive_signed_numbers() {
    assert_eq!(typed_size(OsStr::new("1.5k")), Ok(1536));
    assert_eq!(typed_size(OsStr::new("9223372036854775807")), Ok(MAX_SIZE));
    for (text, sentence) in [
        (
            "8E",
            "Invalid image size specified. Must be between 0 and 9223372036854775807.",
        ),
        ("", "Invalid image size specified: ''."),
        ("1K1", "Invalid image size specified: '1K1'."),
    ] {
        assert_eq!(
            typed_size(OsStr::new(text)).unwrap_err().sentence,
            sentence,
            "{text}"
        );
    }
}
