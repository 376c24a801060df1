//! A packet-level test in one process: `cargo run --example packet_test`.
//!
//! Two nodes on a lossy wire, a transfer between their pods, and a look at every datagram that was on the
//! wire. The capture is left in a file that Wireshark opens.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::time::Duration;

use overlay::vxlan::{self, Vni};
use vswitch::verdict::Reason;
use vswitch::wire::{self, Network};
use weft::sim::{Cluster, Family, Faults, pcap};

fn main() -> Result<(), Box<dyn Error>> {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(7).build();
    let (client, server) = (cluster.pods()[0], cluster.pods()[1]);
    for node in cluster.nodes() {
        println!("{node:?} at {} holds {:?}", cluster.underlay_address(node), cluster.leases(node));
    }

    cluster.start_capture(100_000);
    cluster.set_faults(Faults {
        loss: 0.01,
        duplication: 0.01,
        delay: Duration::from_millis(1),
        jitter: Duration::from_micros(300),
    });
    let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).take(1_000_000).collect();
    let transfer = cluster.tcp(client, server, Family::V4, &data, Duration::from_secs(120));
    if transfer.received != data {
        return Err("the data arrived damaged, or not at all".into());
    }
    println!("1 MB arrived whole after {:?} of virtual time", transfer.took);

    let captured = cluster.take_capture();
    let (mut packets, mut longest) = (0, 0);
    for datagram in captured.iter().filter(|datagram| datagram.to.port() == vxlan::PORT) {
        let frame = vxlan::decode(&datagram.bytes, Vni::WEFT).map_err(Reason::describe)?;
        let headers = wire::parse(frame).map_err(Reason::describe)?;
        let Network::Ip(ip) = headers.network else { continue };
        packets += 1;
        longest = longest.max(ip.len);
    }
    println!("{packets} inner packets were on the wire, the longest of {longest} bytes");

    let path = std::env::temp_dir().join("packet_test.pcap");
    pcap::write(&captured, BufWriter::new(File::create(&path)?))?;
    println!("the capture is in {}", path.display());
    println!("underlay: {:?}", cluster.underlay_totals());
    cluster.check();
    Ok(())
}
