//! What `run` itself says: on standard error, as the guest has standard output.

use crate::failure::{self, JobKind};
use crate::sink::{Out, Sink};
use instar_sandbox::machine::{MachineFailure, MachineOutput};
use instar_vmm::machine::control::{Outcome, Report};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The streams of one run.
pub struct RunOutput {
    stderr: Sink,
    /// Reports are printed.
    json: bool,
    /// The guest writes to standard output.
    guest_has_stdout: bool,
}

impl RunOutput {
    /// Asks the system about its terminal, so call it before confinement.
    #[must_use]
    pub fn new(json: bool, guest_has_stdout: bool) -> Self {
        Self {
            stderr: Sink::stderr(),
            json,
            guest_has_stdout,
        }
    }

    /// Tells the user something, in a line of its own.
    pub fn say(&mut self, what: &str) {
        self.stderr.put(format!("instar: {what}").as_bytes());
        self.stderr.end_line();
        self.stderr.flush();
    }
}

impl MachineOutput for RunOutput {
    fn terminal_made(&mut self, what: &'static str, path: &str) {
        self.say(&format!("the {what} is at {path}"));
    }

    fn network_lost(&mut self, passt: bool) {
        self.say(if passt {
            "passt has ended: the guest has no network any more; what passt has said stands above"
        } else {
            "the user network's process has ended: the guest has no network any more; please report this"
        });
    }

    fn ended(&mut self, report: &Report, outcome: &Outcome) {
        if !self.json {
            return;
        }
        let line = format!("{}\n", as_json(report, outcome));
        if self.guest_has_stdout {
            self.stderr.put(line.as_bytes());
            self.stderr.flush();
        } else {
            let mut stdout = Sink::stdout();
            stdout.put(line.as_bytes());
            // A reader that is gone has seen enough.
            let _ = stdout.finish();
        }
    }

    fn failed(&mut self, error: &MachineFailure) {
        let sentence = error.to_string();
        match error {
            MachineFailure::Disk(_) => {
                failure::write(&mut self.stderr, JobKind::Run, sentence.as_bytes())
            }
            _ => failure::write_ended(&mut self.stderr, sentence.as_bytes()),
        }
        self.stderr.flush();
    }
}

/// A report as one line.
fn as_json(report: &Report, outcome: &Outcome) -> Value {
    let phases = report.phases.iter();
    let phases = phases.map(|(name, at)| json!({ "name": name, "us": micros(*at) }));
    let marks = report.marks.iter();
    let marks = marks
        .map(|mark| json!({ "value": mark.value, "us": micros(mark.at), "exits": mark.exits }));
    let exits: Map<String, Value> = report
        .exits
        .iter()
        .map(|(name, count)| ((*name).to_owned(), json!(count)))
        .collect();
    let ended = match outcome {
        Outcome::PowerOff => "power-off",
        Outcome::Reset => "reset",
        Outcome::Quit => "quit",
        Outcome::Failed(_) => "failed",
    };
    json!({
        "outcome": ended,
        "phases": phases.collect::<Vec<_>>(),
        "marks": marks.collect::<Vec<_>>(),
        "exits": exits,
        "recycled": report.recycled,
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
