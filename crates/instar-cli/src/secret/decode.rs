//! From the options of a secret to its bytes.

use crate::failure::system_text;
use aes::Aes256;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::Decryptor;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use instar_vmm::operation::Zeroizing;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

/// Longest file that is read, in bytes: base64 of the longest secret, and more.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Bytes of an AES-256 key.
const KEY_BYTES: usize = 32;
/// Bytes of an AES block.
const BLOCK_BYTES: usize = 16;

/// Padding and what is left over in the last digits do not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the options say.
#[derive(Default)]
pub struct Source<'a> {
    data: Option<&'a [u8]>,
    file: Option<&'a [u8]>,
    base64: bool,
    iv: Option<&'a [u8]>,
    keyid: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// Sets the option `name`.
    ///
    /// # Errors
    /// There is no such format.
    pub fn set(&mut self, name: &str, value: Option<&'a [u8]>) -> Result<(), String> {
        match (name, value) {
            ("data", _) => self.data = value,
            ("file", _) => self.file = value,
            ("iv", _) => self.iv = value,
            ("keyid", _) => self.keyid = value,
            ("format", None | Some(b"raw")) => self.base64 = false,
            ("format", Some(b"base64")) => self.base64 = true,
            (_, value) => {
                let value = String::from_utf8_lossy(value.unwrap_or_default());
                return Err(format!(
                    "Parameter '{name}' does not accept value '{value}'"
                ));
            }
        }
        Ok(())
    }

    /// The secret; `key` gives the one of a name.
    ///
    /// # Errors
    /// The sentence of `qemu-img`.
    pub fn decode<'k>(
        &self,
        key: impl Fn(&str) -> Result<&'k Zeroizing<Vec<u8>>, String>,
    ) -> Result<Zeroizing<Vec<u8>>, String> {
        let raw = match (self.data, self.file) {
            (Some(_), Some(_)) => Err("'file' and 'data' are mutually exclusive".to_owned()),
            (None, None) => Err("Either 'file' or 'data' must be provided".to_owned()),
            (Some(data), None) => Ok(Zeroizing::new(data.to_vec())),
            (None, Some(name)) => read(name),
        }?;
        let Some(keyid) = self.keyid else {
            return if self.base64 {
                from_base64(&raw)
            } else {
                Ok(raw)
            };
        };
        let key = key(&String::from_utf8_lossy(keyid))?;
        if key.len() != KEY_BYTES {
            return Err(format!("Key should be {KEY_BYTES} bytes in length"));
        }
        let iv = self.iv.ok_or("IV is required to decrypt secret")?;
        let iv = from_base64(iv)?;
        if iv.len() != BLOCK_BYTES {
            return Err(format!(
                "IV should be {BLOCK_BYTES} bytes in length not {}",
                iv.len()
            ));
        }
        let raw = if self.base64 { from_base64(&raw)? } else { raw };
        decrypt(raw, key, &iv)
    }
}

fn read(name: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = String::from_utf8_lossy(name).into_owned();
    let mut file = File::open(OsStr::from_bytes(name)).map_err(|error| {
        let text = system_text(&error);
        format!("Unable to read {shown}: Failed to open file “{shown}”: {text}")
    })?;
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(MAX_FILE_BYTES).unwrap_or_default()]);
    let mut filled = 0;
    loop {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        if rest.is_empty() {
            return Err(format!("Unable to read {shown}: it is longer than 1 MiB"));
        }
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let text = system_text(&error);
                return Err(format!(
                    "Unable to read {shown}: Error reading file “{shown}”: {text}"
                ));
            }
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn from_base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong = || "Base64 data contains invalid characters".to_owned();
    let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let mut digits: Zeroizing<Vec<u8>> = Zeroizing::new(
        text.iter()
            .copied()
            .filter(|byte| !is_line_end(byte))
            .collect(),
    );
    let whole = digits
        .iter()
        .rposition(|byte| *byte != b'=')
        .map_or(0, |last| last.saturating_add(1));
    digits.truncate(whole);
    if digits.len() % 4 == 1 && digits.iter().all(|byte| is_digit(*byte)) {
        // A digit alone is no byte yet.
        digits.pop();
    }
    let bytes = BASE64.decode(&*digits).map_err(|_| wrong())?;
    Ok(Zeroizing::new(bytes))
}

const fn is_digit(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// AES-256-CBC with padding as of PKCS #7, of which the last byte alone is looked at.
fn decrypt(
    mut bytes: Zeroizing<Vec<u8>>,
    key: &[u8],
    iv: &[u8],
) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong_length = || {
        format!(
            "Length {} must be a multiple of block size {BLOCK_BYTES}",
            bytes.len()
        )
    };
    let cipher = Decryptor::<Aes256>::new_from_slices(key, iv).map_err(|_| wrong_length())?;
    if !bytes.len().is_multiple_of(BLOCK_BYTES) {
        return Err(wrong_length());
    }
    if cipher.decrypt_padded::<NoPadding>(&mut bytes).is_err() {
        return Err("the secret cannot be decrypted".to_owned());
    }
    let padding = usize::from(bytes.last().copied().unwrap_or_default());
    if padding > BLOCK_BYTES {
        return Err(format!(
            "Incorrect number of padding bytes ({padding}) found on decrypted data"
        ));
    }
    let len = bytes.len().saturating_sub(padding);
    bytes.truncate(len);
    Ok(bytes)
}
