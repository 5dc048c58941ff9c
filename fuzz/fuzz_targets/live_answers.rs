//! Answers of a resident guest to questions that the input chooses: they are refused, or are what was asked for.
#![no_main]

use instar_vmm::live::channel::parse_answers;
use instar_vmm::live::source::{Answer, MAX_EXTENTS, Question};
use libfuzzer_sys::fuzz_target;

fn question(byte: u8) -> Question {
    let start = u64::from(byte >> 3) << 12;
    let len = 512;
    match byte & 7 {
        0 => Question::Lookup { start, len },
        1 => Question::Allocate { start, len },
        2 => Question::Link { ticket: 1 },
        3 => Question::Discard { start, len },
        4 => Question::Fetch { start, len },
        5 => Question::Flush,
        6 => Question::Abandon { ticket: 1 },
        _ => Question::Close,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, stream)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let questions = head.map(question);
    let questions = &questions[..usize::from(head[0] >> 6) + 1];
    match parse_answers(questions, stream) {
        Err(gone) => assert!(!gone.to_string().is_empty()),
        Ok(answers) => {
            assert_eq!(answers.len(), questions.len());
            for (question, answer) in questions.iter().zip(&answers) {
                let (Answer::Extents(extents) | Answer::Allocated { extents, .. }) = answer else {
                    continue;
                };
                assert!(matches!(question, Question::Lookup { .. } | Question::Allocate { .. }));
                assert!(!extents.is_empty() && extents.len() <= MAX_EXTENTS);
                assert!(extents.windows(2).all(|pair| pair[0].end() == pair[1].start));
            }
        }
    }
});
