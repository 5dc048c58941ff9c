//! Images of `qemu-img`, decrypted by us, and written by us for `qemu-io`.

use crate::images::{PASSWORD, qemu_io, run};
use crate::{combinations, qemu_takes};
use instar_crypt::{
    CipherAlgorithm, CipherMode, CipherSpec, Deciphered, HashAlgorithm, IvGenerator, SectorCipher,
};
use instar_luks::{LuksVolume, payload_offset};
use instar_storage::{FileStorage, Storage, StorageMut};
use std::fs::File;
use std::path::Path;

const CLUSTER: u64 = 65536;
/// Of every image here; its first L2 table maps all of it.
const SIZE: &str = "1M";

/// What is wanted of `qemu-img`.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    spec: CipherSpec,
    hash: HashAlgorithm,
}

/// A qcow2 image, of which three clusters were written so that they lie in another order than on the disk: `qemu-io`
/// fills cluster 3, then 0, then 1, each with its number plus 0x50.
fn image(folder: &Path, encryption: &str, format: &str) {
    let _ = std::fs::remove_file(folder.join("i.qcow2"));
    let secret = format!("secret,id=s,data={PASSWORD}");
    let options = format!("encrypt.key-secret=s,encrypt.format={format}{encryption}");
    let words = [
        "create", "-q", "-f", "qcow2", "--object", &secret, "-o", &options, "i.qcow2", SIZE,
    ];
    run("qemu-img", folder, &words).unwrap_or_else(|e| panic!("{options}: {e}"));
    let commands = [3, 0, 1].map(|n| format!("write -P {} {}k 64k", 0x50 + n, 64 * n));
    qemu_io(
        folder,
        &of(format),
        &commands.each_ref().map(String::as_str),
    )
    .unwrap();
}

fn of(format: &str) -> String {
    format!("driver=qcow2,encrypt.key-secret=s,encrypt.format={format},file.filename=i.qcow2")
}

fn open(folder: &Path) -> FileStorage {
    let file = File::options()
        .read(true)
        .write(true)
        .open(folder.join("i.qcow2"));
    FileStorage::new(file.unwrap()).unwrap()
}

