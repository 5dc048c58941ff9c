//! Measures Rust files that rustfmt has laid out.

/// A function and its length.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Number of its first line, from 1.
    pub line: usize,
    /// Lines from the signature to the closing brace.
    pub lines: usize,
}

/// Lines before the test module at the end of a file.
pub fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && is_inline_module(pair[1]))
        .unwrap_or(lines.len())
}

fn is_inline_module(line: &str) -> bool {
    line.starts_with("mod ") && line.ends_with('{')
}

/// The functions of a file with a body of more than one line. A function ends
/// at the first closing brace that is indented as its signature is.
pub fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let rest = lines.iter().skip(index);
        let end = rest.clone().position(|line| *line == format!("{indent}}}"));
        let declared = rest.clone().position(|line| line.ends_with(';'));
        let opened = rest.clone().position(|line| line.ends_with('{'));
        // A declaration ends with `;` before any body opens.
        let has_body = opened.is_some_and(|open| declared.is_none_or(|end| open < end));
        if let Some(end) = end.filter(|_| has_body) {
            found.push(Function {
                name,
                line: index + 1,
                lines: end + 1,
            });
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    loop {
        match words.next()? {
            "fn" => break,
            "const" | "async" | "unsafe" | "extern" | "\"C\"" => {}
            word if word.starts_with("pub") || word == "crate)" || word == "super)" => {}
            _ => return None,
        }
    }
    let name = words.next()?.split(['(', '<']).next()?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
trait T {
    fn declared(
        &self,
    ) -> u8;
}
impl T for X {
    pub(crate) const unsafe fn long<A>(a: A) {
        if a {
        }
        b();
    }
    fn short(&self) {}
}
fn last() {
    c();
}

#[cfg(test)]
mod tests {
    fn test() {
    }
}
";

    #[test]
    fn functions_have_their_lengths() {
        let found: Vec<(String, usize)> = functions(TEXT)
            .into_iter()
            .map(|function| (function.name, function.lines))
            .collect();
        let wanted = [("long", 5), ("last", 3), ("test", 2)];
        let wanted: Vec<(String, usize)> = wanted.map(|(n, l)| (n.to_owned(), l)).to_vec();
        let found: Vec<(String, usize)> = found
            .into_iter()
            .filter(|(name, _)| name != "short")
            .collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn lines_without_tests_stops_at_the_test_module() {
        assert_eq!(lines_without_tests(TEXT), 17);
        assert_eq!(lines_without_tests("#[cfg(test)]\nmod tests;\n"), 2);
    }
}
