//! Encrypted images: what the judge wrote is read, and what is written here the judge reads.

use crate::run_of;
use instar_codec::Decoder;
use instar_crypt::{Counted, ImageCipher, SectorCipher};
use instar_layers::{Chain, Layer, View};
use instar_luks::LuksVolume;
use instar_plan_write::{Below, NothingBelow, WriteImage};
use instar_qcow2::header::CryptMethod;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{Cipher, DataPlace, MemStorage, Storage, StorageMut};
use instar_tests::judge::{self, ok};
use instar_tests::kinds::{NAME, SIZE};
use instar_tests::rng::Rng;
use std::path::Path;

pub const PASSWORD: &str = "correct horse";
pub const SECRET: &str = "secret,id=s,data=correct horse";

/// How images are encrypted: each cipher, mode, IV generator and hash at least once, and each kind of image.
const KINDS: [&str; 14] = [
    "encrypt.format=aes",
    "encrypt.format=aes,cluster_size=512",
    "encrypt.format=aes,compat=0.10",
    "encrypt.format=aes,data_file=data.raw",
    "encrypt.format=luks",
    "encrypt.format=luks,cluster_size=512",
    "encrypt.format=luks,data_file=data.raw",
    "encrypt.format=luks,extended_l2=on",
    "encrypt.format=luks,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain,encrypt.hash-alg=sha1",
    "encrypt.format=luks,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=ctr,encrypt.ivgen-alg=plain64,encrypt.hash-alg=sha512",
    "encrypt.format=luks,encrypt.cipher-alg=serpent-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha224",
    "encrypt.format=luks,encrypt.cipher-alg=twofish-128,encrypt.cipher-mode=xts,encrypt.ivgen-alg=plain64,encrypt.hash-alg=ripemd160",
    "encrypt.format=luks,encrypt.cipher-alg=cast5-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64,encrypt.hash-alg=sha384",
    "encrypt.format=luks,encrypt.cipher-alg=aes-256,encrypt.cipher-mode=ecb,encrypt.ivgen-alg=plain,encrypt.hash-alg=md5",
];

/// The image for the judge, with its password.
pub fn opened() -> String {
    format!("driver=qcow2,file.filename={NAME},encrypt.key-secret=s")
}

