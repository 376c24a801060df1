//! One policy, made into rules for the switch.
//!
//! Names of ports become numbers here. What an ingress rule calls by name is a port of the pod that the rule is for,
//! so that is left open until the pod is known. What an egress rule calls by name is a port of whoever is sent to:
//! for each number that any pod has for that name, there is a rule for it, about those of its peers that have it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::policy::{
    ClusterPolicy, IpBlock, NamespaceSelection, NetworkPolicy, PodSelection, PolicyAction,
    PolicyPeer, PolicyPort, PolicyRule, PolicyTier,
};
use conf::cluster::{ClusterState, ObjectKey, ObjectKind, ObjectName};
use ipnetwork::IpNetwork;
use vswitch::policy::{
    Action, Block, Direction, Peers, Policy, PolicyName, PortMatch, Rule, RuleName, SelectorIx,
    Tier,
};
use vswitch::service::Protocol;

use super::pods::{Pods, owner};
use super::selectors::{NamedPort, Selector, Selectors};

/// A policy as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Network(Arc<NetworkPolicy>),
    Cluster(Arc<ClusterPolicy>),
}

/// Priority, name, and kind.
pub(super) type Order = (u16, ObjectName, ObjectKind);

/// A policy, made into rules.
#[derive(Debug)]
pub(super) struct Compiled {
    /// Differs from that of everything else that was ever compiled.
    pub(super) version: u64,
    pub(super) source: Source,
    /// The pods that it is for.
    pub(super) subject: PodSelection,
    /// Its name, and those of its rules.
    pub(super) policy: Arc<Policy>,
    /// `None`: it says nothing about this direction.
    pub(super) ingress: Option<Vec<IngressRule>>,
    pub(super) egress: Option<Vec<Rule>>,
    /// The selectors that its rules ask for.
    pub(super) selectors: Vec<Selector>,
    /// The names of ports that its egress rules ask for.
    pub(super) port_names: BTreeSet<Arc<str>>,
    /// Whether the addresses of pods with such ports matter, too.
    pub(super) needs_addresses: bool,
    /// Whether its rules are about nodes.
    pub(super) needs_nodes: bool,
}

/// A rule of which the names of ports are still to be looked up at the pod that it is for.
#[derive(Debug)]
pub(super) struct IngressRule {
    rule: Rule,
    names: Vec<PortName>,
}

/// A port by its name, of one protocol or of any.
type PortName = (Option<Protocol>, Arc<str>);

/// What a policy is compiled with.
#[derive(Debug)]
pub(super) struct Compiler<'c> {
    pub(super) state: &'c ClusterState,
    pub(super) pods: &'c Pods,
    pub(super) selectors: &'c mut Selectors,
    /// Selectors that nobody asked for before.
    pub(super) new_selectors: &'c mut Vec<Selector>,
}

impl Source {
    /// The policy with this key.
    pub(super) fn find(state: &ClusterState, key: &ObjectKey) -> Option<Self> {
        let ObjectName { namespace, name } = &key.id;
        if key.kind == ObjectKind::NetworkPolicy {
            return state.network_policy(namespace, name).cloned().map(Self::Network);
        }
        state.cluster_policy(key.kind, name).cloned().map(Self::Cluster)
    }

    /// All policies.
    pub(super) fn keys(state: &ClusterState) -> impl Iterator<Item = ObjectKey> {
        let network = state
            .network_policies()
            .map(|policy| ObjectKey { kind: ObjectKind::NetworkPolicy, id: policy.id.clone() });
        let cluster = state.cluster_policies().map(|policy| ObjectKey {
            kind: policy.kind,
            id: ObjectName::new("", Arc::clone(&policy.name)),
        });
        network.chain(cluster)
    }

    /// The pods that it is for.
    pub(super) fn subject(&self) -> PodSelection {
        match self {
            Self::Network(policy) => PodSelection {
                namespaces: NamespaceSelection::Own(Arc::clone(&policy.id.namespace)),
                pods: policy.pods.clone(),
            },
            Self::Cluster(policy) => policy.subject.clone(),
        }
    }

