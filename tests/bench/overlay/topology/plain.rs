//! A VXLAN forwarder as the textbook has it: one thread a port, one frame a system call, no
//! offloads, no checksums of its own. It is here to show what a userspace overlay costs that does nothing about it.
//!
//! Pods share one link, and know each other's MAC addresses beforehand: there is no ARP to answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Stdio;

use ::weft::lab::Namespace;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use tun_tap::{Iface, Mode};

use super::super::tools;
use super::flat::{self, Mac};
use super::{Ground, Process, VXLAN_OVERHEAD};

/// The argument by which this program is told to be the forwarder of a node.
pub(crate) const ARGUMENT: &str = "__plain";

/// UDP port of VXLAN (RFC 7348 §8.1).
const PORT: u16 = 4789;

/// Flags and VNI 1 (RFC 7348 §5).
const VXLAN_HEADER: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

/// Longest packet in the tunnel: it fits an MTU of 9000.
const PACKET_LEN_MAX: usize = 9000;

pub(super) fn join(ground: &mut Ground) -> Result<()> {
    let places = flat::make_pods(ground)?;
    let mtu = ground.wire.mtu() - VXLAN_OVERHEAD;
    for node in 0..usize::from(ground.layout.nodes) {
        let mut arguments = Vec::new();
        for place in &places {
            let to = match place.node == node {
                true => place.pod.namespace.path().display().to_string(),
                false => ground.underlay(place.node)?.to_string(),
            };
            arguments.push(format!("{}={to}", flat::text(place.mac)));
        }
        let program = std::env::current_exe()?;
        let mut command = tools::command(&ground.node(node)?, &program.to_string_lossy())?;
        command.arg(ARGUMENT).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the plain forwarder")?;
        let stdout = child.stdout.take().context("no pipe")?;
        ground.processes.push(Process(child));
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the plain forwarder does not start");
        for place in places.iter().filter(|place| place.node == node) {
            flat::configure(place, &places, mtu)?;
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Mac> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().context("no MAC address")?;
    bytes.try_into().ok().context("a MAC address has six bytes")
}

/// The forwarder. Every argument is a pod's MAC address, `=`, and the address of its node or, on this
/// node, the path of its network namespace.
pub(crate) fn main(arguments: &[String]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let (mut remote, mut local) = (Vec::new(), Vec::new());
    for argument in arguments {
        let (mac, place) = argument.split_once('=').context("no `=`")?;
        match place.parse::<IpAddr>() {
            Ok(node) => remote.push((parse(mac)?, SocketAddr::new(node, PORT))),
            Err(_) => local.push((parse(mac)?, open_tap(&Namespace::at(place))?)),
        }
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let mut stdout = io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    let forwarder = Forwarder { socket, remote, local };
    std::thread::scope(|scope| {
        let taps = forwarder.local.iter().map(|(_, tap)| scope.spawn(|| forwarder.send_from(tap)));
        let taps: Vec<_> = taps.collect();
        forwarder.receive()?;
        for tap in taps {
            tap.join().map_err(|_| anyhow!("a thread of the plain forwarder panicked"))??;
        }
        Ok(())
    })
}

fn open_tap(namespace: &Namespace) -> Result<Iface> {
    let opened = namespace.run(|| Iface::without_packet_info("eth0", Mode::Tap))?;
    opened.context("making a TAP")
}

struct Forwarder {
    socket: UdpSocket,
    /// Other nodes' pods, each with its node.
    remote: Vec<(Mac, SocketAddr)>,
    /// This node's pods.
    local: Vec<(Mac, Iface)>,
}

impl Forwarder {
    /// Forwards what a pod sends.
    fn send_from(&self, tap: &Iface) -> Result<()> {
        let mut packet = [0; PACKET_LEN_MAX];
        packet[..VXLAN_HEADER.len()].copy_from_slice(&VXLAN_HEADER);
        loop {
            let len = tap.recv(&mut packet[VXLAN_HEADER.len()..])?;
            self.deliver(&packet[..VXLAN_HEADER.len() + len])?;
        }
    }

    /// Forwards what other nodes send.
    fn receive(&self) -> Result<()> {
        let mut packet = [0; PACKET_LEN_MAX];
        loop {
            let len = self.socket.recv(&mut packet)?;
            self.deliver(&packet[..len])?;
        }
    }

    /// Hands a frame behind a VXLAN header to whom it is for; one for nobody is dropped.
    fn deliver(&self, packet: &[u8]) -> Result<()> {
        let Some(frame) = packet.strip_prefix(&VXLAN_HEADER) else { return Ok(()) };
        if let Some((_, tap)) = self.local.iter().find(|(mac, _)| frame.starts_with(mac)) {
            tap.send(frame)?;
        } else if let Some((_, node)) = self.remote.iter().find(|(mac, _)| frame.starts_with(mac)) {
            self.socket.send_to(packet, node)?;
        }
        Ok(())
    }
}
