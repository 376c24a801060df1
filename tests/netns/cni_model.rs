//! Random ADD, DEL, CHECK, GC, kill, restart and reboot against a model that is too simple to be wrong: no address is
//! held twice, none is lost, none is given to somebody else before it has rested, and a host port has one holder.
//!
//! The daemon is the real one, and so is the plugin, but for its process. Half of the containers get interfaces, the
//! others only addresses, as from an IPAM plugin. `WEFT_SOAK_SECONDS` gives it its full length:
//!
//! ```console
//! # WEFT_SOAK_SECONDS=60 cargo test --test netns cni_model -- --nocapture
//! ```

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{TestLab, may_make_labs};
use cni::plugin::{self, Outcome};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use weft::lab::{LabConfig, Namespace, socket};

const NODE: &str = "n1";
const CONTAINERS: usize = 12;
const REUSE_DELAY: Duration = Duration::from_secs(2);
/// The daemon counts whole seconds.
const RESOLUTION: Duration = Duration::from_secs(1);

/// Set in a process that has its mounts for itself, where the boot id can be another one.
const PRIVATE: &str = "WEFT_TEST_PRIVATE_MOUNTS";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[test]
fn ten_thousand_steps_hold_no_address_twice_and_lose_none() {
    if !may_make_labs() {
        return;
    }
    if std::env::var_os(PRIVATE).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", &name, "--nocapture"]);
        let status = command.env(PRIVATE, "1").status().unwrap();
        assert!(status.success(), "it failed with mounts of its own");
        return;
    }
    let steps = if std::env::var_os("WEFT_SOAK_SECONDS").is_some() { 10_000 } else { 1_500 };
    let seed = 20_261_130;
    let mut world = World::new(seed);
    for step in 0..steps {
        world.step();
        if step % 50 == 0 {
            world.compare(&format!("after step {step} of seed {seed}"));
        }
    }
    world.start();
    world.compare("at the end");
    eprintln!("{steps} steps: {:?}", world.done);
    world.end();
}

