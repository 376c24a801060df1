//! The one table of events: their codes, which do not change from release to release, how bad they are, what they mean
//! and what to do. `docs/operations.md` has it, too.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is as it should be.
    Info,
    /// Something is not as it should be; it may pass by itself.
    Warn,
    /// Pods are without a network, or a person has to act.
    Error,
}

impl Level {
    /// The level as it stands in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $level:ident: $meaning:literal => $remedy:literal;)+) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $meaning] $name,)+
        }

        impl Code {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code as it stands in the log and in JSON.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            /// How bad it is.
            pub fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)+
                }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                }
            }

            /// What to do; empty when there is nothing to do.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$name => $remedy,)+
                }
            }
        }
    };
}

codes! {
    DaemonStarted = "daemon-started", Info:
        "`weftd` runs." => "";
    DaemonStopping = "daemon-stopping", Info:
        "`weftd` stops; pods keep their interfaces and addresses." => "";
    UnderlayChosen = "underlay-chosen", Info:
        "The address towards the other nodes is known." => "";
    UnderlayChanged = "underlay-changed", Warn:
        "The address or the MTU of the underlay has changed: the other nodes are told, and pods are given the new MTU." => "";
    ConfigRead = "config-read", Info:
        "The configuration file was read again (SIGHUP); the text says what is in force." => "";
    ConfigRefused = "config-refused", Error:
        "The configuration file was to be read again and has errors; what was read before stays in force." =>
        "`weftd --check` says all that is wrong with it.";

    NodeUp = "node-up", Info:
        "A node is in the cluster, for the first time or again." => "";
    NodeUnreachable = "node-unreachable", Warn:
        "A node does not answer gossip any more; its pods are not routed to." =>
        "See whether the machine and its `weftd` run, and that UDP 7946 is open between the nodes.";
    NodeLeft = "node-left", Info:
        "A node said goodbye." => "";
    Synced = "synced", Info:
        "All that another node knows is known here, too." => "";
    SeedUnreachable = "seed-unreachable", Warn:
        "A seed does not answer; it is dialled for ever." =>
        "If it is gone for good, take it out of `seeds`.";
    AddressTranslated = "address-translated", Error:
        "A node's gossip comes from another address than it says: there is NAT between the nodes, or it chose the wrong interface." =>
        "Set `address` under [underlay] on that node.";
    Stranger = "stranger", Warn:
        "Somebody speaks without a seal, or with one that this node cannot open." =>
        "If it is a node of this cluster, give it the keys that the others list: `weft key list`.";
    ClusterJoined = "cluster-joined", Warn:
        "Two clusters that were born apart have met, with one network name and a common key: this node's has become a part of the other one." =>
        "Nothing, if they are to be one; `weft leases` shows what both had given away. Otherwise give the nodes of one of them another `network` or other keys (`weft key`).";
    Slept = "slept", Warn:
        "This process, or its machine, stood still." => "If it happens often, give the machine more CPU.";
    MemoryRecovered = "memory-recovered", Warn:
        "The cluster remembers more of this node than its own disk." =>
        "See whether the disk was set back to an older snapshot.";

    PathUp = "path-up", Info:
        "Data passes to a node, for the first time or again." => "";
    PathDown = "path-down", Error:
        "No data passes to a node, though its gossip does." =>
        "See that UDP 4789 is open between the nodes, in both directions.";
    PathNarrow = "path-narrow", Warn:
        "The path to a node carries less than the interfaces at both ends; pods are held to it." =>
        "Find the link with the smaller MTU, or set `mtu` under [underlay].";
    PathWide = "path-wide", Info:
        "The path to a node carries all that both ends do, again." => "";

    LeaseClaimed = "lease-claimed", Info:
        "This node announced a claim to a subnet." => "";
    LeaseHeld = "lease-held", Info:
        "A subnet is this node's from now on." => "";
    LeaseTakenUp = "lease-taken-up", Info:
        "New pods get addresses out of these subnets." => "";
    LeaseLost = "lease-lost", Error:
        "Another node has a better claim to a subnet that was in use here." =>
        "See `weft leases` for who has it, and what becomes of the pods.";
    LeaseYielded = "lease-yielded", Info:
        "Another node has a better claim to a subnet that was only claimed here; another one is claimed." => "";
    LeaseUnproven = "lease-unproven", Info:
        "A remembered subnet is not used before it is certain that nobody else uses it: another node is asked, and lets go first if it has a worse claim." => "";
    LeaseReleased = "lease-released", Warn:
        "This node gave a subnet up by itself." => "The text says why.";
    LeaseBlocked = "lease-blocked", Error:
        "The subnet that is fixed for this node is fixed for another live node, too." =>
        "Change `fixed` under [lease] on one of the two.";
    LeaseExhausted = "lease-exhausted", Error:
        "No subnet is free for this node; it keeps trying." =>
        "Add a range under [lease], or remove nodes that will not return (`weft nodes`).";

    ConflictIdentity = "conflict-identity", Error:
        "Two nodes have one id: a disk was cloned." =>
        "On the node that stands down, stop `weftd`, remove the file `node-id`, and start it.";
    ConflictAddress = "conflict-address", Error:
        "Two nodes have one underlay address." => "Set `address` under [underlay] on one of them.";
    ConflictLease = "conflict-lease", Error:
        "Two nodes hold one subnet, or overlapping ones; one of them is about to give it up." => "";
    ConflictException = "conflict-exception", Error:
        "A pod's address is used by another node that holds the subnet: the pod is cut off." =>
        "Delete the pod that the text names, so that it comes back with another address.";
    ExceptionsLeftOut = "exceptions-left-out", Error:
        "More addresses must be told around than one record holds: some pods are cut off." =>
        "Restart pods that have addresses of a lost lease.";
    ConflictResolved = "conflict-resolved", Info:
        "Something is unique again that was not." => "";

    PodAttached = "pod-attached", Info:
        "A pod was given its interface and addresses." => "";
    PodDetached = "pod-detached", Info:
        "A pod's interface and addresses were taken back." => "";
    PodGone = "pod-gone", Info:
        "A pod of the last run is not there any more; its addresses are free again." => "";
    PodInterfaceLost = "pod-interface-lost", Warn:
        "A pod's interface vanished; it is made again if its container is still there." => "";
    CniFailed = "cni-failed", Warn:
        "A call of the CNI plugin failed; the container runtime was told why." => "The text says what to do.";
    PolicyDenied = "policy-denied", Warn:
        "A network policy denied what a pod sent, or was sent." =>
        "If it should pass, the text says which policies to change: `weft policies` counts, `weft explain` explains.";
    PolicyAudited = "policy-audited", Info:
        "A network policy would have denied what a pod sent, or was sent; where policies are only audited it passed." => "";
    PolicyDenialsUntold = "policy-denials-untold", Info:
        "More was denied than is told one by one; the counters have all of it." => "";
    TunnelRefused = "tunnel-refused", Warn:
        "Tunnel packets of a sender were refused." =>
        "See `weft counters` for the sender; an address that is no node's has no business there.";

    ProblemUnderlay = "problem-underlay", Warn:
        "The underlay address is not known, or gone." => "Bring it back, or set `address` under [underlay].";
    ProblemTunnel = "problem-tunnel", Error:
        "The tunnel is not open: no pod of another node can be reached." => "The text says what is in its way.";
    ProblemGossip = "problem-gossip", Error:
        "The gossip does not run." => "The text says what is in its way.";
    ProblemStorage = "problem-storage", Error:
        "What must survive a restart cannot be written." => "Make room on the disk, or its directory writable.";
    ProblemLease = "problem-lease", Error:
        "There is no lease, so new pods get no addresses." => "The text says why; see `weft leases`.";
    ProblemAddresses = "problem-addresses", Warn:
        "Few addresses are left for further pods on this node, or none." =>
        "Give the node a larger subnet (`prefix_len_v4` under [lease]), or run fewer pods on it; `weft ipam` shows who has which.";
    ProblemHost = "problem-host", Error:
        "`weft0` cannot be set up, so this node itself reaches no pod." => "The text says what is in its way.";
    ProblemMasquerade = "problem-masquerade", Warn:
        "Pods do not reach the world outside." => "Install `nft`, or see the text.";
    ProblemSysctl = "problem-sysctl", Warn:
        "A kernel setting could not be made." => "Make it by hand, or give `weftd` the right to.";
    ProblemPod = "problem-pod", Error:
        "A pod has no network, or an old configuration." => "It is tried again; the text says what is in its way.";
    ProblemCutOff = "problem-cut-off", Error:
        "A pod's address is used by another node's pod, too, and this one is cut off." =>
        "Delete the pod, so that it comes back with another address.";
    ProblemTables = "problem-tables", Error:
        "More nodes are known than the switch's tables hold." => "Use several clusters.";
    ProblemObjects = "problem-objects", Warn:
        "Objects of the cluster are refused, or cannot be read." => "See `weft objects`.";
    ProblemKubernetes = "problem-kubernetes", Warn:
        "The API server does not answer, or refuses: what is known of the cluster may be old." =>
        "The text says what it says; see `weft status` for since when. What is known stays in force.";
    ProblemDns = "problem-dns", Error:
        "Pods' names are not answered." => "The text says what is in the way of it.";
    ProblemKeys = "problem-keys", Error:
        "The file with the cluster's keys cannot be used, or others use keys that this node has not." =>
        "See `weft key list`.";
    ProblemOther = "problem-other", Warn:
        "Something else is wrong with the node." => "The text says what, and what to do.";
    ProblemSolved = "problem-solved", Info:
        "A problem is solved." => "";

    EventsLost = "events-lost", Warn:
        "`weft watch` read too slowly, and missed so many events; the log has them all." => "";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_what_is_bad_has_a_remedy() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.meaning().ends_with('.'), "{code}");
            assert!(code.remedy().is_empty() || code.remedy().ends_with('.'), "{code}");
            let passes = [Code::ConflictLease];
            let needs_remedy = code.level() == Level::Error && !passes.contains(code);
            assert!(!needs_remedy || !code.remedy().is_empty(), "{code}");
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(code.as_str().chars().all(is_plain), "{code}");
        }
    }
}
