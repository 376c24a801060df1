//! The right to make namespaces: root has it; everybody else gets it in a user namespace of their own.
//!
//! All functions here that enter namespaces do so for the whole process, and must run before it starts a
//! second thread: the kernel refuses user namespaces to processes with several (user_namespaces(7)).

// `unshare` has no safe form; see namespace.rs.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::process::ProcessId;

/// The line by which a holder says that its namespaces stand.
const READY: &str = "ready";

/// Whether this process may make and enter namespaces as it is.
pub fn is_privileged() -> bool {
    // CAP_NET_ADMIN and CAP_SYS_ADMIN, include/uapi/linux/capability.h.
    const NEEDED: u64 = 1 << 12 | 1 << 21;
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    geteuid().is_root() && effective.is_some_and(|effective| effective & NEEDED == NEEDED)
}

/// Moves this process into namespaces of its own, which vanish with it and its children: as root a mount
/// namespace, as an ordinary user a user, a mount and a network namespace.
///
/// # Errors
/// When the machine does not permit it; the text says what to change.
pub fn enter_own() -> Result<()> {
    if is_privileged() {
        unshare(UnshareFlags::NEWNS).context("making a mount namespace")?;
    } else {
        let (user, group) = (geteuid(), getegid());
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWNET)
            .map_err(|error| anyhow!(advise_user_namespaces(&error)))?;
        // user_namespaces(7): an unprivileged process must give up setgroups(2) before it may map a group.
        let files = [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("0 {user} 1")),
            ("/proc/self/gid_map", format!("0 {group} 1")),
        ];
        for (file, content) in files {
            // With the AppArmor restriction the namespace is granted, and what it is for is refused.
            fs::write(file, content).map_err(|error| anyhow!(advise_user_namespaces(&error)))?;
        }
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|error| anyhow!(advise_user_namespaces(&error.into())))?;
    check_tun()
}

/// Fails with advice if pods' interfaces cannot be made here.
///
/// # Errors
/// When `/dev/net/tun` is missing or closed to this user.
pub fn check_tun() -> Result<()> {
    let path = "/dev/net/tun";
    let Err(error) = File::options().read(true).write(true).open(path) else { return Ok(()) };
    let advice = if error.kind() == io::ErrorKind::PermissionDenied {
        "Open it to everybody, as most systems have it (that alone gives no rights over the machine's \
         network):\n  sudo chmod 666 /dev/net/tun\nor run this as root."
    } else {
        "Load the driver:\n  sudo modprobe tun\nIn a container, start that with `--device /dev/net/tun`."
    };
    bail!("{path} cannot be opened: {error}\n{advice}")
}

/// Starts a process that keeps namespaces of its own alive, for labs that outlast the command which made
/// them. `program` must call [`hold`] for `arguments`.
///
/// # Errors
/// When it cannot be started, or the machine does not permit it.
pub fn start_holder(program: &Path, arguments: &[&str]) -> Result<ProcessId> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Not ours: it would keep a terminal or a pipe open for as long as the lab stands.
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the process that holds the namespaces")?;
    let id =
        ProcessId::of(child.id()).context("looking up the process that holds the namespaces")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(id);
    }
    let why = String::from_utf8(child.wait_with_output()?.stderr)?;
    bail!("{}", why.trim().trim_start_matches("weft: "))
}

/// What the holder does: namespaces of its own, then nothing, until it is killed.
///
/// # Errors
/// When the machine does not permit it.
pub fn hold() -> Result<()> {
    enter_own()?;
    rustix::process::setsid().context("leaving the terminal")?;
    std::env::set_current_dir("/")?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    loop {
        rustix::event::pause();
    }
}

/// Moves this process into the namespaces of `holder`.
///
/// # Errors
/// When it has ended or the kernel refuses.
pub fn join(holder: ProcessId) -> Result<()> {
    let gone = || format!("process {}, which holds the lab's namespaces, is gone", holder.pid);
    let pid = Pid::from_raw(holder.pid).with_context(gone)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).with_context(gone)?;
    // Looked at with the descriptor in hand, the number can no longer change its owner.
    if !holder.is_alive() {
        bail!(gone());
    }
    let directory = std::env::current_dir();
    let types =
        ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&fd), types)
        .with_context(|| format!("entering the namespaces of process {}", holder.pid))?;
    // Entering a mount namespace leads to its root directory.
    if let Ok(directory) = directory {
        std::env::set_current_dir(directory)?;
    }
    Ok(())
}

/// Shows `hosts` as `/etc/hosts` to this process and its children, and to nobody else.
///
/// # Errors
/// When the machine does not permit it.
pub fn mount_hosts(hosts: &Path) -> Result<()> {
    unshare(UnshareFlags::NEWNS).context("making a mount namespace")?;
    // What is mounted outside later still arrives here, and nothing goes the other way.
    let receive = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", receive).context("separating the mounts")?;
    mount_bind(hosts, "/etc/hosts")
        .with_context(|| format!("mounting {} on /etc/hosts", hosts.display()))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: CLONE_FILES is not among the flags of any caller, so no descriptor table is split.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Why user namespaces are not to be had here, and what to do.
fn advise_user_namespaces(error: &io::Error) -> String {
    let setting = |key: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(key.replace('.', "/")))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let mut text = format!(
        "this machine does not let an ordinary user make a network of its own: {error}\nEither run this \
         as root, or permit it:"
    );
    let mut found = false;
    let mut advise = |key: &str, blocks: fn(u64) -> bool, value: u64| {
        if setting(key).is_some_and(blocks) {
            found = true;
            text.push_str(&format!("\n  sudo sysctl {key}={value}"));
        }
    };
    advise("kernel.unprivileged_userns_clone", |now| now == 0, 1);
    advise("user.max_user_namespaces", |now| now < 16, 15_000);
    advise("user.max_net_namespaces", |now| now < 64, 15_000);
    advise("kernel.apparmor_restrict_unprivileged_userns", |now| now != 0, 0);
    if !found {
        text.push_str(
            "\n  none of the known settings forbids it (kernel.unprivileged_userns_clone, \
             user.max_user_namespaces,\n  kernel.apparmor_restrict_unprivileged_userns); in a container, \
             its seccomp or AppArmor profile does:\n  docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN \
             --security-opt apparmor=unconfined --device /dev/net/tun ...",
        );
    }
    text
}
