//! What a resident operation is asked, and its answers. See [`instar_shared::live`].

use crate::page::Shared;
use crate::{Context, Machine, Platform};
use alloc::vec::Vec;
use core::mem::offset_of;
use core::ptr::NonNull;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::LIVE;
use instar_shared::live::{
    ANSWERS_AT, ANSWERS_END, AnswerHead, LivePage, LiveQuery, MAX_BATCH, WINDOW_BYTES,
};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U32;

#[allow(clippy::cast_possible_truncation)] // 256 KiB
const WINDOW: usize = WINDOW_BYTES as usize;

/// Takes batches of queries and writes the stream of their answers.
#[derive(Debug)]
pub struct Queries<P: Platform = Machine> {
    platform: P,
    window: NonNull<u8>,
    filled: usize,
}

impl<P: Platform> Context<P> {
    /// The queries of a resident operation. Their region is there for such ones only.
    #[must_use]
    pub fn queries(&self) -> Queries<P> {
        let start = LIVE.start.saturating_add(ANSWERS_AT);
        Queries {
            window: self.platform.pointer(start, WINDOW),
            platform: self.platform.clone(),
            filled: 0,
        }
    }
}

impl<P: Platform> Queries<P> {
    /// Ends the answers to the last batch and waits for the next one, which it puts into `batch`.
    pub fn next(&mut self, batch: &mut Vec<LiveQuery>) {
        self.hand_over(ANSWERS_END);
        let at = |offset: usize| LIVE.start.saturating_add(offset as u64);
        let count: Shared<U32> = Shared::at(&self.platform, at(offset_of!(LivePage, count)));
        let count = (count.read().get() as usize).min(MAX_BATCH);
        batch.clear();
        for index in 0..count {
            let offset = offset_of!(LivePage, queries)
                .saturating_add(index.saturating_mul(size_of::<LiveQuery>()));
            batch.push(Shared::at(&self.platform, at(offset)).read());
        }
    }

    /// Begins an answer; what `head` announces follows.
    pub fn answer(&mut self, head: &AnswerHead) {
        self.put(head.as_bytes());
    }

    /// Goes on with an answer.
    pub fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.filled >= WINDOW {
                self.hand_over(0);
            }
            let room = WINDOW.saturating_sub(self.filled);
            let (now, later) = rest.split_at(room.min(rest.len()));
            // SAFETY: the platform gave a pointer to the whole window, `filled` and what is put there is inside it, and no
            // slice refers to it; the host reads it only while a doorbell rings.
            unsafe {
                self.window
                    .add(self.filled)
                    .copy_from_nonoverlapping(NonNull::from(now).cast(), now.len());
            }
            self.filled = self.filled.saturating_add(now.len());
            rest = later;
        }
    }

    /// Has the host take what is in the window.
    fn hand_over(&mut self, flags: u32) {
        let filled = u32::try_from(self.filled).unwrap_or(0);
        let front: Shared<[U32; 2]> = Shared::at(&self.platform, LIVE.start);
        front.write([U32::new(filled), U32::new(flags)]);
        self.platform.kick(Kick::Control(Control::Serve).encode());
        self.filled = 0;
    }
}

const _: () = assert!(offset_of!(LivePage, filled) == 0 && offset_of!(LivePage, flags) == 4);
