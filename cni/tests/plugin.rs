//! The plugin as a runtime sees it: a process with an environment, standard input and output.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn plugin() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-cni"));
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The plugin may answer, and be gone, without having read.
    if let Err(error) = stdin.write_all(input.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Standard output has to be exactly one JSON value.
fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn version_does_not_wait_for_input() {
    let mut child = plugin().env("CNI_COMMAND", "VERSION").spawn().unwrap();
    let open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(json_of(&output)["cniVersion"], "1.1.0");
    drop(open);
}

#[test]
fn a_call_by_a_person_is_explained() {
    let output = run(&mut plugin(), "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json_of(&output)["code"], 4);
    let help = String::from_utf8(output.stderr).unwrap();
    assert!(help.contains("container runtimes call it"), "{help}");
}

#[test]
fn a_daemon_that_is_down_is_a_reason_to_try_again() {
    let directory = tempfile::tempdir().unwrap();
    let config = json!({
        "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni",
        "socket": directory.path().join("weftd.sock"),
    });
    let mut command = plugin();
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", "/run/netns/blue")
        .env("CNI_IFNAME", "eth0");
    let output = run(&mut command, &config.to_string());
    assert_eq!(output.status.code(), Some(1));
    let error = json_of(&output);
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(11), &json!("1.0.0")));
    assert!(output.stderr.is_empty(), "the error is on standard output alone");
}
