use super::*;
use instar_storage::overlap::Crew as _;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Doorbells of three threads as the contract has them: a kick is not lost.
#[derive(Clone)]
struct Doorbells {
    index: usize,
    kicked: Arc<(Mutex<[bool; 4]>, Condvar)>,
}

// SAFETY: only the doorbells are used.
unsafe impl Platform for Doorbells {
    fn kick(&self, value: u32) {
        let Some(Kick::Vcpu(index)) = Kick::decode(value) else {
            panic!("an unknown kick {value:#x}");
        };
        self.kicked.0.lock().unwrap()[usize::from(index)] = true;
        self.kicked.1.notify_all();
    }

    fn wait(&self, _value: u32) {
        let kicked = self.kicked.0.lock().unwrap();
        let (mut kicked, timeout) = self
            .kicked
            .1
            .wait_timeout_while(kicked, Duration::from_secs(30), |kicked| {
                !kicked[self.index]
            })
            .unwrap();
        assert!(!timeout.timed_out(), "vCPU {} sleeps for ever", self.index);
        kicked[self.index] = false;
    }

    fn pointer(&self, _addr: u64, _len: usize) -> NonNull<u8> {
        unreachable!()
    }
    fn dma_address(&self, _pointer: *const u8, _len: usize) -> Option<u64> {
        unreachable!()
    }
    fn dma_alloc(&self, _layout: Layout) -> Option<NonNull<u8>> {
        unreachable!()
    }
    unsafe fn dma_free(&self, _pointer: NonNull<u8>, _layout: Layout) {}
    fn heap_grew(&self, _heap_end: u64) {}
    fn ticks(&self) -> u64 {
        unreachable!()
    }
}

struct Job {
    input: u64,
    output: u64,
    stop: bool,
}

fn square(job: &mut Job) {
    job.output = job.input * job.input;
}

fn job(input: u64) -> Box<Job> {
    Box::new(Job {
        input,
        output: 0,
        stop: false,
    })
}

/// A crew of `further` threads; what `work` does with it. Each thread ends after a kick without a job.
fn with_crew(further: usize, work: impl FnOnce(&Crew<Job, Doorbells>)) {
    let board: &'static Board = Box::leak(Box::new(Board::new()));
    let kicked = Arc::new((Mutex::new([false; 4]), Condvar::new()));
    let bells = |index| Doorbells {
        index,
        kicked: Arc::clone(&kicked),
    };
    let over = Arc::new(AtomicBool::new(false));
    let crew = Crew::with(bells(0), board, further, square);
    let threads: Vec<_> = (1..=further)
        .map(|index| {
            let (bells, over) = (bells(index), Arc::clone(&over));
            std::thread::spawn(move || {
                board.serve(index, &bells, || !over.load(Ordering::SeqCst));
            })
        })
        .collect();
    work(&crew);
    over.store(true, Ordering::SeqCst);
    for (index, thread) in (1_u8..).zip(threads) {
        bells(0).kick(Kick::Vcpu(index).encode());
        thread.join().unwrap();
    }
}

#[test]
fn every_job_comes_back_done_once() {
    for further in [0, 1, 3] {
        with_crew(further, |crew| {
            assert_eq!(crew.cores(), further);
            assert!(crew.wait().is_none(), "nothing is in flight");
            let mut seen = vec![0; 5000];
            let mut next = 0;
            let mut collect = |job: Box<Job>| {
                assert!(!job.stop);
                assert_eq!(job.output, job.input * job.input);
                seen[usize::try_from(job.input).unwrap()] += 1;
            };
            while next < 5000 {
                match crew.submit(job(next)) {
                    Ok(()) => next += 1,
                    Err(back) => {
                        assert_eq!(back.input, next);
                        assert_eq!(crew.in_flight(), crew.room());
                        collect(crew.wait().unwrap());
                    }
                }
                if next % 7 == 0
                    && let Some(job) = crew.poll()
                {
                    collect(job);
                }
            }
            while let Some(job) = crew.wait() {
                collect(job);
            }
            assert!(seen.iter().all(|count| *count == 1));
        });
    }
}

#[test]
fn a_crew_that_idles_is_woken_for_each_job() {
    with_crew(1, |crew| {
        for input in 0..200 {
            crew.submit(job(input)).ok().unwrap();
            assert_eq!(crew.wait().unwrap().output, input * input);
            if input % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
}
