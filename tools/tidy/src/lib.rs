//! What the tests of the sources share: the files, the crates, and a reader
//! of Rust text that knows files as rustfmt leaves them.
//!
//! * `tests/edges.rs`: which crate may see which.
//! * `tests/sources.rs`: lengths, words, settings that every crate has.
//! * `tests/papers.rs`: links and paths in Markdown files.

pub mod crates;
pub mod files;
pub mod rust_text;
