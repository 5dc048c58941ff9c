//! The `instar` binary against `qemu-img` 10.0.x, on real images.

mod bad_input;
mod bench;
mod block_device;
mod check_damaged;
mod check_healthy;
mod closed_streams;
mod cold_cache;
mod compare;
mod concurrent;
mod content_chains;
mod convert;
mod convert_faults;
mod convert_texts;
mod create;
mod edit_chains;
mod edit_devices;
mod edit_faults;
mod edit_progress;
mod edit_texts;
mod files;
mod harness;
mod header_damage;
mod info_features;
mod info_matrix;
mod jail;
mod kvm_errors;
mod limits;
mod map;
mod map_chains;
mod matrix;
mod measure;
mod path_policy;
mod round_trips;
mod signals;
mod streams;
mod terminal;
mod usage;

/// What every test returns: the first failures, in words.
type Outcome = anyhow::Result<()>;
