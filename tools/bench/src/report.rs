//! The table, and what it says of the promises.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cases::Case;
use crate::measure::OwnStatistics;
use crate::stats::Summary;

/// What was measured for one case.
pub struct Row {
    /// Times of instar.
    pub instar: Summary,
    /// Times of `qemu-img`.
    pub qemu_img: Summary,
    /// Peak of instar's processes together, in bytes.
    pub instar_memory: u64,
    /// Peak of `qemu-img`, in bytes.
    pub qemu_img_memory: u64,
    /// Lengths of the file that instar made, and of the other's, in bytes.
    pub output: Option<(u64, u64)>,
    /// What instar says of itself.
    pub own: Option<OwnStatistics>,
}

impl Row {
    /// Median wall time as a part of `qemu-img`'s.
    fn ratio(&self) -> f64 {
        self.instar.median.as_secs_f64() / self.qemu_img.median.as_secs_f64()
    }

    /// Length of the file made as a part of `qemu-img`'s.
    fn size(&self) -> Option<f64> {
        self.output.map(|(ours, theirs)| mib(ours) / mib(theirs))
    }
}

/// The table in Markdown.
pub fn table(rows: &[(Case, Row)]) -> String {
    let mut text = String::from(
        "| case | instar median (min, p90) ms | qemu-img median (min, p90) ms | ratio \
         | CPU ms, instar / qemu-img | memory MiB, instar / qemu-img | file made | exits | setup µs |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (case, row) in rows {
        let (exits, setup) = match row.own {
            Some(own) => (own.exits.to_string(), own.setup_us.to_string()),
            None => ("–".to_owned(), "–".to_owned()),
        };
        let size = row.size();
        let size = size.map_or_else(|| "–".to_owned(), |size| format!("{size:.3}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {:.1} / {:.1} | {:.1} / {:.1} | {size} | {exits} | {setup} |",
            case.name,
            times(row.instar),
            times(row.qemu_img),
            row.ratio(),
            ms(row.instar.cpu),
            ms(row.qemu_img.cpu),
            mib(row.instar_memory),
            mib(row.qemu_img_memory),
        );
    }
    text
}

fn times(summary: Summary) -> String {
    format!(
        "{:.2} ({:.2}, {:.2})",
        ms(summary.median),
        ms(summary.min),
        ms(summary.p90)
    )
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss)] // one decimal of MiB is printed
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// One sentence for each promise of `case` that `row` does not keep.
pub fn missed(case: &Case, row: &Row) -> Vec<String> {
    let promise = case.promise;
    let mut missed = Vec::new();
    let mut say = |kept: bool, what: String| {
        if !kept {
            missed.push(format!("{}: {what}", case.name));
        }
    };
    if let Some(limit) = promise.ratio {
        let ratio = row.ratio();
        say(
            ratio <= limit,
            format!("ratio {ratio:.2}, promised {limit:.2}"),
        );
    }
    let memory = row.instar_memory;
    if let Some(limit) = promise.memory_bytes {
        let text = format!("{:.1} MiB, promised {:.1}", mib(memory), mib(limit));
        say(memory <= limit, text);
    }
    if let Some(over) = promise.memory_over_bytes {
        let limit = row.qemu_img_memory + over;
        let text = format!("{:.1} MiB, promised {:.1}", mib(memory), mib(limit));
        say(memory <= limit, text);
    }
    if let Some(limit) = promise.size {
        let size = row.size();
        say(
            size.is_some_and(|size| size <= limit),
            format!("a file of {size:.3?} times the length, promised {limit:.2}"),
        );
    }
    if let Some(limit) = promise.exits {
        let exits = row.own.map(|own| own.exits);
        say(
            exits.is_some_and(|exits| exits <= limit),
            format!("{exits:?} exits, promised {limit}"),
        );
    }
    if let Some(limit) = promise.setup_us {
        let setup = row.own.map(|own| own.setup_us);
        say(
            setup.is_some_and(|setup| setup <= limit),
            format!("{setup:?} µs of setup, promised {limit}"),
        );
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;

    fn row(ms: u64, memory: u64, exits: u64) -> Row {
        let summary = |ms| Summary {
            min: Duration::from_millis(ms),
            median: Duration::from_millis(ms),
            p90: Duration::from_millis(ms),
            cpu: Duration::from_millis(ms * 2),
        };
        Row {
            instar: summary(ms),
            qemu_img: summary(100),
            instar_memory: memory,
            qemu_img_memory: 20 << 20,
            output: Some((103 << 20, 100 << 20)),
            own: Some(OwnStatistics {
                exits,
                setup_us: 1000,
            }),
        }
    }

    #[test]
    fn missed_names_what_is_over_its_limit() {
        let small = &cases::all()[0];
        assert!(missed(small, &row(75, 12 << 20, 24)).is_empty());
        assert_eq!(missed(small, &row(76, 12 << 20, 24)).len(), 1);
        assert_eq!(missed(small, &row(76, 13 << 20, 25)).len(), 3);
        let mut silent = row(75, 12 << 20, 24);
        silent.own = None;
        assert_eq!(missed(small, &silent).len(), 2);
        let mut packed = cases::all().remove(0);
        packed.promise.size = Some(1.02);
        assert_eq!(missed(&packed, &row(75, 12 << 20, 24)).len(), 1);
    }

    #[test]
    fn table_has_a_line_per_case() {
        let rows: Vec<(Case, Row)> = cases::all()
            .into_iter()
            .map(|case| (case, row(50, 1 << 20, 1)))
            .collect();
        let text = table(&rows);
        assert_eq!(text.lines().count(), rows.len() + 2);
        assert!(
            text.contains("| 0.50 | 100.0 / 200.0 | 1.0 / 20.0 | 1.030 | 1 | 1000 |"),
            "{text}"
        );
    }
}
