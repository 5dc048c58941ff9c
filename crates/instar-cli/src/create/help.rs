//! What `-o help` prints.

use super::options::NewFormat;

/// The options of a format; with those of a file if its name is given.
#[must_use]
pub const fn text(format: NewFormat, with_file: bool) -> &'static str {
    match (format, with_file) {
        (NewFormat::Qcow2, false) => QCOW2,
        (NewFormat::Qcow2, true) => QCOW2_FILE,
        (NewFormat::Raw, false) => RAW,
        (NewFormat::Raw, true) => RAW_FILE,
    }
}

macro_rules! to_extended_l2 {
    () => {
        "  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  cluster_size=<size>    - qcow2 cluster size
  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])
  compression_type=<str> - Compression method used for image cluster compression
  data_file=<str>        - File name of an external data file
  data_file_raw=<bool (on/off)> - The external data file must stay valid as a raw image
  encrypt.cipher-alg=<str> - Name of encryption cipher algorithm
  encrypt.cipher-mode=<str> - Name of encryption cipher mode
  encrypt.format=<str>   - Encrypt the image, format choices: 'aes', 'luks'
  encrypt.hash-alg=<str> - Name of encryption hash algorithm
  encrypt.iter-time=<num> - Time to spend in PBKDF in milliseconds
  encrypt.ivgen-alg=<str> - Name of IV generator algorithm
  encrypt.ivgen-hash-alg=<str> - Name of IV generator hash algorithm
  encrypt.key-secret=<str> - ID of secret providing qcow AES key or LUKS passphrase
  encryption=<bool (on/off)> - Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)
  extended_l2=<bool (on/off)> - Extended L2 tables
"
    };
}

macro_rules! from_preallocation {
    () => {
        "  preallocation=<str>    - Preallocation mode (allowed values: off, metadata, falloc, full)
  refcount_bits=<num>    - Width of a reference count entry in bits
  size=<size>            - Virtual disk size
"
    };
}

macro_rules! protocol_note {
    () => {
        "
The protocol level may support further options.
Specify the target filename to include those options.
"
    };
}

macro_rules! lazy {
    () => {
        "  lazy_refcounts=<bool (on/off)> - Postpone refcount updates\n"
    };
}

macro_rules! hint {
    () => {
        "  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable\n"
    };
}

macro_rules! nocow {
    () => {
        "  nocow=<bool (on/off)>  - Turn off copy-on-write (valid only on btrfs)\n"
    };
}

const QCOW2: &str = concat!(
    "Supported qcow2 options:\n",
    to_extended_l2!(),
    lazy!(),
    from_preallocation!(),
    protocol_note!()
);

const QCOW2_FILE: &str = concat!(
    "Supported options:\n",
    to_extended_l2!(),
    hint!(),
    lazy!(),
    nocow!(),
    from_preallocation!()
);

const RAW: &str = concat!(
    "Supported raw options:\n  size=<size>            - Virtual disk size\n",
    protocol_note!()
);

const RAW_FILE: &str = concat!(
    "Supported options:\n",
    hint!(),
    nocow!(),
    "  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)\n",
    "  size=<size>            - Virtual disk size\n"
);
