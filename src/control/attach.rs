//! Ports for pods: address, device, port in the switch, in this order; and back in the reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cni::link::{self, LinkError, PodInterface};
use ipam::{Allocation, Attachment, Bandwidth, Extras, PortKind, Record, Wish};
use overlay::pods::PodError;
use vswitch::engine::EngineError;
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::shape::{Limits, Rate, Shaper};

use super::compile;
use super::device::{self, Device, DeviceError};
use super::host_ports::HostPortError;
use super::{Control, Topic};
use crate::admin::api::{LeasePhase, PodStatus, ProblemTopic};
use crate::events::Code as EventCode;

/// What `container_id` is for the port of a device of the host: `ifname` names the device.
pub(super) const DEVICE_CONTAINER: &str = "host-device";

/// Why a pod could not be attached or detached. Nothing of it is left behind then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no address for it, or the allocation could not be stored.
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    /// The number of ports is limited.
    #[error("this node has {0} ports, the most it may have: raise ports_max under [switch]")]
    TooManyPorts(u16),
    /// The node holds no subnet at present.
    #[error("this node has no subnet: {0}")]
    NoLease(String),
    /// Every subnet of the cluster range is some other node's.
    #[error("this node has no subnet: {0}")]
    RangeExhausted(String),
    /// The underlay is not known, so neither is the MTU.
    #[error("the underlay address is not known yet, and so neither is the MTU; try again later")]
    NoUnderlay,
    /// The device could not be opened or removed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Addresses, routes or MTU could not be set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Other nodes could not be told of it.
    #[error(transparent)]
    Told(#[from] PodError),
    /// A port of the node cannot lead to it.
    #[error(transparent)]
    HostPort(#[from] HostPortError),
    /// Which addresses the node has cannot be told.
    #[error(transparent)]
    Addresses(#[from] overlay::error::Error),
    /// The switch did not take the port.
    #[error("the switch did not take the port: {0}")]
    Engine(#[from] EngineError),
    /// There is no such port.
    #[error("device {0} is not a port of this switch: `weft pods --local` lists those that are")]
    UnknownDevice(String),
    /// The interface is ours, and another plugin asks for its addresses.
    #[error("{0} is an interface of this plugin already: remove it first (DEL)")]
    IsPod(Attachment),
    /// The address cannot be an interface's.
    #[error("{0} cannot be the address of an interface: give the MAC address behind the device")]
    NotUnicast(Mac),
    /// The device already is the port of an interface with another address.
    #[error(
        "device {device} already is a port for {mac}: remove that first (`weft port remove {device}`)"
    )]
    OtherMac {
        /// The device.
        device: String,
        /// The address it was attached with.
        mac: Mac,
    },
}

/// An attached pod or device.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) port: PortIx,
    pub(super) mtu: u16,
    pub(super) device: Device,
    pub(super) opened: Instant,
    /// What limits its rates, if anything does.
    shaper: Option<Shaper>,
    /// Packets of the pod that the kernel dropped before the switch saw them.
    pub(super) kernel_dropped: u64,
    mac: Mac,
    addresses: Vec<IpAddr>,
    is_pod: bool,
}

impl Attached {
    /// The rate limits in force.
    fn limits(&self) -> Limits {
        self.shaper.as_ref().map(Shaper::limits).unwrap_or_default()
    }

    /// As it stands in the tables, without the addresses that other nodes' pods have.
    pub(super) fn to_table(&self, cut_off: &BTreeSet<IpAddr>) -> compile::Pod {
        let addresses = self.addresses.iter().copied();
        let addresses = addresses.filter(|address| !cut_off.contains(address)).collect();
        let Self { port, mac, mtu, is_pod, .. } = *self;
        compile::Pod { port, mac, mtu, addresses, is_pod }
    }
}

impl Control {
    /// What an attachment holds.
    pub(super) fn allocation(&self, attachment: &Attachment) -> Option<&Allocation> {
        self.ipam.get(attachment)
    }

    /// Whether an attachment has its port in the switch.
    pub(super) fn is_plugged(&self, attachment: &Attachment) -> bool {
        self.attached.contains_key(attachment)
    }

