//! Another plugin that hands out the addresses: `ipam.type` of the configuration (CNI specification 1.1, section 4,
//! "Plugin delegation").
//!
//! It is run with the runtime's environment and configuration. What it chooses must lie in the node's subnet, or no
//! other node could reach it; the daemon refuses anything else.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use crate::args::Command;
use crate::error::{CniError, Code};
use crate::result::{CniResult, Dns, Version};

/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// Variables that a plugin is told (CNI specification 1.1, "Parameters"); `CNI_COMMAND` is ours to set.
const VARIABLES: [&str; 5] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// A plugin that was found.
#[derive(Debug)]
pub(crate) struct Delegate {
    program: PathBuf,
    name: String,
    variables: Vec<(&'static str, OsString)>,
    version: Version,
}

/// What it chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dns: Dns,
}

impl Delegate {
    /// Looks for the plugin `name` in the directories of `CNI_PATH`.
    ///
    /// # Errors
    /// Code 4 when `CNI_PATH` does not lead to it.
    pub(crate) fn find(
        name: &str,
        version: Version,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, CniError> {
        let path = variable("CNI_PATH").unwrap_or_default();
        let programs = std::env::split_paths(&path).map(|directory| directory.join(name));
        let program = programs.into_iter().find(|program| is_executable(program));
        let program = program.ok_or_else(|| {
            CniError::new(Code::INVALID_ENVIRONMENT, "the IPAM plugin is not there").with_details(
                format!(
                    "`ipam.type` is {name:?}, and CNI_PATH ({}) has no such program",
                    path.display()
                ),
            )
        })?;
        let told = VARIABLES.into_iter().filter_map(|name| Some((name, variable(name)?)));
        Ok(Self { program, name: name.to_owned(), variables: told.collect(), version })
    }

    /// ADD: what it chose.
    pub(crate) fn add(&self, config: &Value) -> Result<Choice, CniError> {
        let answer = self.run(Command::Add, config)?;
        if answer.is_null() {
            return Err(self.failure("it gave no answer"));
        }
        let version = answer.get("cniVersion").and_then(Value::as_str);
        let version = version.map_or(Ok(self.version), Version::from_text)?;
        let result = CniResult::from_json(version, &answer)?;
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.ip()).collect();
        if addresses.is_empty() {
            return Err(self.failure("it chose no address"));
        }
        Ok(Choice { addresses, dns: result.dns })
    }

    /// DEL, CHECK.
    pub(crate) fn tell(&self, command: Command, config: &Value) -> Result<(), CniError> {
        self.run(command, config).map(drop)
    }

    /// GC and STATUS, which came with 1.1.0, if it knows them.
    pub(crate) fn tell_if_known(&self, command: Command, config: &Value) -> Result<(), CniError> {
        let versions = self.run(Command::Version, config)?;
        let known = versions.get("supportedVersions").and_then(Value::as_array);
        let knows = known
            .is_some_and(|known| known.iter().any(|version| version == Version::V1_1_0.as_str()));
        if knows { self.tell(command, config) } else { Ok(()) }
    }

    fn run(&self, command: Command, config: &Value) -> Result<Value, CniError> {
        let io = |error: std::io::Error| self.failure(&error.to_string());
        let mut process = Process::new(&self.program);
        for name in VARIABLES {
            process.env_remove(name);
        }
        process.envs(self.variables.iter().map(|(name, value)| (name, value)));
        process.env("CNI_COMMAND", command.as_str());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = process.spawn().map_err(io)?;
        if let Some(mut input) = child.stdin.take()
            && let Err(error) = input.write_all(config.to_string().as_bytes())
            // It may have an answer without having read all.
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(io(error));
        }
        let mut text = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(ANSWER_LEN_MAX).read_to_end(&mut text).map_err(io)?;
        }
        let status = child.wait().map_err(io)?;
        let answer = match text.iter().all(u8::is_ascii_whitespace) {
            true => Ok(Value::Null),
            false => serde_json::from_slice(&text),
        };
        match (status.success(), answer) {
            (true, Ok(answer)) => Ok(answer),
            (true, Err(error)) => Err(self.failure(&format!("its answer is no JSON: {error}"))),
            (false, answer) => Err(self.refusal(&answer.unwrap_or_default(), &status.to_string())),
        }
    }

    /// Its own error, with its code.
    fn refusal(&self, answer: &Value, status: &str) -> CniError {
        let part = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        let code = answer.get("code").and_then(Value::as_u64).and_then(|code| code.try_into().ok());
        let Some(code) = code else {
            return self.failure(&format!("it failed ({status}) without saying why"));
        };
        let texts: Vec<&str> =
            [part("msg"), part("details")].into_iter().filter(|text| !text.is_empty()).collect();
        // Its codes of its own mean nothing beside ours.
        let code = if code >= Code::INTERNAL.0 { Code::DELEGATE_FAILED } else { Code(code) };
        CniError::new(code, format!("the IPAM plugin {} failed", self.name))
            .with_details(texts.join(": "))
    }

    fn failure(&self, why: &str) -> CniError {
        CniError::new(Code::DELEGATE_FAILED, format!("the IPAM plugin {} failed", self.name))
            .with_details(format!("{}: {why}", self.program.display()))
    }
}

/// Whether `text` can name a plugin: a file in a directory of `CNI_PATH`, and nothing that leads out of it.
pub(crate) fn is_plugin_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && ![".", ".."].contains(&text)
        && !text.contains(['/', '\0'])
}

fn is_executable(program: &Path) -> bool {
    program.as_os_str() != OsStr::new("")
        && program
            .metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A plugin that is there.
    fn delegate(directory: &tempfile::TempDir) -> Delegate {
        std::os::unix::fs::symlink("/bin/true", directory.path().join("host-local")).unwrap();
        let path = directory.path().as_os_str().to_owned();
        Delegate::find("host-local", Version::V1_0_0, |name| {
            (name == "CNI_PATH").then(|| path.clone())
        })
        .unwrap()
    }

    #[test]
    fn an_answer_without_an_address_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let delegate = delegate(&directory);
        let error = delegate.add(&json!({})).unwrap_err();
        assert_eq!(error.code, Code::DELEGATE_FAILED);
        delegate.tell(Command::Del, &json!({})).unwrap();
        // It knows no version, so it is not bothered.
        delegate.tell_if_known(Command::Gc, &json!({})).unwrap();
    }

    #[test]
    fn a_plugin_is_a_file_in_cni_path() {
        for wrong in ["", ".", "..", "a/b", "../x", "a\0"] {
            assert!(!is_plugin_name(wrong), "{wrong:?}");
        }
        assert!(is_plugin_name("host-local"));
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("host-local"), "").unwrap();
        let path = directory.path().as_os_str().to_owned();
        let error = Delegate::find("host-local", Version::V1_0_0, |_| Some(path.clone()));
        let error = error.unwrap_err();
        assert_eq!(error.code, Code(4), "a file that cannot be executed: {error}");
        assert!(error.details.contains("host-local"), "{error}");
    }

    #[test]
    fn the_error_of_the_plugin_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let delegate = delegate(&directory);
        let refusal = |code: u32| {
            delegate.refusal(&json!({ "code": code, "msg": "full", "details": "10.0.0.0/30" }), "1")
        };
        assert_eq!((refusal(11).code, refusal(7).code), (Code(11), Code(7)));
        assert_eq!(refusal(101).code, Code::DELEGATE_FAILED);
        assert_eq!(refusal(11).details, "full: 10.0.0.0/30");
        assert_eq!(delegate.refusal(&Value::Null, "signal 9").code, Code::DELEGATE_FAILED);
    }
}
