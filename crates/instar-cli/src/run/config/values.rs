//! Values in a machine's description that are written in a way of their own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::{Path, PathBuf};

/// A size in bytes; written with the largest unit that it is a multiple of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unit = [("G", 30_u32), ("M", 20), ("K", 10)];
        let unit = unit
            .iter()
            .find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((letter, shift)) => {
                serializer.serialize_str(&format!("{}{letter}", self.0 >> shift))
            }
            None => serializer.serialize_u64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a size: a number of bytes, or a text such as \"512M\""
        )]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => crate::size::parse(&text)
                .map(Self)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// Where a line goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Nowhere.
    #[default]
    None,
    /// Standard input and output.
    Stdio,
    /// A terminal that is made for it.
    Pty,
    /// A file gets the output.
    File(PathBuf),
}

impl From<&Path> for Stream {
    fn from(word: &Path) -> Self {
        match word.to_str() {
            Some("none") => Self::None,
            Some("stdio") => Self::Stdio,
            Some("pty") => Self::Pty,
            _ => Self::File(word.to_owned()),
        }
    }
}

impl Serialize for Stream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Stdio => serializer.serialize_str("stdio"),
            Self::Pty => serializer.serialize_str("pty"),
            Self::File(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(PathBuf::deserialize(deserializer)?.as_path()))
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six bytes such as `02:00:5e:10:00:01`.
    ///
    /// # Errors
    /// One sentence: it is none, or one of a group.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a MAC address: write six bytes such as 02:00:5e:10:00:01, the first of them even"
            )
        };
        let bytes = text.split(':').map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        });
        let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
        match bytes {
            [first, ..] if first & 1 != 0 => Err(wrong()),
            [0, 0, 0, 0, 0, 0] => Err(wrong()),
            _ => Ok(Self(bytes)),
        }
    }

    /// A local address that is always the same for a tap device: FNV-1a of its name.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}
