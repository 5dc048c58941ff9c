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
/// Pins of the I/O APIC; interrupts (GSI) from here on are messages.
pub const IO_APIC_PINS: u32 = 24;

/// Most vCPUs.
pub const MAX_CPUS: u8 = 32;
