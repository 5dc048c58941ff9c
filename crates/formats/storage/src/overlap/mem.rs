//! Stores in memory that complete overlapped requests in a seeded order.

use super::{Done, Overlap, Transfer, Work};
use crate::{MemStorage, Reserve, StorageError, StorageMut};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

/// No such file, or lengths that cannot be: invalid argument.
const EINVAL: u32 = 22;
/// Bytes that a copy moves at once.
const COPY_BYTES: u64 = 1 << 20;

/// Requests over stores of the caller, by file number.
///
/// A request is done when it is given back, not when it is submitted, and which one is next follows from
/// the seed: code that relies on an order, or looks at a buffer too early, shows. Faults are those of the
/// stores ([`crate::FaultyStorage`]) and of [`Self::fail`].
#[derive(Debug)]
pub struct MemOverlap<'a, S = MemStorage> {
    files: BTreeMap<u16, &'a S>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    random: u64,
    room: usize,
    held: Vec<Transfer>,
    /// Request, counted from 0 in the order of submission, and its errno.
    fail: Option<(u64, u32)>,
    submitted: u64,
    /// Numbers of the held requests, beside `held`.
    numbers: Vec<u64>,
    /// Most requests that were in flight at once.
    most: usize,
    log: Vec<(u16, Work)>,
}

impl<'a, S: StorageMut> MemOverlap<'a, S> {
    /// Takes up to `room` requests at once; completes them in an order that follows from `seed`.
    pub fn new(files: impl IntoIterator<Item = (u16, &'a S)>, room: usize, seed: u64) -> Self {
        Self {
            files: files.into_iter().collect(),
            state: RefCell::new(State {
                random: seed,
                room: room.max(1),
                held: Vec::new(),
                fail: None,
                submitted: 0,
                numbers: Vec::new(),
                most: 0,
                log: Vec::new(),
            }),
        }
    }

    /// Lets the `nth` request, counted from 0, fail with `errno`, undone.
    pub fn fail(&self, nth: u64, errno: u32) {
        self.state.borrow_mut().fail = Some((nth, errno));
    }

    /// Requests submitted so far.
    pub fn submitted(&self) -> u64 {
        self.state.borrow().submitted
    }

    /// Most requests that were in flight at once.
    pub fn most_in_flight(&self) -> usize {
        self.state.borrow().most
    }

    /// What was done, in the order of completion.
    pub fn log(&self) -> Vec<(u16, Work)> {
        self.state.borrow().log.clone()
    }

    fn perform(&self, transfer: &mut Transfer) -> Result<(), StorageError> {
        let invalid = StorageError {
            errno: EINVAL,
            offset: transfer.work.offset(),
        };
        let file = *self.files.get(&transfer.file).ok_or(invalid)?;
        match transfer.work {
            Work::Read { offset, len } => {
                let buf = transfer.buf.get_mut(..len).ok_or(invalid)?;
                file.read_at(offset, buf)
            }
            Work::Write { offset, len } => {
                file.write_at(offset, transfer.buf.get(..len).ok_or(invalid)?)
            }
            Work::Zero { offset, len } => file.write_zeroes(offset, len),
            Work::Discard { offset, len } => file.discard(offset, len),
            Work::Allocate { offset, len } => file.allocate(offset, len, Reserve::Blocks),
            Work::Copy {
                from,
                from_offset,
                offset,
                len,
            } => {
                let source = *self.files.get(&from).ok_or(invalid)?;
                let apart = from_offset.abs_diff(offset) >= len;
                if from == transfer.file && !apart {
                    return Err(invalid);
                }
                copy(source, from_offset, file, offset, len)
            }
            Work::Flush => file.flush(),
        }
    }
}

fn copy<S: StorageMut>(
    source: &S,
    from_offset: u64,
    target: &S,
    offset: u64,
    len: u64,
) -> Result<(), StorageError> {
    let mut done = 0;
    while done < len {
        let here = len.saturating_sub(done).min(COPY_BYTES);
        let mut buf = std::vec![0; usize::try_from(here).unwrap_or(0)];
        source.read_at(from_offset.saturating_add(done), &mut buf)?;
        target.write_at(offset.saturating_add(done), &buf)?;
        done = done.saturating_add(here);
    }
    Ok(())
}

impl State {
    /// Takes one of the held requests and its number.
    fn pick(&mut self) -> Option<(u64, Transfer)> {
        let count = u64::try_from(self.held.len()).ok()?;
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let index = self.random.wrapping_shr(33).checked_rem(count)?;
        let index = usize::try_from(index).ok()?;
        Some((self.numbers.remove(index), self.held.remove(index)))
    }
}

impl<S: StorageMut> Overlap for MemOverlap<'_, S> {
    fn submit(&self, transfer: Transfer) -> Result<(), Transfer> {
        let mut state = self.state.borrow_mut();
        if state.held.len() >= state.room {
            return Err(transfer);
        }
        let number = state.submitted;
        state.submitted = number.saturating_add(1);
        state.held.push(transfer);
        state.numbers.push(number);
        state.most = state.most.max(state.held.len());
        Ok(())
    }

