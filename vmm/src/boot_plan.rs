//! How the kernel of a disk is loaded, as the `bootscan` operation says: validated, field by field.
//!
//! The kernel and its initial RAM disk lie in files that the operation has filled. The plan says which ranges of the
//! kernel's file go where; nobody on the host looks at their bytes.

use instar_shared::bootscan::{
    BootPlan as RawPlan, BootSegment, INITRD_ALIGN, KernelFormat, MAX_INITRD, MAX_KERNEL,
};

/// Kernels lie above the first megabyte, and below this.
const LOWEST_GPA: u64 = 1 << 20;
const HIGHEST_GPA: u64 = 1 << 32;
/// Most memory that a kernel takes in all, in bytes.
const MAX_MEMORY: u64 = 2 << 30;
/// Shortest setup header of a kernel with a 64-bit entry point: up to `init_size`, at 0x260.
const MIN_SETUP_HEADER: usize = 0x264 - 0x1f1;

/// A part of the kernel's file that goes to guest memory; what it has more there is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// First byte in the kernel's file.
    pub file_offset: u64,
    /// Bytes from the file.
    pub file_len: u64,
    /// Bytes in memory, at least as many.
    pub mem_len: u64,
}

/// How a kernel is loaded.
///
/// Segments lie in the file and in memory, in the order of their addresses, and do not overlap. The entry point is in
/// one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// What the kernel's file is.
    pub format: KernelFormat,
    /// The segments, at least one.
    pub segments: Vec<Segment>,
    /// Guest-physical address of the entry point: the 64-bit one of a bzImage, the 32-bit one of PVH.
    pub entry_gpa: u64,
    /// Length of the kernel's file in bytes.
    pub kernel_len: u64,
    /// Length of the initial RAM disk in bytes, 0 for none.
    pub initrd_len: u64,
    /// Highest address that the initial RAM disk may reach to.
    pub initrd_max: u64,
    /// Of a bzImage: its setup header, from offset 0x1f1 on; else empty.
    pub setup_header: Vec<u8>,
}

/// What is wrong with a plan: the operation is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no such format.
    #[error("a kernel's format is {0}")]
    Format(u32),
    /// A count or a length is too large, or too small.
    #[error("a length of the kernel's parts cannot be")]
    Length,
    /// A segment does not lie in the file.
    #[error("segment {0} does not lie in the kernel's file")]
    OutsideFile(usize),
    /// A segment does not lie where kernels may, or overlaps the one before.
    #[error("segment {0} does not lie where a kernel may")]
    OutsideMemory(usize),
    /// The entry point is in no segment.
    #[error("the entry point is {0:#x}, in no segment")]
    Entry(u64),
    /// A reserved field or an unused segment is not zero.
    #[error("reserved bytes are not zero")]
    Reserved,
}

impl BootPlan {
    /// Takes over what the operation says.
    ///
    /// # Errors
    /// It cannot be.
    pub fn read(raw: &RawPlan) -> Result<Self, PlanError> {
        let format = KernelFormat::try_from(raw.format.get()).map_err(PlanError::Format)?;
        let (kernel_len, initrd_len) = (raw.kernel_len.get(), raw.initrd_len.get());
        let count = usize::try_from(raw.segments.get()).unwrap_or(usize::MAX);
        let (used, unused) = raw
            .segment
            .split_at_checked(count)
            .ok_or(PlanError::Length)?;
        let header_len = usize::try_from(raw.setup_header_len.get()).unwrap_or(usize::MAX);
        let header = raw.setup_header.split_at_checked(header_len);
        let (setup_header, rest) = header.ok_or(PlanError::Length)?;
        let wanted = match format {
            KernelFormat::BzImage => MIN_SETUP_HEADER..=raw.setup_header.len(),
            KernelFormat::Pvh => 0..=0,
        };
        let longest = MAX_INITRD.saturating_add(INITRD_ALIGN);
        if !wanted.contains(&header_len) || kernel_len > MAX_KERNEL || initrd_len > longest {
            return Err(PlanError::Length);
        }
        let zeros = unused
            .iter()
            .all(|segment| *segment == BootSegment::zeroed());
        if !zeros || rest.iter().any(|byte| *byte != 0) || raw.reserved.get() != 0 {
            return Err(PlanError::Reserved);
        }
        let segments = read_segments(used, kernel_len)?;
        let entry_gpa = raw.entry_gpa.get();
        let within = |s: &Segment| entry_gpa >= s.gpa && entry_gpa - s.gpa < s.file_len;
        if !segments.iter().any(within) {
            return Err(PlanError::Entry(entry_gpa));
        }
        Ok(Self {
            format,
            segments,
            entry_gpa,
            kernel_len,
            initrd_len,
            initrd_max: raw.initrd_max.get(),
            setup_header: setup_header.to_vec(),
        })
    }
}

