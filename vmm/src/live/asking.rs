//! Questions over a channel to a microVM, asked by a disk's own thread, which waits for nothing.
//!
//! One batch is on its way at a time: what is asked meanwhile makes up the next one, so that the busier a disk is, the more
//! questions share an entry into the microVM. Links, which nobody waits for, go with the next question, or by themselves when
//! that does not come for a while: else each write that needs clusters took two entries.

use super::backend::{Answered, Questions};
use super::channel::Asker;
use super::source::{Answer, MAX_BATCH, Question, SourceGone};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long links wait for another question. Until they are sent, the end of the disk's process loses what they link, as a
/// power cut does until the next flush.
pub const HOLD: Duration = Duration::from_millis(20);
/// So many of them go by themselves.
const MOST_HELD: usize = MAX_BATCH / 2;

/// A disk's end of the channel to who answers for its map, which is open.
#[derive(Debug)]
pub struct Asking {
    asker: Asker,
    /// To be sent: who asked, and what.
    waiting: VecDeque<(Option<u64>, Question)>,
    /// How many of these somebody waits for.
    pressing: usize,
    /// Since when links wait for other questions.
    held: Option<Instant>,
    /// The batch that is on its way, and who asked each of its questions.
    sent: Vec<Question>,
    askers: Vec<Option<u64>>,
}

impl Asking {
    /// Over a channel whose other end has said what the disk is.
    #[must_use]
    pub const fn new(asker: Asker) -> Self {
        Self {
            asker,
            waiting: VecDeque::new(),
            pressing: 0,
            held: None,
            sent: Vec::new(),
            askers: Vec::new(),
        }
    }

    /// Readable when there may be answers, or nobody to ask any more.
    #[must_use]
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.asker.socket()
    }
}

impl Asking {
    /// Whether what waits goes to the guest.
    fn is_due(&mut self, now: Instant) -> bool {
        if !self.sent.is_empty() || self.waiting.is_empty() {
            return false;
        }
        let held = now.saturating_duration_since(*self.held.get_or_insert(now));
        self.pressing > 0 || self.waiting.len() >= MOST_HELD || held >= HOLD
    }
}

/// Whether nobody waits for the answer.
const fn is_for_nobody(question: &Question) -> bool {
    matches!(question, Question::Link { .. } | Question::Abandon { .. })
}

impl Questions for Asking {
    fn ask(&mut self, by: Option<u64>, question: Question) {
        if !is_for_nobody(&question) {
            self.pressing = self.pressing.saturating_add(1);
        }
        self.waiting.push_back((by, question));
    }

    fn send(&mut self) -> Result<(), SourceGone> {
        if !self.is_due(Instant::now()) {
            return Ok(());
        }
        self.held = None;
        let count = self.waiting.len().min(MAX_BATCH);
        for (by, question) in self.waiting.drain(..count) {
            if !is_for_nobody(&question) {
                self.pressing = self.pressing.saturating_sub(1);
            }
            self.askers.push(by);
            self.sent.push(question);
        }
        self.asker.begin(&self.sent)
    }

    fn answers(&mut self) -> Result<Vec<Answered>, SourceGone> {
        let Some(answers) = self.asker.poll(&self.sent)? else {
            return Ok(Vec::new());
        };
        let asked = self.askers.drain(..).zip(self.sent.drain(..));
        let mut answered = Vec::with_capacity(answers.len());
        for ((by, question), answer) in asked.zip(answers) {
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
        self.waiting.retain(|(_, question)| is_for_nobody(question));
        self.pressing = 0;
        self.askers.fill(None);
    }

    fn holds(&self) -> bool {
        self.pressing == 0 && !self.waiting.is_empty()
    }

    fn end(&mut self) {
        self.forget();
        let waiting: Vec<Question> = self
            .waiting
            .drain(..)
            .map(|(_, question)| question)
            .collect();
        for batch in waiting.chunks(MAX_BATCH) {
            // Nobody is left to be told that there is nobody to ask.
            let _ = self.asker.begin(batch);
        }
    }
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
