//! A node's daemon: its file, its process, its log.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use overlay::seal::KeyFile;

use super::config::{Family, Plan};
use super::namespace::Namespace;
use super::state::{LabState, NodeState};

/// The file with the keys that new nodes are given, in the lab's directory.
pub(super) const KEYS: &str = "keys";

/// How much of a log is shown when its daemon fails.
const TAIL_LINES: usize = 25;

/// Starts the daemon of `node`. One of a lab that is not kept ends with the calling thread.
pub(super) fn launch(
    lab: &Path,
    state: &LabState,
    node: &NodeState,
    namespace: &Namespace,
) -> Result<Child> {
    let dir = dir(lab, &node.name);
    for name in ["run", "state", "bin", "cni"] {
        fs::create_dir_all(dir.join(name))?;
    }
    let file = dir.join("weft.toml");
    give_keys(lab, node)?;
    fs::write(&file, config_text(lab, state, node))
        .with_context(|| format!("writing {}", file.display()))?;
    let log = File::options().create(true).append(true).open(dir.join("weftd.log"))?;
    let mut command = Command::new(lab.join("bin/weftd"));
    command
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .env_remove("NOTIFY_SOCKET")
        // Ctrl-C in the terminal is for the command that made the lab, which then stops the daemons.
        .process_group(0);
    namespace.start_inside(&mut command, !state.config.keep)?;
    Ok(command.spawn()?)
}

/// The directory of a node.
pub(super) fn dir(lab: &Path, node: &str) -> PathBuf {
    lab.join("nodes").join(node)
}

/// The admin socket of a node.
pub fn socket(lab: &Path, node: &str) -> PathBuf {
    dir(lab, node).join("run/weftd.sock")
}

/// The last lines of a log, indented.
pub(super) fn log_tail(path: &Path) -> String {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => format!("(cannot be read: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if tail.is_empty() {
        "    (nothing)".to_owned()
    } else {
        format!("    {}", tail.join("\n    "))
    }
}

/// The directory of manifests, which all nodes of a lab share.
pub(super) const MANIFESTS: &str = "manifests";

/// The node's `weft.toml`.
fn config_text(lab: &Path, state: &LabState, node: &NodeState) -> String {
    let config = &state.config;
    let dir = dir(lab, &node.name);
    let seeds: Vec<String> = seeds(state, node).into_iter().map(|seed| quote(&seed)).collect();
    let lease = match (&config.lease, config.ipv6) {
        (Some(lease), _) => lease,
        (None, true) => r#"ranges = ["10.244.0.0/16", "fd00:10:244::/56"]"#,
        (None, false) => r#"ranges = ["10.244.0.0/16"]"#,
    };
    let shared = || format!("dir = {}", quote_path(&lab.join(MANIFESTS)));
    let objects = config.objects.clone().unwrap_or_else(shared);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "network = {}\nname = {}\nseeds = [{}]\n\n\
         [underlay]\naddress = {}\n\n\
         [lease]\n{lease}\n\n\
         [objects]\n{}\n\n\
         [paths]\nstate = {}\nrun = {}\n\n\
         [metrics]\nlisten = \"127.0.0.1:9144\"\n\n\
         [log]\nlevel = {}\n\n",
        quote(&format!("lab-{}", config.name)),
        quote(&node.name),
        seeds.join(", "),
        quote(&node.underlay.to_string()),
        objects,
        quote_path(&dir.join("state")),
        quote_path(&dir.join("run")),
        quote(&config.log),
    );
    let of_node = config.extra_of_node.get(&node.name).map_or("", String::as_str);
    let extra = format!("{}\n{of_node}", config.extra);
    if !extra.lines().any(|line| line.trim() == "[dns]") {
        // The machine's own name servers cannot be reached from a lab.
        text.push_str("[dns]\nresolv_conf = \"/dev/null\"\n\n");
    }
    text.push_str(&with_keys(&extra, &key_file(lab, &node.name)));
    text
}

/// The file with the keys of a node.
pub fn key_file(lab: &Path, node: &str) -> PathBuf {
    dir(lab, node).join("keys")
}

