//! The commands and their options, as clap reads them and as `--help` teaches them.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vswitch::mac::Mac;

use crate::events::Level;

/// A userspace virtual switch that carries the Kubernetes networking model.
///
/// `weft demo` shows on this machine, in half a minute, what it does. `weft lab` keeps such a cluster to
/// play with. The other commands look at a node where the daemon, weftd, runs.
#[derive(Debug, Parser)]
#[command(name = "weft", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  weft demo                                   see pods on three nodes reach each other
  weft lab up && weft lab exec n1-p1 -- bash  a shell in a pod of a cluster that stays
  sudo weft status                            health of the node you are on
  sudo weft counters -o json                  every packet accounted for

Exit codes: 0 done, 1 failed, 2 wrong usage.")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a cluster on this machine, tests it before your eyes, and removes it
    ///
    /// Nodes are network namespaces with a real daemon each, pods are attached by the real CNI plugin. Works
    /// as root, and as an ordinary user where the machine permits user namespaces. Nothing outside the
    /// namespaces changes, and nothing stays, also after ctrl-C.
    #[command(after_help = "\
Examples:
  weft demo
  weft demo --nodes 5 --pods 4
  weft demo -o json > report.json     what was measured, for programs
  weft demo --keep                    leaves the cluster; go on with `weft lab --lab demo ...`")]
    Demo(DemoArgs),

    /// Makes clusters on this machine to play with, breaks them, and removes them
    ///
    /// Nodes are called n1, n2, ...; the pods of n1 are n1-p1, n1-p2, ... Each is a network namespace, and so
    /// are `underlay` (the bridge and router between the nodes) and `world` (a host outside).
    #[command(after_help = "\
Examples:
  weft lab up --nodes 3 --pods 2
  weft lab exec n1-p1 -- ping n2-p1
  weft lab cut n2 ; weft nodes --node n1      watch n2 leave the map
  weft lab heal n2
  weft lab down")]
    Lab(LabArgs),

    /// Shows the health of a node: lease, addresses, problems and what to do about them
    #[command(after_help = "\
Examples:
  sudo weft status
  weft status --lab lab --node n2     a node of a lab
  sudo weft status -o json | jq -e .ready")]
    Status(ViewArgs),

    /// Lists the nodes that the node knows, with their leases
    #[command(after_help = "\
Examples:
  sudo weft nodes
  weft nodes --node n1                node n1 of the lab `lab`
  sudo weft nodes -o json | jq -r '.[] | select(.state != \"alive\") | .name'")]
    Nodes(ViewArgs),

    /// Lists who has which subnet, what is reserved for whom, and conflicts
    #[command(after_help = "\
Examples:
  sudo weft leases
  weft leases --node n1               as node n1 of the lab `lab` sees them
  sudo weft leases -o json | jq -r '.leases[] | select(.state == \"reserved\") | .prefix'")]
    Leases(ViewArgs),

    /// Shows what happens on the node and in the cluster, as it happens
    ///
    /// Each event has a code that does not change from release to release: docs/operations.md lists them all, with
    /// what to do. Who reads too slowly is told how many events were missed; the daemon's log has them all.
    #[command(after_help = "\
Examples:
  sudo weft watch
  sudo weft watch --level warn        only what is not as it should be
  sudo weft watch -o json | jq -r 'select(.code == \"path-down\") | .text'")]
    Watch(WatchArgs),

    /// Lists the pods of all nodes, as the node knows them
    ///
    /// Every node knows the pods of every live node: gossip tells of them within about a second. With
    /// --local: the pods on this node alone, with their interfaces and traffic.
    #[command(after_help = "\
Examples:
  sudo weft pods
  sudo weft pods --on worker-2 --namespace default
  sudo weft pods --local              this node's, with their traffic
  weft pods --node n1                 as node n1 of the lab `lab` knows them
  sudo weft pods -o json | jq '.[] | {name, node, addresses, labels}'")]
    Pods(PodsArgs),

    /// Writes the plugin and the network list to where container runtimes look for them
    #[command(after_help = "\
Examples:
  sudo weft cni install
  sudo weft cni install --wait 60      as the last step of setting a node up
  sudo weft cni install --bin-dir /usr/lib/cni --cni-version 0.4.0")]
    Cni(CniArgs),

    /// Shows the node's addresses: who has which, since when, and which rest
    ///
    /// An address that was given back rests before another pod gets it, by default for a minute.
    #[command(after_help = "\
