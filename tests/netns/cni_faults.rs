//! Daemon and plugin are killed at every step of ADD and DEL that writes anything, and after that nothing is
//! leaked and nothing is lost.
//!
//! `strace` kills: it counts the system calls of a kind, and at the n-th sends SIGKILL. Which n there are shows
//! itself: when the call comes through, they have all been tried.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use crate::common::container::{Container, addresses, call};
use crate::common::{TestLab, has_programs, may_make_labs};
use serde_json::{Value, json};
use weft::lab::LabConfig;

const NODE: &str = "n1";

/// System calls by which something changes: files, devices, the kernel's network (netlink), answers.
const WRITES: &str = "fsync,rename,unlink,unlinkat,ioctl,setns,sendto,sendmsg,mkdir";

/// The plugin's steps: it asks the daemon, notes what it cannot ask, and answers.
const PLUGIN_STEPS: &str =
    "connect,write,writev,sendto,sendmsg,recvfrom,recvmsg,openat,fsync,rename,mkdir";

/// More steps than a call has.
const STEPS_MAX: u32 = 200;

#[test]
fn a_daemon_that_is_killed_at_any_step_leaks_and_loses_nothing() {
    if !may_make_labs() || !has_programs(&[("strace", "strace")]) {
        return;
    }
    let mut lab = TestLab::up(one_node("faults"));
    let bystander = Container::new(&lab, NODE, "bystander");
    let kept = bystander.add();
    for verb in ["ADD", "DEL"] {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < STEPS_MAX, "{verb} has no end");
            let victim =
                Container::new(&lab, NODE, &format!("victim-{}-{steps}", verb.to_lowercase()));
            if verb == "DEL" {
                victim.add();
            }
            let daemon = lab.state().node(NODE).unwrap().daemon.unwrap();
            let mut killer = Killer::attach(daemon.pid, steps);
            let answer = victim.call(verb, &victim.config());
            killer.end();
            // It may also have been at something else that this step was reached.
            let survived = lab.admin(NODE).unwrap().status().is_ok();
            if verb == "DEL" {
                // Either it was done, or it is noted: the runtime is never asked to remember it.
                assert_eq!(answer, Ok(Value::Null), "DEL at step {steps}");
            } else if let Err(error) = answer {
                assert_eq!(error["code"], 11, "ADD at step {steps}");
                assert!(!survived, "ADD at step {steps}: {error}");
            }
            if !survived {
                lab.kill(NODE).unwrap();
                lab.start(NODE).unwrap();
            }
            // Runtimes that call DEL after an ADD that failed, and those that rely on GC.
            if verb == "ADD" && steps % 2 == 0 {
                victim.del();
            }
            collect(&bystander, &[&bystander]);
            let what = format!("{verb} killed at step {steps}");
            assert_only(&lab, &bystander, &kept, &what);
            assert!(!victim.has_interface("eth0"), "{what}: the interface is left");
            victim.remove();
            if survived {
                break;
            }
        }
        // Each of its threads has steps of its own, and the first to have made so many ends them all.
        assert!(steps > 3, "{verb} was killed at {} steps only", steps - 1);
        eprintln!("{verb}: killed at each of {} steps", steps - 1);
    }
    bystander.check(&kept).unwrap();
    bystander.del();
    lab.finish();
}

#[test]
fn a_plugin_that_is_killed_at_any_step_leaks_and_loses_nothing() {
    if !may_make_labs() || !has_programs(&[("strace", "strace")]) {
        return;
    }
    let mut lab = TestLab::up(one_node("killed"));
    let bystander = Container::new(&lab, NODE, "bystander");
    let kept = bystander.add();
    for (verb, daemon_runs) in [("ADD", true), ("DEL", true), ("DEL", false)] {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < STEPS_MAX, "{verb} has no end");
            let victim =
                Container::new(&lab, NODE, &format!("plugin-{daemon_runs}-{verb}-{steps}"));
            if verb == "DEL" {
                victim.add();
            }
            if !daemon_runs {
                lab.kill(NODE).unwrap();
            }
            let mut command = victim.command_under(&killing(PLUGIN_STEPS, steps), verb);
            command.stderr(Stdio::null());
            let came_through = call(command, &victim.config()).is_ok();
            // The runtime tries again, or relies on GC.
            if !came_through && steps % 2 == 0 {
                victim.del();
            }
            if !daemon_runs {
                lab.start(NODE).unwrap();
            }
            collect(&bystander, &[&bystander]);
            let what = format!("{verb} of a plugin that is killed at step {steps}");
            assert_only(&lab, &bystander, &kept, &what);
            assert!(!victim.has_interface("eth0"), "{what}: the interface is left");
            victim.remove();
            if came_through {
                break;
            }
        }
        assert!(steps > 4, "{verb} was killed at {steps} steps only");
        eprintln!("{verb}: killed at each of {} steps", steps - 1);
    }
    bystander.del();
    lab.finish();
}

/// GC, with these still in use.
#[track_caller]
fn collect(caller: &Container, valid: &[&Container]) {
    let mut config = caller.config();
    let valid = valid.iter().map(|pod| json!({ "containerID": pod.id, "ifname": pod.ifname }));
    config["cni.dev/valid-attachments"] = valid.collect();
    assert_eq!(caller.call("GC", &config), Ok(Value::Null));
}

/// The bystander has what it was given, and nobody else has anything.
#[track_caller]
fn assert_only(lab: &TestLab, bystander: &Container, kept: &Value, what: &str) {
    let expected: BTreeSet<IpAddr> = addresses(kept).into_iter().collect();
    let admin = lab.admin(NODE).unwrap();
    let held = || admin.ipam().unwrap().held.into_iter().map(|held| held.address).collect();
    let found: BTreeSet<IpAddr> = held();
    assert_eq!(found, expected, "{what}");
    let ports = admin.pods().unwrap().into_iter().filter_map(|pod| pod.port).count();
    assert_eq!(ports, 1, "{what}");
    bystander.check(kept).unwrap_or_else(|error| panic!("{what}: {error}"));
}

fn one_node(name: &str) -> LabConfig {
    LabConfig { nodes: 1, pods_per_node: 0, ..LabConfig::new(name) }
}

fn killing(calls: &str, step: u32) -> Vec<String> {
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("inject={calls}:signal=KILL:when={step}")])
        .collect()
}

/// An strace that waits for a step of a process.
struct Killer(Child);

impl Killer {
    #[track_caller]
    fn attach(pid: i32, step: u32) -> Self {
        let arguments = killing(WRITES, step);
        let mut command = Command::new(&arguments[0]);
        command.args(arguments[1..].iter().filter(|argument| *argument != "-qq"));
        command.args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().expect("strace says that it is there").unwrap();
        assert!(first.contains("attached"), "{first}");
        // It says more when threads come and go.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    fn end(&mut self) {
        // Whom it has attached to lives on without it. It may have ended by itself, when there is nobody any more.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
