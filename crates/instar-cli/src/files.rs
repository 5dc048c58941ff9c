//! The other crates' types that the output code and the launcher work with.

pub use instar_op_images::{
    AMEND, BENCH, BENCH_WRITER, BITMAP, CHECK, COMMIT, COMPARE, CONVERT, CONVERT_INTO,
    CONVERT_INTO_BITMAPS, CREATE, INFO, MAP, MEASURE, REBASE, REPAIR, RESIZE, SNAPSHOT, keyed,
};
pub use instar_sandbox::{
    Access, Base, Described, FailedOpen, FileFacts, FileTable, Growth, InputFile, Job, JobError,
    Layout, OpenFailure, Output, Policy, Reads, Repair, path_of_backing, run_job,
};
pub use instar_shared::secret::SecretRole;
pub use instar_vmm::operation::{Limits, RESULT_BYTES, Secret};
