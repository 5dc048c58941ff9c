//! What an image is to be, and the checks of it in QEMU's order.

use crate::{CreateError, Preallocation};
use alloc::vec::Vec;
use instar_qcow2::extensions::CryptoHeader;
use instar_qcow2::header::{
    AutoclearFeatures, CompatibleFeatures, CompressionType, CryptMethod, IncompatibleFeatures,
    MAX_BACKING_NAME_BYTES, MAX_FILE_BYTES, MAX_L1_BYTES, V2_HEADER_BYTES,
};
use instar_qcow2::{ClusterBits, Header, HostOffset};

/// The sector, in bytes: sizes are multiples of it.
const SECTOR: u64 = 512;
/// The smallest cluster with extended L2 entries, in bytes.
pub const MIN_EXTENDED_CLUSTER: u64 = 16 << 10;
/// Incompatible feature bit 2.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible feature bit 3.
const OTHER_COMPRESSION: u64 = 1 << 3;
/// Incompatible feature bit 4.
const EXTENDED_L2: u64 = 1 << 4;
/// Bytes of a version 3 header.
const HEADER_BYTES: u32 = 112;

/// How the data of a new image is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// By the older AES method.
    Aes,
    /// By LUKS.
    Luks {
        /// Bytes of header and key material before the payload of a LUKS volume; the image sets them aside.
        header_bytes: u64,
    },
}

/// Options as a user gives them, none of them checked. The default is an image of 0 bytes with QEMU's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Virtual size in bytes; rounded up to whole sectors.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Cluster size in bytes.
    pub cluster_bytes: u64,
    /// Width of a refcount in bits.
    pub refcount_bits: u64,
    /// How clusters are compressed.
    pub compression: CompressionType,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// Refcount updates may be postponed.
    pub lazy_refcounts: bool,
    /// Backing file name.
    pub backing_file: Option<&'a [u8]>,
    /// Its format's name.
    pub backing_format: Option<&'a [u8]>,
    /// Name of the external data file.
    pub data_file: Option<&'a [u8]>,
    /// The data file can be read as a raw image.
    pub data_file_raw: bool,
    /// What is reserved.
    pub preallocation: Preallocation,
    /// How its data is encrypted.
    pub encryption: Encryption,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            size: 0,
            version: 3,
            cluster_bytes: 64 << 10,
            refcount_bits: 16,
            compression: CompressionType::Zlib,
            extended_l2: false,
            lazy_refcounts: false,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: Encryption::None,
        }
    }
}

/// The image below a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, as it is stored.
    pub name: Vec<u8>,
    /// Its format's name.
    pub format: Option<Vec<u8>>,
}

/// An image that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The header as far as it is known; offsets of tables are 0.
    pub(crate) header: Header,
    /// What is reserved.
    pub(crate) preallocation: Preallocation,
}

impl Spec {
    /// Checks the options.
    ///
    /// # Errors
    /// The first thing that is wrong, in QEMU's order.
    pub fn new(options: &Options<'_>) -> Result<Self, CreateError> {
        if options.extended_l2 && options.version < 3 {
            return Err(CreateError::ExtendedL2InVersion2);
        }
        let cluster_bits = cluster_bits(options.cluster_bytes)?;
        check_entries(options)?;
        let refcount_order = refcount_order(options)?;
        check_data_file(options)?;
        let v3 = options.version >= 3;
        if !v3 && options.compression != CompressionType::Zlib {
            return Err(CreateError::CompressionInVersion2);
        }
        check_backing_name(options)?;
        let size = checked_size(options.size)?;
        let mut header = Header {
            version: options.version,
            cluster_bits,
            virtual_size: size,
            backing_file: owned(options.backing_file),
            backing_file_offset: HostOffset(0),
            backing_file_size: 0,
            crypt_method: match options.encryption {
                Encryption::None => CryptMethod::None,
                Encryption::Aes => CryptMethod::Aes,
                Encryption::Luks { .. } => CryptMethod::Luks,
            },
            l1_size: 0,
            l1_table_offset: HostOffset(0),
            refcount_table_offset: HostOffset(0),
            refcount_table_clusters: 0,
            nb_snapshots: 0,
            snapshots_offset: HostOffset(0),
            incompatible: IncompatibleFeatures(incompatible(options)),
            compatible: CompatibleFeatures(u64::from(options.lazy_refcounts)),
            autoclear: AutoclearFeatures(u64::from(options.data_file_raw) << 1),
            refcount_order,
            header_length: if v3 { HEADER_BYTES } else { 72 },
            compression_type: options.compression,
            extensions: instar_qcow2::extensions::Extensions {
                backing_format: owned(options.backing_format),
                data_file_name: owned(options.data_file),
                crypto_header: match options.encryption {
                    Encryption::Luks { header_bytes } => Some(CryptoHeader {
                        offset: HostOffset(0),
                        length: header_bytes,
                    }),
                    Encryption::None | Encryption::Aes => None,
                },
                ..Default::default()
            },
        };
        let entries = header.l1_entries_needed();
        if entries > MAX_L1_BYTES >> 3 {
            return Err(CreateError::TOO_LARGE);
        }
        header.l1_size = u32::try_from(entries).map_err(|_| CreateError::TOO_LARGE)?;
        let spec = Self {
            header,
            preallocation: options.preallocation,
        };
        spec.check_header_fits()?;
        Ok(spec)
    }