    /// Attaches a pod, or says how it is attached already: repeating it gives the same answer.
    pub(super) fn attach(
        &mut self,
        attachment: &Attachment,
        netns_path: &Path,
        network: &str,
        (pod, labels): (Option<ipam::Pod>, BTreeMap<String, String>),
        (wish, extras): (&Wish, Extras),
    ) -> Result<Allocation, AttachError> {
        self.check_ready()?;
        let record = Record {
            network: network.to_owned(),
            pod,
            labels,
            port: PortKind::Tap { netns: device::identify(netns_path)? },
            extras,
            created_unix_s: now_unix_s(),
            boot_id: self.identity.boot_id.clone(),
        };
        self.check_told(attachment, &record)?;
        self.check_host_ports(attachment, &record)?;
        let known = self.ipam.get(attachment).cloned();
        let moved = known.as_ref().is_some_and(|known| known.record.port != record.port);
        if moved {
            // The runtime made a new sandbox under the old id: the old device is of no use.
            self.drop_port(attachment)?;
        }
        if moved && known.as_ref().is_some_and(|known| known.outside_lease) {
            // A new pod gets an address that other nodes can reach.
            self.ipam.release(attachment, now_unix_s())?;
        }
        let allocation = self.ipam.allocate(attachment, record, wish)?;
        if let Err(error) = self.give_host_ports(&allocation) {
            match known {
                None => self.detach(attachment)?,
                Some(known) => {
                    self.ipam.allocate(attachment, known.record, &Wish::default())?;
                }
            }
            return Err(error.into());
        }
        // Before the port is there: from its first frame on it has its policies, or is shut.
        if known.is_none()
            && let Some(pod) = &allocation.record.pod
        {
            self.forget_remembered_pod(pod);
        }
        self.take_up_own_pods();
        let allocation = self.plug_or_release(known.is_none(), allocation)?;
        self.limit(&allocation)?;
        self.tell_pods();
        self.watch_addresses();
        Ok(allocation)
    }

    /// Gives addresses to an interface that another plugin makes.
    pub(super) fn allocate_only(
        &mut self,
        attachment: &Attachment,
        netns_path: &Path,
        network: &str,
        pod: Option<ipam::Pod>,
        wish: &Wish,
    ) -> Result<Allocation, AttachError> {
        self.check_ready()?;
        let record = Record {
            network: network.to_owned(),
            pod,
            labels: BTreeMap::new(),
            port: PortKind::Foreign { netns: device::identify(netns_path)? },
            extras: Extras::default(),
            created_unix_s: now_unix_s(),
            boot_id: self.identity.boot_id.clone(),
        };
        if self.is_plugged(attachment) {
            return Err(AttachError::IsPod(attachment.clone()));
        }
        let allocation = self.ipam.allocate(attachment, record, wish)?;
        self.watch_addresses();
        Ok(allocation)
    }

    /// Detaches a pod. That it is not attached, or that its namespace is gone, is no error.
    pub(super) fn detach(&mut self, attachment: &Attachment) -> Result<(), AttachError> {
        let dropped = self.drop_port(attachment);
        if let Some(allocation) = self.ipam.get(attachment) {
            device::remove_leftover(allocation)?;
        }
        dropped?;
        self.ipam.release(attachment, now_unix_s())?;
        self.end_host_ports(attachment);
        self.clear(&Topic::Pod(attachment.clone()));
        self.clear(&Topic::Told(attachment.clone()));
        self.tell_pods();
        self.watch_addresses();
        Ok(())
    }

    /// Attaches again, after a start, whatever the last run had attached. What is gone is released.
    ///
    /// # Errors
    /// When the released addresses cannot be stored.
    pub fn reattach(&mut self) -> Result<(), AttachError> {
        self.take_up_deletions();
        let boot_id = self.identity.boot_id.clone();
        for gone in self.ipam.reconcile(&boot_id, now_unix_s(), device::may_be_alive)? {
            let text = "pod is gone, its addresses are free again";
            self.events().emit(EventCode::PodGone, text, &[("attachment", &gone.attachment)]);
        }
        self.resume_host_ports();
        self.take_up_own_pods();
        self.plug_missing();
        self.tell_pods();
        self.watch_addresses();
        Ok(())
    }

    /// Makes the ports that are not there, of all that hold addresses.
    pub(super) fn plug_missing(&mut self) {
        let missing = self.ipam.iter().filter(|held| {
            let is_foreign = matches!(held.record.port, PortKind::Foreign { .. });
            !is_foreign && !self.attached.contains_key(&held.attachment)
        });
        for allocation in missing.cloned().collect::<Vec<_>>() {
            let plugged = self.plug(&allocation).and_then(|()| self.configure(&allocation));
            let attachment = allocation.attachment;
            match plugged {
                Ok(()) => self.clear(&Topic::Pod(attachment)),
                Err(error) => {
                    let problem = format!(
                        "pod {attachment} has no network: {error}. It is tried again; if its container is gone, \
                         let the runtime call DEL"
                    );
                    self.raise(Topic::Pod(attachment), problem);
                }
            }
        }
    }

