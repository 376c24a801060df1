//! Prometheus metrics (OpenMetrics text), made from the same values as `weft -o json`.
//!
//! All packet counters obey the conservation law of [`vswitch::counters`]:
//! `received + originated = delivered + answered + sum(dropped) + queued`. Labels are bounded: reasons are
//! a closed list, pods are at most `[switch] ports_max`, nodes at most the gossip limit.

use std::collections::BTreeMap;
use std::fmt;

use conf::source::manifests::Counts;
use overlay::gossip::Ages;
use overlay::subnet::MemberState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use vswitch::verdict::Reason;

use super::api::{
    CountersReport, KernelDropped, NodeStatus, PathStatus, PodStatus, PoliciesReport, PolicyCounts,
    ProbesReport, Status,
};
use super::capability::{CapabilityName, Place};
use super::ipam::{IpamPool, IpamReport};
use crate::control::{PodNumbers, is_up};
use crate::dns::report::DnsStatus;
use crate::dns::stats::LATENCY_BOUNDS_US;

/// Everything that is told about a node, read at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// The node.
    pub status: Status,
    /// The map.
    pub nodes: Vec<NodeStatus>,
    /// The pods on this node.
    pub pods: Vec<PodStatus>,
    /// The counters.
    pub counters: CountersReport,
    /// The pods of all nodes, in numbers.
    pub pod_numbers: PodNumbers,
    /// The name server, if there is one.
    pub dns: Option<DnsStatus>,
    /// The policies.
    pub policies: PoliciesReport,
    /// The addresses.
    pub ipam: IpamReport,
}

/// Writes the report as OpenMetrics text.
///
/// # Errors
/// Never in practice: writing to a `String` cannot fail.
pub fn encode(report: Report) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(report));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Report {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder };
        self.packets(&mut out)?;
        self.policies(&mut out)?;
        self.capabilities(&mut out)?;
        self.pods(&mut out)?;
        self.paths(&mut out)?;
        self.dns(&mut out)?;
        self.membership(&mut out)
    }
}

/// Policies that have metrics of their own: those that denied most.
const POLICIES_SHOWN: usize = 100;

impl Report {
    fn policies(&self, out: &mut Writer<'_>) -> fmt::Result {
        let of_rules = |policy: &PolicyCounts, direction: &str| -> u64 {
            let rules = policy.rules.iter().filter(|rule| rule.direction == direction);
            rules.map(|rule| rule.denied).sum()
        };
        let mut denied: Vec<_> = self
            .policies
            .policies
            .iter()
            .flat_map(|policy| {
                [("egress", policy.denied_egress), ("ingress", policy.denied_ingress)].map(
                    |(direction, isolated)| {
                        let count = isolated + of_rules(policy, direction);
                        (policy.name.clone(), policy.tier.clone(), direction, count)
                    },
                )
            })
            .filter(|(.., count)| *count > 0)
            .collect();
        denied.sort_by(|a, b| b.3.cmp(&a.3).then_with(|| a.cmp(b)));
        denied.truncate(POLICIES_SHOWN);
        let denied = denied.into_iter().map(|(name, tier, direction, count)| {
            ([("policy", name), ("tier", tier), ("direction", direction.to_owned())], count)
        });
        out.counters(
            "weft_policy_denied_packets",
            "Packets denied, or audited, for a policy of the 100 that denied most; several isolate a pod together",
            denied,
        )?;
        let count = self.policies.policies.len();
        out.gauge("weft_policies", "Policies in force", count as f64)?;
        out.counter(
            "weft_policy_denials_untold",
            "Denials that no event told of one by one",
            self.policies.denials_untold,
        )
    }

