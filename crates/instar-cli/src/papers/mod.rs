//! What is made from the definition of the options: completions for shells, and manual pages.

mod manual;

pub use manual::{ManualOptions, run as manual};

use crate::cli::{Cli, OWN_COMMANDS, UsageError};
use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use std::io;

// Options of `completions`.
#[derive(Args, Debug)]
pub struct CompletionsOptions {
    /// Shell that reads them
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
    /// Name that the program is started by
    #[arg(long, value_name = "NAME", default_value = "instar")]
    pub name: ProgramName,
}

/// A name that the program is started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgramName {
    /// Its own.
    Instar,
    /// That of the program whose part it plays.
    QemuImg,
}

impl ProgramName {
    /// The name as it is typed.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Instar => "instar",
            Self::QemuImg => "qemu-img",
        }
    }
}

/// Runs `completions`; returns the exit code.
///
/// # Errors
/// They could not be made.
pub fn completions(options: &CompletionsOptions) -> Result<u8, UsageError> {
    match script(options.shell, options.name) {
        Ok(text) => Ok(crate::print_bytes(text.as_bytes())),
        Err(error) => Err(UsageError::plain(format!(
            "Cannot make the completions: {error}"
        ))),
    }
}

/// The completions of a shell.
fn script(shell: Shell, name: ProgramName) -> io::Result<String> {
    // The bash script of clap_complete knows no commands of a program with a hyphen in its name. It works under
    // any name that it is registered for.
    let written = match shell {
        Shell::Bash => ProgramName::Instar,
        _ => name,
    };
    let mut text = Vec::new();
    let mut program = described(written);
    program.set_bin_name(written.word());
    clap_complete::Generator::try_generate(&shell, &program, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    let registered = |of: ProgramName| format!("-o default {}\n", of.word());
    Ok(text.replace(&registered(written), &registered(name)))
}

/// The program under a name, with the options of all commands made, and without the commands that it has for
/// packagers.
fn described(name: ProgramName) -> Command {
    let whole = Cli::command();
    let known = |sub: &str| name == ProgramName::Instar || !OWN_COMMANDS.contains(&sub);
    let shown = whole
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && known(sub.get_name()));
    let mut program = Command::new(name.word())
        .version(env!("CARGO_PKG_VERSION"))
        .infer_long_args(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .args(whole.get_arguments().cloned())
        .subcommands(shown.cloned().collect::<Vec<_>>());
    if let Some(about) = whole.get_long_about().or(whole.get_about()) {
        program = program.about(about.clone());
    }
    if let Some(after) = whole.get_after_help() {
        program = program.after_help(named(after.to_string(), name));
    }
    program.build();
    program.mut_subcommands(|sub| {
        let about = whole
            .find_subcommand(sub.get_name())
            .and_then(Command::get_about);
        let usage = sub.get_overridden_usage().map(ToString::to_string);
        let after = sub.get_after_help().map(ToString::to_string);
        sub.about(about.cloned().unwrap_or_default())
            .override_usage(named(usage.unwrap_or_default(), name))
            .after_help(named(after.unwrap_or_default(), name))
    })
}

/// A text about the program under another name.
fn named(text: String, name: ProgramName) -> String {
    text.replace("instar ", &format!("{} ", name.word()))
}

#[cfg(test)]
mod tests;