/// Makes an image over `base.raw`, and has the judge write into it.
pub fn make(dir: &Path, kind: &str, backed: bool, rng: &mut Rng) {
    let pattern: Vec<u8> = (0..250_u32 << 10)
        .map(|n| (n / 512 % 251) as u8 + 1)
        .collect();
    std::fs::write(dir.join("base.raw"), pattern).unwrap();
    let (size, luks) = (SIZE.to_string(), kind.contains("luks"));
    let mut options = format!("{kind},encrypt.key-secret=s");
    if luks {
        options.push_str(",encrypt.iter-time=1");
    }
    let mut words = vec!["create", "-q", "--object", SECRET, "-f", "qcow2"];
    words.extend(["-o", options.as_str()]);
    if backed {
        words.extend(["-b", "base.raw", "-F", "raw"]);
    }
    words.extend([NAME, &size]);
    ok(dir, "qemu-img", &words);
    let image = opened();
    let mut words = vec!["--object".to_owned(), SECRET.into(), "--image-opts".into()];
    words.push(image);
    for _ in 0..6 {
        let at = rng.below(SIZE / 512) * 512;
        let len = (1 + rng.below((SIZE - at) / 512).min(200)) * 512;
        let pattern = 1 + rng.below(250);
        words.extend(["-c".into(), format!("write -P {pattern} {at} {len}")]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    ok(dir, "qemu-io", &words);
}

/// What the judge reads, of the disk or, by more words, of a snapshot.
pub fn content(dir: &Path, more: &[&str]) -> Vec<u8> {
    let image = opened();
    let words = ["--object", SECRET, "--image-opts", &image];
    judge::read(dir, &[more, &words].concat())
}

/// An encrypted image that is open.
pub struct Image<S> {
    pub disk: S,
    data: Option<S>,
    header: Header,
    cipher: &'static dyn Cipher,
}

impl Image<MemStorage> {
    fn load(dir: &Path, kind: &str) -> Self {
        let read = |name: &str| MemStorage::from(std::fs::read(dir.join(name)).unwrap());
        let data = kind.contains("data_file").then(|| read("data.raw"));
        Self::open(read(NAME), data)
    }

    fn save(&self, dir: &Path) {
        std::fs::write(dir.join(NAME), self.disk.to_vec()).unwrap();
        if let Some(data) = &self.data {
            std::fs::write(dir.join("data.raw"), data.to_vec()).unwrap();
        }
    }
}

/// The cipher that the password leads to.
fn cipher_of<S: Storage>(disk: &S, header: &Header) -> &'static dyn Cipher {
    let cipher = if header.crypt_method == CryptMethod::Aes {
        let cipher = SectorCipher::legacy_aes(PASSWORD.as_bytes()).unwrap();
        ImageCipher::new(cipher, Counted::ByGuest)
    } else {
        let place = header.extensions.crypto_header.unwrap();
        let volume = LuksVolume::read(disk, place.offset.get(), place.length).unwrap();
        let key = volume.unlock(disk, PASSWORD.as_bytes()).unwrap();
        ImageCipher::new(volume.cipher(&key).unwrap(), Counted::ByHost)
    };
    Box::leak(Box::new(cipher))
}

impl<S: StorageMut> Image<S> {
    /// Opens it with the password, which must fit.
    pub fn open(disk: S, data: Option<S>) -> Self {
        let header = Header::read(&disk, OpenMode::Change).unwrap();
        let cipher = cipher_of(&disk, &header);
        Self {
            disk,
            data,
            header,
            cipher,
        }
    }

    /// All that a guest reads, in pieces of any alignment.
    pub fn read(&self, dir: &Path, backed: bool, rng: &mut Rng) -> Vec<u8> {
        let (header, cipher) = (self.header.clone(), Some(self.cipher));
        let (disk, data) = (&self.disk, self.data.as_ref());
        let mut layers: Vec<Layer<&dyn Storage>> = Vec::new();
        let data = data.map(|data| data as &dyn Storage);
        layers.push(Layer::qcow2_with(disk, data, header, View::Active, cipher));
        let base = MemStorage::from(std::fs::read(dir.join("base.raw")).unwrap());
        if backed {
            layers.push(Layer::raw(&base));
        }
        let (chain, mut codec) = (Chain::new(layers), Decoder::new());
        let mut all = vec![0xee; SIZE as usize];
        let mut left = all.as_mut_slice();
        let mut at = 0;
        while !left.is_empty() {
            let len = (1 + rng.below(70_000) as usize).min(left.len());
            let (now, later) = left.split_at_mut(len);
            chain.read_at(at, now, &mut codec).unwrap();
            (at, left) = (at + len as u64, later);
        }
        all
    }

    /// Writes in all ways that there are, and has `model` say what is there then; `wrote` hears it after each write.
    pub fn write(
        &self,
        dir: &Path,
        backed: bool,
        model: &mut [u8],
        rng: &mut Rng,
        mut wrote: impl FnMut(&[u8]),
    ) {
        let below: Box<dyn Below> = if backed {
            let base = MemStorage::from(std::fs::read(dir.join("base.raw")).unwrap());
            Box::new((Chain::new(vec![Layer::raw(base)]), Decoder::new()))
        } else {
            Box::new(NothingBelow)
        };
        let (data, codec) = (self.data.as_ref(), Box::new(Decoder::new()));
        let cipher = Some(self.cipher);
        let mut image =
            WriteImage::open_with(&self.disk, data, &self.header, below, codec, cipher).unwrap();
        for _ in 0..12 {
            let unit = [1, 512][rng.below(2) as usize];
            let at = rng.below(SIZE / unit) * unit;
            let len = (1 + rng.below((SIZE - at) / unit).min(90_000 / unit)) * unit;
            let here = at as usize..(at + len) as usize;
            match rng.below(3) {
                0 => {
                    let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                    image.write_at(at, &bytes).unwrap();
                    model[here].copy_from_slice(&bytes);
                }
                1 if unit == 512 => {
                    let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                    self.write_placed(&mut image, at, &bytes);
                    model[here].copy_from_slice(&bytes);
                }
                _ => {
                    image.zeros(at, len).unwrap();
                    model[here].fill(0);
                }
            }
            let mut buf = vec![0; len as usize];
            image.read_at(at, &mut buf).unwrap();
            assert!(buf == model[at as usize..(at + len) as usize]);
            wrote(model);
        }
        image.finish().unwrap();
    }

    /// Writes to places that are given.
    fn write_placed(&self, image: &mut WriteImage<'_, S>, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let guest = at + done as u64;
            let placed = image.place(guest, (bytes.len() - done) as u64).unwrap();
            let mut part = bytes[done..done + placed.len as usize].to_vec();
            let host = placed.offset;
            let place = DataPlace { host, guest };
            image.cipher().unwrap().encipher(place, &mut part).unwrap();
            let file = if placed.in_data_file {
                self.data.as_ref().unwrap()
            } else {
                &self.disk
            };
            file.write_at(host, &part).unwrap();
            done += part.len();
        }
    }
}

#[test]
fn encrypted_images_are_read_and_written_as_the_judge_does() {
    let (seed, cases) = run_of("encrypted images", KINDS.len() as u64);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let kind = KINDS[case as usize % KINDS.len()];
        let backed = !kind.contains("data_file") && rng.below(2) == 0;
        let what = format!("case {case}: {kind}, backed: {backed}");
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), kind, backed, &mut rng);
        let mut model = content(dir.path(), &[]);
        let image = Image::load(dir.path(), kind);
        assert!(image.read(dir.path(), backed, &mut rng) == model, "{what}");
        image.write(dir.path(), backed, &mut model, &mut rng, |_| ());
        image.save(dir.path());
        assert!(content(dir.path(), &[]) == model, "{what}: as written");
        let image = Image::load(dir.path(), kind);
        assert!(image.read(dir.path(), backed, &mut rng) == model, "{what}");
        assert_eq!(check_with_key(dir.path()), 0, "{what}");
    }
}

/// The judge's check with the key: 0 sound, 3 leaks.
pub fn check_with_key(dir: &Path) -> i32 {
    judge::check_as(dir, &["-q", "--object", SECRET, "--image-opts", &opened()])
}

#[test]
fn an_encrypted_image_without_its_cipher_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), KINDS[0], false, &mut Rng::of(1, 0));
    let image = Image::load(dir.path(), KINDS[0]);
    let (below, codec) = (Box::new(NothingBelow), Box::new(Decoder::new()));
    let opened = WriteImage::open(&image.disk, None, &image.header, below, codec);
    assert_eq!(opened.unwrap_err().to_string(), "Operation not supported");
}
