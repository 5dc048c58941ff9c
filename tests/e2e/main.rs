//! The `instar` binary against `qemu-img` 10.0.x, on real images.

mod bad_input;
mod block_device;
mod check_damaged;
mod check_healthy;
mod files;
mod harness;
mod header_damage;
mod info_features;
mod info_matrix;
mod path_policy;
mod streams;
mod usage;

/// What every test returns: the first failures, in words.
type Outcome = anyhow::Result<()>;
