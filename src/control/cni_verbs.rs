//! The CNI verbs, carried out.

use std::collections::BTreeSet;

use cni::args::Command;
use cni::error::{CniError, Code};
use cni::handler::{self, Assigned, Attach, Check, Collect, Detach, Verb};
use cni::link::{self, Difference, PodInterface};
use cni::rpc::{CniRequest, CniResponse};
use ipam::{Allocation, Attachment, Bandwidth, Extras, HostPort, PortKind, Wish};

use super::Control;
use super::attach::{AttachError, now_unix_s};
use super::host_ports::HostPortError;
use crate::events::Code as EventCode;

impl Control {
    /// Carries out a CNI request.
    pub fn cni(&mut self, request: &CniRequest) -> CniResponse {
        // What was deleted before this must not be taken for what is asked for now.
        self.take_up_deletions();
        let done = handler::interpret(request).and_then(|verb| match verb {
            Verb::Add(attach) => self.add(&attach).map(Some),
            Verb::Del(detach) => self.del(&detach).map(|()| None),
            Verb::Check(check) => self.check(&check).map(|()| None),
            Verb::Gc(collect) => self.collect(&collect).map(|()| None),
            Verb::Status(conf) => {
                conf.check_network(&self.config.network).and_then(|()| self.available())?;
                Ok(None)
            }
        });
        match done {
            Ok(result) => CniResponse::Result(result),
            Err(error) => {
                let environment = &request.environment;
                // Runtimes ask for the status every few seconds; `weft status` shows the same.
                if environment.command == Command::Status {
                    return CniResponse::Error(error);
                }
                let about: [(&str, &dyn ToString); 3] = [
                    ("command", &environment.command),
                    ("container", &environment.container_id),
                    ("interface", &environment.ifname),
                ];
                self.events().emit(
                    EventCode::CniFailed,
                    format!("CNI request failed: {error}"),
                    &about,
                );
                CniResponse::Error(error)
            }
        }
    }

    fn add(&mut self, attach: &Attach) -> Result<serde_json::Value, CniError> {
        let attachment = attachment(attach);
        let pod = attach.pod.as_ref().map(|pod| ipam::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        });
        let wish = Wish {
            addresses: attach.ips.clone(),
            is_delegated: attach.is_delegated,
            mac: attach.mac.map(ipam::Mac),
        };
        let extras = Extras {
            bandwidth: attach.conf.bandwidth.map(|wanted| Bandwidth {
                ingress_rate_bps: wanted.ingress_rate,
                ingress_burst_bits: wanted.ingress_burst,
                egress_rate_bps: wanted.egress_rate,
                egress_burst_bits: wanted.egress_burst,
            }),
            host_ports: host_ports(attach),
        };
        if attach.conf.is_ipam {
            return self.add_addresses(attach, &attachment, pod, &wish);
        }
        attach.conf.check_network(&self.config.network)?;
        let allocation = self
            .attach(
                &attachment,
                &attach.netns,
                &attach.conf.name,
                (pod, attach.conf.labels.clone()),
                (&wish, extras),
            )
            .map_err(|error| attach_error(&error))?;
        let addresses: Vec<_> = allocation.addresses().map(|ip| ip.to_string()).collect();
        let name = attach.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let (name, addresses) = (name.unwrap_or_default(), addresses.join(" "));
        let about: [(&str, &dyn ToString); 3] =
            [("attachment", &attachment), ("pod", &name), ("addresses", &addresses)];
        self.events().emit(EventCode::PodAttached, "pod attached", &about);
        let assigned = self.assigned(&allocation);
        // A later interface of a pod leaves the default routes to the first.
        let defaults = link::default_gateways(&attach.netns, &attach.ifname, &assigned.gateways)?;
        let result = handler::add_result_via(attach, &assigned, &defaults);
        Ok(result.to_json(attach.conf.version))
    }

    /// Only gives addresses, for the interface that another plugin makes.
    fn add_addresses(
        &mut self,
        attach: &Attach,
        attachment: &Attachment,
        pod: Option<ipam::Pod>,
        wish: &Wish,
    ) -> Result<serde_json::Value, CniError> {
        let allocation = self
            .allocate_only(attachment, &attach.netns, &attach.conf.name, pod, wish)
            .map_err(|error| attach_error(&error))?;
        let assigned = self.assigned(&allocation);
        Ok(handler::ipam_result(attach, &assigned, &self.leases()).to_json(attach.conf.version))
    }

    fn del(&mut self, detach: &Detach) -> Result<(), CniError> {
        let attachment =
            Attachment { container_id: detach.container_id.clone(), ifname: detach.ifname.clone() };
        // What is not there is removed, and a device of the host is no runtime's.
        if self.is_containers(&attachment) {
            self.detach(&attachment).map_err(|error| attach_error(&error))?;
            let about: [(&str, &dyn ToString); 1] = [("attachment", &attachment)];
            self.events().emit(EventCode::PodDetached, "pod detached", &about);
        }
        Ok(())
    }

    /// Releases every attachment of the network that is not listed. Goes on past what cannot be released, and
    /// names it.
    fn collect(&mut self, collect: &Collect) -> Result<(), CniError> {
        let valid: BTreeSet<Attachment> = (collect.valid.iter().cloned())
            .map(|(container_id, ifname)| Attachment { container_id, ifname })
            .collect();
        let gone = self.ipam.iter().filter(|held| {
            held.record.network == collect.network
                && !matches!(held.record.port, PortKind::AfPacket { .. })
                && !valid.contains(&held.attachment)
        });
        let gone: Vec<_> = gone.map(|held| held.attachment.clone()).collect();
        let mut faults = Vec::new();
        for attachment in gone {
            match self.detach(&attachment) {
                Ok(()) => {
                    let text = "pod detached: the runtime does not know it any more";
                    let about: [(&str, &dyn ToString); 1] = [("attachment", &attachment)];
                    self.events().emit(EventCode::PodDetached, text, &about);
                }
                Err(error) => faults.push(format!("{attachment}: {error}")),
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::IO_FAILURE, "not everything could be released")
            .with_details(faults.join("; ")))
    }

    fn check(&mut self, check: &Check) -> Result<(), CniError> {
        let attachment = attachment(&check.attach);
        let Some(allocation) = self.allocation(&attachment).cloned() else {
            return Err(CniError::new(Code::UNKNOWN_CONTAINER, "unknown container")
                .with_details(format!("{attachment} holds no address on this node: call ADD")));
        };
        let assigned = self.assigned(&allocation);
        if matches!(allocation.record.port, PortKind::Foreign { .. }) {
            return as_promised(&handler::missing_addresses(check, &assigned));
        }
        let mut broken = handler::broken_promises(check, &assigned);
        let interface = PodInterface {
            mac: assigned.mac,
            mtu: assigned.mtu,
            addresses: assigned.addresses,
            gateways: assigned.gateways,
        };
        let found = link::check_pod(&check.attach.netns, &attachment.ifname, &interface)
            .map_err(|error| CniError::new(Code::CHECK_FAILED, error.to_string()))?;
        // A plugin behind us may have given it another MTU, which it promised; and the underlay's may have changed.
        // Before 1.1.0 results have no MTU: then a lower one, which does no harm, may be such a plugin's.
        let promised_mtu = handler::promised_mtu(check);
        let is_promised = |difference: &Difference| {
            let found = difference.found.parse::<u32>().ok();
            difference.what == "MTU"
                && found.is_some_and(|mtu| promised_mtu.map_or(mtu < assigned.mtu, |it| it == mtu))
        };
        broken.extend(found.iter().filter(|one| !is_promised(one)).map(ToString::to_string));
        broken.extend(self.broken_host_ports(&allocation, &host_ports(&check.attach)));
        if !self.is_plugged(&attachment) {
            broken.push("port: expected in the switch, found none".to_owned());
        }
        as_promised(&broken)
    }

    /// Whether ADD would work.
    fn available(&self) -> Result<(), CniError> {
        let status = self.status();
        if status.ready {
            let usage = self.ipam.usage(now_unix_s());
            let full = usage.iter().filter(|usage| usage.free() == 0);
            let full: Vec<_> = full.map(|usage| usage.prefix.to_string()).collect();
            if full.is_empty() {
                return Ok(());
            }
            return Err(CniError::new(Code::NOT_AVAILABLE, "pods cannot be attached now")
                .with_details(format!("no address of {} is free", full.join(" and "))));
        }
        let code = if status.pods > 0 { Code::LIMITED } else { Code::NOT_AVAILABLE };
        let details = match status.problems.is_empty() {
            true => format!("the lease is {}", status.lease_state.name()),
            false => {
                let texts: Vec<_> = status.problems.into_iter().map(|p| p.text).collect();
                texts.join("; ")
            }
        };
        Err(CniError::new(code, "pods cannot be attached now").with_details(details))
    }

    fn assigned(&self, allocation: &Allocation) -> Assigned {
        Assigned {
            mac: allocation.mac.0,
            mtu: u32::from(self.pod_mtu()),
            addresses: allocation.addresses().collect(),
            gateways: self.gateways_of(allocation),
        }
    }
}

