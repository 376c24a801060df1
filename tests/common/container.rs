//! A container and its interface, as a runtime that calls the plugin knows them.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cni::link::Netlink;
use serde_json::{Value, json};
use weft::lab::{Lab, Namespace, socket};

/// An interface of a container, as a runtime knows it.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) ifname: String,
    pub(crate) namespace: Namespace,
    /// The node's.
    pub(crate) on: Namespace,
    pub(crate) program: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Container {
    /// Makes the namespace of a container on a node.
    #[track_caller]
    pub(crate) fn new(lab: &Lab, node: &str, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            ifname: "eth0".to_owned(),
            // The lab removes what is left there.
            namespace: Namespace::create(lab.dir().join("ns").join(id)).unwrap(),
            on: lab.namespace(node).unwrap(),
            program: lab.dir().join("bin/weft-cni"),
            socket: socket(lab.dir(), node),
        }
    }

    pub(crate) fn with_interface(self, ifname: &str) -> Self {
        Self { ifname: ifname.to_owned(), ..self }
    }

    pub(crate) fn netns(&self) -> String {
        self.namespace.path().display().to_string()
    }

    /// Removes the namespace, as a runtime does with its container's.
    #[track_caller]
    pub(crate) fn remove(&self) {
        self.namespace.remove().unwrap();
    }

    pub(crate) fn has_interface(&self, name: &str) -> bool {
        let mut netlink = Netlink::open_in(self.namespace.path()).unwrap();
        netlink.find_link(name).unwrap().is_some()
    }

    pub(crate) fn config(&self) -> Value {
        json!({ "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": self.socket })
    }

    #[track_caller]
    pub(crate) fn add(&self) -> Value {
        let added = self.call("ADD", &self.config());
        added.unwrap_or_else(|error| panic!("ADD of {}: {error}", self.id))
    }

    #[track_caller]
    pub(crate) fn del(&self) {
        let deleted = self.call("DEL", &self.config());
        let said = deleted.unwrap_or_else(|error| panic!("DEL of {}: {error}", self.id));
        assert_eq!(said, Value::Null);
    }

    pub(crate) fn check(&self, promised: &Value) -> Result<Value, Value> {
        let mut config = self.config();
        config["prevResult"] = promised.clone();
        self.call("CHECK", &config)
    }

    pub(crate) fn call(&self, verb: &str, config: &Value) -> Result<Value, Value> {
        call(self.command(verb), config)
    }

    pub(crate) fn command(&self, verb: &str) -> Command {
        self.command_under(&[], verb)
    }

    /// The plugin, run by another program.
    pub(crate) fn command_under(&self, wrapper: &[String], verb: &str) -> Command {
        let mut command = match wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(crate::common::find(program).unwrap());
                command.args(arguments).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", self.namespace.path())
            .env("CNI_IFNAME", &self.ifname)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.on.start_inside(&mut command, false).unwrap();
        command
    }
}

/// What the plugin answers: its result, or its error. Both are JSON; a result may be nothing at all.
#[track_caller]
pub(crate) fn call(mut command: Command, config: &Value) -> Result<Value, Value> {
    let mut child = command.spawn().unwrap();
    let sent = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    if let Err(error) = sent {
        // What is wrong with the environment is told before anything is read, and a plugin may be killed.
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "", "everything is said on standard output");
    let answer = match output.stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&output.stdout).unwrap(),
    };
    if output.status.success() { Ok(answer) } else { Err(answer) }
}

pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap_or_else(|| panic!("no addresses in {result}"));
    let parse = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    ips.iter().map(|ip| parse(ip).unwrap_or_else(|| panic!("{ip}"))).collect()
}

/// Message and details of an error.
pub(crate) fn text(error: &Value) -> String {
    let part = |name: &str| error[name].as_str().unwrap_or_default();
    format!("{}: {}", part("msg"), part("details"))
}
