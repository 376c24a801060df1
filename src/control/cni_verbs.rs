//! The CNI verbs, carried out.

use cni::args::Command;
use cni::error::{CniError, Code};
use cni::handler::{self, Assigned, Attach, Check, Detach, Verb};
use cni::link::{self, PodInterface};
use cni::rpc::{CniRequest, CniResponse};
use ipam::{Allocation, Attachment};

use super::Control;
use super::attach::AttachError;
use crate::events::Code as EventCode;

impl Control {
    /// Carries out a CNI request.
    pub fn cni(&mut self, request: &CniRequest) -> CniResponse {
        let done = handler::interpret(request).and_then(|verb| match verb {
            Verb::Add(attach) => self.add(&attach).map(Some),
            Verb::Del(detach) => self.del(&detach).map(|()| None),
            Verb::Check(check) => self.check(&check).map(|()| None),
            Verb::Status => self.available().map(|()| None),
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
        let allocation = self
            .attach(
                &attachment,
                &attach.netns,
                &attach.conf.name,
                (pod, attach.conf.labels.clone()),
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

    fn del(&mut self, detach: &Detach) -> Result<(), CniError> {
        let attachment =
            Attachment { container_id: detach.container_id.clone(), ifname: detach.ifname.clone() };
        let known = self.allocation(&attachment).is_some();
        self.detach(&attachment).map_err(|error| attach_error(&error))?;
        if known {
            let about: [(&str, &dyn ToString); 1] = [("attachment", &attachment)];
            self.events().emit(EventCode::PodDetached, "pod detached", &about);
        }
        Ok(())
    }

    fn check(&mut self, check: &Check) -> Result<(), CniError> {
        let attachment = attachment(&check.attach);
        let Some(allocation) = self.allocation(&attachment).cloned() else {
            return Err(CniError::new(Code::UNKNOWN_CONTAINER, "unknown container")
                .with_details(format!("{attachment} holds no address on this node: call ADD")));
        };
        let assigned = self.assigned(&allocation);
        let mut broken = handler::broken_promises(check, &assigned);
        let interface = PodInterface {
            mac: assigned.mac,
            mtu: assigned.mtu,
            addresses: assigned.addresses,
            gateways: assigned.gateways,
        };
        let found = link::check_pod(&check.attach.netns, &attachment.ifname, &interface)
            .map_err(|error| CniError::new(Code::CHECK_FAILED, error.to_string()))?;
        broken.extend(found.iter().map(ToString::to_string));
        if !self.is_plugged(&attachment) {
            broken.push("port: expected in the switch, found none".to_owned());
        }
        if broken.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::CHECK_FAILED, "the attachment is not as promised")
            .with_details(broken.join("; ")))
    }

    /// Whether ADD would work.
    fn available(&self) -> Result<(), CniError> {
        let status = self.status();
        if status.ready {
            return Ok(());
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
        AttachError::Ipam(_) => Code::IO_FAILURE,
        AttachError::Told(_) => Code::INVALID_CONFIG,
        AttachError::Engine(_) => Code::INTERNAL,
        AttachError::Device(_)
        | AttachError::Link(_)
        | AttachError::UnknownDevice(_)
        | AttachError::NotUnicast(_)
        | AttachError::OtherMac { .. } => Code::ATTACH_FAILED,
    };
    CniError::new(code, error.to_string())
}
