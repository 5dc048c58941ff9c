use super::*;
use crate::open::os_string;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tempfile::TempDir;

/// `images/` is the allowed folder, `other/` is not.
struct Scratch {
    root: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let scratch = Self { root };
        for folder in ["images/deep", "other"] {
            fs::create_dir_all(scratch.path(folder)).unwrap();
        }
        for file in [
            "images/base",
            "images/deep/base",
            "images/a:b",
            "other/secret",
        ] {
            fs::write(scratch.path(file), file).unwrap();
        }
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().canonicalize().unwrap().join(name)
    }

    fn rules(&self, allowed: &[&str]) -> Rules {
        let allowed = allowed.iter().map(|name| self.path(name)).collect();
        Rules::new(
            self.path("images/top").as_os_str().as_bytes(),
            &Policy {
                allowed,
                base: None,
            },
        )
    }

    /// Opens `name` as it would stand in `images/top`; the content, or the refusal.
    fn open(&self, rules: &mut Rules, name: &[u8]) -> Result<String, Refusal> {
        let given = names::combine(self.path("images/top").as_os_str().as_bytes(), name);
        let passed = rules.open(&names::parse(&given).unwrap(), false)?;
        let mut content = String::new();
        File::from(passed.fd).read_to_string(&mut content).unwrap();
        Ok(content)
    }

    fn errno(&self, name: &[u8]) -> i32 {
        match self.open(&mut self.rules(&[]), name).unwrap_err() {
            Refusal {
                kind: OpenFailure::Failed(errno),
                ..
            } => errno,
            refusal => panic!("{refusal:?}"),
        }
    }
}

fn text(refusal: &Refusal) -> String {
    String::from_utf8_lossy(&refusal.reason).into_owned()
}

#[test]
fn names_that_end_in_the_images_folder_pass() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path(name);
    symlink("base", at("images/link")).unwrap();
    symlink(at("images/deep"), at("images/absolute-link")).unwrap();
    symlink("../images/deep/../base", at("images/round")).unwrap();
    symlink(at("images"), at("entry")).unwrap();
    let cases = [
        ("base".into(), "images/base"),
        ("./base".into(), "images/base"),
        (".//deep/../base".into(), "images/base"),
        ("../images/base".into(), "images/base"),
        ("../other/../images/deep/base".into(), "images/deep/base"),
        ("./a:b".into(), "images/a:b"),
        ("link".into(), "images/base"),
        ("absolute-link/base".into(), "images/deep/base"),
        ("round".into(), "images/base"),
        (at("images/base").display().to_string(), "images/base"),
        (
            at("entry/deep/base").display().to_string(),
            "images/deep/base",
        ),
        (
            format!("file:{}", at("images/base").display()),
            "images/base",
        ),
    ];
    for (name, content) in cases {
        let opened = scratch.open(&mut scratch.rules(&[]), name.as_bytes());
        assert_eq!(opened.as_deref(), Ok(content), "{name}");
    }
}

#[test]
fn names_that_end_elsewhere_are_refused_with_what_to_add() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.path(name);
    symlink("../other/secret", at("images/out")).unwrap();
    symlink(at("other"), at("images/out-folder")).unwrap();
    let absolute = at("other/secret").display().to_string();
    for name in [
        "../other/secret",
        "out",
        "out-folder/secret",
        "deep/../../other/secret",
        absolute.as_str(),
    ] {
        let refusal = scratch
            .open(&mut scratch.rules(&[]), name.as_bytes())
            .unwrap_err();
        assert_eq!(refusal.kind, OpenFailure::Refused, "{name}");
        let other = at("other").display().to_string();
        let text = text(&refusal);
        assert!(text.contains(&format!("--allow-path {other} ")), "{text}");
        assert!(
            text.contains(&format!("INSTAR_ALLOW_PATH={other})")),
            "{text}"
        );
        assert_eq!(
            scratch
                .open(&mut scratch.rules(&["other"]), name.as_bytes())
                .as_deref(),
            Ok("other/secret")
        );
        assert_eq!(
            scratch
                .open(&mut scratch.rules(&["other/secret"]), name.as_bytes())
                .as_deref(),
            Ok("other/secret")
        );
    }
}

#[test]
fn outside_names_are_refused_alike_whether_they_exist_or_not() {
    let scratch = Scratch::new();
    for name in [
        "../other/secret",
        "../other/missing",
        "/no/such/folder",
        "../other",
    ] {
        let refusal = scratch
            .open(&mut scratch.rules(&[]), name.as_bytes())
            .unwrap_err();
        assert_eq!(refusal.kind, OpenFailure::Refused, "{name}");
    }
}

#[test]
fn a_listed_file_allows_itself_only() {
    let scratch = Scratch::new();
    fs::write(scratch.path("other/second"), "second").unwrap();
    let mut rules = scratch.rules(&["other/secret", "missing"]);
    assert!(scratch.open(&mut rules, b"../other/secret").is_ok());
    assert_eq!(
        scratch
            .open(&mut rules, b"../other/second")
            .unwrap_err()
            .kind,
        OpenFailure::Refused
    );
    assert_eq!(
        scratch
            .open(&mut rules, b"../other/secret/x")
            .unwrap_err()
            .kind,
        OpenFailure::Refused
    );
}

