//! The other crates' types that the output code and the launcher work with.

// For machines, which are x86-64's.
#[cfg(target_arch = "x86_64")]
pub use instar_op_images::BLOCKD;
pub use instar_op_images::{
    AMEND, AMEND_FULL, BENCH, BENCH_WRITER, BITMAP, BOOTSCAN, CHECK, COMMIT, COMPARE, CONVERT,
    CONVERT_INTO, CONVERT_INTO_BITMAPS, CREATE, INFO, MAP, MEASURE, REBASE, REPAIR, RESIZE,
    SNAPSHOT, fuller, keyed,
};
pub use instar_sandbox::{
    Access, Base, Described, Encryption, FailedOpen, FileFacts, FileOptions, FileTable, Growth,
    ImageOptions, InputFile, Job, JobError, Layout, OpenFailure, Output, Part, Policy, Reads,
    Repair, path_of_backing, run_job,
};
pub use instar_shared::secret::SecretRole;
pub use instar_vmm::operation::{Limits, RESULT_BYTES, Secret};
