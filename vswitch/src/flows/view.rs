//! Flows as people see them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::flows::state::Seen;
use crate::flows::{FlowProtocol, FlowTable, PLAIN, SERVICE, Ticks, lower_32, split};
use crate::service::{Family, Service, ServiceTable};
use crate::sync::Ordering;

/// One flow at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowView {
    /// Protocol.
    pub protocol: FlowProtocol,
    /// Who asks.
    pub client: (IpAddr, u16),
    /// Where the client sends to.
    pub frontend: (IpAddr, u16),
    /// Who serves.
    pub endpoint: (IpAddr, u16),
    /// Whom the endpoint sees: the client, unless the switch takes its place.
    pub seen_as: (IpAddr, u16),
    /// The Service's id ([`crate::service::Service::id`]); 0 for a flow that is not translated.
    pub service: u64,
    /// The state, by the names of `conntrack -L`.
    pub state: &'static str,
    /// Time since the first packet.
    pub age: Duration,
    /// Time since the last packet.
    pub idle: Duration,
    /// Time until the flow is forgotten if nothing more comes.
    pub expires: Duration,
    /// Packets from the client.
    pub packets_original: u64,
    /// Bytes from the client, Ethernet headers included.
    pub bytes_original: u64,
    /// Packets to the client.
    pub packets_reply: u64,
    /// Bytes to the client.
    pub bytes_reply: u64,
}

impl FlowView {
    /// Whether the flow is only followed, and not translated.
    pub fn is_plain(&self) -> bool {
        self.service == PLAIN
    }

    /// `namespace/name:port` of the Service, if it still has the frontend.
    pub fn service_name<'t>(&self, services: &'t ServiceTable) -> Option<&'t str> {
        let ((address, port), protocol) = (self.frontend, self.protocol.service()?);
        let by_address = services.frontend(address, port, protocol).map(|(service, _)| service);
        let by_node_port = || services.node_port(Family::of(address), port, protocol);
        let is_its = |service: &&Service| service.id() == self.service;
        let service = by_address.filter(is_its).or_else(|| by_node_port().filter(is_its))?;
        Some(service.name())
    }
}

impl FlowTable {
    /// At most `flows_max` flows, for which `is_wanted` holds, as they are at `now`. Workers go on meanwhile.
    pub fn view(
        &self,
        now: Instant,
        flows_max: usize,
        is_wanted: impl Fn(&FlowView) -> bool,
    ) -> Vec<FlowView> {
        let now = self.ticks(now);
        let all = (0..self.slots.len()).filter_map(|ix| self.view_slot(ix, now));
        all.filter(is_wanted).take(flows_max).collect()
    }

    fn view_slot(&self, ix: usize, now: Ticks) -> Option<FlowView> {
        let slot = &self.slots[ix];
        let state = slot.state.load(Ordering::Acquire);
        if lower_32(state) == 0 {
            return None;
        }
        let (epoch, names) = slot.names.read()?;
        let seen: Seen = slot.live(epoch)?;
        let (original, reply) = split(&names);
        let (original, reply) = (original.unpacked(), reply.unpacked());
        let protocol = original.protocol;
        let (idle, timeout) = (now.since(slot.last()), seen.timeout(protocol));
        if idle > timeout {
            return None;
        }
        let created = Ticks(slot.created.load(Ordering::Relaxed));
        let duration = |ticks: Ticks| Duration::from_millis(u64::from(ticks.0) * 100);
        let read = |counter: &crate::sync::AtomicU64| counter.load(Ordering::Relaxed);
        Some(FlowView {
            protocol,
            client: original.source,
            frontend: original.destination,
            endpoint: reply.source,
            seen_as: reply.destination,
            service: names[SERVICE],
            state: seen.name(protocol),
            age: duration(now.since(created)),
            idle: duration(idle),
            expires: duration(timeout.since(idle)),
            packets_original: read(&slot.original.packets),
            bytes_original: read(&slot.original.bytes),
            packets_reply: read(&slot.reply.packets),
            bytes_reply: read(&slot.reply.bytes),
        })
    }
}