Examples:
  sudo weft ipam
  sudo weft ipam -o json | jq '.held[] | select(.alive | not)'
  sudo weft ipam release 10.244.1.7    whose container is gone, or which rests
  weft ipam --node n1                  node n1 of the lab `lab`")]
    Ipam(IpamArgs),

    /// Shows what became of every packet: delivered, or dropped and why
    #[command(after_help = "\
Examples:
  sudo weft counters
  watch -n1 sudo weft counters
  sudo weft counters -o json | jq .dropped")]
    Counters(ViewArgs),

    /// Lists the Services that the node knows, with their addresses, ports and endpoints
    #[command(after_help = "\
Examples:
  sudo weft services
  sudo weft services --namespace default
  weft services --node n1             as node n1 of the lab `lab` knows them
  sudo weft services -o json | jq -r '.[] | select(.refused) | .name'")]
    Services(ServicesArgs),

    /// Lists the endpoints of Services: their state, their pods, and who still talks to them
    ///
    /// The flows are those through the switch of the node that is asked: an endpoint that terminates has been
    /// left by all when no node has any.
    #[command(after_help = "\
Examples:
  sudo weft endpoints
  sudo weft endpoints default/web
  sudo weft endpoints -o json | jq -r '.[] | select(.terminating) | [.address, .flows] | @tsv'")]
    Endpoints(EndpointsArgs),

    /// Lists the flows that the node's switch follows: who, through what, state, age, bytes
    ///
    /// Those are the flows to Services, and those of pods that have policies.
    #[command(after_help = "\
Examples:
  sudo weft flows
  sudo weft flows --service default/web --client default/client
  sudo weft flows -o json | jq 'group_by(.endpoint) | map({endpoint: .[0].endpoint, flows: length})'")]
    Flows(FlowsArgs),

    /// Says what becomes of a connection before anybody makes it, and why
    ///
    /// Answers with the tables and the code that the switch itself decides with: forwarded and to which
    /// endpoints, rejected, or dropped. Asks the daemon, or, with --manifests, nobody: a directory of
    /// manifests is enough. The sender's own node decides; for senders outside of the cluster, the node whose
    /// address is the destination, or --node.
    #[command(after_help = "\
Examples:
  sudo weft explain --from default/client --to default/web --port http
  sudo weft explain --from 203.0.113.9 --to 192.168.10.11 --port 30080
  weft explain --manifests manifests/ --from worker-1 --to default/web --port 80
  weft explain --lab lab --from default/n1-p1 --to 10.96.0.10 --port 53 --proto UDP
  sudo weft explain --from default/client --to default/db --port 5432 -o json | jq -r .verdict

Exit codes: 0 there is an answer, whatever it is, 1 the question makes no sense, 2 wrong usage.")]
    Explain(ExplainArgs),

    /// Shows the node's name server, and what it answers
    #[command(after_help = "\
Examples:
  sudo weft dns status
  sudo weft dns query web.default.svc.cluster.local
  sudo weft dns query _http._tcp.web.default.svc.cluster.local SRV -o json
  sudo weft dns query example.org --from default/client    as that pod would be answered
  weft dns query web.default.svc.cluster.local --manifests manifests/    with nothing running
  sudo weft dns log                   questions as they come, with the pods that ask")]
    Dns(DnsArgs),

    /// Lists what is declared of the cluster: accepted, refused and why, ignored and why
    ///
    /// Objects are Kubernetes manifests in the directory `[objects] dir`, by default /etc/weft/manifests.
    #[command(after_help = "\
Examples:
  sudo weft objects
  sudo weft objects -o json | jq -r '.refused[] | \"\\(.file):\\(.line): \\(.field): \\(.reason)\"'")]
    Objects(ViewArgs),

    /// Checks manifests before they are put in force: every mistake with its file, line and field
    ///
    /// Reads a directory, or one file, as the daemon does, and needs no daemon. Also finds what is wrong only
    /// between objects: one address for two Services, a name that is defined twice.
    #[command(after_help = "\
Examples:
  weft validate manifests/
  weft validate --config weft.toml manifests/    with the ranges of that file
  weft validate -o json web.yaml | jq .refused

Exit codes: 0 all can be honoured, 1 something cannot, 2 wrong usage.")]
    Validate(ValidateArgs),

    /// Lists policies: whom each is for, and which of its rules were of no use
    ///
    /// NetworkPolicies and the cluster-wide ones of policy.networking.k8s.io, as the node has them, with what its
    /// switch has counted; or, with --manifests, those of a directory.
    #[command(after_help = "\
