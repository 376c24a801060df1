//! What the kernel offers to the tunnel and the ports: in use or not, why, and when it is tried again.
//!
//! | off because | comes back |
//! | --- | --- |
//! | the kernel does not have it, as asked when the tunnel or port was opened | with another kernel |
//! | it granted less memory | asked again every minute |
//! | a route refused merged datagrams | by a trial after 10 s to 10 min, see [`overlay::send_offload`] |
//! | it dropped what it was given when the daemon was started, see [`crate::host::long_frames`] | with another kernel |
//! | an interface refused a super-frame, or several as one | by a trial after 100 ms |

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use overlay::buffers::{RECEIVE_BUFFER, SEND_BUFFER};
use overlay::send_offload::Fallback;
use overlay::tunnel::TunnelStatus;
use overlay::udp::SEGMENTS_MAX;
use vswitch::frame::GsoKind;
use vswitch::port::GsoFallback;
use vswitch::tap::Tap;
use vswitch::veth::{self, Veth};

use super::device::Device;
use super::{Control, attach::Attached};
use crate::admin::api::FallbackCount;
use crate::admin::capability::{Capability, CapabilityName, Place};
use crate::host::long_frames::{NotTaken, Probed};

/// How often the kernel is asked again for what it did not grant in full.
const GROWTH: Duration = Duration::from_secs(60);

/// Destinations that are named; there may be thousands.
const NAMED_MAX: usize = 3;

/// How often capabilities were lost, at what is closed by now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FallbackCounts {
    pub(super) tunnel: u64,
    pub(super) host: u64,
    pub(super) ports: u64,
    /// Writes of several super-frames as one: TCP over IPv4 and IPv6.
    pub(super) chains: [u64; 2],
}

/// What may be written as one where the kernel takes long super-frames, and what that is called.
const LONG_FRAMES: [(GsoKind, CapabilityName); 2] =
    [(GsoKind::Tcp4, CapabilityName::BigTcpV4), (GsoKind::Tcp6, CapabilityName::BigTcpV6)];

/// How often several super-frames were refused as one, as in [`FallbackCounts::chains`].
pub(super) fn chains_refused(device: &Device) -> [u64; 2] {
    match device {
        Device::Tap { tap, .. } => LONG_FRAMES.map(|(kind, _)| tap.chains_refused(kind)),
        Device::Veth { .. } => [0; 2],
    }
}

/// How often sends were not merged although the kernel can.
pub(super) fn fallbacks_of(tunnel: &TunnelStatus) -> u64 {
    tunnel.fallbacks().iter().map(|worker| worker.count()).sum()
}

/// Why something is off.
struct Off {
    reason: String,
    remedy: String,
    since: Option<Instant>,
    next_try: Option<Instant>,
}

impl Off {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into(), since: None, next_try: None }
    }

    /// What the kernel has from this release on.
    fn old_kernel(reason: impl Into<String>, release: &str) -> Self {
        let remedy =
            format!("nothing, until this node gets a newer kernel: Linux {release} has it");
        Self::new(reason, remedy)
    }
}

/// The capabilities of one place, as they are found.
struct List<'a> {
    list: &'a mut Vec<Capability>,
    at: Place,
    port: Option<String>,
    opened: Instant,
    now: Instant,
}

impl List<'_> {
    fn add(&mut self, name: CapabilityName, value: Option<String>, off: Option<Off>) {
        let since = off.as_ref().and_then(|off| off.since).unwrap_or(self.opened);
        let next_try = off.as_ref().and_then(|off| off.next_try);
        let on = off.is_none();
        let (reason, remedy) = off.map(|off| (off.reason, off.remedy)).unzip();
        self.list.push(Capability {
            name,
            at: self.at,
            port: self.port.clone(),
            on,
            value,
            reason,
            remedy,
            since_s: self.now.saturating_duration_since(since).as_secs(),
            next_try_s: next_try.map(|at| at.saturating_duration_since(self.now).as_secs()),
        });
    }
}