    fn packets(&self, out: &mut Writer<'_>) -> fmt::Result {
        let counters = &self.counters;
        out.counter(
            "weft_received_packets",
            "Packets received from ports and tunnel",
            counters.received,
        )?;
        out.counter(
            "weft_originated_packets",
            "Packets that the switch made",
            counters.originated,
        )?;
        out.counter(
            "weft_delivered_packets",
            "Packets taken by a port or the underlay",
            counters.delivered,
        )?;
        out.counter("weft_answered_packets", "Packets for the switch itself", counters.answered)?;
        out.counter(
            "weft_received_bytes",
            "Bytes received from ports and tunnel",
            counters.received_bytes,
        )?;
        out.counter(
            "weft_delivered_bytes",
            "Bytes taken by a port or the underlay",
            counters.delivered_bytes,
        )?;
        out.gauge(
            "weft_queued_packets",
            "Received and not yet accounted for",
            counters.queued as f64,
        )?;
        let dropped = Reason::ALL.iter().map(|reason| {
            let count = counters.dropped.get(reason.as_str()).copied().unwrap_or(0);
            ([("reason", reason.as_str().to_owned())], count)
        });
        out.counters("weft_dropped_packets", "Packets dropped, by reason", dropped)?;
        let refused =
            counters.gossip_refused.iter().map(|(reason, n)| ([("reason", reason.clone())], *n));
        out.counters(
            "weft_gossip_refused",
            "Gossip datagrams or records refused, by reason",
            refused,
        )?;
        let KernelDropped { tunnel, host, ports } = counters.kernel_dropped;
        let dropped = [(Place::Tunnel, tunnel), (Place::Host, host), (Place::Port, ports)];
        let dropped = dropped.map(|(at, count)| ([("at", at.as_str().to_owned())], count));
        out.counters(
            "weft_kernel_dropped_packets",
            "Packets that the kernel dropped before the switch, not among those received",
            dropped,
        )
    }

    /// A capability of ports is on if every port has it: a series for each port would be many, and
    /// `weft status` names those that have it not.
    fn capabilities(&self, out: &mut Writer<'_>) -> fmt::Result {
        let mut found: BTreeMap<(CapabilityName, Place), bool> = BTreeMap::new();
        for capability in &self.status.capabilities {
            let on = found.entry((capability.name, capability.at)).or_insert(true);
            *on &= capability.on;
        }
        let labels = |name: CapabilityName, at: Place| {
            [("name", name.as_str().to_owned()), ("at", at.as_str().to_owned())]
        };
        let gauges =
            (found.iter()).map(|((name, at), on)| (labels(*name, *at), f64::from(u8::from(*on))));
        out.gauges(
            "weft_capability",
            "Whether what the kernel offers is in use, for ports: at every port",
            gauges,
        )?;
        let counts = self.counters.fallbacks.iter();
        out.counters(
            "weft_fallbacks",
            "How often the kernel refused what it otherwise takes, trials included",
            counts.map(|fallback| (labels(fallback.name, fallback.at), fallback.count)),
        )
    }

    fn pods(&self, out: &mut Writer<'_>) -> fmt::Result {
        let labelled = |value: fn(&PodStatus) -> u64| {
            self.pods.iter().map(move |pod| {
                let labels = [
                    ("namespace", pod.namespace.clone().unwrap_or_default()),
                    ("pod", pod.name.clone().unwrap_or_else(|| pod.container_id.clone())),
                    ("interface", pod.ifname.clone()),
                ];
                (labels, value(pod))
            })
        };
        out.counters(
            "weft_pod_sent_packets",
            "Packets that the pod sent",
            labelled(|p| p.traffic.received),
        )?;
        out.counters(
            "weft_pod_sent_bytes",
            "Bytes that the pod sent",
            labelled(|p| p.traffic.received_bytes),
        )?;
        out.counters(
            "weft_pod_received_packets",
            "Packets that the pod was given",
            labelled(|p| p.traffic.delivered),
        )?;
        out.counters(
            "weft_pod_received_bytes",
            "Bytes that the pod was given",
            labelled(|p| p.traffic.delivered_bytes),
        )?;
        out.counters(
            "weft_pod_dropped_packets",
            "Packets from or to the pod that were dropped",
            labelled(|p| p.traffic.dropped),
        )?;
        out.counters(
            "weft_pod_kernel_dropped_packets",
            "Packets of the pod that the kernel dropped before the switch",
            labelled(|p| p.kernel_dropped),
        )?;
        out.gauge("weft_pods", "Attached pods", self.pods.len() as f64)?;
        let pools = || self.ipam.pools.iter();
        let prefix = |pool: &IpamPool| [("prefix", pool.prefix.to_string())];
        out.gauges(
            "weft_ipam_used_addresses",
            "Addresses of the node's subnet that pods have",
            pools().map(|pool| (prefix(pool), pool.used as f64)),
        )?;
        out.gauges(
            "weft_ipam_free_addresses",
            "Addresses of the node's subnet that can be handed out, also those that rest",
            pools().map(|pool| (prefix(pool), pool.free as f64)),
        )?;
        out.gauges(
            "weft_ipam_resting_addresses",
            "Addresses of the node's subnet that were given back a short time ago",
            pools().map(|pool| (prefix(pool), pool.resting as f64)),
        )?;
        out.counter(
            "weft_ipam_reuse_delay_shortened",
            "Addresses that were given out before they had rested, because no other was free",
            self.ipam.shortened,
        )?;
        let PodNumbers { known, kept_out, learned } = &self.pod_numbers;
        out.gauge("weft_map_pods", "Pods in the map, of all live nodes", *known as f64)?;
        out.gauge(
            "weft_map_pods_kept_out",
            "Pods that are kept out of the map: an address of theirs is not their node's",
            *kept_out as f64,
        )?;
        out.ages(
            "weft_map_pod_learned_seconds",
            "How old new pods of other nodes were when this node learned of them",
            learned,
        )
    }

