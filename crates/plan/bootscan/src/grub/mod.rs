//! GRUB's scripts: the part of the language that configurations of distributions use. *GNU GRUB Manual*, "Shell-like
//! scripting", "Commands".
//!
//! - `parse`: the text becomes statements; `words`: words and variables in them.
//! - `run`: statements; `commands`: what they call; `test`: conditions.
//! - `menu`: the entries, and the default one; `env`: the environment block.
//!
//! Left out: arithmetic, regular expressions, other disks than the first, LVM, RAID and encrypted volumes in GRUB's
//! own names. A script that does more than [`MAX_STEPS`] commands ends there.

mod commands;
mod env;
mod menu;
mod parse;
mod run;
mod test;
mod words;

pub use menu::read_menu;

/// Most commands that a script may run.
pub const MAX_STEPS: usize = 100_000;
/// Deepest nesting of blocks, calls and files.
const MAX_DEPTH: usize = 24;
/// Longest value of a variable and longest command, in bytes.
const MAX_TEXT: usize = 64 << 10;
/// Most bytes in all variables.
const MAX_VARIABLES: usize = 1 << 20;

/// Why a script ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// A quote, block or condition has no end, or stands where none may.
    #[error("line {0} is no script of GRUB")]
    Syntax(u32),
    /// Blocks, calls or files are nested too deep.
    #[error("it is nested too deep")]
    TooDeep,
    /// It does not end.
    #[error("it runs too many commands")]
    TooManySteps,
    /// Its variables grow without end.
    #[error("its variables are too large")]
    TooLarge,
}
