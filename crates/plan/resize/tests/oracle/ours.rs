//! The planner, run as the operation runs it, over files in memory.

use instar_plan_resize::{
    Image, Layer, NewSize, Preallocation, Request, ResizeError, Resized, resize_qcow2,
    resize_qcow2_unpacked,
};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, StorageMut};
use std::fs::File;
use std::path::Path;

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

/// A request as `qemu-img resize` takes it.
pub fn arguments(request: &Request) -> Vec<String> {
    let mut args = vec![
        "resize".to_owned(),
        format!("--preallocation={}", request.preallocation.name()),
    ];
    if request.shrink {
        args.push("--shrink".into());
    }
    args
}

/// The size as `qemu-img resize` takes it.
pub fn size(request: &Request) -> String {
    match request.size {
        NewSize::Absolute(size) => size.to_string(),
        NewSize::Grow(by) => format!("+{by}"),
        NewSize::Shrink(by) => format!("-{by}"),
    }
}

/// Growing or shrinking to `size` without ifs and buts.
pub const fn to(size: u64, preallocation: Preallocation) -> Request {
    Request {
        size: NewSize::Absolute(size),
        preallocation,
        shrink: true,
    }
}

/// An image file as a store in memory.
pub fn load(path: &Path) -> MemStorage {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    MemStorage::load(&file).unwrap()
}

/// Writes the store back.
pub fn save(store: &MemStorage, path: &Path) {
    store.save(&File::create(path).unwrap()).unwrap();
}

/// An image of a chain with its header and data file.
pub struct Opened<S> {
    pub store: S,
    pub data: Option<S>,
    pub header: Option<Header>,
}

/// Opens the image `name` and its chain.
pub fn open_chain(dir: &Path, name: &str) -> Vec<Opened<MemStorage>> {
    let mut chain = Vec::new();
    let mut next = Some((name.to_owned(), false));
    while let Some((name, raw)) = next.take() {
        let store = load(&dir.join(&name));
        if raw {
            let opened = Opened {
                store,
                data: None,
                header: None,
            };
            chain.push(opened);
            break;
        }
        let header = Header::read(&store, OpenMode::Change).unwrap();
        let text = |name: &Vec<u8>| String::from_utf8(name.clone()).unwrap();
        let data = header.extensions.data_file_name.as_ref().map(text);
        let format = header.extensions.backing_format.clone();
        next = header
            .backing_file
            .as_ref()
            .map(|name| (text(name), format.as_deref() == Some(b"raw")));
        chain.push(Opened {
            store,
            data: data.map(|name| load(&dir.join(name))),
            header: Some(header),
        });
    }
    chain
}

/// Resizes the first image of an opened chain, as the programs do: without decompressors first.
pub fn resize<S: StorageMut>(
    chain: &[Opened<S>],
    request: &Request,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let (top, below) = chain.split_first().unwrap();
    let header = top.header.as_ref().unwrap();
    let image = Image {
        storage: &top.store,
        data: top.data.as_ref(),
        header,
        cipher: None,
    };
    let below: Vec<Layer<'_, S>> = below
        .iter()
        .map(|opened| Layer {
            storage: &opened.store,
            data: opened.data.as_ref(),
            header: opened.header.as_ref(),
            cipher: None,
        })
        .collect();
    match resize_qcow2_unpacked(image, &below, request, monitor) {
        Err(ResizeError::Compressed) => resize_qcow2(image, &below, request, monitor),
        done => done,
    }
}

/// What `qemu-img` would print on standard error.
pub fn sentence(error: &ResizeError) -> String {
    let warning = match error {
        ResizeError::ShrinkNotAsked => {
            format!(
                "qemu-img: warning: {}\n",
                instar_plan_resize::SHRINK_WARNING
            )
        }
        _ => String::new(),
    };
    format!("qemu-img: {error}\n{warning}")
}

/// Resizes an image file. A refusal has to leave every byte as it was.
pub fn on_file(dir: &Path, name: &str, request: &Request) -> Result<(), String> {
    let chain = open_chain(dir, name);
    let before: Vec<MemStorage> = chain.iter().map(|c| c.store.clone()).collect();
    let data_before = chain[0].data.clone();
    let result = resize(&chain, request, &mut Steps(u64::MAX));
    for (opened, before) in chain.iter().zip(&before).skip(1) {
        assert!(opened.store == *before, "a backing file was changed");
    }
    match result {
        Ok(done) => {
            save(&chain[0].store, &dir.join(name));
            if let (Some(data), Some(header)) = (&chain[0].data, &chain[0].header) {
                let name = header.extensions.data_file_name.clone().unwrap();
                save(data, &dir.join(String::from_utf8(name).unwrap()));
            }
            let header = Header::read(&chain[0].store, OpenMode::Change).unwrap();
            assert_eq!(header.virtual_size, done.new_size);
            Ok(())
        }
        Err(error) => {
            assert!(
                chain[0].store == before[0] && chain[0].data == data_before,
                "a refusal changed a file: {error}"
            );
            Err(sentence(&error))
        }
    }
}
