//! Where a path ends: symbolic links followed by hand, to a path without any.
//!
//! The answer only places a name among the allowed folders. What is opened, is
//! opened beneath one of them by the kernel's own rules.

use rustix::fs::{CWD, readlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Links followed before giving up; the kernel has the same limit.
const MAX_LINKS: usize = 40;

/// The end of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Absolute, without links, `.` and `..`; as far as the walk came.
    pub real: Vec<u8>,
    /// Why it came no further.
    pub stopped: Option<Errno>,
}

/// Walks `path` from the root or the current folder.
pub fn place(path: &[u8]) -> Place {
    let mut walk = Walk {
        real: Vec::new(),
        links: 0,
    };
    if path.first() != Some(&b'/') {
        match rustix::process::getcwd(Vec::new()) {
            Ok(folder) => walk.real = folder.into_bytes(),
            Err(errno) => {
                return Place {
                    real: Vec::new(),
                    stopped: Some(errno),
                };
            }
        }
        // A current folder outside the process's root is shown without a leading slash.
        match walk.real.first() {
            Some(b'/') => {}
            _ => {
                return Place {
                    real: Vec::new(),
                    stopped: Some(Errno::NOENT),
                };
            }
        }
        if walk.real == b"/" {
            walk.real.clear();
        }
    }
    let stopped = walk.follow(path).err();
    Place {
        real: walk.real,
        stopped,
    }
}

/// Whether `path` is `folder` or lies in it; both without links, the root as an empty folder.
pub fn is_inside(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

struct Walk {
    /// Components so far, each with a slash in front.
    real: Vec<u8>,
    links: usize,
}

impl Walk {
    fn follow(&mut self, path: &[u8]) -> Result<(), Errno> {
        // Components still to go, the next one last.
        let mut rest: Vec<Vec<u8>> = components(path);
        while let Some(component) = rest.pop() {
            if component == b".." {
                let end = self.real.iter().rposition(|b| *b == b'/').unwrap_or(0);
                self.real.truncate(end);
                continue;
            }
            let parent_len = self.real.len();
            self.real.push(b'/');
            self.real.extend_from_slice(&component);
            match readlinkat(CWD, OsStr::from_bytes(&self.real), Vec::new()) {
                // There, and no link.
                Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
                Ok(target) => {
                    self.links = self.links.saturating_add(1);
                    if self.links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = target.into_bytes();
                    self.real.truncate(if target.first() == Some(&b'/') {
                        0
                    } else {
                        parent_len
                    });
                    rest.extend(components(&target));
                }
            }
        }
        Ok(())
    }
}

/// The components of `path` that matter, last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    let mut parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn bytes(path: &std::path::Path) -> Vec<u8> {
        path.as_os_str().as_bytes().to_vec()
    }

    #[test]
    fn place_of_links_and_dots_is_what_canonicalize_says() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/f"), "x").unwrap();
        symlink("b", root.join("a/rel")).unwrap();
        symlink(root.join("a/rel/f"), root.join("abs")).unwrap();
        symlink("../a/./rel//../rel/f", root.join("a/back")).unwrap();
        for name in [
            "a/b/f",
            "a/rel/f",
            "abs",
            "a/back",
            "a/../a/b/../rel/f",
            "a//b/./f",
            "a/b/",
        ] {
            let path = root.join(name);
            let expected = Place {
                real: bytes(&path.canonicalize().unwrap()),
                stopped: None,
            };
            assert_eq!(place(&bytes(&path)), expected, "{name}");
        }
    }

    #[test]
    fn place_stops_where_the_path_does() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/nowhere-at-all/x", root.join("out")).unwrap();
        let missing = place(&bytes(&root.join("no/such")));
        assert_eq!(
            missing,
            Place {
                real: bytes(&root.join("no")),
                stopped: Some(Errno::NOENT)
            }
        );
        assert_eq!(place(&bytes(&root.join("loop"))).stopped, Some(Errno::LOOP));
        assert_eq!(place(&bytes(&root.join("out"))).real, b"/nowhere-at-all");
    }

    #[test]
    fn inside_is_by_component() {
        assert!(is_inside(b"/a/b", b"/a"));
        assert!(is_inside(b"/a", b"/a"));
        assert!(is_inside(b"/a", b""));
        assert!(!is_inside(b"/ab", b"/a"));
        assert!(!is_inside(b"/", b"/a"));
    }
}
