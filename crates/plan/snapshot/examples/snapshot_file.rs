//! Creates, applies or deletes a snapshot of a qcow2 file and prints the time it took:
//! `snapshot_file create|apply|delete NAME IMAGE`.

use instar_plan_snapshot::{NewSnapshot, apply, create, delete};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::File;
use std::time::Instant;

struct Quiet;

impl Monitor for Quiet {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [action, name, image] = args.as_slice() else {
        return Err("usage: snapshot_file create|apply|delete NAME IMAGE".into());
    };
    let file = File::options().read(true).write(true).open(image)?;
    let store = FileStorage::new(file)?;
    let start = Instant::now();
    let header = Header::read(&store, OpenMode::Change)?;
    let new = NewSnapshot {
        name: name.as_bytes(),
        date_sec: 0,
        date_nsec: 0,
    };
    match action.as_str() {
        "create" => create(&store, &header, &new, &mut Quiet).map(drop)?,
        "apply" => apply(&store, &header, name.as_bytes(), &mut Quiet).map(drop)?,
        "delete" => delete(&store, &header, name.as_bytes(), &mut Quiet).map(drop)?,
        _ => return Err("unknown action".into()),
    }
    println!("{:?}", start.elapsed());
    Ok(())
}
