//! The one table of all fields of `weft.toml`: what each means and which values it takes.
//!
//! The checks, `docs/configuration.md` and `conf/examples/full.toml` all come from it. Defaults are not
//! here: they are read from [`crate::NodeConfig`], so there is one place for each.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay::underlay::UnderlaySelector;

use crate::dns::{DomainName, StaticRecord, Stub, Upstream};
use crate::node::{self, ApiServer, MetricsListen, NodeName, PortRange, Seed};

/// The smallest file, as the fix for a missing one.
pub const TWO_LINES: &str =
    "two lines are enough: network = \"prod\" and seeds = [\"192.168.10.11\"]";

/// A part of the file.
#[derive(Debug)]
pub struct Section {
    /// The name in brackets; empty for what stands before the first bracket.
    pub name: &'static str,
    /// What the section is about.
    pub doc: &'static str,
    /// The fields, in reading order.
    pub fields: &'static [Field],
}

/// A field of a section.
#[derive(Debug)]
pub struct Field {
    /// The name before `=`.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// What it is when the file does not say.
    pub default: Default,
    /// Meaning, and what happens at the bounds.
    pub doc: &'static str,
}

/// Which values a field takes.
#[derive(Debug)]
pub enum Kind {
    /// A string that passes the check; `form` says in words which do.
    Text {
        /// Completes "takes …".
        form: &'static str,
        /// Says what is wrong with a value.
        check: Check,
    },
    /// A whole number.
    Whole {
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
        /// The unit; empty for a plain number.
        unit: &'static str,
    },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of strings that pass the check.
    List {
        /// Completes "a list of …".
        form: &'static str,
        /// Says what is wrong with an entry.
        check: Check,
        /// Fewest entries.
        count_min: usize,
        /// Most entries.
        count_max: usize,
    },
}

/// Says what is wrong with a value.
pub type Check = fn(&str) -> Result<(), String>;