/// Names the node's key file in `extra`, unless that says something about keys itself.
fn with_keys(extra: &str, key_file: &Path) -> String {
    let line = format!("[overlay]\nkey_file = {}", quote_path(key_file));
    if !extra.lines().any(|line| line.trim() == "[overlay]") {
        return format!("{line}\n\n{extra}");
    }
    let says = |line: &str| ["key_file", "insecure"].iter().any(|name| line.starts_with(name));
    if extra.lines().any(|line| says(line.trim())) {
        return extra.to_owned();
    }
    extra.replacen("[overlay]", &line, 1)
}

/// Gives a new node the keys of the lab; one that was there before keeps what it has.
fn give_keys(lab: &Path, node: &NodeState) -> Result<()> {
    let own = key_file(lab, &node.name);
    if !own.exists() {
        KeyFile::load(&lab.join(KEYS))?.save(&own)?;
    }
    Ok(())
}

/// The two oldest other nodes. The first node of several is pointed to the second before that exists, so
/// that it finds back after a restart.
fn seeds(state: &LabState, node: &NodeState) -> Vec<String> {
    let others = state.nodes.iter().filter(|other| other.name != node.name);
    let mut seeds: Vec<String> = others.take(2).map(|other| other.underlay.to_string()).collect();
    if seeds.is_empty() && state.config.nodes > 1 {
        let family = if node.underlay.is_ipv4() { Family::V4 } else { Family::V6 };
        seeds.push(Plan::node(family, node.number + 1).ip().to_string());
    }
    seeds
}

/// A TOML basic string: what a JSON string is, TOML reads alike.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::config::LabConfig;

    #[test]
    fn the_file_is_valid_and_seeds_are_others() {
        let node = |number: u8| NodeState {
            name: format!("n{number}"),
            number,
            underlay: Plan::node(Family::V4, number).ip(),
            mtu: 1500,
            cut: false,
            daemon: None,
            next_pod: 1,
            pods: Vec::new(),
        };
        let mut state = LabState {
            config: LabConfig::new("a"),
            owner: None,
            holder: None,
            next_number: 4,
            nodes: vec![node(1)],
        };
        assert_eq!(seeds(&state, &node(1)), ["192.168.77.2"]);
        state.nodes.extend([node(2), node(3)]);
        assert_eq!(seeds(&state, &node(1)), ["192.168.77.2", "192.168.77.3"]);
        assert_eq!(seeds(&state, &node(3)), ["192.168.77.1", "192.168.77.2"]);

        let text = config_text(Path::new("/run/weft-lab/a"), &state, &node(2));
        let file = std::env::temp_dir().join(format!("weft-lab-{}.toml", std::process::id()));
        fs::write(&file, &text).unwrap();
        let loaded = conf::load(&file);
        fs::remove_file(file).unwrap();
        assert!(loaded.is_ok(), "{}", loaded.unwrap_err());
        assert!(text.contains("run = \"/run/weft-lab/a/nodes/n2/run\""), "{text}");
        assert!(text.contains("address = \"192.168.77.2\""), "{text}");
        assert!(text.contains("key_file = \"/run/weft-lab/a/nodes/n2/keys\""), "{text}");
    }

    #[test]
    fn keys_are_named_unless_the_text_does() {
        let keys = |extra| with_keys(extra, Path::new("/k"));
        assert_eq!(keys("[host]\n"), "[overlay]\nkey_file = \"/k\"\n\n[host]\n");
        assert_eq!(keys("[overlay]\nvni = 7\n"), "[overlay]\nkey_file = \"/k\"\nvni = 7\n");
        assert_eq!(keys("[overlay]\ninsecure = true\n"), "[overlay]\ninsecure = true\n");
    }

    #[test]
    fn a_tail_is_the_end() {
        let path = std::env::temp_dir().join(format!("weft-tail-{}", std::process::id()));
        assert!(log_tail(&path).contains("nothing"));
        let lines: Vec<String> = (0..100).map(|ix| format!("line {ix}")).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        let tail = log_tail(&path);
        assert!(tail.ends_with("line 99") && tail.contains("line 75") && !tail.contains("line 74"));
        fs::remove_file(path).unwrap();
    }
}
