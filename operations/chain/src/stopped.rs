//! A planner that did not do its work, in terms of the operation's outcome.

use core::fmt::Display;
use instar_guest_ops::Context;
use instar_shared::op::Outcome;
use instar_shared::record::FailureKind;

/// Why a planner stopped.
pub enum Stopped<'e> {
    /// The user, or the host on its behalf, wanted the end.
    Cancelled,
    /// It needs more memory than it was given.
    OutOfMemory,
    /// Anything else: the sentence that stands after the program's name.
    Failed(&'e dyn Display),
}

/// The outcome of an operation whose `work` has stopped; its failure record has been sent.
pub fn stopped(ctx: &mut Context, work: &str, why: &Stopped<'_>) -> Outcome {
    let records = ctx.records();
    match why {
        Stopped::Cancelled => return Outcome::Cancelled,
        Stopped::OutOfMemory => {
            let text =
                format_args!("The {work} needs more memory than it was given; raise --memory");
            records.failure(FailureKind::Memory, 0, text);
        }
        Stopped::Failed(sentence) => {
            records.failure(FailureKind::Operation, 0, format_args!("{sentence}"));
        }
    }
    Outcome::Failed
}