/// What a field is when the file does not say.
#[derive(Debug, PartialEq, Eq)]
pub enum Default {
    /// The file must say; the example is a valid value in TOML.
    Required(&'static str),
    /// The value in [`crate::NodeConfig::new`].
    Fixed,
    /// Found out at start, as these words say.
    Found(&'static str),
}

/// All sections.
pub static SECTIONS: &[Section] = &[
    TOP, UNDERLAY, OVERLAY, LEASE, IPAM, SWITCH, HOST, OBJECTS, SERVICES, POLICY, DNS, PATHS,
    METRICS, LOG,
];

const TOP: Section = Section {
    name: "",
    doc: "These stand at the top of the file, before the first section.",
    fields: &[
        Field {
            name: "network",
            kind: Kind::Text {
                form: "1 to 63 lower-case letters, digits and -",
                check: node::check_network,
            },
            default: Default::Required("\"prod\""),
            doc: "Name of the network. All its nodes have the same; gossip with another name is dropped \
                  and counted, so two networks on one underlay do not mix.",
        },
        Field {
            name: "seeds",
            kind: Kind::List {
                form: "host, host:port or [IPv6]:port",
                check: parses::<Seed>,
                count_min: 0,
                count_max: 64,
            },
            default: Default::Required("[\"192.168.10.11\"]"),
            doc: "Nodes that are asked first; two or three are enough, and a node's own address does no \
                  harm, so every node can have the same list. It may be empty only on the very first \
                  node. Without a port, it is `gossip_port`. Names are resolved again at each attempt. \
                  While no seed answers, the daemon keeps trying and serves its own pods.",
        },
        Field {
            name: "name",
            kind: Kind::Text {
                form: "1 to 63 letters, digits, - _ and ., with a letter or digit at both ends",
                check: parses::<NodeName>,
            },
            default: Default::Found("the host's name"),
            doc: "The node's name in tables, logs and metrics. It is not the node's identity, which is \
                  generated once and kept in `paths.state`.",
        },
    ],
};

const UNDERLAY: Section = Section {
    name: "underlay",
    doc: "The network below, which carries the tunnel between nodes.",
    fields: &[
        Field {
            name: "address",
            kind: Kind::Text {
                form: "\"auto\", an IP address, an interface's name, or a range like 10.0.0.0/8",
                check: parses::<UnderlaySelector>,
            },
            default: Default::Fixed,
            doc: "Which of the host's addresses other nodes send to. `auto` is the one that the host's \
                  own routing uses towards the seeds; an interface or a range stands for the first \
                  global address that it holds. \
                  Two nodes with one address is an error that both report.",
        },
        Field {
            name: "mtu",
            kind: Kind::Whole { min: 626, max: 65_535, unit: "bytes" },
            default: Default::Found("the MTU of the interface that holds the underlay address"),
            doc: "Largest IP packet that the network below carries. Pods get 50 bytes less over IPv4 and \
                  70 bytes less over IPv6, which is what VXLAN takes. Set it where a link on the way \
                  carries less than the node's own interface. Below 626 an IPv4 pod would have less than \
                  the 576 bytes that every host must take; with IPv6 ranges, pods need 1280.",
        },
    ],
};

const OVERLAY: Section = Section {
    name: "overlay",
    doc: "How nodes talk to each other. Nodes may have different ports: each announces its own.",
    fields: &[
        Field {
            name: "vxlan_port",
            kind: Kind::Whole { min: 1, max: 65_535, unit: "" },
            default: Default::Fixed,
            doc: "UDP port of the tunnel (RFC 7348). Linux' own vxlan devices take 8472 when told \
                  nothing. When something else on the host has the port, the daemon does not start and \
                  says what to look for. Pods cannot send to it.",
        },
        Field {
            name: "vni",
            kind: Kind::Whole { min: 0, max: 16_777_215, unit: "" },
            default: Default::Fixed,
            doc: "VXLAN network identifier, 24 bits (RFC 7348 §5). It must be the same on every node: what \
                  arrives with another one is dropped and counted.",
        },
        Field {
            name: "gossip_port",
            kind: Kind::Whole { min: 1, max: 65_535, unit: "" },
            default: Default::Fixed,
            doc: "UDP port of membership and the subnet map. Pods cannot send to it.",
        },
        Field {
            name: "nodes_max",
            kind: Kind::Whole { min: 2, max: 65_000, unit: "nodes" },
            default: Default::Fixed,
            doc: "Most nodes that this one remembers, dead ones included, at about 300 bytes each. At the \
                  bound, further nodes are refused and counted.",
        },
        Field {
            name: "key_file",
            kind: PATH,
            default: Default::Fixed,
            doc: "The file with the keys that gossip is sealed with; all nodes have the same keys. `weft key` \
                  makes and changes it, and the daemon follows it without a restart. Only its owner may \
                  read it (mode 0600). Without it the daemon does not start, unless `insecure` is set.",
        },
        Field {
            name: "insecure",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Gossip in clear, without a key. Whoever reaches the gossip port may then join, lie about \
                  subnets and read everything, and the daemon says so in its log, in `weft status` and in its \
                  metrics. Nodes with and without it do not talk to each other.",
        },
        Field {
            name: "pods_max",
            kind: Kind::Whole { min: 1000, max: 10_000_000, unit: "pods" },
            default: Default::Fixed,
            doc: "Most pods that this node remembers, of all nodes together, at about 600 bytes each. At the \
                  bound, pods of further nodes are refused and counted.",
        },
        Field {
            name: "preset",
            kind: Kind::Choice(&["auto", "small", "medium", "large"]),
            default: Default::Fixed,
            doc: "For how many nodes the clockwork of gossip is set: `small` up to 256, `medium` up to 1500, \
                  `large` beyond. `auto` follows the number of live nodes. In larger clusters a suspected node \
                  has longer to contradict, and news are gathered for longer before they are passed on. Nodes \
                  may differ.",
        },
    ],
};

const LEASE: Section = Section {
    name: "lease",
    doc: "The cluster's address ranges, of which each node leases one subnet per family. This section is read \
          again while the daemon runs, see [Change](operations.md#change-restart-remove).",
    fields: &[
        Field {
            name: "ranges",
            kind: Kind::List {
                form: "ranges like 10.244.0.0/16 or fd00:10:244::/56",
                check: check_range,
                count_min: 1,
                count_max: 16,
            },
            default: Default::Fixed,
            doc: "The ranges that pods' addresses come from, at most one of them IPv6. A node leases one \
                  subnet per family, and routes the leases of others also out of ranges that only they have. \
                  The ranges must not overlap with the underlay or anything else that pods should reach. \
                  When all subnets of a range are leased, a further node gets none, says so, and adding \
                  a pod there fails with a clear error.",
        },
        Field {
            name: "prefix_len_v4",
            kind: Kind::Whole { min: 8, max: 30, unit: "bits" },
            default: Default::Fixed,
            doc: "Length of this node's IPv4 subnet; nodes may differ. A change is taken up with the next claim. 24 leaves 253 pods: the network and broadcast \
                  addresses are not used, and the first is the node's. When all are in use, adding a pod \
                  fails with a clear error.",
        },
        Field {
            name: "prefix_len_v6",
            kind: Kind::Whole { min: 8, max: 126, unit: "bits" },
            default: Default::Fixed,
            doc: "Length of this node's IPv6 subnet; nodes may differ. Set it only with an IPv6 range.",
        },
        Field {
            name: "fixed",
            kind: Kind::List {
                form: "subnets like 10.244.7.0/24",
                check: check_range,
                count_min: 0,
                count_max: 2,
            },
            default: Default::Fixed,
            doc: "The subnet that this node has, whatever others hold: one per family at most, inside of `ranges`, \
                  of any length that a lease may have. Another node that has chosen a part of it moves to another \
                  subnet; its pods keep their addresses until they end. When it is fixed for two nodes, the second \
                  gets none and says so.",
        },
        Field {
            name: "reserved",
            kind: Kind::List {
                form: "subnets like 10.244.0.0/24",
                check: check_reserved,
                count_min: 0,
                count_max: 16,
            },
            default: Default::Fixed,
            doc: "Subnets that no node chooses by itself: for those that are `fixed`, or for other uses. It is enough \
                  that one live node has it in its file. Who holds one already keeps it.",
        },
        Field {
            name: "hold_s",
            kind: Kind::Whole { min: 0, max: 31_536_000, unit: "seconds" },
            default: Default::Fixed,
            doc: "How long the subnet of a node that died or left is kept for its return. When nothing \
                  else is free, the one that has been without its holder for longest is given away \
                  earlier.",
        },
        Field {
            name: "claim_wait_ms",
            kind: Kind::Whole { min: 100, max: 600_000, unit: "milliseconds" },
            default: Default::Fixed,
            doc: "How long a node without a subnet tries to reach a seed before it claims one on its own. \
                  Shorter starts lone nodes sooner; longer makes it less likely that two nodes which \
                  cannot reach each other yet choose the same.",
        },
        Field {
            name: "claim_confirm_ms",
            kind: Kind::Whole { min: 100, max: 60_000, unit: "milliseconds" },
            default: Default::Fixed,
            doc: "How long a claim must stand without contradiction before the subnet is used. It should \
                  be longer than news take to reach every node.",
        },
    ],
};

const IPAM: Section = Section {
    name: "ipam",
    doc: "How the addresses of the node's subnet are handed out. `weft ipam` shows who has which, and which rest.",
    fields: &[
        Field {
            name: "reuse_delay_s",
            kind: Kind::Whole { min: 0, max: 86_400, unit: "seconds" },
            default: Default::Fixed,
            doc: "How long an address that was given back rests before another pod gets it: caches and connections \
                  elsewhere still mean the former one. The rest is written down, and goes on after a restart. When \
                  nothing else is free, the address that has rested longest is given out earlier, which \
                  `weft_ipam_reuse_delay_shortened_total` counts. With 0 there is no rest.",
        },
        Field {
            name: "exclude",
            kind: Kind::List {
                form: "ranges like 10.244.7.0/28, or 10.244.7.9/32 for one address",
                check: check_reserved,
                count_min: 0,
                count_max: 64,
            },
            default: Default::Fixed,
            doc: "Ranges of which nothing is handed out, also when a pod asks for it. They may lie outside of the \
                  node's subnet, so that every node can have the same list. Who holds such an address keeps it.",
        },
        Field {
            name: "sticky",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Whether a pod gets the addresses back that the last pod of its namespace, name and interface had on \
                  this node, as one of a StatefulSet expects. Other pods get such addresses only when no other is \
                  free, the longest unused first. At most 4096 are kept.",
        },
    ],
};

const SWITCH: Section = Section {
    name: "switch",
    doc: "Limits of the switch. The defaults suit a node of up to a thousand pods.",
    fields: &[
        Field {
            name: "workers",
            kind: Kind::Whole { min: 1, max: 64, unit: "threads" },
            default: Default::Fixed,
            doc: "Threads that carry frames. The last one reads the underlay, the others share the pods' \
                  ports. With 1, a single thread does both. More than the host's CPUs is slower.",
        },
        Field {
            name: "ports_max",
            kind: Kind::Whole { min: 2, max: 65_535, unit: "ports" },
            default: Default::Fixed,
            doc: "Most local ports, the node's own included. A port costs a few hundred bytes of \
                  counters per worker. At the bound, adding a pod fails with a clear error.",
        },
        Field {
            name: "buffers",
            kind: Kind::Whole { min: 128, max: 65_535, unit: "buffers" },
            default: Default::Fixed,
            doc: "Buffers per worker, of 66 kB each, used as traffic demands. When all are in use the \
                  worker stops reading, and the kernel's queues fill.",
        },
        Field {
            name: "icmp_errors_per_s",
            kind: Kind::Whole { min: 1, max: 1_000_000, unit: "packets per second" },
            default: Default::Fixed,
            doc: "Most ICMP and ICMPv6 errors per second and worker (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f). \
                  Above it errors are not sent; the drops are still counted.",
        },
        Field {
            name: "flows_max",
            kind: Kind::Whole { min: 1024, max: 4_194_304, unit: "flows" },
            default: Default::Fixed,
            doc: "Most flows at a time: those to Services, and those of pods with policies. Each takes up to 330 bytes, of which the kernel gives \
                  those that are used. At the bound the oldest unanswered flow gives way, or else the new \
                  one is dropped and counted as `flows_full`.",
        },
    ],
};

const HOST: Section = Section {
    name: "host",
    doc: "The node itself, as a host on the network of pods.",
    fields: &[
        Field {
            name: "interface",
            kind: Kind::Text {
                form: "an interface's name: 1 to 15 bytes without / : and white space",
                check: node::check_interface,
            },
            default: Default::Fixed,
            doc: "Name of the node's own interface into the switch. It is made at start, holds the first \
                  address of the node's lease, and is removed by `weft uninstall`.",
        },
        Field {
            name: "masquerade",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Whether what pods send to addresses outside the cluster gets the node's address, by a \
                  small nftables table of our own. Needs the program `nft`; without it everything else \
                  works and the daemon says that this does not. With `false`, the network outside must \
                  have routes back to the pods.",
        },
    ],
};

const OBJECTS: Section = Section {
    name: "objects",
    doc: "Where the objects of the cluster are declared: Services and what belongs to them. They must be the \
          same on every node; docs/services.md says which there are.",
    fields: &[
        Field {
            name: "source",
            kind: Kind::Choice(&["manifests", "kubernetes"]),
            default: Default::Fixed,
            doc: "Where they come from: files in the directory `dir`, or the API server of a Kubernetes cluster, see \
                  [kubernetes.md](kubernetes.md). With `kubernetes` the control plane gives Services their addresses \
                  and ports, and endpoints come from EndpointSlices only. All nodes must have the same.",
        },
        Field {
            name: "dir",
            kind: PATH,
            default: Default::Fixed,
            doc: "Directory of Kubernetes manifests: all files in it and below that end with `.yaml`, `.yml` or \
                  `.json`. It is watched, and changes are in force within a second. What cannot be honoured is \
                  refused by itself and shown by `weft objects`; the rest of its file is taken up, and a change that \
                  is refused leaves the object as it was. While the directory does not exist there are no objects. Not used with `source = \"kubernetes\"`.",
        },
        Field {
            name: "kubeconfig",
            kind: PATH,
            default: Default::Found("the service account of the pod that the daemon runs in"),
            doc: "File that says where the API server is and who this node is to it, as for `kubectl`; only with \
                  `source = \"kubernetes\"`. Its current context counts. It is read again when the server refuses \
                  who this is, so certificates may be renewed while the daemon runs.",
        },
        Field {
            name: "api_servers",
            kind: Kind::List {
                form: "URLs like https://192.168.10.11:6443",
                check: parses::<ApiServer>,
                count_min: 0,
                count_max: 16,
            },
            default: Default::Fixed,
            doc: "API servers, asked in this order: when one does not answer, the next one is. Empty is the one of \
                  the kubeconfig, or that pods are told (`KUBERNETES_SERVICE_HOST`), which is the address of a \
                  Service: without another proxy on the node nobody leads there before the daemon knows that \
                  Service, so the real addresses must stand here then.",
        },
        Field {
            name: "pod_cidrs",
            kind: Kind::Choice(&["auto", "node", "claim"]),
            default: Default::Fixed,
            doc: "Who chooses the nodes' subnets with `source = \"kubernetes\"`. `node`: the controller manager, in \
                  `spec.podCIDRs` of the Node object, which this node then claims as if it were `fixed` under \
                  [lease]; until it is there, the node has none. `claim`: the nodes among themselves. `auto`: `node` \
                  where any Node object has one, otherwise `claim`. A subnet in use is never changed.",
        },
    ],
};

const SERVICES: Section = Section {
    name: "services",
    doc: "What Services are given that do not ask for anything particular. All nodes of a network must have the \
          same, for they hand it out alike without talking about it.",
    fields: &[
        Field {
            name: "ranges",
            kind: Kind::List {
                form: "ranges like 10.96.0.0/12 or fd00:10:96::/112",
                check: check_service_range,
                count_min: 1,
                count_max: 2,
            },
            default: Default::Fixed,
            doc: "The ranges that cluster-wide addresses come from, at most one of each family. The first one's \
                  family is that of Services which do not say. They must not overlap with anything that \
                  pods should reach. Where the API server of a Kubernetes cluster has ServiceCIDRs, these say it.",
        },
        Field {
            name: "node_ports",
            kind: Kind::Text {
                form: "a range of ports like 30000-32767",
                check: parses::<PortRange>,
            },
            default: Default::Fixed,
            doc: "The ports of every node that Services of the types NodePort and LoadBalancer come from. \
                  Choose them outside of the ports that the kernel gives to clients \
                  (`net.ipv4.ip_local_port_range`) and of what else runs on the nodes.",
        },
        Field {
            name: "load_balancer_pool",
            kind: Kind::List {
                form: "ranges like 192.168.10.240/28",
                check: check_pool,
                count_min: 0,
                count_max: 16,
            },
            default: Default::Fixed,
            doc: "The addresses that Services of type LoadBalancer are given, all of each range. They must be \
                  free in the network of the nodes: one node each announces them on the link of its underlay \
                  interface. Without any, such Services have no address for the world, but those that their \
                  status says.",
        },
        Field {
            name: "balancing",
            kind: Kind::Choice(&["maglev", "random", "least-connections"]),
            default: Default::Fixed,
            doc: "How an endpoint is chosen for a new connection. `maglev` hashes it: all nodes choose alike, and \
                  few connections change their endpoint when others come and go. `random` takes any, \
                  `least-connections` the one of two random ones that has fewer connections through this \
                  node.",
        },
    ],
};

const POLICY: Section = Section {
    name: "policy",
    doc: "What network policies do on this node. See [policy.md](policy.md).",
    fields: &[
        Field {
            name: "established",
            kind: Kind::Choice(&["recheck", "keep"]),
            default: Default::Fixed,
            doc: "What becomes of flows that there are when policies change. With \"recheck\" the next packet of \
                  each is judged anew, in whichever direction it goes: what is not allowed any more stops. With \
                  \"keep\" a flow that was admitted once goes on until it is over.",
        },
        Field {
            name: "audit",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Deny nothing: what policies would deny is counted and told as an event, and passes.",
        },
        Field {
            name: "audit_namespaces",
            kind: Kind::List {
                form: "names of namespaces",
                check: node::check_network,
                count_min: 0,
                count_max: 1000,
            },
            default: Default::Fixed,
            doc: "The same for these namespaces: what policies would deny their pods to send, or to be sent, \
                  passes.",
        },
    ],
};

const DNS: Section = Section {
    name: "dns",
    doc: "The name server on each node, which pods ask: names of the cluster from its state, all others from \
          the node's own name servers. See [dns.md](dns.md).",
    fields: &[
        Field {
            name: "enabled",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Whether there is one. Set it to `false` where another name server, such as CoreDNS behind \
                  kube-proxy, has these addresses.",
        },
        Field {
            name: "domain",
            kind: Kind::Text { form: "a domain like cluster.local", check: parses::<DomainName> },
            default: Default::Fixed,
            doc: "The cluster's domain. It must be the same on every node, and in pods' search paths.",
        },
        Field {
            name: "addresses",
            kind: Kind::List {
                form: "IP addresses",
                check: parses::<IpAddr>,
                count_min: 1,
                count_max: 2,
            },
            default: Default::Fixed,
            doc: "Where pods find it, at most one address per family. Each node answers there itself: no \
                  question leaves it. They must be outside of the pods' ranges. Where there is a Service \
                  `kube-system/kube-dns`, it is found at the cluster IPs of that.",
        },
        Field {
            name: "ttl_s",
            kind: Kind::Whole { min: 0, max: 3600, unit: "seconds" },
            default: Default::Fixed,
            doc: "How long pods may keep names of the cluster, and that one does not exist. The server itself \
                  keeps nothing: its answers change with the state.",
        },
        Field {
            name: "pods",
            kind: Kind::Choice(&["disabled", "insecure", "verified"]),
            default: Default::Fixed,
            doc: "Which names of the form `10-244-1-7.NAMESPACE.pod.DOMAIN` exist: none, all in namespaces that \
                  exist, or only those of pods that exist.",
        },
        Field {
            name: "autopath",
            kind: Kind::Switch,
            default: Default::Fixed,
            doc: "Whether the server walks the search path of the pod that asks, so that a name outside of \
                  the cluster costs one question instead of five.",
        },
        Field {
            name: "upstreams",
            kind: Kind::List {
                form: "addresses, with or without a port",
                check: parses::<Upstream>,
                count_min: 0,
                count_max: 15,
            },
            default: Default::Fixed,
            doc: "Name servers for all other names, asked in this order while they are well. With none, it is \
                  those in `resolv_conf`.",
        },
        Field {
            name: "resolv_conf",
            kind: PATH,
            default: Default::Fixed,
            doc: "Where the node's own name servers and search domains are; read again when it changes. With \
                  systemd-resolved, `/run/systemd/resolve/resolv.conf` has the real servers.",
        },
        Field {
            name: "stubs",
            kind: Kind::List {
                form: "ZONE=SERVER[,SERVER...]",
                check: parses::<Stub>,
                count_min: 0,
                count_max: 64,
            },
            default: Default::Fixed,
            doc: "Zones that other servers are asked for, such as `corp.example=10.0.0.53`. The longest zone \
                  that fits decides.",
        },
        Field {
            name: "zones",
            kind: Kind::List {
                form: "domains",
                check: parses::<DomainName>,
                count_min: 0,
                count_max: 64,
            },
            default: Default::Fixed,
            doc: "Zones that this server has alone: a name in them that is not in `records` does not exist.",
        },
        Field {
            name: "records",
            kind: Kind::List {
                form: "NAME [TTL] TYPE DATA",
                check: parses::<StaticRecord>,
                count_min: 0,
                count_max: 10_000,
            },
            default: Default::Fixed,
            doc: "Records of its own, as lines of a zone file, such as `db.lab.example A 192.0.2.7`. A TTL of \
                  60 seconds is taken where there is none; `*` as the first label stands for all names \
                  that do not exist otherwise.",
        },
        Field {
            name: "cache_entries",
            kind: Kind::Whole { min: 0, max: 1_000_000, unit: "answers" },
            default: Default::Fixed,
            doc: "Most answers of other servers that are kept, at about 500 bytes each. Those that nobody asks \
                  for go first. Names of the cluster are not among them.",
        },
        Field {
            name: "serve_stale_s",
            kind: Kind::Whole { min: 0, max: 86_400, unit: "seconds" },
            default: Default::Fixed,
            doc: "For how long an answer that has ended is told while no server answers (RFC 8767).",
        },
    ],
};

const PATHS: Section = Section {
    name: "paths",
    doc: "Where files are. All paths are absolute.",
    fields: &[
        Field {
            name: "state",
            kind: PATH,
            default: Default::Fixed,
            doc: "What must survive a reboot: the node's identity, its lease, the pods' addresses. Must \
                  be on a disk of the node's own: a copy on two nodes is an error that both report.",
        },
        Field {
            name: "run",
            kind: PATH,
            default: Default::Fixed,
            doc: "The daemon's socket `weftd.sock`, for root only. Best on a tmpfs.",
        },
    ],
};

const METRICS: Section = Section {
    name: "metrics",
    doc: "For the monitoring.",
    fields: &[Field {
        name: "listen",
        kind: Kind::Text { form: "address:port, or \"off\"", check: parses::<MetricsListen> },
        default: Default::Fixed,
        doc: "TCP address that serves `/metrics` (Prometheus) and `/healthz`. They are read-only, and \
              whoever reaches them can read them.",
    }],
};

const LOG: Section = Section {
    name: "log",
    doc: "What the daemon writes to standard error, which systemd keeps in the journal.",
    fields: &[Field {
        name: "level",
        kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        default: Default::Fixed,
        doc: "The least important lines that are written. No level logs frames one by one; counters and \
              captures are for that.",
    }],
};

const PATH: Kind = Kind::Text { form: "an absolute path", check: check_path };

impl Section {
    /// The section with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name == name)
    }

    /// The field with this name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// A field's full name, as messages and relations use it.
    pub fn path(&self, field: &str) -> String {
        if self.name.is_empty() { field.into() } else { format!("{}.{field}", self.name) }
    }
}

fn parses<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(|_| ()).map_err(|why| why.to_string())
}

