//! Guest-physical addresses and ports of an x86-64 machine.
//!
//! Memory lies below [`HOLE_START`] and, what does not fit, from [`HIGH_MEMORY_START`] on. The hole has everything that
//! is not memory.

/// First address that is not low memory: 3 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on above the hole: 4 GiB.
pub const HIGH_MEMORY_START: u64 = 0x1_0000_0000;

/// ECAM of PCI segment 0, bus 0 to 255: 1 MiB for each bus. PCI Express 5.0 §7.2.2.
pub const ECAM_START: u64 = 0xe000_0000;
/// Buses that the ECAM has: one.
pub const ECAM_BUSES: u8 = 1;
/// Length of the ECAM in bytes.
pub const ECAM_SIZE: u64 = (ECAM_BUSES as u64) << 20;

/// 32-bit window for PCI base address registers.
pub const PCI_WINDOW_START: u64 = 0xe800_0000;
/// Its length in bytes.
pub const PCI_WINDOW_SIZE: u64 = 0x1000_0000;

/// First virtio-mmio device, the others follow. VirtIO 1.3 §4.2.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Length of each in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;

/// Registers of the I/O APIC.
pub const IO_APIC_START: u64 = 0xfec0_0000;
/// Registers of the local APICs.
pub const LOCAL_APIC_START: u64 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors (`KVM_SET_TSS_ADDR`).
pub const TSS_START: u64 = 0xfffb_d000;
/// One page that KVM needs on Intel processors (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;

/// ACPI's generic event device and its sleep and reset registers.
pub const ACPI_EVENTS_START: u64 = 0xfed0_0000;
/// Length in bytes.
pub const ACPI_EVENTS_SIZE: u64 = 0x1000;

/// Offset of the generic event device's register: what has happened, read once.
pub const ACPI_EVENTS_STATUS: u64 = 0x0;
/// Offset of the sleep control register. ACPI 6.5 §4.8.3.7.
pub const ACPI_SLEEP_CONTROL: u64 = 0x10;
/// Offset of the sleep status register.
pub const ACPI_SLEEP_STATUS: u64 = 0x11;
/// Offset of the reset register. ACPI 6.5 §4.8.3.6.
pub const ACPI_RESET: u64 = 0x12;
/// What is written there to reset.
pub const ACPI_RESET_VALUE: u8 = 1;

/// Descriptor table for the first instructions of a kernel.
pub const BOOT_GDT: u64 = 0x500;
/// Page tables for the first instructions of a kernel that starts in 64-bit mode.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Start information for a kernel with a PVH entry.
pub const PVH_START_INFO: u64 = 0x6000;
/// Boot parameters ("zero page") for a kernel without.
pub const ZERO_PAGE: u64 = 0x7000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Most bytes of it, with the zero at its end.
pub const COMMAND_LINE_SIZE: u64 = 0x1_0000;
/// Where memory that a kernel takes for its own below 1 MiB ends.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, the root pointer first: a kernel that was told nothing looks for it from here on.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Most bytes of them.
pub const ACPI_TABLES_SIZE: u64 = 0x1_0000;
/// SMBIOS tables, the entry point first: where kernels look for it. SMBIOS 3.6 §5.2.2.
pub const SMBIOS_TABLES: u64 = 0xf_0000;
/// Where a processor starts after a reset, as far as software knows that wants one: `power::RESET_CODE`.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where kernels are loaded, and memory goes on above the firmware's area.
pub const KERNEL_START: u64 = 0x10_0000;

/// First port of the serial line, COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt of the serial line.
pub const SERIAL_IRQ: u32 = 4;
/// First port of the CMOS clock: index and data.
pub const RTC_PORT: u16 = 0x70;
/// Ports of PCI configuration mechanism 1: address and data. PCI 3.0 §3.2.2.3.2.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Keyboard controller, which resets the machine for kernels that know no other way.
pub const KEYBOARD_CONTROLLER_PORT: u16 = 0x60;

/// What a guest writes here, a byte, gets a place in the report of its boot: init says that it has begun.
pub const MARK_PORT: u16 = 0x3f0;

/// Interrupt of the generic event device.
pub const ACPI_EVENTS_IRQ: u32 = 9;
/// First interrupt for virtio-mmio devices.
pub const VIRTIO_MMIO_FIRST_IRQ: u32 = 5;
/// Interrupt of the CMOS clock, which it never uses.
pub const RTC_IRQ: u32 = 8;
/// Most virtio-mmio devices: each has a pin of the I/O APIC for itself.
pub const MAX_VIRTIO_MMIO: usize = 17;
/// Pins of the I/O APIC; interrupts (GSI) from here on are messages.
pub const IO_APIC_PINS: u32 = 24;

/// Most vCPUs.
pub const MAX_CPUS: u8 = 32;

/// Interrupt of virtio-mmio device `index`; `None` if there is no pin left for it.
#[must_use]
pub fn virtio_mmio_irq(index: usize) -> Option<u32> {
    (VIRTIO_MMIO_FIRST_IRQ..IO_APIC_PINS)
        .filter(|pin| ![RTC_IRQ, ACPI_EVENTS_IRQ].contains(pin))
        .nth(index)
}

/// First register of virtio-mmio device `index`.
#[must_use]
pub fn virtio_mmio_start(index: usize) -> Option<u64> {
    let offset = u64::try_from(index).ok()?.checked_mul(VIRTIO_MMIO_SIZE)?;
    VIRTIO_MMIO_START.checked_add(offset)
}
