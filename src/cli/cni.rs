//! `weft cni install`: the plugin and the network list, for container runtimes to find.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cni::config::{CAPABILITIES, DEFAULT_NAME, PLUGIN};
use serde_json::{Value, json};

use super::args::{CniArgs, CniCommand, CniInstallArgs};
use super::view::target;
use crate::lab::Admin;

/// How often a node that is not ready yet is looked at again.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn run(arguments: &CniArgs, out: &mut impl Write) -> Result<()> {
    let CniCommand::Install(install) = &arguments.command;
    let admin = target(&arguments.target)?;
    let network = wait_until_ready(&admin, Duration::from_secs(install.wait.into()))?;
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let plugin = install.bin_dir.join(PLUGIN);
    // The list last: a runtime that sees it takes the node for ready and calls the plugin.
    let file =
        File::open(&program).with_context(|| format!("cannot read {}", program.display()))?;
    replace(&plugin, 0o755, file)?;
    let list = install.conf_dir.join(&install.file);
    let text = format!("{:#}\n", network_list(install, &network, admin.socket()));
    replace(&list, 0o644, text.as_bytes())?;
    writeln!(out, "{} and {} are written", plugin.display(), list.display())?;
    Ok(())
}

/// Only a node that can attach pods is offered to a runtime. Returns the name of its network.
fn wait_until_ready(admin: &Admin, patience: Duration) -> Result<String> {
    let deadline = Instant::now() + patience;
    loop {
        let why = match admin.status() {
            Ok(status) if status.ready => return Ok(status.network),
            Ok(status) => {
                let problems: Vec<_> = status.problems.iter().map(|one| one.text.clone()).collect();
                let lease = format!("the lease is {}", status.lease_state.name());
                let texts = if problems.is_empty() { vec![lease] } else { problems };
                format!("the node is not ready: {}", texts.join("; "))
            }
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("nothing was written: {why} (--wait SECONDS waits for it)");
        }
        pause();
    }
}

/// Another process's state can only be looked at again and again.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(LOOK);
}

fn network_list(install: &CniInstallArgs, network: &str, socket: &Path) -> Value {
    let capabilities: serde_json::Map<_, _> =
        CAPABILITIES.iter().map(|name| ((*name).to_owned(), Value::Bool(true))).collect();
    let mut plugin = json!({ "type": PLUGIN, "capabilities": capabilities });
    if socket != Path::new(cni::config::DEFAULT_SOCKET) {
        plugin["socket"] = json!(socket);
    }
    if ![DEFAULT_NAME, network].contains(&install.name.as_str()) {
        plugin["network"] = json!(network);
    }
    json!({ "cniVersion": install.cni_version, "name": install.name, "plugins": [plugin] })
}

/// Writes a file so that at every moment the old one or the whole new one is there.
fn replace(path: &Path, mode: u32, mut content: impl Read) -> Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.{}.new", std::process::id()));
    let written = fs::create_dir_all(directory).and_then(|()| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&new)?;
        io::copy(&mut content, &mut file)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    });
    if written.is_err() {
        // It may not have been made at all.
        let _ = fs::remove_file(&new);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/10-weft.conflist");
        for text in ["a long first text", "short"] {
            replace(&path, 0o644, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no"))
            }
        }
        assert!(replace(&path, 0o644, Broken).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "short");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn the_list_is_one_that_the_plugin_takes() {
        let mut install = CniInstallArgs {
            bin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
            file: "10-weft.conflist".into(),
            name: "weft".into(),
            cni_version: "1.0.0".into(),
            wait: 0,
        };
        let list = network_list(&install, "prod", Path::new("/run/other/weftd.sock"));
        let mut config = list["plugins"][0].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        let conf = cni::config::NetConf::read(&config, cni::config::Strictness::Strict).unwrap();
        assert_eq!(conf.socket, Path::new("/run/other/weftd.sock"));
        let list = network_list(&install, "prod", Path::new(cni::config::DEFAULT_SOCKET));
        assert!(list["plugins"][0].get("socket").is_none());
        assert!(list["plugins"][0].get("network").is_none());
        install.name = "podman".into();
        let named = network_list(&install, "prod", Path::new(cni::config::DEFAULT_SOCKET));
        assert_eq!(named["plugins"][0]["network"], "prod");
        assert_eq!(
            list["plugins"][0]["capabilities"],
            json!({ "ips": true, "mac": true, "dns": true, "bandwidth": true, "portMappings": true })
        );
    }
}
