//! What is asked of an API server, and what its answers mean. Pure: paths out, bytes in.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::reflector::{Failure, Page, Seen, Step};
use super::resource::Resource;
use super::store::{Judged, name_of};
use crate::cluster::ObjectKind;
use crate::cluster::parse::ApiObject;

/// Most characters of a server's message that are kept.
const MESSAGE_LEN_MAX: usize = 500;

/// Path and query of the request that a step asks for; `None` for a pause.
pub fn request(resource: &Resource, step: &Step) -> Option<String> {
    let path = resource.path();
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    match step {
        Step::Wait(_) => None,
        // Without a version, the list is of now: what is known never goes back.
        Step::List { limit: None, from: _ } => Some(path),
        Step::List { limit: Some(limit), from: None } => Some(format!("{path}?limit={limit}")),
        Step::List { limit: Some(limit), from: Some(from) } => {
            Some(format!("{path}?limit={limit}&continue={}", encoded(from)))
        }
        Step::Watch { version, timeout_s } => Some(format!(
            "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={timeout_s}",
            encoded(version)
        )),
    }
}

/// Reads the answer to a list.
///
/// # Errors
/// When it is no list, as of an answer that broke off.
pub fn page(kind: ObjectKind, body: &[u8]) -> Result<Page, Failure> {
    let List { metadata, items } = serde_json::from_slice(body).map_err(|error| garbled(&error))?;
    let items = items.unwrap_or_default();
    Ok(Page {
        items: items.iter().filter_map(|object| Judged::new(kind, object)).collect(),
        version: metadata.version,
        next: metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Reads a line of a watch. `None` for an event of a kind that means nothing here.
///
/// # Errors
/// When the server says that the watch has failed, or the line is no event.
pub fn event(kind: ObjectKind, line: &[u8]) -> Result<Option<Seen>, Failure> {
    let Event { what, object } = serde_json::from_slice(line).map_err(|error| garbled(&error))?;
    let version = object.version().to_owned();
    Ok(match what.as_str() {
        "ADDED" | "MODIFIED" => Judged::new(kind, &object).map(|it| Seen::Set(it, version)),
        "DELETED" => name_of(&object).map(|name| Seen::Deleted(name, version)),
        "BOOKMARK" => Some(Seen::Bookmark(version)),
        "ERROR" => {
            let code = object.number("code").and_then(|code| u16::try_from(code).ok());
            return Err(failure_of(code.unwrap_or(500), None, &object));
        }
        _ => None,
    })
}

/// What an answer with an error means. `body` is a `Status`, of which proxies in front know nothing.
pub fn failure(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Failure {
    match serde_json::from_slice::<ApiObject>(body) {
        Ok(object) => failure_of(status, retry_after, &object),
        Err(_) if status == 410 => Failure::Expired,
        Err(_) if status == 404 => Failure::NotServed,
        Err(_) => Failure::Refused { status, message: format!("status {status}"), retry_after },
    }
}

fn failure_of(status: u16, retry_after: Option<Duration>, object: &ApiObject) -> Failure {
    let message: String = object.text("message").chars().take(MESSAGE_LEN_MAX).collect();
    match (status, object.text("reason")) {
        (410, _) | (_, "Expired" | "Gone") => Failure::Expired,
        // The server was set back to an earlier state, and waited in vain for the version to come.
        (_, "Timeout") if message.contains("Too large resource version") => Failure::Expired,
        (404, _) => Failure::NotServed,
        (_, reason) => {
            let message = match (message.as_str(), reason) {
                ("", "") => format!("status {status}"),
                ("", reason) => format!("status {status}, {reason}"),
                (message, _) => format!("status {status}, {message}"),
            };
            Failure::Refused { status, message, retry_after }
        }
    }
}

fn garbled(error: &serde_json::Error) -> Failure {
    Failure::Unreachable(format!("its answer cannot be read: {error}"))
}

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    items: Option<Vec<ApiObject>>,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "resourceVersion", default)]
    version: String,
    #[serde(rename = "continue", default)]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    what: String,
    object: ApiObject,
}

#[cfg(test)]
mod tests {
    use super::super::resource::WATCHED;
    use super::*;

    #[test]
    fn what_a_server_says_of_failures() {
        let status = |code: u16, reason: &str, message: &str| {
            format!(
                r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","reason":"{reason}","code":{code}}}"#
            )
        };
        let expired = status(410, "Expired", "too old resource version: 1 (2)");
        assert_eq!(failure(410, None, expired.as_bytes()), Failure::Expired);
        assert_eq!(failure(410, None, b"<html>"), Failure::Expired);
        assert_eq!(failure(404, None, b"404 page not found"), Failure::NotServed);
        let line = format!(r#"{{"type":"ERROR","object":{expired}}}"#);
        assert_eq!(event(ObjectKind::Pod, line.as_bytes()).unwrap_err(), Failure::Expired);
        let set_back = status(504, "Timeout", "Too large resource version: 9, current: 5");
        assert_eq!(failure(504, None, set_back.as_bytes()), Failure::Expired);
        let Failure::Refused { status: 403, message, .. } =
            failure(403, None, status(403, "Forbidden", "pods is forbidden").as_bytes())
        else {
            panic!("it is forbidden");
        };
        assert_eq!(message, "status 403, pods is forbidden");
    }

    #[test]
    fn requests_are_of_one_path() {
        let pods = WATCHED.iter().find(|it| it.kind == ObjectKind::Pod).unwrap();
        let list = |from: Option<&str>| Step::List { limit: Some(2), from: from.map(Into::into) };
        assert_eq!(request(pods, &list(None)).unwrap(), "/api/v1/pods?limit=2");
        let next = request(pods, &list(Some("a=&b"))).unwrap();
        assert_eq!(next, "/api/v1/pods?limit=2&continue=a%3D%26b");
        let watch = Step::Watch { version: "7".into(), timeout_s: 300 };
        assert_eq!(
            request(pods, &watch).unwrap(),
            "/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion=7&timeoutSeconds=300"
        );
    }

    #[test]
    fn broken_lines_are_failures_and_unknown_events_are_not() {
        let cut = br#"{"type":"ADDED","object":{"metadata":{"name":"a"#;
        assert!(matches!(event(ObjectKind::Pod, cut), Err(Failure::Unreachable(_))));
        let unknown = br#"{"type":"RENAMED","object":{"metadata":{"name":"a"}}}"#;
        assert!(event(ObjectKind::Pod, unknown).unwrap().is_none());
        assert!(page(ObjectKind::Pod, br#"{"kind":"PodList","items":["#).is_err());
        let empty = page(ObjectKind::Pod, br#"{"metadata":{"resourceVersion":"3"},"items":null}"#);
        assert_eq!(empty.unwrap().version, "3");
    }
}
