//! ACPI tables of a machine without the hardware of ACPI's first days (`HW_REDUCED_ACPI`). ACPI 6.5 §5.2, §4.1.
//!
//! They say how many processors there are, where the interrupt controllers, the PCI bus, the serial line, the clock and
//! the virtio-mmio devices are, and how the machine is reset and powered off. The power button is an event of the
//! generic event device (ACPI0013).

use super::dsdt;
use super::layout;
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"INSTAR";
const TABLE: [u8; 8] = *b"INSTARVM";
const REVISION: u32 = 1;

/// Sleep type that powers off (`_S5`).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Bit of the event register: the power button.
pub const POWER_BUTTON: u32 = 1;

// IA-PC boot architecture flags. ACPI 6.5 §5.2.9.3.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;

/// What the tables tell of.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// Processors; their local APICs are numbered from 0.
    pub cpus: u8,
    /// There is a PCI bus.
    pub pci: bool,
    /// virtio-mmio devices: first register and interrupt.
    pub virtio_mmio: Vec<(u64, u32)>,
}

/// All tables, as they lie from [`layout::ACPI_TABLES`] on, the root pointer first.
pub fn tables(platform: &Platform) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = place(&mut bytes, &dsdt(platform));
    let mut others = vec![
        place(&mut bytes, &fadt(dsdt)),
        place(&mut bytes, &madt(platform.cpus)),
    ];
    if platform.pci {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        let last_bus = layout::ECAM_BUSES.saturating_sub(1);
        mcfg.add_ecam(layout::ECAM_START, 0, 0, last_bus);
        others.push(place(&mut bytes, &mcfg));
    }
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for address in others {
        xsdt.add_entry(address);
    }
    let xsdt = place(&mut bytes, &xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    for (to, from) in bytes.iter_mut().zip(root) {
        *to = from;
    }
    bytes
}

/// Appends `table` at the next multiple of 16; its address.
fn place(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let address = layout::ACPI_TABLES.saturating_add(bytes.len() as u64);
    table.to_aml_bytes(bytes);
    address
}

/// A register of one byte at `offset` of the ACPI registers.
const fn register(offset: u64) -> u64 {
    layout::ACPI_EVENTS_START + offset
}

fn fadt(dsdt: u64) -> impl Aml {
    let byte = |offset| {
        let (space, size) = (GasSpace::SystemMemory, AccessSize::ByteAccess);
        GAS::new(space, 8, 0, size, register(offset))
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | NO_ASPM).into();
    fadt.reset_reg = byte(layout::ACPI_RESET);
    fadt.reset_value = layout::ACPI_RESET_VALUE;
    fadt.sleep_control_reg = byte(layout::ACPI_SLEEP_CONTROL);
    fadt.sleep_status_reg = byte(layout::ACPI_SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let address = |start: u64| u32::try_from(start).unwrap_or(u32::MAX);
    let local = LocalInterruptController::Address(address(layout::LOCAL_APIC_START));
    let mut madt = MADT::new(OEM, TABLE, REVISION, local);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // Its identifier is one that no local APIC has.
    madt.add_structure(IoApic::new(cpus, address(layout::IO_APIC_START), 0));
    madt
}

/// The differentiated system description table: what cannot be found by looking.
fn dsdt(platform: &Platform) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&dsdt::code(platform));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn platform() -> Platform {
        let devices = (0..layout::MAX_VIRTIO_MMIO).map(|index| {
            let irq = layout::virtio_mmio_irq(index).unwrap();
            (layout::virtio_mmio_start(index).unwrap(), irq)
        });
        Platform {
            cpus: layout::MAX_CPUS,
            pci: true,
            virtio_mmio: devices.collect(),
        }
    }

    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let table = &bytes[usize::try_from(address - layout::ACPI_TABLES).unwrap()..];
        let len = u32::from_le_bytes(table[4..8].try_into().unwrap());
        &table[..len as usize]
    }

    /// By signature: what the root table names.
    fn all(bytes: &[u8]) -> Vec<(String, &[u8])> {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let xsdt = table(bytes, word(&bytes[24..]));
        let mut tables: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|at| table(bytes, word(at)))
            .collect();
        let fadt = tables[0];
        tables.push(table(bytes, word(&fadt[140..])));
        tables.push(xsdt);
        let name = |table: &[u8]| String::from_utf8_lossy(&table[..4]).into_owned();
        tables
            .into_iter()
            .map(|table| (name(table), table))
            .collect()
    }

    #[test]
    fn all_tables_are_found_and_sum_up_to_zero() {
        let bytes = tables(&platform());
        assert!(bytes.len() as u64 <= layout::ACPI_TABLES_SIZE);
        assert!(bytes.starts_with(b"RSD PTR "));
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let tables = all(&bytes);
        let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
        for (name, table) in &tables {
            assert_eq!(sum(table), 0, "{name}");
        }
        let without_pci = Platform {
            pci: false,
            ..platform()
        };
        assert_eq!(all(&super::tables(&without_pci)).len(), 4);
    }

    #[test]
    fn acpica_reads_every_table() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = tables(&platform());
        let mut sources = String::new();
        for (name, table) in all(&bytes) {
            let file = folder.path().join(format!("{name}.dat"));
            std::fs::write(&file, table).unwrap();
            let run = Command::new("iasl").arg("-d").arg(&file).output();
            let run = run.expect("iasl of Debian's acpica-tools");
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(run.status.success(), "{name}: {said}");
            for bad in ["Error", "Warning", "Invalid", "Incorrect"] {
                assert!(!said.contains(bad), "{name}: {said}");
            }
            sources += &std::fs::read_to_string(file.with_extension("dsl")).unwrap();
        }
        // What the disassembler found, compiled again, is no worse.
        let source = folder.path().join("DSDT.dsl");
        let run = Command::new("iasl").arg(&source).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(said.contains(" 0 Errors, 0 Warnings"), "{said}");
        for part in [
            "PNP0A08", "PNP0501", "PNP0B00", "PNP0C0C", "ACPI0013", "LNRO0005",
        ] {
            assert!(sources.contains(part), "{part}");
        }
    }
}
