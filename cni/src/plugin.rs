//! The plugin's whole behaviour: environment and standard input, to the daemon, to standard output.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::{Command, Environment};
use crate::config::{self, NetConf, Strictness};
use crate::error::{CniError, Code};
use crate::handler;
use crate::result::Version;
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
    let environment = match Environment::read(variable) {
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
    match call_daemon(CniRequest { environment, config }) {
        Ok(output) => done(output),
        Err(error) => failed(&error, version),
    }
}

fn call_daemon(request: CniRequest) -> Result<Option<Value>, CniError> {
    // What is wrong with the request itself does not need a daemon to say so.
    handler::interpret(&request)?;
    let socket = NetConf::read(&request.config, Strictness::Lenient)?.socket;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            CniError::new(Code::IO_FAILURE, "cannot start the plugin's I/O")
                .with_details(error.to_string())
        })?;
    match runtime.block_on(Client::new(socket).cni(&request)) {
        Ok(CniResponse::Result(result)) => Ok(result),
        Ok(CniResponse::Error(error)) => Err(error),
        Err(error) => Err(unreachable(request.environment.command, &error)),
    }
}

/// No answer from the daemon: for STATUS that is the answer, for the rest it is a reason to try again.
fn unreachable(command: Command, error: &ClientError) -> CniError {
    let code =
        match command {
            Command::Status => Code::NOT_AVAILABLE,
            Command::Add | Command::Del | Command::Check | Command::Version => {
                if error.is_transient() { Code::TRY_AGAIN_LATER } else { Code::INTERNAL }
            }
        };
    CniError::new(code, "weftd is not available").with_details(error.to_string())
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
    use std::path::Path;

    use super::*;

    /// Standard input that a runtime never closes.
    struct NeverEnding;

    impl Read for NeverEnding {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("standard input was read");
        }
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
                "prevResult": {} })
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
        for (command, expected) in [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("STATUS", 50)] {
            let outcome = run(variables(command), config.as_bytes());
            assert_eq!(code(&outcome), expected, "{command}");
            let output = outcome.output.unwrap();
            assert_eq!(output["cniVersion"], "1.1.0");
            assert!(output["details"].as_str().unwrap().contains("nobody.sock"), "{output}");
        }
    }

    #[test]
    fn a_wrong_request_is_refused_without_the_daemon() {
        for (input, expected) in [
            ("", 6),
            ("{", 6),
            ("[]", 7),
            (r#"{"cniVersion":"9.0.0","name":"weft","type":"weft-cni"}"#, 1),
            (r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","ipam":{"type":"x"}}"#, 2),
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
