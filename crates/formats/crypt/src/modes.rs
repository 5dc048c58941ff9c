//! A cipher in a mode, over one sector.
//!
//! Modes: NIST SP 800-38A (ECB, CBC, CTR) and IEEE Std 1619 (XTS). XTS works on all blocks of a sector at once,
//! which is several times as fast as one after the other where the CPU has AES instructions.

use crate::CryptError;
use crate::iv::Iv;
use crate::names::{CipherAlgorithm, CipherMode};
use crate::twofish::Twofish;
use alloc::boxed::Box;
use cbc::{Decryptor, Encryptor};
use cipher::array::Array;
use cipher::consts::U16;
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt,
    BlockSizeUser, InnerIvInit, KeyInit, StreamCipherCore,
};
use core::marker::PhantomData;
use ctr::flavors::{Ctr64BE, Ctr128BE};
use ctr::{CtrCore, CtrFlavor};

/// Bytes of a sector, for which there is one IV.
pub(crate) const SECTOR: usize = 512;
/// Bytes of a block in XTS.
const XTS_BLOCK: usize = 16;
/// Blocks of a sector in XTS.
const XTS_BLOCKS: usize = SECTOR / XTS_BLOCK;

/// A cipher in a mode, with its key.
pub(crate) trait Sectors: Send + Sync {
    /// Enciphers a sector in place.
    fn encrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]);
    /// Deciphers a sector in place.
    fn decrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]);
}

/// A cipher with its key, for single blocks.
pub(crate) trait OneBlock: Send + Sync {
    /// Enciphers the cipher's block that `block` begins with.
    fn encrypt(&self, block: &mut Iv);
}

/// The mode of a cipher, keyed.
pub(crate) fn sectors(
    cipher: CipherAlgorithm,
    mode: CipherMode,
    key: &[u8],
) -> Result<Box<dyn Sectors>, CryptError> {
    let refused = CryptError::KeyLength {
        cipher,
        mode,
        wanted: cipher.master_key_bytes(mode),
        given: key.len(),
    };
    if key.len() != cipher.master_key_bytes(mode) {
        return Err(refused);
    }
    let made = match cipher {
        CipherAlgorithm::Aes128 => wide::<aes::Aes128>(mode, key),
        CipherAlgorithm::Aes192 => wide::<aes::Aes192>(mode, key),
        CipherAlgorithm::Aes256 => wide::<aes::Aes256>(mode, key),
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            wide::<serpent::Serpent>(mode, key)
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            wide::<Twofish>(mode, key)
        }
        CipherAlgorithm::Cast5 if mode == CipherMode::Xts => return Err(CryptError::Mode(mode)),
        CipherAlgorithm::Cast5 => simple::<cast5::Cast5, Ctr64BE>(mode, key),
    };
    made.ok_or(refused)
}

/// A cipher for single blocks, keyed.
pub(crate) fn one_block(
    cipher: CipherAlgorithm,
    key: &[u8],
) -> Result<Box<dyn OneBlock>, CryptError> {
    fn keyed<C>(key: &[u8]) -> Option<Box<dyn OneBlock>>
    where
        C: BlockCipherEncrypt + KeyInit + Send + Sync + 'static,
    {
        Some(Box::new(One(C::new_from_slice(key).ok()?)))
    }
    let made = match cipher {
        CipherAlgorithm::Aes128 => keyed::<aes::Aes128>(key),
        CipherAlgorithm::Aes192 => keyed::<aes::Aes192>(key),
        CipherAlgorithm::Aes256 => keyed::<aes::Aes256>(key),
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            keyed::<serpent::Serpent>(key)
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            keyed::<Twofish>(key)
        }
        CipherAlgorithm::Cast5 => keyed::<cast5::Cast5>(key),
    };
    made.ok_or(CryptError::KeyLength {
        cipher,
        mode: CipherMode::Ecb,
        wanted: cipher.key_bytes(),
        given: key.len(),
    })
}

/// Any mode of a cipher with blocks of 16 bytes; `None` if the key does not fit.
fn wide<C>(mode: CipherMode, key: &[u8]) -> Option<Box<dyn Sectors>>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit,
    C: BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
{
    if mode != CipherMode::Xts {
        return simple::<C, Ctr128BE>(mode, key);
    }
    let (data, tweak) = key.split_at_checked(key.len() >> 1)?;
    Some(Box::new(Xts {
        data: C::new_from_slice(data).ok()?,
        tweak: C::new_from_slice(tweak).ok()?,
    }))
}

