//! Encrypted sources and targets.

use super::{Clusters, Disk, FROM, NONE, Random, TO, Watch, disk, settings};
use crate::{
    Engine, Place, ReadError, Source, Span, Target, TargetError, Unpack, Unpacker, What, Zeros,
};
use alloc::vec;
use alloc::vec::Vec;
use instar_storage::overlap::{Inline, MemOverlap};
use instar_storage::{Cipher, DataPlace, MemStorage, Storage, StorageError, StorageMut};

/// No cipher at all, but each sector's bytes change by both of its places and by the key.
#[derive(Debug)]
struct Toy(u64);

static SOURCE_KEY: Toy = Toy(0x5a);
static TARGET_KEY: Toy = Toy(0xc3);

impl Toy {
    fn turn(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        let whole = at.host.is_multiple_of(512) && at.guest.is_multiple_of(512);
        if !whole || !buf.len().is_multiple_of(512) {
            let (errno, offset) = (5, at.host);
            return Err(StorageError { errno, offset });
        }
        for (index, sector) in (0..).zip(buf.chunks_mut(512)) {
            let number = (at.host / 512 + index) * 31 + (at.guest / 512 + index) * 7 + self.0;
            let key = number.to_le_bytes();
            sector.iter_mut().for_each(|b| *b ^= key[0] ^ key[1] | 1);
        }
        Ok(())
    }
}

impl Cipher for Toy {
    fn decipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        self.turn(at, buf)
    }
    fn encipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        self.turn(at, buf)
    }
    fn read(&self, _: &dyn Storage, _: DataPlace, _: &mut [u8]) -> Result<(), StorageError> {
        unreachable!()
    }
    fn write(&self, _: &dyn StorageMut, _: DataPlace, _: &[u8]) -> Result<(), StorageError> {
        unreachable!()
    }
}

/// A disk whose data may be encrypted in its file.
struct Sealed {
    disk: Disk,
    is_sealed: bool,
}

impl Sealed {
    fn new(disk: Disk, file: &MemStorage, is_sealed: bool) -> Self {
        let mut guest = 0;
        for span in disk.spans.iter().filter(|_| is_sealed) {
            if let What::Data { offset, .. } = span.what {
                let mut bytes = vec![0; usize::try_from(span.len).unwrap()];
                file.read_at(offset, &mut bytes).unwrap();
                let at = DataPlace {
                    host: offset,
                    guest,
                };
                SOURCE_KEY.encipher(at, &mut bytes).unwrap();
                file.write_at(offset, &bytes).unwrap();
            }
            guest += span.len;
        }
        Self { disk, is_sealed }
    }
}

impl Source for Sealed {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }
    fn span_at(&self, guest: u64, max: u64) -> Result<Span, ReadError> {
        let mut span = self.disk.span_at(guest, max)?;
        if let (true, What::Data { file, offset }) = (self.is_sealed, span.what) {
            span.what = What::Sealed {
                file,
                offset,
                guest,
            };
        }
        Ok(span)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.disk.read_at(offset, buf)
    }
    fn cipher(&self, file: u16) -> Option<&'static dyn Cipher> {
        assert_eq!(file, FROM);
        Some(&SOURCE_KEY)
    }
}

/// Clusters whose data may be encrypted.
struct Locked(Clusters, Option<&'static Toy>);

impl Target for Locked {
    fn unit(&self) -> u64 {
        self.0.unit()
    }
    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        self.0.place(guest, len)
    }
    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError> {
        self.0.place_compressed(guest, len)
    }
    fn zeros(&mut self, guest: u64, len: u64) -> Result<Zeros, TargetError> {
        self.0.zeros(guest, len)
    }
    fn read_below(&self, guest: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        self.0.read_below(guest, buf)
    }
    fn cipher(&self) -> Option<&'static dyn Cipher> {
        self.1.map(|key| -> &'static dyn Cipher { key })
    }
}

/// What a guest of the target reads.
fn content(target: &Clusters, to: &MemStorage, len: usize, key: Option<&Toy>) -> Vec<u8> {
    let mut found = vec![0xbb; len];
    for (start, end) in &target.zeros {
        found[usize::try_from(*start).unwrap()..usize::try_from(*end).unwrap()].fill(0);
    }
    for (guest, host) in &target.places {
        let mut unit = vec![0; usize::try_from(target.unit).unwrap()];
        to.read_at(*host, &mut unit).unwrap();
        let (host, guest) = (*host, *guest);
        if let Some(key) = key {
            key.decipher(DataPlace { host, guest }, &mut unit).unwrap();
        }
        let at = usize::try_from(guest).unwrap();
        let end = (at + unit.len()).min(len);
        found[at..end].copy_from_slice(&unit[..end - at]);
    }
    found
}

#[test]
fn encrypted_data_arrives_whether_source_or_target_or_both_are() {
    for seed in 0..90 {
        let mut random = Random(seed);
        let sectors = 1 + random.below(30_000);
        let (source, file) = disk(&mut random, sectors);
        let expected = source.bytes.clone();
        let (is_sealed, is_locked) = (seed % 3 != 0, seed % 3 != 1);
        let to = MemStorage::default();
        let clusters = Clusters {
            unit: 512 << random.below(13),
            places: Vec::new(),
            zeros: Vec::new(),
            next: 1 << 20,
            below: 0xbb,
        };
        let key = is_locked.then_some(&TARGET_KEY);
        let mut target = Locked(clusters, key);
        let mut settings = settings(&mut random);
        (settings.fill, settings.copy) = (false, random.below(2) == 0);
        let source = Sealed::new(source, &file, is_sealed);
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], 16, seed);
        let crew = Inline::new(Unpack::run);
        let unpacker = (random.below(2) == 0).then(|| Unpacker::new(&crew));
        let mut watch = Watch(Vec::new(), None);
        Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
            .unpacking(unpacker)
            .run()
            .unwrap();
        let found = content(&target.0, &to, expected.len(), key);
        assert!(found == expected, "seed {seed} {settings:?}");
    }
}