    pub(super) fn tier(&self) -> Tier {
        match self {
            Self::Network(_) => Tier::Namespace,
            Self::Cluster(policy) => match policy.tier {
                PolicyTier::Admin => Tier::Admin,
                PolicyTier::Baseline => Tier::Baseline,
            },
        }
    }

    /// Where it stands among the policies of its tier. Of two with the same priority the first by name is asked
    /// first, on every node.
    pub(super) fn order(&self) -> Order {
        match self {
            Self::Network(policy) => (0, policy.id.clone(), ObjectKind::NetworkPolicy),
            Self::Cluster(policy) => {
                (policy.priority, ObjectName::new("", Arc::clone(&policy.name)), policy.kind)
            }
        }
    }

    /// The name that people see.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Network(policy) => policy.id.to_string(),
            Self::Cluster(policy) => title(policy.kind, &policy.name),
        }
    }

    pub(super) fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match (self, direction) {
            (Self::Network(policy), Direction::Ingress) => policy.ingress.as_deref(),
            (Self::Network(policy), Direction::Egress) => policy.egress.as_deref(),
            // A policy of the cluster without rules for a direction does not affect it.
            (Self::Cluster(policy), Direction::Ingress) => {
                Some(&*policy.ingress).filter(|rules| !rules.is_empty())
            }
            (Self::Cluster(policy), Direction::Egress) => {
                Some(&*policy.egress).filter(|rules| !rules.is_empty())
            }
        }
    }
}

/// Whose a rule is, whom it is about, and which ports; `None` for no port at all.
pub(super) type Parts<'c> = (&'c Arc<RuleName>, &'c Peers, Option<Vec<PortMatch>>);

impl Compiled {
    /// Whether it says anything about a direction.
    pub(super) fn speaks_of(&self, direction: Direction) -> bool {
        match direction {
            Direction::Egress => self.egress.is_some(),
            Direction::Ingress => self.ingress.is_some(),
        }
    }

    /// Whether an ingress rule calls this port of the pod that it is for by name.
    pub(super) fn calls(&self, port: &NamedPort) -> bool {
        self.ingress.iter().flatten().any(|rule| rule.calls(port))
    }

    /// The same in parts: whose they are, whom and which ports they are about. No ports at all are `None`.
    pub(super) fn parts_for(&self, direction: Direction, ports: &[NamedPort]) -> Vec<Parts<'_>> {
        match direction {
            Direction::Egress => {
                let rules = self.egress.iter().flatten();
                rules.map(|rule| (&rule.name, &rule.peers, Some(rule.ports.clone()))).collect()
            }
            Direction::Ingress => {
                let rules = self.ingress.iter().flatten();
                let part = |rule: &'_ IngressRule| rule.for_pod(ports).map(|rule| rule.ports);
                rules.map(|rule| (&rule.rule.name, &rule.rule.peers, part(rule))).collect()
            }
        }
    }

    /// Its rules for a pod with these ports.
    pub(super) fn rules_for(&self, direction: Direction, ports: &[NamedPort]) -> Vec<Rule> {
        match direction {
            Direction::Egress => self.egress.iter().flatten().cloned().collect(),
            Direction::Ingress => {
                self.ingress.iter().flatten().filter_map(|rule| rule.for_pod(ports)).collect()
            }
        }
    }
}

/// What a policy of the cluster is called: its name, with the kind before it where that is not the newest one, as
/// `kubectl` writes it.
pub(super) fn title(kind: ObjectKind, name: &str) -> String {
    if kind == ObjectKind::ClusterNetworkPolicy {
        return name.to_owned();
    }
    format!("{}/{name}", kind.as_str().to_lowercase())
}