/// Longest path that leaves room for a socket's name in `sockaddr_un` (108 bytes, unix(7)).
const PATH_LEN_MAX: usize = 90;

fn check_path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err("it does not start with /".into());
    }
    if text.len() > PATH_LEN_MAX || text.contains('\0') {
        return Err(format!("it has more than {PATH_LEN_MAX} bytes, or a zero byte"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err("it goes upwards with ..".into());
    }
    Ok(())
}

fn check_reserved(text: &str) -> Result<(), String> {
    let prefix = parse_prefix(text)?;
    if prefix.prefix() < 8 { Err("its prefix has 8 bits or more".into()) } else { Ok(()) }
}

/// A range of Services' addresses.
fn check_service_range(text: &str) -> Result<(), String> {
    check_range(text)?;
    let (range, len): (IpNetwork, u8) = match text.parse() {
        Ok(IpNetwork::V4(v4)) => (IpNetwork::V4(v4), 32 - v4.prefix()),
        Ok(IpNetwork::V6(v6)) => (IpNetwork::V6(v6), 128 - v6.prefix()),
        Err(error) => return Err(format!("it is not a range: {error}")),
    };
    if len < 4 {
        return Err(format!("{range} is too small: it has less than 16 addresses"));
    }
    Ok(())
}

/// A range of which every address can be given away.
fn check_pool(text: &str) -> Result<(), String> {
    let range: IpNetwork = match (text.contains('/'), text.parse()) {
        (true, Ok(range)) => range,
        (true, Err(error)) => return Err(format!("it is not a range: {error}")),
        (false, _) => return Err("a range ends with / and the length of its prefix".into()),
    };
    if range.ip() != range.network() {
        return Err(format!("its first address is {}/{}", range.network(), range.prefix()));
    }
    crate::cluster::names::reachable_address(&range.ip().to_string()).map(|_| ())
}

fn check_range(text: &str) -> Result<(), String> {
    let range = parse_prefix(text)?;
    let bounds = if range.is_ipv4() { 8..=30 } else { 8..=126 };
    if !bounds.contains(&range.prefix()) {
        return Err(format!("its prefix has {} to {} bits", bounds.start(), bounds.end()));
    }
    let special = match range.ip() {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_multicast() || ip.is_link_local() || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
        }
    };
    if special || range.ip().is_ipv4() && range.ip() >= IpAddr::from([240, 0, 0, 0]) {
        return Err("such addresses cannot be routed".into());
    }
    Ok(())
}

