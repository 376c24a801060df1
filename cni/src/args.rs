//! The environment of a CNI call (CNI specification 1.1, "Parameters").

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{CniError, Code};

/// Longest network name, container id and path that are accepted, in bytes. The specification sets no
/// limit; ours keeps the daemon's memory and its file bounded.
const TEXT_LEN_MAX: usize = 4096;

/// Longest interface name in bytes, the kernel's `IFNAMSIZ` without the zero (linux/if.h).
const IFNAME_LEN_MAX: usize = 15;

/// What the runtime wants done, `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Compare an attachment with what was promised.
    Check,
    /// Release whatever is not in a list of attachments.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions of the specification are supported.
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The name in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.as_str() == text)
    }

    /// The variables without which the command means nothing. `CNI_PATH` is not among them: the
    /// specification calls it optional, and we run no other plugin.
    fn required(self) -> &'static [Variable] {
        match self {
            Self::Add | Self::Check => &[Variable::ContainerId, Variable::Netns, Variable::Ifname],
            Self::Del => &[Variable::ContainerId, Variable::Ifname],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }

    /// The variables that the command looks at. What the others say is no matter.
    fn used(self) -> &'static [Variable] {
        match self {
            Self::Add | Self::Check | Self::Del => {
                &[Variable::ContainerId, Variable::Netns, Variable::Ifname]
            }
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A variable that a command may require.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    ContainerId,
    Netns,
    Ifname,
}

/// The environment, as far as it concerns the plugin. Checked for presence by [`Environment::read`] and
/// for content by [`Environment::validate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty where the command does not need it.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`: the namespace's path; empty when the runtime did not say.
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`: the interface's name inside the container.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE` pairs joined by semicolons.
    #[serde(default)]
    pub args: String,
}

impl Environment {
    /// Reads the environment through `variable`.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing or wrong.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let mut wrong = Vec::new();
        let mut text = |name: &str| match variable(name).unwrap_or_default().into_string() {
            Ok(text) => text,
            Err(_) => {
                wrong.push(format!("{name} is not UTF-8"));
                String::new()
            }
        };
        let command = text("CNI_COMMAND");
        let (container_id, netns) = (text("CNI_CONTAINERID"), text("CNI_NETNS"));
        let (ifname, args) = (text("CNI_IFNAME"), text("CNI_ARGS"));
        if !wrong.is_empty() {
            return Err(invalid(&wrong));
        }
        if command.is_empty() {
            return Err(invalid(&["CNI_COMMAND is missing".into()]));
        }
        let Some(command) = Command::from_text(&command) else {
            let known = Command::ALL.map(Command::as_str).join(", ");
            let why = format!("CNI_COMMAND is {command:.64?}, and this plugin knows {known}");
            return Err(invalid(&[why]));
        };
        let environment = Self { command, container_id, netns, ifname, args };
        environment.validate()?;
        Ok(environment)
    }

    /// Checks that what the command needs is there and well formed.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing or wrong.
    pub fn validate(&self) -> Result<(), CniError> {
        let mut wrong = Vec::new();
        for variable in self.command.required() {
            let (name, value) = self.value(*variable);
            if value.is_empty() {
                wrong.push(format!("{name} is missing"));
            }
        }
        for variable in self.command.used() {
            let (name, value) = self.value(*variable);
            if !value.is_empty() && !is_valid(*variable, value) {
                wrong.push(format!("{name} is {value:.64?}: {}", rule(*variable)));
            }
        }
        if self.args.len() > TEXT_LEN_MAX {
            wrong.push(format!("CNI_ARGS is longer than {TEXT_LEN_MAX} bytes"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(invalid(&wrong)) }
    }

    /// The pairs of `CNI_ARGS`.
    ///
    /// # Errors
    /// Code 4 when it is not a list of `KEY=VALUE`.
    pub fn pairs(&self) -> Result<Vec<(&str, &str)>, CniError> {
        self.args
            .split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                    invalid(&[format!("CNI_ARGS has {pair:.64?}, which is not KEY=VALUE")])
                })
            })
            .collect()
    }

    fn value(&self, variable: Variable) -> (&'static str, &str) {
        match variable {
            Variable::ContainerId => ("CNI_CONTAINERID", &self.container_id),
            Variable::Netns => ("CNI_NETNS", &self.netns),
            Variable::Ifname => ("CNI_IFNAME", &self.ifname),
        }
    }
}

/// Whether `text` can name a network or a container: alphanumeric, then also `_`, `.` and `-`.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= TEXT_LEN_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether `text` can name an interface: at most 15 bytes, not `.` or `..`, without `/`, `:`, `%`, white
/// space and control characters (`dev_valid_name`, net/core/dev.c). The kernel takes a name with `%` for a
/// pattern, and would choose another one.
pub fn is_ifname(text: &str) -> bool {
    (1..=IFNAME_LEN_MAX).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.chars().any(|c| "/:%".contains(c) || c.is_whitespace() || c.is_control())
}

