//! Writes the seed corpora of the fuzz targets: `cargo run -p instar-microvm-tests --example seeds -- fuzz/corpus`.

use anyhow::{Context, Result};
use instar_shared::device::AVAIL_OFFSET;
use instar_shared::layout::HEAP_START;
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let to = std::env::args_os().nth(1).map(PathBuf::from);
    let to = to.context("say where: the folder of the corpora")?;
    for (name, image) in instar_microvm_tests::seed_images()? {
        for target in ["microvm_image", "qcow2_info", "qcow2_check", "raw_probe"] {
            write(&to, target, name, &image)?;
        }
        // The tables' target takes 16 bytes of parameters first.
        let tables = [[0; 16].as_slice(), &image].concat();
        write(&to, "qcow2_tables", name, &tables)?;
        let live = [live_requests().as_slice(), &image].concat();
        write(&to, "live_image", name, &live)?;
        if let Some(at) = image.windows(6).position(|w| w == b"LUKS\xba\xbe") {
            let header = image.get(at..at + 592).context("a LUKS header cut short")?;
            write(&to, "luks_header", name, header)?;
        }
    }
    // Of each of the file systems, with sixteen changes, all of the same byte.
    for number in 0..6_u8 {
        let damage = [&[number], [255, 255, 255, 0].repeat(16).as_slice()].concat();
        write(&to, "filesystem_damage", &format!("kind-{number}"), &damage)?;
    }
    write(&to, "hostile_guest", "read", &sound_read())?;
    write(&to, "hostile_guest", "change", &sound_changes())
}

fn write(to: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = to.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes).with_context(|| folder.display().to_string())
}

/// Of a live image: how many requests come before it, and they: room for a write, its link, zeroes, a discard, a look at
/// what came of it, and a flush.
fn live_requests() -> Vec<u8> {
    let requests = [
        [0, 0, 0, 0, 127, 0],
        [2, 0, 0, 0, 0, 0],
        [5, 8, 0, 0, 7, 0],
        [6, 64, 0, 0, 255, 0],
        [4, 0, 0, 0, 255, 0],
        [7, 0, 0, 0, 0, 0],
    ];
    let count = u16::try_from(requests.len()).unwrap_or(0);
    [&count.to_le_bytes(), requests.as_flattened()].concat()
}

/// The moves of a guest that zeroes a range of slot 0, makes it longer and writes to it.
fn sound_changes() -> Vec<u8> {
    use instar_shared::blk::RequestType;
    let range = [5000_u64.to_le_bytes(), [0; 8]].concat();
    let mut moves = store(3, 0x2000, &range);
    for (sent, kind, start, data_len) in [
        (0, RequestType::ZeroBytes, 4096, 16),
        (1, RequestType::SetLength, 100_000, 0),
        (2, RequestType::WriteBytes, 99_000, 4096),
        (3, RequestType::Sync, 0, 0),
    ] {
        let after_header = if data_len == 0 { 2 } else { 1 };
        let chain = [
            descriptor(0, 16, 1, after_header),
            descriptor(0x2000, data_len, 1, 2),
            descriptor(0x1000, 8, 2, 0),
        ];
        let header = [u64::from(kind.raw()).to_le_bytes(), u64::to_le_bytes(start)];
        moves.extend(store(3, 0, &header.concat()));
        moves.extend(store(2, 0, &chain.concat()));
        moves.extend(store(2, AVAIL_OFFSET + 4 + 2 * sent, &[0, 0]));
        let index = u16::try_from(sent).unwrap_or(0) + 1;
        moves.extend(store(2, AVAIL_OFFSET + 2, &index.to_le_bytes()));
        moves.extend([4, 0]);
    }
    moves
}

fn store(kind: u8, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let [low, high, ..] = offset.to_le_bytes();
    let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    [&[kind, low, high, len], bytes].concat()
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = (HEAP_START + at).to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// The moves of a guest that reads 4 KiB, sends a line and asks for a file.
fn sound_read() -> Vec<u8> {
    use instar_shared::blk::RequestType;
    use instar_shared::control::ControlPage;
    use std::mem::offset_of;
    let chain = [
        descriptor(0, 16, 1, 1),
        descriptor(0x2000, 4096, 3, 2),
        descriptor(0x1000, 8, 2, 0),
    ];
    let kind = u64::from(RequestType::ReadBytes.raw()).to_le_bytes();
    let mut moves = store(3, 0, &[kind, [0; 8]].concat());
    moves.extend(store(2, 0, &chain.concat()));
    moves.extend(store(2, AVAIL_OFFSET, &[0, 0, 1, 0, 0, 0]));
    moves.extend([4, 0]);
    moves.extend(store(
        1,
        0,
        &[1, 0, 0, 0, 4, 0, 0, 0, b'l', b'i', b'n', b'e', 0, 0, 0, 0],
    ));
    moves.extend(store(
        0,
        offset_of!(ControlPage, record_bytes) as u64,
        &[16, 0, 0, 0],
    ));
    moves.push(5);
    // File request: slot 1, backing, read, parent 0, a name of 4 bytes.
    let request: Vec<u8> = [1_u32, 1, 1, 0, 4, 0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    moves.extend(store(
        0,
        offset_of!(ControlPage, file_request) as u64,
        &[request, b"name".to_vec()].concat(),
    ));
    moves.extend([6, 7, 4, 1]);
    moves
}
