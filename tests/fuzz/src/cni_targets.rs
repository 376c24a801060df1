//! What a container runtime says to the plugin, and the plugin to the daemon.

use std::ffi::OsString;

use cni::args::Environment;
use cni::config::{NetConf, Strictness, version_of};
use cni::handler;
use cni::rpc::CniRequest;
use serde_json::Value;

/// One call of the plugin: `NAME=VALUE` lines as its environment, an empty line, and its standard input.
pub fn cni(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let (environment, stdin) = text.split_once("\n\n").unwrap_or(("", text));
    let variable = |name: &str| {
        environment
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(OsString::from)
    };
    let Ok(config) = serde_json::from_str::<Value>(stdin) else {
        return;
    };
    let _version = version_of(&config);
    for strictness in [Strictness::Strict, Strictness::Lenient] {
        if let Ok(conf) = NetConf::read(&config, strictness) {
            assert!(conf.socket.is_absolute());
        }
    }
    let Ok(environment) = Environment::read(variable) else {
        return;
    };
    let _pairs = environment.pairs();
    let request = CniRequest { environment, config, delegated: None };
    let sent = serde_json::to_vec(&request).expect("a request is JSON");
    let received: CniRequest = serde_json::from_slice(&sent).expect("the daemon reads the plugin");
    assert_eq!(handler::interpret(&received).is_ok(), handler::interpret(&request).is_ok());
}