    fn kick(&self) {}

    /// Gives nothing back one time in four: a request takes its time.
    fn poll(&self) -> Option<Done> {
        let random = self.state.borrow().random;
        if random.wrapping_shr(40).is_multiple_of(4) {
            let mut state = self.state.borrow_mut();
            state.random = random.wrapping_add(1 << 40);
            return None;
        }
        self.wait()
    }

    fn wait(&self) -> Option<Done> {
        let (number, mut transfer) = self.state.borrow_mut().pick()?;
        let fail = self.state.borrow().fail;
        let result = match fail {
            Some((nth, errno)) if nth == number => Err(StorageError {
                errno,
                offset: transfer.work.offset(),
            }),
            _ => self.perform(&mut transfer),
        };
        let mut state = self.state.borrow_mut();
        state.log.push((transfer.file, transfer.work));
        Some(Done {
            file: transfer.file,
            token: transfer.token,
            buf: transfer.buf,
            result,
        })
    }

    fn idle(&self) {}

    fn in_flight(&self) -> usize {
        self.state.borrow().held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Storage;

    fn transfer(file: u16, token: u64, work: Work, buf: Vec<u8>) -> Transfer {
        Transfer {
            file,
            token,
            work,
            buf,
        }
    }

    #[test]
    fn requests_come_back_in_another_order_with_their_buffers() {
        let (one, two) = (MemStorage::new(std::vec![7; 4096]), MemStorage::default());
        let files = MemOverlap::new([(0, &one), (3, &two)], 8, 5);
        for token in 0..8 {
            let len = 64;
            let work = Work::Read { offset: 0, len };
            let read = transfer(0, token, work, std::vec![0; 64]);
            files.submit(read).unwrap();
        }
        let extra = transfer(0, 9, Work::Flush, Vec::new());
        assert_eq!(
            files.submit(extra).unwrap_err().token,
            9,
            "the queue is full"
        );
        let done: Vec<Done> = std::iter::from_fn(|| files.wait()).collect();
        assert!(
            done.iter()
                .all(|done| done.buf == [7; 64] && done.result.is_ok())
        );
        let tokens: Vec<u64> = done.iter().map(|done| done.token).collect();
        assert!(!tokens.is_sorted(), "{tokens:?}");
        assert_eq!((files.in_flight(), files.most_in_flight()), (0, 8));
    }

    #[test]
    fn copies_go_between_files_but_never_onto_themselves() {
        let (one, two) = (MemStorage::new(std::vec![7; 100]), MemStorage::default());
        let files = MemOverlap::new([(0, &one), (1, &two)], 8, 1);
        let copy = |from, from_offset, offset, len| Work::Copy {
            from,
            from_offset,
            offset,
            len,
        };
        files
            .submit(transfer(1, 0, copy(0, 50, 10, 100), Vec::new()))
            .unwrap();
        assert!(files.wait().unwrap().result.is_ok());
        let mut expected = std::vec![0; 110];
        expected[10..60].fill(7);
        assert_eq!(two.to_vec(), expected);
        files
            .submit(transfer(1, 0, copy(1, 0, 50, 60), Vec::new()))
            .unwrap();
        assert_eq!(files.wait().unwrap().result.unwrap_err().errno, EINVAL);
        files
            .submit(transfer(9, 0, Work::Flush, Vec::new()))
            .unwrap();
        assert_eq!(files.wait().unwrap().result.unwrap_err().errno, EINVAL);
    }

    #[test]
    fn the_chosen_request_fails_undone() {
        let store = MemStorage::default();
        let files = MemOverlap::new([(0, &store)], 2, 1);
        files.fail(1, 28);
        for (token, offset) in [(0, 0), (1, 4)] {
            let write = Work::Write { offset, len: 4 };
            files
                .submit(transfer(0, token, write, std::vec![1; 4]))
                .unwrap();
        }
        let mut done = [files.wait().unwrap(), files.wait().unwrap()];
        done.sort_by_key(|done| done.token);
        assert!(done[0].result.is_ok());
        assert_eq!(done[1].result.unwrap_err().errno, 28);
        assert_eq!(store.len_bytes(), 4);
    }
}