impl Control {
    /// All capabilities, on and off: the tunnel's first, the ports' last.
    pub(super) fn capabilities(&self, now: Instant) -> Vec<Capability> {
        let mut list = Vec::new();
        if let Some(tunnel) = &self.tunnel {
            let opened = tunnel.opened();
            let mut list = List { list: &mut list, at: Place::Tunnel, port: None, opened, now };
            self.add_tunnel(tunnel, &mut list);
        }
        if let Some(host) = &self.host {
            let opened = host.opened();
            let mut list = List { list: &mut list, at: Place::Host, port: None, opened, now };
            add_tap(host.tap(), &mut list);
        }
        for allocation in self.ipam.iter() {
            let Some(attached) = self.attached.get(&allocation.attachment) else { continue };
            let port = Some(self.pod(allocation).title());
            let Attached { opened, device, .. } = attached;
            let mut list = List { list: &mut list, at: Place::Port, port, opened: *opened, now };
            match device {
                Device::Tap { tap, .. } => {
                    add_tap(tap, &mut list);
                    add_long_frames(&tap.chain_fallbacks(), &self.long_frames, &mut list);
                }
                Device::Veth { veth, .. } => add_veth(veth, self.next_growth, &mut list),
            }
        }
        list
    }

    /// How often capabilities were lost since the daemon was started.
    pub(super) fn fallbacks(&self) -> Vec<FallbackCount> {
        let FallbackCounts { tunnel, host, ports, chains } = self.past_fallbacks;
        let open = self.tunnel.as_ref().map_or(0, fallbacks_of);
        let own = self.host.as_ref().map_or(0, |host| host.tap().gso_refused());
        let attached = self.attached.values().map(|attached| attached.device.gso_refused());
        let counts = [
            (CapabilityName::UdpGso, Place::Tunnel, tunnel + open),
            (CapabilityName::GsoWrite, Place::Host, host + own),
            (CapabilityName::GsoWrite, Place::Port, ports + attached.sum::<u64>()),
        ];
        let chains = (self.attached.values())
            .map(|attached| chains_refused(&attached.device))
            .fold(chains, |[v4, v6], [more_v4, more_v6]| [v4 + more_v4, v6 + more_v6]);
        let chains = LONG_FRAMES.iter().zip(chains).map(|((_, name), n)| (*name, Place::Port, n));
        (counts.into_iter().chain(chains))
            .map(|(name, at, count)| FallbackCount { name, at, count })
            .collect()
    }

    /// Asks the kernel again, every minute, for what it did not grant in full.
    pub(super) fn ask_again(&mut self, now: Instant) {
        if now < self.next_growth {
            return;
        }
        self.next_growth = now + GROWTH;
        if let Some(tunnel) = &self.tunnel {
            let buffers = tunnel.buffers();
            if buffers.receive() < RECEIVE_BUFFER || buffers.send() < SEND_BUFFER {
                buffers.grow();
            }
        }
        for attached in self.attached.values() {
            if let Device::Veth { veth, .. } = &attached.device
                && veth.receive_buffer().is_ok_and(|granted| granted < veth::RECEIVE_BUFFER)
                && let Err(error) = veth.grow_receive_buffer()
            {
                tracing::debug!(device = veth.name(), %error, "the receive buffer does not grow");
            }
        }
    }

    fn add_tunnel(&self, tunnel: &TunnelStatus, list: &mut List<'_>) {
        let kernel = tunnel.capabilities();
        let off = kernel.receive_offload.as_ref().err().map(|why| {
            let reason = format!(
                "the kernel refused UDP_GRO ({why}), so datagrams are received one by one; it was asked when the \
                 tunnel was opened"
            );
            Off::old_kernel(reason, "5.0")
        });
        list.add(CapabilityName::UdpGro, None, off);

        let [old, new] = SEGMENTS_MAX;
        let available = kernel.send_offload.is_ok();
        let off = match &kernel.send_offload {
            Ok(()) => self.lost_offload(tunnel),
            Err(why) => {
                let reason = format!(
                    "the kernel refused UDP_SEGMENT ({why}), so datagrams are sent one by one; it was asked when \
                     the tunnel was opened"
                );
                Some(Off::old_kernel(reason, "4.18"))
            }
        };
        let value = available.then(|| format!("{} datagrams per send", kernel.segments_max));
        list.add(CapabilityName::UdpGso, value, off);
        let off = (kernel.segments_max < new).then(|| {
            let taken = if available { old } else { 1 };
            Off::old_kernel(
                format!("the kernel sends at most {taken} datagrams by one call"),
                "6.9",
            )
        });
        list.add(CapabilityName::UdpGso128, None, off);

        let buffers = tunnel.buffers();
        let next = self.next_growth;
        for (name, granted, asked, sysctl) in [
            (CapabilityName::ReceiveBuffer, buffers.receive(), RECEIVE_BUFFER, "net.core.rmem_max"),
            (CapabilityName::SendBuffer, buffers.send(), SEND_BUFFER, "net.core.wmem_max"),
        ] {
            list.add(name, Some(bytes(granted)), small_buffer(granted, asked, sysctl, next));
        }
    }