fn read_segments(raw: &[BootSegment], kernel_len: u64) -> Result<Vec<Segment>, PlanError> {
    let (mut free, mut total) = (LOWEST_GPA, 0_u64);
    let mut segments = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let segment = Segment {
            gpa: raw.gpa.get(),
            file_offset: raw.file_offset.get(),
            file_len: raw.file_len.get(),
            mem_len: raw.mem_len.get(),
        };
        let file_end = segment.file_offset.checked_add(segment.file_len);
        if file_end.is_none_or(|end| end > kernel_len) || segment.mem_len < segment.file_len {
            return Err(PlanError::OutsideFile(index));
        }
        let end = segment.gpa.checked_add(segment.mem_len);
        total = total.saturating_add(segment.mem_len);
        free = match end.filter(|end| *end <= HIGHEST_GPA) {
            Some(end) if segment.gpa >= free && total <= MAX_MEMORY => end,
            _ => return Err(PlanError::OutsideMemory(index)),
        };
        segments.push(segment);
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> RawPlan {
        let mut plan = RawPlan::zeroed();
        plan.format.set(KernelFormat::BzImage.raw());
        plan.segments.set(2);
        plan.entry_gpa.set(0x100_0200);
        plan.kernel_len.set(0x5000);
        plan.initrd_len.set(100);
        plan.setup_header_len.set(123);
        plan.segment[0] = segment(0x100_0000, 0x1000, 0x2000, 0x4000);
        plan.segment[1] = segment(0x100_4000, 0x3000, 0x2000, 0x2000);
        plan
    }

    fn segment(gpa: u64, file_offset: u64, file_len: u64, mem_len: u64) -> BootSegment {
        BootSegment {
            gpa: gpa.into(),
            file_offset: file_offset.into(),
            file_len: file_len.into(),
            mem_len: mem_len.into(),
        }
    }

    #[test]
    fn whole_plan_is_taken_over() {
        let read = BootPlan::read(&plan()).unwrap();
        assert_eq!((read.segments.len(), read.entry_gpa), (2, 0x100_0200));
        assert_eq!(read.setup_header.len(), 123);
    }

    #[test]
    fn each_wrong_field_is_refused() {
        let with = |change: &dyn Fn(&mut RawPlan)| {
            let mut plan = plan();
            change(&mut plan);
            BootPlan::read(&plan).unwrap_err()
        };
        assert_eq!(with(&|p| p.format.set(9)), PlanError::Format(9));
        assert_eq!(with(&|p| p.segments.set(17)), PlanError::Length);
        assert_eq!(with(&|p| p.segments.set(1)), PlanError::Reserved);
        assert_eq!(with(&|p| p.reserved.set(1)), PlanError::Reserved);
        assert_eq!(with(&|p| p.setup_header[200] = 1), PlanError::Reserved);
        assert_eq!(with(&|p| p.setup_header_len.set(257)), PlanError::Length);
        assert_eq!(with(&|p| p.setup_header_len.set(4)), PlanError::Length);
        assert_eq!(with(&|p| p.format.set(2)), PlanError::Length);
        assert_eq!(with(&|p| p.kernel_len.set(1 << 40)), PlanError::Length);
        assert_eq!(with(&|p| p.initrd_len.set(1 << 40)), PlanError::Length);
        assert_eq!(
            with(&|p| p.kernel_len.set(0x4fff)),
            PlanError::OutsideFile(1)
        );
        assert_eq!(
            with(&|p| p.entry_gpa.set(0x100_2000)),
            PlanError::Entry(0x100_2000)
        );
        let bad = |index: usize, segment: BootSegment| with(&|p| p.segment[index] = segment);
        assert_eq!(
            bad(0, segment(u64::MAX, 0, 1, 1)),
            PlanError::OutsideMemory(0)
        );
        assert_eq!(
            bad(0, segment(0x1000, 0, 1, 1)),
            PlanError::OutsideMemory(0)
        );
        assert_eq!(
            bad(1, segment(0x100_3000, 0, 1, 1)),
            PlanError::OutsideMemory(1)
        );
        assert_eq!(
            bad(1, segment(0x100_4000, 0, 1, 1 << 32)),
            PlanError::OutsideMemory(1)
        );
        assert_eq!(
            bad(1, segment(0x100_4000, u64::MAX, 2, 2)),
            PlanError::OutsideFile(1)
        );
        assert_eq!(
            bad(1, segment(0x100_4000, 0, 2, 1)),
            PlanError::OutsideFile(1)
        );
    }
}
