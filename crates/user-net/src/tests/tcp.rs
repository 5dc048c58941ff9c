//! Connections.

use super::guest::{Bed, PATIENCE, closed, forwarded};
use crate::GATEWAY;
use crate::policy::Protocol;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// Bytes that are not alike.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A program of the host that serves one connection.
fn serve<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        serve(stream)
    });
    (port, thread)
}

#[test]
fn a_hundred_mebibytes_go_each_way() {
    let up = pattern(100 * MIB);
    let down = pattern(100 * MIB + 12_345);
    let expected = down.clone();
    let (port, server) = serve(move |mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        // The guest has closed its direction; the other one is open.
        stream.write_all(&down).unwrap();
        got
    });
    let mut guest = Bed::allowing("host").start();
    let began = Instant::now();
    let handle = guest.connect((GATEWAY, port));
    let got = guest.exchange(handle, &up);
    println!("200 MiB in {:?}", began.elapsed());
    assert!(got == expected, "{} bytes came down", got.len());
    assert!(server.join().unwrap() == up);
}

#[test]
fn a_connection_is_made_when_the_host_has_made_it() {
    let (port, _closed) = closed(Protocol::Tcp);
    let mut guest = Bed::allowing("host").start();
    assert!(!guest.connects((GATEWAY, port)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(guest.connects((GATEWAY, listener.local_addr().unwrap().port())));
}

#[test]
fn what_is_denied_is_reset_and_never_reaches_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Bed::default().start();
    for to in [
        GATEWAY,
        Ipv4Addr::new(192, 168, 7, 7),
        Ipv4Addr::new(169, 254, 169, 254),
    ] {
        assert!(!guest.connects((to, port)), "{to}");
    }
    assert!(listener.accept().is_err());
}

#[test]
fn a_reset_goes_on_to_the_other_side() {
    // The host resets.
    let (port, server) = serve(|stream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let mut guest = Bed::allowing("host").start();
    let handle = guest.connect((GATEWAY, port));
    guest.until("a reset", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });
    server.join().unwrap();
    // The guest resets.
    let (port, server) = serve(|mut stream| stream.read(&mut [0; 10]).unwrap_err().kind());
    let handle = guest.connect((GATEWAY, port));
    guest.until("a connection", |guest| {
        guest.tcp(handle).may_send().then_some(())
    });
    guest.tcp(handle).abort();
    guest.until("the reset", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_slow_host_loses_nothing_and_holds_the_guest_up() {
    let up = pattern(8 * MIB);
    let (port, server) = serve(|mut stream| {
        std::thread::sleep(Duration::from_millis(500));
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut guest = Bed::allowing("host").start();
    let handle = guest.connect((GATEWAY, port));
    let got = guest.exchange(handle, &up);
    assert_eq!(got, []);
    guest.until("the end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == up);
}

#[test]
fn a_host_that_closes_first_still_gets_everything() {
    let up = pattern(MIB);
    let (port, server) = serve(|mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut guest = Bed::allowing("host").start();
    let handle = guest.connect((GATEWAY, port));
    assert_eq!(guest.exchange(handle, &up), []);
    guest.until("the end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == up);
}

#[test]
fn a_guest_that_takes_nothing_holds_the_host_up_and_loses_nothing() {
    let down = pattern(16 * MIB);
    let expected = down.clone();
    let (port, server) = serve(move |mut stream| stream.write_all(&down).unwrap());
    let mut guest = Bed::allowing("host").start();
    let handle = guest.connect((GATEWAY, port));
    guest.until("a connection", |guest| {
        guest.tcp(handle).may_send().then_some(())
    });
    guest.card.deaf = true;
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        guest.poll();
    }
    assert!(!server.is_finished());
    guest.card.deaf = false;
    let got = guest.exchange(handle, b"");
    assert!(got == expected, "{} bytes", got.len());
    server.join().unwrap();
}

#[test]
fn a_thousand_connections_are_open_at_a_time() {
    const COUNT: usize = 1000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut streams = Vec::new();
        for _ in 0..COUNT {
            streams.push(listener.accept().unwrap().0);
        }
        for stream in &mut streams {
            let mut byte = [0; 2];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let mut guest = Bed::allowing("host").start();
    let began = Instant::now();
    let mut handles = Vec::new();
    for batch in 0..COUNT / 50 {
        for _ in 0..50 {
            let handle = guest.connect_small((GATEWAY, port));
            handles.push(handle);
        }
        let new = handles[batch * 50..].to_vec();
        guest.until("connections", |guest| {
            new.iter()
                .all(|handle| guest.tcp(*handle).may_send())
                .then_some(())
        });
    }
    for (number, handle) in handles.iter().enumerate() {
        let bytes = (number as u16).to_be_bytes();
        guest.tcp(*handle).send_slice(&bytes).unwrap();
    }
    guest.until("answers", |guest| {
        let ready = |handle| guest.tcp(handle).recv_queue() == 2;
        handles.iter().copied().all(ready).then_some(())
    });
    for (number, handle) in handles.iter().enumerate() {
        let mut bytes = [0; 2];
        guest.tcp(*handle).recv_slice(&mut bytes).unwrap();
        assert_eq!(u16::from_be_bytes(bytes), number as u16);
    }
    println!("{COUNT} connections in {:?}", began.elapsed());
    server.join().unwrap();
}

#[test]
fn a_forwarded_port_leads_into_the_guest() {
    let (port, listener) = forwarded(Protocol::Tcp, 22);
    let bed = Bed {
        listeners: vec![listener],
        ..Bed::default()
    };
    let mut guest = bed.start();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    // Nobody listens in the guest.
    let client = std::thread::spawn(move || TcpStream::connect(at).unwrap().read(&mut [0; 1]));
    guest.until("a reset", |_| client.is_finished().then_some(()));
    assert!(client.join().unwrap().is_err());
    let data = pattern(3 * MIB);
    let sent = data.clone();
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let handle = guest.listen(22);
    let mut got = Vec::new();
    guest.until("the data", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            let more = |bytes: &mut [u8]| {
                got.extend_from_slice(bytes);
                (bytes.len(), ())
            };
            socket.recv(more).unwrap();
        }
        (socket.state() == State::CloseWait).then_some(())
    });
    assert!(got == data);
    let far = guest.tcp(handle).remote_endpoint().unwrap();
    assert_eq!(far.addr, GATEWAY.into());
    guest.tcp(handle).send_slice(b"thanks").unwrap();
    guest.tcp(handle).close();
    guest.until("the end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), b"thanks");
}
