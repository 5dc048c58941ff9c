//! The environment of the inner cargo.
//!
//! It starts empty. Only variables that say where programs, sources and the
//! network are pass; everything that could change the output (`RUSTFLAGS`,
//! `CARGO_PROFILE_*`, wrappers, what the outer cargo set) stays outside.

use std::ffi::OsString;

/// Variables that pass by name.
const PASSED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "TERM",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_AUTO_INSTALL",
    // The compiler that the outer cargo uses.
    "RUSTC",
    // The outer cargo's job server, so that both together keep to its limit.
    "CARGO_MAKEFLAGS",
    // Certificates and proxies, for sources not yet fetched.
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// Variables that pass by the front of their name: where crates come from.
const PASSED_PREFIXES: &[&str] = &[
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

/// Variables that are set to empty, which also overrides configuration files.
pub const EMPTIED: &[&str] = &["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];

/// Whether a variable passes to the inner cargo.
#[must_use]
pub fn passes(name: &str) -> bool {
    PASSED.contains(&name)
        || PASSED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// The variables of this process that pass.
pub(crate) fn passed() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(passes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_nothing_that_changes_a_binary() {
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER",
            "CARGO_PROFILE_OPERATION_LTO",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_INCREMENTAL",
            "CARGO_MANIFEST_DIR",
            "RUSTC_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "MAKEFLAGS",
            "LD_LIBRARY_PATH",
            "SOURCE_DATE_EPOCH",
        ] {
            assert!(!passes(name), "{name}");
        }
        assert!(passes("CARGO_HOME"));
        assert!(passes("CARGO_NET_OFFLINE"));
    }
}