    /// Takes a port whose interface vanished out of the switch; it is made anew by
    /// [`Control::plug_missing`].
    pub(super) fn lose_port(&mut self, port: PortIx, why: &str) {
        let found = self.attached.iter().find(|(_, attached)| attached.port == port);
        let Some(attachment) = found.map(|(attachment, _)| attachment.clone()) else {
            return;
        };
        let text = format!("the pod's interface vanished: {why}");
        self.events().emit(EventCode::PodInterfaceLost, text, &[("attachment", &attachment)]);
        if let Err(error) = self.drop_port(&attachment) {
            self.raise(Topic::Pod(attachment), error.to_string());
        }
    }

    /// Makes a device of the host a port, with an address of its own out of the lease.
    ///
    /// # Errors
    /// When the device does not exist, is in use, or no address or port is free.
    pub fn attach_device(&mut self, device: &str, mac: Mac) -> Result<PodStatus, AttachError> {
        self.check_ready()?;
        if !mac.is_unicast() {
            return Err(AttachError::NotUnicast(mac));
        }
        let attachment = device_attachment(device);
        if let Some(known) = self.ipam.get(&attachment).cloned() {
            if known.mac.0 != mac.0 {
                let mac = Mac(known.mac.0);
                return Err(AttachError::OtherMac { device: device.to_owned(), mac });
            }
            let known = self.plug_or_release(false, known)?;
            return Ok(self.pod(&known));
        }
        let underlay = self.underlay.iter().map(|underlay| underlay.interface.as_str());
        let own: Vec<_> = underlay.chain([self.config.host.interface.as_str()]).collect();
        let had_ipv6 = device::check_host_device(device, &own)?;
        let (name, mac) = (device.to_owned(), ipam::Mac(mac.0));
        let record = Record {
            network: self.config.network.clone(),
            pod: None,
            labels: BTreeMap::new(),
            port: PortKind::AfPacket { device: name, mac, had_ipv6 },
            extras: Extras::default(),
            created_unix_s: now_unix_s(),
            boot_id: self.identity.boot_id.clone(),
        };
        let allocation = self.ipam.allocate(&attachment, record, &Wish::default())?;
        let allocation = self.plug_or_release(true, allocation)?;
        self.tell_pods();
        self.watch_addresses();
        Ok(self.pod(&allocation))
    }

    /// Takes a device of the host out of the switch.
    ///
    /// # Errors
    /// When it is no port.
    pub fn detach_device(&mut self, device: &str) -> Result<(), AttachError> {
        let attachment = device_attachment(device);
        if self.ipam.get(&attachment).is_none() {
            return Err(AttachError::UnknownDevice(device.to_owned()));
        }
        self.detach(&attachment)
    }

    /// Sets all pods' interfaces to the MTU that the underlay allows, and to the gateways of the lease.
    pub(super) fn configure_all(&mut self) {
        let mtu = self.pod_mtu();
        for attached in self.attached.values_mut() {
            attached.mtu = mtu;
        }
        let attachments: Vec<Attachment> = self.attached.keys().cloned().collect();
        for attachment in attachments {
            let Some(allocation) = self.ipam.get(&attachment) else { continue };
            match self.configure(allocation) {
                Ok(()) => self.clear(&Topic::Pod(attachment)),
                Err(error) => {
                    let problem = format!("pod {attachment} keeps its old MTU and routes: {error}");
                    self.raise(Topic::Pod(attachment), problem);
                }
            }
        }
    }

    /// Whether addresses can be handed out: a lease that was lost must not be used for new pods.
    fn check_ready(&self) -> Result<(), AttachError> {
        if self.underlay.is_none() {
            return Err(AttachError::NoUnderlay);
        }
        let why = || match self.problems.get(&Topic::Node(ProblemTopic::Lease)) {
            Some(problem) => problem.clone(),
            None => format!("its lease is {}; try again later", self.lease_phase.name()),
        };
        match self.lease_phase {
            LeasePhase::Held => Ok(()),
            LeasePhase::Exhausted => Err(AttachError::RangeExhausted(why())),
            LeasePhase::Waiting
            | LeasePhase::Claiming
            | LeasePhase::Returning
            | LeasePhase::Blocked
            | LeasePhase::Suspended
            | LeasePhase::Left => Err(AttachError::NoLease(why())),
        }
    }

