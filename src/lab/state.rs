//! What is kept about a lab on disk, so that later commands find it, and where.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use super::config::LabConfig;
use super::process::ProcessId;

/// The directory of all labs of a user.
///
/// Must be made before the process enters a user namespace: there everybody is root.
#[derive(Debug, Clone)]
pub struct Labs {
    base: PathBuf,
}

/// A lab as it stands in `lab.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabState {
    /// How it was asked for.
    pub config: LabConfig,
    /// The process that will remove it; absent for one that stays until `weft lab down`.
    pub owner: Option<ProcessId>,
    /// The process that holds its namespaces; absent when they are the machine's own.
    pub holder: Option<ProcessId>,
    /// The number of the next node: none is given out twice, so that no node is taken for one that left.
    pub next_number: u8,
    /// Its nodes.
    pub nodes: Vec<NodeState>,
}

/// A node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Its name, `n1` and so on; also its namespace's.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Underlay address that its daemon uses.
    pub underlay: IpAddr,
    /// MTU of its link.
    pub mtu: u16,
    /// Whether its link is cut.
    pub cut: bool,
    /// Its daemon; absent while stopped.
    pub daemon: Option<ProcessId>,
    /// The number of the next pod.
    pub next_pod: u16,
    /// Its pods.
    pub pods: Vec<PodState>,
}

/// A pod of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// Its name, `n1-p1` and so on; also its namespace's.
    pub name: String,
    /// Its Kubernetes namespace.
    #[serde(default = "lab_namespace")]
    pub namespace: String,
    /// Labels that it has beside those of every pod.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its container id.
    pub container_id: String,
    /// Its addresses, as the plugin gave them.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address, as the plugin gave it.
    pub mac: Option<Mac>,
}

fn lab_namespace() -> String {
    super::plugin::NAMESPACE.to_owned()
}

impl Labs {
    /// The usual place: `/run/weft-lab` for root, `$XDG_RUNTIME_DIR/weft-lab` for others, else
    /// `/tmp/weft-lab-UID`. `$WEFT_LAB_DIR` overrides it.
    pub fn of_user() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = if let Some(dir) = variable("WEFT_LAB_DIR") {
            dir.into()
        } else if geteuid().is_root() {
            "/run/weft-lab".into()
        } else if let Some(dir) = variable("XDG_RUNTIME_DIR") {
            Path::new(&dir).join("weft-lab")
        } else {
            format!("/tmp/weft-lab-{}", geteuid()).into()
        };
        Self { base }
    }

    /// Labs under `base`.
    pub fn under(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// The directory of the lab `name`.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Reads the state of the lab `name`.
    ///
    /// # Errors
    /// When there is none of that name, or its file cannot be read.
    pub fn read(&self, name: &str) -> Result<LabState> {
        let path = self.dir(name).join("lab.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "there is no lab `{name}` (see `weft lab list`, or make it: `weft lab up --lab {name}`)"
                )
            }
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| {
            let dir = self.dir(name);
            format!("{} is damaged; remove the lab: `weft lab down --lab {name}`", dir.display())
        })
    }

    /// The names of all labs, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("reading {}", self.base.display()))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Makes the directory of the lab `name`.
    pub(super) fn create(&self, name: &str) -> Result<PathBuf> {
        loop {
            self.create_base()?;
            let dir = self.dir(name);
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(dir),
                // The end of another lab has just removed the directory of all, which was empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    bail!(
                        "there is a lab `{name}` already: remove it with `weft lab down --lab {name}`"
                    )
                }
                made => made.with_context(|| format!("making {}", dir.display()))?,
            }
        }
    }

    fn create_base(&self) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.base);
        made.with_context(|| format!("making {}", self.base.display()))?;
        // In /tmp somebody else could have made it first, and would own every file below.
        let metadata = fs::symlink_metadata(&self.base)?;
        if metadata.uid() != geteuid().as_raw() || !metadata.is_dir() {
            bail!("{} belongs to somebody else", self.base.display());
        }
        Ok(())
    }
}

