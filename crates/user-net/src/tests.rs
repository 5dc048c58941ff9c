//! A guest of smoltcp's against the network and programs of this host.

#![allow(clippy::cast_possible_truncation)] // small numbers

mod guest;
mod hostile;
mod matrix;
mod names;
mod tcp;
mod udp;
