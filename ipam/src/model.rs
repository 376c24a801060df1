//! Random histories with power cuts, against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::store::{Crash, Step};
use crate::{
    Allocation, Attachment, Error, Extras, Ipam, Mac, Pod, Policy, PortKind, Record, Usage, Wish,
};

/// One step of a history.
#[derive(Debug, Clone)]
enum Action {
    Allocate(u8),
    /// With an address that is asked for: the so-manieth of the lease.
    Ask(u8, u8),
    Release(u8),
    /// Only these are valid still.
    Collect {
        valid: u16,
    },
    /// Time passes, in seconds.
    Wait(u8),
    /// An operator ends the rest of an address.
    Wake(u8),
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
    /// Who had an address last, and when it was given back.
    released: BTreeMap<IpAddr, (Attachment, u64)>,
}

const DELAY_S: u64 = 60;

impl Model {
    fn release(&mut self, who: &Attachment, now: u64) -> Option<Vec<IpAddr>> {
        let held = self.held.remove(who)?;
        for address in &held {
            self.released.insert(*address, (who.clone(), now));
        }
        Some(held)
    }

    fn release_unless(&mut self, now: u64, keep: impl Fn(&Attachment) -> bool) {
        let gone: Vec<_> = self.held.keys().filter(|who| !keep(who)).cloned().collect();
        for who in gone {
            self.release(&who, now);
        }
    }

    fn rests(&self, address: IpAddr, now: u64) -> bool {
        self.released.get(&address).is_some_and(|(_, at)| now - at < DELAY_S)
    }
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let step = prop::sample::select(vec![Step::Create, Step::Write, Step::Sync, Step::Rename]);
    let action = prop_oneof![
        8 => (0_u8..12).prop_map(Action::Allocate),
        2 => (0_u8..12, 0_u8..8).prop_map(|(id, nth)| Action::Ask(id, nth)),
        6 => (0_u8..12).prop_map(Action::Release),
        1 => any::<u16>().prop_map(|valid| Action::Collect { valid }),
        4 => (0_u8..100).prop_map(Action::Wait),
        1 => (0_u8..8).prop_map(Action::Wake),
        1 => (0_u8..3).prop_map(Action::SetLease),
        1 => Just(Action::Reboot),
        1 => any::<u16>().prop_map(|alive| Action::Restart { alive }),
        3 => (step, 0_u8..=100, any::<bool>()).prop_map(|(after, kept_percent, rename_lost)| {
            Action::Crash { after, kept_percent, rename_lost }
        }),
    ];
    prop::collection::vec(action, 1..120)
}

fn attachment(id: u8) -> Attachment {
    Attachment { container_id: format!("c{id:02}"), ifname: "eth0".into() }
}

fn number(who: &Attachment) -> u8 {
    who.container_id[1..].parse().unwrap()
}

fn record(id: u8, boot: u32, now: u64) -> Record {
    Record {
        network: "weft".into(),
        // Two containers have one name, as a pod that is made anew.
        pod: Some(Pod { namespace: "default".into(), name: format!("p{}", id / 2), uid: None }),
        labels: BTreeMap::new(),
        port: PortKind::AfPacket {
            device: "vnet3".into(),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            had_ipv6: true,
        },
        extras: Extras::default(),
        created_unix_s: now,
        boot_id: format!("boot-{boot}"),
    }
}

fn nth(n: u8) -> IpAddr {
    IpAddr::from([10, 244, 1, n])
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
    now: u64,
    policy: Policy,
    _directory: tempfile::TempDir,
}

impl History {
    fn new(sticky: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        let mut ipam = Ipam::open(&path).unwrap();
        let excluded =
            vec!["10.244.1.3/32".parse().unwrap(), "fd00:10:244:1::/126".parse().unwrap()];
        let policy = Policy { reuse_delay_s: DELAY_S, excluded, sticky };
        ipam.set_policy(policy.clone()).unwrap();
        lease(&mut ipam, 0).unwrap();
        let (model, now) = (Model::default(), 1_800_000_000);
        Self { path, ipam, model, boot: 0, now, policy, _directory: directory }
    }

    fn snapshot(&self) -> Vec<Allocation> {
        self.ipam.iter().cloned().collect()
    }

    fn reopen(self) -> Self {
        let Self { path, ipam, model, boot, now, policy, _directory } = self;
        drop(ipam);
        let mut ipam = Ipam::open(&path).unwrap();
        ipam.set_policy(policy.clone()).unwrap();
        Self { ipam, path, model, boot, now, policy, _directory }
    }

