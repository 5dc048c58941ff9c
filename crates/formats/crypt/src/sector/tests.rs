use super::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn spec(cipher: CipherAlgorithm, mode: CipherMode, iv_generator: IvGenerator) -> CipherSpec {
    CipherSpec {
        cipher,
        mode,
        iv_generator,
        iv_generator_hash: Some(HashAlgorithm::Sha256),
    }
}

/// Every combination that has a cipher.
fn all() -> Vec<CipherSpec> {
    let mut out = Vec::new();
    for cipher in CipherAlgorithm::ALL {
        for mode in CipherMode::ALL {
            for generator in IvGenerator::ALL {
                out.push(spec(*cipher, *mode, *generator));
            }
        }
    }
    out.retain(|spec| {
        spec.cipher != CipherAlgorithm::Cast5
            || (spec.mode != CipherMode::Xts && spec.iv_generator != IvGenerator::Essiv)
    });
    assert_eq!(out.len(), 10 * 4 * 3 - 6);
    out
}

/// IEEE Std 1619-2007 "Vector 4" and "Vector 10": 512 bytes 00, 01, …, ff twice.
#[test]
fn xts_gives_ieee_1619_vectors() {
    let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
    let aes128 = bytes("2718281828459045235360287471352631415926535897932384626433832795");
    let aes256 = bytes(concat!(
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592"
    ));
    let of = |cipher, key: &[u8], sector| {
        let spec = spec(cipher, CipherMode::Xts, IvGenerator::Plain64);
        let mut buf = plain.clone();
        SectorCipher::new(&spec, key)
            .unwrap()
            .encrypt(sector, &mut buf)
            .unwrap();
        (hex(&buf[..16]), hex(&buf[496..]))
    };
    let (first, _) = of(CipherAlgorithm::Aes128, &aes128, 0);
    assert_eq!(first, "27a7479befa1d476489f308cd4cfa6e2");
    let (first, _) = of(CipherAlgorithm::Aes256, &aes256, 0xff);
    assert_eq!(first, "1c3b3a102f770386e4836c99e370cf9b");
}

#[test]
fn every_combination_deciphers_what_it_enciphered() {
    for spec in all() {
        let key: Vec<u8> = (1..)
            .take(spec.cipher.master_key_bytes(spec.mode))
            .collect();
        let cipher = SectorCipher::new(&spec, &key).unwrap();
        let plain: Vec<u8> = (0..=250).cycle().take(4 * 512).collect();
        let mut buf = plain.clone();
        cipher.encrypt(1 << 33, &mut buf).unwrap();
        assert_ne!(buf, plain, "{spec:?}");
        // A sector's bytes depend on its number and on nothing before it.
        let mut last = plain[3 * 512..].to_vec();
        cipher.encrypt((1 << 33) + 3, &mut last).unwrap();
        assert_eq!(buf[3 * 512..], last, "{spec:?}");
        cipher.decrypt(1 << 33, &mut buf).unwrap();
        assert_eq!(buf, plain, "{spec:?}");
    }
}

#[test]
fn plain_counts_in_32_bits_and_plain64_does_not() {
    let at = |generator, sector| {
        let spec = spec(CipherAlgorithm::Aes128, CipherMode::Cbc, generator);
        let mut buf = vec![0; 512];
        let cipher = SectorCipher::new(&spec, &[1; 16]).unwrap();
        cipher.encrypt(sector, &mut buf).unwrap();
        buf
    };
    assert_eq!(
        at(IvGenerator::Plain, 5),
        at(IvGenerator::Plain, (1 << 32) + 5)
    );
    assert_ne!(
        at(IvGenerator::Plain64, 5),
        at(IvGenerator::Plain64, (1 << 32) + 5)
    );
}

#[test]
fn legacy_key_is_the_password_cut_or_filled_up() {
    let with = |password: &[u8]| {
        let mut buf = vec![0; 512];
        SectorCipher::legacy_aes(password)
            .unwrap()
            .encrypt(0, &mut buf)
            .unwrap();
        buf
    };
    assert_eq!(with(b"abc"), with(b"abc\0\0\0"));
    assert_eq!(with(b"0123456789abcdefXYZ"), with(b"0123456789abcdef"));
    assert_ne!(with(b"abc"), with(b"abd"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let xts = spec(CipherAlgorithm::Aes256, CipherMode::Xts, IvGenerator::Plain);
    let e = SectorCipher::new(&xts, &[0; 32]).unwrap_err();
    assert_eq!(
        format!("{e}"),
        "Cipher aes-256 in mode xts takes a key of 64 bytes, not 32"
    );
    let cast5 = spec(CipherAlgorithm::Cast5, CipherMode::Xts, IvGenerator::Plain);
    assert_eq!(
        SectorCipher::new(&cast5, &[0; 32]).unwrap_err(),
        CryptError::Mode(CipherMode::Xts)
    );
    let mut essiv = spec(CipherAlgorithm::Aes128, CipherMode::Cbc, IvGenerator::Essiv);
    essiv.iv_generator_hash = Some(HashAlgorithm::Sha1);
    assert!(matches!(
        SectorCipher::new(&essiv, &[0; 16]),
        Err(CryptError::Essiv { .. })
    ));
    essiv.iv_generator_hash = None;
    assert_eq!(
        SectorCipher::new(&essiv, &[0; 16]).unwrap_err(),
        CryptError::EssivHashMissing
    );
    let cipher = SectorCipher::legacy_aes(b"").unwrap();
    assert_eq!(
        cipher.encrypt(0, &mut [0; 511]),
        Err(CryptError::NotWholeSectors(511))
    );
}