impl Compiler<'_> {
    /// Makes a policy into rules. Names of those rules stay that `before` has just so: with them goes what was
    /// counted.
    pub(super) fn compile(
        &mut self,
        source: Source,
        before: Option<&Compiled>,
        version: u64,
    ) -> Compiled {
        let name = match before {
            Some(before) if before.source.tier() == source.tier() => {
                Arc::clone(&before.policy.name)
            }
            Some(_) | None => PolicyName::new(source.tier(), &source.title()),
        };
        let mut compiled = Compiled {
            version,
            subject: source.subject(),
            policy: Arc::new(Policy { name: Arc::clone(&name), rules: Vec::new() }),
            ingress: None,
            egress: None,
            selectors: Vec::new(),
            port_names: BTreeSet::new(),
            needs_addresses: false,
            needs_nodes: false,
            source: source.clone(),
        };
        let mut names = Vec::new();
        if let Some(rules) = source.rules(Direction::Ingress) {
            let names_of = rule_names(&name, &source, before, Direction::Ingress, rules);
            let rules = names_of.iter().zip(rules);
            let made = rules.map(|(name, rule)| self.ingress(rule, name, &mut compiled));
            compiled.ingress = Some(made.collect::<Vec<_>>());
            names.extend(names_of);
        }
        if let Some(rules) = source.rules(Direction::Egress) {
            let names_of = rule_names(&name, &source, before, Direction::Egress, rules);
            let mut made = Vec::new();
            for (name, rule) in names_of.iter().zip(rules) {
                self.egress(rule, name, &mut compiled, &mut made);
            }
            compiled.egress = Some(made);
            names.extend(names_of);
        }
        compiled.policy = Arc::new(Policy { name, rules: names });
        compiled
    }

    fn ingress(
        &mut self,
        rule: &PolicyRule,
        name: &Arc<RuleName>,
        compiled: &mut Compiled,
    ) -> IngressRule {
        let peers = self.peers(rule, compiled);
        let (ports, names) = numbers_and_names(rule);
        let name = Arc::clone(name);
        let rule = Rule { name, action: action(rule.action), peers, ports };
        IngressRule { rule, names }
    }

    fn egress(
        &mut self,
        rule: &PolicyRule,
        name: &Arc<RuleName>,
        compiled: &mut Compiled,
        made: &mut Vec<Rule>,
    ) {
        let (ports, names) = numbers_and_names(rule);
        let action = action(rule.action);
        if !ports.is_empty() || names.is_empty() {
            let peers = self.peers(rule, compiled);
            made.push(Rule { name: Arc::clone(name), action, peers, ports });
        }
        for (protocol, port_name) in names {
            compiled.port_names.insert(Arc::clone(&port_name));
            for port in self.pods.numbers(&port_name, protocol) {
                let peers = self.peers_with(rule, &port, compiled);
                let ports = vec![port_match(&port)];
                made.push(Rule { name: Arc::clone(name), action, peers, ports });
            }
        }
    }

    /// Whom a rule is about.
    fn peers(&mut self, rule: &PolicyRule, compiled: &mut Compiled) -> Peers {
        let Some(peers) = &rule.peers else { return Peers::Everybody };
        let (mut selectors, mut blocks) = (Vec::new(), Vec::new());
        for peer in peers {
            match peer {
                PolicyPeer::Pods(pods) => {
                    selectors.push(self.selector(Some(pods), None, compiled));
                }
                PolicyPeer::Block(IpBlock { cidr, except }) => {
                    blocks.push(Block { cidr: *cidr, except: except.to_vec() });
                }
                PolicyPeer::Nodes(selector) => {
                    compiled.needs_nodes = true;
                    let nodes = self.state.known_nodes();
                    let nodes = nodes.filter(|node| selector.selects(&node.labels));
                    let addresses = nodes.flat_map(|node| node.addresses.iter().copied());
                    blocks.extend(addresses.map(|address| block_of(address.into())));
                }
            }
        }
        Peers::Some { selectors, blocks }
    }

    /// Who of those that a rule is about has this port.
    fn peers_with(
        &mut self,
        rule: &PolicyRule,
        port: &NamedPort,
        compiled: &mut Compiled,
    ) -> Peers {
        let Some(peers) = &rule.peers else {
            let selectors = vec![self.selector(None, Some(port), compiled)];
            return Peers::Some { selectors, blocks: Vec::new() };
        };
        let (mut selectors, mut blocks) = (Vec::new(), Vec::new());
        for peer in peers {
            match peer {
                PolicyPeer::Pods(pods) => {
                    selectors.push(self.selector(Some(pods), Some(port), compiled));
                }
                PolicyPeer::Block(IpBlock { cidr, except }) => {
                    compiled.needs_addresses = true;
                    let is_meant = |(id, address): &(ObjectName, IpAddr)| {
                        cidr.contains(*address)
                            && !except.iter().any(|except| except.contains(*address))
                            && owner(self.state, *address).is_some_and(|pod| pod.id == *id)
                    };
                    let addresses = self.pods.addresses_with(port).filter(is_meant);
                    blocks.extend(addresses.map(|(_, address)| block_of(address.into())));
                }
                // A node's ports have no names.
                PolicyPeer::Nodes(_) => {}
            }
        }
        Peers::Some { selectors, blocks }
    }

    fn selector(
        &mut self,
        pods: Option<&PodSelection>,
        port: Option<&NamedPort>,
        compiled: &mut Compiled,
    ) -> SelectorIx {
        let selector = Selector { pods: pods.cloned(), port: port.cloned() };
        let (ix, is_new) = self.selectors.acquire(&selector);
        if is_new {
            self.new_selectors.push(selector.clone());
        }
        compiled.selectors.push(selector);
        ix
    }
}

