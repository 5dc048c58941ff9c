use super::*;
use crate::test_image::Builder;
use alloc::string::{String, ToString};
use instar_luks::LuksError;
use instar_storage::{FaultyStorage, MemStorage};
use proptest::prelude::*;
use zerocopy::big_endian::{U32, U64};

fn open(builder: &Builder, mode: OpenMode) -> Result<Header, OpenError> {
    Header::read(&builder.storage(), mode)
}

fn refusal(change: impl FnOnce(&mut Builder)) -> String {
    let mut builder = Builder::v3();
    change(&mut builder);
    open(&builder, OpenMode::Info).unwrap_err().to_string()
}

#[test]
fn sound_header_gives_its_fields() {
    let header = open(&Builder::v3(), OpenMode::Info).unwrap();
    assert_eq!((header.version, header.cluster_bits.get()), (3, 16));
    assert_eq!(header.virtual_size, 64 << 20);
    assert_eq!(header.refcount_bits(), 16);
    assert_eq!(
        (header.l2_entries(), header.refcounts_per_block()),
        (8192, 32768)
    );
    assert_eq!(header.l2_table_span(), 512 << 20);
    assert_eq!(header.l1_entries_needed(), 1);
    assert_eq!(header.backing_file, None);
    assert_eq!(open(&Builder::v3(), OpenMode::Check), Ok(header));
}

#[test]
fn version_2_ignores_version_3_fields() {
    let mut builder = Builder::v3();
    builder.raw.version = U32::new(2);
    builder.raw.refcount_order = U32::new(99);
    // What would be feature bits is now an extension of no known type.
    builder.raw.incompatible_features = U64::new(0x1234_5678 << 32);
    let header = open(&builder, OpenMode::Info).unwrap();
    assert_eq!((header.refcount_order, header.header_length), (4, 72));
    assert_eq!(header.incompatible, IncompatibleFeatures(0));
}

#[test]
fn extended_l2_changes_entry_sizes() {
    let mut builder = Builder::v3();
    builder.raw.incompatible_features = U64::new(16);
    let header = open(&builder, OpenMode::Info).unwrap();
    assert_eq!((header.l2_entry_bytes(), header.l2_entries()), (16, 4096));
    assert_eq!(header.l2_table_span(), 256 << 20);
}

#[test]
fn refusals_carry_qemus_text() {
    assert_eq!(
        refusal(|b| b.raw.magic = U32::ZERO),
        "Image is not in qcow2 format"
    );
    assert_eq!(
        refusal(|b| b.raw.version = U32::new(4)),
        "Unsupported qcow2 version 4"
    );
    assert_eq!(
        refusal(|b| b.raw.cluster_bits = U32::new(3)),
        "Unsupported cluster size: 2^3"
    );
    assert_eq!(
        refusal(|b| b.raw.crypt_method = U32::new(0xffff_ffff)),
        "Unsupported encryption method -1"
    );
    assert_eq!(
        refusal(|b| {
            b.raw.incompatible_features = U64::new(0x3c0);
            b.extension(
                0x6803_f857,
                &feature_table(&[(7, "seven"), (6, "six"), (6, "again")]),
            );
        }),
        "Unsupported qcow2 feature(s): seven, six, Unknown incompatible feature: 300"
    );
    assert_eq!(
        refusal(|b| b.extension(extensions::EXT_BACKING_FORMAT, &[b'a'; 16])),
        "ERROR: ext_backing_format: len=16 too large (>=16)"
    );
}

