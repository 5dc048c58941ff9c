//! The header's wire layout and its feature bits.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The header as it lies in the file, with the additional fields of version 3.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// 2 or 3.
    pub version: U32,
    /// Where the backing file name is; 0 if there is none.
    pub backing_file_offset: U64,
    /// Bytes of the backing file name, without a NUL.
    pub backing_file_size: U32,
    /// Logarithm of the cluster size.
    pub cluster_bits: U32,
    /// Virtual disk size in bytes.
    pub size: U64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: U32,
    /// Entries of the active L1 table.
    pub l1_size: U32,
    /// Where the active L1 table is.
    pub l1_table_offset: U64,
    /// Where the refcount table is.
    pub refcount_table_offset: U64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: U32,
    /// Internal snapshots.
    pub nb_snapshots: U32,
    /// Where the snapshot table is.
    pub snapshots_offset: U64,
    /// Version 3: a reader must know all bits that are set.
    pub incompatible_features: U64,
    /// Version 3: a reader may ignore these.
    pub compatible_features: U64,
    /// Version 3: a writer must clear those that it does not know.
    pub autoclear_features: U64,
    /// Version 3: logarithm of the refcount width in bits.
    pub refcount_order: U32,
    /// Version 3: bytes of the header.
    pub header_length: U32,
    /// Additional field: 0 zlib, 1 zstd.
    pub compression_type: u8,
    /// Additional field: padding.
    pub padding: [u8; 7],
}
wire_layout!(RawHeader, size = 112, {
    magic @ 0, version @ 4, backing_file_offset @ 8, backing_file_size @ 16,
    cluster_bits @ 20, size @ 24, crypt_method @ 32, l1_size @ 36,
    l1_table_offset @ 40, refcount_table_offset @ 48, refcount_table_clusters @ 56,
    nb_snapshots @ 60, snapshots_offset @ 64, incompatible_features @ 72,
    compatible_features @ 80, autoclear_features @ 88, refcount_order @ 96,
    header_length @ 100, compression_type @ 104, padding @ 105,
});

macro_rules! features {
    ($(#[$m:meta])* $name:ident { $($(#[$fm:meta])* $get:ident = $bit:literal),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// All bits that have a meaning.
            pub const KNOWN: u64 = $(crate::bits($bit, $bit))|+;

            $($(#[$fm])* pub const fn $get(self) -> bool {
                self.0 & crate::bits($bit, $bit) != 0
            })+
        }
    };
}

features! {
    /// Incompatible feature bits.
    IncompatibleFeatures {
        /// Bit 0: refcounts may be inconsistent.
        dirty = 0,
        /// Bit 1: some structure may be corrupt.
        corrupt = 1,
        /// Bit 2: guest data is in an external data file.
        external_data_file = 2,
        /// Bit 3: the compression type is not zlib.
        compression_type = 3,
        /// Bit 4: L2 entries are 128 bits wide.
        extended_l2 = 4,
    }
}
features! {
    /// Compatible feature bits.
    CompatibleFeatures {
        /// Bit 0: refcount updates may be postponed.
        lazy_refcounts = 0,
    }
}
features! {
    /// Autoclear feature bits.
    AutoclearFeatures {
        /// Bit 0: the bitmaps extension is consistent.
        bitmaps = 0,
        /// Bit 1: the external data file can be read as a raw image.
        data_file_raw = 1,
    }
}
