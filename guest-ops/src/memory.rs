//! Working memory: announced before it is used.

use crate::page::memory_grant;
use crate::{Context, Platform};
use instar_shared::control::MemoryGrant;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::zerocopy::little_endian::U64;

impl<P: Platform> Context<P> {
    /// Asks for `bytes` of working memory besides what is in use; returns how
    /// much may be used, at most `bytes`. Less means: do it in smaller steps, or fail with
    /// [`instar_shared::record::FailureKind::Memory`].
    #[must_use]
    pub fn grant(&mut self, bytes: u64) -> u64 {
        let page = memory_grant(&self.platform);
        page.write(MemoryGrant {
            wanted: U64::new(bytes),
            ..MemoryGrant::zeroed()
        });
        self.platform
            .kick(Kick::Control(Control::GrantMemory).encode());
        let answer = page.read();
        self.platform.heap_grew(answer.heap_end.get());
        answer.granted.get().min(bytes)
    }
}
