//! The subnet map: who is in the cluster, and which addresses are behind whom.
//!
//! It is an immutable snapshot made out of the replicated records and of who is alive. Whatever is
//! derived from it (routes, peers, tables) is derived anew from the whole map, never patched.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnetwork::IpNetwork;
use vswitch::mac::Mac;
use vswitch::tables::Peer;

use crate::node_id::NodeId;
use crate::seal::KeyId;
use crate::span::{self, Span};

/// Everything that one node knows of all nodes, itself included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetMap {
    /// Counts snapshots of this process; a later one has a larger number.
    pub generation: u64,
    /// Every node that is known, the dead and departed included until their leases are free again.
    pub members: BTreeMap<NodeId, Member>,
    /// What contradicts itself at present, in a fixed order.
    pub conflicts: Vec<Conflict>,
    /// Exceptions that do not stand: the address, who has it, who asks for it. Perhaps only not yet.
    pub(crate) refused: Vec<(IpAddr, NodeId, NodeId)>,
}

/// A node, as its own record and the failure detector describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub id: NodeId,
    /// Its name for people; not necessarily unique.
    pub name: String,
    /// Its address on the underlay.
    pub underlay: IpAddr,
    /// UDP port that it receives VXLAN on.
    pub vxlan_port: u16,
    /// UDP port that it receives gossip on.
    pub gossip_port: u16,
    /// Address of its tunnel endpoint.
    pub vtep_mac: Mac,
    /// Longest IP packet that its underlay interface takes.
    pub underlay_mtu: u16,
    /// Name and version of its daemon; empty where no Weft daemon speaks for it.
    pub software: String,
    /// The node that founded the cluster that it belongs to; none while it does not know.
    pub origin: Option<NodeId>,
    /// The keys that it accepts, the one that it uses first; none if its gossip is in clear.
    pub keys: Vec<KeyId>,
    /// The subnets that it holds or claims.
    pub leases: Vec<Lease>,
    /// Addresses of its pods out of subnets that it does not hold any more, as it says, in order.
    pub asked: Vec<IpAddr>,
    /// Those of them that lead to it; see [`SubnetMap::requests`].
    pub exceptions: Vec<IpAddr>,
    /// Addresses out of its own leases that it leaves to pods of other nodes.
    pub grants: BTreeMap<IpAddr, NodeId>,
    /// Whether it is alive.
    pub state: MemberState,
    /// Version of its record.
    pub version: u64,
    /// Since when, as this node saw it, it is in this state.
    pub since: Instant,
    /// Whether what is sent to its underlay address can only go to another node with the same address:
    /// it is then no peer, see [`Conflict::Address`].
    pub shadowed: bool,
}

/// Whether a node is alive, as far as this one knows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer, and has not had the time to contradict yet; it still counts as alive.
    Suspect,
    /// It is unreachable.
    Dead,
    /// It said goodbye.
    Left,
}

impl MemberState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Alive, Self::Suspect, Self::Dead, Self::Left];

    /// Whether traffic is sent to it.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }

    /// The state's name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        }
    }
}

/// A subnet that a node holds, or would like to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The subnet.
    pub prefix: IpNetwork,
    /// How far the claim has come.
    pub claim: Claim,
    /// Higher than that of every earlier holder whom the claimant knew of.
    pub epoch: u64,
    /// Whether the holder's configuration says that it must be this subnet.
    pub fixed: bool,
    /// Whether somebody else's claim to some of its addresses wins; see [`judge`].
    pub contested: bool,
}

/// How far the claim of a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// Announced, so that whoever knows better can object.
    Claiming,
    /// In use.
    Held,
}

/// How good a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the claimant's configuration says that it must be this subnet.
    pub fixed: bool,
    /// How far the claim has come.
    pub claim: Claim,
    /// Its epoch.
    pub epoch: u64,
    /// The claimant.
    pub id: NodeId,
}