struct World {
    lab: TestLab,
    random: StdRng,
    boot_file: PathBuf,
    namespaces: Vec<Namespace>,
    is_up: bool,
    held: BTreeMap<usize, Vec<IpAddr>>,
    /// Results of ADD, for CHECK.
    results: BTreeMap<usize, Value>,
    /// Who had an address last, and when it was given back at the latest.
    released: BTreeMap<IpAddr, (usize, Instant)>,
    /// Deleted while no daemon ran.
    noted: BTreeSet<usize>,
    shortened: u64,
    boots: u32,
    done: BTreeMap<&'static str, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let boot_file = std::env::temp_dir().join(format!("weft-boot-id-{}", std::process::id()));
        fs::write(&boot_file, "boot-0\n").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&boot_file).arg(BOOT_ID).status();
        assert!(mounted.unwrap().success());
        let extra = format!("[ipam]\nreuse_delay_s = {}\n", REUSE_DELAY.as_secs());
        let config =
            LabConfig { nodes: 1, pods_per_node: 0, ipv6: false, extra, ..LabConfig::new("model") };
        // In memory: it is processes that are killed, and a disk takes most of the time to sync.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory } else { Path::new("/tmp") };
        let lab = TestLab::up_in(place, config);
        let mut world = Self {
            lab,
            random: StdRng::seed_from_u64(seed),
            boot_file,
            namespaces: Vec::new(),
            is_up: true,
            held: BTreeMap::new(),
            results: BTreeMap::new(),
            released: BTreeMap::new(),
            noted: BTreeSet::new(),
            shortened: 0,
            boots: 0,
            done: BTreeMap::new(),
        };
        world.make_namespaces();
        world
    }

    fn make_namespaces(&mut self) {
        let dir = self.lab.dir().join("ns");
        let make = |n| Namespace::create(dir.join(format!("c{n}"))).unwrap();
        self.namespaces = (0..CONTAINERS).map(make).collect();
    }

    fn step(&mut self) {
        let who = self.random.random_range(0..CONTAINERS);
        match self.random.random_range(0..1000) {
            0..440 => self.add(who),
            440..800 => self.del(who),
            800..940 => self.check(who),
            940..975 => self.collect(),
            975..984 => self.kill(),
            984..998 => self.start(),
            _ => self.reboot(),
        }
    }

    fn add(&mut self, who: usize) {
        self.count("ADD");
        let called = Instant::now();
        let outcome = self.call("ADD", who, &Value::Null);
        if !self.is_up {
            assert_eq!(code(&outcome), Some(11), "{outcome:?}");
            return;
        }
        if let Some(port) = host_port(who)
            && self.held.keys().any(|other| *other != who && host_port(*other) == Some(port))
        {
            assert_eq!(code(&outcome), Some(104), "{outcome:?}");
            return;
        }
        assert!(outcome.success, "{outcome:?}");
        let result = outcome.output.unwrap();
        let given: Vec<IpAddr> = addresses(&result);
        if let Some(known) = self.held.get(&who) {
            assert_eq!(given, *known, "the same answer again");
            return;
        }
        let others = self.held.iter().find(|(_, held)| held.iter().any(|ip| given.contains(ip)));
        assert!(others.is_none(), "{given:?} of {who} is held by {others:?}");
        for address in &given {
            let Some((former, at)) = self.released.get(address) else { continue };
            let rested = called.saturating_duration_since(*at) + RESOLUTION >= REUSE_DELAY;
            if !rested {
                let shortened = self.lab.admin(NODE).unwrap().ipam().unwrap().shortened;
                assert!(shortened > self.shortened, "{address} was {former}'s, and did not rest");
                self.shortened = shortened;
            }
        }
        self.held.insert(who, given);
        self.results.insert(who, result);
    }

    fn del(&mut self, who: usize) {
        self.count("DEL");
        let outcome = self.call("DEL", who, &Value::Null);
        assert_eq!(outcome, Outcome { success: true, output: None });
        if self.is_up {
            self.release(who);
        } else {
            self.noted.insert(who);
        }
    }

    fn check(&mut self, who: usize) {
        self.count("CHECK");
        let promised = self.results.get(&who).cloned().unwrap_or_else(|| json!({}));
        let outcome = self.call("CHECK", who, &promised);
        let expected = match (self.is_up, self.held.contains_key(&who)) {
            (false, _) => Some(11),
            (true, true) => None,
            (true, false) => Some(3),
        };
        assert_eq!(code(&outcome), expected, "{outcome:?}");
    }

    fn collect(&mut self) {
        self.count("GC");
        let valid: BTreeSet<usize> =
            (0..CONTAINERS).filter(|_| self.random.random_range(0..4) > 0).collect();
        let list: Value = valid
            .iter()
            .map(|who| json!({ "containerID": format!("c{who}"), "ifname": "eth0" }))
            .collect();
        let mut config = self.config(0);
        config["cni.dev/valid-attachments"] = list;
        let outcome = plugin::run(self.variables("GC", 0), config.to_string().as_bytes());
        assert_eq!(code(&outcome), if self.is_up { None } else { Some(11) }, "{outcome:?}");
        if self.is_up {
            let gone: Vec<usize> =
                self.held.keys().copied().filter(|who| !valid.contains(who)).collect();
            gone.into_iter().for_each(|who| self.release(who));
        }
    }

    fn kill(&mut self) {
        self.count("kill");
        self.lab.kill(NODE).unwrap();
        self.is_up = false;
    }

    fn start(&mut self) {
        if !self.is_up {
            self.count("start");
            self.lab.start(NODE).unwrap();
            self.is_up = true;
            std::mem::take(&mut self.noted).into_iter().for_each(|who| self.release(who));
        }
    }

    /// All namespaces are gone, and so is what was in /run.
    fn reboot(&mut self) {
        self.count("reboot");
        self.kill();
        self.boots += 1;
        fs::write(&self.boot_file, format!("boot-{}\n", self.boots)).unwrap();
        for namespace in std::mem::take(&mut self.namespaces) {
            namespace.remove().unwrap();
        }
        let socket = socket(self.lab.dir(), NODE);
        let _ = fs::remove_dir_all(socket.with_file_name("deletions"));
        self.noted.clear();
        self.make_namespaces();
        self.start();
        let all: Vec<usize> = self.held.keys().copied().collect();
        all.into_iter().for_each(|who| self.release(who));
    }

    fn release(&mut self, who: usize) {
        self.results.remove(&who);
        for address in self.held.remove(&who).into_iter().flatten() {
            self.released.insert(address, (who, Instant::now()));
        }
    }

    /// What the daemon knows is what the model says.
    fn compare(&mut self, when: &str) {
        if !self.is_up {
            return;
        }
        let report = self.lab.admin(NODE).unwrap().ipam().unwrap();
        let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for held in report.held {
            found.entry(held.container_id).or_default().push(held.address);
        }
        let expected: BTreeMap<String, Vec<IpAddr>> =
            self.held.iter().map(|(who, held)| (format!("c{who}"), held.clone())).collect();
        assert_eq!(found, expected, "{when}");
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn call(&self, verb: &str, who: usize, previous: &Value) -> Outcome {
        let mut config = self.config(who);
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        plugin::run(self.variables(verb, who), config.to_string().as_bytes())
    }

    fn config(&self, who: usize) -> Value {
        let socket = socket(self.lab.dir(), NODE);
        let plugin = if who.is_multiple_of(2) { "weft-cni" } else { "bridge" };
        let mut config = json!({ "cniVersion": "1.1.0", "name": "weft", "type": plugin });
        if who.is_multiple_of(2) {
            config["socket"] = json!(socket);
            let ports = host_port(who)
                .map(|port| json!([{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }]));
            config["runtimeConfig"] = json!({ "portMappings": ports });
        } else {
            config["ipam"] = json!({ "type": "weft-cni", "socket": socket });
        }
        config
    }

    fn variables(&self, verb: &str, who: usize) -> impl Fn(&str) -> Option<OsString> + use<> {
        let (verb, netns) = (verb.to_owned(), self.namespaces[who].path().as_os_str().to_owned());
        move |name| match name {
            "CNI_COMMAND" => Some(verb.clone().into()),
            "CNI_CONTAINERID" => Some(format!("c{who}").into()),
            "CNI_NETNS" => Some(netns.clone()),
            "CNI_IFNAME" => Some("eth0".into()),
            _ => None,
        }
    }

    fn end(self) {
        let Self { lab, boot_file, .. } = self;
        lab.finish();
        assert!(Command::new("umount").arg(BOOT_ID).status().unwrap().success());
        fs::remove_file(boot_file).unwrap();
    }
}

/// The port of the node that a container asks for; some ask for the same. Those that only get addresses have none.
fn host_port(who: usize) -> Option<usize> {
    who.is_multiple_of(2).then_some(8000 + who / 4)
}

fn code(outcome: &Outcome) -> Option<u64> {
    outcome.output.as_ref()?.get("code")?.as_u64()
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter()
        .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap())
        .collect()
}
