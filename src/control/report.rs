//! What the node tells about itself.

use std::iter;
use std::time::Instant;

use ipam::{Allocation, PortKind};
use overlay::decap::Offence;
use overlay::gossip::{Refused, Stranger};
use overlay::path::peers::ProbeCounters;
use overlay::subnet::{Claim, MemberState};
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::verdict::Reason;

use super::attach::now_unix_s;
use super::{Control, OFFENDERS_MAX, Topic};
use crate::admin::api::{
    ApiServerStatus, CountersReport, INSECURE, KernelDropped, LeasePhase, NodeStatus, Offender,
    PodStatus, PoolStatus, ProbesReport, Problem, ProblemTopic, Status,
};
use crate::admin::metrics::Report;
use crate::events::Code;

/// Senders with a wrong seal that are listed as problems.
const STRANGERS_SHOWN: usize = 8;

/// Datagrams with a broken seal, of one sender within a minute, that are no accident any more.
const DAMAGED_MIN: u64 = 10;

/// Log lines about new senders of refused tunnel packets, each time that reports are collected.
const OFFENCE_LINES: u32 = 3;

impl Control {
    /// The node and its health.
    pub fn status(&self) -> Status {
        let held = self.lease_phase == LeasePhase::Held;
        let alive = self.map.members.values().filter(|member| member.state.is_active()).count();
        let own = self.problems.iter().map(|(topic, text)| (topic.kind(), text.clone()));
        let conflicts = self.map.conflicts.iter();
        let conflicts =
            conflicts.map(|conflict| (ProblemTopic::Conflict, self.map.describe(conflict)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: self.config.network.clone(),
            name: self.identity.name.clone(),
            node_id: self.identity.id.to_string(),
            underlay: self.underlay.as_ref().map(|underlay| underlay.address),
            underlay_mtu: self.underlay.as_ref().map(|underlay| underlay.mtu),
            pod_mtu: self.underlay.as_ref().map(|_| self.pod_mtu()),
            vtep_mac: self.identity.id.vtep_mac(),
            leases: if held { self.leases() } else { Vec::new() },
            lease_state: self.lease_phase,
            addresses: self.pools(),
            insecure: self.config.overlay.insecure,
            keys: (self.map.members.get(&self.identity.id))
                .map(|own| own.keys.clone())
                .unwrap_or_default(),
            nodes_alive: alive,
            map_generation: self.map.generation,
            tables_generation: self.generation,
            pods: self.attached.len(),
            objects: self.object_counts(),
            api_server: self.api_health().map(|health| ApiServerStatus {
                server: health.server,
                synced: health.complete,
                // What is remembered is as old as it is, whatever the server does now.
                stale_s: self
                    .remembered_s()
                    .or_else(|| health.stale_since.map(|since| since.elapsed().as_secs())),
                remembered: self.remembered_s().is_some(),
                reason: health.reason,
            }),
            uptime_s: self.started.elapsed().as_secs(),
            ready: held
                && self.tunnel.is_some()
                && self.host.is_some()
                && !self.problems.contains_key(&Topic::Node(ProblemTopic::Underlay)),
            problems: (own.chain(conflicts).chain(self.isolation()).chain(self.seal_problems()))
                .map(|(topic, text)| Problem { topic, text })
                .collect(),
            capabilities: self.capabilities(Instant::now()),
        }
    }

    /// What is wrong with the seal: there is none, or others have another.
    fn seal_problems(&self) -> impl Iterator<Item = (ProblemTopic, String)> {
        let insecure = self.config.overlay.insecure.then(|| INSECURE.to_owned());
        // Damage happens; somebody who cannot do it right does not stop.
        let lasting = |stranger: &&Stranger| {
            stranger.reason != Refused::Unauthentic || stranger.count >= DAMAGED_MIN
        };
        let strangers = self.strangers.iter().filter(lasting).take(STRANGERS_SHOWN);
        let texts = insecure.into_iter().chain(strangers.map(ToString::to_string));
        texts.map(|text| (ProblemTopic::Keys, text))
    }

    /// A node that knows others and hears none of them.
    fn isolation(&self) -> Option<(ProblemTopic, String)> {
        let others = self.map.members.values().filter(|member| member.id != self.identity.id);
        let mut others = others.filter(|member| member.state != MemberState::Left).peekable();
        others.peek()?;
        let port = self.config.overlay.gossip_port;
        (!others.any(|member| member.state.is_active())).then(|| {
            let text = format!(
                "no other node answers: check the cable, and that UDP port {port} is open between the nodes"
            );
            (ProblemTopic::Gossip, text)
        })
    }

    /// The map.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let (now, paths) = (Instant::now(), self.paths.reports());
        let members = self.map.members.values().map(|member| NodeStatus {
            name: member.name.clone(),
            node_id: member.id.to_string(),
            state: member.state,
            this_node: member.id == self.identity.id,
            underlay: member.underlay,
            underlay_mtu: member.underlay_mtu,
            vtep_mac: member.vtep_mac,
            leases: (member.leases.iter())
                .filter(|lease| lease.claim == Claim::Held && !lease.contested)
                .map(|lease| lease.prefix)
                .collect(),
            version: member.version,
            since_s: now.saturating_duration_since(member.since).as_secs(),
            software: member.software.clone(),
            path: paths.get(&member.id).map(|report| Self::path_status(member, report, now)),
            keys: member.keys.clone(),
        });
        let mut nodes: Vec<_> = members.collect();
        nodes.sort_by(|a, b| (&a.name, &a.node_id).cmp(&(&b.name, &b.node_id)));
        nodes
    }