/// Compares two claims to the same addresses: the greater one wins, on every node, in whatever order
/// the news arrived. Fixed beats chosen, because a person said so; held beats claiming; then the higher
/// epoch wins, because its claimant knew of the other or of a later holder; then the lower node id.
pub fn rank(one: Standing, other: Standing) -> Ordering {
    let fixed = one.fixed.cmp(&other.fixed);
    let claim = fixed.then(one.claim.cmp(&other.claim));
    claim.then(one.epoch.cmp(&other.epoch)).then(other.id.cmp(&one.id))
}

/// A claim to a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bid {
    /// The subnet.
    pub prefix: IpNetwork,
    /// How good the claim is.
    pub standing: Standing,
}

/// Decides between claims that overlap: each with who wins against it, if anybody does.
///
/// In the order of [`rank`], the best first, a claim wins unless it overlaps with one that has won. So a
/// claim that loses itself takes nothing from others, and the outcome is the same on every node that knows
/// the same claims. The winners do not overlap.
pub fn judge(mut bids: Vec<Bid>) -> Vec<(Bid, Option<NodeId>)> {
    bids.sort_by(|one, other| rank(other.standing, one.standing));
    let mut won: BTreeMap<(bool, u128), (Span, NodeId)> = BTreeMap::new();
    let judged = bids.into_iter().map(|bid| {
        let (v6, span) = (bid.prefix.is_ipv6(), Span::of(bid.prefix));
        // Winners are disjoint, so only the last one that begins before the end can reach in.
        let nearest = won.range(..=(v6, span.last)).next_back();
        let winner = nearest
            .filter(|((family, _), (other, _))| *family == v6 && other.overlaps(span))
            .map(|(_, (_, id))| *id);
        if winner.is_none() {
            won.insert((v6, span.first), (span, bid.standing.id));
        }
        (bid, winner)
    });
    judged.collect()
}

/// Something that should be unique is not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// One id is in use at two addresses: a disk was cloned. The node with the lower address keeps the
    /// identity; the other one gives up its leases until it is given an id of its own.
    Identity {
        /// The id.
        id: NodeId,
        /// The addresses, the lower one first.
        addresses: [SocketAddr; 2],
    },
    /// Two nodes have one underlay address. Traffic for both goes to the one with the lower id.
    Address {
        /// The address.
        address: IpAddr,
        /// The nodes, the lower id first.
        nodes: [NodeId; 2],
        /// Their names, in the same order.
        names: [String; 2],
    },
    /// A pod has an address out of a subnet that its node has lost, and the subnet's holder does not leave it
    /// the address: it gave it to a pod of its own while the two did not hear of each other. The holder's pod
    /// keeps it, the other one is cut off.
    Exception {
        /// The address.
        address: IpAddr,
        /// Who holds the subnet.
        holder: NodeId,
        /// Whose pod has it, too.
        claimant: NodeId,
    },
    /// Two nodes hold one subnet, or overlapping ones. The traffic goes to the winner, and the other one
    /// gives its subnet up as soon as it knows.
    Lease {
        /// The loser's subnet.
        prefix: IpNetwork,
        /// Who keeps it.
        winner: NodeId,
        /// Who gives it up.
        loser: NodeId,
    },
}

impl Conflict {
    /// What is wrong and what is being done or has to be, with nodes as `name` calls them.
    pub fn describe(&self, name: impl Fn(NodeId) -> String) -> String {
        match self {
            Self::Identity { id, addresses: [low, high] } => format!(
                "node id {id} is in use at {low} and at {high}: {high} stands down until its node id \
                 file is removed and its daemon restarted"
            ),
            Self::Address { address, nodes: [low, high], names: [low_name, high_name] } => format!(
                "underlay address {address} is used by {low_name} ({low}) and by {high_name} ({high}): \
                 choose another address for one of them; until then traffic goes to {low_name} only"
            ),
            Self::Exception { address, holder, claimant } => {
                let (holder, claimant) = (name(*holder), name(*claimant));
                format!(
                    "address {address} is used by a pod on {holder}, which holds its subnet, and by one on {claimant} \
                     from before it lost it: the pod on {holder} keeps it; delete the one on {claimant}, so that it \
                     comes back with another"
                )
            }
            Self::Lease { prefix, winner, loser } => {
                let (winner, loser) = (name(*winner), name(*loser));
                format!(
                    "subnet {prefix} is held by {winner} and by {loser}: {winner} keeps it, {loser} takes \
                     another"
                )
            }
        }
    }
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe(|id| id.to_string()))
    }
}

