//! Repairs a qcow2 file and prints lines, totals and the time it took:
//! `repair_file leaks|all IMAGE [GRANT_BYTES]`.

use instar_plan_repair::{Cancelled, MessageKind, Mode, Reporter, repair};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

struct Print {
    grant: u64,
    out: std::io::BufWriter<std::io::Stderr>,
}

impl Reporter for Print {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let prefix: &[u8] = match kind {
            MessageKind::Prefixed => b"qemu-img: ",
            MessageKind::Plain => b"",
        };
        // Nobody is told if standard error is closed.
        let _ = self.out.write_all(&[prefix, line, b"\n"].concat());
    }

    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes.min(self.grant)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: repair_file leaks|all IMAGE [GRANT_BYTES]";
    let mut args = std::env::args().skip(1);
    let mode = match args.next().as_deref() {
        Some("leaks") => Mode::Leaks,
        Some("all") => Mode::All,
        _ => return Err(usage.into()),
    };
    let path = args.next().ok_or(usage)?;
    let grant = args.next().map_or(Ok(8 << 30), |n| n.parse())?;
    let start = Instant::now();
    let storage = FileStorage::new(OpenOptions::new().read(true).write(true).open(path)?)?;
    let header = Header::read(&storage, OpenMode::CheckWithKey)?;
    let mut print = Print {
        grant,
        out: std::io::BufWriter::new(std::io::stderr()),
    };
    let result = repair(&storage, &header, mode, &mut print);
    print.out.flush()?;
    println!("{result:?}");
    println!("{:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
