//! The environment block, `grubenv`. *GNU GRUB Manual*, "GRUB environment block".

use alloc::vec::Vec;

/// What a block begins with.
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";
/// Largest block that is read, in bytes: ours; blocks have 1,024.
pub const MAX_BLOCK: u64 = 64 << 10;

/// Names and values of a block; `None` if it is none.
pub fn parse(block: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let text = block.strip_prefix(SIGNATURE)?;
    let mut pairs = Vec::new();
    let mut line = Vec::new();
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            // A backslash or the end of a line in a value has a backslash in front.
            b'\\' => line.extend(bytes.next()),
            b'\n' => {
                pairs.extend(pair(&line));
                line.clear();
            }
            byte => line.push(*byte),
        }
    }
    Some(pairs)
}

fn pair(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    let (name, value) = line.split_at(at);
    let name = (!name.starts_with(b"#")).then(|| name.to_vec())?;
    Some((name, value.get(1..).unwrap_or(&[]).to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_has_names_and_values() {
        let block =
            b"# GRUB Environment Block\nsaved_entry=a=b\n# x=y\nkernelopts=ro \\\\x\\\ny\n######";
        let pairs = parse(block).unwrap();
        let expected: [(&[u8], &[u8]); 2] =
            [(b"saved_entry", b"a=b"), (b"kernelopts", b"ro \\x\ny")];
        let expected: Vec<_> = expected.map(|(n, v)| (n.to_vec(), v.to_vec())).into();
        assert_eq!(pairs, expected);
        assert_eq!(parse(b"nothing"), None);
    }
}
