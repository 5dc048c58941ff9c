//! A kernel that the `bootscan` operation has found on a disk: ranges of its file are copied to where the plan says.

use super::{COMMAND_LINE_MAX, Kernel, Start};
use crate::boot_plan::BootPlan;
use crate::machine::error::MachineError;
use crate::memory::GuestSlot;
use instar_shared::bootscan::KernelFormat;
use linux_loader::loader::bootparam::setup_header;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Copies the segments of `kernel`; what lies past a segment's bytes in its memory is zero, as memory was never written.
///
/// # Errors
/// [`MachineError`]: the file ends early, or the machine's memory does.
pub fn load(
    plan: &BootPlan,
    kernel: &mut File,
    memory: &GuestSlot,
) -> Result<Kernel, MachineError> {
    let mut end = 0;
    let low = memory.regions().first().map_or(0, |region| region.len);
    for segment in &plan.segments {
        let segment_end = segment.gpa.saturating_add(segment.mem_len);
        if segment_end > low {
            return Err(MachineError::Load {
                what: "kernel",
                reason: format!("it needs memory up to {segment_end:#x}"),
            });
        }
        let failed = |source| MachineError::Read {
            what: "kernel",
            source,
        };
        let len = usize::try_from(segment.file_len);
        let len = len.map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))?;
        kernel
            .seek(SeekFrom::Start(segment.file_offset))
            .map_err(failed)?;
        memory
            .all()
            .read_exact_volatile_from(GuestAddress(segment.gpa), kernel, len)
            .map_err(|e| failed(std::io::Error::other(e)))?;
        end = segment_end.max(end);
    }
    let start = match plan.format {
        KernelFormat::Pvh => Start::Pvh(plan.entry_gpa),
        KernelFormat::BzImage => Start::Long(plan.entry_gpa, Some(header(&plan.setup_header))),
    };
    Ok(Kernel {
        start,
        end,
        initrd_end: plan.initrd_max.saturating_add(1),
        command_line: COMMAND_LINE_MAX,
    })
}

/// The setup header, as far as this machine's kernels are told about it: what is missing is zero.
fn header(bytes: &[u8]) -> setup_header {
    let mut header = setup_header::default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(bytes) {
        *to = *from;
    }
    header
}