Examples:
  sudo weft policies
  weft policies --manifests manifests/ --namespace default
  sudo weft policies --unused         rules that never decided anything on this node
  sudo weft policies -o json | jq -r '.[] | select(.pods == []) | .name'")]
    Policies(PoliciesArgs),

    /// Says who may reach whom, checks what you expect of that, and compares two sets of policies
    ///
    /// Answered by the code that the switch decides with. `weft explain` says why for one pair.
    #[command(after_help = "\
Examples:
  sudo weft policy matrix --port 80
  weft policy test expectations.yaml --manifests manifests/
  weft policy diff manifests.old/ manifests/")]
    Policy(PolicyArgs),

    /// Makes, lists and changes the keys that the nodes' gossip is sealed with
    ///
    /// Whoever has a key is a member. A node seals with one key, and accepts all that are in its key file; the
    /// daemon follows the file without a restart. So keys are changed while everything runs: add the new
    /// one on all nodes, then use it on all, then remove the former one on all.
    #[command(after_help = "\
Examples:
  sudo weft key generate              the first node's key
  sudo weft key list --secret | ssh NODE sudo weft key add    another node joins
  sudo weft key list                  who accepts and uses what
  weft key list --node n1             node n1 of the lab `lab`")]
    Key(KeyArgs),

    /// Makes existing interfaces of the host ports of the switch: virtual machines, other runtimes
    #[command(after_help = "\
Examples:
  sudo weft port add vnet0 52:54:00:12:34:56    a virtual machine's tap
  sudo weft port remove vnet0
  weft port add tap0 52:54:00:12:34:56 --node n1    a device in a node of the lab `lab`")]
    Port(PortArgs),

    /// Measures what the network between two places carries, through the overlay and beside it
    ///
    /// One place serves, the other runs the tests: TCP throughput, UDP packet rate, round trips and
    /// connections. Against a node of the cluster each test runs twice: through the overlay, to the node's
    /// weft0 address, and over the bare underlay, to the address of its machine, which no tunnel touches. The
    /// ratio of the two is what the overlay costs. In pods, run the same program against a pod's address.
    #[command(after_help = "\
Examples:
  weft bench serve                    on node b
  sudo weft bench run b               on node a: overlay and underlay side by side")]
    Bench(BenchArgs),

    /// Removes every trace of weftd from this host: devices, routes, tables, pods' interfaces
    ///
    /// Stop weftd first. Pods lose their network.
    #[command(after_help = "\
Examples:
  sudo systemctl stop weftd && sudo weft uninstall
  sudo weft uninstall --files         also its state, so that the node's identity and lease are forgotten")]
    Uninstall(UninstallArgs),

    /// Runs the daemon: the same as the program weftd
    #[command(hide = true, disable_help_flag = true)]
    Daemon {
        /// What weftd takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },

    /// Prints the version
    #[command(after_help = "Example:\n  weft version")]
    Version,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables for people.
    Table,
    /// JSON for programs.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(super) output: Format,
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=50))]
    pub(super) nodes: u8,

    /// Pods on each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub(super) pods: u8,

    /// Leaves the cluster running as the lab `demo`
    #[arg(long)]
    pub(super) keep: bool,

    /// Short for `-o json`
    #[arg(long, conflicts_with = "output")]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl DemoArgs {
    pub(super) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output.output }
    }
}

/// Which daemon to ask.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// The daemon's admin socket
    #[arg(long, global = true, value_name = "PATH", default_value = cni::config::DEFAULT_SOCKET)]
    #[arg(conflicts_with_all = ["lab", "node"])]
    pub(super) socket: PathBuf,

    /// Looks at a node of this lab [default with --node: lab]
    #[arg(long, global = true, value_name = "NAME", requires = "node")]
    pub(super) lab: Option<String>,

    /// Looks at this node of a lab, such as n1
    #[arg(long, global = true, value_name = "NODE")]
    pub(super) node: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,

    /// Ends after so many events
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,

    /// Leaves out what is less than this
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(super) level: Option<LeastLevel>,
}

/// The least level of events that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LeastLevel {
    /// All events.
    Info,
    /// What is not as it should be.
    Warn,
    /// What a person has to look at.
    Error,
}

impl LeastLevel {
    pub(super) fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warn => Level::Warn,
            Self::Error => Level::Error,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft services`.
#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    /// Only those of this Kubernetes namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft endpoints`.
#[derive(Debug, Args)]
pub(super) struct EndpointsArgs {
    /// Only those of this Service, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    pub(super) service: Option<String>,

    /// Only those of this Kubernetes namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft flows`.
#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    /// Only those to this Service, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    #[arg(long, value_name = "SERVICE")]
    pub(super) service: Option<String>,

