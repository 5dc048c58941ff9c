//! Encryption of new images, and changes of key slots. Passwords are not here: see the secret region.

use zerocopy::little_endian::{U32, U64};

/// Longest name of a cipher, mode, IV generator or hash, in bytes.
pub const MAX_ALGORITHM_BYTES: usize = 16;

/// What an operation says where an image is to be encrypted and there is no password for it. The host knows whether
/// one was named, and says so instead.
pub const NO_SECRET: &str = "Parameter 'encrypt.key-secret' is required for cipher";

wire_enum! {
    /// How the data of a new image is encrypted.
    pub enum EncryptMethod: u32 {
        /// Not at all.
        None = 0,
        /// The older AES method of qcow2.
        Aes = 1,
        /// LUKS.
        Luks = 2,
    }
}

/// [`NewEncryption::flags`]: there is a password for the image.
pub const ENCRYPT_HAS_SECRET: u32 = 1 << 0;

wire_struct! {
    /// How the data of a new image is encrypted. Names are QEMU's, zeros after them; an empty one is the default.
    pub struct NewEncryption {
        /// An [`EncryptMethod`].
        pub method: U32,
        /// `ENCRYPT_*`.
        pub flags: U32,
        /// Cipher and key size.
        pub cipher: [u8; MAX_ALGORITHM_BYTES],
        /// Cipher mode.
        pub mode: [u8; MAX_ALGORITHM_BYTES],
        /// IV generator.
        pub iv_generator: [u8; MAX_ALGORITHM_BYTES],
        /// The IV generator's hash.
        pub iv_generator_hash: [u8; MAX_ALGORITHM_BYTES],
        /// Hash of key derivation and stripes.
        pub hash: [u8; MAX_ALGORITHM_BYTES],
        /// How long the password's key takes to derive, in milliseconds.
        pub iter_time_ms: U64,
    }
}
wire_layout!(NewEncryption, size = 96, {
    method @ 0, flags @ 4, cipher @ 8, mode @ 24, iv_generator @ 40, iv_generator_hash @ 56, hash @ 72,
    iter_time_ms @ 88,
});

/// [`KeyChange::flags`]: `slot` holds.
pub const KEY_SLOT_GIVEN: u32 = 1 << 0;
/// [`KeyChange::flags`]: keys go although they are the last, slots are overwritten although they hold keys.
pub const KEY_FORCE: u32 = 1 << 1;
/// [`KeyChange::flags`]: key slots that open with the old password are erased.
pub const KEY_OLD_SECRET: u32 = 1 << 2;

wire_enum! {
    /// What key slots become.
    pub enum KeyState: u32 {
        /// They stay as they are: it only matters whether the image has some.
        Look = 0,
        /// One gets a key, which the new password opens.
        Active = 1,
        /// They hold no key any more.
        Inactive = 2,
    }
}

wire_struct! {
    /// A change of key slots.
    pub struct KeyChange {
        /// A [`KeyState`].
        pub state: U32,
        /// `KEY_*`.
        pub flags: U32,
        /// Number of a key slot, any number.
        pub slot: U32,
        /// Zero.
        pub reserved: U32,
        /// How long the new password's key takes to derive, in milliseconds.
        pub iter_time_ms: U64,
    }
}
wire_layout!(KeyChange, size = 24, { state @ 0, flags @ 4, slot @ 8, reserved @ 12, iter_time_ms @ 16 });
