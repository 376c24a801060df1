//! Errors as CNI knows them: a code, a message, details (CNI specification 1.1, "Error").

use serde::{Deserialize, Serialize};

use crate::result::Version;

/// The codes in use. 1 to 99 belong to the specification, 100 and above are our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u32);

impl Code {
    /// The configuration asks for a version of the specification that is not supported.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// The configuration has a field, or a value of one, that is not supported. The message names both.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown or gone. The runtime need not clean up after it.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// Environment variables are missing or wrong. The message names all of them.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: Self = Self(5);
    /// Something could not be decoded, such as the configuration on standard input.
    pub const DECODING_FAILURE: Self = Self(6);
    /// The configuration is not valid.
    pub const INVALID_CONFIG: Self = Self(7);
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: as 50, and containers that exist may have limited connectivity.
    pub const LIMITED: Self = Self(51);
    /// Ours: something failed inside the daemon that no other code describes.
    pub const INTERNAL: Self = Self(100);
    /// Ours: the node's subnet has no free address.
    pub const EXHAUSTED: Self = Self(101);
    /// Ours: the pod's namespace or device could not be set up.
    pub const ATTACH_FAILED: Self = Self(102);
    /// Ours: CHECK found the attachment different from what was promised. The details name what.
    pub const CHECK_FAILED: Self = Self(103);
    /// Ours: the IPAM plugin that the configuration names failed.
    pub const DELEGATE_FAILED: Self = Self(105);
    /// Ours: an address that was asked for is somebody else's.
    pub const TAKEN: Self = Self(104);
}

/// An error as a runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What kind of error.
    pub code: Code,
    /// One short sentence.
    pub msg: String,
    /// More, for people; may be empty.
    pub details: String,
}

impl CniError {
    /// Makes an error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object for standard output.
    pub fn to_json(&self, version: Version) -> serde_json::Value {
        let mut object = serde_json::json!({
            "cniVersion": version.as_str(),
            "code": self.code.0,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

/// The form between daemon and shim, in which the version does not matter.
#[derive(Serialize, Deserialize)]
struct Wire {
    code: u32,
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Serialize for CniError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire { code: self.code.0, msg: self.msg.clone(), details: self.details.clone() }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CniError {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { code, msg, details } = Wire::deserialize(deserializer)?;
        Ok(Self { code: Code(code), msg, details })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_specifications_example() {
        // CNI specification 1.1, "Error", example.
        let error = CniError::new(Code::INVALID_CONFIG, "Invalid Configuration")
            .with_details("Network 192.168.0.0/31 too small to allocate from.");
        assert_eq!(
            error.to_json(Version::V1_1_0),
            serde_json::json!({
                "cniVersion": "1.1.0",
                "code": 7,
                "msg": "Invalid Configuration",
                "details": "Network 192.168.0.0/31 too small to allocate from."
            })
        );
    }

    #[test]
    fn survives_the_way_through_the_socket() {
        let error = CniError::new(Code::EXHAUSTED, "no free address");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(text, r#"{"code":101,"msg":"no free address"}"#);
        assert_eq!(serde_json::from_str::<CniError>(&text).unwrap(), error);
    }
}
