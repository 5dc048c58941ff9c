//! Amends a qcow2 file and tells how long it took: `amend_file IMAGE OPTION=VALUE...`. Versions are 2 and 3,
//! sizes are plain numbers. A backing file is taken as raw.

use instar_plan_amend::{Image, Layer, Request, amend};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

struct Free;

impl Monitor for Free {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn request(options: &[String]) -> Result<Request<'_>, Box<dyn Error>> {
    let mut request = Request::default();
    for option in options {
        let (name, value) = option.split_once('=').ok_or("OPTION=VALUE")?;
        match name {
            "size" => request.size = Some(value.parse()?),
            "compat" => request.version = Some(value.parse()?),
            "data_file" => request.data_file = Some(value.as_bytes()),
            "data_file_raw" => request.data_file_raw = Some(value == "on"),
            "lazy_refcounts" => request.lazy_refcounts = Some(value == "on"),
            "refcount_bits" => request.refcount_bits = Some(value.parse()?),
            _ => return Err("no such option".into()),
        }
    }
    Ok(request)
}

fn open(path: &Path) -> std::io::Result<FileStorage> {
    FileStorage::new(File::options().read(true).write(true).open(path)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (path, options) = args
        .split_first()
        .ok_or("usage: amend_file IMAGE OPTION=VALUE...")?;
    let path = Path::new(path);
    let start = Instant::now();
    let storage = open(path)?;
    let header = Header::read(&storage, OpenMode::Change)?;
    let beside =
        |name: &Vec<u8>| open(&path.with_file_name(String::from_utf8_lossy(name).as_ref()));
    let data = header
        .extensions
        .data_file_name
        .as_ref()
        .map(beside)
        .transpose()?;
    let backing = header.backing_file.as_ref().map(beside).transpose()?;
    let layer = |storage| Layer {
        storage,
        data: None,
        header: None,
        cipher: None,
    };
    let below: Vec<_> = backing.iter().map(layer).collect();
    let image = Image {
        storage: &storage,
        data: data.as_ref(),
        header: &header,
        cipher: None,
    };
    amend(image, &below, &request(options)?, &mut Free)?;
    println!("{:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
