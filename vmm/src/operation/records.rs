//! Takes the record window apart. See `instar_shared::record`.

use instar_shared::layout::RECORDS;
use instar_shared::record::{MAX_PAYLOAD, MAX_RECORDS, RECORD_ALIGN, RecordHeader, RecordKind};
use instar_shared::zerocopy::FromBytes;

/// Counts the records of a run.
#[derive(Debug, Default)]
pub struct RecordStream {
    taken: u64,
}

impl RecordStream {
    /// How much of the window the guest says it filled, if that can be.
    ///
    /// # Errors
    /// What is wrong with the number.
    pub fn window_bytes(filled: u32) -> Result<usize, String> {
        usize::try_from(filled)
            .ok()
            .filter(|len| u64::from(filled) <= RECORDS.size && len % RECORD_ALIGN == 0)
            .ok_or_else(|| format!("record window of {filled} bytes"))
    }

    /// Hands each record of `window`, the host's own copy, to `take`.
    ///
    /// # Errors
    /// What is malformed, or what `take` said.
    pub fn split(
        &mut self,
        mut window: &[u8],
        mut take: impl FnMut(RecordKind, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while !window.is_empty() {
            let (header, rest) =
                RecordHeader::read_from_prefix(window).map_err(|_| "record header cut short")?;
            let kind = RecordKind::try_from(header.kind.get())
                .map_err(|kind| format!("record of kind {kind}"))?;
            let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
            if len > MAX_PAYLOAD {
                return Err(format!("record of {len} bytes"));
            }
            let payload = rest.get(..len).ok_or("record payload cut short")?;
            self.taken = self.taken.saturating_add(1);
            if self.taken > MAX_RECORDS {
                return Err("too many records".into());
            }
            take(kind, payload)?;
            window = rest
                .get(len.next_multiple_of(RECORD_ALIGN)..)
                .ok_or("record padding cut short")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_shared::zerocopy::IntoBytes;

    fn record(kind: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = RecordHeader {
            kind: kind.into(),
            len: len.into(),
        }
        .as_bytes()
        .to_vec();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN), 0);
        bytes
    }

    #[test]
    fn records_come_out_in_order() {
        let mut window = record(1, b"one");
        window.extend(record(2, b""));
        let mut seen = Vec::new();
        let take = |kind, payload: &[u8]| {
            seen.push((kind, payload.to_vec()));
            Ok(())
        };
        RecordStream::default().split(&window, take).unwrap();
        assert_eq!(
            seen,
            [
                (RecordKind::Line, b"one".to_vec()),
                (RecordKind::Diagnostic, Vec::new())
            ]
        );
    }

    #[test]
    fn malformed_windows_are_refused() {
        let whole = record(1, b"12345678");
        for cut in 1..whole.len() {
            assert!(
                RecordStream::default()
                    .split(&whole[..cut], |_, _| Ok(()))
                    .is_err(),
                "{cut}"
            );
        }
        assert!(
            RecordStream::default()
                .split(&record(999, b""), |_, _| Ok(()))
                .is_err()
        );
        let huge = RecordHeader {
            kind: 1.into(),
            len: u32::MAX.into(),
        };
        assert!(
            RecordStream::default()
                .split(huge.as_bytes(), |_, _| Ok(()))
                .is_err()
        );
        assert!(RecordStream::window_bytes(u32::MAX).is_err());
        assert!(RecordStream::window_bytes(7).is_err());
        assert!(RecordStream::window_bytes(8).is_ok());
    }

    #[test]
    fn a_stream_ends_after_4294967296_records() {
        let mut stream = RecordStream {
            taken: (1 << 32) - 1,
        };
        let one = record(1, b"one");
        stream.split(&one, |_, _| Ok(())).unwrap();
        let past = stream.split(&one, |_, _| panic!("it is taken over"));
        assert_eq!(past.unwrap_err(), "too many records");
    }
}
