//! What a test has done, for the table that `make soak` prints.

/// Says that `count` of `what` were done, with what was expected of them.
pub fn total(count: u64, what: &str) {
    println!("total {count} {what}");
}
