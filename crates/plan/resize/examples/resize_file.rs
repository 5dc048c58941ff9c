//! Resizes an image file in place and says how long it took:
//! `resize_file IMAGE qcow2|raw BYTES [off|metadata|falloc|full]`. Chains are not opened.

use instar_plan_resize::{Image, NewSize, Preallocation, Request, resize_qcow2, resize_raw};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::File;
use std::time::Instant;

struct Grants;

impl Monitor for Grants {
    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, format, bytes, rest @ ..] = args.as_slice() else {
        return Err("usage: resize_file IMAGE qcow2|raw BYTES [PREALLOCATION]".into());
    };
    let preallocation = match rest.first().map(String::as_str) {
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        _ => Preallocation::Off,
    };
    let request = Request {
        size: NewSize::Absolute(bytes.parse()?),
        preallocation,
        shrink: true,
    };
    let storage = FileStorage::new(File::options().read(true).write(true).open(path)?)?;
    let start = Instant::now();
    let done = if format == "raw" {
        resize_raw(&storage, &request, &mut Grants)
    } else {
        let header = Header::read(&storage, OpenMode::Change)?;
        let image = Image {
            storage: &storage,
            data: None,
            header: &header,
            cipher: None,
        };
        resize_qcow2(image, &[], &request, &mut Grants)
    };
    println!("{done:?} in {:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
