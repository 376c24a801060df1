//! Which names Kubernetes takes, and for what.
//!
//! Each check says what is wrong, as the end of a sentence that begins with the value.

use std::net::IpAddr;

/// Longest DNS label (RFC 1035 §2.3.4).
const LABEL_MAX: usize = 63;

/// Longest DNS name, without the root's dot (RFC 1035 §2.3.4).
const SUBDOMAIN_MAX: usize = 253;

/// A label as RFC 1123 §2.1 has it: namespaces, hostnames, port names.
///
/// # Errors
/// What is wrong.
pub fn dns1123_label(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > LABEL_MAX || !is_label(text) {
        return Err(
            "is no DNS label: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
                .into(),
        );
    }
    Ok(())
}

/// A label as RFC 1035 §2.3.1 has it: Services.
///
/// # Errors
/// What is wrong.
pub fn dns1035_label(text: &str) -> Result<(), String> {
    let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if !starts_well || text.len() > LABEL_MAX || !is_label(text) {
        return Err("is no name of a Service: 1 to 63 of a-z, 0-9 and -, with a letter first and a letter or \
             digit last"
            .into());
    }
    Ok(())
}

/// Labels with dots in between: most objects. As the API server does, it limits the whole and not the parts: many a
/// pod's name is one part of more than 63 characters.
///
/// # Errors
/// What is wrong.
pub fn dns1123_subdomain(text: &str) -> Result<(), String> {
    let good = text.len() <= SUBDOMAIN_MAX && text.split('.').all(|l| !l.is_empty() && is_label(l));
    if text.is_empty() || !good {
        return Err("is no DNS name: 1 to 253 of a-z, 0-9, - and ., with a letter or digit at both ends of \
             each part"
            .into());
    }
    Ok(())
}

/// A name that can be asked for in the DNS (RFC 1035 §2.3.4).
///
/// # Errors
/// What is wrong.
pub fn dns_name(text: &str) -> Result<(), String> {
    dns1123_subdomain(text)?;
    match text.split('.').any(|label| label.len() > LABEL_MAX) {
        true => Err("is no DNS name: a part of it is longer than 63 characters".into()),
        false => Ok(()),
    }
}

/// A label's key: a name of up to 63 characters, with a DNS name and `/` before it if so wanted.
///
/// # Errors
/// What is wrong.
pub fn qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if prefix.is_some_and(|prefix| dns1123_subdomain(prefix).is_err()) {
        return Err("has no DNS name before its /".into());
    }
    if name.is_empty() || !is_label_text(name) {
        return Err(
            "is no qualified name: 1 to 63 letters, digits, - _ and ., with a letter or digit at \
             both ends, and a DNS name and / before that if so wanted"
                .into(),
        );
    }
    Ok(())
}

/// A label's value.
///
/// # Errors
/// What is wrong.
pub fn label_value(text: &str) -> Result<(), String> {
    if !is_label_text(text) {
        return Err("is no label's value: at most 63 letters, digits, - _ and ., with a letter or digit at \
             both ends"
            .into());
    }
    Ok(())
}

/// The name of a container's port, as RFC 6335 §5.1 has it.
///
/// # Errors
/// What is wrong.
pub fn service_name(text: &str) -> Result<(), String> {
    let good = (1..=15).contains(&text.len())
        && is_label(text)
        && !text.contains("--")
        && text.bytes().any(|byte| byte.is_ascii_lowercase());
    if !good {
        return Err("is no port's name: 1 to 15 of a-z, 0-9 and -, with at least one letter, no -- and no - at \
             the ends"
            .into());
    }
    Ok(())
}

/// An IP address as Kubernetes writes it: no zone, no IPv4 in IPv6, no leading zeros.
///
/// # Errors
/// What is wrong.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "is no IP address".to_owned())?;
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err("is an IPv4 address written as IPv6: write it as IPv4".into());
    }
    Ok(address)
}

/// An address that something can be reached at from elsewhere.
///
/// # Errors
/// What is wrong.
pub fn reachable_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let problem = match address {
        _ if address.is_unspecified() => "the address of nobody",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(address),
    };
    Err(format!("is {problem}"))
}

/// Whether `text` is made of what labels of the DNS are made of. Empty is.
fn is_label(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether `text` is made of what labels' values are made of. Empty is.
fn is_label_text(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes.iter().copied().all(good)
        && end(bytes.first())
        && end(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_kubernetes_takes_them() {
        let long = "a".repeat(63);
        let too_long = "a".repeat(64);
        for (text, rfc1123, rfc1035, subdomain) in [
            ("web", true, true, true),
            ("1web", true, false, true),
            ("web-1", true, true, true),
            ("a.b", false, false, true),
            ("", false, false, false),
            ("-a", false, false, false),
            ("a-", false, false, false),
            ("Web", false, false, false),
            ("a_b", false, false, false),
            ("a..b", false, false, false),
            (".a", false, false, false),
            (&long, true, true, true),
            (&too_long, false, false, true),
        ] {
            assert_eq!(dns1123_label(text).is_ok(), rfc1123, "{text}");
            assert_eq!(dns1035_label(text).is_ok(), rfc1035, "{text}");
            assert_eq!(dns1123_subdomain(text).is_ok(), subdomain, "{text}");
        }
        assert!(dns_name(&long).is_ok());
        assert!(dns_name(&format!("a.{too_long}")).is_err());
        let name = [long.as_str(); 4].join(".");
        assert!(dns1123_subdomain(&name[..253]).is_ok());
        assert!(dns1123_subdomain(&name[..254]).is_err());
    }

    #[test]
    fn labels_as_kubernetes_takes_them() {
        for good in ["app", "app.kubernetes.io/name", "A_b.c-1", "9"] {
            assert!(qualified_name(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "-a", "a b", "A/b", &"a".repeat(64)] {
            assert!(qualified_name(bad).is_err(), "{bad}");
        }
        for good in ["", "1", "A.b_c-d", &"a".repeat(63)] {
            assert!(label_value(good).is_ok(), "{good}");
        }
        for bad in ["-", "a-", "a b", "ä", &"a".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_names_as_kubernetes_takes_them() {
        for good in ["http", "a", "h2c", "8080-tcp", "abcdefghijklmno"] {
            assert!(service_name(good).is_ok(), "{good}");
        }
        for bad in ["", "8080", "a--b", "-a", "a-", "HTTP", "abcdefghijklmnop"] {
            assert!(service_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_as_kubernetes_takes_them() {
        for good in ["10.0.0.1", "fd00::1"] {
            assert!(reachable_address(good).is_ok(), "{good}");
        }
        for bad in [
            "10.0.0.01",
            "10.0.0",
            "fe80::1%eth0",
            "::ffff:10.0.0.1",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(reachable_address(bad).is_err(), "{bad}");
        }
    }
}
