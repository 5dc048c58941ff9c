//! Compiler flags and profile settings of guest programs.

use std::path::{Path, PathBuf};

use crate::GuestArch;

/// Where the linker puts a guest: the start of `instar_shared::layout::IMAGE`.
/// A build dependency sees no other crate; a test of `tools/tidy` compares the two.
pub const IMAGE_BASE: u64 = 0x20_0000;

/// The profile that guests are built with, in the manifest of the workspace.
const PROFILE: &str = "[profile.operation]";

/// What that profile inherits, or cargo's default, for settings that it does
/// not name itself.
const INHERITED: &[&str] = &[
    "split-debuginfo = \"off\"",
    "debug-assertions = false",
    "overflow-checks = false",
    "lto = true",
    "panic = \"abort\"",
    "incremental = false",
    "codegen-units = 1",
    "rpath = false",
];

/// The settings of the guests' profile as values for `--config`, which win over
/// configuration files of the user. `manifest` is the text of the workspace's
/// `Cargo.toml`; what it says of the profile comes last and counts.
pub(crate) fn profile_pins(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != PROFILE).skip(1);
    let named = lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains('=') && !line.starts_with("inherits"));
    let all = INHERITED.iter().copied().chain(named);
    all.map(|line| format!("profile.operation.{}", line.trim()))
        .collect()
}

/// Flags that every guest of a machine is compiled with.
///
/// The program is static, at a fixed address, without start files and C
/// library; the host maps its segments as their headers say.
fn fixed(arch: GuestArch) -> Vec<String> {
    let mut flags: Vec<String> = [
        "--cfg=instar_guest",
        "-Clinker=rust-lld",
        "-Crelocation-model=static",
        "-Cforce-unwind-tables=no",
        "-Crelro-level=off",
        "-Clink-arg=--build-id=none",
        // Symbols stay, for crash reports.
        "-Clink-arg=--strip-debug",
    ]
    .map(String::from)
    .to_vec();
    flags.push(format!("-Clink-arg=--image-base={IMAGE_BASE:#x}"));
    let more: &[&str] = match arch {
        GuestArch::X86_64 => &[
            "-Ctarget-cpu=x86-64",
            "-Clink-self-contained=no",
            "-Clink-arg=-no-pie",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=--no-eh-frame-hdr",
            // Relative to the workspace, where cargo runs the compiler: no path enters the flags.
            "-Clink-arg=-Ttools/guest-build/guest.ld",
        ],
        GuestArch::Aarch64 => &["-Ctarget-cpu=generic"],
    };
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    flags
}

/// Folders whose names must not enter a binary, with what stands for them.
#[derive(Debug)]
pub(crate) struct Remaps(Vec<(PathBuf, &'static str)>);

impl Remaps {
    /// Of the workspace, cargo's home and the compiler's own folder, each also
    /// under the name that it has without symbolic links.
    pub(crate) fn new(workspace: &Path, cargo_home: Option<&Path>, sysroot: Option<&Path>) -> Self {
        let named = [
            (Some(workspace), "/instar"),
            (cargo_home, "/cargo"),
            (sysroot, "/rust"),
        ];
        let mut all = Vec::new();
        for (path, name) in named {
            let Some(path) = path else { continue };
            all.push((path.to_owned(), name));
            if let Ok(real) = path.canonicalize()
                && real != path
            {
                all.push((real, name));
            }
        }
        Self(all)
    }

    fn flags(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()))
    }
}

/// The value of `CARGO_ENCODED_RUSTFLAGS` for a guest build.
pub(crate) fn encoded(arch: GuestArch, remaps: &Remaps) -> String {
    let flags: Vec<String> = fixed(arch).into_iter().chain(remaps.flags()).collect();
    flags.join("\u{1f}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaps_name_a_linked_folder_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        let link = dir.path().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let flags: Vec<String> = Remaps::new(&link, None, None).flags().collect();
        assert_eq!(
            flags,
            [
                format!("--remap-path-prefix={}=/instar", link.display()),
                format!("--remap-path-prefix={}=/instar", real.display()),
            ]
        );
    }

    #[test]
    fn profile_pins_takes_the_manifest_over_what_is_inherited() {
        let manifest = "[profile.release]\nlto = false\n\n[profile.operation]\n\
            inherits = \"release\"\nopt-level = \"s\"\n\n[profile.x]\nlto = false\n";
        let pins = profile_pins(manifest);
        assert!(pins.contains(&"profile.operation.lto = true".to_owned()));
        assert_eq!(pins.last().unwrap(), "profile.operation.opt-level = \"s\"");
        assert_eq!(pins.len(), INHERITED.len() + 1);
    }

    #[test]
    fn encoded_separates_flags_by_the_unit_separator() {
        let remaps = Remaps::new(Path::new("/"), None, None);
        for arch in GuestArch::ALL {
            let text = encoded(*arch, &remaps);
            let flags: Vec<&str> = text.split('\u{1f}').collect();
            assert!(flags.contains(&"--cfg=instar_guest"));
            assert!(flags.contains(&"-Clink-arg=--image-base=0x200000"));
            assert!(flags.iter().all(|flag| flag.starts_with('-')), "{flags:?}");
        }
    }
}