    /// A series for each node that can be sent to.
    fn paths(&self, out: &mut Writer<'_>) -> fmt::Result {
        let labelled = |value: fn(&PathStatus) -> Option<f64>| {
            self.nodes.iter().filter_map(move |node| {
                let value = value(node.path.as_ref()?)?;
                Some(([("node", node.name.clone()), ("node_id", node.node_id.clone())], value))
            })
        };
        out.gauges(
            "weft_path_up",
            "Whether data passes to the node; absent while that is not known",
            labelled(|path| is_up(path.state).map(|up| f64::from(u8::from(up)))),
        )?;
        out.gauges(
            "weft_path_mtu_bytes",
            "Longest IP packet of the underlay that passes to the node",
            labelled(|path| Some(f64::from(path.mtu))),
        )?;
        out.gauges(
            "weft_path_narrow",
            "Whether the path to the node carries less than the interfaces at both ends",
            labelled(|path| Some(f64::from(u8::from(path.mtu < path.mtu_max)))),
        )?;
        out.gauges(
            "weft_path_rtt_seconds",
            "Round-trip time to the node through the tunnel, smoothed",
            labelled(|path| path.rtt_us.map(|rtt| rtt as f64 / 1e6)),
        )?;
        out.gauges(
            "weft_path_loss_ratio",
            "Share of the last probes to the node, at most 32, that were lost",
            labelled(|path| path.loss.map(f64::from)),
        )?;
        let ProbesReport { sent, replies, unasked } = self.counters.probes;
        let counts = [("sent", sent), ("replies", replies), ("unasked", unasked)];
        let counts = counts.map(|(what, count)| ([("what", what.to_owned())], count));
        out.counters("weft_path_probes", "Probes of the paths to other nodes", counts)
    }

    /// Labels are bounded: zones are those of the configuration.
    fn dns(&self, out: &mut Writer<'_>) -> fmt::Result {
        let Some(dns) = &self.dns else { return Ok(()) };
        let responses = dns.responses.iter().map(|response| {
            let labels = [
                ("zone", response.zone.clone()),
                ("part", response.part.clone()),
                ("rcode", response.rcode.clone()),
            ];
            (labels, response.count)
        });
        out.counters("weft_dns_responses", "Responses to names, by zone and code", responses)?;
        out.latency("weft_dns_response_seconds", "Time from question to response", dns)?;
        let events = dns.totals.iter().map(|(what, count)| ([("event", what.clone())], *count));
        out.counters("weft_dns_events", "What else happened in the name server", events)?;
        let servers = dns.upstreams.iter().map(|server| {
            let labels = [("zone", server.zone.clone()), ("server", server.address.to_string())];
            (labels, f64::from(u8::from(server.healthy)))
        });
        out.gauges("weft_dns_upstream_up", "Whether another name server is asked", servers)?;
        let synced = f64::from(u8::from(dns.synced));
        out.gauge("weft_dns_synced", "Whether names of the cluster are known", synced)?;
        out.gauge("weft_dns_cached", "Answers of other servers that are kept", dns.cached as f64)
    }