fn be64(store: &FileStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    store.read_at(at, &mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// Where a cluster of the disk lies: qcow2 "Cluster mapping".
fn host_offset(store: &FileStorage, cluster: u64) -> u64 {
    let offset = (1 << 56) - 512;
    let l2 = be64(store, be64(store, 40)) & offset;
    be64(store, l2 + 8 * cluster) & offset
}

/// The header extension that points to the LUKS header: qcow2 "Full disk encryption header pointer".
fn pointer(store: &FileStorage) -> (u64, u64) {
    let mut at = 104;
    loop {
        let head = be64(store, at);
        let (kind, len) = (head >> 32, head & 0xffff_ffff);
        match kind {
            0x0537_be77 => return (be64(store, at + 8), be64(store, at + 16)),
            0 => {
                at = be64(store, 96) & 0xffff_ffff;
                assert!(at > 104, "no encryption header");
            }
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}

/// Reads the three clusters; the number of a sector is its place in the file, or on the disk.
fn check_clusters(store: &FileStorage, cipher: &SectorCipher, by_place: bool) {
    for cluster in [3, 0, 1] {
        let host = host_offset(store, cluster);
        assert_ne!(host, cluster * CLUSTER);
        let counted = if by_place { host } else { cluster * CLUSTER };
        let view = Deciphered::counted(store, cipher, host, counted);
        let mut buf = vec![0; 64 << 10];
        view.read_at(host, &mut buf).unwrap();
        let pattern = 0x50 + u8::try_from(cluster).unwrap();
        assert!(buf.iter().all(|byte| *byte == pattern), "cluster {cluster}");
    }
}

fn check(folder: &Path, wanted: Wanted) {
    let spec = &wanted.spec;
    let mut options = format!(
        ",encrypt.cipher-alg={},encrypt.cipher-mode={},encrypt.ivgen-alg={},encrypt.hash-alg={},encrypt.iter-time=1",
        spec.cipher.name(),
        spec.mode.name(),
        spec.iv_generator.name(),
        wanted.hash.name()
    );
    if let Some(hash) = spec.iv_generator_hash {
        options += &format!(",encrypt.ivgen-hash-alg={}", hash.name());
    }
    image(folder, &options, "luks");
    let store = open(folder);
    let (offset, room) = pointer(&store);
    assert_eq!(room, payload_offset(spec), "{wanted:?}");
    let volume = LuksVolume::read(&store, offset, room).unwrap();
    assert_eq!(volume.spec(), *spec);
    assert_eq!(volume.info().hash, wanted.hash);
    assert!(volume.unlock(&store, b"wrong").is_err());
    let key = volume.unlock(&store, PASSWORD.as_bytes()).unwrap();
    check_clusters(&store, &volume.cipher(&key).unwrap(), true);
}

/// One image for each name that `qemu-img create -o help` leads to, or all.
fn wanted() -> Vec<Wanted> {
    let all = combinations();
    let mut hashes = HashAlgorithm::ALL.iter().copied().cycle();
    let mut pick = |spec| Wanted {
        spec,
        hash: hashes.next().unwrap(),
    };
    if std::env::var("LUKS_COMBINATIONS").is_ok_and(|which| which == "all") {
        return all.into_iter().map(pick).collect();
    }
    let modes = [
        CipherMode::Xts,
        CipherMode::Cbc,
        CipherMode::Ctr,
        CipherMode::Ecb,
    ];
    let generators = [IvGenerator::Plain64, IvGenerator::Essiv, IvGenerator::Plain];
    let fits = |spec: &&CipherSpec, at: usize| {
        spec.mode == modes[at % 4] && spec.iv_generator == generators[at % 3]
    };
    CipherAlgorithm::ALL
        .iter()
        .enumerate()
        .map(|(at, cipher)| {
            let of = |spec: &&CipherSpec| spec.cipher == *cipher;
            let found = all.iter().filter(of).find(|spec| fits(spec, at));
            pick(*found.or_else(|| all.iter().find(of)).unwrap())
        })
        .collect()
}

/// Decrypts every fourth image, from `first` on: `qemu-img` takes its time.
fn images(first: usize) {
    let folder = tempfile::tempdir().unwrap();
    for wanted in wanted().into_iter().skip(first).step_by(4) {
        assert!(qemu_takes(&wanted.spec));
        check(folder.path(), wanted);
        println!("decrypted {wanted:?}");
    }
}

#[test]
fn images_of_qemu_img_are_decrypted_1() {
    images(0);
}

#[test]
fn images_of_qemu_img_are_decrypted_2() {
    images(1);
}

#[test]
fn images_of_qemu_img_are_decrypted_3() {
    images(2);
}

#[test]
fn images_of_qemu_img_are_decrypted_4() {
    images(3);
}

/// Sectors of LUKS are numbered by their place in the file: what we write there is read through the image.
#[test]
fn qemu_io_reads_what_we_write_into_its_image() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), ",encrypt.iter-time=1", "luks");
    let store = open(folder.path());
    let (offset, room) = pointer(&store);
    let volume = LuksVolume::read(&store, offset, room).unwrap();
    let key = volume.unlock(&store, PASSWORD.as_bytes()).unwrap();
    let cipher = volume.cipher(&key).unwrap();
    let view = Deciphered::by_place(&store, &cipher);
    view.write_at(host_offset(&store, 3) + 700, &[0x77; 1000])
        .unwrap();
    let commands = [
        "read -P 0x53 192k 700",
        "read -P 0x77 197308 1000",
        "read -P 0x53 198308 500",
        "read -P 0x50 0 64k",
    ];
    qemu_io(folder.path(), &of("luks"), &commands).unwrap();
}

/// The older method numbers sectors by their place on the disk.
#[test]
fn legacy_aes_is_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), "", "aes");
    let store = open(folder.path());
    let cipher = SectorCipher::legacy_aes(PASSWORD.as_bytes()).unwrap();
    check_clusters(&store, &cipher, false);
    let host = host_offset(&store, 3);
    let view = Deciphered::counted(&store, &cipher, host, 3 * CLUSTER);
    view.write_at(host + 512, &[0x77; 1024]).unwrap();
    let commands = [
        "read -P 0x53 192k 512",
        "read -P 0x77 197120 1024",
        "read -P 0x53 198144 512",
    ];
    qemu_io(folder.path(), &of("aes"), &commands).unwrap();
}
