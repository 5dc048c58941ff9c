//! Jobs on the machine's further vCPUs.
//!
//! The first vCPU posts a job to a vCPU's mailbox and kicks it if it sleeps; that vCPU runs the job and
//! marks the mailbox, and kicks the first vCPU if that sleeps. A job computes: it must not allocate,
//! ring a doorbell, write records, or touch anything that is not its own, since all of that
//! is the first vCPU's.
//!
//! ```text
//!   EMPTY --post--> READY --run--> DONE --collect--> EMPTY
//!     (first vCPU)    (vCPU n)       (first vCPU)
//! ```

use crate::{Context, Machine, Platform};
use alloc::boxed::Box;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
use instar_shared::doorbell::Kick;
use instar_shared::layout::MAX_VCPUS;
use instar_storage::overlap;

/// Jobs posted to one vCPU: one that runs, and one that it finds when it is done.
const DEPTH: usize = 2;
/// Most vCPUs besides the first.
const MAX_FURTHER: usize = MAX_VCPUS as usize - 1;

const EMPTY: u32 = 0;
const READY: u32 = 1;
const DONE: u32 = 2;

/// One job on its way.
#[derive(Debug)]
struct Mailbox {
    state: AtomicU32,
    job: AtomicPtr<()>,
}

/// What one further vCPU and the first share. A cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Desk {
    boxes: [Mailbox; DEPTH],
    /// Whether it looks for jobs; if not, it must be kicked.
    awake: AtomicBool,
}

/// All desks, and how jobs are run.
#[derive(Debug)]
pub(crate) struct Board {
    desks: [Desk; MAX_FURTHER],
    /// `unsafe fn(usize, *mut ())`: calls a `fn(&mut J)` with a job. 0 until a crew is there.
    call: AtomicUsize,
    /// The `fn(&mut J)`.
    run: AtomicUsize,
    /// The first vCPU sleeps, or is about to.
    first_waits: AtomicBool,
}

/// The machine's board: further vCPUs find it without being told.
static BOARD: Board = Board::new();

/// Sleeps until a request or a job has ended, unless one has already: `ended` says so of requests. May return
/// early.
pub(crate) fn wait_unless<P: Platform>(platform: &P, ended: impl Fn() -> bool) {
    BOARD.first_waits.store(true, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    if !ended() && !BOARD.any_done() {
        platform.wait(0);
    }
    BOARD.first_waits.store(false, Ordering::SeqCst);
}

/// [`serve`], once there is a crew, so that programs without one do not carry it; 0 before.
static SERVE: AtomicUsize = AtomicUsize::new(0);

/// The life of further vCPU `index`, which somebody kicked.
pub(crate) fn enter(index: usize) -> ! {
    let serve = SERVE.load(Ordering::Acquire);
    if serve != 0 {
        // SAFETY: only `Crew::start` stores another value than 0, and that is such a function.
        let serve: fn(usize) -> ! = unsafe { core::mem::transmute(serve) };
        serve(index);
    }
    loop {
        Machine.wait(0);
    }
}

/// Runs what is posted to vCPU `index`.
fn serve(index: usize) -> ! {
    loop {
        BOARD.serve(index, &Machine, || true);
    }
}

impl Board {
    const fn new() -> Self {
        const fn mailbox() -> Mailbox {
            Mailbox {
                state: AtomicU32::new(EMPTY),
                job: AtomicPtr::new(core::ptr::null_mut()),
            }
        }
        const fn desk() -> Desk {
            Desk {
                boxes: [mailbox(), mailbox()],
                awake: AtomicBool::new(false),
            }
        }
        Self {
            desks: [desk(), desk(), desk()],
            call: AtomicUsize::new(0),
            run: AtomicUsize::new(0),
            first_waits: AtomicBool::new(false),
        }
    }

    /// Whether a job is done and not collected.
    fn any_done(&self) -> bool {
        let mut boxes = self.desks.iter().flat_map(|desk| &desk.boxes);
        boxes.any(|mailbox| mailbox.state.load(Ordering::Acquire) == DONE)
    }

    /// vCPU `index` runs what is posted to it, and sleeps when nothing is, while `go_on` says so.
    fn serve<P: Platform>(&self, index: usize, platform: &P, go_on: impl Fn() -> bool) {
        let Some(desk) = index.checked_sub(1).and_then(|desk| self.desks.get(desk)) else {
            return platform.wait(0);
        };
        desk.awake.store(true, Ordering::SeqCst);
        while go_on() {
            if self.run_next(desk, platform) {
                continue;
            }
            // Whoever posts from here on kicks; what was posted before is seen.
            desk.awake.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !desk.has_ready() {
                platform.wait(0);
            }
            desk.awake.store(true, Ordering::SeqCst);
        }
    }

    /// Runs one job; false if there is none.
    fn run_next<P: Platform>(&self, desk: &Desk, platform: &P) -> bool {
        let mut boxes = desk.boxes.iter();
        let ready = boxes.find(|mailbox| mailbox.state.load(Ordering::Acquire) == READY);
        let Some(mailbox) = ready else {
            return false;
        };
        let job = mailbox.job.load(Ordering::Relaxed);
        let (call, run) = (
            self.call.load(Ordering::Relaxed),
            self.run.load(Ordering::Relaxed),
        );
        if call != 0 {
            // SAFETY: `call` is 0 or this kind of function (`Crew::start` stored it before any job was
            // posted), and fits `run` and the jobs of the one crew that there is; the job is this vCPU's
            // alone until the mailbox says `DONE`.
            unsafe {
                let call: unsafe fn(usize, *mut ()) = core::mem::transmute(call);
                call(run, job);
            }
        }
        mailbox.state.store(DONE, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.first_waits.load(Ordering::SeqCst) {
            platform.kick(Kick::Vcpu(0).encode());
        }
        true
    }
}

impl Desk {
    fn has_ready(&self) -> bool {
        let mut boxes = self.boxes.iter();
        boxes.any(|mailbox| mailbox.state.load(Ordering::Acquire) == READY)
    }

    fn in_flight(&self) -> usize {
        let boxes = self.boxes.iter();
        boxes
            .filter(|mailbox| mailbox.state.load(Ordering::Acquire) != EMPTY)
            .count()
    }
}

/// Calls the `fn(&mut J)` at `run` with the job.
///
/// # Safety
/// `run` is such a function, and `job` a `J` that nobody else uses.
unsafe fn call<J>(run: usize, job: *mut ()) {
    // SAFETY: the caller's promise.
    unsafe {
        let run: fn(&mut J) = core::mem::transmute(run);
        run(&mut *job.cast::<J>());
    }
}

/// Runs jobs on further vCPUs; on this one, when they are posted, if there are none.
///
/// A program has at most one crew at a time.
pub struct Crew<J: Send + 'static, P: Platform = Machine> {
    platform: P,
    board: &'static Board,
    /// vCPUs besides the first.
    further: usize,
    inline: overlap::Inline<J>,
    jobs: PhantomData<Box<J>>,
}

impl<J: Send + 'static, P: Platform> fmt::Debug for Crew<J, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crew({} vCPUs)", self.further)
    }
}

