//! Configurations of boot loaders: the first byte says whose the rest is.
#![no_main]

use instar_filesystem::{FileSystem, Files, FsError, Node, NodeKind};
use instar_partition::Scheme;
use instar_plan_bootscan::{Disk, Held, MAX_CMDLINE, MAX_ENTRIES, Volume, kernel, scan};
use libfuzzer_sys::fuzz_target;

/// One file, and a kernel.
struct OneFile {
    path: &'static [u8],
    text: Vec<u8>,
}

impl OneFile {
    fn bytes(&self, path: &[u8]) -> Option<&[u8]> {
        match path {
            b"/vmlinuz" => Some(b"kernel"),
            path if path == self.path => Some(&self.text),
            _ => None,
        }
    }

    fn folder(&self, path: &[u8]) -> bool {
        path.is_empty() || (self.path.starts_with(path) && self.path.get(path.len()) == Some(&b'/'))
    }
}

impl FileSystem for OneFile {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> String {
        "1234".to_owned()
    }

    fn label(&self) -> String {
        "label".to_owned()
    }

    fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        match self.bytes(path) {
            Some(bytes) => Ok(Node {
                kind: NodeKind::File,
                len: bytes.len() as u64,
            }),
            None if self.folder(path) => Ok(Node {
                kind: NodeKind::Folder,
                len: 0,
            }),
            None => Err(FsError::NotFound),
        }
    }

    fn link(&self, _path: &[u8]) -> Result<Vec<u8>, FsError> {
        Err(FsError::NotALink)
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let rest = &self.path[path.len() + 1..];
        Ok(vec![
            rest.split(|byte| *byte == b'/')
                .next()
                .unwrap_or(b"")
                .to_vec(),
        ])
    }

    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let bytes = self.bytes(path).ok_or(FsError::NotFound)?;
        let from = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
        let len = from.len().min(buf.len());
        buf[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    let path: &[u8] = match kind % 5 {
        0 => b"/boot/grub/grub.cfg",
        1 => b"/loader/entries/a.conf",
        2 => b"/boot/extlinux.conf",
        3 => b"/boot/grub2/grub.cfg",
        _ => {
            let read = |at: u64, buf: &mut [u8]| {
                let at = usize::try_from(at).unwrap();
                buf.copy_from_slice(&text[at..at + buf.len()]);
                Ok(())
            };
            let _ = kernel::parse(text.len() as u64, &read);
            return;
        }
    };
    let text = text.to_vec();
    let volume = Volume {
        partition: None,
        len: 1 << 30,
        held: Held::Files(Files::new(Box::new(OneFile { path, text }))),
    };
    let found = scan(&Disk {
        scheme: Scheme::None,
        volumes: vec![volume],
    });
    assert!(found.entries.len() <= MAX_ENTRIES);
    assert!(
        found
            .entries
            .iter()
            .all(|entry| entry.cmdline.len() <= MAX_CMDLINE)
    );
});
