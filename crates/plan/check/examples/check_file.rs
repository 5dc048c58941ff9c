//! Checks a qcow2 file and prints findings, totals and the time it took:
//! `check_file IMAGE [GRANT_BYTES]`.

use instar_plan_check::{Cancelled, MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::File;
use std::time::Instant;

struct Print {
    grant: u64,
}

impl Reporter for Print {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let prefix = if kind == MessageKind::Prefixed {
            "qemu-img: "
        } else {
            ""
        };
        eprintln!("{prefix}{}", String::from_utf8_lossy(line));
    }

    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes.min(self.grant)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: check_file IMAGE [GRANT_BYTES]")?;
    let grant = args.next().map_or(Ok(8 << 30), |n| n.parse())?;
    let start = Instant::now();
    let storage = FileStorage::new(File::open(path)?)?;
    let header = Header::read(&storage, OpenMode::CheckWithKey)?;
    let result = check(&storage, &header, &mut Print { grant });
    let took = start.elapsed();
    println!("{result:?}");
    println!("{:.3} ms", took.as_secs_f64() * 1e3);
    Ok(())
}