fn is_valid(variable: Variable, value: &str) -> bool {
    match variable {
        Variable::ContainerId => is_name(value),
        Variable::Netns => {
            value.starts_with('/') && value.len() <= TEXT_LEN_MAX && !value.contains('\0')
        }
        Variable::Ifname => is_ifname(value),
    }
}

fn rule(variable: Variable) -> &'static str {
    match variable {
        Variable::ContainerId => {
            "start with a letter or digit, then letters, digits, `_`, `.` and `-`"
        }
        Variable::Netns => "give an absolute path",
        Variable::Ifname => {
            "use 1 to 15 bytes without `/`, `:`, `%` and white space, and not `.` or `..`"
        }
    }
}

fn invalid(wrong: &[String]) -> CniError {
    CniError::new(Code::INVALID_ENVIRONMENT, "environment variables are missing or wrong")
        .with_details(wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    const COMPLETE: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "cnitool-77383ca0a0715733ca6f"),
        ("CNI_NETNS", "/run/netns/blue"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn read(command: &str, without: &[&str]) -> Result<Environment, CniError> {
        Environment::read(|name| {
            if name == "CNI_COMMAND" {
                return Some(command.into());
            }
            let (_, value) = COMPLETE.iter().find(|(known, _)| *known == name)?;
            (!without.contains(&name)).then(|| (*value).into())
        })
    }

    #[test]
    fn every_command_with_every_set_of_missing_variables() {
        let required: [(&str, &[&str]); 6] = [
            ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            ("GC", &[]),
            ("STATUS", &[]),
            ("VERSION", &[]),
        ];
        for (command, needs) in required {
            for set in 0..1_u32 << COMPLETE.len() {
                let without: Vec<&str> = COMPLETE
                    .iter()
                    .enumerate()
                    .filter(|(ix, _)| set >> ix & 1 == 1)
                    .map(|(_, (name, _))| *name)
                    .collect();
                let expected: Vec<String> = needs
                    .iter()
                    .filter(|name| without.contains(name))
                    .map(|name| format!("{name} is missing"))
                    .collect();
                match read(command, &without) {
                    Ok(_) => assert!(expected.is_empty(), "{command} without {without:?}"),
                    Err(error) => {
                        assert_eq!(error.code, Code(4));
                        assert_eq!(error.details, expected.join("; "), "{command} {without:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_command_itself() {
        let error = Environment::read(|_| None).unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (Code(4), "CNI_COMMAND is missing"));
        for unknown in ["add", "UPDATE", "ADD ", "\u{7}"] {
            let error = read(unknown, &[]).unwrap_err();
            assert_eq!(error.code, Code(4), "{unknown}");
            assert!(error.details.contains("ADD, DEL, CHECK, GC, STATUS, VERSION"), "{error}");
        }
    }

    #[test]
    fn all_wrong_values_are_named_at_once() {
        let error = Environment::read(|name| match name {
            "CNI_COMMAND" => Some("ADD".into()),
            "CNI_CONTAINERID" => Some("../etc".into()),
            "CNI_NETNS" => Some("relative".into()),
            "CNI_IFNAME" => Some("averyveryverylongname".into()),
            _ => None,
        })
        .unwrap_err();
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(error.details.contains(name), "{error}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let error = Environment::read(|name| match name {
            "CNI_COMMAND" => Some("ADD".into()),
            _ => Some(OsString::from_vec(vec![0xff])),
        })
        .unwrap_err();
        assert!(error.details.contains("CNI_NETNS is not UTF-8"), "{error}");
    }

    #[test]
    fn names() {
        for good in ["a", "0", "weft", "a-b.c_d", "77383ca0a0715733ca6f"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "ä", "a\n"] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["eth0", "a", "net1.100", "fifteen-bytes-x"] {
            assert!(is_ifname(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "100%", "sixteen-bytes-xy", "a\0"]
        {
            assert!(!is_ifname(bad), "{bad:?}");
        }
    }

    #[test]
    fn pairs_of_args() {
        let mut environment = read("ADD", &[]).unwrap();
        let expected = [("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web-0")];
        assert_eq!(environment.pairs().unwrap(), expected);
        environment.args = "A=b=c;;D=".into();
        assert_eq!(environment.pairs().unwrap(), [("A", "b=c"), ("D", "")]);
        for wrong in ["A", "=b", "A=1;B"] {
            environment.args = wrong.into();
            assert_eq!(environment.pairs().unwrap_err().code, Code(4), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn hostile_values_never_panic(
            command in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "?"]),
            value in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let answer = Environment::read(|name| match name {
                "CNI_COMMAND" => Some(command.into()),
                _ => Some(OsString::from_vec(value.clone())),
            });
            if let Ok(environment) = answer {
                let _ = environment.pairs();
            }
        }
    }
}
