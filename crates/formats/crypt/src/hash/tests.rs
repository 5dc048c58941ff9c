use super::*;
use std::format;
use std::string::String;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn digest_of_abc_is_each_standards_example() {
    let known = [
        (HashAlgorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (
            HashAlgorithm::Sha1,
            "a9993e364706816aba3e25717850c26c9cd0d89d",
        ),
        (
            HashAlgorithm::Sha224,
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        ),
        (
            HashAlgorithm::Sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            HashAlgorithm::Ripemd160,
            "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc",
        ),
        (
            HashAlgorithm::Sm3,
            "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0",
        ),
    ];
    for (hash, text) in known {
        assert_eq!(hex(digest(hash, &[b"a", b"", b"bc"]).as_bytes()), text);
    }
    for hash in HashAlgorithm::ALL {
        assert_eq!(digest(*hash, &[]).as_bytes().len(), hash.digest_bytes());
    }
}

#[test]
fn pbkdf2_gives_rfc_6070_and_rfc_7914() {
    let mut out = [0; 25];
    pbkdf2(
        HashAlgorithm::Sha1,
        b"passwordPASSWORDpassword",
        b"saltSALTsaltSALTsaltSALTsaltSALTsalt",
        4096,
        &mut out,
    );
    assert_eq!(
        hex(&out),
        "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"
    );
    let mut out = [0; 64];
    pbkdf2(HashAlgorithm::Sha256, b"passwd", b"salt", 1, &mut out);
    let known = concat!(
        "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc",
        "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
    );
    assert_eq!(hex(&out), known);
}
