//! The program itself, which these tests need, and a guest of bare frames; and what it is told.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use instar_user_net::MAX_MTU;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::UnshareFlags;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const EVERYBODY: [u8; 6] = [0xff; 6];

fn net(dns: &[&str], forwards: &[&str]) -> PasstNet {
    let forward = |text: &&str| Forward::parse(text).unwrap();
    PasstNet {
        mtu: MAX_MTU,
        dns: dns.iter().map(|text| text.parse().unwrap()).collect(),
        forwards: forwards.iter().map(forward).collect(),
    }
}

fn told(net: PasstNet) -> String {
    let program = PathBuf::from("/usr/bin/passt");
    Passt { net, program }.arguments(7).join(" ")
}

#[test]
fn it_forwards_what_was_asked_for_and_nothing_else() {
    assert_eq!(
        told(net(&[], &[])),
        "--foreground --quiet --fd 7 --no-map-gw --mtu 65520 --tcp-ports none --udp-ports none"
    );
    let forwards = ["tcp:2222:22", "udp:[::1]:53:5353", "tcp:0.0.0.0:80:8080"];
    assert_eq!(
        told(net(&["192.0.2.1", "2001:db8::1"], &forwards)),
        "--foreground --quiet --fd 7 --no-map-gw --mtu 65520 --dns 192.0.2.1 --dns 2001:db8::1 \
         --tcp-ports 127.0.0.1/2222:22 --tcp-ports 0.0.0.0/80:8080 --udp-ports ::1/53:5353"
    );
}

#[test]
fn it_is_looked_for_in_absolute_folders() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(PROGRAM);
    let found = || find(folder.path().as_os_str());
    assert_eq!(found(), None);
    std::fs::create_dir(&program).unwrap();
    assert_eq!(found(), None);
    std::fs::remove_dir(&program).unwrap();
    std::fs::write(&program, "").unwrap();
    assert_eq!(found(), None);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(found(), Some(program));
    assert_eq!(find(OsStr::new("")), None);
    assert_eq!(find(OsStr::new(".:bin")), None);
}

#[test]
fn a_port_that_is_in_use_is_an_error_before_anything_runs() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Passt::find(&net(&[], &[&format!("tcp:{port}:22")])).unwrap_err();
    assert!(matches!(error, MachineFailure::Forward(_)), "{error}");
}

/// The card's end of the socket, and what was read of it.
struct Guest(OwnedFd, Vec<u8>);

impl Guest {
    fn send(&self, frame: &[u8]) {
        let length = (frame.len() as u32).to_be_bytes();
        let bytes = [&length, frame].concat();
        assert_eq!(rustix::io::write(&self.0, &bytes).unwrap(), bytes.len());
    }

    /// The next frame that is wanted.
    fn wait(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        loop {
            while let Some((length, rest)) = self.1.split_first_chunk() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() < length {
                    break;
                }
                let frame = rest[..length].to_vec();
                self.1.drain(..4 + length);
                if wanted(&frame) {
                    return frame;
                }
            }
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            let ready = rustix::event::poll(&mut polled, Some(&limit)).unwrap();
            assert_ne!(ready, 0, "no answer");
            let mut buffer = [0; 70_000];
            let len = rustix::io::read(&self.0, &mut buffer).unwrap();
            assert_ne!(len, 0, "passt has ended");
            self.1.extend(&buffer[..len]);
        }
    }
}

/// The address that DHCP offers: RFC 2131 §2.
fn offered(guest: &mut Guest) -> Ipv4Addr {
    let mut discover = vec![1, 1, 6, 0, 1, 2, 3, 4];
    discover.resize(28, 0);
    discover.extend(MAC);
    discover.resize(236, 0);
    discover.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    discover.resize(300, 0);
    let udp_len = 8 + discover.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let words = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([68, 67, udp_len, 0].map(u16::to_be_bytes).concat());
    packet.extend(discover);
    guest.send(&[&EVERYBODY[..], &MAC, &[8, 0], &packet].concat());
    let offer = guest.wait(|frame| frame[12..14] == [8, 0] && frame[34..38] == [0, 67, 0, 68]);
    let address: [u8; 4] = offer[58..62].try_into().unwrap();
    address.into()
}

/// This thread, and what it starts, are in a network of their own, whose only way out is an interface that leads nowhere.
fn own_network() {
    // SAFETY: nothing of this thread depends on which network it is in.
    let done = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    done.expect("a network of its own, which needs root");
    for words in [
        "link set lo up",
        "tuntap add dev out mode tap",
        "addr add 192.0.2.2/24 dev out",
        "link set out up",
        "route add default via 192.0.2.1",
    ] {
        let done = Command::new("ip").args(words.split(' ')).status();
        assert!(done.expect("the program ip").success(), "ip {words}");
    }
}

#[test]
fn a_guest_gets_an_address_and_connections_and_it_ends_with_the_guest() {
    own_network();
    let passt = Passt::find(&net(&[], &["tcp:2222:22"])).unwrap();
    let (child, card) = passt.start().unwrap();
    rustix::io::ioctl_fionbio(&card, false).unwrap();
    let mut guest = Guest(card, Vec::new());
    let address = offered(&mut guest);
    assert_eq!(address, Ipv4Addr::new(192, 0, 2, 2));
    // It listens since before it answered.
    let mut client = TcpStream::connect(("127.0.0.1", 2222)).unwrap();
    client.write_all(b"hello").unwrap();
    let is_syn = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] == 2;
    let syn = guest.wait(is_syn);
    assert_eq!(
        (&syn[30..34], &syn[36..38]),
        (&address.octets()[..], &[0, 22][..])
    );
    drop(guest);
    assert_eq!(child.end(Duration::from_secs(60)).unwrap(), 0);
}