impl Lease {
    /// How good the claim of `id` to this lease is.
    pub fn standing(&self, id: NodeId) -> Standing {
        Standing { fixed: self.fixed, claim: self.claim, epoch: self.epoch, id }
    }
}

impl Member {
    /// The prefixes that are routed to this node.
    pub fn routes(&self) -> impl Iterator<Item = IpNetwork> {
        let active = self.state.is_active() && !self.shadowed;
        let held =
            self.leases.iter().filter(|lease| lease.claim == Claim::Held && !lease.contested);
        held.filter(move |_| active).map(|lease| lease.prefix)
    }

    /// The prefixes and the single addresses that lead to this node.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNetwork> {
        self.routes().chain(self.exceptions.iter().map(|address| IpNetwork::from(*address)))
    }

    /// Whether a pod of this node can have `address`: out of what is routed to the node, or, for a pod in
    /// the node's own network, the node's own.
    pub fn owns(&self, address: IpAddr, host_network: bool) -> bool {
        (host_network && address == self.underlay)
            || self.prefixes().any(|prefix| prefix.contains(address))
    }
}

impl SubnetMap {
    /// Finds whose `address` is, as far as leases and exceptions tell.
    pub fn holder(&self, address: IpAddr) -> Option<&Member> {
        let mut members = self.members.values();
        let exception = members.find(|member| member.exceptions.contains(&address));
        exception.or_else(|| {
            let mut members = self.members.values();
            members.find(|member| member.routes().any(|prefix| prefix.contains(address)))
        })
    }

    /// The addresses out of the leases of `own` that pods of other nodes had before it held them, and on which
    /// nodes. Those that no pod of its own has are to be left to them for as long as they are asked for.
    ///
    /// Of several nodes with one address, the one that it was granted to, or else the lowest id, is told.
    pub fn requests(&self, own: NodeId) -> BTreeMap<IpAddr, NodeId> {
        let mut requests = BTreeMap::new();
        let Some(member) = self.members.get(&own) else { return requests };
        let held = member.leases.iter().filter(|l| l.claim == Claim::Held && !l.contested);
        let held: Vec<_> = held.map(|lease| lease.prefix).collect();
        if held.is_empty() {
            return requests;
        }
        for other in self.members.values().filter(|other| other.id != own) {
            for address in &other.asked {
                if held.iter().any(|prefix| prefix.contains(*address)) {
                    let granted = member.grants.get(address) == Some(&other.id);
                    let first = requests.entry(*address).or_insert(other.id);
                    *first = if granted { other.id } else { *first };
                }
            }
        }
        requests
    }

    /// Addresses that pods on `own` have and must not use any more; see [`Conflict::Exception`].
    pub fn cut_off(&self, own: NodeId) -> BTreeSet<IpAddr> {
        let conflicts = self.conflicts.iter().filter_map(|conflict| match conflict {
            Conflict::Exception { address, claimant, .. } if *claimant == own => Some(*address),
            Conflict::Exception { .. }
            | Conflict::Identity { .. }
            | Conflict::Address { .. }
            | Conflict::Lease { .. } => None,
        });
        conflicts.collect()
    }

    /// What a conflict is about and what is done, with the nodes' names as far as they are known.
    pub fn describe(&self, conflict: &Conflict) -> String {
        conflict.describe(|id| match self.members.get(&id) {
            Some(member) => format!("{} ({id})", member.name),
            None => id.to_string(),
        })
    }

