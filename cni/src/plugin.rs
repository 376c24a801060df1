//! The plugin's whole behaviour: environment and standard input, to the daemon, to standard output.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::{Command, Environment};
use crate::config::{self, NetConf, Strictness};
use crate::delegate::{Choice, Delegate};
use crate::error::{CniError, Code};
use crate::handler::{self, Verb};
use crate::journal::{Deletion, Journal};
use crate::result::{Dns, Version};
use crate::rpc::{Client, ClientError, CniRequest, CniResponse};

/// Largest configuration that is read, in bytes. A configuration with its `prevResult` takes a few
/// thousand.
const CONFIG_LEN_MAX: u64 = 4 << 20;

/// Runs the plugin as the runtime called it. The one thing it writes to standard output is the JSON
/// object that the specification asks for.
pub fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!(
            "weft-cni is a CNI plugin: container runtimes call it. To see what it would answer, run \
             `CNI_COMMAND=VERSION weft-cni`. The command line for people is `weft`."
        );
    }
    let outcome = run(|name| std::env::var_os(name), std::io::stdin());
    let text = outcome.output.map(|value| format!("{value}\n")).unwrap_or_default();
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A runtime that has gone: the attachment stays known to the daemon until DEL.
        eprintln!("weft-cni: cannot write the answer to standard output: {error}");
        return ExitCode::FAILURE;
    }
    if outcome.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the plugin answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the exit code is 0.
    pub success: bool,
    /// What goes to standard output; commands without a result say nothing.
    pub output: Option<Value>,
}

/// Runs the plugin on a given environment and input. For VERSION the input is not read at all.
pub fn run(variable: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Outcome {
    let environment = match Environment::read(&variable) {
        Ok(environment) => environment,
        Err(error) => return failed(&error, Version::LATEST),
    };
    if environment.command == Command::Version {
        return done(Some(version_answer()));
    }
    let config = match read_config(input) {
        Ok(config) => config,
        Err(error) => return failed(&error, Version::LATEST),
    };
    let version = config::version_of(&config).unwrap_or(Version::LATEST);
    match carry_out(&CniRequest { environment, config, delegated: None }, variable) {
        Ok(output) => done(output),
        Err(error) => failed(&error, version),
    }
}

/// Calls the daemon, and where another plugin hands out the addresses, that one: first for an ADD, last for a DEL,
/// so that it never gives an address to somebody else that is still in use here.
fn carry_out(
    request: &CniRequest,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Value>, CniError> {
    // What is wrong with the request itself does not need a daemon to say so.
    let verb = handler::interpret(request)?;
    let command = request.environment.command;
    let conf = NetConf::read(&request.config, Strictness::Lenient)?;
    let Some(name) = &conf.delegate else { return call_daemon(request, &verb) };
    let (config, delegate) = (&request.config, Delegate::find(name, conf.version, variable)?);
    match command {
        Command::Add => {
            let Choice { addresses, dns } = delegate.add(config)?;
            let request = CniRequest { delegated: Some(addresses), ..request.clone() };
            let added = handler::interpret(&request).and_then(|verb| call_daemon(&request, &verb));
            let result = added.map_err(|error| match delegate.tell(Command::Del, config) {
                Ok(()) => error,
                Err(more) => {
                    let details =
                        format!("{}; and its addresses are not given back: {more}", error.details);
                    error.with_details(details)
                }
            })?;
            Ok(result.map(|result| with_dns(result, &dns)))
        }
        Command::Del => {
            call_daemon(request, &verb)?;
            delegate.tell(command, config).map(|()| None)
        }
        Command::Check => {
            delegate.tell(command, config)?;
            call_daemon(request, &verb)
        }
        Command::Gc => {
            call_daemon(request, &verb)?;
            delegate.tell_if_known(command, config).map(|()| None)
        }
        Command::Status | Command::Version => {
            delegate.tell_if_known(command, config)?;
            call_daemon(request, &verb)
        }
    }
}

/// What the other plugin knows of name servers, where nobody else does.
fn with_dns(mut result: Value, dns: &Dns) -> Value {
    if !dns.is_empty() && result.get("dns").is_none() {
        result["dns"] = json!(dns);
    }
    result
}

fn call_daemon(request: &CniRequest, verb: &Verb) -> Result<Option<Value>, CniError> {
    let socket = NetConf::read(&request.config, Strictness::Lenient)?.socket;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            CniError::new(Code::IO_FAILURE, "cannot start the plugin's I/O")
                .with_details(error.to_string())
        })?;
    match runtime.block_on(Client::new(&socket).cni(request)) {
        Ok(CniResponse::Result(result)) => Ok(result),
        Ok(CniResponse::Error(error)) => Err(error),
        Err(error) => unanswered(verb, &socket, &error).map(|()| None),
    }
}