    /// Makes the device and the port of an allocation, unless they are there.
    fn plug(&mut self, allocation: &Allocation) -> Result<(), AttachError> {
        let attachment = &allocation.attachment;
        if self.attached.contains_key(attachment) {
            return Ok(());
        }
        // Before the device is made, so that nothing is left when there is none.
        let port = self.numbers.take();
        let port = port.ok_or(AttachError::TooManyPorts(self.config.switch.ports_max))?;
        let device = match Device::open(attachment, &allocation.record.port) {
            Ok(device) => device,
            Err(error) => {
                self.numbers.put(port);
                return Err(error.into());
            }
        };
        let limits = limits_of(allocation.record.extras.bandwidth);
        let halves = device.port(port, self.engine.workers(), self.long_frames.allowed());
        let shaped = match limits.is_none() {
            true => Ok((halves, None)),
            false => device.shaped(port, halves, limits, self.long_frames.allowed()),
        };
        let (halves, shaper) = match shaped {
            Ok(shaped) => shaped,
            Err(error) => {
                self.numbers.put(port);
                return Err(error.into());
            }
        };
        let attached = Attached {
            port,
            mtu: self.pod_mtu(),
            mac: Mac(allocation.mac.0),
            addresses: allocation.addresses().collect(),
            is_pod: allocation.record.pod.is_some(),
            device,
            opened: Instant::now(),
            shaper,
            kernel_dropped: 0,
        };
        // The tables first: from its first frame on, the port is known and held to its own addresses.
        self.attached.insert(attachment.clone(), attached);
        self.publish();
        if let Err(error) = self.engine.add_port(port, halves) {
            // Only closed: what a running pod has must not be removed.
            self.unplug(attachment)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Puts the rate limits of an attachment in force, also if its port is there already.
    fn limit(&mut self, allocation: &Allocation) -> Result<(), AttachError> {
        let limits = limits_of(allocation.record.extras.bandwidth);
        let attached = self.attached.get(&allocation.attachment);
        let Some(attached) = attached.filter(|attached| attached.limits() != limits) else {
            return Ok(());
        };
        if let Some(shaper) = &attached.shaper {
            return Ok(shaper.set(limits).map_err(DeviceError::Shape)?);
        }
        // The port is made anew, with something in it that limits. The device stays.
        self.unplug(&allocation.attachment)?;
        self.plug(allocation)
    }

    /// Plugs and configures, and takes back what was allocated if that fails.
    fn plug_or_release(
        &mut self,
        is_new: bool,
        allocation: Allocation,
    ) -> Result<Allocation, AttachError> {
        let done = self.plug(&allocation).and_then(|()| self.configure(&allocation));
        match done {
            Ok(()) => Ok(allocation),
            Err(error) => {
                if is_new {
                    self.detach(&allocation.attachment)?;
                }
                Err(error)
            }
        }
    }

    /// Gives a pod's interface its addresses, routes and MTU.
    fn configure(&self, allocation: &Allocation) -> Result<(), AttachError> {
        let Some(netns) = allocation.record.port.netns() else {
            return Ok(());
        };
        let interface = PodInterface {
            mac: allocation.mac.0,
            mtu: u32::from(self.pod_mtu()),
            addresses: allocation.addresses().collect(),
            gateways: self.gateways_of(allocation),
        };
        Ok(link::configure_pod(&netns.path, &allocation.attachment.ifname, &interface)?)
    }

    /// The gateways of the families that the pod has an address of.
    pub(super) fn gateways_of(&self, allocation: &Allocation) -> Vec<IpAddr> {
        let mut gateways = self.gateways();
        gateways.retain(|gateway| match gateway {
            IpAddr::V4(_) => allocation.v4.is_some(),
            IpAddr::V6(_) => allocation.v6.is_some(),
        });
        gateways
    }

    /// Takes a port out of the switch and removes its device.
    fn drop_port(&mut self, attachment: &Attachment) -> Result<(), AttachError> {
        if let Some(device) = self.unplug(attachment)? {
            device.remove();
        }
        Ok(())
    }

    /// Takes a port out of the switch.
    fn unplug(&mut self, attachment: &Attachment) -> Result<Option<Device>, AttachError> {
        let Some(attached) = self.attached.remove(attachment) else {
            return Ok(None);
        };
        if let Some(shaper) = &attached.shaper {
            shaper.release().map_err(DeviceError::Shape)?;
        }
        self.publish();
        // A worker that hangs may still use the number; then it is not given out again.
        self.engine.remove_port(attached.port)?;
        self.numbers.put(attached.port);
        Ok(Some(self.retire(attached.device)))
    }
}

fn limits_of(bandwidth: Option<Bandwidth>) -> Limits {
    let rate = |rate_bps, burst_bits| (rate_bps > 0).then_some(Rate { rate_bps, burst_bits });
    let Bandwidth { ingress_rate_bps, ingress_burst_bits, egress_rate_bps, egress_burst_bits } =
        bandwidth.unwrap_or_default();
    Limits {
        to_pod: rate(ingress_rate_bps, ingress_burst_bits),
        from_pod: rate(egress_rate_bps, egress_burst_bits),
    }
}

fn device_attachment(device: &str) -> Attachment {
    Attachment { container_id: DEVICE_CONTAINER.to_owned(), ifname: device.to_owned() }
}

/// Seconds since 1970 (UTC).
pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