fn as_promised(broken: &[String]) -> Result<(), CniError> {
    if broken.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::CHECK_FAILED, "the attachment is not as promised")
        .with_details(broken.join("; ")))
}

fn host_ports(attach: &Attach) -> Vec<HostPort> {
    let asked = attach.conf.port_mappings.iter().map(|mapping| HostPort {
        protocol: mapping.protocol.number(),
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        host_ip: mapping.host_ip,
    });
    asked.collect()
}

fn attachment(attach: &Attach) -> Attachment {
    Attachment { container_id: attach.container_id.clone(), ifname: attach.ifname.clone() }
}

fn attach_error(error: &AttachError) -> CniError {
    let code = match error {
        AttachError::Ipam(ipam::Error::Exhausted { .. } | ipam::Error::TooMany)
        | AttachError::RangeExhausted(_)
        | AttachError::TooManyPorts(_) => Code::EXHAUSTED,
        AttachError::Ipam(ipam::Error::NoLease)
        | AttachError::NoLease(_)
        | AttachError::NoUnderlay => Code::TRY_AGAIN_LATER,
        AttachError::Ipam(ipam::Error::Rests { .. }) => Code::TRY_AGAIN_LATER,
        AttachError::Ipam(ipam::Error::Taken { .. } | ipam::Error::MacTaken { .. })
        | AttachError::HostPort(HostPortError::Taken { .. } | HostPortError::Reserved { .. }) => {
            Code::TAKEN
        }
        AttachError::HostPort(_) => Code::INVALID_CONFIG,
        AttachError::Ipam(
            ipam::Error::NotInLease { .. }
            | ipam::Error::Excluded { .. }
            | ipam::Error::TwoOfAFamily(..)
            | ipam::Error::Holds { .. },
        ) => Code::INVALID_CONFIG,
        AttachError::Ipam(_) | AttachError::Addresses(_) => Code::IO_FAILURE,
        AttachError::Told(_) => Code::INVALID_CONFIG,
        AttachError::Engine(_) => Code::INTERNAL,
        AttachError::Device(_)
        | AttachError::Link(_)
        | AttachError::UnknownDevice(_)
        | AttachError::IsPod(_)
        | AttachError::NotUnicast(_)
        | AttachError::OtherMac { .. } => Code::ATTACH_FAILED,
    };
    CniError::new(code, error.to_string())
}
