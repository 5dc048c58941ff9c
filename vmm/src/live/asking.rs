//! Questions over a channel to a microVM, asked by a disk's own thread, which waits for nothing.
//!
//! One batch is on its way at a time: what is asked meanwhile makes up the next one, so that the busier a disk is, the more
//! questions share an entry into the microVM.

use super::backend::{Answered, Questions};
use super::channel::Asker;
use super::source::{Answer, MAX_BATCH, Question, SourceGone};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A disk's end of the channel to who answers for its map, which is open.
#[derive(Debug)]
pub struct Asking {
    asker: Asker,
    /// To be sent: who asked, and what.
    waiting: VecDeque<(Option<u64>, Question)>,
    /// The batch that is on its way.
    sent: Vec<(Option<u64>, Question)>,
}

impl Asking {
    /// Over a channel whose other end has said what the disk is.
    #[must_use]
    pub const fn new(asker: Asker) -> Self {
        Self {
            asker,
            waiting: VecDeque::new(),
            sent: Vec::new(),
        }
    }

    /// Readable when there may be answers, or nobody to ask any more.
    #[must_use]
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.asker.socket()
    }
}

impl Questions for Asking {
    fn ask(&mut self, by: Option<u64>, question: Question) {
        self.waiting.push_back((by, question));
    }

    fn send(&mut self) -> Result<(), SourceGone> {
        if !self.sent.is_empty() || self.waiting.is_empty() {
            return Ok(());
        }
        let count = self.waiting.len().min(MAX_BATCH);
        self.sent.extend(self.waiting.drain(..count));
        let questions: Vec<Question> = self.sent.iter().map(|(_, question)| *question).collect();
        self.asker.begin(&questions)
    }

    fn answers(&mut self) -> Result<Vec<Answered>, SourceGone> {
        let questions: Vec<Question> = self.sent.iter().map(|(_, question)| *question).collect();
        let Some(answers) = self.asker.poll(&questions)? else {
            return Ok(Vec::new());
        };
        let asked = std::mem::take(&mut self.sent);
        let mut answered = Vec::with_capacity(answers.len());
        for ((by, question), answer) in asked.into_iter().zip(answers) {
            if let (None, Answer::Allocated { ticket, .. }) = (by, &answer)
                && *ticket != 0
            {
                // Before anything else about its clusters.
                let abandon = Question::Abandon { ticket: *ticket };
                self.waiting.push_front((None, abandon));
            }
            answered.push(Answered {
                by,
                question,
                answer,
            });
        }
        Ok(answered)
    }

    fn forget(&mut self) {
        self.waiting.retain(|(_, question)| {
            matches!(question, Question::Link { .. } | Question::Abandon { .. })
        });
        for (by, _) in &mut self.sent {
            *by = None;
        }
    }
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