    /// Whether the node `id` still asks for `address`; `None` if nobody knows the node any more.
    pub fn asks(&self, id: NodeId, address: IpAddr) -> Option<bool> {
        self.members.get(&id).map(|member| member.asked.contains(&address))
    }

    /// All other nodes that can be sent to, in the order of their ids.
    pub fn reachable(&self, own: NodeId) -> impl Iterator<Item = &Member> {
        let others = self.members.values().filter(move |member| member.id != own);
        others.filter(|member| member.state.is_active() && !member.shadowed)
    }

    /// The same, as the switch wants them.
    ///
    /// `own_mtu` is the longest IP packet of this node's own underlay interface. What fits the tunnel is
    /// the lesser of both ends' less its headers.
    pub fn peers(&self, own: NodeId, own_mtu: u16) -> Vec<Peer> {
        self.reachable(own)
            .map(|member| Peer {
                name: member.name.clone(),
                underlay: SocketAddr::new(member.underlay, member.vxlan_port),
                vtep_mac: member.vtep_mac,
                mtu: inner_mtu(own_mtu.min(member.underlay_mtu), member.underlay),
                leases: member.prefixes().collect(),
            })
            .collect()
    }

    /// Marks the claims that lose and the nodes that cannot be told apart, and collects the leases that
    /// two nodes hold.
    pub(crate) fn settle(&mut self) {
        let contested = self.contested();
        for (loser, prefix, _) in &contested {
            let lease =
                self.members.get_mut(loser).into_iter().flat_map(|member| &mut member.leases);
            for lease in lease.filter(|lease| lease.prefix == *prefix) {
                lease.contested = true;
            }
        }
        let held = |id: &NodeId, prefix: &IpNetwork| {
            let member = self.members.get(id);
            member.is_some_and(|member| {
                member.leases.iter().any(|l| l.prefix == *prefix && l.claim == Claim::Held)
            })
        };
        for (loser, prefix, winner) in contested.iter().filter(|(id, prefix, _)| held(id, prefix)) {
            let (prefix, winner, loser) = (*prefix, *winner, *loser);
            self.conflicts.push(Conflict::Lease { prefix, winner, loser });
        }

        let mut first: BTreeMap<IpAddr, NodeId> = BTreeMap::new();
        for member in self.members.values_mut().filter(|member| member.state.is_active()) {
            let owner = *first.entry(member.underlay).or_insert(member.id);
            member.shadowed = owner != member.id;
        }
        self.settle_exceptions();
    }

    /// Decides which exceptions stand, so that no address leads to two nodes.
    ///
    /// Where the subnet has a holder, those that the holder grants: it alone knows whether a pod of its own has
    /// the address, and keeps it free afterwards. Where nobody alive holds it, the first that asks.
    fn settle_exceptions(&mut self) {
        let mut holders: BTreeMap<(bool, u128), (Span, NodeId)> = BTreeMap::new();
        for member in self.members.values() {
            for prefix in member.routes() {
                let span = Span::of(prefix);
                holders.insert((prefix.is_ipv6(), span.first), (span, member.id));
            }
        }
        let holder_of = |address: IpAddr| {
            let (v6, number) = (address.is_ipv6(), span::number(address));
            let ((family, _), (span, id)) = holders.range(..=(v6, number)).next_back()?;
            (*family == v6 && span.last >= number).then_some(*id)
        };
        let mut stand: BTreeMap<IpAddr, NodeId> = BTreeMap::new();
        let mut refused = Vec::new();
        let reachable = |member: &&Member| member.state.is_active() && !member.shadowed;
        for member in self.members.values().filter(reachable) {
            for address in &member.asked {
                let granted = match holder_of(*address) {
                    Some(holder) if holder == member.id => continue,
                    Some(holder) => {
                        let grants = self.members.get(&holder).map(|holder| &holder.grants);
                        let granted =
                            grants.is_some_and(|grants| grants.get(address) == Some(&member.id));
                        if !granted {
                            refused.push((*address, holder, member.id));
                        }
                        granted
                    }
                    None => match stand.get(address) {
                        Some(first) => {
                            refused.push((*address, *first, member.id));
                            false
                        }
                        None => true,
                    },
                };
                if granted {
                    stand.insert(*address, member.id);
                }
            }
        }
        for (address, id) in stand {
            if let Some(member) = self.members.get_mut(&id) {
                member.exceptions.push(address);
            }
        }
        self.refused = refused;
    }

