//! The planner, run as the operation runs it.

use instar_plan_snapshot::{NewSnapshot, apply, create, delete};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{FileStorage, MemStorage, StorageMut};
use std::fs::File;
use std::path::Path;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Action {
    Create { name: Vec<u8>, date: (u32, u32) },
    Apply(Vec<u8>),
    Delete(Vec<u8>),
}

/// Grants all; stops after so many steps.
pub struct Steps(pub u64);

impl Monitor for Steps {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total, "{done} of {total}");
        self.0 = self.0.checked_sub(1).ok_or(Cancelled)?;
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// What `qemu-img` would print on standard error.
fn sentence(note: Option<String>, verb: &str, name: &[u8], error: &str) -> String {
    let name = String::from_utf8_lossy(name);
    let note = note.map_or(String::new(), |note| format!("qemu-img: {note}\n"));
    format!("{note}qemu-img: Could not {verb} snapshot '{name}': {error}\n")
}

/// Does it in a store.
pub fn act<S: StorageMut>(
    store: &S,
    action: &Action,
    monitor: &mut Steps,
) -> Result<Header, String> {
    let header = Header::read(store, OpenMode::Change).map_err(|e| e.to_string())?;
    match action {
        Action::Create { name, date } => {
            let (date_sec, date_nsec) = *date;
            let new = NewSnapshot {
                name,
                date_sec,
                date_nsec,
            };
            create(store, &header, &new, monitor)
                .map_err(|e| sentence(e.note(), "create", name, &e.to_string()))
        }
        Action::Apply(name) => apply(store, &header, name, monitor)
            .map_err(|e| sentence(e.note(), "apply", name, &e.to_string())),
        Action::Delete(name) => delete(store, &header, name, monitor)
            .map_err(|e| sentence(e.note(), "delete", name, &e.to_string())),
    }
}

/// An image file as a store in memory.
pub fn load(path: &Path) -> MemStorage {
    MemStorage::load(&File::open(path).unwrap()).unwrap()
}

/// Does it to a file. A refusal has to leave every byte as it was.
pub fn on_file(path: &Path, action: &Action) -> Result<(), String> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let store = FileStorage::new(file).unwrap();
    let before = load(path);
    match act(&store, action, &mut Steps(u64::MAX)) {
        Ok(header) => {
            let again = Header::read(&store, OpenMode::Change).unwrap();
            assert_eq!(
                header, again,
                "the header that is given is the one on the disk"
            );
            Ok(())
        }
        Err(text) => {
            assert!(load(path) == before, "a refusal changed the file: {text}");
            Err(text)
        }
    }
}