/// No answer from the daemon: for STATUS that is the answer, a DEL is noted, and for the rest it is a reason to
/// try again.
fn unanswered(verb: &Verb, socket: &Path, error: &ClientError) -> Result<(), CniError> {
    let unavailable =
        |code| CniError::new(code, "weftd is not available").with_details(error.to_string());
    match verb {
        // Their packets went through it.
        Verb::Status(_) if has_pods(socket) => Err(unavailable(Code::LIMITED)),
        Verb::Status(_) => Err(unavailable(Code::NOT_AVAILABLE)),
        _ if !error.is_transient() => Err(unavailable(Code::INTERNAL)),
        Verb::Del(detach) => {
            let deletion = Deletion {
                container_id: detach.container_id.clone(),
                ifname: detach.ifname.clone(),
            };
            Journal::beside(socket).note(&deletion).map_err(|why| {
                let details = format!("{error}; and the deletion cannot be noted: {why}");
                CniError::new(Code::TRY_AGAIN_LATER, "weftd is not available").with_details(details)
            })
        }
        Verb::Add(_) | Verb::Check(_) | Verb::Gc(_) => Err(unavailable(Code::TRY_AGAIN_LATER)),
    }
}

/// Name of the file beside the socket that is there while the daemon has pods, also when it does not run.
pub const PODS_MARKER: &str = "pods";

fn has_pods(socket: &Path) -> bool {
    socket.with_file_name(PODS_MARKER).exists()
}