    /// (loser, its prefix, winner) of every claim of an active node that loses.
    fn contested(&self) -> Vec<(NodeId, IpNetwork, NodeId)> {
        let active = self.members.values().filter(|member| member.state.is_active());
        let bids = active.flat_map(|member| {
            member
                .leases
                .iter()
                .map(|lease| Bid { prefix: lease.prefix, standing: lease.standing(member.id) })
        });
        let judged = judge(bids.collect());
        let losers = judged
            .into_iter()
            .filter_map(|(bid, winner)| winner.map(|winner| (bid.standing.id, bid.prefix, winner)));
        losers.collect()
    }
}

/// The longest inner IP packet of a tunnel over `address` whose outer packets are at most `mtu` long:
/// less 50 bytes over IPv4 (RFC 7348 §5: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14), 70 over IPv6.
pub fn inner_mtu(mtu: u16, address: IpAddr) -> u16 {
    mtu.saturating_sub(if address.is_ipv6() { 70 } else { 50 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8, state: MemberState, leases: &[(&str, Claim, u64)]) -> Member {
        let id = NodeId([id; 16]);
        let leases = leases.iter().map(|(prefix, claim, epoch)| Lease {
            prefix: prefix.parse().unwrap(),
            claim: *claim,
            epoch: *epoch,
            fixed: false,
            contested: false,
        });
        Member {
            id,
            name: id.short(),
            underlay: IpAddr::from([192, 0, 2, id.0[0]]),
            vxlan_port: 4789,
            gossip_port: 7946,
            origin: None,
            vtep_mac: id.vtep_mac(),
            underlay_mtu: 1500,
            software: String::new(),
            keys: Vec::new(),
            leases: leases.collect(),
            asked: Vec::new(),
            exceptions: Vec::new(),
            grants: BTreeMap::new(),
            state,
            version: 1,
            since: Instant::now(),
            shadowed: false,
        }
    }

    fn map(members: Vec<Member>) -> SubnetMap {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        let mut map = SubnetMap { generation: 1, members, ..SubnetMap::default() };
        map.settle();
        map
    }

    #[test]
    fn only_held_leases_of_live_nodes_are_routes() {
        let map = map(vec![
            member(1, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 1)]),
            member(2, MemberState::Suspect, &[("10.244.2.0/24", Claim::Held, 1)]),
            member(3, MemberState::Dead, &[("10.244.3.0/24", Claim::Held, 1)]),
            member(4, MemberState::Alive, &[("10.244.4.0/24", Claim::Claiming, 1)]),
            member(5, MemberState::Left, &[("10.244.5.0/24", Claim::Held, 1)]),
        ]);
        let peers = map.peers(NodeId([1; 16]), 9000);
        let names: Vec<_> =
            peers.iter().map(|peer| (peer.name.as_str(), peer.leases.len())).collect();
        assert_eq!(names, [("02020202", 1), ("04040404", 0)]);
        assert_eq!(peers[0].mtu, 1450);
        assert!(map.holder("10.244.2.9".parse().unwrap()).is_some());
        assert!(map.holder("10.244.3.9".parse().unwrap()).is_none());
    }

    #[test]
    fn the_rank_is_a_strict_order() {
        let standing = |number: u8| Standing {
            fixed: number & 8 != 0,
            claim: if number & 4 != 0 { Claim::Held } else { Claim::Claiming },
            epoch: u64::from(number >> 1 & 1),
            id: NodeId([number & 1; 16]),
        };
        let claims: Vec<_> = (0..16).map(standing).collect();
        for (ix, one) in claims.iter().enumerate() {
            for (other_ix, other) in claims.iter().enumerate() {
                assert_eq!(rank(*one, *other), rank(*other, *one).reverse());
                assert_eq!(rank(*one, *other) == Ordering::Equal, ix == other_ix);
            }
        }
        let best = claims.iter().copied().max_by(|a, b| rank(*a, *b));
        assert_eq!(best, Some(standing(14)), "fixed, held, the later epoch, the lower id");
    }

    #[test]
    fn who_loses_takes_nothing_from_others() {
        let bid = |id: u8, prefix: &str, epoch| Bid {
            prefix: prefix.parse().unwrap(),
            standing: Standing { fixed: false, claim: Claim::Held, epoch, id: NodeId([id; 16]) },
        };
        let bids = [
            bid(1, "10.244.0.0/24", 1),
            bid(2, "10.244.0.0/22", 2),
            bid(3, "10.244.3.0/24", 3),
            bid(4, "fd00::/64", 1),
        ];
        let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]];
        for order in orders {
            let mut judged: Vec<_> = judge(order.map(|ix: usize| bids[ix]).to_vec())
                .into_iter()
                .map(|(bid, winner)| (bid.standing.id.0[0], winner.map(|id| id.0[0])))
                .collect();
            judged.sort_unstable();
            assert_eq!(judged, [(1, None), (2, Some(3)), (3, None), (4, None)]);
        }
    }

    proptest::proptest! {
        #[test]
        fn winners_are_disjoint_and_every_loser_has_a_better_winner(
            claims in proptest::collection::vec((0_u8..12, 20_u8..27, 0_u8..64, 0_u64..4, 0_u8..4), 0..20),
        ) {
            let bids: Vec<_> = claims
                .into_iter()
                .map(|(id, len, place, epoch, kind)| {
                    let bits = u32::from_be_bytes([10, 0, 0, 0]) + (u32::from(place) << 6);
                    let mask = u32::MAX << (32 - len);
                    let network = std::net::Ipv4Addr::from_bits(bits & mask);
                    let claim = if kind & 1 == 1 { Claim::Held } else { Claim::Claiming };
                    let id = NodeId([id; 16]);
                    let standing = Standing { fixed: kind & 2 == 2, claim, epoch, id };
                    Bid { prefix: IpNetwork::new(network.into(), len).unwrap(), standing }
                })
                .collect();
            let judged = judge(bids);
            let winners: Vec<_> =
                judged.iter().filter(|(_, winner)| winner.is_none()).map(|(bid, _)| bid).collect();
            let overlap = |a: &Bid, b: &Bid| Span::of(a.prefix).overlaps(Span::of(b.prefix));
            for (ix, one) in winners.iter().enumerate() {
                assert!(winners[..ix].iter().all(|other| !overlap(one, other)));
            }
            for (loser, winner) in judged.iter().filter_map(|(bid, by)| Some((bid, (*by)?))) {
                assert!(winners.iter().any(|other| {
                    other.standing.id == winner
                        && overlap(loser, other)
                        && rank(other.standing, loser.standing) != Ordering::Less
                }));
            }
        }
    }

    #[test]
    fn of_two_holders_only_the_winner_has_the_route() {
        let map = map(vec![
            member(1, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 1)]),
            member(2, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 2)]),
            member(3, MemberState::Alive, &[("10.244.1.0/24", Claim::Claiming, 9)]),
            member(4, MemberState::Dead, &[("10.244.1.0/24", Claim::Held, 10)]),
        ]);
        let holder = map.holder("10.244.1.1".parse().unwrap()).unwrap();
        assert_eq!(holder.id, NodeId([2; 16]));
        assert_eq!(
            map.conflicts,
            [Conflict::Lease {
                prefix: "10.244.1.0/24".parse().unwrap(),
                winner: NodeId([2; 16]),
                loser: NodeId([1; 16]),
            }]
        );
    }

    #[test]
    fn a_conflict_names_both_parties_and_what_is_done() {
        let map = map(vec![
            member(1, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 1)]),
            member(2, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 2)]),
        ]);
        let (one, two) = (NodeId([1; 16]), NodeId([2; 16]));
        assert_eq!(
            map.describe(&map.conflicts[0]),
            format!(
                "subnet 10.244.1.0/24 is held by 02020202 ({two}) and by 01010101 ({one}): 02020202 ({two}) keeps \
                 it, 01010101 ({one}) takes another"
            )
        );
        assert!(
            map.conflicts[0].to_string().starts_with("subnet 10.244.1.0/24 is held by 0202020202")
        );
    }

    #[test]
    fn an_exception_stands_only_with_the_consent_of_the_subnets_holder() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let (kept, used) = (address("10.244.1.5"), address("10.244.1.6"));
        let mut winner = member(1, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 2)]);
        let mut loser = member(2, MemberState::Alive, &[("10.244.2.0/24", Claim::Held, 3)]);
        let mut thief = member(3, MemberState::Alive, &[]);
        loser.asked = vec![kept, used, address("10.244.2.7"), address("10.244.9.9")];
        thief.asked = vec![kept, address("10.244.9.9")];
        let asked = map(vec![winner.clone(), loser.clone(), thief.clone()]);
        assert_eq!(asked.members[&loser.id].exceptions, [address("10.244.9.9")], "nobody else's");
        assert_eq!(asked.holder(kept).unwrap().id, winner.id);
        let requests = asked.requests(winner.id);
        assert_eq!(requests, BTreeMap::from([(kept, loser.id), (used, loser.id)]));

        winner.grants = BTreeMap::from([(kept, loser.id)]);
        let granted = map(vec![winner.clone(), loser.clone(), thief.clone()]);
        let stand = &granted.members[&loser.id].exceptions;
        assert_eq!(stand, &[kept, address("10.244.9.9")]);
        assert!(granted.members[&thief.id].exceptions.is_empty());
        assert_eq!(granted.holder(kept).unwrap().id, loser.id);
        assert_eq!(granted.holder(used).unwrap().id, winner.id);
        let refused: Vec<_> =
            granted.refused.iter().map(|(a, by, id)| (*a, by.0[0], id.0[0])).collect();
        assert_eq!(refused, [(used, 1, 2), (kept, 1, 3), (address("10.244.9.9"), 2, 3)]);
        let peers = granted.peers(winner.id, 1500);
        assert_eq!(peers[0].leases.len(), 3, "the lease and two addresses");

        // A grant of somebody who does not hold the subnet is worth nothing.
        winner.leases.clear();
        thief.leases = member(3, MemberState::Alive, &[("10.244.1.0/24", Claim::Held, 9)]).leases;
        let moved = map(vec![winner, loser.clone(), thief]);
        assert_eq!(moved.holder(kept).unwrap().id, NodeId([3; 16]));
    }

    #[test]
    fn of_two_nodes_with_one_address_the_lower_id_is_the_peer() {
        let mut twin = member(3, MemberState::Alive, &[("10.244.3.0/24", Claim::Held, 1)]);
        twin.underlay = IpAddr::from([192, 0, 2, 2]);
        let map = map(vec![
            member(1, MemberState::Alive, &[]),
            member(2, MemberState::Alive, &[("10.244.2.0/24", Claim::Held, 1)]),
            twin,
        ]);
        let peers = map.peers(NodeId([1; 16]), 1500);
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].name, "02020202");
        assert!(map.holder("10.244.3.1".parse().unwrap()).is_none());
    }

    #[test]
    fn the_inner_mtu_leaves_room_for_the_outer_headers() {
        assert_eq!(inner_mtu(1500, "192.0.2.1".parse().unwrap()), 1450);
        assert_eq!(inner_mtu(1500, "2001:db8::1".parse().unwrap()), 1430);
    }
}
