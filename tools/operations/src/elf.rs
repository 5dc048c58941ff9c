//! Reads what is loaded of an ELF file. System V ABI, "Program Header".

use anyhow::{Context, Result, ensure};

/// What an operation occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of all `PT_LOAD` segments in the file (`p_filesz`).
    pub loadable: u64,
    /// Bytes of all `PT_LOAD` segments in memory (`p_memsz`).
    pub memory: u64,
}

const PT_LOAD: u32 = 1;

/// Measures a 64-bit little-endian ELF file.
pub fn sizes(file: &[u8]) -> Result<Sizes> {
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let table = usize::try_from(number(file, 32, 8)?)?;
    let entry_size = usize::try_from(number(file, 54, 2)?)?;
    let count = usize::try_from(number(file, 56, 2)?)?;
    let mut sizes = Sizes::default();
    for index in 0..count {
        let entry = table + index * entry_size;
        if number(file, entry, 4)? == u64::from(PT_LOAD) {
            sizes.loadable += number(file, entry + 32, 8)?;
            sizes.memory += number(file, entry + 40, 8)?;
        }
    }
    ensure!(sizes.loadable > 0, "the file has no loadable segment");
    Ok(sizes)
}

fn number(file: &[u8], at: usize, len: usize) -> Result<u64> {
    let field = file.get(at..at + len).context("the ELF file is cut off")?;
    let mut word = [0_u8; 8];
    word[..len].copy_from_slice(field);
    Ok(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and the program headers `(type, filesz, memsz)`.
    fn elf(segments: &[(u32, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        for (kind, filesz, memsz) in segments {
            let mut entry = vec![0; 56];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            entry[32..40].copy_from_slice(&filesz.to_le_bytes());
            entry[40..48].copy_from_slice(&memsz.to_le_bytes());
            file.extend(entry);
        }
        file
    }

    #[test]
    fn sizes_adds_load_segments_only() {
        let file = elf(&[(1, 100, 100), (4, 7, 7), (1, 20, 300)]);
        let wanted = Sizes {
            loadable: 120,
            memory: 400,
        };
        assert_eq!(sizes(&file).unwrap(), wanted);
    }

    #[test]
    fn sizes_refuses_what_is_no_program() {
        assert!(sizes(b"").is_err());
        assert!(sizes(&elf(&[(4, 7, 7)])).is_err());
        let mut cut = elf(&[(1, 100, 100)]);
        cut.truncate(100);
        assert!(sizes(&cut).is_err());
    }
}
