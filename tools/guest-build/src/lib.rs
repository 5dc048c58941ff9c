//! Builds guest programs with a cargo of their own.
//!
//! Operations are `no_std` programs for another target than the host program
//! that carries them, so a build script starts a second cargo for them:
//! [`GuestBuild`]. The result depends on the sources, `Cargo.lock` and the
//! toolchain, and on nothing else: the environment is reduced to a list
//! ([`environment`]), flags and profile are fixed ([`flags`]), and no absolute
//! path enters a binary. `make check-binary-sizes` proves it byte by byte.
//!
//! A build script calls [`embed`] and includes the copies from `OUT_DIR`.

mod arch;
pub mod environment;
pub mod flags;
mod guest_build;
pub mod operations;
mod script;

pub use arch::GuestArch;
pub use guest_build::{GuestBuild, GuestBuildError, Verb};
pub use script::{OPERATION_INPUTS, embed, workspace_root};