#[test]
fn magic_links_are_no_way_in_or_out() {
    let scratch = Scratch::new();
    let secret = File::open(scratch.path("other/secret")).unwrap();
    let base = File::open(scratch.path("images/base")).unwrap();
    let fd_of = |file: &File| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    symlink(fd_of(&secret), scratch.path("images/magic")).unwrap();
    symlink(fd_of(&base), scratch.path("images/magic-inside")).unwrap();
    let root = format!("/proc/self/root{}", scratch.path("images/base").display());
    for name in [
        fd_of(&secret),
        fd_of(&base),
        "magic".into(),
        "magic-inside".into(),
        root,
    ] {
        for allowed in [&[][..], &["other"]] {
            assert!(
                scratch
                    .open(&mut scratch.rules(allowed), name.as_bytes())
                    .is_err(),
                "{name}"
            );
        }
    }
}

#[test]
fn errors_inside_the_folder_are_the_systems() {
    let scratch = Scratch::new();
    symlink("ring", scratch.path("images/ring")).unwrap();
    symlink("gone", scratch.path("images/dangling")).unwrap();
    let long = vec![b'n'; 1023];
    let deep = [b"d/".repeat(2040), b"x".to_vec()].concat();
    let cases: [(&[u8], i32); 9] = [
        (b"missing", libc::ENOENT),
        (b"dangling", libc::ENOENT),
        (b"no/such", libc::ENOENT),
        (b"ring", libc::ELOOP),
        (b"base/", libc::ENOTDIR),
        (b"base/x", libc::ENOTDIR),
        (&long, libc::ENAMETOOLONG),
        (&deep, libc::ENAMETOOLONG),
        (b"with\0nul", libc::EINVAL),
    ];
    for (name, errno) in cases {
        assert_eq!(scratch.errno(name), errno, "{}", os_string(name).display());
    }
}

#[test]
fn names_of_any_bytes_open() {
    let scratch = Scratch::new();
    for name in [
        b"\x01\x1b[31m\n\t\x7f".as_slice(),
        b"\xff\xfe",
        &[b'n'; 255],
    ] {
        let file = scratch.path("images").join(os_string(name));
        fs::write(file, "odd").unwrap();
        assert_eq!(
            scratch.open(&mut scratch.rules(&[]), name).as_deref(),
            Ok("odd")
        );
    }
}

#[test]
fn only_regular_files_pass_and_opening_wakes_nobody() {
    let scratch = Scratch::new();
    let _listener = UnixListener::bind(scratch.path("images/socket")).unwrap();
    let fifo = scratch.path("images/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, errno) in [
        ("deep", libc::EINVAL),
        ("fifo", libc::EINVAL),
        ("socket", libc::ENXIO),
        (".", libc::EINVAL),
    ] {
        assert_eq!(scratch.errno(name.as_bytes()), errno, "{name}");
    }
    let mut rules = Rules::new(
        b"images/top",
        &Policy {
            allowed: vec!["/dev".into()],
            base: None,
        },
    );
    let null = rules
        .open(&names::parse(b"/dev/null").unwrap(), false)
        .unwrap_err();
    assert_eq!(null.kind, OpenFailure::Refused);
}

#[test]
fn typed_name_without_a_folder_allows_the_current_one() {
    let mut rules = Rules::new(b"top", &Policy::default());
    let open = |rules: &mut Rules, name: &[u8]| rules.open(&names::parse(name).unwrap(), false);
    assert!(open(&mut rules, b"Cargo.toml").is_ok());
    assert!(open(&mut rules, b"src/../Cargo.toml").is_ok());
    let here = std::env::current_dir().unwrap().join("Cargo.toml");
    assert!(open(&mut rules, here.as_os_str().as_bytes()).is_ok());
    let above = open(&mut rules, b"../instar-cli/Cargo.toml").unwrap_err();
    assert_eq!(above.kind, OpenFailure::Refused);
}

#[test]
fn policy_joins_flags_and_variable() {
    let policy = Policy::new(vec!["/a".into()], Some(OsStr::new("/b::/c d")));
    assert_eq!(
        policy.allowed,
        ["/a", "/b", "/c d"].map(|p| Path::new(p).to_path_buf())
    );
    assert_eq!(Policy::new(Vec::new(), None), Policy::default());
}

#[test]
fn file_for_writing_passes_by_the_same_rules() {
    let scratch = Scratch::new();
    let mut rules = scratch.rules(&[]);
    let mut open = |name: &str| {
        let given = scratch.path(name);
        rules.open(&names::parse(given.as_os_str().as_bytes()).unwrap(), true)
    };
    let passed = open("images/base").unwrap();
    let mut file = File::from(passed.fd);
    std::io::Write::write_all(&mut file, b"new").unwrap();
    let content = fs::read(scratch.path("images/base")).unwrap();
    assert_eq!(content, b"newges/base", "nothing is cut");
    assert_eq!(open("other/secret").unwrap_err().kind, OpenFailure::Refused);
    let missing = open("images/missing").unwrap_err();
    assert_eq!(missing.kind, OpenFailure::Failed(libc::ENOENT));
    assert!(!scratch.path("images/missing").exists(), "nothing is made");
    let folder = open("images/deep").unwrap_err();
    assert_eq!(folder.kind, OpenFailure::Failed(libc::EISDIR));
}
