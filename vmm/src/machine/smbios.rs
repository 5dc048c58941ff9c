//! SMBIOS tables: what programs in the guest show as the computer's maker and name. SMBIOS 3.6 §5.2.2, §6, §7.

use super::layout;

const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const END: u8 = 127;
/// Length of the entry point; tables follow at the next multiple of 16.
const ENTRY_POINT_BYTES: u8 = 24;
const TABLES_OFFSET: u64 = 32;

/// BIOS characteristics not supported, and in the extension that this is a virtual machine. §7.1.1, §7.1.2.2.
const NO_CHARACTERISTICS: u64 = 1 << 3;
const VIRTUAL_MACHINE: u8 = 1 << 4;
const WAKE_UP_POWER_SWITCH: u8 = 6;

/// All tables, as they lie from [`layout::SMBIOS_TABLES`] on, the entry point first.
pub fn tables() -> Vec<u8> {
    let mut tables = Vec::new();
    bios(&mut tables);
    system(&mut tables);
    structure(END, 2, &[], &[], &mut tables);
    let mut bytes = entry_point(tables.len());
    let offset = usize::try_from(TABLES_OFFSET).unwrap_or(0);
    bytes.resize(offset, 0);
    bytes.extend(tables);
    bytes
}

fn bios(tables: &mut Vec<u8>) {
    // Vendor, version, no segment, release date, size, characteristics, two extensions, releases of BIOS and controller.
    let mut fields = vec![1, 2, 0, 0, 3, 0];
    fields.extend(NO_CHARACTERISTICS.to_le_bytes());
    fields.extend([0, VIRTUAL_MACHINE, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    let texts = ["instar", env!("CARGO_PKG_VERSION"), "01/01/2026"];
    structure(BIOS, 0, &fields, &texts, tables);
}

fn system(tables: &mut Vec<u8>) {
    // Manufacturer, product, version, no serial number; no UUID; wake-up type, SKU, family.
    let mut fields = vec![1, 2, 3, 0];
    fields.extend([0; 16]);
    fields.extend([WAKE_UP_POWER_SWITCH, 0, 0]);
    let texts = [
        "instar",
        "instar virtual machine",
        env!("CARGO_PKG_VERSION"),
    ];
    structure(SYSTEM, 1, &fields, &texts, tables);
}

/// Appends a structure: header, fields, texts, two zeros at the end. §6.1.2, §6.1.3.
fn structure(kind: u8, handle: u16, fields: &[u8], texts: &[&str], tables: &mut Vec<u8>) {
    let len = u8::try_from(fields.len().saturating_add(4)).unwrap_or(u8::MAX);
    tables.extend([kind, len]);
    tables.extend(handle.to_le_bytes());
    tables.extend(fields);
    for text in texts {
        tables.extend(text.as_bytes());
        tables.push(0);
    }
    if texts.is_empty() {
        tables.push(0);
    }
    tables.push(0);
}

/// The 64-bit entry point to `len` bytes of tables. §5.2.2.
fn entry_point(len: usize) -> Vec<u8> {
    let mut entry = Vec::from(*b"_SM3_");
    // Checksum, length, version 3.6.0, revision of the entry point, reserved.
    entry.extend([0, ENTRY_POINT_BYTES, 3, 6, 0, 1, 0]);
    entry.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    entry.extend((layout::SMBIOS_TABLES + TABLES_OFFSET).to_le_bytes());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_leads_to_structures_that_end() {
        let bytes = tables();
        let entry = &bytes[..usize::from(ENTRY_POINT_BYTES)];
        assert!(entry.starts_with(b"_SM3_"));
        assert_eq!(
            entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let address = u64::from_le_bytes(entry[16..24].try_into().unwrap());
        let mut rest = &bytes[usize::try_from(address - layout::SMBIOS_TABLES).unwrap()..];
        assert_eq!(rest.len(), len);
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let (kind, len) = (rest[0], usize::from(rest[1]));
            kinds.push((kind, len));
            let texts = &rest[len..];
            let end = texts.windows(2).position(|pair| pair == [0, 0]).unwrap();
            rest = &texts[end + 2..];
        }
        // Lengths as the specification has them for these versions of the structures.
        assert_eq!(kinds, [(BIOS, 0x1a), (SYSTEM, 0x1b), (END, 4)]);
    }
}
