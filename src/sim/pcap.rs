//! Captures as files that tcpdump and Wireshark open.
//!
//! The format is that of libpcap 2.4 with nanoseconds, and packets that begin with their IP header
//! (`LINKTYPE_RAW`, 101: the link types of <https://www.tcpdump.org/linktypes.html>).

use std::io::{self, Write};
use std::net::IpAddr;

use vswitch::wire::checksum;

use super::underlay::Captured;

/// Marks nanoseconds, in the byte order of the file.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const SNAP_LEN: u32 = 262_144;
const LINKTYPE_RAW: u32 = 101;

const UDP: u8 = 17;
const UDP_LEN: usize = 8;
const TTL: u8 = 64;

/// Writes datagrams as a capture file. Their times count from 1970.
///
/// # Errors
/// What `file` returns.
pub fn write(captured: &[Captured], mut file: impl Write) -> io::Result<()> {
    file.write_all(&MAGIC.to_le_bytes())?;
    file.write_all(&VERSION.0.to_le_bytes())?;
    file.write_all(&VERSION.1.to_le_bytes())?;
    // Time zone and accuracy: always zero.
    file.write_all(&[0; 8])?;
    file.write_all(&SNAP_LEN.to_le_bytes())?;
    file.write_all(&LINKTYPE_RAW.to_le_bytes())?;
    for datagram in captured {
        let packet = datagram.to_packet();
        let len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let seconds = u32::try_from(datagram.at.as_secs()).unwrap_or(u32::MAX);
        for field in [seconds, datagram.at.subsec_nanos(), len, len] {
            file.write_all(&field.to_le_bytes())?;
        }
        file.write_all(&packet)?;
    }
    file.flush()
}

impl Captured {
    /// The IP packet that the datagram travels in, as a kernel makes it: Don't Fragment is set, and all
    /// checksums are filled in.
    pub fn to_packet(&self) -> Vec<u8> {
        let (source, destination) = (self.from.ip(), self.to.ip());
        let mut segment = Vec::with_capacity(UDP_LEN + self.bytes.len());
        segment.extend(self.from.port().to_be_bytes());
        segment.extend(self.to.port().to_be_bytes());
        segment.extend(be16(UDP_LEN + self.bytes.len()));
        segment.extend([0, 0]);
        segment.extend(&self.bytes);
        let sum = checksum::transport(source, destination, UDP, &segment);
        segment[6..8].copy_from_slice(&sum.to_be_bytes());

        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [high, low] = be16(20 + segment.len());
                let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, TTL, UDP, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                checksum::set_ipv4_header(&mut header);
                header
            }
            (source, destination) => {
                let [high, low] = be16(segment.len());
                let mut header = vec![0x60, 0, 0, 0, high, low, UDP, TTL];
                header.extend(to_v6(source));
                header.extend(to_v6(destination));
                header
            }
        };
        packet.extend(segment);
        packet
    }
}

fn to_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// No datagram is longer than 65 535 bytes.
fn be16(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn captured(from: &str, to: &str) -> Captured {
        Captured {
            at: Duration::new(3, 5),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            bytes: b"payload".to_vec(),
        }
    }

    #[test]
    fn packets_are_what_others_take_them_for() {
        for (from, to) in
            [("192.0.2.1:5000", "192.0.2.2:4789"), ("[2001:db8::1]:5000", "[2001:db8::2]:4789")]
        {
            let packet = captured(from, to).to_packet();
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
            assert_eq!((udp.source_port(), udp.destination_port()), (5000, 4789));
            assert_eq!(udp.payload(), b"payload");
            let mut header = udp.to_header();
            let right = match sliced.net.unwrap() {
                NetSlice::Ipv4(v4) => {
                    let header4 = v4.header();
                    let sum = header4.to_header().calc_header_checksum();
                    assert_eq!(header4.header_checksum(), sum);
                    header.calc_checksum_ipv4(&header4.to_header(), b"payload")
                }
                NetSlice::Ipv6(v6) => {
                    header.calc_checksum_ipv6(&v6.header().to_header(), b"payload")
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            header.checksum = right.unwrap();
            assert_eq!(udp.checksum(), header.checksum);
        }
    }

    #[test]
    fn a_file_has_one_header_and_one_record_per_datagram() {
        let one = captured("192.0.2.1:5000", "192.0.2.2:4789");
        let mut file = Vec::new();
        write(&[one.clone(), one.clone()], &mut file).unwrap();
        let packet = one.to_packet();
        assert_eq!(file.len(), 24 + 2 * (16 + packet.len()));
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(file[20..24], [101, 0, 0, 0]);
        assert_eq!(file[24..32], [3, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(file[40..40 + packet.len()], packet);
    }
}
