//! Ports of the node that lead to its pods (`hostPort`): from what a runtime asks for to the switch's table and the
//! host's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipam::{Allocation, Attachment, Record, Wish};
use overlay::interfaces::interfaces;
use vswitch::service::Protocol;

use super::host_ports::{HostPort, HostPortError, Owner};
use super::{AttachError, Control, device};
use crate::admin::api::HostPortStatus;
use crate::host::nft;

impl Control {
    /// Whether an attachment may have the host ports that its record says, before anything is made for it. Those of a
    /// pod that is gone without a word, or of this one's former sandbox, are taken back for it.
    pub(super) fn check_host_ports(
        &mut self,
        attachment: &Attachment,
        record: &Record,
    ) -> Result<(), AttachError> {
        if record.extras.host_ports.is_empty() {
            return Ok(());
        }
        // Before it has addresses, only their families count.
        let known = self.allocation(attachment);
        let addresses = known.map_or_else(|| self.gateways(), |known| known.addresses().collect());
        let ports = host_ports(record, &addresses)?;
        self.take_back(attachment, record, &ports)?;
        self.objects.tables().check_host_ports(&owner(attachment, record), &ports)?;
        self.check_host_addresses(&ports)
    }

    /// Whether the addresses that are asked for are this node's: who sends to another host is not to find a pod there.
    fn check_host_addresses(&self, ports: &[HostPort]) -> Result<(), AttachError> {
        let asked: Vec<IpAddr> = ports.iter().filter_map(HostPort::only).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let all = interfaces()?;
        // The address of the cluster's DNS is Weft's own.
        let own = all.iter().filter(|found| found.interface != self.config.host.interface);
        let own: BTreeSet<IpAddr> = own.map(|found| found.address).collect();
        match asked.into_iter().find(|address| !own.contains(address)) {
            Some(address) => Err(HostPortError::Foreign(address).into()),
            None => Ok(()),
        }
    }

    /// Takes the host ports that `ports` need from attachments whose pod is gone or is this one.
    fn take_back(
        &mut self,
        attachment: &Attachment,
        record: &Record,
        ports: &[HostPort],
    ) -> Result<(), AttachError> {
        let is_superseded = |held: &Allocation| {
            let is_other = held.attachment.container_id != attachment.container_id;
            let is_former = record.pod.is_some()
                && held.record.pod.as_ref().map(name) == record.pod.as_ref().map(name);
            is_other && (is_former || !device::may_be_alive(held))
        };
        let holds = |held: &Allocation| {
            let addresses: Vec<_> = held.addresses().collect();
            let theirs = host_ports(&held.record, &addresses).unwrap_or_default();
            theirs.iter().any(|their| ports.iter().any(|port| port.meets(their)))
        };
        let held = self.ipam.iter().filter(|held| holds(held) && is_superseded(held));
        for former in held.cloned().collect::<Vec<_>>() {
            let Allocation { attachment: theirs, mut record, .. } = former;
            tracing::info!(from = %theirs, to = %attachment, "host ports are taken back: their pod is gone");
            record.extras.host_ports.clear();
            let former = self.ipam.allocate(&theirs, record, &Wish::default())?;
            self.give_host_ports(&former)?;
        }
        Ok(())
    }

    /// Has the host ports of an attachment lead to it, in place of those that it had.
    pub(super) fn give_host_ports(&mut self, allocation: &Allocation) -> Result<(), HostPortError> {
        let owner = owner(&allocation.attachment, &allocation.record);
        let addresses: Vec<_> = allocation.addresses().collect();
        let ports = host_ports(&allocation.record, &addresses)?;
        let cluster = self.cluster();
        if self.objects.tables().host_ports_of(&owner.id) != ports {
            let table = self.objects.tables_mut().set_host_ports(&cluster.read(), &owner, ports)?;
            self.set_services(table);
        } else if cluster.is_synced() && self.lacking_at_host(&owner.id).is_some() {
            // Somebody has changed the host's table.
            self.set_up_table();
        }
        Ok(())
    }

    /// Ends what leads to an attachment that is no more.
    pub(super) fn end_host_ports(&mut self, attachment: &Attachment) {
        let id = attachment.to_string();
        if self.objects.tables().host_ports_of(&id).is_empty() {
            return;
        }
        let owner = Owner { name: id.clone(), id };
        let cluster = self.cluster();
        let none = Vec::new();
        let table = self.objects.tables_mut().take_up_host_ports(&cluster.read(), &owner, none);
        self.set_services(table);
    }

