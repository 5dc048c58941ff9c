//! The command `test`, also called `[`. *GNU GRUB Manual*, "test".

use super::run::Machine;
use crate::version;
use core::cmp::Ordering;
use instar_filesystem::NodeKind;

/// Whether an expression is true: terms with `-a` bind more than with `-o`.
pub fn is_true(machine: &Machine<'_>, words: &[&[u8]]) -> bool {
    let any = words.split(|word| *word == b"-o");
    !words.is_empty()
        && any.into_iter().any(|part| {
            let all = part.split(|word| *word == b"-a");
            all.into_iter().all(|term| one(machine, term))
        })
}

fn one(machine: &Machine<'_>, term: &[&[u8]]) -> bool {
    match term {
        [b"!", rest @ ..] => !one(machine, rest),
        [b"(", rest @ .., b")"] => one(machine, rest),
        [word] => !word.is_empty(),
        [b"-n", word] => !word.is_empty(),
        [b"-z", word] => word.is_empty(),
        [b"-e", path] => machine.node(path).is_some(),
        [b"-f", path] => machine.node(path).is_some_and(|n| n.kind == NodeKind::File),
        [b"-d", path] => machine
            .node(path)
            .is_some_and(|n| n.kind == NodeKind::Folder),
        [b"-s", path] => machine.node(path).is_some_and(|n| n.len > 0),
        [one, operator, two] => compare(one, operator, two),
        _ => false,
    }
}

fn compare(one: &[u8], operator: &[u8], two: &[u8]) -> bool {
    let number = |word: &[u8]| core::str::from_utf8(word).ok()?.trim().parse::<i64>().ok();
    let numbers = || number(one).zip(number(two)).map(|(a, b)| a.cmp(&b));
    let is = |order: Option<Ordering>, wanted: &[Ordering]| {
        order.is_some_and(|order| wanted.contains(&order))
    };
    match operator {
        b"=" | b"==" => one == two,
        b"!=" => one != two,
        b"<" => one < two,
        b">" => one > two,
        b"<=" => one <= two,
        b">=" => one >= two,
        b"-eq" => is(numbers(), &[Ordering::Equal]),
        b"-ne" => !is(numbers(), &[Ordering::Equal]),
        b"-lt" => is(numbers(), &[Ordering::Less]),
        b"-gt" => is(numbers(), &[Ordering::Greater]),
        b"-le" => is(numbers(), &[Ordering::Less, Ordering::Equal]),
        b"-ge" => is(numbers(), &[Ordering::Greater, Ordering::Equal]),
        b"-vlt" => version::compare(one, two) == Ordering::Less,
        b"-vgt" => version::compare(one, two) == Ordering::Greater,
        _ => false,
    }
}