    /// Only those of this client: an address or NAMESPACE/POD
    #[arg(long, value_name = "WHO")]
    pub(super) client: Option<String>,

    /// At most so many; 50000 are told at all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) max: usize,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft explain`. Its `--node` is the node that decides; with `--lab` it is also the one that is asked.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Who sends: an address, NAMESPACE/POD, or a node's name
    #[arg(long, value_name = "WHO")]
    pub(super) from: String,

    /// Where to: an address, NAMESPACE/SERVICE, NAMESPACE/POD, or a node's name
    ///
    /// Where a Service and a pod have the same name, the Service is meant; `pod/NAMESPACE/POD` and
    /// `service/NAMESPACE/SERVICE` say which.
    #[arg(long, value_name = "WHERE")]
    pub(super) to: String,

    /// The port: a number, or its name at the Service or the pod
    #[arg(long, value_name = "PORT")]
    pub(super) port: String,

    /// TCP, UDP or SCTP [default: TCP, or that of the named port]
    #[arg(long = "proto", value_name = "PROTOCOL")]
    pub(super) protocol: Option<String>,

    /// The node whose switch decides [default: the sender's]
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,

    /// Asks no daemon: what these manifests declare is there, and nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["socket", "lab"])]
    pub(super) manifests: Option<PathBuf>,

    /// With --manifests: the node file whose ranges hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub(super) config: Option<PathBuf>,

    /// The daemon's admin socket
    #[arg(long, value_name = "PATH", default_value = cni::config::DEFAULT_SOCKET)]
    #[arg(conflicts_with = "lab")]
    pub(super) socket: PathBuf,

    /// Asks a daemon of this lab: that of --node, or else of its first node
    #[arg(long, value_name = "NAME")]
    pub(super) lab: Option<String>,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft cni`.
#[derive(Debug, Args)]
pub(super) struct CniArgs {
    #[command(subcommand)]
    pub(super) command: CniCommand,

    #[command(flatten)]
    pub(super) target: TargetArgs,
}

/// What to do about container runtimes.
#[derive(Debug, Subcommand)]
pub(super) enum CniCommand {
    /// Writes the plugin, then the network list, once the node can attach pods
    ///
    /// A runtime takes a node with a network list for ready. Each file is replaced whole; nothing is written as long
    /// as the daemon does not run, or has no subnet.
    #[command(after_help = "Example:\n  sudo weft cni install --wait 60")]
    Install(CniInstallArgs),
}

/// `weft cni install`.
#[derive(Debug, Args)]
pub(super) struct CniInstallArgs {
    /// Where runtimes look for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(super) bin_dir: PathBuf,

    /// Where runtimes look for network lists
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(super) conf_dir: PathBuf,

    /// The list's file; runtimes take the first one in the order of the names
    #[arg(long, value_name = "NAME", default_value = "10-weft.conflist")]
    pub(super) file: String,

    /// The network's name; each runtime of a node needs one of its own
    #[arg(long, value_name = "NAME", default_value = "weft")]
    pub(super) name: String,

    /// Version of the specification that the runtime speaks
    #[arg(long, value_name = "VERSION", default_value = "1.0.0")]
    #[arg(value_parser = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])]
    pub(super) cni_version: String,

    /// Waits so long for the node to become ready
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=3600))]
    pub(super) wait: u16,
}

/// `weft ipam`.
#[derive(Debug, Args)]
pub(super) struct IpamArgs {
    #[command(subcommand)]
    pub(super) command: Option<IpamCommand>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What to do with an address.
#[derive(Debug, Subcommand)]
pub(super) enum IpamCommand {
    /// Takes an address back whose container is gone, or ends its rest
    ///
    /// A container that is still there keeps its address; with --force it loses its network.
    #[command(after_help = "Example:\n  sudo weft ipam release 10.244.1.7")]
    Release {
        /// The address
        address: IpAddr,
        /// Also from a container that is still there
        #[arg(long)]
        force: bool,
    },
}

/// `weft dns`.
#[derive(Debug, Args)]
pub(super) struct DnsArgs {
    #[command(subcommand)]
    pub(super) command: DnsCommand,
}

/// What to know of the name server.
#[derive(Debug, Subcommand)]
pub(super) enum DnsCommand {
    /// Shows what it knows, which other servers it asks, and what it has answered
    #[command(after_help = "Example:\n  sudo weft dns status")]
    Status(ViewArgs),

    /// Asks it for a name, as a pod would
    ///
    /// With --manifests no daemon is asked: the same code answers what these manifests declare. Nobody else is
    /// asked then, so that an alias that leads out of the cluster is told as it is.
    #[command(after_help = "\
Examples:
  sudo weft dns query web.default.svc.cluster.local AAAA
  weft dns query web.default.svc.cluster.local --manifests manifests/ -o json
  weft dns query 7.0.96.10.in-addr.arpa PTR --manifests manifests/
  weft dns query example.org.default.svc.cluster.local --from default/client --manifests manifests/")]
    Query(DnsQueryArgs),

    /// Shows the questions as they are answered, with the pods that ask; nothing is logged otherwise
    #[command(after_help = "\
Examples:
  sudo weft dns log
  sudo weft dns log --client default/web-0
  sudo weft dns log -o json | jq -r 'select(.rcode == \"NXDOMAIN\") | .name'")]
    Log(DnsLogArgs),
}

/// `weft dns query`.
#[derive(Debug, Args)]
pub(super) struct DnsQueryArgs {
    /// The name, complete: search paths are not walked, unless --from names a pod
    pub(super) name: String,

    /// The type of the records
    #[arg(default_value = "A")]
    pub(super) kind: String,

    /// The pod that asks, as NAMESPACE/NAME, or its address
    #[arg(long, value_name = "POD")]
    pub(super) from: Option<String>,

    /// Asks no daemon: the names are those that these manifests declare
    #[arg(long, value_name = "DIR", conflicts_with_all = ["socket", "lab", "node"])]
    pub(super) manifests: Option<PathBuf>,

    /// With --manifests: the node file whose domain, ranges and records hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft dns log`.
#[derive(Debug, Args)]
pub(super) struct DnsLogArgs {
    /// Only the questions of this pod, NAMESPACE/NAME, or address
    #[arg(long, value_name = "WHO")]
    pub(super) client: Option<String>,