    /// The destinations that datagrams go to one by one, if there are any that are nodes.
    fn lost_offload(&self, tunnel: &TunnelStatus) -> Option<Off> {
        let names: BTreeMap<SocketAddr, &str> = (self.map.members.values())
            .filter(|member| member.state.is_active())
            .map(|member| {
                (SocketAddr::new(member.underlay, member.vxlan_port), member.name.as_str())
            })
            .collect();
        let lost: Vec<Fallback> =
            tunnel.fallbacks().iter().flat_map(|worker| worker.lost()).collect();
        lost_offload(&lost, &names)
    }
}

/// Why sends to some nodes are not merged. Two workers may both have found out.
fn lost_offload(lost: &[Fallback], names: &BTreeMap<SocketAddr, &str>) -> Option<Off> {
    let lost = || lost.iter().filter(|fallback| names.contains_key(&fallback.to));
    let nodes: BTreeSet<(&str, IpAddr)> =
        lost().filter_map(|f| names.get(&f.to).map(|name| (*name, f.to.ip()))).collect();
    let why = &lost().next()?.why;
    let named = nodes.iter().take(NAMED_MAX).map(|(name, ip)| format!("{name} ({ip})"));
    let mut named = named.collect::<Vec<_>>().join(", ");
    if nodes.len() > NAMED_MAX {
        named += &format!(" and {} more", nodes.len() - NAMED_MAX);
    }
    Some(Off {
        reason: format!(
            "the route refused merged datagrams ({why}), so they are sent one by one to {named}"
        ),
        remedy: "switch the interface's transmit checksum offload on (`ethtool -K INTERFACE tx on`), or use \
                 Linux 6.11, which does without; a route with IPsec never takes them"
            .to_owned(),
        since: lost().map(|fallback| fallback.since).min(),
        next_try: lost().map(|fallback| fallback.next_try).min(),
    })
}

fn small_buffer(granted: usize, asked: usize, sysctl: &str, next_try: Instant) -> Option<Off> {
    (granted < asked).then(|| Off {
        next_try: Some(next_try),
        ..Off::new(
            format!(
                "{} were asked for and {} granted: without CAP_NET_ADMIN in the first user namespace, {sysctl} is \
                 the limit",
                bytes(asked),
                bytes(granted)
            ),
            format!("`sysctl -w {sysctl}={asked}` on the host, or give weftd that capability"),
        )
    })
}

fn add_tap(tap: &Tap, list: &mut List<'_>) {
    let offloads = tap.offloads();
    for (name, on, flags, release) in [
        (CapabilityName::TapChecksum, offloads.checksum, "TUN_F_CSUM", "2.6.27"),
        (CapabilityName::TapTso, offloads.tcp, "TUN_F_TSO4 and TUN_F_TSO6", "2.6.27"),
        (CapabilityName::TapUso, offloads.udp, "TUN_F_USO4 and TUN_F_USO6", "6.2"),
    ] {
        let off = (!on).then(|| {
            let reason = format!(
                "TUNSETOFFLOAD refused {flags}, so the kernel behind the interface does that work; it was asked \
                 when the port was opened"
            );
            Off::old_kernel(reason, release)
        });
        list.add(name, None, off);
    }
    list.add(CapabilityName::GsoWrite, None, refused_gso(&tap.gso_fallbacks()));
}

/// Whether several super-frames are written as one; `refused` is what the port's interface refused of that.
fn add_long_frames(refused: &[GsoFallback], probed: &Probed, list: &mut List<'_>) {
    let tried = [&probed.tcp4, &probed.tcp6];
    for ((kind, name), tried) in LONG_FRAMES.into_iter().zip(tried) {
        let off = match tried {
            Err(why) => Some(not_taken(why)),
            Ok(()) => refused.iter().find(|refused| refused.kind == kind).map(refused_chain),
        };
        list.add(name, None, off);
    }
}