/// A mode that takes blocks of any size; `None` if the key does not fit.
fn simple<C, F>(mode: CipherMode, key: &[u8]) -> Option<Box<dyn Sectors>>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send + Sync + 'static,
    F: CtrFlavor<C::BlockSize> + Send + Sync + 'static,
{
    let cipher = C::new_from_slice(key).ok()?;
    Some(match mode {
        CipherMode::Ecb => Box::new(Ecb(cipher)),
        CipherMode::Cbc => Box::new(Cbc(cipher)),
        CipherMode::Ctr => Box::new(Ctr::<C, F>(cipher, PhantomData)),
        CipherMode::Xts => return None,
    })
}

/// The sector as blocks of a cipher; block sizes divide it.
fn blocks<C: BlockSizeUser>(sector: &mut [u8; SECTOR]) -> &mut [Block<C>] {
    Array::slice_as_chunks_mut(sector).0
}

/// The beginning of an IV, as long as the cipher's blocks.
fn short_iv<C: BlockSizeUser>(iv: &Iv) -> Block<C> {
    let mut out = Block::<C>::default();
    for (to, from) in out.iter_mut().zip(iv) {
        *to = *from;
    }
    out
}

struct One<C>(C);

impl<C: BlockCipherEncrypt + Send + Sync> OneBlock for One<C> {
    fn encrypt(&self, block: &mut Iv) {
        let (blocks, _) = Array::slice_as_chunks_mut(block);
        if let Some(first) = blocks.first_mut() {
            self.0.encrypt_block(first);
        }
    }
}

struct Ecb<C>(C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Sectors for Ecb<C> {
    fn encrypt(&self, _: &Iv, sector: &mut [u8; SECTOR]) {
        self.0.encrypt_blocks(blocks::<C>(sector));
    }
    fn decrypt(&self, _: &Iv, sector: &mut [u8; SECTOR]) {
        self.0.decrypt_blocks(blocks::<C>(sector));
    }
}

struct Cbc<C>(C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Sectors for Cbc<C> {
    fn encrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        Encryptor::inner_iv_init(&self.0, &short_iv::<C>(iv)).encrypt_blocks(blocks::<C>(sector));
    }
    fn decrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        Decryptor::inner_iv_init(&self.0, &short_iv::<C>(iv)).decrypt_blocks(blocks::<C>(sector));
    }
}

struct Ctr<C, F>(C, PhantomData<F>);

impl<C, F> Sectors for Ctr<C, F>
where
    C: BlockCipherEncrypt + Send + Sync,
    F: CtrFlavor<C::BlockSize> + Send + Sync,
{
    fn encrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        CtrCore::<&C, F>::inner_iv_init(&self.0, &short_iv::<C>(iv))
            .apply_keystream_blocks(blocks::<C>(sector));
    }
    fn decrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        self.encrypt(iv, sector);
    }
}

struct Xts<C> {
    data: C,
    tweak: C,
}

impl<C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>> Xts<C> {
    /// What is added to each block, before and after the cipher.
    fn tweaks(&self, iv: &Iv) -> [u128; XTS_BLOCKS] {
        let mut first = Array(*iv);
        self.tweak.encrypt_block(&mut first);
        let mut next = u128::from_le_bytes(first.0);
        [(); XTS_BLOCKS].map(|()| {
            let this = next;
            let overflow = 0_u128.wrapping_sub(next >> 127);
            next = (next << 1) ^ (overflow & 0x87);
            this
        })
    }
}

/// Adds a tweak to each block.
fn whiten(tweaks: &[u128; XTS_BLOCKS], sector: &mut [u8; SECTOR]) {
    let (blocks, _) = sector.as_chunks_mut::<XTS_BLOCK>();
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

impl<C> Sectors for Xts<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt,
    C: BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        let tweaks = self.tweaks(iv);
        whiten(&tweaks, sector);
        self.data.encrypt_blocks(blocks::<C>(sector));
        whiten(&tweaks, sector);
    }
    fn decrypt(&self, iv: &Iv, sector: &mut [u8; SECTOR]) {
        let tweaks = self.tweaks(iv);
        whiten(&tweaks, sector);
        self.data.decrypt_blocks(blocks::<C>(sector));
        whiten(&tweaks, sector);
    }
}
