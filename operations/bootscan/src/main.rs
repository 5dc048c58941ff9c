//! The bootscan operation: what a disk boots, and the parts of its kernel.
#![no_std]
#![no_main]

instar_guest_ops::entry!(op_bootscan::run);
