//! Paths that carry less than both ends' interfaces: some link between the nodes has a smaller MTU.
//!
//! The tunnel learns of one when the kernel refuses to send (EMSGSIZE), because a router has told it so. Then
//! pods are held to what the path carries, as if the other node's interface had that MTU: the switch tells
//! them, and cuts what may be cut. The kernel forgets the path's MTU after ten minutes, and then so does this,
//! and the full length is tried again.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, SocketAddr};

use overlay::path_mtu::path_mtu;
use overlay::subnet::inner_mtu;
use vswitch::tables::Peer;

use super::{Control, Topic};

impl Control {
    /// Looks at the paths that the tunnel reports, and at those that are known to be narrow.
    pub(super) fn look_at_paths(&mut self) {
        let (Some(tunnel), Some(underlay)) = (&self.tunnel, &self.underlay) else { return };
        let (own_address, own_mtu) = (underlay.address, underlay.mtu);
        let reported = iter::from_fn(|| tunnel.take_narrow()).map(|to| to.ip());
        let paths: BTreeSet<IpAddr> = reported.chain(self.narrow.keys().copied()).collect();
        let mut changed = false;
        for to in paths {
            let members = self.map.members.values();
            let mut members = members.filter(|member| member.state.is_active());
            let narrow = match members.find(|member| member.underlay == to) {
                None => None,
                Some(member) => {
                    let both = own_mtu.min(member.underlay_mtu);
                    match path_mtu(own_address, SocketAddr::new(to, member.vxlan_port)) {
                        Ok(mtu) => (mtu < both).then(|| (member.name.clone(), mtu, both)),
                        // There is no way at the moment, so nothing is known about it.
                        Err(_) => continue,
                    }
                }
            };
            changed |= match narrow {
                Some((name, mtu, both)) => {
                    self.raise(Topic::Path(to), describe(&name, to, mtu, both));
                    self.narrow.insert(to, mtu) != Some(mtu)
                }
                None => {
                    self.clear(&Topic::Path(to));
                    self.narrow.remove(&to).is_some()
                }
            };
        }
        if changed {
            self.publish();
        }
    }

    /// Holds the pods to what the paths carry.
    pub(super) fn narrow(&self, mut peers: Vec<Peer>) -> Vec<Peer> {
        for peer in &mut peers {
            let to = peer.underlay.ip();
            if let Some(mtu) = self.narrow.get(&to) {
                peer.mtu = peer.mtu.min(inner_mtu(*mtu, to));
            }
        }
        peers
    }
}

fn describe(name: &str, to: IpAddr, mtu: u16, both: u16) -> String {
    format!(
        "the path to node {name} ({to}) carries only {mtu} bytes, and the interfaces at both ends {both}: pods are \
         held to what it carries. Find the link with the smaller MTU on the way, or set `mtu = {mtu}` under \
         [underlay]"
    )
}
