//! Attaches pods as a container runtime does: by running the CNI plugin.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};
use vswitch::mac::Mac;

use super::daemon;
use super::namespace::Namespace;
use super::state::PodState;

/// The interface in every pod.
const INTERFACE: &str = "eth0";

/// The Kubernetes namespace of pods, unless another one is asked for.
pub(super) const NAMESPACE: &str = "lab";

/// Version of the CNI specification that is spoken.
const CNI_VERSION: &str = "1.0.0";

/// A pod that the plugin is called for.
#[derive(Debug)]
pub(super) struct Call<'a> {
    lab: &'a Path,
    /// The node's namespace: where runtimes run plugins.
    on: Namespace,
    node: &'a str,
    pod: &'a PodState,
    namespace: &'a Namespace,
}

/// What a pod was given.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mac: Option<Mac>,
    /// The plugin's whole answer, to hand it back for CHECK.
    raw: Value,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        lab: &'a Path,
        on: Namespace,
        node: &'a str,
        pod: &'a PodState,
        namespace: &'a Namespace,
    ) -> Self {
        Self { lab, on, node, pod, namespace }
    }

    /// ADD. Checks that the answer is what the specification asks for.
    pub(super) fn add(&self) -> Result<Given> {
        let text = self.run("ADD", &Value::Null)?;
        let given = parse(&text, &self.namespace.path().to_string_lossy())
            .with_context(|| format!("the plugin's answer is not as it should be: {text}"))?;
        fs::write(self.cache_path(), given.raw.to_string())?;
        Ok(given)
    }

    /// CHECK, against the answer to ADD.
    pub(super) fn check(&self) -> Result<()> {
        let cached = fs::read(self.cache_path()).context("reading the answer to ADD")?;
        self.run("CHECK", &serde_json::from_slice(&cached)?).map(drop)
    }

    /// DEL.
    pub(super) fn del(&self) -> Result<()> {
        let cached = match fs::read(self.cache_path()) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error.into()),
        };
        self.run("DEL", &cached)?;
        if !cached.is_null() {
            fs::remove_file(self.cache_path())?;
        }
        Ok(())
    }

    fn run(&self, verb: &str, previous: &Value) -> Result<String> {
        let config = self.config(previous)?;
        let mut command = Command::new(self.lab.join("bin/weft-cni"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.pod.container_id)
            .env("CNI_NETNS", self.namespace.path())
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", self.lab.join("bin"))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={}",
                    self.pod.namespace, self.pod.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.on.start_inside(&mut command, false)?;
        let mut child = command.spawn().context("starting weft-cni")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes()).context("writing to weft-cni")?;
        }
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("weft-cni {verb}: {}", explain(&text, stderr.trim()));
        }
        Ok(text)
    }

    /// What a runtime makes for the plugin from the node's configuration list: the plugin's own part, with
    /// the list's name and version.
    fn config(&self, previous: &Value) -> Result<Value> {
        let list = match fs::read(self.list_path()) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no JSON", self.list_path().display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({
                "cniVersion": CNI_VERSION,
                "name": "weft",
                "plugins": [{ "type": "weft-cni", "socket": daemon::socket(self.lab, self.node) }],
            }),
            Err(error) => return Err(error.into()),
        };
        let mut config = list["plugins"][0].clone();
        ensure!(
            config["type"] == "weft-cni",
            "the first plugin of the list is not weft-cni: {list}"
        );
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        let mut labels = self.pod.labels.clone();
        labels.entry("app".to_owned()).or_insert_with(|| "lab".to_owned());
        labels.insert("lab/pod".to_owned(), self.pod.name.clone());
        let labels = labels.iter().map(|(key, value)| json!({ "key": key, "value": value }));
        config["args"]["cni"]["labels"] = labels.collect();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        Ok(config)
    }

    fn list_path(&self) -> PathBuf {
        daemon::dir(self.lab, self.node).join("cni/10-weft.conflist")
    }

    fn cache_path(&self) -> PathBuf {
        daemon::dir(self.lab, self.node).join(format!("{}.result.json", self.pod.name))
    }
}

/// The parts of a CNI result (specification 1.0.0, section 5) that a runtime relies on.
#[derive(Debug, Deserialize)]
struct Answer {
    interfaces: Vec<AnswerInterface>,
    ips: Vec<AnswerIp>,
}

#[derive(Debug, Deserialize)]
struct AnswerInterface {
    name: String,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct AnswerIp {
    address: IpNetwork,
    interface: Option<usize>,
}

fn parse(text: &str, sandbox: &str) -> Result<Given> {
    let raw: Value = serde_json::from_str(text)?;
    let answer: Answer = serde_json::from_value(raw.clone())?;
    let ix = answer.interfaces.iter().position(|interface| {
        interface.name == INTERFACE && interface.sandbox.as_deref() == Some(sandbox)
    });
    let ix = ix.with_context(|| format!("no interface {INTERFACE} in {sandbox}"))?;
    ensure!(!answer.ips.is_empty(), "no address");
    ensure!(
        answer.ips.iter().all(|ip| ip.interface == Some(ix)),
        "an address is not on interface {INTERFACE}"
    );
    let mac = answer.interfaces[ix].mac.as_deref().map(str::parse).transpose();
    Ok(Given {
        addresses: answer.ips.iter().map(|ip| ip.address.ip()).collect(),
        mac: mac.map_err(|_| anyhow::anyhow!("the MAC address is none"))?,
        raw,
    })
}

/// The plugin's error (specification 1.0.0, section 5) as one line, or whatever it wrote instead.
fn explain(stdout: &str, stderr: &str) -> String {
    let error: Value = serde_json::from_str(stdout).unwrap_or_default();
    let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    match (part("msg"), part("details")) {
        (msg, _) if msg.is_empty() => format!("{stdout} {stderr}").trim().to_owned(),
        (msg, details) if details.is_empty() => format!("{msg} (code {})", error["code"]),
        (msg, details) => format!("{msg}: {details} (code {})", error["code"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_when_it_is_about_this_pod() {
        let text = r#"{"cniVersion":"1.0.0",
            "interfaces":[{"name":"eth0","mac":"0a:58:0a:f4:01:02","sandbox":"/ns/a"}],
            "ips":[{"address":"10.244.1.2/32","gateway":"10.244.1.1","interface":0}]}"#;
        let given = parse(text, "/ns/a").unwrap();
        assert_eq!(given.addresses, [IpAddr::from([10, 244, 1, 2])]);
        assert_eq!(given.mac.unwrap().to_string(), "0a:58:0a:f4:01:02");
        assert!(parse(text, "/ns/b").is_err());
        assert!(parse(&text.replace("\"interface\":0", "\"interface\":1"), "/ns/a").is_err());
        assert!(parse(r#"{"interfaces":[],"ips":[]}"#, "/ns/a").is_err());
        assert!(parse("", "/ns/a").is_err());
    }

    #[test]
    fn an_error_is_one_line() {
        let text =
            r#"{"cniVersion":"1.0.0","code":101,"msg":"no address is free","details":"254 used"}"#;
        assert_eq!(explain(text, ""), "no address is free: 254 used (code 101)");
        assert_eq!(explain("", "panicked"), "panicked");
    }
}