fn read_config(input: impl Read) -> Result<Value, CniError> {
    let mut bytes = Vec::new();
    let len = input.take(CONFIG_LEN_MAX + 1).read_to_end(&mut bytes).map_err(|error| {
        CniError::new(Code::IO_FAILURE, "cannot read the configuration from standard input")
            .with_details(error.to_string())
    })?;
    let undecodable = |why: String| {
        CniError::new(Code::DECODING_FAILURE, "the configuration on standard input is not JSON")
            .with_details(why)
    };
    if u64::try_from(len).is_ok_and(|len| len > CONFIG_LEN_MAX) {
        return Err(undecodable(format!("it is longer than {CONFIG_LEN_MAX} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| undecodable(error.to_string()))
}

fn version_answer() -> Value {
    json!({
        "cniVersion": Version::LATEST.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

fn done(output: Option<Value>) -> Outcome {
    Outcome { success: true, output }
}

fn failed(error: &CniError, version: Version) -> Outcome {
    Outcome { success: false, output: Some(error.to_json(version)) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Standard input that a runtime never closes.
    struct NeverEnding;

    impl Read for NeverEnding {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("standard input was read");
        }
    }

    #[test]
    fn version_is_answered_whatever_else_is_told() {
        // As libcni asks, to find out what a plugin supports (`GetVersionInfo`, pkg/invoke/exec.go).
        let outcome = run(
            |name| match name {
                "CNI_COMMAND" => Some("VERSION".into()),
                "CNI_NETNS" | "CNI_IFNAME" | "CNI_PATH" => Some("dummy".into()),
                _ => None,
            },
            NeverEnding,
        );
        assert!(outcome.success, "{outcome:?}");
    }

    fn variables(command: &str) -> impl Fn(&str) -> Option<OsString> {
        move |name| match name {
            "CNI_COMMAND" => Some(command.into()),
            "CNI_CONTAINERID" => Some("c0ffee".into()),
            "CNI_NETNS" => Some("/run/netns/blue".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_PATH" => Some("/opt/cni/bin".into()),
            _ => None,
        }
    }

    fn config(socket: &Path) -> String {
        json!({ "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": socket,
                "prevResult": {}, "cni.dev/valid-attachments": [] })
        .to_string()
    }

    fn code(outcome: &Outcome) -> u64 {
        assert!(!outcome.success);
        outcome.output.as_ref().unwrap()["code"].as_u64().unwrap()
    }

    #[test]
    fn version_needs_neither_input_nor_daemon() {
        let outcome = run(variables("VERSION"), NeverEnding);
        assert_eq!(
            outcome,
            done(Some(json!({
                "cniVersion": "1.1.0",
                "supportedVersions":
                    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
            })))
        );
    }

    #[test]
    fn without_a_daemon_each_command_has_its_code() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("nobody.sock"));
        for (command, expected) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
            let outcome = run(variables(command), config.as_bytes());
            assert_eq!(code(&outcome), expected, "{command}");
            let output = outcome.output.unwrap();
            assert_eq!(output["cniVersion"], "1.1.0");
            assert!(output["details"].as_str().unwrap().contains("nobody.sock"), "{output}");
        }
        std::fs::write(directory.path().join(PODS_MARKER), "").unwrap();
        assert_eq!(code(&run(variables("STATUS"), config.as_bytes())), 51, "pods are cut off");
    }

    #[test]
    fn without_a_daemon_a_deletion_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nobody.sock");
        for _ in 0..2 {
            assert_eq!(run(variables("DEL"), config(&socket).as_bytes()), done(None));
        }
        let (noted, _) = Journal::beside(&socket).read().unwrap();
        let expected = Deletion { container_id: "c0ffee".into(), ifname: "eth0".into() };
        assert_eq!(noted, [expected]);
    }

    #[test]
    fn a_deletion_that_cannot_be_noted_is_to_be_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let outcome = run(variables("DEL"), config(&file.join("weftd.sock")).as_bytes());
        assert_eq!(code(&outcome), 11);
        assert!(outcome.output.unwrap()["details"].as_str().unwrap().contains("cannot be noted"));
    }

    #[test]
    fn a_wrong_request_is_refused_without_the_daemon() {
        for (input, expected) in [
            ("", 6),
            ("{", 6),
            ("[]", 7),
            (r#"{"cniVersion":"9.0.0","name":"weft","type":"weft-cni"}"#, 1),
            (r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","ipam":{"type":"dhcp"}}"#, 2),
            (r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","ipam":{"type":"x"}}"#, 4),
        ] {
            assert_eq!(code(&run(variables("ADD"), input.as_bytes())), expected, "{input}");
        }
        assert_eq!(code(&run(|_| None, NeverEnding)), 4);
    }

    #[test]
    fn an_endless_configuration_is_refused() {
        let outcome = run(variables("ADD"), std::io::repeat(b' '));
        assert_eq!(code(&outcome), 6);
    }

    #[test]
    fn the_daemons_answer_is_passed_on() {
        for (answer, success, output) in [
            (r#"{"result":{"cniVersion":"1.1.0"}}"#, true, Some(json!({ "cniVersion": "1.1.0" }))),
            (r#"{"result":null}"#, true, None),
            (
                r#"{"error":{"code":101,"msg":"full"}}"#,
                false,
                Some(json!({ "cniVersion": "1.1.0", "code": 101, "msg": "full" })),
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("weftd.sock");
            let listener = UnixListener::bind(&socket).unwrap();
            let daemon = std::thread::spawn(move || answer_once(&listener, answer));
            let outcome = run(variables("ADD"), config(&socket).as_bytes());
            assert_eq!(outcome, Outcome { success, output });
            assert_eq!(daemon.join().unwrap()["container_id"], "c0ffee");
        }
    }

    fn answer_once(listener: &UnixListener, answer: &str) -> Value {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut len = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).unwrap();
        let response =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        reader.get_mut().write_all(response.as_bytes()).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}
