//! Disks of distributions, made by other programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use instar_plan_bootscan::{Disk, Loader, kernel, scan};
use instar_storage::FileStorage;
use instar_tests::layouts::{ALL, Layout};
use std::fs::File;
use std::rc::Rc;

fn open(layout: &Layout) -> Disk {
    let file = tempfile::NamedTempFile::new().unwrap();
    layout.disk.write(file.path()).unwrap();
    let store = FileStorage::new(File::open(file.path()).unwrap()).unwrap();
    Disk::open(Rc::new(store)).unwrap()
}

#[test]
fn default_entry_of_each_distribution_is_found() {
    for make in ALL {
        let layout = make().unwrap();
        let name = layout.name;
        let disk = open(&layout);
        let found = scan(&disk);
        let index = found
            .default
            .unwrap_or_else(|| panic!("{name}: {found:#?}"));
        let entry = &found.entries[index];
        assert_eq!(found.entries.len(), layout.entries, "{name}: {found:#?}");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text(&entry.title), layout.title, "{name}");
        assert_eq!(text(&entry.cmdline), layout.cmdline, "{name}");
        assert_eq!(entry.problem, None, "{name}");
        let loader = found.source.unwrap().loader;
        let expected = if name == "Alpine" {
            Loader::Extlinux
        } else {
            Loader::Grub
        };
        assert_eq!(loader, expected, "{name}");
        let place = entry.kernel.as_ref().unwrap();
        assert_eq!(text(&place.path), layout.kernel.0, "{name}");
        assert!(
            disk.read(place, 1 << 30).unwrap() == layout.kernel.1,
            "{name}"
        );
        let files = disk.files_of(place.volume).unwrap();
        let file = files.open(&place.path).unwrap();
        let parsed = kernel::parse(file.len, &|at, buf| files.read(&file, at, buf).map(|_| ()));
        assert_eq!(parsed.unwrap().entry_gpa, 0x0100_0200, "{name}");
        assert_eq!(entry.initrds.len(), layout.initrds.len(), "{name}");
        for (place, (path, bytes)) in entry.initrds.iter().zip(&layout.initrds) {
            assert_eq!(text(&place.path), *path, "{name}");
            assert!(disk.read(place, 1 << 30).unwrap() == *bytes, "{name}");
        }
        assert!(found.notes.is_empty(), "{name}: {:?}", found.notes);
    }
}
