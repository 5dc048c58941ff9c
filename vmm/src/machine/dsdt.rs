//! The differentiated system description table: devices that cannot be found by looking, in ACPI's machine language.
//! ACPI 6.5 §19, §20.

use super::acpi::{Platform, SLEEP_TYPE_OFF};
use super::layout;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
};

/// What a notification of a power button says when it was pressed. ACPI 6.5 §5.6.6.
const BUTTON_PRESSED: u8 = 0x80;

/// The code of the table.
pub fn code(platform: &Platform) -> Vec<u8> {
    let mut code = Vec::new();
    let sleep = Package::new(vec![&SLEEP_TYPE_OFF]);
    Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut code);
    let mut system = Vec::new();
    serial_line(&mut system);
    clock(&mut system);
    power_button(&mut system);
    if platform.pci {
        pci_bus(&mut system);
    }
    for (index, (start, irq)) in platform.virtio_mmio.iter().enumerate() {
        virtio_mmio(index, *start, *irq, &mut system);
    }
    code.extend(Scope::raw("_SB_".into(), system));
    code
}

/// COM1.
fn serial_line(code: &mut Vec<u8>) {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device("COM1", &EISAName::new("PNP0501"), 1, &[&resources], code);
}

/// The CMOS clock.
fn clock(code: &mut Vec<u8>) {
    let ports = IO::new(layout::RTC_PORT, layout::RTC_PORT, 0, 2);
    let interrupt = Interrupt::new(true, true, false, false, layout::RTC_IRQ);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device("RTC_", &EISAName::new("PNP0B00"), 0, &[&resources], code);
}

/// The power button, and the generic event device that says when it was pressed. ACPI 6.5 §5.6.9.
fn power_button(code: &mut Vec<u8>) {
    let id = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("PWRB".into(), vec![&id]).to_aml_bytes(code);

    let interrupt = Interrupt::new(true, true, false, false, layout::ACPI_EVENTS_IRQ);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let (start, len) = (register(layout::ACPI_EVENTS_STATUS), 4_u8);
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemMemory, &start, &len);
    let field = Field::new(
        "EREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"ESTS", 32)],
    );
    // Reading takes the events back; there is one.
    let (events, status) = (Local(0), Path::new("ESTS"));
    let read = Store::new(&events, &status);
    let button = Path::new("PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let pressed = If::new(&events, vec![&notify]);
    let handler = Method::new("_EVT".into(), 1, true, vec![&read, &pressed]);
    let id = "ACPI0013";
    device(
        "GED_",
        &id,
        0,
        &[&resources, &region, &field, &handler],
        code,
    );
}

fn register(offset: u64) -> u32 {
    small(layout::ACPI_EVENTS_START.saturating_add(offset))
}

/// The PCI bus, and the addresses that its configuration space has. PCI Firmware 3.2 §4.1.2.
fn pci_bus(code: &mut Vec<u8>) {
    let last = |start: u64, len: u64| small(start.saturating_add(len).saturating_sub(1));
    let buses =
        AddressSpace::new_bus_number(0_u16, u16::from(layout::ECAM_BUSES.saturating_sub(1)));
    let ports = IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, 8);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        small(layout::PCI_WINDOW_START),
        last(layout::PCI_WINDOW_START, layout::PCI_WINDOW_SIZE),
        None,
    );
    let resources = ResourceTemplate::new(vec![&buses, &ports, &window]);
    let compatible = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let (segment, bus) = (
        Name::new("_SEG".into(), &0_u8),
        Name::new("_BBN".into(), &0_u8),
    );
    let parts: [&dyn Aml; 4] = [&resources, &compatible, &segment, &bus];
    device("PCI0", &EISAName::new("PNP0A08"), 0, &parts, code);

    let space = Memory32Fixed::new(true, small(layout::ECAM_START), small(layout::ECAM_SIZE));
    let resources = ResourceTemplate::new(vec![&space]);
    device("ECAM", &EISAName::new("PNP0C02"), 0, &[&resources], code);
}

/// A virtio-mmio device.
fn virtio_mmio(index: usize, start: u64, irq: u32, code: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, small(start), small(layout::VIRTIO_MMIO_SIZE));
    let interrupt = Interrupt::new(true, true, false, false, irq);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let coherent = Name::new("_CCA".into(), &1_u8);
    let name = format!("V{index:03X}");
    let number = u8::try_from(index).unwrap_or(u8::MAX);
    device(&name, &"LNRO0005", number, &[&resources, &coherent], code);
}

/// Appends a device with its identifier and number. The first of `parts` is its resources, the others stand as they are.
fn device(name: &str, id: &dyn Aml, number: u8, parts: &[&dyn Aml], code: &mut Vec<u8>) {
    let (id, number) = (
        Name::new("_HID".into(), id),
        Name::new("_UID".into(), &number),
    );
    let mut children: Vec<&dyn Aml> = vec![&id, &number];
    let resources = parts
        .first()
        .map(|resources| Name::new("_CRS".into(), *resources));
    children.extend(resources.iter().map(|resources| -> &dyn Aml { resources }));
    children.extend(parts.iter().skip(1));
    Device::new(name.into(), children).to_aml_bytes(code);
}

/// An address below 4 GiB, as all in `layout` are that stand in a table.
fn small(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
