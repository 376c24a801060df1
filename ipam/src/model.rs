//! Random histories with power cuts, against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::store::{Crash, Step};
use crate::{Allocation, Attachment, Error, Ipam, Mac, PortKind, Record};

/// One step of a history.
#[derive(Debug, Clone)]
enum Action {
    Allocate(u8),
    Release(u8),
    SetLease(u8),
    /// The machine restarts with a new boot id.
    Reboot,
    /// The daemon restarts; some pods are gone.
    Restart {
        alive: u16,
    },
    /// The power goes during the next change.
    Crash {
        after: Step,
        kept_percent: u8,
        /// The directory was not synced: the rename is lost too.
        rename_lost: bool,
    },
}

/// Who was told to hold what.
#[derive(Debug, Default)]
struct Model {
    held: BTreeMap<Attachment, Vec<IpAddr>>,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let step = prop::sample::select(vec![Step::Create, Step::Write, Step::Sync, Step::Rename]);
    let action = prop_oneof![
        8 => (0_u8..12).prop_map(Action::Allocate),
        5 => (0_u8..12).prop_map(Action::Release),
        1 => (0_u8..3).prop_map(Action::SetLease),
        1 => Just(Action::Reboot),
        1 => any::<u16>().prop_map(|alive| Action::Restart { alive }),
        3 => (step, 0_u8..=100, any::<bool>()).prop_map(|(after, kept_percent, rename_lost)| {
            Action::Crash { after, kept_percent, rename_lost }
        }),
    ];
    prop::collection::vec(action, 1..80)
}

fn attachment(id: u8) -> Attachment {
    Attachment { container_id: format!("c{id:02}"), ifname: "eth0".into() }
}

fn record(boot: u32) -> Record {
    Record {
        network: "weft".into(),
        pod: None,
        labels: BTreeMap::new(),
        port: PortKind::AfPacket {
            device: "vnet3".into(),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            had_ipv6: true,
        },
        created_unix_s: 1,
        boot_id: format!("boot-{boot}"),
    }
}

fn lease(ipam: &mut Ipam, choice: u8) -> Result<(), Error> {
    let (v4, v6) = match choice {
        0 => (Some("10.244.1.0/29"), Some("fd00:10:244:1::/64")),
        1 => (Some("10.244.1.0/28"), None),
        _ => (None, Some("fd00:10:244:1::/125")),
    };
    ipam.set_lease(v4.map(|v4| v4.parse().unwrap()), v6.map(|v6| v6.parse().unwrap()))
}

/// What the power cut may have left: the change is either wholly there or not at all.
fn survives(ipam: &Ipam, before: &[Allocation], after: &[Allocation]) -> bool {
    let found: Vec<_> = ipam.iter().cloned().collect();
    found == before || found == after
}

struct History {
    path: PathBuf,
    ipam: Ipam,
    model: Model,
    boot: u32,
    _directory: tempfile::TempDir,
}

impl History {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        let mut ipam = Ipam::open(&path).unwrap();
        lease(&mut ipam, 0).unwrap();
        Self { path, ipam, model: Model::default(), boot: 0, _directory: directory }
    }

    fn snapshot(&self) -> Vec<Allocation> {
        self.ipam.iter().cloned().collect()
    }

    fn reopen(self) -> Self {
        let Self { path, ipam, model, boot, _directory } = self;
        drop(ipam);
        Self { ipam: Ipam::open(&path).unwrap(), path, model, boot, _directory }
    }

    fn act(mut self, action: &Action) -> Self {
        match action {
            Action::Allocate(id) => {
                let known = self.model.held.get(&attachment(*id)).cloned();
                let free_before = self.ipam.usage();
                match self.ipam.allocate(&attachment(*id), record(self.boot)) {
                    Ok(allocation) => {
                        let addresses: Vec<_> = allocation.addresses().collect();
                        if let Some(known) = known {
                            assert_eq!(addresses, known, "the same answer again");
                        }
                        self.model.held.insert(attachment(*id), addresses);
                    }
                    Err(Error::Exhausted { prefix, used }) => {
                        assert!(known.is_none(), "a holder is never refused");
                        let usage =
                            free_before.iter().find(|usage| usage.prefix == prefix).unwrap();
                        assert_eq!(usage.capacity, used as u128, "exhausted only when full");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            Action::Release(id) => {
                let released = self.ipam.release(&attachment(*id)).unwrap();
                let known = self.model.held.remove(&attachment(*id));
                assert_eq!(released.map(|gone| gone.addresses().collect()), known);
            }
            Action::SetLease(choice) => lease(&mut self.ipam, *choice).unwrap(),
            Action::Reboot => {
                self = self.reopen();
                self.boot += 1;
                self.ipam.reconcile(&format!("boot-{}", self.boot), |_| true).unwrap();
                self.model.held.clear();
            }
            Action::Restart { alive } => {
                self = self.reopen();
                let lives = |who: &Attachment| {
                    let id: u8 = who.container_id[1..].parse().unwrap();
                    alive >> id & 1 == 1
                };
                let boot = format!("boot-{}", self.boot);
                self.ipam.reconcile(&boot, |allocation| lives(&allocation.attachment)).unwrap();
                self.model.held.retain(|who, _| lives(who));
            }
            Action::Crash { after, kept_percent, rename_lost } => {
                let old_file = fs::read(&self.path).unwrap();
                let before = self.snapshot();
                self.ipam.store.crash = Some(Crash { after: *after, kept_percent: *kept_percent });
                let newcomer = Attachment { container_id: "crash".into(), ifname: "eth0".into() };
                if self.ipam.allocate(&newcomer, record(self.boot)).is_ok() {
                    panic!("acknowledged although the power went");
                }
                let wrote = self.ipam.store.crash.take().is_none();
                if *after == Step::Rename && *rename_lost && wrote {
                    fs::write(&self.path, &old_file).unwrap();
                }
                let mut whole = before.clone();
                self = self.reopen();
                whole.extend(self.ipam.get(&newcomer).cloned());
                whole.sort_by(|a, b| a.attachment.cmp(&b.attachment));
                assert!(survives(&self.ipam, &before, &whole));
                // The runtime was told nothing, so it deletes.
                self.ipam.release(&newcomer).unwrap();
            }
        }
        self
    }

    fn check(&self) {
        let found: BTreeMap<_, Vec<_>> = self
            .ipam
            .iter()
            .map(|allocation| (allocation.attachment.clone(), allocation.addresses().collect()))
            .collect();
        assert_eq!(found, self.model.held, "nothing lost, nothing invented");
        let mut seen = BTreeSet::new();
        for address in self.model.held.values().flatten() {
            assert!(seen.insert(*address), "{address} is held twice");
        }
        for reserved in ["10.244.1.0", "10.244.1.1", "fd00:10:244:1::", "fd00:10:244:1::1"] {
            assert!(!seen.contains(&reserved.parse().unwrap()), "{reserved} was handed out");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn histories_with_power_cuts_follow_the_model(actions in actions()) {
        let mut history = History::new();
        for action in &actions {
            history = history.act(action);
            history.check();
        }
        let last = history.reopen();
        last.check();
    }
}