fn not_taken(why: &NotTaken) -> Off {
    let reason = format!("{why}; it was tried when the daemon was started");
    let remedy = match why {
        NotTaken::Dropped { .. } | NotTaken::CutShort { .. } => {
            return Off::old_kernel(reason, "6.6");
        }
        NotTaken::Refused { .. } => {
            "before Linux 6.6, a newer kernel; from then on, free memory and restart weftd"
        }
        NotTaken::Untried { .. } => "see to what failed and restart weftd",
    };
    Off::new(reason, remedy)
}

fn refused_chain(refused: &GsoFallback) -> Off {
    Off {
        reason: "the kernel refused several super-frames in one write (EINVAL, EMSGSIZE or ENOBUFS), so they are \
                 written one by one"
            .to_owned(),
        remedy: "nothing: the next ones after 100 ms are tried as one. If this stays, the node is short of \
                 memory in large pieces"
            .to_owned(),
        since: Some(refused.since),
        next_try: Some(refused.next_try),
    }
}

fn add_veth(veth: &Veth, next_growth: Instant, list: &mut List<'_>) {
    list.add(CapabilityName::GsoWrite, None, refused_gso(&veth.gso_fallbacks()));
    // An interface that vanishes has no buffer, and its port tells that.
    if let Ok(granted) = veth.receive_buffer() {
        let off = small_buffer(granted, veth::RECEIVE_BUFFER, "net.core.rmem_max", next_growth);
        list.add(CapabilityName::ReceiveBuffer, Some(bytes(granted)), off);
    }
}

fn refused_gso(refused: &[GsoFallback]) -> Option<Off> {
    let kinds: Vec<&str> = (refused.iter())
        .map(|fallback| match fallback.kind {
            GsoKind::Tcp4 => "TCP over IPv4",
            GsoKind::Tcp6 => "TCP over IPv6",
            GsoKind::Udp => "UDP",
        })
        .collect();
    (!kinds.is_empty()).then(|| Off {
        reason: format!(
            "the kernel refused a super-frame (EINVAL: {}), so they are cut before they are written",
            kinds.join(", ")
        ),
        remedy: "nothing: the next one after 100 ms is tried whole. If this stays, a pod sends what this \
                 kernel does not take, or it takes none of this kind"
            .to_owned(),
        since: refused.iter().map(|fallback| fallback.since).min(),
        next_try: refused.iter().map(|fallback| fallback.next_try).min(),
    })
}