fn parse_prefix(text: &str) -> Result<IpNetwork, String> {
    let range: IpNetwork = match (text.contains('/'), text.parse()) {
        (true, Ok(range)) => range,
        (true, Err(error)) => return Err(format!("it is not a range: {error}")),
        (false, _) => return Err("a range ends with / and the length of its prefix".into()),
    };
    if range.ip() != range.network() {
        let network = range.network();
        return Err(format!("its first address is {network}/{}", range.prefix()));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_can_be_routed() {
        for text in ["10.244.0.0/16", "fd00:10:244::/56", "100.64.0.0/10", "2001:db8::/32"] {
            assert_eq!(check_range(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "10.244.0.0",
            "10.244.1.0/16",
            "10.244.0.0/33",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "169.254.0.0/16",
            "0.0.0.0/8",
            "240.0.0.0/8",
            "fe80::/64",
            "ff00::/8",
            "::/16",
            "10.0.0.0/31",
        ] {
            assert!(check_range(text).is_err(), "{text}");
        }
        assert_eq!(check_range("10.244.1.0/16"), Err("its first address is 10.244.0.0/16".into()));
    }

    #[test]
    fn paths_are_absolute_and_short_enough_for_a_socket() {
        assert_eq!(check_path("/run/weft"), Ok(()));
        for text in ["", "run/weft", "/run/../etc", &format!("/{}", "a".repeat(90))] {
            assert!(check_path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut all: Vec<String> = SECTIONS
            .iter()
            .flat_map(|section| section.fields.iter().map(|field| section.path(field.name)))
            .chain(SECTIONS.iter().map(|section| section.name.into()))
            .collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
