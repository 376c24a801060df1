//! The same traffic for every pair of ends that is tested: ICMP, UDP and TCP, both ways, both protocols.

use std::net::{IpAddr, SocketAddr};

use weft::lab::Namespace;
use weft::lab::probe::{Amount, EchoServer, Ping, Transfer, tcp_seen_as, udp_seen_as};

/// Somebody who can be talked to.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// What it is called in messages.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) namespace: Namespace,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Pings, datagrams of one packet and of several fragments, and a TCP stream of `bulk_len` bytes of which
/// each is compared: from `one` to `other` and back, over every protocol that both have.
#[track_caller]
pub(crate) fn both_ways(one: &End, other: &End, bulk_len: u64) {
    for (source, target) in [(one, other), (other, one)] {
        for address in &target.addresses {
            if source.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
                one_way(source, target, *address, bulk_len);
            }
        }
    }
}

#[track_caller]
fn one_way(source: &End, target: &End, address: IpAddr, bulk_len: u64) {
    let what = format!("from {} to {} at {address}", source.name, target.name);
    for payload_len in [56, 4000] {
        let ping = Ping { payload_len, ..Ping::new(address) };
        let report = ping.run(&source.namespace).unwrap();
        assert!(report.is_ok(), "ping with {payload_len} bytes {what}: {report:?}");
    }
    let server = EchoServer::start(&target.namespace, address).unwrap();
    let socket = SocketAddr::new(address, server.port());
    let seen = tcp_seen_as(&source.namespace, socket).unwrap_or_else(|e| panic!("TCP {what}: {e}"));
    assert!(!seen.is_rewritten(), "TCP {what}: {seen:?}");
    for len in [1, 64, 1000, 8192] {
        let seen = udp_seen_as(&source.namespace, socket, len);
        let seen = seen.unwrap_or_else(|error| panic!("UDP with {len} bytes {what}: {error}"));
        assert!(!seen.is_rewritten(), "UDP {what}: {seen:?}");
    }
    let transfer = Transfer { amount: Amount::Bytes(bulk_len), verify: true };
    let report = transfer.run(&source.namespace, &target.namespace, address);
    let report = report.unwrap_or_else(|error| panic!("TCP stream {what}: {error}"));
    assert_eq!(report.bytes, bulk_len, "TCP stream {what}");
    eprintln!("TCP stream {what}: {:.0} Mbit/s", report.bits_per_s() / 1e6);
}