impl<J: Send + 'static, P: Platform> Crew<J, P> {
    /// A crew of all further vCPUs of the machine, which run jobs by `run`.
    #[must_use]
    pub fn start(context: &Context<P>, run: fn(&mut J)) -> Self {
        let vcpus = usize::try_from(context.boot().vcpus.get()).unwrap_or(1);
        let further = vcpus.saturating_sub(1).min(MAX_FURTHER);
        let serve: fn(usize) -> ! = serve;
        SERVE.store(serve as usize, Ordering::Release);
        #[cfg(any(instar_guest, target_os = "none"))]
        crate::runtime::note_panics();
        Self::with(context.platform.clone(), &BOARD, further, run)
    }

    fn with(platform: P, board: &'static Board, further: usize, run: fn(&mut J)) -> Self {
        let call: unsafe fn(usize, *mut ()) = call::<J>;
        board.run.store(run as usize, Ordering::Relaxed);
        board.call.store(call as usize, Ordering::Release);
        Self {
            platform,
            board,
            further,
            inline: overlap::Inline::new(run),
            jobs: PhantomData,
        }
    }

    /// Puts the job into an empty mailbox of `desk`, that of vCPU `index`.
    fn post(&self, index: usize, desk: &Desk, job: Box<J>) -> Result<(), Box<J>> {
        let mut boxes = desk.boxes.iter();
        let empty = boxes.find(|mailbox| mailbox.state.load(Ordering::Acquire) == EMPTY);
        let Some(mailbox) = empty else {
            return Err(job);
        };
        mailbox
            .job
            .store(Box::into_raw(job).cast(), Ordering::Relaxed);
        mailbox.state.store(READY, Ordering::Release);
        fence(Ordering::SeqCst);
        if !desk.awake.load(Ordering::SeqCst) {
            let index = u8::try_from(index).unwrap_or(0);
            self.platform.kick(Kick::Vcpu(index).encode());
        }
        Ok(())
    }

    fn desks(&self) -> &'static [Desk] {
        self.board.desks.get(..self.further).unwrap_or_default()
    }
}

impl<J: Send + 'static, P: Platform> overlap::Crew<J> for Crew<J, P> {
    fn room(&self) -> usize {
        match self.further {
            0 => self.inline.room(),
            further => further.saturating_mul(DEPTH),
        }
    }

    fn cores(&self) -> usize {
        self.further
    }

    fn submit(&self, job: Box<J>) -> Result<(), Box<J>> {
        if self.further == 0 {
            return self.inline.submit(job);
        }
        let desks = (1..).zip(self.desks());
        match desks.min_by_key(|(_, desk)| desk.in_flight()) {
            Some((index, desk)) => self.post(index, desk, job),
            None => Err(job),
        }
    }

    fn poll(&self) -> Option<Box<J>> {
        if self.further == 0 {
            return self.inline.poll();
        }
        let mut boxes = self.desks().iter().flat_map(|desk| &desk.boxes);
        let done = boxes.find(|mailbox| mailbox.state.load(Ordering::Acquire) == DONE)?;
        let job = done.job.swap(core::ptr::null_mut(), Ordering::Relaxed);
        done.state.store(EMPTY, Ordering::Release);
        // SAFETY: `post` made the pointer of a box of this type; the vCPU has let go of it, and the mailbox
        // is emptied once.
        Some(unsafe { Box::from_raw(job.cast()) })
    }

    fn wait(&self) -> Option<Box<J>> {
        loop {
            if let Some(job) = self.poll() {
                return Some(job);
            }
            if self.in_flight() == 0 {
                return None;
            }
            let board = self.board;
            board.first_waits.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !board.any_done() {
                self.platform.wait(0);
            }
            board.first_waits.store(false, Ordering::SeqCst);
        }
    }

    fn in_flight(&self) -> usize {
        match self.further {
            0 => self.inline.in_flight(),
            _ => self.desks().iter().map(Desk::in_flight).sum(),
        }
    }
}

impl<J: Send + 'static, P: Platform> Drop for Crew<J, P> {
    /// Waits for the jobs in flight: they belong to other vCPUs until then.
    fn drop(&mut self) {
        while overlap::Crew::wait(self).is_some() {}
    }
}

#[cfg(test)]
mod tests;