    /// Ends after so many questions
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    pub(super) command: KeyCommand,

    /// The key file [default: the one that the configuration names]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,

    /// The daemon's configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = conf::DEFAULT_PATH)]
    pub(super) config: PathBuf,

    #[command(flatten)]
    pub(super) target: TargetArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Makes a key: the first one, which is in use at once, or one more to go over to
    #[command(after_help = "\
Examples:
  sudo weft key generate
  sudo weft key generate --comment winter
  weft key generate --stdout          only prints one, for a secret store")]
    Generate {
        /// Prints the key and leaves the file alone
        #[arg(long)]
        stdout: bool,
        /// What to write beside it [default: the host's name]
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// Lists the keys by name, and which live nodes accept and use each
    #[command(after_help = "\
Examples:
  sudo weft key list
  sudo weft key list --secret > keys.secret
  sudo weft key list -o json | jq '.keys[] | select(.missing_at != [])'")]
    List {
        /// Prints the keys themselves, as lines for `weft key add`
        #[arg(long, conflicts_with = "output")]
        secret: bool,
        /// With --secret: only this one, by the first digits of its name
        #[arg(requires = "secret")]
        key: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Adds keys of another node, from standard input or a file; they are accepted, not used
    ///
    /// A node that has no key file gets one, and uses the key that the other node uses.
    #[command(after_help = "\
Examples:
  sudo weft key list --secret | ssh NODE sudo weft key add
  sudo weft key add keys.secret")]
    Add {
        /// The file, in the form of `weft key list --secret`
        from: Option<PathBuf>,
    },
    /// Seals with this key from now on; refused while a live node does not accept it
    #[command(after_help = "Example:\n  sudo weft key use 5f1c90ab")]
    Use {
        /// The first digits of its name, at least four
        key: String,
        /// Also if nodes do not accept it, or the daemon cannot be asked
        #[arg(long)]
        force: bool,
    },
    /// Does not accept a key any more; refused while a live node uses it
    ///
    /// Whoever has no other key is locked out within seconds. Remove a key that others may have on all nodes.
    #[command(after_help = "Example:\n  sudo weft key remove 5f1c90ab")]
    Remove {
        /// The first digits of its name, at least four
        key: String,
        /// Also if nodes use it, or the daemon cannot be asked
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// A directory of manifests, or one file
    pub(super) path: PathBuf,

    /// The node file whose ranges of Services hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft policies`.
#[derive(Debug, Args)]
pub(super) struct PoliciesArgs {
    /// Only those of this Kubernetes namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    /// Only those that are for no pod, or have rules that never decided anything
    #[arg(long)]
    pub(super) unused: bool,

    /// Asks no daemon: what these manifests declare is there, and nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["socket", "lab", "node", "unused"])]
    pub(super) manifests: Option<PathBuf>,

    /// With --manifests: the node file whose ranges hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft policy`.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    pub(super) command: PolicyCommand,
}

/// What to know of policies.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Shows of every ordered pair of pods whether the one may reach the other
    ///
    /// A pod that has no port of the name that --port gives is not reached there. Where a pod has addresses of both
    /// families, the first of the receiver's counts that the sender has the family of.
    #[command(after_help = "\
Examples:
  sudo weft policy matrix --port 80
  sudo weft policy matrix --proto ICMP
  weft policy matrix --port http --manifests manifests/ -o json | jq '.\"default/web\"'")]
    Matrix(PolicyMatrixArgs),

    /// Checks what a file expects: who reaches whom, and who does not
    ///
    /// The file is YAML: `checks:` is a list of `from`, `to`, `port`, `protocol` and `reachable`. Ends are pods as
    /// NAMESPACE/NAME, with * for any, or addresses. docs/policy.md has it all.
    #[command(after_help = "\
Examples:
  weft policy test expectations.yaml --manifests manifests/
  weft policy test expectations.yaml -o json | jq -r '.failures[].reason'

Exit codes: 0 all is as expected, 1 something is not, 2 wrong usage.")]
    Test(PolicyTestArgs),

    /// Shows which pairs of pods change, and for which ports, between two sets of manifests
    #[command(after_help = "\
Examples:
  weft policy diff manifests.old/ manifests/
  weft policy diff --exit-code main/ branch/    fails if anything changes")]
    Diff(PolicyDiffArgs),
}

/// `weft policy matrix`.
#[derive(Debug, Args)]
pub(super) struct PolicyMatrixArgs {
    /// The receiver's port: a number, or the name that its containers have for it
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<String>,

    /// The protocol; ICMP stands for all that have no ports
    #[arg(long = "proto", value_enum, ignore_case = true, default_value_t = ProbeProtocol::Tcp)]
    #[arg(value_name = "PROTOCOL")]
    pub(super) protocol: ProbeProtocol,

    /// Asks no daemon: what these manifests declare is there, and nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["socket", "lab", "node"])]
    pub(super) manifests: Option<PathBuf>,

    /// With --manifests: the node file whose ranges hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// A protocol that can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(super) enum ProbeProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
    /// Whatever has no ports
    Icmp,
}

/// `weft policy test`.
#[derive(Debug, Args)]
pub(super) struct PolicyTestArgs {
    /// What is expected
    pub(super) file: PathBuf,

    /// The manifests [default: those that the file names]
    #[arg(long, value_name = "DIR")]
    pub(super) manifests: Option<PathBuf>,

    /// The node file whose ranges hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// `weft policy diff`.
#[derive(Debug, Args)]
pub(super) struct PolicyDiffArgs {
    /// A directory of manifests, or one file
    pub(super) old: PathBuf,

    /// What takes its place
    pub(super) new: PathBuf,

    /// Fails if any pair changes
    #[arg(long)]
    pub(super) exit_code: bool,

    /// The node file whose ranges hold [default: the defaults of all fields]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct PodsArgs {
    /// Only the pods on the node of this name
    #[arg(long, value_name = "NODE", conflicts_with = "local")]
    pub(super) on: Option<String>,

    /// Only the pods of this Kubernetes namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,

    /// The pods on the node that is asked, with their interfaces and traffic
    #[arg(long)]
    pub(super) local: bool,

    #[command(flatten)]
    pub(super) target: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct PortArgs {
    #[command(subcommand)]
    pub(super) command: PortCommand,

    #[command(flatten)]
    pub(super) target: TargetArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Makes an interface a port and shows the addresses it was given
    #[command(after_help = "Example:\n  sudo weft port add vnet0 52:54:00:12:34:56")]
    Add {
        /// The host's interface: its end of a veth pair, or a tap
        device: String,
        /// MAC address of the interface behind it
        mac: Mac,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Takes the port away; the interface itself stays
    #[command(after_help = "Example:\n  sudo weft port remove vnet0")]
    Remove {
        /// The host's interface
        device: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Answers measurements until ctrl-C
    ///
    /// Listens on one TCP port, and for the traffic of each measurement on a TCP or UDP port that the kernel
    /// chooses: let these through where a firewall is in between. It serves whoever can reach it, within
    /// limits; end it when you have measured.
    #[command(after_help = "\
Examples:
  weft bench serve
  weft bench serve --listen 10.244.1.1:5281    reached through the overlay only
  weft lab exec n2 -- weft bench serve         a node of the lab `lab`")]
    Serve {
        /// Address and port
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:5281")]
        listen: SocketAddr,
    },

    /// Runs the tests against a server
    ///
    /// A node's name is looked up at the daemon of the node that this runs on. An address may be any: of a
    /// pod, of a node, of any other machine.
    #[command(after_help = "\
Examples:
  sudo weft bench run b                       node b: overlay and underlay side by side
  sudo weft bench run b --overlay-only --test rtt-tcp --test rtt-udp
  weft bench run 10.244.2.7                   a pod's address, in a pod on another node
  weft bench run 192.168.10.12 --test tcp     the underlay alone
  weft bench run n2 --node n1                 from node n1 of the lab `lab` to node n2
  sudo weft bench run b -o json | jq '.tests[] | {name, ratio}'")]
    Run(BenchRunArgs),
}

#[derive(Debug, Args)]
pub(super) struct BenchRunArgs {
    /// Where `weft bench serve` runs: a node's name, an address, or ADDRESS:PORT
    pub(super) target: String,

    /// Runs only this test; may be given several times [default: all]
    #[arg(long = "test", value_enum, value_name = "NAME")]
    pub(super) tests: Vec<BenchTest>,

    /// How long each test runs
    #[arg(long, default_value_t = 3, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(super) seconds: u16,

    /// The server's port, where TARGET has none [default: 5281]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,

    /// Leaves the underlay out when TARGET is a node
    #[arg(long)]
    pub(super) overlay_only: bool,

    #[command(flatten)]
    pub(super) from: TargetArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// A test that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BenchTest {
    /// TCP throughput of one stream to the server
    Tcp,
    /// TCP throughput of one stream from the server
    TcpReceive,
    /// TCP throughput of two streams, one in each direction at once
    TcpBoth,
    /// TCP throughput of four streams to the server
    #[value(name = "tcp-4")]
    Tcp4,
    /// Datagrams of 64 bytes that arrive in a second
    Udp,
    /// Round trip of 64 bytes over TCP
    RttTcp,
    /// Round trip of 64 bytes over UDP
    RttUdp,
    /// TCP connections made and closed in a second
    Connect,
}

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// The daemon's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/weft.toml")]
    pub(super) config: PathBuf,

    /// Also removes the daemon's files: identity, lease, pods' addresses
    #[arg(long)]
    pub(super) files: bool,
}

#[derive(Debug, Args)]
pub(super) struct LabArgs {
    /// Name of the lab
    #[arg(long, global = true, default_value = "lab", value_name = "NAME")]
    pub(super) lab: String,

    #[command(subcommand)]
    pub(super) command: LabCommand,
}

/// What to do with a lab.
#[derive(Debug, Subcommand)]
pub(super) enum LabCommand {
    /// Makes a lab, which stays until `weft lab down`
    #[command(after_help = "\
Examples:
  weft lab up
  weft lab up --lab big --nodes 10 --pods 5
  weft lab up --underlay v6 --mtu 9000")]
    Up(LabUpArgs),

    /// Removes a lab: daemons, pods, namespaces, files
    #[command(after_help = "Examples:\n  weft lab down\n  weft lab down --all")]
    Down {
        /// Removes all labs of this user
        #[arg(long, conflicts_with = "lab")]
        all: bool,
    },

    /// Lists the labs of this user
    #[command(after_help = "Example:\n  weft lab list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Shows a lab: nodes, pods, addresses, what is cut or stopped, where logs are
    #[command(
        after_help = "Examples:\n  weft lab show\n  weft lab show -o json | jq -r '.nodes[].pods[].name'"
    )]
    Show {
        #[command(flatten)]
        output: OutputArgs,
    },

    /// Runs a command in a pod, in a node, in `underlay` or in `world`
    ///
    /// The command knows the names of all of them: its /etc/hosts is the lab's.
    #[command(after_help = "\
Examples:
  weft lab exec n1-p1 -- bash
  weft lab exec n1-p1 -- ping -c3 n2-p1
  weft lab exec underlay -- tcpdump -ni br0 udp port 4789")]
    Exec {
        /// Where: n1-p1, n1, underlay, world, ...
        place: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },

    #[command(flatten)]
    Change(LabChange),

    /// Keeps the namespaces of an ordinary user's lab
    #[command(hide = true)]
    Hold,
}

/// What to do to a lab that stands.
#[derive(Debug, Subcommand)]
pub(super) enum LabChange {
    /// Adds a node
    #[command(after_help = "Example:\n  weft lab add-node")]
    AddNode,

    /// Removes a node and its pods, as when its machine is switched off
    #[command(after_help = "Example:\n  weft lab remove-node n3")]
    RemoveNode {
        /// The node
        node: String,
    },

    /// Adds a pod to a node
    #[command(after_help = "Example:\n  weft lab add-pod n1")]
    AddPod {
        /// The node
        node: String,
    },

    /// Removes a pod
    #[command(after_help = "Example:\n  weft lab remove-pod n1-p2")]
    RemovePod {
        /// The pod
        pod: String,
    },

    /// Cuts a node's cable
    #[command(after_help = "Example:\n  weft lab cut n2")]
    Cut {
        /// The node
        node: String,
    },

    /// Heals a cable that was cut
    #[command(after_help = "Example:\n  weft lab heal n2")]
    Heal {
        /// The node
        node: String,
    },

    /// Sets the MTU of a node's link
    #[command(after_help = "Example:\n  weft lab set-mtu n2 1400")]
    SetMtu {
        /// The node
        node: String,
        /// Bytes
        mtu: u16,
    },

    /// Kills a node's daemon (kill -9)
    #[command(after_help = "Example:\n  weft lab kill n2 ; weft nodes --node n1")]
    Kill {
        /// The node
        node: String,
    },

    /// Stops a node's daemon in order: it says goodbye
    #[command(after_help = "Example:\n  weft lab stop n2")]
    Stop {
        /// The node
        node: String,
    },

    /// Starts a node's daemon again
    #[command(after_help = "Example:\n  weft lab start n2")]
    Start {
        /// The node
        node: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct LabUpArgs {
    /// Nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub(super) nodes: u8,

    /// Pods on each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(super) pods: u8,

    /// MTU of the network between the nodes, in bytes
    #[arg(long, default_value_t = 1500)]
    pub(super) mtu: u16,

    /// Protocol between the nodes
    #[arg(long, value_enum, default_value_t = UnderlayFamily::V4)]
    pub(super) underlay: UnderlayFamily,

    /// Gives pods no IPv6 addresses
    #[arg(long)]
    pub(super) no_ipv6: bool,

    /// A file with whole sections for every node's weft.toml
    #[arg(long, value_name = "FILE")]
    pub(super) extra: Option<PathBuf>,

    /// Level of the daemons' logs
    #[arg(long, default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub(super) log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum UnderlayFamily {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_port_may_be_of_a_node_of_a_lab_wherever_that_is_said() {
        let words = ["port", "add", "tap0", "52:54:00:12:34:56"];
        let node = ["--node", "n1", "--lab", "r"];
        for place in [1, 2, 3, 4] {
            let (before, after) = words.split_at(place);
            let line = ["weft"].iter().chain(before).chain(&node).chain(after);
            let cli = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{place}: {error}"));
            let Command::Port(port) = cli.command else { panic!("{cli:?}") };
            assert_eq!(port.target.node.as_deref(), Some("n1"), "{place}");
            assert_eq!(port.target.lab.as_deref(), Some("r"), "{place}");
        }
        let both = ["weft", "port", "remove", "tap0", "--node", "n1", "--socket", "/x"];
        assert!(Cli::try_parse_from(both).is_err(), "a node of a lab has its own socket");
    }

    #[test]
    fn help_has_at_most_100_columns() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            if let Some(line) = help.lines().find(|line| line.chars().count() > 100) {
                panic!("`{}`: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = Cli::command().term_width(100);
        command.build();
        check(&mut command);
    }

    #[test]
    fn every_visible_command_teaches_by_example() {
        fn check(command: &clap::Command) {
            for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "`{}` has no example", subcommand.get_name());
                check(subcommand);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn the_examples_in_the_help_can_be_typed() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            found
                .extend(help.lines().filter_map(|line| line.strip_prefix("  ")).map(str::to_owned));
            command.get_subcommands().for_each(|command| examples(command, found));
        }
        let mut lines = Vec::new();
        examples(&Cli::command(), &mut lines);
        let mut tried = 0;
        for line in lines {
            // What follows two spaces is an explanation; what follows these signs is another program's.
            let line = line.split("  ").next().unwrap_or_default();
            for command in line.split(" && ").flat_map(|part| part.split(" ; ")) {
                let command = command.split(['|', '>']).next().unwrap_or_default();
                let Some(start) = command.find("weft ") else { continue };
                let words = command[start..].split_whitespace();
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("`{command}`: {error}");
                }
                tried += 1;
            }
        }
        assert!(tried > 30, "only {tried} examples were found");
    }
}
