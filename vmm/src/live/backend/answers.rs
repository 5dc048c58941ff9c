//! Answers that have come, and what they change.

use super::{LiveBackend, wrong};
use crate::live::check::Wrong;
use crate::live::request::Request;
use crate::live::source::{Answer, Answered, Question, Questions, SourceGone};
use instar_devices::blk::{Errno, IoKind, IoRequest};

impl<Q: Questions> LiveBackend<Q> {
    /// Takes the answers that have come.
    pub fn take_answers(&mut self) {
        if self.gone.is_some() {
            return;
        }
        let taken = self.questions.answers().and_then(|answers| {
            let mut answers = answers.into_iter();
            answers.try_for_each(|answered| self.take_answer(answered))
        });
        if let Err(gone) = taken {
            self.end(gone);
        }
        self.wake();
    }

    fn take_answer(&mut self, answered: Answered) -> Result<(), SourceGone> {
        let Answered {
            by,
            question,
            answer,
        } = answered;
        let request = by.and_then(|id| Some((id, self.requests.remove(id)?)));
        let Some((id, mut request)) = request else {
            return match (question, answer) {
                (Question::Link { .. } | Question::Abandon { .. }, Answer::Refused(errno)) => {
                    Err(wrong(Wrong::Refused(errno)))
                }
                _ => Ok(()),
            };
        };
        request.asked = request.asked.saturating_sub(1);
        let took = self.apply(id, &mut request, question, answer);
        if took.is_err() {
            request.fail(Errno::EIO);
        }
        self.go_on(id, request);
        took.map_err(wrong)
    }

    /// What an answer changes.
    fn apply(
        &mut self,
        id: u64,
        request: &mut Request,
        question: Question,
        answer: Answer,
    ) -> Result<(), Wrong> {
        if let Question::Lookup { .. } = question {
            self.stale.answered();
            request.looking = false;
        }
        match (question, answer) {
            (Question::Lookup { start, .. }, Answer::Extents(extents)) => {
                self.checked.lookup(start, &extents)?;
                let own = request.clusters;
                for extent in extents {
                    if let Some(fresh) = self.stale.fresh(extent, own) {
                        self.map.insert(fresh);
                    }
                }
            }
            (Question::Allocate { start, len }, Answer::Allocated { ticket, extents }) => {
                let end = start.saturating_add(len);
                self.checked.allocated(start, end, &extents)?;
                if ticket != 0 {
                    request.tickets.push(ticket);
                }
                self.place(id, request, (start, end), &extents);
                request.placed.extend(extents);
            }
            (Question::Fetch { start, len }, Answer::Bytes(bytes)) => {
                if bytes.len() as u64 != len {
                    return Err(Wrong::Length((bytes.len() as u64).abs_diff(len)));
                }
                let buffers = request.buffers_at(start, len);
                let kind = IoKind::Read { offset: start };
                let filled = IoRequest { kind, buffers }.fill(self.parts.memory.dma(), &bytes);
                if let Err(errno) = filled {
                    request.fail(errno);
                }
            }
            (Question::Discard { .. } | Question::WriteZeroes { .. }, Answer::Done) => {
                let (start, end) = request.clusters;
                self.map.remove(start, end);
            }
            (Question::Flush, Answer::Done) => self.flushed = request.flushes,
            // A hint that cannot be taken.
            (Question::Discard { .. }, Answer::Refused(Errno::EOPNOTSUPP)) => {}
            (Question::Link { .. } | Question::Abandon { .. } | Question::Close, _) => {}
            (_, Answer::Refused(errno)) => request.fail(errno),
            _ => return Err(Wrong::Kind),
        }
        Ok(())
    }

    /// There are no answers any more: whatever waits for one has failed.
    pub(super) fn end(&mut self, gone: SourceGone) {
        self.gone = Some(gone);
        for id in self.requests.ids() {
            if let Some(mut request) = self.requests.remove(id) {
                request.asked = 0;
                request.fail(Errno::EIO);
                self.go_on(id, request);
            }
        }
    }
}
