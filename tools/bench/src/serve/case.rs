//! What is asked of a server, and how fast it was.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use instar_tests::front::{Front, Request};
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;

use crate::server::{IMAGE, Kind, SOCKET, Server};

/// Of the image.
pub const CLUSTER_BYTES: u64 = 64 << 10;
const CLUSTERS: u64 = 8192;
/// Of a request.
const REQUEST_BYTES: u64 = 4 << 10;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Writes into a cluster that nobody has written: each request one of its own.
    Allocates,
    /// Writes somewhere into an image that has all its clusters.
    Overwrites,
    /// Reads somewhere from such an image.
    Reads,
}

/// One row of the table.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub does: Does,
    pub at_once: u64,
    requests: u64,
}

const fn case(name: &'static str, does: Does, at_once: u64, requests: u64) -> Case {
    Case {
        name,
        does,
        at_once,
        requests,
    }
}

/// All of them. None allocates more clusters than there are.
pub const CASES: [Case; 6] = [
    case("random writes that allocate", Does::Allocates, 1, 4096),
    case("random writes that allocate", Does::Allocates, 8, 8192),
    case("random overwrites", Does::Overwrites, 1, 16384),
    case("random overwrites", Does::Overwrites, 8, 16384),
    case("random reads", Does::Reads, 1, 16384),
    case("random reads", Does::Reads, 8, 16384),
];

/// How long a run took, without and with its flush.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    rate: f64,
    flush: Duration,
}

impl Case {
    /// Has one program do it, on an image made for this run.
    pub fn measure(&self, kind: Kind) -> Result<Taken> {
        let scratch = Scratch::new()?;
        self.make_image(&scratch)?;
        let requests = self.requests();
        let server = Server::start(kind, &scratch)?;
        let mut front = Front::connect(&scratch.file(SOCKET))?;
        let began = Instant::now();
        self.go(&mut front, &requests)?;
        let took = began.elapsed();
        let began = Instant::now();
        front.done(&Request::Flush)?;
        let flush = began.elapsed();
        drop(front);
        server.end()?;
        // What was measured is an image that is sound, and has no leaks.
        image::qemu_img(&scratch, &["check", "-q", IMAGE])?;
        #[allow(clippy::cast_precision_loss)] // MiB
        let mib = (self.requests * REQUEST_BYTES) as f64 / f64::from(1 << 20);
        Ok(Taken {
            rate: mib / took.as_secs_f64(),
            flush,
        })
    }

    fn make_image(&self, scratch: &Scratch) -> Result<()> {
        let size = (CLUSTERS * CLUSTER_BYTES).to_string();
        let options = format!("cluster_size={CLUSTER_BYTES}");
        let create = ["create", "-q", "-f", "qcow2", "-o", &options, IMAGE, &size];
        image::qemu_img(scratch, &create)?;
        if self.does != Does::Allocates {
            image::io(scratch, IMAGE, &[&format!("write -q -P 7 0 {size}")])?;
        }
        // Nobody's writes are to pay for these.
        rustix::fs::fsync(std::fs::File::open(scratch.file(IMAGE))?)?;
        Ok(())
    }

    /// The same for both programs, and for each run.
    fn requests(&self) -> Vec<Request> {
        let mut rng = Rng::of(1, self.at_once);
        let mut clusters: Vec<u64> = (0..CLUSTERS).collect();
        for at in (1..CLUSTERS).rev() {
            let other = rng.below(at + 1);
            if let (Ok(at), Ok(other)) = (usize::try_from(at), usize::try_from(other)) {
                clusters.swap(at, other);
            }
        }
        let clusters = clusters.into_iter().cycle();
        let places = clusters.take(usize::try_from(self.requests).unwrap_or(0));
        places
            .map(|cluster| {
                let inside = rng.below(CLUSTER_BYTES / REQUEST_BYTES) * REQUEST_BYTES;
                self.request(cluster * CLUSTER_BYTES + inside)
            })
            .collect()
    }

    fn request(&self, start: u64) -> Request {
        let bytes =
            usize::try_from(REQUEST_BYTES).map_or_else(|_| Vec::new(), |len| vec![0x5a; len]);
        match self.does {
            Does::Allocates | Does::Overwrites => Request::Write { start, bytes },
            Does::Reads => Request::Read {
                start,
                len: REQUEST_BYTES,
            },
        }
    }

    /// Has so many requests on their way until all have ended.
    fn go(&self, front: &mut Front, requests: &[Request]) -> Result<()> {
        let mut next = requests.iter();
        for (place, request) in (0..self.at_once).zip(next.by_ref()) {
            front.submit(place, request)?;
        }
        for _ in requests {
            let (place, status) = front.wait()?;
            ensure!(status == 0, "status {status}");
            if let Some(request) = next.next() {
                front.submit(place, request)?;
            }
        }
        Ok(())
    }
}

/// All runs of a case by one program.
#[derive(Debug, Default)]
pub struct Rates(Vec<Taken>);

impl Rates {
    pub fn add(&mut self, taken: Taken) {
        self.0.push(taken);
        self.0.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    }

    /// Of at least one run, in MiB/s.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).map_or(0.0, |taken| taken.rate)
    }

    fn flush(&self) -> Duration {
        let mut all: Vec<Duration> = self.0.iter().map(|taken| taken.flush).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = (self.0.first(), self.0.last());
        let rate = |taken: Option<&Taken>| taken.map_or(0.0, |taken| taken.rate);
        write!(
            f,
            "{:.1} ({:.1} to {:.1}) | {:.0}",
            self.median(),
            rate(least),
            rate(most),
            self.flush().as_secs_f64() * 1000.0
        )
    }
}