/// A number of bytes as people write it.
fn bytes(count: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match count {
        _ if count >= MIB && count.is_multiple_of(MIB) => format!("{} MiB", count / MIB),
        _ if count >= KIB => format!("{} KiB", count / KIB),
        _ => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::long_frames::Family;

    fn to(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 4789))
    }

    #[test]
    fn nodes_that_are_sent_to_singly_are_named_once_and_not_all() {
        let start = Instant::now();
        let fallback = |number: u8, next_s| Fallback {
            to: to(number),
            why: "I/O error".to_owned(),
            since: start + Duration::from_secs(number.into()),
            next_try: start + Duration::from_secs(next_s),
        };
        let members: Vec<_> = (1..=5).map(|number| (to(number), format!("n{number}"))).collect();
        let names: BTreeMap<_, _> = members.iter().map(|(to, name)| (*to, name.as_str())).collect();
        assert!(lost_offload(&[], &names).is_none());
        assert!(lost_offload(&[fallback(9, 1)], &names).is_none(), "it is no node any more");

        let off =
            lost_offload(&[fallback(2, 40), fallback(2, 30), fallback(9, 1)], &names).unwrap();
        assert!(off.reason.ends_with("one by one to n2 (192.0.2.2)"), "{}", off.reason);
        assert!(off.reason.contains("I/O error"), "{}", off.reason);
        assert_eq!(off.since, Some(start + Duration::from_secs(2)));
        assert_eq!(off.next_try, Some(start + Duration::from_secs(30)));

        let all: Vec<_> = (1..=5).map(|number| fallback(number, 50)).collect();
        let reason = lost_offload(&all, &names).unwrap().reason;
        assert!(
            reason.ends_with("n1 (192.0.2.1), n2 (192.0.2.2), n3 (192.0.2.3) and 2 more"),
            "{reason}"
        );
    }

    #[test]
    fn a_small_buffer_says_which_setting_to_raise() {
        let next = Instant::now();
        assert!(small_buffer(8 << 20, 8 << 20, "net.core.rmem_max", next).is_none());
        let off = small_buffer(212_992, 8 << 20, "net.core.rmem_max", next).unwrap();
        assert!(
            off.reason.starts_with("8 MiB were asked for and 208 KiB granted"),
            "{}",
            off.reason
        );
        assert!(off.remedy.contains("sysctl -w net.core.rmem_max=8388608"), "{}", off.remedy);
        assert_eq!(off.next_try, Some(next));
    }

    #[test]
    fn what_is_off_says_since_when_and_when_it_is_tried_again() {
        let opened = Instant::now();
        let at = |secs| opened + Duration::from_secs(secs);
        let mut found = Vec::new();
        let mut list = List { list: &mut found, at: Place::Host, port: None, opened, now: at(100) };
        list.add(CapabilityName::TapTso, None, None);
        list.add(CapabilityName::TapUso, None, Some(Off::old_kernel("refused", "6.2")));
        let refused = GsoFallback { kind: GsoKind::Udp, since: at(90), next_try: at(99) };
        list.add(CapabilityName::GsoWrite, None, refused_gso(&[refused]));
        let told = |ix: usize| {
            let Capability { on, since_s, next_try_s, .. } = found[ix];
            (on, since_s, next_try_s)
        };
        assert_eq!(told(0), (true, 100, None));
        assert_eq!((&found[0].reason, &found[0].remedy), (&None, &None));
        assert_eq!(told(1), (false, 100, None));
        assert!(found[1].remedy.as_ref().unwrap().contains("Linux 6.2"));
        assert_eq!(told(2), (false, 10, Some(0)));
        assert!(found[2].reason.as_ref().unwrap().contains("EINVAL: UDP"));
    }

    #[test]
    fn long_super_frames_are_told_per_protocol_with_what_was_tried_and_what_was_refused() {
        let opened = Instant::now();
        let at = |secs| opened + Duration::from_secs(secs);
        let told = |probed: &Probed, refused: &[GsoFallback]| {
            let mut found = Vec::new();
            let mut list =
                List { list: &mut found, at: Place::Port, port: None, opened, now: at(100) };
            add_long_frames(refused, probed, &mut list);
            assert_eq!(
                found.iter().map(|found| found.name).collect::<Vec<_>>(),
                [CapabilityName::BigTcpV4, CapabilityName::BigTcpV6]
            );
            found
        };
        let both = Probed { tcp4: Ok(()), tcp6: Ok(()) };
        assert!(told(&both, &[]).iter().all(|found| found.on));

        let refused = GsoFallback { kind: GsoKind::Tcp6, since: at(90), next_try: at(101) };
        let found = told(&both, &[refused]);
        assert_eq!((found[0].on, found[1].on), (true, false));
        assert_eq!((found[1].since_s, found[1].next_try_s), (10, Some(1)));

        let old = NotTaken::Dropped { over: Family::V4, kilobytes: 260, release: "6.3" };
        let failed = NotTaken::Untried { over: Family::V6, why: "no such device".to_owned() };
        let found = told(&Probed { tcp4: Err(old), tcp6: Err(failed) }, &[refused]);
        let text = |ix: usize| {
            let Capability { reason, remedy, next_try_s, .. } = &found[ix];
            assert_eq!(*next_try_s, None);
            (reason.as_deref().unwrap(), remedy.as_deref().unwrap())
        };
        assert!(text(0).0.contains("dropped a TCP packet of 260 kB over IPv4"), "{:?}", text(0));
        assert!(text(0).1.contains("Linux 6.6"), "{:?}", text(0));
        assert!(text(1).0.contains("over IPv6 could not be found out: no such device"));
        assert!(text(1).1.contains("restart weftd"), "{:?}", text(1));
    }

    #[test]
    fn bytes_are_written_for_people() {
        assert_eq!(bytes(8 << 20), "8 MiB");
        assert_eq!(bytes(212_992), "208 KiB");
        assert_eq!(bytes(3 << 19), "1536 KiB");
        assert_eq!(bytes(7), "7 bytes");
    }
}
