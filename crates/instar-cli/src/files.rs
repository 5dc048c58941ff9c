//! The other crates' types that the output code and the launcher work with.

pub use instar_op_images::{CHECK, INFO};
pub use instar_sandbox::{
    FailedOpen, FileFacts, FileTable, InputFile, Job, JobError, OpenFailure, Output, Policy, Reads,
    run_job,
};
pub use instar_vmm::operation::{Limits, RESULT_BYTES};