    fn membership(&self, out: &mut Writer<'_>) -> fmt::Result {
        let status = &self.status;
        let states = MemberState::ALL.map(|state| {
            let count = self.nodes.iter().filter(|node| node.state == state).count();
            ([("state", state.name().to_owned())], count as f64)
        });
        out.gauges("weft_nodes", "Nodes of the map, by state", states)?;
        let used =
            status.addresses.iter().map(|p| ([("prefix", p.prefix.to_string())], p.used as f64));
        out.gauges("weft_addresses_used", "Addresses that pods hold, by leased prefix", used)?;
        let free =
            status.addresses.iter().map(|p| ([("prefix", p.prefix.to_string())], p.free as f64));
        out.gauges("weft_addresses_free", "Addresses left, by leased prefix", free)?;
        let Counts { files: _, accepted, refused, ignored } = status.objects;
        let fates = [("accepted", accepted), ("refused", refused), ("ignored", ignored)];
        let fates = fates.map(|(fate, count)| ([("fate", fate.to_owned())], count as f64));
        out.gauges("weft_objects", "Declared objects, by what became of them", fates)?;
        if let Some(api) = &status.api_server {
            let stale = api.stale_s.map_or(0.0, |stale_s| stale_s as f64);
            out.gauge(
                "weft_api_server_stale_seconds",
                "For how long the API server has not told of the cluster; 0 while it does",
                stale,
            )?;
            out.gauge(
                "weft_api_server_synced",
                "Whether all objects of the cluster were known once",
                f64::from(u8::from(api.synced)),
            )?;
        }
        out.gauge("weft_map_version", "Version of the subnet map", status.map_generation as f64)?;
        out.gauge(
            "weft_tables_version",
            "Version of the switch's tables",
            status.tables_generation as f64,
        )?;
        out.gauge(
            "weft_insecure",
            "Whether gossip is in clear, so that whoever reaches its port may join",
            f64::from(u8::from(status.insecure)),
        )?;
        out.gauge("weft_ready", "Whether pods can be attached", f64::from(u8::from(status.ready)))?;
        out.gauge(
            "weft_problems",
            "Open problems, as weft status lists them",
            status.problems.len() as f64,
        )?;
        out.gauge("weft_uptime_seconds", "Seconds since the daemon started", status.uptime_s as f64)
    }
}

/// Ages as a histogram.
#[derive(Debug)]
struct AgesMetric<'a>(&'a Ages);

impl EncodeMetric for AgesMetric<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Ages { counts, sum } = self.0;
        let bounds = Ages::BOUNDS_MS.iter().map(|bound| *bound as f64 / 1000.0);
        let buckets: Vec<_> = bounds.chain([f64::MAX]).zip(counts.iter().copied()).collect();
        encoder.encode_histogram::<NoLabelSet>(
            sum.as_secs_f64(),
            counts.iter().sum(),
            &buckets,
            None,
        )
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// How long responses took, as a histogram.
#[derive(Debug)]
struct LatencyMetric<'a>(&'a DnsStatus);

impl EncodeMetric for LatencyMetric<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counts = &self.0.latency;
        let bounds = LATENCY_BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6);
        let buckets: Vec<_> = bounds.chain([f64::MAX]).zip(counts.iter().copied()).collect();
        let sum = self.0.latency_sum_us as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The encoder, with one call for each shape of metric that there is.
struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn ages(&mut self, name: &str, help: &str, ages: &Ages) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        AgesMetric(ages).encode(encoder)
    }

    fn latency(&mut self, name: &str, help: &str, dns: &DnsStatus) -> fmt::Result {
        let encoder = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        LatencyMetric(dns).encode(encoder)
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