impl IngressRule {
    /// The rule for a pod with these ports. `None` when it is about ports, and the pod has none of them.
    fn for_pod(&self, ports: &[NamedPort]) -> Option<Rule> {
        let mut rule = self.rule.clone();
        rule.ports.extend(ports.iter().filter(|port| self.calls(port)).map(port_match));
        // Without any port it would be about all.
        let is_about_nothing = rule.ports.is_empty() && !self.names.is_empty();
        (!is_about_nothing).then_some(rule)
    }

    fn calls(&self, port: &NamedPort) -> bool {
        self.names.iter().any(|(protocol, name)| {
            *name == port.name && protocol.is_none_or(|protocol| protocol == port.protocol)
        })
    }
}

fn rule_names(
    name: &Arc<PolicyName>,
    source: &Source,
    before: Option<&Compiled>,
    direction: Direction,
    rules: &[PolicyRule],
) -> Vec<Arc<RuleName>> {
    let before = before.filter(|before| before.source.tier() == source.tier());
    let old_rules = before.and_then(|before| before.source.rules(direction)).unwrap_or_default();
    let old_name = |ix: usize, rule: &PolicyRule| {
        let before = before.filter(|_| old_rules.get(ix) == Some(rule))?;
        let names = before.policy.rules.iter();
        names.filter(|name| name.direction == direction).nth(ix).cloned()
    };
    let name_of = |(ix, rule)| {
        let number = u32::try_from(ix).unwrap_or(u32::MAX);
        old_name(ix, rule).unwrap_or_else(|| RuleName::new(Arc::clone(name), direction, number))
    };
    rules.iter().enumerate().map(name_of).collect()
}

/// A rule's ports with a number, and those with a name.
fn numbers_and_names(rule: &PolicyRule) -> (Vec<PortMatch>, Vec<PortName>) {
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for port in &rule.ports {
        match port {
            PolicyPort::Numbers { protocol, ports } => {
                let protocol = protocol_of(*protocol);
                numbers.push(PortMatch { protocol, ports: ports.range() });
            }
            PolicyPort::Named { protocol, name } => {
                names.push((protocol.map(protocol_of), Arc::clone(name)));
            }
        }
    }
    (numbers, names)
}

fn port_match(port: &NamedPort) -> PortMatch {
    PortMatch { protocol: port.protocol, ports: port.number..=port.number }
}

fn block_of(cidr: IpNetwork) -> Block {
    Block { cidr, except: Vec::new() }
}

pub(super) fn action(action: PolicyAction) -> Action {
    match action {
        PolicyAction::Accept => Action::Accept,
        PolicyAction::Deny => Action::Deny,
        PolicyAction::Pass => Action::Pass,
    }
}

/// The same protocol, as the switch has it.
pub fn protocol_of(protocol: conf::cluster::Protocol) -> Protocol {
    match protocol {
        conf::cluster::Protocol::Tcp => Protocol::Tcp,
        conf::cluster::Protocol::Udp => Protocol::Udp,
        conf::cluster::Protocol::Sctp => Protocol::Sctp,
    }
}