    fn allocate(&mut self, id: u8, asked: Option<IpAddr>) {
        let who = attachment(id);
        let known = self.model.held.get(&who).cloned();
        let (usage, shortened) = (self.ipam.usage(self.now), self.ipam.shortened());
        let wish = Wish { addresses: asked.into_iter().collect(), ..Wish::default() };
        let answer = self.ipam.allocate(&who, record(id, self.boot, self.now), &wish);
        let holder = |address| self.model.held.iter().find(|(_, held)| held.contains(&address));
        match answer {
            Ok(allocation) => {
                let addresses: Vec<_> = allocation.addresses().collect();
                if let Some(known) = known {
                    assert_eq!(addresses, known, "the same answer again");
                    return;
                }
                assert!(asked.is_none_or(|asked| addresses.contains(&asked)), "{asked:?}");
                let same_pod = |(former, _): &(Attachment, u64)| number(former) / 2 == id / 2;
                let resting =
                    addresses.iter().copied().filter(|ip| self.model.rests(*ip, self.now));
                let (own, early): (Vec<IpAddr>, Vec<IpAddr>) = resting.partition(|address| {
                    let may = self.policy.sticky || asked == Some(*address);
                    may && self.model.released.get(address).is_some_and(same_pod)
                });
                let early = early.len() as u64;
                // A pod's own former address may also be the one that has rested longest.
                let counted = early..=early + own.len() as u64;
                let found = self.ipam.shortened() - shortened;
                assert!(counted.contains(&found), "{addresses:?}: {found}");
                for address in &addresses {
                    let prefix = usage.iter().find(|usage| usage.prefix.contains(*address));
                    let Usage { capacity, used, resting, .. } = *prefix.unwrap();
                    if early > 0 && self.ipam.shortened() > shortened && addresses.len() == 1 {
                        assert_eq!(capacity, (used + resting) as u128, "only when none was free");
                    }
                }
                self.model.held.insert(who, addresses);
            }
            Err(Error::Exhausted { prefix, used }) => {
                assert!(known.is_none(), "a holder is never refused");
                let usage = usage.iter().find(|usage| usage.prefix == prefix).unwrap();
                assert_eq!(usage.capacity, used as u128, "exhausted only when full");
            }
            Err(Error::Taken { address, .. }) => {
                assert!(holder(address).is_some_and(|(holder, _)| *holder != who));
            }
            Err(Error::Rests { address, .. }) => {
                assert!(self.model.rests(address, self.now) && asked == Some(address));
            }
            Err(Error::Holds { .. }) => {
                assert!(known.is_some_and(|known| !known.contains(&asked.unwrap())));
            }
            Err(Error::Excluded { address, .. }) => assert_eq!(address, nth(3)),
            Err(Error::NotInLease { address, .. }) => {
                let (v4, _) = self.ipam.lease();
                let pool = v4.map(|v4| crate::Pool::new(v4.into()).unwrap());
                assert!(pool.is_none_or(|pool| !pool.contains(address)));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn act(mut self, action: &Action) -> Self {
        match action {
            Action::Allocate(id) => self.allocate(*id, None),
            Action::Ask(id, n) => self.allocate(*id, Some(nth(*n))),
            Action::Release(id) => {
                let released = self.ipam.release(&attachment(*id), self.now).unwrap();
                let known = self.model.release(&attachment(*id), self.now);
                assert_eq!(released.map(|gone| gone.addresses().collect()), known);
            }
            Action::Collect { valid } => {
                let is_valid = |who: &Attachment| valid >> number(who) & 1 == 1;
                let boot = format!("boot-{}", self.boot);
                let keep = |held: &Allocation| is_valid(&held.attachment);
                self.ipam.reconcile(&boot, self.now, keep).unwrap();
                self.model.release_unless(self.now, is_valid);
            }
            Action::Wait(seconds) => {
                self.now += u64::from(*seconds);
            }
            Action::Wake(n) => {
                self.ipam.wake(nth(*n)).unwrap();
                self.model.released.remove(&nth(*n));
            }
            Action::SetLease(choice) => lease(&mut self.ipam, *choice).unwrap(),
            Action::Reboot => {
                self = self.reopen();
                self.boot += 1;
                let boot = format!("boot-{}", self.boot);
                self.ipam.reconcile(&boot, self.now, |_| true).unwrap();
                self.model.release_unless(self.now, |_| false);
            }
            Action::Restart { alive } => {
                self = self.reopen();
                let lives = |who: &Attachment| alive >> number(who) & 1 == 1;
                let boot = format!("boot-{}", self.boot);
                let keep = |held: &Allocation| lives(&held.attachment);
                self.ipam.reconcile(&boot, self.now, keep).unwrap();
                self.model.release_unless(self.now, lives);
            }
            Action::Crash { after, kept_percent, rename_lost } => {
                let old_file = fs::read(&self.path).unwrap();
                let before = self.snapshot();
                self.ipam.store.crash = Some(Crash { after: *after, kept_percent: *kept_percent });
                let newcomer = Attachment { container_id: "c99".into(), ifname: "eth0".into() };
                if self
                    .ipam
                    .allocate(&newcomer, record(99, self.boot, self.now), &Wish::default())
                    .is_ok()
                {
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
                if let Some(held) = self.ipam.release(&newcomer, self.now).unwrap() {
                    self.model.held.insert(newcomer.clone(), held.addresses().collect());
                    self.model.release(&newcomer, self.now);
                }
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
        for reserved in [
            "10.244.1.0",
            "10.244.1.1",
            "10.244.1.3",
            "fd00:10:244:1::2",
            "fd00:10:244:1::",
            "fd00:10:244:1::1",
        ] {
            assert!(!seen.contains(&reserved.parse().unwrap()), "{reserved} was handed out");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn histories_with_power_cuts_follow_the_model(actions in actions(), sticky: bool) {
        let mut history = History::new(sticky);
        for action in &actions {
            history = history.act(action);
            history.check();
        }
        let last = history.reopen();
        last.check();
    }
}
