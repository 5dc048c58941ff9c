//! The instar command line.
//!
//! It reads options, hands a job to the sandbox, and turns what the operation
//! reports into text or JSON that equals `qemu-img`'s. It parses no image: all
//! it sees are validated records.

mod amend;
mod bench;
mod bitmap;
mod bootscan;
mod check;
mod cli;
mod commit;
mod compare;
mod console;
mod convert;
mod create;
mod date;
mod dd;
mod edit;
mod failure;
mod files;
mod heap;
mod image;
mod info;
mod json;
mod keyring;
mod launch;
mod map;
mod measure;
mod opts;
#[cfg(test)]
mod oracle;
mod pace;
mod papers;
mod persona;
mod progress;
mod quantity;
mod rebase;
mod resize;
#[cfg(target_arch = "x86_64")]
mod run;
mod secret;
#[cfg(target_arch = "x86_64")]
mod serve;
mod sink;
mod size;
mod snapshot;
mod text;

use cli::{Stop, UsageError};
use sink::{Out, Sink};
use std::process::ExitCode;

#[global_allocator]
static HEAP: heap::Heap = heap::Heap;

/// Exit code of a wrong use; 2 would mean a damaged image.
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    persona::take(std::env::args_os().next().as_deref());
    let code = match cli::parse(std::env::args_os()) {
        Ok(cli) => launch::run(&cli).unwrap_or_else(|error| complain(&error)),
        Err(Stop::Wrong(error)) => complain(&error),
        Err(Stop::Print(text)) => print(&text),
    };
    ExitCode::from(code)
}

fn print(text: &str) -> u8 {
    print_bytes(text.as_bytes())
}

fn print_bytes(text: &[u8]) -> u8 {
    let mut stdout = Sink::stdout();
    stdout.name(text);
    match stdout.finish() {
        Ok(()) => 0,
        Err(error) => {
            let sentence = format!("Cannot write the output: {}", failure::system_text(&error));
            complain(&UsageError::plain(sentence))
        }
    }
}

fn complain(error: &UsageError) -> u8 {
    let mut stderr = Sink::stderr();
    failure::write_usage(&mut stderr, error);
    // Nobody is left to tell if standard error itself cannot be written.
    let _ = stderr.finish();
    EXIT_USAGE
}