    /// Takes up after a start what the last run had. What cannot be served is told by CHECK and `weft pods`.
    pub(super) fn resume_host_ports(&mut self) {
        let cluster = self.cluster();
        let mut last = None;
        for held in self.ipam.iter().filter(|held| !held.record.extras.host_ports.is_empty()) {
            let addresses: Vec<_> = held.addresses().collect();
            match host_ports(&held.record, &addresses) {
                Ok(ports) => {
                    let owner = owner(&held.attachment, &held.record);
                    let tables = self.objects.tables_mut();
                    last = Some(tables.take_up_host_ports(&cluster.read(), &owner, ports));
                }
                Err(error) => tracing::warn!(attachment = %held.attachment, "{error}"),
            }
        }
        if let Some(table) = last {
            self.set_services(table);
        }
    }

    /// What is not as promised of an attachment's host ports; `asked` is what the runtime says that it asked for.
    pub(super) fn broken_host_ports(
        &mut self,
        allocation: &Allocation,
        asked: &[ipam::HostPort],
    ) -> Vec<String> {
        let record = &allocation.record.extras.host_ports;
        let lost = asked.iter().filter(|port| !record.contains(port));
        let mut broken: Vec<String> =
            lost.map(|port| format!("host port {}: expected, found none", text(port))).collect();
        let id = allocation.attachment.to_string();
        let unserved = self.objects.tables().unserved_host_ports(&id);
        broken.extend(unserved.into_iter().map(|(_, why)| format!("host port: {why}")));
        broken.extend(self.lacking_at_host(&id));
        broken
    }

    /// What the host's table lacks of an attachment's host ports.
    fn lacking_at_host(&mut self, id: &str) -> Option<String> {
        let exposed = self.objects.tables().exposed_host_ports(id);
        let query = self.ways.query(&exposed);
        // Without `nft`, or before the host is set up, that is a problem of the node.
        if query.is_empty() || self.host.is_none() {
            return None;
        }
        match nft::look(&query) {
            Ok(()) | Err(nft::Error::Missing) => None,
            Err(error) => Some(format!("host ports: not in the host's table: {error}")),
        }
    }

    /// The host ports of an attachment, for people.
    pub(super) fn host_port_statuses(&self, allocation: &Allocation) -> Vec<HostPortStatus> {
        if allocation.record.extras.host_ports.is_empty() {
            return Vec::new();
        }
        let id = allocation.attachment.to_string();
        let unserved = self.objects.tables().unserved_host_ports(&id);
        let status = |port: &ipam::HostPort| {
            // One of another protocol is refused, and told, when it is taken up.
            let protocol = Protocol::from_number(port.protocol)?;
            let is_it = |found: &HostPort| {
                (found.protocol, found.port, found.address)
                    == (protocol, port.host_port, port.host_ip)
            };
            let problem = unserved.iter().find(|(found, _)| is_it(found));
            Some(HostPortStatus {
                protocol: match protocol {
                    Protocol::Tcp => conf::cluster::Protocol::Tcp,
                    Protocol::Udp => conf::cluster::Protocol::Udp,
                    Protocol::Sctp => conf::cluster::Protocol::Sctp,
                },
                host_ip: port.host_ip,
                host_port: port.host_port,
                container_port: port.container_port,
                problem: problem.map(|(_, why)| why.clone()),
            })
        };
        allocation.record.extras.host_ports.iter().filter_map(status).collect()
    }
}

/// An attachment as an owner of host ports: people know its pod.
fn owner(attachment: &Attachment, record: &Record) -> Owner {
    let pod = record.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
    let id = attachment.to_string();
    Owner { name: pod.unwrap_or_else(|| id.clone()), id }
}

fn name(pod: &ipam::Pod) -> (&str, &str) {
    (&pod.namespace, &pod.name)
}

fn host_ports(record: &Record, addresses: &[IpAddr]) -> Result<Vec<HostPort>, HostPortError> {
    let mut ports = Vec::new();
    for port in &record.extras.host_ports {
        let ipam::HostPort { protocol: number, host_port, container_port, host_ip } = *port;
        let protocol = Protocol::from_number(number).ok_or(HostPortError::Protocol(number))?;
        let pair = (host_port, container_port);
        ports.extend(HostPort::of_pod(host_ip, protocol, pair, addresses)?);
    }
    Ok(ports)
}

/// Such as `192.0.2.1:8080/TCP`.
fn text(port: &ipam::HostPort) -> String {
    let protocol = Protocol::from_number(port.protocol)
        .map_or_else(|| format!("protocol {}", port.protocol), |protocol| protocol.to_string());
    match port.host_ip {
        Some(ip) => format!("{}/{protocol}", std::net::SocketAddr::new(ip, port.host_port)),
        None => format!("{}/{protocol}", port.host_port),
    }
}