fn feature_table(names: &[(u8, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (bit, name) in names {
        let mut entry = [0; 48];
        entry[1] = *bit;
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend_from_slice(&entry);
    }
    bytes
}

#[test]
fn check_tolerates_what_it_is_to_report() {
    let mut builder = Builder::v3();
    builder.raw.refcount_table_clusters = U32::ZERO;
    builder.raw.nb_snapshots = U32::new(u32::MAX);
    builder.raw.snapshots_offset = U64::new(1);
    assert!(open(&builder, OpenMode::Check).is_ok());
    assert_eq!(
        open(&builder, OpenMode::Info),
        Err(OpenError::NoRefcountTable)
    );
}

#[test]
fn check_needs_key_and_data_file() {
    let mut builder = Builder::v3();
    builder.raw.crypt_method = U32::new(1);
    assert!(open(&builder, OpenMode::Info).is_ok());
    assert_eq!(open(&builder, OpenMode::Check), Err(OpenError::KeyRequired));
    assert_eq!(
        open(&builder, OpenMode::Keyless),
        Err(OpenError::KeyRequired)
    );
    assert!(open(&builder, OpenMode::CheckWithKey).is_ok());
    let unlooked = Header::read_unencrypted(&builder.storage(), OpenMode::CheckWithKey);
    assert_eq!(unlooked, Err(OpenError::KeyRequired));
    let mut builder = Builder::v3();
    builder.raw.incompatible_features = U64::new(4);
    assert!(open(&builder, OpenMode::Info).is_ok());
    assert_eq!(
        open(&builder, OpenMode::Check),
        Err(OpenError::DataFileMissing)
    );
    builder.extension(extensions::EXT_DATA_FILE, b"d\0x");
    let header = open(&builder, OpenMode::Check).unwrap();
    assert_eq!(header.extensions.data_file_name.as_deref(), Some(&b"d"[..]));
}

#[test]
fn a_luks_header_is_looked_at_with_a_key_alone() {
    let mut builder = Builder::v3();
    builder.raw.crypt_method = U32::new(2);
    // It lies in the second cluster, where there are zeros.
    let pointer = [1_u64 << 16, 4096].map(u64::to_be_bytes).concat();
    builder.extension(extensions::EXT_CRYPTO_HEADER, &pointer);
    for mode in [OpenMode::Check, OpenMode::Keyless] {
        assert_eq!(open(&builder, mode), Err(OpenError::KeyRequired));
    }
    for mode in [OpenMode::Info, OpenMode::CheckWithKey, OpenMode::Change] {
        let unlooked = Header::read_unencrypted(&builder.storage(), mode);
        assert_eq!(unlooked, Err(OpenError::KeyRequired));
        let error = open(&builder, mode).unwrap_err();
        assert_eq!(error, LuksError::NotLuks.into());
        assert_eq!(error.to_string(), "Volume is not in LUKS format");
    }
}

#[test]
fn backing_name_is_cut_at_nul_and_capped() {
    let mut builder = Builder::v3();
    builder.backing(512, b"base\0x");
    assert_eq!(
        open(&builder, OpenMode::Info)
            .unwrap()
            .backing_file
            .unwrap(),
        b"base"
    );
    builder.backing(512, b"\0");
    assert_eq!(open(&builder, OpenMode::Info).unwrap().backing_file, None);
    assert_eq!(
        refusal(|b| b.backing(512, &[b'n'; 1024])),
        "Backing file name too long"
    );
    assert_eq!(
        refusal(|b| b.backing(65533, b"base")),
        "Backing file name too long"
    );
}

#[test]
fn opening_a_plain_image_costs_one_read() {
    let store = FaultyStorage::new(Builder::v3().storage(), u64::MAX, 5);
    Header::read(&store, OpenMode::Info).unwrap();
    assert_eq!(store.reads(), 1);
}

#[test]
fn a_fault_at_any_read_is_an_error() {
    let mut builder = Builder::v3();
    builder.extension(0x1234, &[0; 8192]);
    builder.extension(extensions::EXT_BACKING_FORMAT, b"raw");
    builder.backing(30000, b"base");
    let counting = FaultyStorage::new(builder.storage(), u64::MAX, 5);
    Header::read(&counting, OpenMode::Info).unwrap();
    assert!(counting.reads() >= 3);
    for n in 0..counting.reads() {
        let store = FaultyStorage::new(builder.storage(), n, 5);
        let error = Header::read(&store, OpenMode::Info).unwrap_err();
        assert!(error.to_string().ends_with("Input/output error"), "{error}");
    }
}

proptest! {
    /// Any bytes after a sound magic, version and cluster size.
    #[test]
    fn any_header_gives_a_value(
        version in 2_u32..=3,
        cluster_bits in 9_u32..=21,
        rest in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 600),
    ) {
        let mut bytes = rest;
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
        judge(&MemStorage::new(bytes))?;
    }

    /// A sound image with a few bytes changed.
    #[test]
    fn any_mutation_gives_a_value(
        changes in proptest::collection::vec((0_usize..700, any::<u8>()), 1..8),
    ) {
        let mut builder = Builder::v3();
        builder.extension(extensions::EXT_BACKING_FORMAT, b"raw");
        builder.extension(0x6803_f857, &feature_table(&[(0, "dirty"), (7, "seven")]));
        builder.bitmaps(&[b"one", b"two"]);
        builder.backing(600, b"base");
        let mut bytes = builder.storage().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        judge(&MemStorage::new(bytes))?;
    }
}

/// Opens in every mode; what is kept respects its caps.
fn judge(store: &MemStorage) -> Result<(), TestCaseError> {
    for mode in [OpenMode::Info, OpenMode::Check, OpenMode::CheckWithKey] {
        match Header::read(store, mode) {
            Ok(header) => {
                prop_assert!(u64::from(header.l1_size) * 8 <= MAX_L1_BYTES);
                prop_assert!(header.refcount_table_bytes() <= MAX_REFCOUNT_TABLE_BYTES);
                let name = header.backing_file.unwrap_or_default();
                prop_assert!(name.len() <= usize::try_from(MAX_BACKING_NAME_BYTES).unwrap());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
    Ok(())
}
