//! The stream against another program at its other end, which reads and writes when it wants to.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// A stream of a card, and its other end.
fn pair() -> (Stream, UnixStream) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (own, other) = pair.unwrap();
    let other = UnixStream::from(other);
    other.set_nonblocking(false).unwrap();
    (Stream::new(own), other)
}

/// A packet of a guest, in buffers of so many bytes.
fn send(stream: &mut Stream, frame: &[u8], piece: usize) -> io::Result<()> {
    let mut packet = vec![7; HEADER_BYTES];
    packet.extend(frame);
    let slices: Vec<VolatileSlice<'_>> =
        packet.chunks_mut(piece).map(VolatileSlice::from).collect();
    stream.send(&slices)
}

/// The next frame, into buffers of so many bytes.
fn receive(stream: &mut Stream, piece: usize) -> io::Result<Vec<u8>> {
    let mut packet = vec![9; HEADER_BYTES + MAX_FRAME_BYTES];
    let slices: Vec<VolatileSlice<'_>> =
        packet.chunks_mut(piece).map(VolatileSlice::from).collect();
    let len = stream.receive(&slices)?;
    assert_eq!(packet[..HEADER_BYTES], [0; HEADER_BYTES]);
    Ok(packet[HEADER_BYTES..len].to_vec())
}

fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + number) as u8).collect()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn what_comes_in_any_pieces_is_frames() {
    let lengths = [14, 60, 1514, 65_535, 15, 65_534, 42];
    let frames: Vec<Vec<u8>> = (0..).zip(lengths).map(|(n, len)| frame(n, len)).collect();
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    for piece in [1, 3, 1000, 70_000, bytes.len()] {
        let (mut stream, mut other) = pair();
        let parts = bytes.clone();
        let writer = std::thread::spawn(move || {
            let mut parts = parts.chunks(piece);
            parts.try_for_each(|part| other.write_all(part)).unwrap();
            other
        });
        let mut got = Vec::new();
        while got.len() < frames.len() {
            match receive(&mut stream, 1 + piece) {
                Ok(frame) => got.push(frame),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    assert!(stream.tells_again());
                    let mut polled = [PollFd::new(&stream.socket, PollFlags::IN)];
                    rustix::event::poll(&mut polled, None).unwrap();
                }
            }
        }
        assert_eq!(got, frames, "{piece}");
        writer.join().unwrap();
    }
}

#[test]
fn frames_that_were_read_ahead_are_known() {
    let (mut stream, mut other) = pair();
    let bytes = [framed(&frame(1, 20)), framed(&frame(2, 30))].concat();
    other.write_all(&bytes).unwrap();
    assert_eq!(receive(&mut stream, 100).unwrap(), frame(1, 20));
    assert!(!stream.tells_again());
    assert_eq!(receive(&mut stream, 100).unwrap(), frame(2, 30));
    assert!(stream.tells_again());
    drop(other);
    assert_eq!(kind(receive(&mut stream, 100)), ErrorKind::BrokenPipe);
}

#[test]
fn a_frame_that_is_taken_in_part_is_sent_whole() {
    let (mut stream, mut other) = pair();
    let mut sent = 0;
    // Until the socket has no room: the last frame may have been taken in part.
    let error = loop {
        let result = stream
            .flush()
            .and_then(|()| send(&mut stream, &frame(sent, 60_000), 999));
        match result {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(sent > 0);
    let reader = std::thread::spawn(move || {
        for number in 0..sent {
            let mut bytes = vec![0; 4 + 60_000];
            other.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, framed(&frame(number, 60_000)));
        }
        other
    });
    while let Err(error) = stream.flush() {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        std::thread::yield_now();
    }
    let other = reader.join().unwrap();
    drop(other);
    assert_eq!(
        kind(send(&mut stream, &frame(0, 60), 10)),
        ErrorKind::BrokenPipe
    );
}

#[test]
fn what_is_no_frame_is_not_sent_and_ends_the_stream() {
    let (mut stream, mut other) = pair();
    for len in [0, 1, MIN_FRAME_BYTES - 1, MAX_FRAME_BYTES + 1] {
        assert_eq!(
            kind(send(&mut stream, &frame(0, len), 5000)),
            ErrorKind::InvalidInput
        );
    }
    send(&mut stream, &frame(1, MIN_FRAME_BYTES), 1).unwrap();
    let mut bytes = [0; 4 + MIN_FRAME_BYTES];
    other.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..], framed(&frame(1, MIN_FRAME_BYTES)));
    other.write_all(&65_536_u32.to_be_bytes()).unwrap();
    assert_eq!(kind(receive(&mut stream, 100)), ErrorKind::InvalidData);
    assert_eq!(other.read(&mut bytes).unwrap(), 0);
}

#[test]
fn random_moves_of_both_ends_are_as_in_a_model() {
    let mut seed = 11_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    };
    for _ in 0..40 {
        let moves: Vec<u8> = std::iter::repeat_with(&mut next).take(800).collect();
        model::run(&moves);
    }
}
