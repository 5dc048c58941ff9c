//! Disks for cloud-init, judged by what others read from them.

use super::*;
use std::process::Command;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF7mCXxhAaXg0Kp3k3o1JZ0sJv0J1aX2k3o1JZ0sJv0J me@here";

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run `make setup`"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What isoinfo finds in the file of this name, by Rock Ridge and by Joliet.
fn contents(disk: &[u8], name: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), disk).unwrap();
    let path = file.path().to_str().unwrap();
    let wanted = format!("/{name}");
    let read = |how: &str| output("isoinfo", &["-i", path, how, "-x", &wanted]);
    vec![read("-R"), read("-J")]
}

fn seed() -> Seed {
    Seed {
        keys: vec![KEY.to_owned()],
        hostname: Some("guest.example".to_owned()),
        ..Seed::default()
    }
}

#[test]
fn the_disk_has_the_name_that_is_looked_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = seed().disk().unwrap();
    assert_eq!(disk.len() % 2048, 0);
    std::fs::write(file.path(), disk).unwrap();
    let path = file.path().to_str().unwrap();
    let said = output("blkid", &["-p", "-o", "export", path]);
    assert!(said.lines().any(|line| line == "LABEL=cidata"), "{said}");
    assert!(said.lines().any(|line| line == "TYPE=iso9660"), "{said}");
    for how in ["-R", "-J"] {
        let said = output("isoinfo", &["-i", path, how, "-f"]);
        let mut names: Vec<&str> = said.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["/meta-data", "/user-data"], "{how}");
    }
}

#[test]
fn the_users_files_are_passed_on_as_they_are() {
    let long = [*b"configuration "; MAX_FILE / 14].concat();
    let seed = Seed {
        user_data: Some(long.clone()),
        meta_data: Some(b"instance-id: mine\n".to_vec()),
        network_config: Some(b"version: 2\n".to_vec()),
        ..Seed::default()
    };
    let disk = seed.disk().unwrap();
    for read in contents(&disk, "user-data") {
        assert!(read.as_bytes() == long);
    }
    for read in contents(&disk, "meta-data") {
        assert_eq!(read, "instance-id: mine\n");
    }
    for read in contents(&disk, "network-config") {
        assert_eq!(read, "version: 2\n");
    }
}

#[test]
fn keys_and_the_name_are_in_the_meta_data() {
    let disk = seed().disk().unwrap();
    for read in contents(&disk, "user-data") {
        assert_eq!(read, "#cloud-config\n{}\n");
    }
    for read in contents(&disk, "meta-data") {
        let said: Value = serde_json::from_str(&read).unwrap();
        assert_eq!(said["public-keys"], json!([KEY]));
        assert_eq!(said["local-hostname"], "guest.example");
        assert_eq!(said["instance-id"], seed().id());
    }
}

#[test]
fn another_content_is_another_instance() {
    let id = seed().id();
    assert_eq!(id, seed().id());
    assert_eq!(id.len(), "instar-".len() + ID_CHARACTERS);
    let others = [
        Seed::default(),
        Seed {
            user_data: Some(Vec::new()),
            ..seed()
        },
        Seed {
            network_config: Some(Vec::new()),
            ..seed()
        },
        Seed {
            hostname: None,
            ..seed()
        },
        Seed {
            keys: vec![KEY.to_owned(), KEY.to_owned()],
            ..seed()
        },
    ];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(other.id(), id, "{index}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let with = |change: &dyn Fn(&mut Seed)| {
        let mut seed = seed();
        change(&mut seed);
        seed.disk().unwrap_err().to_string()
    };
    let said = with(&|seed| seed.meta_data = Some(Vec::new()));
    assert!(said.contains("--meta-data excludes"), "{said}");
    let said = with(&|seed| seed.user_data = Some(vec![b'#'; MAX_FILE + 1]));
    assert!(said.contains("user-data is longer than 1024 KiB"), "{said}");
    let long = "a".repeat(64);
    for name in ["", ".", "a..b", "-a", "a-", "a b", "a_b", "ä", &long] {
        let said = with(&|seed| seed.hostname = Some(name.to_owned()));
        assert!(said.contains("is not the name of a host"), "{said}");
    }
}

#[test]
fn keys_are_found_in_files() {
    let text = format!("# mine\n\n  {KEY}\r\necdsa-sha2-nistp256 AAAA b\n");
    let keys = keys_in(&text).unwrap();
    assert_eq!(keys, [KEY, "ecdsa-sha2-nistp256 AAAA b"]);
    assert_eq!(keys_in("\n# nothing\n"), Err(KeyError::Empty));
    assert_eq!(
        keys_in("ssh-rsa AAAA\nhello you\n"),
        Err(KeyError::NoKey(2))
    );
    assert_eq!(keys_in("ssh-rsa"), Err(KeyError::NoKey(1)));
    assert_eq!(keys_in("ssh-rsa AA\x1b[31m"), Err(KeyError::NoKey(1)));
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n";
    assert_eq!(keys_in(private), Err(KeyError::Private));
}
