//! The host's DNS servers: resolv.conf(5).

use std::net::{IpAddr, SocketAddr};

/// Port of DNS.
pub const DNS_PORT: u16 = 53;
/// Most servers that are asked; as many as the C library asks.
pub const MAX_SERVERS: usize = 3;
/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// The servers that `/etc/resolv.conf` names; the local one if it names none, as resolv.conf(5) says. To be called before
/// files are given up.
#[must_use]
pub fn of_host() -> Vec<SocketAddr> {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open("/etc/resolv.conf") {
        // What cannot be read names none.
        let _ = file.take(MAX_BYTES).read_to_end(&mut text);
    }
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            return None;
        };
        let address: IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(address, DNS_PORT))
    };
    let found: Vec<SocketAddr> = text.lines().filter_map(address).take(MAX_SERVERS).collect();
    if found.is_empty() {
        return vec![SocketAddr::from(([127, 0, 0, 1], DNS_PORT))];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_what_the_file_names() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 9.9.9.9\nnameserver\t2620:fe::fe # x\nnameserver nine\n";
        let want: Vec<SocketAddr> = vec![
            "9.9.9.9:53".parse().unwrap(),
            "[2620:fe::fe]:53".parse().unwrap(),
        ];
        assert_eq!(parse(text), want);
        assert_eq!(
            parse("nameservers 1.2.3.4"),
            ["127.0.0.1:53".parse().unwrap()]
        );
        assert_eq!(parse(&"nameserver 1.2.3.4\n".repeat(9)).len(), MAX_SERVERS);
    }
}
