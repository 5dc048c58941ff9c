use super::*;
use crate::input::Access;
use crate::layout::Layout;
use std::os::unix::fs::symlink;
use std::path::Path;

fn destination_of(path: &Path) -> Result<(FileId, OsString), Errno> {
    let (folder, name) = destination(path.as_os_str().as_bytes())?;
    Ok((FileId::of(&rustix::fs::fstat(folder).unwrap()), name))
}

fn id(path: &Path) -> FileId {
    FileId::of(&rustix::fs::stat(path).unwrap())
}

#[test]
fn destination_is_where_the_kernel_makes_the_file() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::create_dir_all(at("a/b")).unwrap();
    symlink("b/two", at("a/one")).unwrap();
    symlink("../three", at("a/b/two")).unwrap();
    symlink(at("a/b/end"), at("absolute")).unwrap();
    symlink("a", at("folder")).unwrap();
    for (path, folder, name) in [
        ("x", "", "x"),
        ("a/../x", "", "x"),
        ("a//x", "a", "x"),
        ("folder/x", "a", "x"),
        ("a/one", "a", "three"),
        ("folder/one", "a", "three"),
        ("absolute", "a/b", "end"),
    ] {
        let found = destination_of(&at(path));
        assert_eq!(found, Ok((id(&at(folder)), name.into())), "{path}");
        std::fs::File::create(at(path)).unwrap();
        let made = at(folder).join(name);
        assert!(made.symlink_metadata().unwrap().is_file(), "{path}");
        std::fs::remove_file(made).unwrap();
    }
    symlink("loop", at("loop")).unwrap();
    for (path, errno) in [
        ("loop", Errno::LOOP),
        ("x/", Errno::ISDIR),
        ("a/x//", Errno::ISDIR),
        ("missing/x", Errno::NOENT),
        ("missing/x/", Errno::NOENT),
    ] {
        assert_eq!(destination_of(&at(path)), Err(errno), "{path}");
    }
}

#[test]
fn new_file_that_is_dropped_is_gone_and_one_that_is_named_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let names = || std::fs::read_dir(scratch.path()).unwrap().count();
    let folder = || open_folder(scratch.path().as_os_str()).unwrap();
    for named in [false, true] {
        let make = || {
            let (temporary, fd) = make_named(folder().as_fd()).unwrap();
            let new = NewFile {
                folder: folder(),
                folder_id: id(scratch.path()),
                name: "x".into(),
                temporary: Some(temporary),
            };
            (new, fd)
        };
        let (mut new, fd) = make();
        assert_eq!(names(), 1);
        if named {
            new.name_it(fd.as_fd()).unwrap();
            let (mut second, fd) = make();
            assert_eq!(second.name_it(fd.as_fd()), Err(Errno::EXIST));
        }
        drop(new);
        assert_eq!(names(), usize::from(named));
    }
}

#[test]
fn folder_that_cannot_be_read_takes_a_file() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let wanted = Wanted {
        unlocked: false,
        direct: false,
        access: Access::Create {
            raw: false,
            durable: true,
            layout: Layout::USUAL,
        },
        data_file: false,
        share: false,
    };
    let path = scratch.path().join("x");
    let permissions = std::fs::Permissions::from_mode(0o300);
    std::fs::set_permissions(scratch.path(), permissions).unwrap();
    let mut opened = open(path.as_os_str().as_bytes(), wanted).unwrap();
    let Some(Target::New(new)) = &mut opened.target else {
        panic!("it was not there");
    };
    new.name_it(opened.file.as_fd()).unwrap();
    assert_eq!(new.sync_name(), Ok(()));
    assert!(path.exists());
}
