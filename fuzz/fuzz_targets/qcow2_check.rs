//! The consistency check of a qcow2 image, with grants from nothing to plenty: no panic, and the
//! totals do not depend on how much memory was granted.
#![no_main]

use instar_plan_check::{Cancelled, CheckError, CheckSummary, MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::MemStorage;
use libfuzzer_sys::fuzz_target;

/// Progress steps after which the user has enough.
const PATIENCE: u32 = 200_000;

struct Quiet {
    grant: u64,
    steps: u32,
}

impl Reporter for Quiet {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        assert!(!line.is_empty());
    }

    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        self.steps += 1;
        if self.steps > PATIENCE {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes.min(self.grant)
    }
}

fn run(image: &MemStorage, header: &Header, grant: u64) -> Result<CheckSummary, CheckError> {
    let summary = check(image, header, &mut Quiet { grant, steps: 0 })?;
    Ok(CheckSummary {
        passes: 0,
        ..summary
    })
}

fuzz_target!(|bytes: &[u8]| {
    let image = MemStorage::new(bytes.to_vec());
    let Ok(header) = Header::read(&image, OpenMode::CheckWithKey) else {
        return;
    };
    let plenty = run(&image, &header, u64::MAX);
    let tight = run(&image, &header, 0);
    if let (Ok(plenty), Ok(tight)) = (plenty, tight) {
        assert_eq!(plenty, tight, "totals with all memory and with none");
    }
});
