//! The part of guest memory that nobody may change while the guest runs.

use crate::TEST_GUEST;
use anyhow::{Result, ensure};
use instar_shared::layout::{BOOT, CONFIG, DEVICE_TABLE, IMAGE, PAGE_SIZE, Region, SYSTEM};
use instar_vmm::memory::GuestSlot;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, elf};
use std::sync::Arc;

/// The pages that the processor pushes a trap frame on, of the first vCPU and the second, by their number
/// in the system region.
const TRAP_STACKS: [u64; 2] = [5, 8];

/// What neither guest nor devices may change: all below the devices' window that is not the guest's
/// to write. The trap page's stack is the processor's.
pub struct Frozen {
    memory: Arc<GuestSlot>,
    regions: Vec<(Region, Vec<u8>)>,
}

impl Frozen {
    /// Copies it.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn of(memory: &Arc<GuestSlot>) -> Result<Self> {
        let mut regions = read_only_segments()?;
        regions.extend([SYSTEM, BOOT, CONFIG, DEVICE_TABLE]);
        let copies = regions
            .into_iter()
            .map(|region| Ok((region, copy(memory, region)?)));
        Ok(Self {
            memory: Arc::clone(memory),
            regions: copies.collect::<Result<_>>()?,
        })
    }

    /// Fails if a word of it has changed. After a crash the processor has pushed a trap frame.
    ///
    /// # Errors
    /// The first word.
    pub fn compare(&self, crashed: bool) -> Result<()> {
        for (region, before) in &self.regions {
            let after = copy(&self.memory, *region)?;
            if *before == after {
                continue;
            }
            for (index, (old, new)) in before.chunks(8).zip(after.chunks(8)).enumerate() {
                if old == new {
                    continue;
                }
                let at = region.start + 8 * index as u64;
                ensure!(
                    by_processor(crashed, at, old, new),
                    "the word at {at:#x} was {old:02x?} and is {new:02x?}"
                );
            }
        }
        Ok(())
    }
}

/// Whether the processor itself may have made this change: the accessed and dirty bits of a page
/// table entry, or the frame of a trap.
fn by_processor(crashed: bool, at: u64, old: &[u8], new: &[u8]) -> bool {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let in_system = at >= SYSTEM.start && at < SYSTEM.end();
    let page = at.wrapping_sub(SYSTEM.start) / PAGE_SIZE;
    let trap_stack = TRAP_STACKS.contains(&page);
    (in_system && (word(old) ^ word(new)) & !0x60 == 0) || (crashed && trap_stack)
}

fn copy(memory: &GuestSlot, region: Region) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(region.size)?];
    memory.read(region.start, &mut bytes)?;
    Ok(bytes)
}

/// Text and constants of the guest.
fn read_only_segments() -> Result<Vec<Region>> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(TEST_GUEST)?;
    let endian = file.endian();
    let regions: Vec<Region> = file
        .elf_program_headers()
        .iter()
        .filter(|h| h.p_type(endian) == elf::PT_LOAD && h.p_flags(endian).0 & elf::PF_W.0 == 0)
        .map(|h| Region {
            start: h.p_vaddr(endian),
            size: h.p_memsz(endian),
        })
        .collect();
    ensure!(
        regions.len() >= 2 && regions.iter().all(|r| r.start >= IMAGE.start),
        "the guest has no text or no constants: {regions:?}"
    );
    Ok(regions)
}