    /// The pods on this node.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.ipam.iter().map(|allocation| self.pod(allocation)).collect()
    }

    /// All counters.
    pub fn counters(&self) -> CountersReport {
        let totals = self.engine.counters().sum();
        let dropped =
            Reason::ALL.iter().map(|reason| (reason.to_string(), totals.dropped(*reason)));
        CountersReport {
            received: totals.received,
            originated: totals.originated,
            delivered: totals.delivered,
            answered: totals.answered,
            queued: i64::try_from(totals.queued()).unwrap_or(i64::MAX),
            received_bytes: totals.received_bytes,
            delivered_bytes: totals.delivered_bytes,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
            offenders: self.offenders.iter().cloned().collect(),
            gossip_refused: self.gossip_refused.clone(),
            kernel_dropped: KernelDropped {
                tunnel: self.kernel_drops.tunnel,
                host: self.kernel_drops.host,
                ports: self.kernel_drops.ports,
            },
            fallbacks: self.fallbacks(),
            probes: {
                let ProbeCounters { sent, replies, unasked } = self.paths.counters();
                ProbesReport { sent, replies, unasked }
            },
        }
    }

    /// All of the above, for metrics.
    pub fn report(&self) -> Report {
        Report {
            status: self.status(),
            nodes: self.nodes(),
            pods: self.pods(),
            counters: self.counters(),
            pod_numbers: self.pod_numbers(),
            dns: self.dns_status(),
            policies: self.policies(),
            ipam: self.ipam(),
        }
    }

    /// Takes up what the workers reported of refused tunnel packets and vanished interfaces, and logs
    /// each new sender once.
    pub fn collect_reports(&mut self) {
        self.offence_lines = OFFENCE_LINES;
        let offences: Vec<Offence> =
            self.tunnel.iter().flat_map(|tunnel| iter::from_fn(|| tunnel.take_offence())).collect();
        for offence in offences {
            self.note_offence(&offence);
        }
        for lost in self.engine.take_lost_sources() {
            self.lose(lost.port, &lost.error);
        }
        self.tell_denials();
        self.collect_kernel_drops();
        self.ask_again(Instant::now());
    }

    /// Forgets a port whose interface vanished, or the tunnel; [`Control::repair`] makes them anew.
    fn lose(&mut self, port: Option<PortIx>, why: &str) {
        match port {
            None => {
                self.forget_tunnel();
                let problem = format!("the tunnel's socket broke: {why}. It is opened again");
                self.raise(Topic::Node(ProblemTopic::Tunnel), problem);
            }
            Some(PortIx::HOST) => {
                self.forget_host();
                let interface = &self.config.host.interface;
                let problem = format!("{interface} vanished: {why}. It is made again");
                self.raise(Topic::Node(ProblemTopic::Host), problem);
                self.publish();
            }
            Some(port) => self.lose_port(port, why),
        }
    }

    fn note_offence(&mut self, offence: &Offence) {
        let address = offence.from.ip();
        let reason = offence.reason.to_string();
        let known = self.offenders.iter().position(|o| o.address == address && o.reason == reason);
        let reports = match known.and_then(|ix| self.offenders.remove(ix)) {
            Some(offender) => offender.reports.saturating_add(1),
            // Whoever invents senders must not fill the log.
            None if self.offence_lines == 0 => 1,
            None => {
                self.offence_lines -= 1;
                let text = format!("tunnel packets refused: {}", offence.reason.describe());
                let about: [(&str, &dyn ToString); 2] =
                    [("address", &address), ("reason", &reason)];
                self.events.emit(Code::TunnelRefused, text, &about);
                1
            }
        };
        self.offenders.push_front(Offender { address, reason, reports });
        self.offenders.truncate(OFFENDERS_MAX);
    }

    pub(super) fn pod(&self, allocation: &Allocation) -> PodStatus {
        let attached = self.attached.get(&allocation.attachment);
        let pod = allocation.record.pod.as_ref();
        PodStatus {
            namespace: pod.map(|pod| pod.namespace.clone()),
            name: pod.map(|pod| pod.name.clone()),
            container_id: allocation.attachment.container_id.clone(),
            ifname: allocation.attachment.ifname.clone(),
            netns: match &allocation.record.port {
                PortKind::Tap { netns } | PortKind::Foreign { netns } => {
                    Some(netns.path.display().to_string())
                }
                PortKind::AfPacket { .. } => None,
            },
            mac: Mac(allocation.mac.0),
            addresses: allocation.addresses().collect(),
            gateways: self.gateways_of(allocation),
            mtu: attached.map_or_else(|| self.pod_mtu(), |attached| attached.mtu),
            port: attached.map(|attached| attached.port.0),
            traffic: attached
                .map(|attached| self.engine.counters().port(attached.port))
                .unwrap_or_default(),
            kernel_dropped: attached.map_or(0, |attached| attached.kernel_dropped),
            host_ports: self.host_port_statuses(allocation),
        }
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let pool = |usage: ipam::Usage| {
            let free = u64::try_from(usage.free()).unwrap_or(u64::MAX);
            PoolStatus { prefix: usage.prefix, used: usage.used as u64, free }
        };
        self.ipam.usage(now_unix_s()).into_iter().map(pool).collect()
    }
}