    /// Virtual size in bytes: whole sectors.
    #[must_use]
    pub const fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// The cluster size.
    #[must_use]
    pub const fn cluster_bits(&self) -> ClusterBits {
        self.header.cluster_bits
    }

    /// How clusters are compressed.
    #[must_use]
    pub const fn compression(&self) -> CompressionType {
        self.header.compression_type
    }

    /// True if guest data lies in an external data file.
    #[must_use]
    pub const fn has_data_file(&self) -> bool {
        self.header.incompatible.external_data_file()
    }

    /// True if guest data is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.header.crypt_method != CryptMethod::None
    }

    /// True if there is an image below.
    #[must_use]
    pub const fn has_backing(&self) -> bool {
        self.header.backing_file.is_some()
    }

    /// The image below.
    #[must_use]
    pub fn backing(&self) -> Option<Backing> {
        Some(Backing {
            name: self.header.backing_file.clone()?,
            format: self.header.extensions.backing_format.clone(),
        })
    }

    /// What is reserved.
    #[must_use]
    pub const fn preallocation(&self) -> Preallocation {
        self.preallocation
    }

    /// True if every guest cluster has its place from the beginning.
    pub(crate) fn maps_everything(&self) -> bool {
        self.preallocation != Preallocation::Off || self.header.autoclear.data_file_raw()
    }

    /// Bytes that can be allocated apart: the cluster, or the subcluster.
    #[must_use]
    pub const fn unit_bytes(&self) -> u64 {
        let cluster = self.header.cluster_bits.size_bytes();
        if self.header.incompatible.extended_l2() {
            cluster >> 5
        } else {
            cluster
        }
    }

    fn check_header_fits(&self) -> Result<(), CreateError> {
        let len = crate::header::encode(&self.header).len() as u64;
        if len <= self.header.cluster_bits.size_bytes() {
            return Ok(());
        }
        match self.backing() {
            Some(backing) => Err(CreateError::BackingName {
                name: backing.name,
                format: backing.format.unwrap_or_default(),
                errno: 28,
            }),
            None => Err(CreateError::HeaderFull),
        }
    }
}

fn owned(name: Option<&[u8]>) -> Option<Vec<u8>> {
    name.map(<[u8]>::to_vec)
}

/// The cluster size of so many bytes.
pub fn cluster_bits(bytes: u64) -> Result<ClusterBits, CreateError> {
    let bits = bytes.is_power_of_two().then(|| bytes.trailing_zeros());
    bits.and_then(ClusterBits::new)
        .ok_or(CreateError::ClusterSize)
}

/// What L2 entries, preallocation and the backing file's format ask of each other.
fn check_entries(options: &Options<'_>) -> Result<(), CreateError> {
    if options.extended_l2 && options.cluster_bytes < MIN_EXTENDED_CLUSTER {
        return Err(CreateError::ExtendedL2ClusterSize);
    }
    let reserves = options.preallocation != Preallocation::Off;
    if reserves && options.backing_file.is_some() && !options.extended_l2 {
        return Err(CreateError::PreallocationWithBacking);
    }
    if options.backing_file.is_none() && options.backing_format.is_some() {
        return Err(CreateError::BackingFormatAlone);
    }
    if options.version < 3 && options.lazy_refcounts {
        return Err(CreateError::LazyRefcountsInVersion2);
    }
    Ok(())
}

fn refcount_order(options: &Options<'_>) -> Result<u32, CreateError> {
    let bits = options.refcount_bits;
    if !bits.is_power_of_two() || bits > 64 {
        return Err(CreateError::RefcountBits);
    }
    if options.version < 3 && bits != 16 {
        return Err(CreateError::RefcountBitsInVersion2);
    }
    Ok(bits.trailing_zeros())
}

const fn check_data_file(options: &Options<'_>) -> Result<(), CreateError> {
    if options.data_file_raw && options.data_file.is_none() {
        return Err(CreateError::DataFileRawAlone);
    }
    if options.data_file_raw && options.backing_file.is_some() {
        return Err(CreateError::DataFileRawWithBacking);
    }
    if options.data_file.is_some() && options.version < 3 {
        return Err(CreateError::DataFileInVersion2);
    }
    Ok(())
}

fn check_backing_name(options: &Options<'_>) -> Result<(), CreateError> {
    let name = options.backing_file.unwrap_or_default();
    let most = usize::try_from(MAX_BACKING_NAME_BYTES).unwrap_or(usize::MAX);
    if name.len() <= most {
        return Ok(());
    }
    Err(CreateError::BackingName {
        name: name.to_vec(),
        format: options.backing_format.unwrap_or_default().to_vec(),
        errno: 22,
    })
}

fn checked_size(size: u64) -> Result<u64, CreateError> {
    let size = size
        .checked_next_multiple_of(SECTOR)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or(CreateError::NegativeSize)?;
    if size > MAX_FILE_BYTES {
        return Err(CreateError::ExceedsMaximum { size });
    }
    Ok(size)
}

fn incompatible(options: &Options<'_>) -> u64 {
    let mut bits = 0;
    if options.data_file.is_some() {
        bits |= EXTERNAL_DATA;
    }
    if options.compression != CompressionType::Zlib {
        bits |= OTHER_COMPRESSION;
    }
    if options.extended_l2 {
        bits |= EXTENDED_L2;
    }
    bits
}

const _: () = assert!(V2_HEADER_BYTES == 72);