impl LabState {
    /// Writes it to `dir`, whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let (path, temporary) = (dir.join("lab.json"), dir.join("lab.json.new"));
        let context = || format!("writing {}", path.display());
        let text = serde_json::to_vec_pretty(self).with_context(context)?;
        let mut file = File::create(&temporary).with_context(context)?;
        file.write_all(&text).with_context(context)?;
        fs::rename(&temporary, &path).with_context(context)
    }

    /// Whether its maker was to remove it and is gone.
    pub fn is_abandoned(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.is_alive())
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&NodeState> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| self.unknown("node", name))
    }

    pub(super) fn node_mut(&mut self, name: &str) -> Result<&mut NodeState> {
        let unknown = self.unknown("node", name);
        self.nodes.iter_mut().find(|node| node.name == name).context(unknown)
    }

    /// The pod called `name`, and its node.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<(&NodeState, &PodState)> {
        self.pods().find(|(_, pod)| pod.name == name).with_context(|| self.unknown("pod", name))
    }

    /// All pods, each with its node.
    pub fn pods(&self) -> impl Iterator<Item = (&NodeState, &PodState)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    fn unknown(&self, kind: &str, name: &str) -> String {
        let names: Vec<&str> = match kind {
            "pod" => self.pods().map(|(_, pod)| pod.name.as_str()).collect(),
            _ => self.nodes.iter().map(|node| node.name.as_str()).collect(),
        };
        format!("lab `{}` has no {kind} `{name}`, but {}", self.config.name, names.join(", "))
    }
}

/// Removes the directory of all labs with the last of them, whose own was `dir`.
pub(super) fn remove_base_if_empty(dir: &Path) -> Result<()> {
    let Some(base) = dir.parent() else { return Ok(()) };
    match fs::remove_dir(base) {
        Ok(()) => Ok(()),
        // Other labs are in it, or the end of another has removed it; or it was made by somebody else,
        // where this user may remove nothing, or is a mount.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("removing {}", base.display())),
    }
}

/// Keeps other commands from changing the lab in `dir` until it is dropped.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let file = File::create(dir.join("lock"))
        .with_context(|| format!("opening the lock of {}", dir.display()))?;
    flock(&file, FlockOperation::LockExclusive)
        .context("waiting for another command on the lab")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_found_again_and_a_stranger_is_named() {
        let labs =
            Labs::under(std::env::temp_dir().join(format!("weft-state-{}", std::process::id())));
        assert!(labs.names().unwrap().is_empty());
        assert!(labs.read("a").unwrap_err().to_string().contains("no lab `a`"));

        let dir = labs.create("a").unwrap();
        let state = LabState {
            config: LabConfig::new("a"),
            owner: None,
            holder: None,
            next_number: 2,
            nodes: vec![NodeState {
                name: "n1".to_owned(),
                number: 1,
                underlay: [192, 168, 77, 1].into(),
                mtu: 1500,
                cut: false,
                daemon: None,
                next_pod: 1,
                pods: Vec::new(),
            }],
        };
        state.write(&dir).unwrap();
        assert_eq!(labs.read("a").unwrap(), state);
        assert_eq!(labs.names().unwrap(), ["a"]);
        assert!(labs.create("a").unwrap_err().to_string().contains("already"));
        assert!(state.node("n2").unwrap_err().to_string().ends_with("has no node `n2`, but n1"));

        fs::write(dir.join("lab.json"), "{").unwrap();
        assert!(labs.read("a").unwrap_err().to_string().contains("damaged"));

        remove_base_if_empty(&dir).unwrap();
        assert!(dir.is_dir(), "a lab is in it");
        fs::remove_dir_all(&dir).unwrap();
        remove_base_if_empty(&dir).unwrap();
        assert!(!labs.base.exists());
        remove_base_if_empty(&dir).unwrap();
    }
}
