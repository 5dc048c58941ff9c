//! Volumes of ours: `qemu-io` reads what we encrypt, we read what it encrypts, and `cryptsetup` opens them.

use crate::combinations;
use crate::images::{PASSWORD, qemu_io, random, run};
use instar_crypt::{
    CipherAlgorithm, CipherMode, CipherSpec, Deciphered, HashAlgorithm, IvGenerator,
};
use instar_luks::{LuksVolume, NewKey, NewVolume, add_key, create, erase_slot, payload_offset};
use instar_storage::{FileStorage, Storage, StorageMut};
use std::fs::File;
use std::path::Path;

const MIB: u64 = 1 << 20;
const OPTIONS: &str = "driver=luks,key-secret=s,file.filename=v.luks";

fn new_volume(spec: CipherSpec, hash: HashAlgorithm) -> NewVolume {
    NewVolume {
        spec,
        hash,
        master_key_iterations: 1000,
        slot_iterations: 10,
    }
}

fn aes_xts() -> CipherSpec {
    CipherSpec {
        cipher: CipherAlgorithm::Aes256,
        mode: CipherMode::Xts,
        iv_generator: IvGenerator::Plain64,
        iv_generator_hash: None,
    }
}

fn open(path: &Path) -> FileStorage {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    FileStorage::new(options.open(path).unwrap()).unwrap()
}

/// A volume of ours in a file of its own, with a payload of 1 MiB: `qemu-io` reads our pattern and we read its own.
fn both_ways(folder: &Path, new: &NewVolume) -> Result<(), String> {
    let path = folder.join("v.luks");
    let _ = std::fs::remove_file(&path);
    let store = open(&path);
    let payload = payload_offset(&new.spec);
    let made = create(&store, 0, new, PASSWORD.as_bytes(), &mut random(9));
    let (volume, key) = made.map_err(|e| e.to_string())?;
    store.set_len(payload + MIB).unwrap();
    let cipher = volume.cipher(&key).unwrap();
    let view = Deciphered::counted(&store, &cipher, payload, 0);
    view.write_at(payload + 5 * 512, &[0xa5; 3 * 512]).unwrap();
    view.write_at(payload + MIB - 512, &[0x11; 512]).unwrap();
    let commands = [
        "read -P 0xa5 2560 1536",
        "read -P 0x11 1048064 512",
        "write -P 0x3c 65536 2048",
    ];
    qemu_io(folder, OPTIONS, &commands)?;
    // With keys of our own finding, in case the header and the cipher agree in a mistake.
    let again = LuksVolume::read(&store, 0, payload).map_err(|e| e.to_string())?;
    let key = again
        .unlock(&store, PASSWORD.as_bytes())
        .map_err(|e| e.to_string())?;
    let cipher = again.cipher(&key).unwrap();
    let view = Deciphered::counted(&store, &cipher, payload, 0);
    let mut buf = [0; 2048];
    view.read_at(payload + 65536, &mut buf).unwrap();
    (buf == [0x3c; 2048])
        .then_some(())
        .ok_or_else(|| "what qemu-io wrote is not read".into())
}

/// Both ways in every combination that has one of these ciphers.
fn every_combination_of(ciphers: &[CipherAlgorithm]) {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let hashes = HashAlgorithm::ALL.iter().cycle();
    for (spec, hash) in combinations().into_iter().zip(hashes) {
        if !ciphers.contains(&spec.cipher) {
            continue;
        }
        let new = new_volume(spec, *hash);
        if let Err(e) = both_ways(folder.path(), &new) {
            wrong.push(format!("{new:?}: {e}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn qemu_io_and_we_read_each_other_in_aes() {
    use CipherAlgorithm::{Aes128, Aes192, Aes256};
    every_combination_of(&[Aes128, Aes192, Aes256]);
}

#[test]
fn qemu_io_and_we_read_each_other_in_serpent() {
    use CipherAlgorithm::{Serpent128, Serpent192, Serpent256};
    every_combination_of(&[Serpent128, Serpent192, Serpent256]);
}

#[test]
fn qemu_io_and_we_read_each_other_in_twofish() {
    use CipherAlgorithm::{Twofish128, Twofish192, Twofish256};
    every_combination_of(&[Twofish128, Twofish192, Twofish256]);
}

#[test]
fn qemu_io_and_we_read_each_other_in_cast5() {
    every_combination_of(&[CipherAlgorithm::Cast5]);
}

#[test]
fn qemu_io_opens_with_every_hash() {
    let folder = tempfile::tempdir().unwrap();
    for hash in HashAlgorithm::ALL {
        both_ways(folder.path(), &new_volume(aes_xts(), *hash)).unwrap();
    }
}

/// Keys that we add open for `qemu-io`, keys that we erase do not.
#[test]
fn qemu_io_sees_added_and_erased_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("v.luks"));
    let new = new_volume(aes_xts(), HashAlgorithm::Sha256);
    let (mut volume, key) = create(&store, 0, &new, b"another", &mut random(1)).unwrap();
    store.set_len(payload_offset(&new.spec) + MIB).unwrap();
    let reads = || qemu_io(folder.path(), OPTIONS, &["read 0 512"]);
    let refused = "Invalid password, cannot unlock any keyslot";
    assert!(reads().unwrap_err().contains(refused));
    let second = NewKey {
        slot: 6,
        password: PASSWORD.as_bytes(),
        iterations: 1234,
    };
    add_key(&store, &mut volume, &key, &second, &mut random(2)).unwrap();
    reads().unwrap();
    erase_slot(&store, &mut volume, 0, &mut random(3)).unwrap();
    reads().unwrap();
    erase_slot(&store, &mut volume, 6, &mut random(4)).unwrap();
    assert!(reads().unwrap_err().contains(refused));
}

/// `cryptsetup` needs no kernel help for a header's fields, and opens key slots with its own code or the kernel's.
#[test]
fn cryptsetup_dumps_and_opens_our_header() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("v.luks"));
    let new = new_volume(aes_xts(), HashAlgorithm::Sha512);
    let (volume, _) = create(&store, 0, &new, PASSWORD.as_bytes(), &mut random(5)).unwrap();
    store.set_len(payload_offset(&new.spec) + MIB).unwrap();
    std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
    std::fs::write(folder.path().join("wrong"), "wrong").unwrap();
    let dump = run("cryptsetup", folder.path(), &["luksDump", "v.luks"]).unwrap();
    let uuid = String::from_utf8(volume.info().uuid().to_vec()).unwrap();
    for line in [
        "Version:       \t1",
        "Cipher name:   \taes",
        "Cipher mode:   \txts-plain64",
        "Hash spec:     \tsha512",
        "Payload offset:\t4040",
        "MK bits:       \t512",
        "MK iterations: \t1000",
        "Key Slot 0: ENABLED",
        "Key Slot 7: DISABLED",
        &format!("UUID:          \t{uuid}"),
    ] {
        assert!(dump.contains(line), "{line:?} in {dump}");
    }
    let test = |file: &str| {
        let words = ["open", "--test-passphrase", "--key-file", file, "v.luks"];
        run("cryptsetup", folder.path(), &words)
    };
    test("password").unwrap();
    assert!(
        test("wrong")
            .unwrap_err()
            .contains("No key available with this passphrase")
    );
}
