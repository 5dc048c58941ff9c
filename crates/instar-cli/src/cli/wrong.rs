//! The sentences for options that are wrong: those of `getopt_long`, which `qemu-img` prints.

use super::UsageError;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};
use std::ffi::OsString;

/// What is wrong with `words`, of which `error` complains; `program` has the options of all commands.
pub fn sentence(error: &Error, program: &Command, words: &[OsString]) -> UsageError {
    let command = command_of(program, words);
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => name.as_str(),
        _ => "",
    };
    let said = match error.kind() {
        ErrorKind::UnknownArgument => unknown(option, command.unwrap_or(program), words),
        ErrorKind::InvalidValue if value_is_missing(error) => words.last().and_then(missing),
        ErrorKind::TooManyValues => {
            let name = option.split([' ', '=']).next().unwrap_or_default();
            Some(format!("option '{name}' doesn't allow an argument"))
        }
        _ => None,
    };
    match said {
        Some(said) => UsageError {
            of_command: Some(command.map_or("", Command::get_name).to_owned()),
            ..UsageError::with_help(said)
        },
        None => UsageError::with_help(first_line(error)),
    }
}

/// The command that `words` name.
pub fn command_of<'a>(program: &'a Command, words: &[OsString]) -> Option<&'a Command> {
    let named = |word: &OsString| program.find_subcommand(word);
    words.iter().skip(1).find_map(named)
}

/// An option that does not exist, or of which only the start was typed, and several start so.
fn unknown(option: &str, command: &Command, words: &[OsString]) -> Option<String> {
    let Some(long) = option.strip_prefix("--") else {
        let letter = option.strip_prefix('-')?.chars().next()?;
        return Some(format!("invalid option -- '{letter}'"));
    };
    let names = command.get_arguments().filter_map(clap::Arg::get_long);
    let fitting: Vec<_> = names
        .filter(|name| !long.is_empty() && name.starts_with(long))
        .map(|name| format!("'--{name}'"))
        .collect();
    if !fitting.is_empty() {
        let all = fitting.join(" ");
        return Some(format!(
            "option '{option}' is ambiguous; possibilities: {all}"
        ));
    }
    let mut typed = words.iter().filter_map(|word| word.to_str());
    let word = typed.find(|word| word.split('=').next() == Some(option));
    Some(format!("unrecognized option '{}'", word.unwrap_or(option)))
}

/// Whether an option stands at the end without the value that it takes.
fn value_is_missing(error: &Error) -> bool {
    matches!(
        error.get(ContextKind::InvalidValue),
        None | Some(ContextValue::None)
    ) || matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if value.is_empty())
}

/// The option that is typed as `word` has no value.
fn missing(word: &OsString) -> Option<String> {
    let text = word.to_str()?;
    if text.starts_with("--") {
        return Some(format!("option '{text}' requires an argument"));
    }
    let letter = text.strip_prefix('-')?.chars().last()?;
    Some(format!("option requires an argument -- '{letter}'"))
}

/// The sentence of a clap error without its label and usage.
fn first_line(error: &Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
