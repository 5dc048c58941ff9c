//! A progress bar on a terminal's standard error, for runs longer than a second.
//!
//! The bar is drawn by escape sequences of our own to a width that was asked for
//! before confinement: a confined process may neither open a terminal nor ask it.

use crate::sink::{Out, Sink};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::stdio::stderr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A run shorter than this shows nothing.
const DELAY: Duration = Duration::from_secs(1);
/// Columns of a terminal that does not say.
const DEFAULT_COLUMNS: u16 = 80;
/// To the first column, and away with what stands in the line.
const CLEAR_LINE: &str = "\r\x1b[2K";
/// Times per second that the bar is redrawn at most.
const REFRESH_HZ: u8 = 10;

/// Progress of one run, shown or not.
pub struct ProgressLine {
    start: Instant,
    bar: Option<Bar>,
}

/// A bar, and whether it may write.
struct Bar {
    bar: ProgressBar,
    visible: Arc<AtomicBool>,
}

impl ProgressLine {
    /// A line that is shown only if `shown`. Asks the terminal for its width: call it before confinement.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        let bar = shown.then(|| {
            let size = rustix::termios::tcgetwinsize(stderr());
            Bar::new(size.map_or(0, |size| size.ws_col))
        });
        Self {
            start: Instant::now(),
            bar,
        }
    }

    /// Shows how far the run is: `done` of `total`, 0 if that is not known.
    pub fn update(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar
            && self.start.elapsed() >= DELAY
        {
            bar.visible.store(true, Ordering::Relaxed);
            bar.draw(done, total);
        }
    }

    /// Takes the line off the screen, so that other text can be written.
    pub fn clear(&mut self) {
        if let Some(bar) = &self.bar
            && bar.visible.swap(false, Ordering::Relaxed)
        {
            // A terminal that is gone needs no clearing.
            let _ = write_all(CLEAR_LINE);
        }
    }
}

/// Percentages in one line of a stream, as `qemu-img -p` writes them.
#[derive(Debug, Default)]
pub struct Percent {
    shown: Option<f64>,
}

impl Percent {
    /// What is shown next is not the first.
    pub fn go_on(&mut self) {
        self.shown.get_or_insert(0.0);
    }

    /// Shows how far the run is, unless less than a hundredth has been added.
    pub fn update(&mut self, done: u64, total: u64, out: &mut Sink) {
        #[allow(clippy::cast_precision_loss)]
        let percent = done.min(total) as f64 * 100.0 / total.max(1) as f64;
        let first = self.shown.is_none();
        let is_last = done >= total && total > 0;
        let step = percent - self.shown.unwrap_or(0.0);
        if first && percent > 0.0 {
            self.shown = Some(0.0);
            write_percent(0.0, out);
        }
        if first || is_last || step >= 1.0 {
            self.shown = Some(percent);
            write_percent(percent, out);
        }
    }
}

fn write_percent(percent: f64, out: &mut Sink) {
    out.put(format!("    ({percent:.2}/100%)\r").as_bytes());
    if out.is_terminal() {
        out.flush();
    }
}

impl Bar {
    /// A bar that has drawn itself once, unseen: what indicatif asks the system
    /// for on its first drawing is then known before confinement.
    fn new(columns: u16) -> Self {
        let visible = Arc::new(AtomicBool::new(false));
        let terminal = FixedTerminal {
            columns: if columns == 0 {
                DEFAULT_COLUMNS
            } else {
                columns
            },
            visible: Arc::clone(&visible),
        };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), REFRESH_HZ);
        let mut bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3}%") {
            bar = bar.with_style(style.progress_chars("=> "));
        }
        let bar = Self { bar, visible };
        bar.draw(0, 1);
        bar
    }

    fn draw(&self, done: u64, total: u64) {
        // Both at once: each setter would draw a frame of its own.
        self.bar.update(|state| {
            state.set_len(total.max(done).max(1));
            state.set_pos(done);
        });
    }
}

/// Standard error as a terminal of fixed width.
#[derive(Debug)]
struct FixedTerminal {
    columns: u16,
    visible: Arc<AtomicBool>,
}

/// Writes to standard error past all buffers.
fn write_all(text: &str) -> std::io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(stderr(), rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

impl FixedTerminal {
    fn write(&self, text: &str) -> std::io::Result<()> {
        if self.visible.load(Ordering::Relaxed) {
            write_all(text)
        } else {
            Ok(())
        }
    }

    fn move_cursor(&self, count: usize, direction: char) -> std::io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.write(&format!("\x1b[{count}{direction}"))
    }
}

impl TermLike for FixedTerminal {
    fn width(&self) -> u16 {
        self.columns
    }

    fn move_cursor_up(&self, count: usize) -> std::io::Result<()> {
        self.move_cursor(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> std::io::Result<()> {
        self.move_cursor(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> std::io::Result<()> {
        self.move_cursor(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> std::io::Result<()> {
        self.move_cursor(count, 'D')
    }

    fn write_line(&self, text: &str) -> std::io::Result<()> {
        self.write(text)?;
        self.write("\n")
    }

    fn write_str(&self, text: &str) -> std::io::Result<()> {
        self.write(text)
    }

    fn clear_line(&self) -> std::io::Result<()> {
        self.write(CLEAR_LINE)
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(start: Instant, columns: Option<u16>) -> ProgressLine {
        ProgressLine {
            start,
            bar: columns.map(Bar::new),
        }
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(DELAY * 2).unwrap()
    }

    fn is_visible(line: &ProgressLine) -> bool {
        let bar = line.bar.as_ref();
        bar.is_some_and(|bar| bar.visible.load(Ordering::Relaxed))
    }

    #[test]
    fn update_shows_a_bar_only_on_a_terminal_and_after_a_second() {
        // However long this takes, that is less than a second ago.
        let later = Instant::now() + Duration::from_secs(3600);
        for (start, columns, shown) in [
            (later, Some(80), false),
            (long_ago(), None, false),
            (long_ago(), Some(80), true),
        ] {
            let mut line = line(start, columns);
            assert!(!is_visible(&line));
            line.update(1, 2);
            assert_eq!(is_visible(&line), shown);
            line.clear();
            assert!(!is_visible(&line));
        }
    }

    #[test]
    fn update_with_any_numbers_does_not_panic() {
        let mut line = line(long_ago(), Some(0));
        for (done, total) in [
            (0, 0),
            (5, 0),
            (7, 3),
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            line.update(done, total);
        }
        line.clear();
    }
}
